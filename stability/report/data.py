"""What the sections of a report are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stability.analysis import Findings, Results
from stability.report.caveats import Caveats, caveats_of
from stability.report.figures import ReportFigure
from stability.report.figures.trajectories import over_training


@dataclass(frozen=True)
class ReportData:
    """The results of a study with what follows from them and several sections need, computed when first used.

    Attributes:
        results: The results of the study.
        findings: The findings of its analysis.
        grids: The output folder of `stability landscape`, if it was run.
    """

    results: Results
    findings: Findings
    grids: Path | None = None

    @cached_property
    def caveats(self) -> Caveats:
        """Return what the data say against the verdicts, by claim."""
        return caveats_of(self.results, self.findings)

    @cached_property
    def trajectories(self) -> Mapping[str, ReportFigure]:
        """Return the figures of measures over training by their ids, the names of `PLOTS`."""
        return {figure.id: figure for figure in over_training(self.results)}

    def over_training(self, *ids: str) -> Iterator[ReportFigure]:
        """Yield the figures over training with these ids, without those of measures that the study did not take."""
        return (self.trajectories[name] for name in ids if name in self.trajectories)
