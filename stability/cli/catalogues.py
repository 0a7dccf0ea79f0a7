"""`stability list`: the predefined studies, and every catalogue."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Annotated

import typer

from stability.cli.app import app
from stability.cli.terminal import print_rows
from stability.registry import InputError, Registry, Variant, nearest

CATALOGUES = ("studies", "losses", "encoders", "datasets", "corruptions", "probes", "contrasts")


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
        rows = [(name, _description(variant, what == "losses")) for name, variant in sorted(catalogue(what).items())]
    print_rows(rows)


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


def catalogue(what: str) -> Registry:
    """Return the catalogue of that name, one of `CATALOGUES` but the studies."""
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
