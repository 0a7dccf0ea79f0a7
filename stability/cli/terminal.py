"""Functions with which the verbs print: console, error sentences, rows, progress bars."""

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
    """Print one error sentence on standard error."""
    print(f"stability: {sentence}", file=sys.stderr)  # noqa: T201


LONGEST_NAME = 32
"""Longest name, in characters, that leaves room for a second column on an 80-column terminal."""


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Print names and descriptions in two columns, or below each other if a name exceeds `LONGEST_NAME`."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if max(len(name) for name, _ in rows) > LONGEST_NAME:
        for name, description in rows:
            console_to().print(Text(name, style="bold"), Padding(Text(description), (0, 0, 0, 4)))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, description in rows:
        table.add_row(Text(name, style="bold"), Text(description))
    console_to().print(table)


def console_to(stderr: bool = False) -> Console:
    """Return a console on standard output, or on standard error."""
    from rich.console import Console

    return Console(highlight=False, stderr=stderr)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of done and total that updates one progress bar with the estimated time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console_to(), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def progress(study: Study) -> Iterator[Callbacks]:
    """Yield callbacks that draw a bar per group and one for the whole study, with the estimated time left."""
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
        current_study = [study]

        def enter(study: Study) -> None:
            current_study[:] = [study]

        def begin(groups: int) -> None:
            # The groups that follow a tuning search or an interim look are added to the total.
            bars.update(whole, total=(bars.tasks[whole].total or 0) + groups)

        def step(group: Group, done: int) -> None:
            if group.id not in current:
                replication = current_study[0].replication
                prefix = f"{replication}: " if replication else ""
                label = f"{group.arm}, batch {group.batch_size}, {len(group.runs)} {'tuning ' * group.tuning}runs"
                current[group.id] = bars.add_task(
                    f"{prefix}{label}", total=study_of(current_study[0], group).train.steps
                )
            bars.update(current[group.id], completed=done)

        def done(group: Group, seconds: float) -> None:
            if group.id in current:
                bars.remove_task(current.pop(group.id))
            bars.advance(whole)

        def say(sentence: str) -> None:
            bars.console.print(sentence, markup=False)

        yield Callbacks(open=enter, say=say, begin=begin, step=step, done=done)
