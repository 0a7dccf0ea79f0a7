"""Group sequential runs: seeds are added at registered looks until the primary claim is settled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stability import analysis, execute
from stability.execute import RunOptions
from stability.registry import InputError
from stability.store import MANIFEST, read_manifest
from stability.study import Study, with_looks

SETTLED = ("supported", "contradicted", "equivalent", "mixed")
"""Verdicts after which no more seeds are added."""

FIRST_LOOK = 5
"""Number of seeds at the first look."""


def looks_up_to(most: int) -> tuple[int, ...]:
    """Return the numbers of seeds at which the claims are tested: 5, doubled while below *most*, then *most* itself.

    Raises:
        InputError: *most* is below 5, where no test can settle anything.

    >>> looks_up_to(20), looks_up_to(12)
    ((5, 10, 20), (5, 10, 12))
    """
    if most < FIRST_LOOK:
        raise InputError(f"--until-settled: got {most}; allowed: {FIRST_LOOK} seeds or more")
    looks = [FIRST_LOOK]
    while 2 * looks[-1] < most:
        looks.append(2 * looks[-1])
    return (*looks, most) if looks[-1] < most else tuple(looks)


def run_until_settled(study: Study, most: int, where: Path, options: RunOptions) -> None:
    """Train *study* with 5, 10, 20, ... seeds until its primary claim is settled.

    Each look tests at an equal share of the study's alpha (Bonferroni), so repeated looks do not raise the error rate.
    The looks are written to the manifest before the first step and are part of the study's hash; a directory started
    with other looks is refused. Trained seeds are kept, and an interrupted run continues at its current look.

    Args:
        study: The study.
        most: Number of seeds at which training ends in any case.
        where: Run directory.
        options: How groups are trained. Replications are trained at the end, with their own numbers of seeds.

    Raises:
        InputError: The study has no claims.
    """
    if study.primary is None:
        raise InputError(f"--until-settled: the study {study.name!r} has no claim that could be settled")
    say = options.callbacks.say
    looks = looks_up_to(most)
    reached = read_manifest(where)["seeds"] if (where / MANIFEST).is_file() else 0
    for seeds in looks:
        # Earlier looks left the claim open, since a later one was reached.
        if seeds < reached and seeds != looks[-1]:
            continue
        execute.train_study(with_looks(study, looks, seeds), where, replace(options, replications=False))
        if not _complete(where):
            break
        findings = analysis.analyze(analysis.load_results(where, say))
        if findings.verdict in SETTLED:
            break
        if seeds < looks[-1]:
            say(f"{seeds} seeds: the primary claim is {findings.verdict}; going on")
    if options.replications:
        execute.train_replications(study, where, options)


def _complete(where: Path) -> bool:
    """Return whether every group is finished; otherwise a look would lack the runs of the failed groups."""
    manifest = read_manifest(where)
    return not manifest.get("tuning") and all(entry["status"] == "finished" for entry in manifest["groups"])
