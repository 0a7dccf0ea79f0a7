"""The command line: each verb parses, calls one function, prints.

Exit codes: 0 done; 1 a run failed; 2 the input was wrong; 130 interrupted, everything finished kept.
"""

from __future__ import annotations

import inspect
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stability.registry import InputError, Registry, Variant, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from stability.calibrate.record import Calibration
    from stability.execute import Watch
    from stability.grid import Group
    from stability.plugins import Plugin
    from stability.sample_size import Need
    from stability.study import Study

# Torch takes seconds to import, so every verb imports what it needs when it is called: --help answers at once.

# Typer carries its own copy of click or uses the installed one, by version; its errors are reached through its own.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Is this contrastive loss more stable than that one? Train, measure, test, report.",
)

StudyName = Annotated[str, typer.Argument(help="A study file, or the name of a predefined one (see `stability list`).")]
Scale = Annotated[str, typer.Option(help="smoke (seconds), small (minutes on two cores) or full (a GPU).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
On = Annotated[str, typer.Option(help="Where groups are trained: local, processes:N or dask:tcp://HOST:PORT.")]
Out = Annotated[Path | None, typer.Option(help="Directory of the run [default: runs/<study>-<scale>].")]
Encoders = Annotated[
    list[str] | None,
    typer.Option("--encoder", help="A file with encoders of your own that the study names.", metavar="FILE.py[:NAME]"),
]
LossFile = Annotated[str, typer.Option(help="The file of the loss, if the run compared one of your own.")]
RunDir = Annotated[Path, typer.Argument(help="A directory that `stability run` wrote.")]

CATALOGUES = ("studies", "losses", "encoders", "datasets", "corruptions", "probes", "contrasts")


def main() -> None:
    """Run the command line; wrong input is one plain sentence and exit code 2."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        _complain(str(error))
        code = 2
    except UsageError as error:
        _complain(getattr(error, "format_message", error.__str__)())
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(code)


def _complain(sentence: str) -> None:
    print(f"stability: {sentence}", file=sys.stderr)  # noqa: T201


@app.callback(invoke_without_command=True)
def top(context: typer.Context) -> None:
    """Print the help when no verb is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201
        raise typer.Exit(2)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help=f"One of {', '.join(CATALOGUES)}.")] = "studies",
) -> None:
    """List the predefined studies, or a catalogue."""
    if what not in CATALOGUES:
        raise InputError(f"unknown catalogue {what!r}{nearest(what, CATALOGUES)}")
    if what == "studies":
        from stability.study import study_files

        rows = [(name, _question(path)) for name, path in study_files().items()]
    else:
        rows = [(name, _description(variant, what == "losses")) for name, variant in sorted(_catalogue(what).items())]
    _print_rows(rows)


def _description(variant: Variant, whole: bool) -> str:
    """Return what a variant is, in one line or with its formula and source, and its options with their defaults."""
    words = inspect.getdoc(variant.function) or "" if whole else variant.summary
    # Paragraphs stay; lines are broken anew for this terminal.
    words = re.sub(r"(?<!\n)\n(?!\n)", " ", words.split("\n>>>")[0].strip())
    return f"{words}\n{options}" if (options := _options(variant)) else words


def _options(variant: Variant) -> str:
    if variant.kind == "contrast":
        return ""  # What a contrast asks for comes from the claim.
    declared = {key: value for key, value in variant.traits.items() if hasattr(value, "initial")}
    scalars = [f"{key} = {s.initial}{'' if s.trained else ' (fixed)'}" for key, s in declared.items()]
    options = [
        f"{key} = {parameter.default!r}"
        for key, parameter in variant.options.items()
        if key not in declared and parameter.default is not parameter.empty
    ]
    parts = [("scalars", scalars), ("options", options)]
    return "; ".join(f"{kind}: {', '.join(values)}" for kind, values in parts if values)


def _catalogue(what: str) -> Registry:
    from stability import contrasts, corruptions, datasets, encoders, losses, probes

    return {
        "losses": losses.loss,
        "encoders": encoders.encoder,
        "datasets": datasets.dataset,
        "corruptions": corruptions.corruption,
        "probes": probes.probe,
        "contrasts": contrasts.contrast,
    }[what]


