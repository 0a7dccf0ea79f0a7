"""What every verb prints with: the console, sentences, rows, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from stability.execute import Callbacks
    from stability.grid import Group
    from stability.study import Study


def print_error(sentence: str) -> None:
    """Say one sentence of a failure, on standard error."""
    print(f"stability: {sentence}", file=sys.stderr)  # noqa: T201


LONGEST_NAME = 32
"""Characters that leave a column beside them on 80."""


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Print names with what they are, in two columns; where names are long, above each other."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if max(len(name) for name, _ in rows) > LONGEST_NAME:
        for name, words in rows:
            console_to().print(Text(name, style="bold"), Padding(Text(words), (0, 0, 0, 4)))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, words in rows:
        table.add_row(Text(name, style="bold"), Text(words))
    console_to().print(table)


def console_to(stderr: bool = False) -> Console:
    """Return the console: standard output, or standard error."""
    from rich.console import Console

    return Console(highlight=False, stderr=stderr)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of done and total that draws one bar, with an estimate."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console_to(), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def progress(study: Study) -> Iterator[Callbacks]:
    """Yield a watch that draws a bar per group and one for the whole study, with an estimate."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from stability.execute import Callbacks
    from stability.grid import study_of

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console_to(), transient=True) as bars:
        whole = bars.add_task("groups", total=None)
        current: dict[str, Any] = {}
        opened = [study]

        def enter(study: Study) -> None:
            opened[:] = [study]

        def begin(groups: int) -> None:
            # What follows a search, or a look at the claims, comes on top.
            bars.update(whole, total=(bars.tasks[whole].total or 0) + groups)

        def step(group: Group, done: int) -> None:
            if group.id not in current:
                again = f"{opened[0].replication}: " * bool(opened[0].replication)
                label = f"{group.arm}, batch {group.batch_size}, {len(group.runs)} {'tuning ' * group.tuning}runs"
                current[group.id] = bars.add_task(f"{again}{label}", total=study_of(opened[0], group).train.steps)
            bars.update(current[group.id], completed=done)

        def done(group: Group, seconds: float) -> None:
            if group.id in current:
                bars.remove_task(current.pop(group.id))
            bars.advance(whole)

        def say(sentence: str) -> None:
            bars.console.print(sentence, markup=False)

        yield Callbacks(open=enter, say=say, begin=begin, step=step, done=done)
