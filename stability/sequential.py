"""Seeds added until the primary claim is settled, at looks that were registered before the first step."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

from stability import analysis, execute
from stability.execute import Callbacks
from stability.registry import InputError
from stability.store import MANIFEST, read_manifest
from stability.study import Study, with_looks

SETTLED = ("supported", "contradicted", "equivalent")
"""Verdicts that end the search for more seeds."""

FIRST_LOOK = 5
HEARTBEAT_TIMEOUT = Callbacks()


def looks_up_to(most: int) -> tuple[int, ...]:
    """Return the numbers of seeds at which the claims are tested: 5, doubled while below *most*, then *most* itself.

    Raises `InputError` below 5, where no test can settle anything.

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
    watch: Callbacks = HEARTBEAT_TIMEOUT,
    save_params: bool = False,
    replications: bool = True,
) -> Path:
    """Return the directory of *study*, trained with 5, 10, 20, ... seeds until its primary claim is settled.

    With *most* seeds it ends in any case. Each look tests at an equal share of the study's alpha (Bonferroni), so
    looking often does not err more often. The looks stand in the manifest before the first step and belong to the
    study's hash; a directory begun with other looks is refused. Seeds once trained are kept, and a run that was
    interrupted goes on at the look that it was at. The study's *replications* are trained at the end, with as many
    seeds as they say. Raises `InputError` for a study without claims.
    """
    if study.primary is None:
        raise InputError(f"--until-settled: the study {study.name!r} has no claim that could be settled")
    where = Path(out) if out is not None else execute.default_out(study)
    looks = looks_up_to(most)
    reached = read_manifest(where)["seeds"] if (where / MANIFEST).is_file() else 0
    for seeds in looks:
        # Looks before this one left the claim open, or it would not have been reached.
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
    """Tell whether every group is finished; a failed one must be mended first, or a look would miss its runs."""
    manifest = read_manifest(where)
    return not manifest.get("tuning") and all(entry["status"] == "finished" for entry in manifest["groups"])
