"""Tolerances for the same runs on two machines, whose rounding differs and is amplified by training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stability.probes import probe

SHARE = 0.001
"""Difference that rounding alone may cause, as a share of a measure's largest mean over runs at any step."""

EARLY = 20
"""Steps during which training has not amplified rounding yet, so a typical run may differ by rounding only."""

ERRORS = 6.0
"""Further difference allowed between means over runs, in standard errors of their difference, paired by run.

If training is stable, runs agree to a few parts in a million and the standard errors are as small. If it is chaotic,
two machines soon produce different runs of the same distribution; then the standard errors, not a share of the mean,
describe how far the means may differ. docs/faults.md reports the measurements.
"""


@dataclass(frozen=True)
class Pair:
    """One measure of the runs of a group, stored and trained again.

    Attributes:
        stored: The stored values, (steps, runs).
        again: The values trained again, (steps, runs).
        size: The magnitude of the measure, to which differences are relative.
    """

    stored: pd.DataFrame
    again: pd.DataFrame
    size: float

    @property
    def early(self) -> pd.DataFrame:
        """Return the absolute differences (steps, runs) in the first `EARLY` steps of the runs."""
        return (self.again - self.stored).abs().loc[: self.stored.index[0] + EARLY]

    @property
    def off(self) -> pd.Series:
        """Return the absolute difference of the means at each step; infinite if only one of both is a number."""
        missing = self.again.isna().all(axis=1) != self.stored.isna().all(axis=1)
        return (self.again - self.stored).mean(axis=1).abs().mask(missing, np.inf).fillna(0.0)

    @property
    def error(self) -> float:
        """Return the standard error of the difference of the means, at the step where it is largest; 0 for one run."""
        differences = self.again - self.stored
        return float((differences.std(axis=1) / np.sqrt(differences.count(axis=1))).fillna(0.0).max())

    @property
    def allowed(self) -> float:
        """Return the largest difference of the means that two machines may have."""
        return SHARE * self.size + ERRORS * self.error


def pair_of(name: str, stored: pd.DataFrame, again: pd.DataFrame) -> Pair:
    """Return measure *name* from two tables of a group that have a row per run and step.

    The size of a measure that is the numerical error of another is that of the other one: by itself it may be all
    rounding.
    """
    before, after, reference = (
        frame.pivot(index="step", columns="run", values=column)
        for frame, column in ((stored, name), (again, name), (stored, _reference_measure(name)))
    )
    return Pair(before, after, float(np.nan_to_num(reference.mean(axis=1).abs().max())) or 1.0)


def _reference_measure(name: str) -> str:
    """Return the measure whose numerical error *name* is, or *name* itself."""
    measures = (measure for variant in probe.values() for measure in variant.traits.measures)
    return next((measure.error_of for measure in measures if measure.name == name and measure.error_of), name)
