"""Ranking plots: the difference of each arm from the best, with simultaneous intervals and letters for ties."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stability.analysis import Findings, Ranked
from stability.report.figures.figure import ReportFigure
from stability.report.figures.forest import stacked
from stability.report.style import LIGHT, WIDTH, ArmStyle, arm_styles, styled
from stability.stats.rankings import RankedArm
from stability.stats.wording import between, confidence_in_percent, number
from stability.vocabulary import TRANSFORMS

ROW, FOOT, CHARACTER, COLUMN = 0.26, 0.5, 0.075, 0.16
"""Sizes in inches: a row, the axis below the rows, a character of a name, a column of letters."""


def ranking_plots(findings: Findings, arms: Sequence[str]) -> Iterator[ReportFigure]:
    """Yield a figure per ranking without a problem; *arms* are those of the study, in its order."""
    for index, ranked in enumerate(findings.rankings, start=1):
        ranking = ranked.ranking
        if ranking.problem:
            continue
        confidence = confidence_in_percent(ranking.confidence)
        first = ranking.arms[0]
        yield ReportFigure(
            id=f"ranking-{index}",
            section="ranking",
            title=f"Ranking by {ranked.label}",
            caption=f"{ranked.label} ({TRANSFORMS[ranked.transform].description}), the mean over {ranking.n} seeds of "
            f"each arm less that of the first, with intervals that hold at {confidence} for all "
            f"{len(ranking.pairs)} pairs together. Arms that share a letter cannot be told apart.",
            alt=f"Ranking of {len(ranking.arms)} arms by {ranked.label}. {first.name} is first, in group "
            f"{first.letters}; " + "; ".join(_describe(entry) for entry in ranking.arms[1:]) + ".",
            figure=ranking_figure(ranked, arm_styles(arms)),
            table=_table(ranked),
        )


def _describe(entry: RankedArm) -> str:
    return f"{entry.name} {number(entry.behind)} ({between(entry.interval, False)}), in group {entry.letters}"


def _table(ranked: Ranked) -> pd.DataFrame:
    rows = [
        {
            "rank": rank,
            "arm": entry.name,
            "mean": entry.mean,
            "behind first": entry.behind,
            "low": entry.interval[0],
            "high": entry.interval[1],
            "letters": entry.letters,
        }
        for rank, entry in enumerate(ranked.ranking.arms, start=1)
    ]
    table = pd.DataFrame(rows)
    return table.rename(columns={"mean": "mean log"}) if TRANSFORMS[ranked.transform].log else table


def ranking_figure(ranked: Ranked, styles: Mapping[str, ArmStyle]) -> Figure:
    """Return a figure with one row per arm, best first: its difference from the best, and its letters in columns."""
    arms = ranked.ranking.arms
    columns = sorted({letter for entry in arms for letter in _letters(entry)}, key=lambda label: (len(label), label))
    right = COLUMN * (len(columns) + 1)
    left = 0.25 + CHARACTER * max(len(entry.name) for entry in arms)
    width = WIDTH - left - right
    with styled():
        figure, (axes,) = stacked([ROW * len(arms)], FOOT, left, right)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.axvline(0.0, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
        for row, entry in enumerate(arms):
            style = styles[entry.name]
            axes.plot(entry.interval, (row, row), color=style.color, linewidth=1.2, solid_capstyle="butt")
            axes.plot([entry.behind], [row], marker=style.marker, color=style.color, markersize=5, linestyle="none")
            for letter in _letters(entry):
                x = 1 + COLUMN * (columns.index(letter) + 0.75) / width
                axes.text(x, row, letter, transform=axes.get_yaxis_transform(), ha="center", va="center")
        axes.set_yticks(range(len(arms)), [entry.name for entry in arms])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.05)
        label = ranked.label[:1].lower() + ranked.label[1:]
        axes.set_xlabel(f"{label} less that of {arms[0].name} ({TRANSFORMS[ranked.transform].description})")
    return figure


def _letters(entry: RankedArm) -> list[str]:
    """Split an arm's letters; after the end of the alphabet, a letter is followed by a number."""
    return re.findall(r"[a-z]\d*", entry.letters)