def _question(path: Path) -> str:
    import tomllib

    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8")).get("question", ""))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return f"(cannot be read: {error})"


def _print_rows(rows: list[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, words in rows:
        table.add_row(Text(name, style="bold"), Text(words))
    _console().print(table)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(highlight=False, stderr=stderr)


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the study, written to studies/NAME.toml; or a path.")],
    data: Annotated[str, typer.Option(help="folder, parquet, webdataset or embeddings.")] = "",
    path: Annotated[str, typer.Option(help="Where the data lie.")] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="A further option of the data, as captions=FILE.", metavar="KEY=VALUE")
    ] = None,
    losses: Annotated[str, typer.Option(help="Losses by comma; the first is what the others are held against.")] = "",
    device: Device = "auto",
) -> None:
    """Write a commented study of your own data, ready to run; what is not given is asked for on a terminal."""
    from stability.execute import pick_device
    from stability.study import kinds, parse_options, study_path, write_study

    study_path(name)
    kind = _asked("--data", data, f"What are the data ({', '.join(kinds())})?")
    if kind not in kinds():
        raise InputError(f"--data: unknown kind {kind!r}{nearest(kind, kinds())}")
    where = _asked("--path", path, "Where do they lie?")
    chosen = _asked("--losses", losses, "Which losses, by comma?", "clip,siglip")
    options = {"path": where, **parse_options(kind, option or ())}
    named = [each.strip() for each in chosen.split(",") if each.strip()]
    written = write_study(name, kind, options, named, pick_device(device).type)
    _console().print(f"{written}\nnext: stability plan {written}", soft_wrap=True, markup=False)


def _asked(flag: str, given: str, question: str, default: str = "") -> str:
    """Return what was given, else what the user answers on a terminal, else the default."""
    if given:
        return given
    if sys.stdin.isatty():
        return str(typer.prompt(question, default=default or None))
    if default:
        return default
    raise InputError(f"{flag}: required, but missing ({question})")


def _study_with(encoders: Sequence[str] | None, study: str, scale: str) -> tuple[Study, tuple[Plugin, ...]]:
    """Return a study and the plugins of its user's encoders, all of which it must use."""
    from stability.plugins import load_encoders, refuse_unused
    from stability.study import load_study

    plugins = load_encoders(encoders or ())
    loaded = load_study(study, scale)
    refuse_unused(plugins, loaded.encoder_sources)
    return loaded, plugins


@app.command()
def plan(
    study: StudyName,
    scale: Scale = "small",
    device: Device = "auto",
    on: On = "local",
    encoders: Encoders = None,
) -> None:
    """Say how many runs a study has, and the minutes and memory they take here, measured on a few real steps."""
    from stability.execute import estimate, executor_of, pick_device
    from stability.execute.machine import device_memory
    from stability.execute.planning import workers_on

    loaded, plugins = _study_with(encoders, study, scale)
    chosen = pick_device(device)
    workers, memory = workers_on(on, chosen), device_memory(chosen)
    with executor_of(on, device, plugins) as executor:
        cost = estimate(loaded, chosen, workers=workers, executor=executor)
    too_much = f"; here are only {_gibibytes(memory)}, so give fewer workers" if cost.bytes > memory else ""
    _print_rows(
        [
            ("study", f"{loaded.title} ({loaded.name}, {loaded.scale})"),
            *([("tuning", f"{cost.tuning_runs} runs first, on seeds of their own")] if cost.tuning_runs else []),
            ("runs", f"{cost.runs}, in {cost.groups} groups, {cost.steps} steps each"),
            ("device", f"{cost.device}, {cost.workers} at a time"),
            (
                "time",
                f"about {_minutes(cost.seconds)} (from {cost.measured_steps} steps a group and the probes)",
            ),
            ("memory", f"about {_gibibytes(cost.bytes)} at the peak, Python and PyTorch included{too_much}"),
        ]
    )


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
    encoders: Encoders = None,
) -> None:
    """Train what is missing of a study, test its claims and write the report."""
    from stability.execute import default_out

    loaded, plugins = _study_with(encoders, study, scale)
    where = out or default_out(loaded)
    if until_settled is not None and (retry_failed or fail_fast):
        raise InputError("--until-settled: cannot be joined with --retry-failed or --fail-fast")
    code = _run(
        loaded,
        device,
        on,
        where,
        plugins,
        most=until_settled,
        save_params=save_params,
        only_failed=retry_failed,
        fail_fast=fail_fast,
    )
    raise typer.Exit(code)


