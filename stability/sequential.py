"""Group sequential runs: seeds are added at registered looks until the primary claim is settled."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

from stability import analysis, execute
from stability.execute import Callbacks
from stability.registry import InputError
from stability.store import MANIFEST, read_manifest
from stability.study import Study, with_looks

SETTLED = ("supported", "contradicted", "equivalent")
"""Verdicts after which no more seeds are added."""

FIRST_LOOK = 5
NO_PROGRESS = Callbacks()


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


def run_until_settled(
    study: Study,
    most: int,
    device: str = "auto",
    executor: Executor | None = None,
    out: str | Path | None = None,
    watch: Callbacks = NO_PROGRESS,
    save_params: bool = False,
    replications: bool = True,
) -> Path:
    """Train *study* with 5, 10, 20, ... seeds until its primary claim is settled, and return its directory.

    Each look tests at an equal share of the study's alpha (Bonferroni), so repeated looks do not raise the error rate.
    The looks are written to the manifest before the first step and are part of the study's hash; a directory started
    with other looks is refused. Trained seeds are kept, and an interrupted run continues at its current look.

    Args:
        study: The study.
        most: Number of seeds at which training ends in any case.
        device: Device to train on.
        executor: Runs the groups; default in this process.
        out: Run directory; default named after the study.
        watch: Progress callbacks.
        save_params: Whether to save final parameters.
        replications: Whether to train the study's replications at the end, with their own numbers of seeds.

    Raises:
        InputError: The study has no claims.
    """
    if study.primary is None:
        raise InputError(f"--until-settled: the study {study.name!r} has no claim that could be settled")
    where = Path(out) if out is not None else execute.default_out(study)
    looks = looks_up_to(most)
    reached = read_manifest(where)["seeds"] if (where / MANIFEST).is_file() else 0
    for seeds in looks:
        # Earlier looks left the claim open, since a later one was reached.
        if seeds < reached and seeds != looks[-1]:
            continue
        at_look = with_looks(study, looks, seeds)
        execute.run(at_look, device, executor, where, watch, save_params, replications=False)
        if not _complete(where):
            break
        findings = analysis.analyze(analysis.load_results(where, watch.say))
        if findings.verdict in SETTLED:
            break
        if seeds < looks[-1]:
            watch.say(f"{seeds} seeds: the primary claim is {findings.verdict}; going on")
    if replications:
        execute.run_replications(study, device, executor, where, watch, save_params)
    return where


def _complete(where: Path) -> bool:
    """Return whether every group is finished; otherwise a look would lack the runs of the failed groups."""
    manifest = read_manifest(where)
    return not manifest.get("tuning") and all(entry["status"] == "finished" for entry in manifest["groups"])
