"""The verbs for a loss or an optimizer of one's own: check, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stability.cli.app import app
from stability.cli.options import Device, Encoders, On, Optimizers, Scale
from stability.cli.studies import load_with_files, train_and_report
from stability.cli.terminal import console_to, print_error

if TYPE_CHECKING:
    from stability.check import CheckResult


@app.command()
def check(
    file: Annotated[
        str,
        typer.Argument(
            help="A loss or an optimizer: FILE.py (all that it defines), FILE.py:NAME, or a known one's name.",
            metavar="FILE.py[:NAME]",
        ),
    ],
) -> None:
    """Say whether a loss or an optimizer of your own can be trained and probed, property by property."""
    from stability.check import check as check_properties
    from stability.plugins import find_checked

    variants = find_checked(file)
    failed = []
    for variant in variants:
        results = check_properties(variant)
        title = f"{variant.kind} {variant.name}" if len(variants) > 1 else ""
        print_properties(title, results)
        prefix = f"{title}: " if title else ""
        failed += [prefix + result.property for result in results if result.required and not result.passed]
    if failed:
        print_error(f"{file}: {len(failed)} required properties fail: {', '.join(failed)}")
        raise typer.Exit(1)


def print_properties(title: str, results: Sequence[CheckResult]) -> None:
    """Print one line for each checked property: whether it holds, whether training requires it, and why."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in ("", "property", "", "why"):
        table.add_column(column)
    for result in results:
        # A property that is only reported cannot fail: the variant has it or does not have it.
        kind, positive, negative = ("required", "pass", "FAIL") if result.required else ("reported", "yes", "no")
        mark = Text(positive, "green") if result.passed else Text(negative, "red" if result.required else "yellow")
        table.add_row(mark, Text(result.property), Text(kind, "dim"), Text(result.reason))
    console_to().print(table)


@app.command()
def compare(
    loss: Annotated[
        str, typer.Option(help="A loss: FILE.py, FILE.py:NAME, or a known one's name.", metavar="FILE.py[:NAME]")
    ],
    against: Annotated[
        str, typer.Option(help="Losses or arms of the study to compare with, by comma.")
    ] = "clip,siglip",
    study: Annotated[str, typer.Option(help="The study whose data, grid, probes and claims are used.")] = "quickstart",
    scale: Scale = "small",
    device: Device = "auto",
    on: On = "local",
    out: Annotated[Path | None, typer.Option(help="Directory [default: runs/<study>-<scale>-<loss>].")] = None,
    encoders: Encoders = None,
    optimizers: Optimizers = None,
) -> None:
    """Compare a loss of your own with known ones, claim by claim, in a report of its own."""
    from stability.execute import RunOptions
    from stability.plugins import find_loss
    from stability.study import parse_study, with_loss

    variant, plugins = find_loss(loss)
    base, named = load_with_files(encoders, optimizers, study, scale)
    baselines = [name.strip() for name in against.split(",") if name.strip()]
    derived = parse_study(
        with_loss(base, variant.name, baselines), f"{study} with {loss}", f"{base.name}-{variant.name}", scale
    )
    where = out or Path("runs") / f"{base.name}-{scale}-{variant.name}"
    raise typer.Exit(train_and_report(derived, on, where, (*plugins, *named), RunOptions(device)))
