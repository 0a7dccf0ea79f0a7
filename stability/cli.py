"""The command line: each verb parses, calls one function, prints.

Exit codes: 0 done; 1 a run failed; 2 the input was wrong; 130 interrupted, everything finished kept.
"""

from __future__ import annotations

import inspect
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stability.registry import InputError, Registry, Variant, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from stability.analysis import Findings
    from stability.execute import Watch
    from stability.grid import Group
    from stability.plugins import Plugin
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
On = Annotated[str, typer.Option(help="Where groups of runs are trained: local, or processes:N.")]
Out = Annotated[Path | None, typer.Option(help="Directory of the run [default: runs/<study>-<scale>].")]
RunDir = Annotated[Path, typer.Argument(help="A directory that `stability run` wrote.")]

WORDS = {
    "supported": ("✔", "green"),
    "contradicted": ("✘", "red"),
    "equivalent": ("＝", "blue"),
    "inconclusive": ("?", "yellow"),
    "not-testable": ("–", "dim"),
}

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


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


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


@app.command()
def plan(study: StudyName, scale: Scale = "small", device: Device = "auto") -> None:
    """Say how many runs a study has, and the minutes and memory they take here, measured on a few real steps."""
    from stability.execute import estimate, pick_device
    from stability.study import load_study

    loaded = load_study(study, scale)
    cost = estimate(loaded, pick_device(device))
    _print_rows(
        [
            ("study", f"{loaded.title} ({loaded.name}, {loaded.scale})"),
            ("runs", f"{cost.runs}, in {cost.groups} groups, {cost.steps} steps each"),
            ("device", f"{cost.device}, {cost.workers} at a time"),
            (
                "time",
                f"about {_minutes(cost.seconds)} (from {cost.measured_steps} steps a group, one reading a probe)",
            ),
            ("memory", f"about {cost.bytes / 2**30:.1f} GiB for training, beside what PyTorch itself takes"),
        ]
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


@app.command()
def run(study: StudyName, scale: Scale = "small", device: Device = "auto", on: On = "local", out: Out = None) -> None:
    """Train what is missing of a study, test its claims and write the report."""
    from stability.execute import default_out
    from stability.study import load_study

    loaded = load_study(study, scale)
    raise typer.Exit(_run(loaded, device, on, out or default_out(loaded)))


def _run(study: Study, device: str, on: str, where: Path, plugins: Sequence[Plugin] = ()) -> int:
    """Train what is missing, write the report, and return the exit code."""
    from stability.execute import executor_of
    from stability.execute import run as train

    try:
        with executor_of(on, device, plugins) as executor, _progress(study.train.steps) as watch:
            train(study, device, executor, where, watch)
    except KeyboardInterrupt:
        _complain(f"interrupted; every finished group is kept in {where}, and the same command goes on from there")
        return 130
    return _report(where)


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
) -> None:
    """Compare a loss of your own with known ones, claim by claim, in a report of its own."""
    from stability.plugins import find_loss
    from stability.study import load_study, parse_study, with_loss

    variant, plugins = find_loss(loss)
    name = variant.name
    base = load_study(study, scale)
    known = [each.strip() for each in against.split(",") if each.strip()]
    derived = parse_study(with_loss(base, name, known), f"{study} with {loss}", f"{base.name}-{name}", scale)
    where = out or Path("runs") / f"{base.name}-{scale}-{name}"
    raise typer.Exit(_run(derived, device, on, where, plugins))


@app.command()
def report(
    run_dir: RunDir,
    loss: Annotated[str, typer.Option(help="The file of the loss, if the run compared one of your own.")] = "",
) -> None:
    """Test the claims and write the report of a run again, without running."""
    from stability.plugins import load_plugin, read_plugin

    if loss:
        load_plugin(read_plugin(loss))
    raise typer.Exit(_report(run_dir))


@app.command()
def export(
    run_dir: RunDir,
    format: Annotated[str, typer.Option(help="csv, json or parquet.")] = "csv",  # noqa: A002 (the word of the option)
    to: Annotated[str, typer.Option(help="A tracker instead: tensorboard, wandb or mlflow.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder [default: RUN_DIR/export].")] = None,
) -> None:
    """Write a run's tables (runs, curves, findings, and what their columns mean) for other programs."""
    from stability.exports import export as write
    from stability.sinks import send

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


def _report(where: Path) -> int:
    """Write the report, print the verdicts and the path, and return the exit code."""
    from stability.analysis import analyse, read
    from stability.report import render

    console = _console()
    try:
        results = read(where, lambda sentence: console.print(sentence, style="yellow", soft_wrap=True, markup=False))
    except InputError as error:
        if "unknown loss" in str(error):
            raise InputError(f"{error}; if it is a loss of your own, name its file again with --loss") from error
        raise
    findings = analyse(results)
    with console.status("writing the report"):
        paths = render(results, findings, where / "report")
    _print_verdicts(console, findings)
    failed = findings.provenance["failed"]
    if failed:
        planned = findings.provenance["planned"]
        _complain(f"{failed} of {planned} runs failed; their tracebacks are in {where / 'manifest.json'}")
    console.print(f"report: {paths['html']}", soft_wrap=True, markup=False)
    return 1 if failed else 0


def _print_verdicts(console: Console, findings: Findings) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    for finding in sorted(findings.claims, key=lambda finding: not finding.primary):
        shape, colour = WORDS[finding.verdict]
        table.add_row(
            Text(f"{shape} {finding.verdict}", style=colour),
            Text(f"{finding.text}\n").append(finding.sentence, "dim"),
        )
    console.print(table)


@contextmanager
def _progress(steps: int) -> Iterator[Watch]:
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
            bars.update(whole, total=groups)

        def step(group: Group, done: int) -> None:
            if group.id not in current:
                label = f"{group.arm}, batch {group.batch_size}, {len(group.runs)} runs"
                current[group.id] = bars.add_task(label, total=steps)
            bars.update(current[group.id], completed=done)

        def done(group: Group, seconds: float) -> None:
            if group.id in current:
                bars.remove_task(current.pop(group.id))
            bars.advance(whole)

        yield Watch(say=lambda sentence: bars.console.print(sentence, markup=False), begin=begin, step=step, done=done)


if __name__ == "__main__":
    main()
