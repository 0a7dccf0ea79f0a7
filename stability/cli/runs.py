"""The verbs whose first argument is a run directory: report, export, publish, verify, landscape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stability.cli.app import app
from stability.cli.options import Encoders, LossFile, Optimizers, RunDir
from stability.cli.reporting import load_custom, write_report
from stability.cli.terminal import bar, console_to, print_error
from stability.registry import InputError


@app.command()
def report(
    run_dir: RunDir,
    against: Annotated[Path | None, typer.Argument(help="A second run of the same study, to set beside it.")] = None,
    loss: LossFile = "",
    encoders: Encoders = None,
    optimizers: Optimizers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings.json, or the comparison, instead.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="With two runs: folder of the page [default: beside the second].")
    ] = None,
) -> None:
    """Test the claims and write the report of a run again, without running; or set two runs side by side."""
    load_custom(loss, encoders, optimizers)
    if against is None:
        if out is not None:
            raise InputError("--out: only with two runs; the report of one is written to RUN_DIR/report")
        raise typer.Exit(write_report(run_dir, as_json))
    from stability.report import write_comparison

    paths = write_comparison(run_dir, against, out)
    if as_json:
        print(paths["json"].read_text(encoding="utf-8"), end="")  # noqa: T201
    else:
        console_to().print(f"comparison: {paths['html']}", soft_wrap=True, markup=False)


@app.command()
def export(
    run_dir: RunDir,
    format: Annotated[str, typer.Option(help="csv, json or parquet.")] = "csv",  # noqa: A002 (the word of the option)
    tracker: Annotated[str, typer.Option(help="A tracker instead: tensorboard, wandb or mlflow.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder [default: RUN_DIR/export].")] = None,
    loss: LossFile = "",
    encoders: Encoders = None,
    optimizers: Optimizers = None,
) -> None:
    """Write a run's tables (runs, curves, findings, and what their columns mean) for other programs."""
    from stability.exports import export as write
    from stability.trackers import send

    load_custom(loss, encoders, optimizers)
    console = console_to()

    def warn(sentence: str) -> None:
        console.print(sentence, style="yellow", soft_wrap=True, markup=False)

    lines = [send(run_dir, tracker, out, warn)] if tracker else map(str, write(run_dir, format, out, warn).values())
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


@app.command()
def publish(
    run_dirs: Annotated[list[Path], typer.Argument(help="Directories that `stability run` wrote.")],
    into: Annotated[Path, typer.Option(help="Directory of published reports.")] = Path("reports"),
) -> None:
    """Copy reports to reports/<study>/ and rebuild the list of all of them."""
    from stability.report import publish as copy

    console_to().print(str(copy(run_dirs, into)), soft_wrap=True)


@app.command()
def verify(
    run_dir: RunDir,
    groups: Annotated[int, typer.Option(help="How many groups to train again, picked evenly; 0: all.")] = 3,
    loss: LossFile = "",
    encoders: Encoders = None,
    optimizers: Optimizers = None,
) -> None:
    """Compare every file with its checksum, then a sample of groups with themselves trained again.

    Exit code 1 if they differ, or a file is missing or damaged; then nothing is trained.
    """
    from stability.execute.verifying import verify as check_again
    from stability.registration import read_record
    from stability.store import damaged_groups, has_finished, read_manifest, replications_in

    load_custom(loss, encoders, optimizers)
    run_dirs = (run_dir, *(path for path in replications_in(run_dir) if has_finished(path)))
    manifests = {path: read_manifest(path) for path in run_dirs}
    damaged = [sentence for path, one in manifests.items() for sentence in damaged_groups(path, one["groups"])]
    records = {path: read_record(one, path) for path, one in manifests.items()}
    damaged += [f"{path}: {record.damage}" for path, record in records.items() if record and record.damage]
    if damaged:
        for sentence in damaged:
            print_error(sentence)
        console_to().print("nothing was trained again", soft_wrap=True, markup=False)
        raise typer.Exit(1)
    differ = False
    for path in run_dirs:
        with bar("training groups again") as progress:
            verification = check_again(path, groups, progress)
        for sentence in verification.differences:
            print_error(sentence)
        prefix = "" if path == run_dir else f"replication {path.name}: "
        console_to().print(f"{prefix}{verification.sentence}", soft_wrap=True, markup=False)
        differ = differ or bool(verification.differences)
    raise typer.Exit(1 if differ else 0)


@app.command()
def landscape(
    run_dir: RunDir,
    run: Annotated[
        str | None,
        typer.Option(help="A run's id, or as much of its head as is unique [default: the first].", metavar="ID"),
    ] = None,
    second_run: Annotated[
        str, typer.Option(help="A second run: draw the straight way between both.", metavar="ID")
    ] = "",
    kind: Annotated[str, typer.Option(help="Directions: filter, eigen, pca or scalars.")] = "filter",
    points: Annotated[int, typer.Option(help="Points along each axis.")] = 21,
    span: Annotated[
        tuple[float, float] | None, typer.Option(help="Where each axis begins and ends [default: by kind].")
    ] = None,
    step: Annotated[int | None, typer.Option(help="The step to look at [default: the last].")] = None,
    loss: LossFile = "",
    encoders: Encoders = None,
    optimizers: Optimizers = None,
) -> None:
    """Draw the loss around a run, or between two, and write picture and grid; the run is trained again by its seed."""
    from stability.report.landscapes import write_landscape

    load_custom(loss, encoders, optimizers)
    with bar("training the run again") as progress:
        paths = write_landscape(
            run_dir, run, to=second_run, kind=kind, points=points, span=span, step=step, progress=progress
        )
    for path in paths.values():
        console_to().print(str(path), soft_wrap=True, markup=False)
