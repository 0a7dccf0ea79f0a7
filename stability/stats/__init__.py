"""Statistics of paired comparisons: functions of arrays aligned by seed that return frozen dataclasses."""

from stability.stats.after_event import SUMMARIES, jump, recovery, retained
from stability.stats.cells import CellEffect
from stability.stats.collapse import Course, collapsed_at, diverged_at
from stability.stats.comparison import Comparison, margin_region
from stability.stats.critical_rates import critical_rate_ratio
from stability.stats.divergences import divergence_difference
from stability.stats.multiplicity import adjust, shared_confidence
from stability.stats.paired import (
    equivalence,
    log_ratio,
    paired_difference,
    sign_flip,
    slope_difference,
    time_ratio,
)
from stability.stats.planning import (
    equivalence_power,
    looks,
    power,
    seeds_for_equivalence,
    seeds_needed,
    seeds_to_settle,
)
from stability.stats.rankings import Ranking, ranking
from stability.stats.ratios import fraction_interval
from stability.stats.sites import Joined, Site, joined, site_difference, site_of
from stability.stats.spike_detection import (
    SPIKE_RULES,
    Spikes,
    healing_spikes,
    loss_spikes_by_deviation,
    loss_spikes_by_height,
    spikes,
    update_spikes_by_level,
)
from stability.stats.spreads import spread_ratio
from stability.stats.verdicts import Verdict, verdict

__all__ = [
    "SPIKE_RULES",
    "SUMMARIES",
    "CellEffect",
    "Comparison",
    "Course",
    "Joined",
    "Ranking",
    "Site",
    "Spikes",
    "Verdict",
    "adjust",
    "collapsed_at",
    "critical_rate_ratio",
    "diverged_at",
    "divergence_difference",
    "equivalence",
    "equivalence_power",
    "fraction_interval",
    "healing_spikes",
    "joined",
    "jump",
    "log_ratio",
    "looks",
    "loss_spikes_by_deviation",
    "loss_spikes_by_height",
    "margin_region",
    "paired_difference",
    "power",
    "ranking",
    "recovery",
    "retained",
    "seeds_for_equivalence",
    "seeds_needed",
    "seeds_to_settle",
    "shared_confidence",
    "sign_flip",
    "site_difference",
    "site_of",
    "slope_difference",
    "spikes",
    "spread_ratio",
    "time_ratio",
    "update_spikes_by_level",
    "verdict",
]
