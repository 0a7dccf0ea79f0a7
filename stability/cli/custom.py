"""The verbs for a custom loss: check, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stability.cli.app import app
from stability.cli.options import Device, Encoders, On, Scale
from stability.cli.studies import load_with_encoders, train_and_report
from stability.cli.terminal import console_to, print_error


@app.command()
def check(
    file: Annotated[
        str, typer.Argument(help="A loss: FILE.py, FILE.py:NAME, or a known one's name.", metavar="FILE.py[:NAME]")
    ],
) -> None:
    """Say whether a loss of your own can be trained and probed, property by property."""
    from rich.table import Table
    from rich.text import Text

    from stability.check import check as check_properties
    from stability.plugins import find_loss

    results = check_properties(find_loss(file)[0])
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "property", "", "why"):
        table.add_column(column)
    for result in results:
        # A property that is only reported cannot fail: the loss has it or does not have it.
        kind, positive, negative = ("required", "pass", "FAIL") if result.required else ("reported", "yes", "no")
        mark = Text(positive, "green") if result.passed else Text(negative, "red" if result.required else "yellow")
        table.add_row(mark, Text(result.property), Text(kind, "dim"), Text(result.reason))
    console_to().print(table)
    failed = [result.property for result in results if result.required and not result.passed]
    if failed:
        print_error(f"{file}: {len(failed)} required properties fail: {', '.join(failed)}")
        raise typer.Exit(1)


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
) -> None:
    """Compare a loss of your own with known ones, claim by claim, in a report of its own."""
    from stability.execute import RunOptions
    from stability.plugins import find_loss
    from stability.study import parse_study, with_loss

    variant, plugins = find_loss(loss)
    base, encoder_plugins = load_with_encoders(encoders, study, scale)
    baselines = [name.strip() for name in against.split(",") if name.strip()]
    derived = parse_study(
        with_loss(base, variant.name, baselines), f"{study} with {loss}", f"{base.name}-{variant.name}", scale
    )
    where = out or Path("runs") / f"{base.name}-{scale}-{variant.name}"
    raise typer.Exit(train_and_report(derived, on, where, (*plugins, *encoder_plugins), RunOptions(device)))
