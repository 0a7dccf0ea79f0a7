"""The verbs whose first argument is a study: init, plan, run, power."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stability.cli.app import app
from stability.cli.interruption import Interrupted
from stability.cli.options import Device, Encoders, On, Optimizers, Out, Scale, StudyName
from stability.cli.reporting import write_report
from stability.cli.terminal import console_to, print_error, print_rows, progress
from stability.registry import InputError, nearest

if TYPE_CHECKING:
    from stability.execute import RunOptions
    from stability.execute.planning import Cost
    from stability.plugins import Plugin
    from stability.sample_size import Need
    from stability.study import Study


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the study, written to studies/NAME.toml; or a path.")],
    data: Annotated[str, typer.Option(help="folder, parquet, webdataset or embeddings.")] = "",
    path: Annotated[str, typer.Option(help="Where the data lie.")] = "",
    data_option: Annotated[
        list[str] | None, typer.Option(help="A further option of the data, as captions=FILE.", metavar="KEY=VALUE")
    ] = None,
    losses: Annotated[str, typer.Option(help="Losses by comma; the first is what the others are held against.")] = "",
    device: Device = "auto",
) -> None:
    """Write a commented study of your own data, ready to run; what is not given is asked for on a terminal."""
    from stability.execute import pick_device
    from stability.study import kinds, parse_options, study_path, write_study

    study_path(name)
    kind = _prompt("--data", data, f"What are the data ({', '.join(kinds())})?")
    if kind not in kinds():
        raise InputError(f"--data: unknown kind {kind!r}{nearest(kind, kinds())}")
    data_path = _prompt("--path", path, "Where do they lie?")
    loss_names = _prompt("--losses", losses, "Which losses, by comma?", "clip,siglip")
    options = {"path": data_path, **parse_options(kind, data_option or ())}
    arms = [loss.strip() for loss in loss_names.split(",") if loss.strip()]
    written = write_study(name, kind, options, arms, pick_device(device).type)
    console_to().print(f"{written}\nnext: stability plan {written}", soft_wrap=True, markup=False)


def _prompt(flag: str, value: str, question: str, default: str = "") -> str:
    """Return *value* if it is not empty, else the user's answer on a terminal, else the default."""
    if value:
        return value
    if sys.stdin.isatty():
        return str(typer.prompt(question, default=default or None))
    if default:
        return default
    raise InputError(f"{flag}: required, but missing ({question})")


def load_with_files(
    encoders: Sequence[str] | None, optimizers: Sequence[str] | None, study: str, scale: str
) -> tuple[Study, tuple[Plugin, ...]]:
    """Return a study and the plugins of the user's *encoders* and *optimizers*, all of which the study must use."""
    from stability.plugins import load_encoders, load_optimizers, refuse_unused
    from stability.study import load_study

    plugins = (*load_encoders(encoders or ()), *load_optimizers(optimizers or ()))
    loaded = load_study(study, scale)
    refuse_unused(plugins, {"encoder": loaded.encoder_sources, "optimizer": loaded.optimizer_sources})
    return loaded, plugins


@app.command()
def plan(
    study: StudyName,
    scale: Scale = "small",
    device: Device = "auto",
    on: On = "local",
    encoders: Encoders = None,
    optimizers: Optimizers = None,
) -> None:
    """Say how many runs a study has, and the minutes and memory they take here, measured on a few real steps."""
    from stability.execute import estimate, executor_of, pick_device
    from stability.execute.devices import devices_of
    from stability.execute.machine import device_memory
    from stability.execute.planning import workers_on

    loaded, plugins = load_with_files(encoders, optimizers, study, scale)
    resolved = pick_device(device)
    workers, memory = workers_on(on, resolved), device_memory(resolved) * max(1, len(devices_of(resolved)))
    with executor_of(on, device, plugins) as executor:
        cost = estimate(loaded, resolved, workers=workers, executor=executor)
        replications = {
            replication.replication: estimate(replication, resolved, workers=workers, executor=executor)
            for replication in loaded.replications
        }
    costs = [cost, *replications.values()]
    peak = max(item.bytes for item in costs)
    too_much = f"; here are only {_gibibytes(memory)}, so give fewer workers" if peak > memory else ""
    print_rows(
        [
            ("study", f"{loaded.title} ({loaded.name}, {loaded.scale})"),
            *(("data", note) for note in loaded.notes),
            *([("tuning", f"{cost.tuning_runs} runs first, on seeds of their own")] if cost.tuning_runs else []),
            ("runs", f"{cost.runs}, in {cost.groups} groups, {_steps(cost)} steps each"),
            ("device", f"{cost.device}, {cost.workers} at a time"),
            (
                "time",
                f"about {_minutes(cost.seconds)}{_startup_note(cost)} "
                f"(from {cost.measured_steps} steps a group and the probes)",
            ),
            *((f"replication {name}", _summarize(item)) for name, item in replications.items()),
            *([("in all", f"about {_minutes(sum(item.seconds for item in costs))}")] if replications else []),
            ("memory", f"about {_gibibytes(peak)} at the peak, Python and PyTorch included{too_much}"),
        ]
    )


def _startup_note(cost: Cost) -> str:
    """Return the time spent once on starting, or "" if it is less than a fifth; replications do not start again."""
    return f", {_minutes(cost.start)} of it to start" if cost.start > 0.2 * cost.seconds else ""


