"""How far the same runs may lie apart on two machines, whose rounding differs and is amplified by training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from stability.grid import Run
from stability.probes import probe

SHARE = 0.001
"""What a mean over runs may differ by for rounding: a share of the measure's largest such mean, at any step."""

ERRORS = 1.0
"""What it may differ by beside that: so many of its standard errors over seeds, where these are largest.

Where training amplifies rounding until two machines make other runs of the same distribution, it is the seeds that tell
how far means then lie apart; a share of the mean does not. docs/faults.md has what was measured.
"""


@dataclass(frozen=True)
class Means:
    """Means of one measure over runs, by step, as stored (*was*) and as trained again (*now*).

    *size* is what differences are large or small against, *error* the largest standard error over seeds of a stored
    mean; without seeds to tell, it is 0.
    """

    was: pd.Series
    now: pd.Series
    size: float
    error: float

    @property
    def off(self) -> pd.Series:
        """Return the difference by step; infinite where only one of both is a number."""
        missing = self.now.isna() != self.was.isna()
        return (self.now - self.was).abs().mask(missing, np.inf).fillna(0.0)

    @property
    def allowed(self) -> float:
        """Return the largest difference that two machines may have."""
        return SHARE * (self.size or 1.0) + ERRORS * self.error


def means_of(name: str, stored: pd.DataFrame, again: pd.DataFrame, runs: Sequence[Run]) -> Means:
    """Return the means over *runs* of the measure *name* in two tables of their group, a row per run and step.

    A measure that is the computed error of another is held against that one: in itself it may be all rounding.
    """
    was, now = (frame.groupby("step")[name].mean() for frame in (stored, again))
    size = stored.groupby("step")[_held_against(name)].mean().abs().max()
    return Means(was, now, float(np.nan_to_num(size)), _standard_error(name, stored, runs))


def _held_against(name: str) -> str:
    measures = (measure for variant in probe.values() for measure in variant.traits["measures"])
    return next((measure.error_of for measure in measures if measure.name == name and measure.error_of), name)


def _standard_error(name: str, stored: pd.DataFrame, runs: Sequence[Run]) -> float:
    """Return the standard error of the mean over *runs*, at the step where it is largest.

    Only seeds are random: variances are within cells, which hold runs that are equal but for their seed.
    """
    cells = {run.id: replace(run, seed=0, id="") for run in runs}
    by_cell = stored.assign(cell=stored["run"].map(cells)).groupby(["step", "cell"], sort=False)[name]
    # the variance of a sum of count independent values, which one value alone does not tell
    sums = (by_cell.var() * by_cell.count()).fillna(0.0).groupby("step").sum()
    errors = np.sqrt(sums) / stored.groupby("step")[name].count()
    return float(np.nan_to_num(errors.max()))
