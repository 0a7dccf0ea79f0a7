"""Exports a run directory as plain tables for other programs, with a table that describes each column."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stability.analysis import Finding, Findings, Results, analyze, load_to_show, summarize
from stability.registry import InputError, nearest
from stability.store import write_atomically, writing
from stability.vocabulary import VERDICTS, axis_of

RUN_COLUMNS = {
    "run": "Id of the run: a digest of all that decides its numbers.",
    "arm": "The loss, or the loss with options, by its name in the study.",
    "seed": "Seed of weights, batches and noise, shared by the arms.",
    "rate": "Learning rate that the run had, where rates were tuned or multiplied: that rate, times lr_multiplier.",
    "status": "finished, diverged, failed or planned.",
    "diverged_at": "Step at which the run diverged; missing if it did not.",
    "collapsed": "1 if the run collapsed (it diverged, or ends as if it had learned nothing), else 0.",
    "collapsed_at": "Step at which the run collapsed; missing if it did not.",
}
FINDING_COLUMNS = {
    "id": "Id of the claim.",
    "primary": "Whether the claim decides the study's verdict.",
    "text": "The claim.",
    "source": "Where the claim is made.",
    "measure": "What is compared.",
    "against_measure": "Another measure of the same runs that it is compared with, where the claim names one.",
    "contrast": "How it is compared.",
    "compare_first": "The arm that the claim is about.",
    "compare_second": "The arm that it is compared with.",
    "expect": "What the claim says of the first arm: higher, lower or equal.",
    "verdict": f"One of {', '.join(VERDICTS)}.",
    "reason": "Why the claim could not be tested; else empty.",
    "effect": "First against second arm, on the scale of the contrast.",
    "interval_low": "Lower end of the confidence interval of the effect.",
    "interval_high": "Upper end of the confidence interval of the effect.",
    "equivalence_interval_low": "Lower end of the interval that is held against the margin for equivalence.",
    "equivalence_interval_high": "Upper end of that interval.",
    "confidence": "Confidence of the interval.",
    "margin": "Smallest effect worth caring about, written in the study (see registration).",
    "ratio": "Whether effect, intervals and margin are of a ratio.",
    "n_pairs": "Pairs of runs compared, one a seed.",
    "p_value": "Two-sided p-value of no effect.",
    "p_adjusted": "The p-value adjusted for the number of claims.",
    "p_sign_flip": "p-value of the sign-flip test on the same pairs.",
    "seeds_to_settle": "Seeds that would settle an inconclusive claim.",
    "sentence": "The finding in words.",
    "method": "The test.",
    "assumptions": "What the test assumes.",
    "registration": "registered: as the claim stood before the first step of the runs that test it; exploratory: added "
    "or changed after that, or seeds were changed after a look; not recorded: no record says.",
    "registration_note": "What was changed, if the claim is exploratory.",
    "cells": "The effect in each cell of the grid, in words; empty if there is one cell.",
    "depends_on": "The axes on which a mixed claim depends.",
    "controls": "Whether the same measure found the planted differences, in words.",
    "assay_sensitivity": "For an equivalence: shown, not shown (no control) or insensitive; else empty.",
}


def tables(results: Results, findings: Findings) -> dict[str, pd.DataFrame]:
    """Return the exported tables by name.

    Returns:
        ``runs``: one row per run of the grid, with the final value of each measure. ``curves``: one row per run and
        step, NaN where nothing was measured. ``findings``: one row per claim. ``columns``: description and unit of
        every column of the other three.
    """
    frames = {"runs": _runs(results), "curves": results.steps, "findings": _findings(findings.claims)}
    return {**frames, "columns": _columns(frames, results)}


def _runs(results: Results) -> pd.DataFrame:
    stored = {*results.steps.columns}
    measures = [
        name for name, measure in results.measures.items() if not measure.listed and stored.issuperset(measure.columns)
    ]
    final = {name: summarize(results, name, "final").reindex(results.runs["run"]).to_numpy() for name in measures}
    return pd.concat([results.runs, pd.DataFrame(final, index=results.runs.index)], axis=1)


def _findings(claims: tuple[Finding, ...]) -> pd.DataFrame:
    rows = []
    for claim in claims:
        row: dict[str, Any] = {}
        nested = {
            "cells": "; ".join(cell.in_words(claim.ratio) for cell in claim.cells),
            "controls": " ".join(control.sentence for control in claim.controls),
        }
        for key, value in (vars(claim) | nested).items():
            suffixes = ("first", "second") if key == "compare" else ("low", "high")
            parts = zip(suffixes, value, strict=True) if isinstance(value, tuple) else [("", value)]
            row |= {f"{key}_{suffix}" if suffix else key: part for suffix, part in parts}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(FINDING_COLUMNS))


def _columns(frames: Mapping[str, pd.DataFrame], results: Results) -> pd.DataFrame:
    rows = []
    for table, frame in frames.items():
        for name in frame.columns:
            measure = results.measures.get(name) if table != "findings" else None
            if measure:
                text = f"{'Final value. ' if table == 'runs' else ''}{measure.text}"
                rows.append((table, name, measure.label, text, measure.unit))
            else:
                text = (
                    "Steps taken before the measurement."
                    if name == "step"
                    else (FINDING_COLUMNS | RUN_COLUMNS).get(name) or axis_of(name).text
                )
                rows.append((table, name, name, text, ""))
    return pd.DataFrame(rows, columns=["table", "column", "label", "text", "unit"])


def _csv(frame: pd.DataFrame) -> bytes:
    lists = [name for name in frame.columns if frame[name].map(_is_list).any()]
    plain = frame.assign(**{name: frame[name].map(_list_text) for name in lists})
    return plain.to_csv(index=False, lineterminator="\n").encode()


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, np.ndarray))


def _list_text(value: Any) -> str:
    return json.dumps([float(part) for part in value]) if _is_list(value) else ""


def _json(frame: pd.DataFrame) -> bytes:
    text = frame.to_json(orient="records", indent=1, double_precision=15, force_ascii=False)
    return f"{text}\n".encode()


def _parquet(frame: pd.DataFrame) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, Callable[[pd.DataFrame], bytes]] = {"csv": _csv, "json": _json, "parquet": _parquet}


def export(
    run_dir: str | Path,
    format: str = "csv",  # noqa: A002 (the word on the command line)
    out: str | Path | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Path]:
    """Write the tables of a run directory and return their paths by table.

    Files of the same name are replaced.

    Args:
        run_dir: The run directory.
        format: csv, json or parquet. In CSV a list is JSON text; in JSON a value that was not measured or is infinite
            is null.
        out: The folder to write into (default: ``<run_dir>/export``).
        warn: Called with a sentence on each damaged file.

    Raises:
        InputError: *run_dir* contains no run, or *out* cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"--format: unknown format {format!r}{nearest(format, FORMATS)}")
    results = load_to_show(run_dir, warn)
    folder = Path(out) if out is not None else Path(run_dir) / "export"
    with writing(f"--out {folder}:", "; name a folder that can"):
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for name, frame in tables(results, analyze(results)).items():
            paths[name] = folder / f"{name}.{format}"
            write_atomically(paths[name], FORMATS[format](frame))
    return paths
