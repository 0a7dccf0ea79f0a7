"""The verb list, which prints the predefined studies and every catalogue."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stability.cli.app import app
from stability.cli.terminal import print_rows
from stability.registry import InputError, Registry, Variant, nearest

if TYPE_CHECKING:
    from stability.probes import Measure

CATALOGUES = (
    "studies",
    "losses",
    "encoders",
    "datasets",
    "corruptions",
    "optimizers",
    "probes",
    "measures",
    "contrasts",
)


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
    elif what == "measures":
        rows = [(name, _meaning(measure, origin)) for name, (measure, origin) in measures().items()]
    else:
        rows = [(name, _description(variant, what == "losses")) for name, variant in sorted(catalogue(what).items())]
    print_rows(rows)


def _description(variant: Variant, whole: bool) -> str:
    """Return a variant's summary, or its *whole* docstring with formula and source, and its options with defaults."""
    text = inspect.getdoc(variant.function) or "" if whole else variant.summary
    # Paragraphs and the lines of arguments are kept; other lines are joined and wrapped for this terminal.
    text = re.sub(r"(?<!\n)\n(?!\n|    \S) *", " ", text.split("\n>>>")[0].strip())
    return f"{text}\n{options}" if (options := _options(variant)) else text


def _options(variant: Variant) -> str:
    if variant.kind == "contrast":
        return ""  # The claim supplies the options of a contrast.
    declared = variant.traits.scalars if variant.kind == "loss" else {}
    scalars = [f"{key} = {s.initial}{'' if s.trained else ' (fixed)'}" for key, s in declared.items()]
    options = [
        f"{key} = {parameter.default!r}"
        for key, parameter in variant.options.items()
        if key not in declared and parameter.default is not parameter.empty
    ]
    parts = [("scalars", scalars), ("options", options)]
    return "; ".join(f"{kind}: {', '.join(values)}" for kind, values in parts if values)


def _meaning(measure: Measure, origin: str) -> str:
    """Return the label, meaning, unit and scale of a measure, and *origin*, what computes it."""
    direction = f"{measure.better} is better" if measure.better else ""
    traits = [measure.unit and f"in {measure.unit}", f"scale {measure.transform}", direction, origin]
    return f"{measure.label}. {measure.text}\n{'; '.join(filter(None, traits))}"


def measures() -> dict[str, tuple[Measure, str]]:
    """Return every measure that a claim may name, with what computes it: each training step, or a probe."""
    from stability.probes import STEP_MEASURES, probe

    entries = {
        measure.name: (measure, "one number a run" if measure.per_run else "made at each step")
        for measure in STEP_MEASURES
    }
    for name, variant in sorted(probe.items()):
        entries |= {
            measure.name: (
                measure,
                f"one number a run with an event, from the probe {name}"
                if measure.after_event
                else f"made by the probe {name}",
            )
            for measure in variant.traits.measures
        }
    return {name: (measure, origin) for name, (measure, origin) in entries.items() if not measure.listed}


def catalogue(what: str) -> Registry:
    """Return the catalogue called *what*, which is in `CATALOGUES` and neither studies nor measures."""
    from stability import contrasts, corruptions, datasets, encoders, losses, optimizers, probes

    catalogues: dict[str, Registry] = {
        "losses": losses.loss,
        "encoders": encoders.encoder,
        "datasets": datasets.dataset,
        "corruptions": corruptions.corruption,
        "optimizers": optimizers.optimizer,
        "probes": probes.probe,
        "contrasts": contrasts.contrast,
    }
    return catalogues[what]


def _question(path: Path) -> str:
    import tomllib

    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8")).get("question", ""))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return f"(cannot be read: {error})"
