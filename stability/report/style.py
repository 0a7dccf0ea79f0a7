"""The style of all figures: palettes for light and dark pages, fonts, and one color, marker and dash per arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import seaborn as sns

WIDTH = 6.8
"""Width of every figure in inches: the text column of a page, at which the type is 7 to 8 points."""

LIGHT = {
    "ink": "#1f2328",
    "muted": "#67707a",
    "rule": "#d5d9de",
    "band": "#e4e8ec",
    "page": "#ffffff",
    # Okabe and Ito (2008): distinguishable with any common color blindness. Its yellow is too pale for lines on white.
    "arm-1": "#0072b2",
    "arm-2": "#d55e00",
    "arm-3": "#009e73",
    "arm-4": "#cc79a7",
    "arm-5": "#e69f00",
    "arm-6": "#56b4e9",
}
"""Color of each role on a light page; figures are drawn with these."""

DARK = {
    **LIGHT,
    "ink": "#e6e8eb",
    "muted": "#9aa3ad",
    "rule": "#3a4048",
    "band": "#2f353d",
    "page": "#15181c",
    # The same hues, lightened so that thin lines keep their contrast.
    "arm-1": "#3d9bdc",
    "arm-2": "#f07a28",
    "arm-3": "#1fb58a",
}
"""Color of each role on a dark page."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class ArmStyle:
    """The plot style of an arm, the same in all figures and distinguishable without color."""

    color: str
    marker: str
    dash: Any

    @property
    def line(self) -> dict[str, Any]:
        """Return the arguments of `matplotlib.axes.Axes.plot` for a line of the arm."""
        return {"color": self.color, "linestyle": self.dash, "marker": self.marker, "markeredgewidth": 0}


def arm_styles(arms: Sequence[str]) -> dict[str, ArmStyle]:
    """Return each arm's style, by its index in *arms*.

    >>> arm_styles(["clip", "siglip"])["siglip"]
    ArmStyle(color='#d55e00', marker='s', dash=(0, (5, 1.5)))
    """
    colors = [LIGHT[role] for role in LIGHT if role.startswith("arm")]
    return {
        arm: ArmStyle(colors[i % len(colors)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, arm in enumerate(arms)
    }


def rc() -> dict[str, Any]:
    """Return the matplotlib settings for drawing and writing figures."""
    return {
        **sns.axes_style("ticks"),
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.titlepad": 4,
        "axes.titleweight": "normal",
        "axes.labelsize": 8,
        "axes.labelpad": 3,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 8,
        "text.color": LIGHT["ink"],
        "axes.labelcolor": LIGHT["ink"],
        "axes.titlecolor": LIGHT["ink"],
        "axes.edgecolor": LIGHT["muted"],
        "xtick.color": LIGHT["muted"],
        "ytick.color": LIGHT["muted"],
        "xtick.labelcolor": LIGHT["ink"],
        "ytick.labelcolor": LIGHT["ink"],
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": LIGHT["rule"],
        "grid.linewidth": 0.5,
        "axes.axisbelow": True,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "legend.frameon": False,
        # Claims and names are shown verbatim: a dollar sign does not start math.
        "text.parse_math": False,
        "axes.unicode_minus": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "stability",
    }


def styled() -> AbstractContextManager[None]:
    """Return a context that applies `rc` to drawing and writing figures."""
    settings: Any = rc()
    return mpl.rc_context(settings)


def theme_css() -> str:
    """Return the CSS properties that color themed figures (see `figures.svg`) on light, dark and printed pages."""

    def block(palette: Mapping[str, str]) -> str:
        return ":root{" + "".join(f"--figure-{role}:{color};" for role, color in palette.items()) + "}"

    return f"{block(LIGHT)}\n@media screen and (prefers-color-scheme: dark){{{block(DARK)}}}\n"