def _summarize(cost: Cost) -> str:
    """Return the cost of a replication in one line."""
    search = f"{cost.tuning_runs} tuning runs and " if cost.tuning_runs else ""
    return (
        f"{search}{cost.runs} runs, in {cost.groups} groups, {_steps(cost)} steps each: about {_minutes(cost.seconds)}"
    )


def _steps(cost: Cost) -> str:
    """Return the steps that runs train; a range if some start from others in mid-training."""
    return f"{cost.steps}" if cost.least_steps == cost.steps else f"{cost.least_steps} to {cost.steps}"


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


@app.command()
def run(
    study: StudyName,
    scale: Scale = "small",
    device: Device = "auto",
    on: On = "local",
    out: Out = None,
    save_params: Annotated[bool, typer.Option("--save-params", help="Keep the final parameters of every run.")] = False,
    until_settled: Annotated[
        int | None, typer.Option(help="Add seeds up to MAX, at registered looks, until settled.", metavar="MAX")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train only what has failed before.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Begin no group after one that fails.")] = False,
    replications: Annotated[
        bool, typer.Option("--replications/--no-replications", help="Train the study's replications after it.")
    ] = True,
    encoders: Encoders = None,
    optimizers: Optimizers = None,
) -> None:
    """Train what is missing of a study, test its claims and write the report."""
    from stability.execute import RunOptions, default_out

    loaded, plugins = load_with_files(encoders, optimizers, study, scale)
    where = out or default_out(loaded)
    if until_settled is not None and (retry_failed or fail_fast):
        raise InputError("--until-settled: cannot be joined with --retry-failed or --fail-fast")
    options = RunOptions(
        device, save_params=save_params, only_failed=retry_failed, fail_fast=fail_fast, replications=replications
    )
    raise typer.Exit(train_and_report(loaded, on, where, plugins, options, until_settled))


def train_and_report(
    study: Study, on: str, where: Path, plugins: Sequence[Plugin], options: RunOptions, most: int | None = None
) -> int:
    """Train what is missing of a study, write the report and return the exit code.

    Args:
        study: The study.
        on: Where groups are trained, as ``--on`` names it.
        where: The run directory.
        plugins: Files with losses, encoders or optimizers of the user.
        options: How groups are trained; executor and callbacks are added here.
        most: Add seeds up to this number until the primary claim is settled; None to train the study's seeds.
    """
    from stability.execute import executor_of, train_study
    from stability.sequential import run_until_settled
    from stability.store import disk_faults_named, read_manifest

    try:
        with executor_of(on, options.device, plugins) as executor, progress(study) as callbacks:
            options = replace(options, executor=executor, callbacks=callbacks)
            if most is None:
                train_study(study, where, options)
            else:
                run_until_settled(study, most, where, options)
        if read_manifest(where).get("tuning"):
            unfinished = f"{where}: the search is not finished, so there is nothing to report"
            print_error(f"{unfinished}; see {where / 'manifest.json'}")
            return 1
        with disk_faults_named(where):
            return write_report(where)
    except KeyboardInterrupt as error:
        raise Interrupted(f"every finished group is kept in {where}") from error


@app.command()
def power(
    study: StudyName,
    run_dir: Annotated[
        Path | None, typer.Argument(help="Pilot data [default: runs/<study>-<scale>, if there].")
    ] = None,
    scale: Scale = "small",
    sd: Annotated[float, typer.Option(help="Without pilot data: the assumed SD of differences, in margins.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Directory of the figure [default: that of the run].")] = None,
    encoders: Encoders = None,
    optimizers: Optimizers = None,
) -> None:
    """Say how many seeds each claim needs for 80% power at its margin, as a table and a figure."""
    from stability.execute import default_out
    from stability.report.figures.power import write_power
    from stability.sample_size import pilot_of, power_curves, seeds_by_claim
    from stability.store import MANIFEST

    loaded, _ = load_with_files(encoders, optimizers, study, scale)
    where = run_dir or default_out(loaded)
    pilot = pilot_of(loaded, where) if run_dir or (where / MANIFEST).is_file() else None
    needs = seeds_by_claim(loaded, pilot, sd)
    _print_needs(needs, f"{where}" if pilot else "", sd)
    if any(need.safe for need in needs):
        paths = write_power(out or where, power_curves(needs), needs)
        console_to().print(f"figure: {paths['svg']}, {paths['png']}", soft_wrap=True, markup=False)


def _print_needs(needs: Sequence[Need], pilot: str, assumed: float) -> None:
    from rich.table import Table
    from rich.text import Text

    from stability.stats.wording import number

    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("claim", "margin", "SD", "upper bound", "seeds", "seeds, safely", ""):
        table.add_column(head, justify="left" if head in ("claim", "") else "right")
    for need in needs:
        cells = [number(need.width), *["–"] * 4]
        if need.likely and need.safe:
            cells[1:] = [number(need.sd), number(need.bound), f"{need.likely:,}", f"{need.safe:,}"]
        table.add_row(Text(need.id), *cells, Text(f"not computed: {need.why}" if need.why else need.note, "dim"))
    console = console_to()
    console.print(table)
    level = f"{100 * needs[0].confidence:.4g}%"
    source = (
        f"SD of the seeds' differences from {pilot}, with its upper 80% bound. Seeds of a pilot are no test seeds: "
        "adding to them until something shows errs too often, --until-settled does not."
        if pilot
        else f"No pilot: an SD of {assumed:g} times the margin is assumed (--sd)."
    )
    console.print(
        f"80% power to find a difference of the margin and to show equality within it, intervals at {level}; margin "
        f"and SD on the scale of the test (logs of ratios). {source}",
        style="dim",
        markup=False,
    )
