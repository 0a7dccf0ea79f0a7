"""Files of the calibration: numbers as JSON, which reports quote, and tables as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from stability.calibrate.aa_tests import Twins
from stability.calibrate.rates import (
    CORRELATIONS,
    ENOUGH,
    Cell,
    Rates,
    Simulated,
    StudyRates,
    upper_band,
)
from stability.calibrate.scenarios import shape, world
from stability.registry import InputError
from stability.store import write_atomically, writing
from stability.vocabulary import VERDICTS

MARK = "<!-- Everything below is written by `stability calibrate`. -->"


@dataclass(frozen=True)
class Calibration:
    """Error rates of the verdicts: by simulation, and end to end with real training."""

    simulated: Simulated | None = None
    twins: tuple[Twins, ...] = ()


# --- JSON ------------------------------------------------------------------------------------------------------------


def to_json(calibration: Calibration) -> str:
    """Return a calibration as JSON text, one cell per line; `from_json` reads it."""
    simulated, lines = calibration.simulated, []
    if simulated:
        cells = [
            {**asdict(rates.cell), **{k: v for k, v in asdict(rates).items() if k != "cell"}}
            for rates in simulated.cells
        ]
        lines.append(f'"seed": {simulated.seed}')
        lines.append('"cells": ' + _rows(cells))
        lines.append('"studies": ' + _rows(asdict(one) for one in simulated.studies))
    lines.append('"twins": ' + _rows({**vars(one), "verdicts": dict(one.verdicts)} for one in calibration.twins))
    return "{\n" + ",\n".join(['"schema": 1', *lines]) + "\n}\n"


def _rows(rows: Iterable[Mapping[str, Any]]) -> str:
    return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]"


def from_json(text: str, where: str) -> Calibration:
    """Return the calibration in *text*, or raise `InputError` that names the file *where*."""
    try:
        plain = json.loads(text)
        if plain["schema"] != 1:
            raise InputError(f"{where}: written in schema {plain['schema']!r}; this version reads schema 1")
        simulated = None
        if "cells" in plain:
            names = ("world", "shape", "seeds", "correlation")
            cells = tuple(
                Rates(Cell(*(row[name] for name in names)), **{k: v for k, v in row.items() if k not in names})
                for row in plain["cells"]
            )
            simulated = Simulated(plain["seed"], cells, tuple(StudyRates(**row) for row in plain["studies"]))
        return Calibration(simulated, tuple(Twins(**row) for row in plain["twins"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{where}: not a calibration that `stability calibrate` wrote ({error})") from error


def published() -> Calibration | None:
    """Return the calibration shipped with this package, or None if there is none."""
    package = Path(__file__).parent
    for path in (package / "calibration.json", package.parent.parent / "docs" / "calibration.json"):
        if path.is_file():
            return from_json(path.read_text(encoding="utf-8"), str(path))
    return None


def check_out(out: Path) -> None:
    """Raise `InputError` unless *out* is a Markdown file in a writable directory; called before any computation."""
    if out.suffix != ".md":
        raise InputError(f"--out {out}: allowed is a file that ends in .md; its numbers go beside it, in .json")
    if out.is_dir() or not os.access(next(folder for folder in out.absolute().parents if folder.exists()), os.W_OK):
        raise InputError(f"--out {out}: cannot be written; name a file in a directory that can")


def write(out: Path, new: Calibration) -> None:
    """Write a calibration's tables to *out* (Markdown) and its numbers next to it (JSON).

    Text above the mark is kept, and so is a part of the calibration (simulated or end to end) that is not rewritten.
    """
    check_out(out)
    numbers = out.with_suffix(".json")
    with writing(f"--out {out}:"):
        existing = from_json(numbers.read_text(encoding="utf-8"), str(numbers)) if numbers.exists() else Calibration()
        merged = replace(existing, **{key: value for key, value in vars(new).items() if value})
        prose = out.read_text(encoding="utf-8").split(MARK)[0] if out.exists() else "# Calibration\n\n"
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(numbers, to_json(merged).encode())
        write_atomically(out, (prose + MARK + "\n\n" + markdown(merged)).encode())


# --- words -----------------------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """Return a share in percent with one decimal, a dash for None.

    >>> percent(0.05), percent(0.9845), percent(None)
    ('5.0', '98.5', '–')
    """
    return "–" if share is None else f"{100 * share + 1e-9:.1f}"


def summary(calibration: Calibration, contrasts: Collection[str] = ()) -> str:
    """Return the error rates and coverage of some contrasts (default: all) in a few sentences."""
    sentences = []
    if calibration.simulated:
        cells = [r for r in calibration.simulated.cells if not contrasts or _contrast(r) in contrasts]
        if cells:
            sentences.append(_of_cells(cells))
        if studies := calibration.simulated.studies:
            worst = max(studies, key=lambda one: one.wrong)
            sentences.append(
                f"A simulated study of five claims without any effect gave one of them a direction in "
                f"{percent(worst.wrong)}% of {worst.trials:,} trials at most."
            )
    for twins in calibration.twins:
        worst_claim = max(twins.wrong(claim) for claim in twins.verdicts)
        sentences.append(
            f"In {twins.studies} small studies of {twins.loss} against itself, trained for real with weights, batches "
            f"and noise of their own, at most {worst_claim} of a claim's verdicts were wrong ({twins.allowed} are "
            f"what chance explains at 5%)."
        )
    return " ".join(sentences)


def _of_cells(cells: Sequence[Rates]) -> str:
    worst = max(cells, key=lambda rates: rates.wrong)
    with_coverage = [rates for rates in cells if rates.cell.seeds >= ENOUGH and rates.covered is not None]
    lowest = min(with_coverage, key=lambda rates: rates.covered or 0.0)
    outside = sum(rates.errs for rates in cells)
    outside_text = "none lies" if not outside else f"{outside} lie{'s' if outside == 1 else ''}"
    return (
        f"In simulations without effect the tests found one in {percent(sum(r.wrong for r in cells) / len(cells))}% of "
        f"trials on average over {len(cells)} settings of noise, seeds and correlation, and in {percent(worst.wrong)}% "
        f"at worst ({_cell_text(worst.cell)}), where 5% are promised and chance alone explains "
        f"{percent(upper_band(worst.trials))}%; {outside_text} above that. From {ENOUGH} seeds on, 95% intervals held "
        f"the truth in {percent(lowest.covered)}% of trials at least ({_cell_text(lowest.cell)})."
    )


def _contrast(rates: Rates) -> str:
    return str(world[rates.cell.world].traits.contrast)


def _cell_text(cell: Cell) -> str:
    return f"{cell.world.replace('-', ' ')}, {cell.shape}, {cell.seeds} seeds, correlation {cell.correlation:g}"


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(calibration: Calibration) -> str:
    """Return the tables of a calibration as Markdown, independent of machine and date."""
    parts = ["## In short", summary(calibration)]
    if simulated := calibration.simulated:
        parts += ["## Outside the band", _outside(simulated)]
        parts += ["## Five claims together", _studies(simulated.studies)] if simulated.studies else []
        parts += ["## Each contrast"]
        for name, cells in groupby(simulated.cells, key=lambda rates: rates.cell.world):
            title = f"### {world[name].traits.contrast}: {name.replace('-', ' ')}"
            parts += [title, _description(name), _table(list(cells))]
    if calibration.twins:
        parts += ["## End to end", *map(_verdicts, calibration.twins)]
    return "\n\n".join(parts) + "\n"


def _description(name: str) -> str:
    """Return what a world simulates, and its planted effect."""
    words = world[name].summary.removeprefix("Return ")
    effect = world[name].traits.effect
    return f"{words[:1].upper()}{words[1:]} Planted: *effect* = {effect:.3g}."


def _outside(simulated: Simulated) -> str:
    flagged = [rates for rates in simulated.cells if rates.errs or rates.misses]
    if not flagged:
        return f"None of {len(simulated.cells)} settings."
    rows = [[_cell_text(rates.cell), _wrong(rates), _covered(rates)] for rates in flagged]
    return f"{len(flagged)} of {len(simulated.cells)} settings:\n\n" + _grid(["setting", "wrong", "covered"], rows)


def _wrong(rates: Rates) -> str:
    return f"**{percent(rates.wrong)}**" if rates.errs else percent(rates.wrong)


def _covered(rates: Rates) -> str:
    return f"**{percent(rates.covered)}**" if rates.misses else percent(rates.covered)


def _detected(rates: Rates) -> str:
    return percent(rates.detected) + ("" if rates.oracle is None else f" ({percent(rates.oracle)})")


def _table(cells: Sequence[Rates]) -> str:
    columns: tuple[tuple[str, Callable[[Rates], str]], ...] = (
        ("wrong", _wrong),
        ("covered", _covered),
        ("detected", _detected),
    )
    headers = ["noise", "seeds", *(f"{word}, r = {r:g}" for word, _ in columns for r in CORRELATIONS)]
    rows = []
    for (noise, seeds), group in groupby(cells, key=lambda rates: (rates.cell.shape, rates.cell.seeds)):
        same_setting = list(group)
        if not any(rates.tested for rates in same_setting):
            rows.append([noise, str(seeds), "not testable", *[""] * (len(headers) - 3)])
            continue
        rows.append([noise, str(seeds), *(show(rates) for _, show in columns for rates in same_setting)])
    return _grid(headers, rows)


def _studies(studies: Sequence[StudyRates]) -> str:
    rows = [
        [noise, *(f"**{percent(one.wrong)}**" if one.errs else percent(one.wrong) for one in group)]
        for noise, group in ((name, [one for one in studies if one.shape == name]) for name in shape)
    ]
    seeds = dict.fromkeys(one.seeds for one in studies)
    return _grid(["noise", *(f"{n} seeds" for n in seeds)], rows)


def _verdicts(twins: Twins) -> str:
    # Records from before there was this verdict have no column for it.
    words = [word for word in VERDICTS if word != "mixed" or any(word in counts for counts in twins.verdicts.values())]
    rows = [[claim, *(str(counts.get(word, 0)) for word in words)] for claim, counts in twins.verdicts.items()]
    return (
        f"### {twins.loss} against itself\n\n"
        f"{twins.studies} studies of {twins.seeds} seeds and {twins.steps} steps; at most {twins.allowed} verdicts "
        f"other than equivalent and inconclusive are allowed for a claim that is tested alone. Of the studies with all "
        f"{len(twins.verdicts)} claims at their shared confidence, {twins.together} gave any of them a direction.\n\n"
        + _grid(["claim", *words], rows)
    )


def _grid(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(headers) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [headers, ruler, *rows])
