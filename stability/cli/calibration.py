"""The verb calibrate, which measures how often verdicts err."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stability.cli.app import app
from stability.cli.terminal import bar, console_to, progress

if TYPE_CHECKING:
    from stability.calibrate.record import Calibration


@app.command()
def calibrate(
    contrast: Annotated[str, typer.Option(help="One contrast only [default: all of them].")] = "",
    trials: Annotated[int, typer.Option(help="Simulated studies for each setting.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed makes another draw.")] = 0,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Train small studies of a loss against itself instead of simulating.")
    ] = False,
    studies: Annotated[int, typer.Option(help="How many small studies to train, with --end-to-end.")] = 200,
    out: Annotated[
        Path | None, typer.Option(help="Write the tables here too (FILE.md), and the numbers beside.")
    ] = None,
) -> None:
    """Measure how often verdicts err under known truth: simulated, or in real studies of a loss against itself."""
    from rich.markdown import Markdown

    from stability.calibrate import record

    if out is not None:
        record.check_out(out)
    calibration = _train_twins(studies) if end_to_end else _simulate(contrast, trials, seed)
    console = console_to()
    text = record.markdown(calibration)
    console.print(Markdown(text) if console.is_terminal else text, markup=False)
    if out is not None:
        record.write(out, calibration)


def _simulate(contrast: str, trials: int, seed: int) -> Calibration:
    """Return the error rates of simulated studies, computed on every core, while a bar shows the progress."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from stability.calibrate.rates import simulate
    from stability.calibrate.record import Calibration
    from stability.execute.machine import core_count

    # Not the worker processes for training: these start without torch, in a tenth of the time.
    with bar("settings") as advance, ProcessPoolExecutor(core_count(), get_context("spawn")) as executor:
        try:
            return Calibration(simulate((contrast,) if contrast else (), trials, seed, executor, advance))
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _train_twins(studies: int) -> Calibration:
    """Return the verdicts on studies of a loss against itself, trained in a temporary directory."""
    from tempfile import TemporaryDirectory

    from stability.calibrate.aa_tests import LOSSES, end_to_end, twin_study
    from stability.calibrate.record import Calibration
    from stability.execute import executor_of

    twins = []
    for loss in LOSSES:
        with (
            TemporaryDirectory() as where,
            executor_of("local", "cpu") as executor,
            progress(twin_study(loss, studies)) as callbacks,
        ):
            twins.append(end_to_end(Path(where), loss, studies, executor, callbacks))
    return Calibration(twins=tuple(twins))