def _run(
    study: Study,
    device: str,
    on: str,
    where: Path,
    plugins: Sequence[Plugin] = (),
    *,
    most: int | None = None,
    save_params: bool = False,
    only_failed: bool = False,
    fail_fast: bool = False,
) -> int:
    """Train what is missing (with seeds added up to *most*), write the report, and return the exit code."""
    from stability.execute import executor_of
    from stability.execute import run as train
    from stability.sequential import run_until_settled
    from stability.store import disk_faults_named, read_manifest

    try:
        with executor_of(on, device, plugins) as executor, _progress(study) as watch:
            if most is None:
                train(study, device, executor, where, watch, save_params, only_failed=only_failed, fail_fast=fail_fast)
            else:
                run_until_settled(study, most, device, executor, where, watch, save_params)
    except KeyboardInterrupt:
        _complain(
            f"interrupted; every finished group is kept in {where}, and the same command goes on from there: "
            f"stability {shlex.join(sys.argv[1:])}"
        )
        return 130
    if read_manifest(where).get("tuning"):
        _complain(f"{where}: the search is not finished, so there is nothing to report; see {where / 'manifest.json'}")
        return 1
    with disk_faults_named(where):
        return _report(where)


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
) -> None:
    """Say how many seeds each claim needs for 80% power at its margin, as a table and a figure."""
    from stability.execute import default_out
    from stability.report.figures.power import write_power
    from stability.sample_size import pilot_of, power_curves, seeds_by_claim
    from stability.store import MANIFEST

    loaded, _ = _study_with(encoders, study, scale)
    home = run_dir or default_out(loaded)
    pilot = pilot_of(loaded, home) if run_dir or (home / MANIFEST).is_file() else None
    needs = seeds_by_claim(loaded, pilot, sd)
    _print_needs(needs, f"{home}" if pilot else "", sd)
    if any(need.safe for need in needs):
        paths = write_power(out or home, power_curves(needs), needs)
        _console().print(f"figure: {paths['svg']}, {paths['png']}", soft_wrap=True, markup=False)


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
    console = _console()
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


@app.command()
def check(
    file: Annotated[
        str, typer.Argument(help="A loss: FILE.py, FILE.py:NAME, or a known one's name.", metavar="FILE.py[:NAME]")
    ],
) -> None:
    """Say whether a loss of your own can be trained and probed, property by property."""
    from rich.table import Table
    from rich.text import Text

    from stability.check import check as judge
    from stability.plugins import find_loss

    outcomes = judge(find_loss(file)[0])
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "property", "", "why"):
        table.add_column(column)
    for outcome in outcomes:
        mark = Text("pass", "green") if outcome.passed else Text("FAIL", "red" if outcome.required else "yellow")
        kind = "required" if outcome.required else "reported"
        table.add_row(mark, Text(outcome.property), Text(kind, "dim"), Text(outcome.reason))
    _console().print(table)
    failed = [outcome.property for outcome in outcomes if outcome.required and not outcome.passed]
    if failed:
        _complain(f"{file}: {len(failed)} required properties fail: {', '.join(failed)}")
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
    from stability.plugins import find_loss
    from stability.study import parse_study, with_loss

    variant, plugins = find_loss(loss)
    name = variant.name
    base, towers = _study_with(encoders, study, scale)
    known = [each.strip() for each in against.split(",") if each.strip()]
    derived = parse_study(with_loss(base, name, known), f"{study} with {loss}", f"{base.name}-{name}", scale)
    where = out or Path("runs") / f"{base.name}-{scale}-{name}"
    raise typer.Exit(_run(derived, device, on, where, (*plugins, *towers)))


