"""The effect of an arm by a mixed model with variance components, fitted to all cells at once with seeds as groups."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stability.stats.comparison import Array, Estimate, student_estimate

Fit = Literal["fitted", "boundary", "not-converged", "not-applicable"]

NEGLIGIBLE = 1e-6
"""A variance component below this share of the response's variance counts as 0, its boundary."""


@dataclass(frozen=True)
class MixedModel:
    """An estimate (or None), the status of the fit, and the reason if it is not "fitted"."""

    fit: Fit
    estimate: Estimate | None = None
    reason: str = ""


def mixed_model(a: Array, b: Array, *, confidence: float, levels: Array | None = None) -> MixedModel:
    """Return the effect of the arm, or with *levels* its effect on the slope over them, by a mixed model (REML).

    Fixed effects: one for each level and cell, the arm, and with
    *levels* the arm times the level. Random effects: the seed, the arm within the seed, and with *levels* the slope of
    the arm within the seed. Intervals and p-value are Student's with n - 1 degrees of freedom, n the number of seeds.

    The fit is one of: "fitted"; "boundary", a variance was estimated as 0, so the interval is likely too narrow;
    "not-converged"; "not-applicable", a seed has one number per arm, so the components cannot be identified.

    Args:
        a: Values of the first arm, (seeds, levels, cells), finite.
        b: Values of the second arm, same shape.
        confidence: 1 - alpha.
        levels: Values of the axis, (levels,); None for the effect of the arm itself.
    """
    seeds, per_run = len(a), a[0].size if len(a) else 0
    if per_run < 2 or seeds < 3:
        return MixedModel("not-applicable", reason="a mixed model needs several numbers a run, and at least 3 seeds")
    response = np.stack([a, b], axis=1).reshape(seeds, 2, per_run)
    size = float(response.std())
    if size == 0:
        return MixedModel("not-applicable", reason="the numbers do not vary")
    arm, cell = np.repeat([0.5, -0.5], per_run), np.tile(np.arange(per_run), 2)
    x = np.zeros(2 * per_run) if levels is None else np.tile(np.repeat(levels - np.mean(levels), a.shape[2]), 2)
    fixed = [arm, *([arm * x] if levels is not None else []), *np.eye(per_run)[:, cell]]
    arms = np.stack([arm > 0, arm < 0], axis=1).astype(float)
    random = {"seed": np.ones((2 * per_run, 1)), "arm": arms}
    if levels is not None:
        random["slope"] = arms * x[:, None]
    result, messages = _fit(response.reshape(-1) / size, np.stack(fixed, axis=1), random, seeds)
    index = 0 if levels is None else 1
    if result is None or not math.isfinite(error := float(result.bse[index]) * size) or error <= 0:
        return MixedModel("not-converged", reason=messages or "no standard error could be computed")
    estimate = student_estimate(
        float(result.params[index]) * size, error, error * math.sqrt(seeds), seeds - 1, confidence
    )
    if not result.converged:
        return MixedModel("not-converged", estimate, messages or "the optimizer stopped before a maximum")
    if (np.asarray(result.vcomp) < NEGLIGIBLE).any():
        return MixedModel("boundary", estimate, "a variance component was estimated as 0")
    return MixedModel("fitted", estimate)


def _fit(response: Array, fixed: Array, random: dict[str, Array], seeds: int) -> tuple[Any, str]:
    """Return statsmodels' fit and its warnings, or None and why it failed."""
    # Importing statsmodels changes the warning filters of the whole process; this restores them.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

        names = list(random)
        columns = [[[f"{name}{index}" for index in range(random[name].shape[1])]] * seeds for name in names]
        spec = VCSpec(names, columns, [[random[name]] * seeds for name in names])
        groups = np.repeat(np.arange(seeds), len(random["seed"]))
        model = MixedLM(response, np.tile(fixed, (seeds, 1)), groups, exog_vc=spec)
        try:
            result = model.fit(reml=True, method=["lbfgs", "powell"])
        except (np.linalg.LinAlgError, ValueError) as error:
            return None, f"the fit failed: {error}"
    return result, "; ".join(dict.fromkeys(str(warning.message).split("\n")[0] for warning in caught))
