"""What the runs of an arm start from, beyond the towers: where the scalars of its loss start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stability.losses import loss, scalars_of
from stability.study.parameter_files import digest_of, names_in, run_in
from stability.study.schema import Start
from stability.study.study import Study

SCALARS = ("log_scale", "bias")
"""The scalars of a loss with a key of their own in ``start``; others start at the arm's own initial values."""


def scalar_starts(study: Study, arm: str, start: Start) -> dict[str, str | float]:
    """Return where each of `SCALARS` that an arm's loss has starts: a number, kept, initial, -log B or fitted.

    Args:
        study: The study.
        arm: The arm.
        start: Its start.
    """
    declared = scalars_of(loss[study.arm(arm).loss])
    starts: dict[str, str | float] = {name: getattr(start, name) for name in SCALARS if name in declared}
    if starts.get("log_scale", "") is None:
        keeps = parent_has(study, start, "log_scale") and not sets_scalar(study, arm, "log_scale")
        starts["log_scale"] = "kept" if keeps else "initial"
    return starts


def identity_of_start(study: Study, arm: str, batch_size: int) -> dict[str, Any]:
    """Return what of an arm's start determines the numbers of its runs, as plain data, without the parent's id."""
    start = study.start_of(arm, batch_size)
    assert start is not None
    kept = start.model_dump(mode="json", exclude_defaults=True, exclude={"arm", "parameters", "run", *SCALARS})
    file = {}
    if start.parameters:
        run = run_in(start.parameters, start.run)
        file = {"parameters": digest_of(start.parameters), **({"run": run} if run else {})}
    return {**kept, **file, **scalar_starts(study, arm, start)}


def parent_has(study: Study, start: Start, name: str) -> bool:
    """Return whether what an arm starts from has a scalar."""
    if start.parameters is None:
        return start.arm is not None and name in scalars_of(loss[study.arm(start.arm).loss])
    return f"loss.{name}" in names_in(start.parameters)


def sets_scalar(study: Study, arm: str, name: str) -> bool:
    """Return whether an arm sets the initial value of a scalar itself."""
    value = study.arm(arm).options.get(name)
    return "initial" in value if isinstance(value, Mapping) else value is not None