def _load_own(loss: str, encoders: Sequence[str] | None) -> None:
    """Load the files of the user's own loss and encoders, by which a finished run is read again."""
    from stability.plugins import load_encoders, load_plugin, read_plugin

    if loss:
        load_plugin(read_plugin(loss))
    load_encoders(encoders or ())


@app.command()
def report(
    run_dir: RunDir,
    against: Annotated[Path | None, typer.Argument(help="A second run of the same study, to set beside it.")] = None,
    loss: LossFile = "",
    encoders: Encoders = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings.json, or the comparison, instead.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="With two runs: folder of the page [default: beside the second].")
    ] = None,
) -> None:
    """Test the claims and write the report of a run again, without running; or set two runs side by side."""
    _load_own(loss, encoders)
    if against is None:
        if out is not None:
            raise InputError("--out: only with two runs; the report of one is written to RUN_DIR/report")
        raise typer.Exit(_report(run_dir, as_json))
    from stability.report import write_comparison

    paths = write_comparison(run_dir, against, out)
    if as_json:
        print(paths["json"].read_text(encoding="utf-8"), end="")  # noqa: T201
    else:
        _console().print(f"comparison: {paths['html']}", soft_wrap=True, markup=False)


@app.command()
def export(
    run_dir: RunDir,
    format: Annotated[str, typer.Option(help="csv, json or parquet.")] = "csv",  # noqa: A002 (the word of the option)
    to: Annotated[str, typer.Option(help="A tracker instead: tensorboard, wandb or mlflow.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder [default: RUN_DIR/export].")] = None,
    loss: LossFile = "",
    encoders: Encoders = None,
) -> None:
    """Write a run's tables (runs, curves, findings, and what their columns mean) for other programs."""
    from stability.exports import export as write
    from stability.sinks import send

    _load_own(loss, encoders)
    console = _console()

    def warn(sentence: str) -> None:
        console.print(sentence, style="yellow", soft_wrap=True, markup=False)

    lines = [send(run_dir, to, out, warn)] if to else map(str, write(run_dir, format, out, warn).values())
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


@app.command()
def publish(
    run_dirs: Annotated[list[Path], typer.Argument(help="Directories that `stability run` wrote.")],
    into: Annotated[Path, typer.Option(help="Directory of published reports.")] = Path("reports"),
) -> None:
    """Copy reports to reports/<study>/ and rebuild the list of all of them."""
    from stability.report import publish as copy

    _console().print(str(copy(run_dirs, into)), soft_wrap=True)


@app.command()
def verify(
    run_dir: RunDir,
    sample: Annotated[int, typer.Option(help="How many groups to train again, picked evenly; 0: all.")] = 3,
    loss: Annotated[str, typer.Option(help="The file of the loss, if the run compared one of your own.")] = "",
) -> None:
    """Train a sample of groups again and compare with what is stored; exit code 1 if they differ."""
    from stability.execute.verifying import verify as check_again
    from stability.plugins import load_plugin, read_plugin

    if loss:
        load_plugin(read_plugin(loss))
    with _bar("training groups again") as progress:
        verification = check_again(run_dir, sample, progress)
    for sentence in verification.differences:
        _complain(sentence)
    _console().print(verification.sentence, soft_wrap=True, markup=False)
    raise typer.Exit(1 if verification.differences else 0)


@app.command()
def landscape(
    run_dir: RunDir,
    run: Annotated[str, typer.Option(help="A run's id, or as much of its head as is unique.", metavar="ID")],
    to: Annotated[str, typer.Option(help="A second run: draw the straight way between both.", metavar="ID")] = "",
    kind: Annotated[str, typer.Option(help="Directions: filter, eigen, pca or scalars.")] = "filter",
    points: Annotated[int, typer.Option(help="Points along each axis.")] = 21,
    span: Annotated[
        tuple[float, float] | None, typer.Option(help="Where each axis begins and ends [default: by kind].")
    ] = None,
    step: Annotated[int | None, typer.Option(help="The step to look at [default: the last].")] = None,
    loss: LossFile = "",
    encoders: Encoders = None,
) -> None:
    """Draw the loss around a run, or between two, and write picture and grid; the run is trained again by its seed."""
    from stability.report.landscapes import write_landscape

    _load_own(loss, encoders)
    with _bar("training the run again") as progress:
        paths = write_landscape(run_dir, run, to=to, kind=kind, points=points, span=span, step=step, progress=progress)
    for path in paths.values():
        _console().print(str(path), soft_wrap=True, markup=False)


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
    found = _twins(studies) if end_to_end else _simulated(contrast, trials, seed)
    console = _console()
    console.print(Markdown(record.markdown(found)) if console.is_terminal else record.markdown(found), markup=False)
    if out is not None:
        record.write(out, found)


