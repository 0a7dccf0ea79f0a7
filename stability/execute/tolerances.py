"""How far the same runs may lie apart on two machines, whose rounding differs and is amplified by training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stability.probes import probe

SHARE = 0.001
"""What rounding alone may change: a share of a measure's largest mean over runs, at any step."""

EARLY = 20
"""Steps in which training has not amplified rounding yet, so that nothing else may differ, in a typical run."""

ERRORS = 6.0
"""What means over runs may differ by beside that: so many standard errors of their difference, run by run.

Where training is stable, runs agree to a few parts in a million, and so do these errors; where it is chaotic, two
machines soon make other runs of the same distribution, and the errors say how far their means then lie apart, which no
share of the mean does. docs/faults.md has what was measured.
"""


@dataclass(frozen=True)
class Pair:
    """One measure of the runs of a group, (steps, runs), as *stored* and as trained *again*.

    *size* is what a difference is large or small against.
    """

    stored: pd.DataFrame
    again: pd.DataFrame
    size: float

    @property
    def early(self) -> pd.DataFrame:
        """Return the differences by run in the first steps."""
        return (self.again - self.stored).abs().loc[:EARLY]

    @property
    def off(self) -> pd.Series:
        """Return the difference of the means by step; infinite where only one of both is a number."""
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
    """Return measure *name* from two tables of a group, a row per run and step each.

    A measure that is the computed error of another is held against that one: in itself it may be all rounding.
    """
    one, other, whole = (
        frame.pivot(index="step", columns="run", values=column)
        for frame, column in ((stored, name), (again, name), (stored, _held_against(name)))
    )
    return Pair(one, other, float(np.nan_to_num(whole.mean(axis=1).abs().max())) or 1.0)


def _held_against(name: str) -> str:
    measures = (measure for variant in probe.values() for measure in variant.traits["measures"])
    return next((measure.error_of for measure in measures if measure.name == name and measure.error_of), name)