def _simulated(contrast: str, trials: int, seed: int) -> Calibration:
    """Return the error rates by simulation, on every core, with a bar."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from stability.calibrate.rates import simulate
    from stability.calibrate.record import Calibration
    from stability.execute.machine import core_count

    # Not the workers that train: these start without torch, in a tenth of the time.
    with _bar("settings") as advance, ProcessPoolExecutor(core_count(), get_context("spawn")) as executor:
        try:
            return Calibration(simulate((contrast,) if contrast else (), trials, seed, executor, advance))
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _twins(studies: int) -> Calibration:
    """Return the verdicts on studies of a loss against itself, trained in a directory that is removed afterwards."""
    from tempfile import TemporaryDirectory

    from stability.calibrate.record import Calibration
    from stability.calibrate.twins import LOSSES, end_to_end, twin_study
    from stability.execute import executor_of

    found = []
    for loss in LOSSES:
        with (
            TemporaryDirectory() as where,
            executor_of("local", "cpu") as executor,
            _progress(twin_study(loss, studies)) as watch,
        ):
            found.append(end_to_end(Path(where), loss, studies, executor, watch))
    return Calibration(twins=tuple(found))


def _report(where: Path, as_json: bool = False) -> int:
    """Write the report, print the verdicts and the path (or findings.json alone), and return the exit code."""
    from stability.analysis import analyse, read
    from stability.report import render
    from stability.report.terminal import print_verdicts

    console = _console()
    aside = _console(stderr=as_json)
    try:
        results = read(where, lambda sentence: aside.print(sentence, style="yellow", soft_wrap=True, markup=False))
    except InputError as error:
        if "unknown loss" in str(error):
            raise InputError(f"{error}; if it is a loss of your own, name its file again with --loss") from error
        raise
    findings = analyse(results)
    with aside.status("writing the report"):
        paths = render(results, findings, where / "report")
    if as_json:
        print(paths["findings"].read_text(encoding="utf-8"), end="")  # noqa: T201
    else:
        print_verdicts(console, findings)
    failed = findings.provenance["failed"]
    if failed:
        planned = findings.provenance["planned"]
        _complain(f"{failed} of {planned} runs failed; their tracebacks are in {where / 'manifest.json'}")
    if not as_json:
        console.print(f"report: {paths['html']}", soft_wrap=True, markup=False)
    return 1 if failed else 0


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of done and total that draws one bar, with an estimate."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=_console(), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def _progress(study: Study) -> Iterator[Watch]:
    """Yield a watch that draws a bar per group and one for the whole study, with an estimate."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from stability.execute import Watch
    from stability.grid import study_of

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(), transient=True) as bars:
        whole = bars.add_task("groups", total=None)
        current: dict[str, Any] = {}

        def begin(groups: int) -> None:
            # What follows a search, or a look at the claims, comes on top.
            bars.update(whole, total=(bars.tasks[whole].total or 0) + groups)

        def step(group: Group, done: int) -> None:
            if group.id not in current:
                label = f"{group.arm}, batch {group.batch_size}, {len(group.runs)} {'tuning ' * group.tuning}runs"
                current[group.id] = bars.add_task(label, total=study_of(study, group).train.steps)
            bars.update(current[group.id], completed=done)

        def done(group: Group, seconds: float) -> None:
            if group.id in current:
                bars.remove_task(current.pop(group.id))
            bars.advance(whole)

        yield Watch(say=lambda sentence: bars.console.print(sentence, markup=False), begin=begin, step=step, done=done)


if __name__ == "__main__":
    main()
