"""The axes of panels: training steps, values, logarithms and the levels of a grid axis, with plain numbers as ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from stability.report.figures.panels import Sheet
from stability.report.style import LIGHT, WIDTH
from stability.stats.wording import number

LEVEL_LABEL = 0.3
"""Width of a level's axis label in inches."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def step_axis(sheet: Sheet, last: float) -> None:
    """Set the x axis of all panels to the training steps."""
    intervals = 2 if sheet.columns > 4 else 3
    spread = MaxNLocator(intervals, integer=True, steps=[1, 1.5, 2, 2.5, 3, 5, 10]).tick_values(0, last)
    ticks = [float(step) for step in np.asarray(spread) if 0 <= step <= last]
    for axes in sheet.axes.values():
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        # Otherwise the last label of a panel and the first of its neighbor would overlap.
        labels = axes.get_xticklabels()
        for label in labels[:1]:
            label.set_horizontalalignment("left")
        for label in labels[-1:] if ticks[-1] > 0.9 * last else []:
            label.set_horizontalalignment("right")


def value_axis(sheet: Sheet, scale: str, values: Iterable[float], *, zero: bool = False) -> None:
    """Set the y axis of all panels to these values, with plain-number ticks.

    Args:
        sheet: The panels.
        scale: The scale, "log" or "linear".
        values: The values to show; those that are not finite are ignored.
        zero: Whether a linear axis starts at 0.
    """
    shown = np.array([value for value in values if math.isfinite(value)])
    for axes in sheet.axes.values():
        if scale == "log" and (shown > 0).any():
            low, high = shown[shown > 0].min(), shown.max()
            log_axis(axes, "y", low, high)
            axes.set_ylim(low / 1.15, high * 1.15)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
            if zero:
                axes.set_ylim(0, max(shown.max() * 1.06, 1e-9) if len(shown) else 1)


def log_axis(axes: Axes, which: Literal["x", "y"], low: float, high: float, most: int = 6) -> None:
    """Make an axis of a panel logarithmic, with ticks in plain numbers.

    Args:
        axes: The panel.
        which: The axis, "x" or "y".
        low: The lowest value, positive.
        high: The highest value.
        most: The most ticks, as far as there are round numbers.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    {"x": axes.set_xscale, "y": axes.set_yscale}[which]("log", nonpositive="mask")
    axis.set_major_locator(FixedLocator(log_ticks(low, high, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: tick(x)))


DENSITIES = (
    (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    (1, 1.25, 1.5, 2, 3, 4, 6, 8),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
)
"""Leading digits of a logarithmic axis's ticks, from dense to sparse."""


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from *low* to *high*, evenly spread on a logarithmic axis, as dense as *most* allows.

    >>> log_ticks(0.02, 0.9), log_ticks(1e-6, 3), log_ticks(0.8, 1.3)
    ([0.02, 0.05, 0.1, 0.2, 0.5], [1e-06, 0.0001, 0.01, 1.0], [0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    """
    low, high = low * (1 - 1e-9), high * (1 + 1e-9)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in DENSITIES:
        ticks = [float(f"{m}e{e}") for e in range(first, last + 1) for m in mantissas if low <= m * 10.0**e <= high]
        if len(ticks) <= most:
            return ticks
    stride = math.ceil((last - first) / most)
    return [10.0**e for e in range(first, last + 1) if e % stride == 0 and low <= 10.0**e <= high]


def tick(x: float) -> str:
    """Return a number for an axis.

    >>> tick(0.02), tick(-1000.0), tick(3e-6), tick(1e5)
    ('0.02', '−1000', '3×10⁻⁶', '10⁵')
    """
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        return f"{x:.4g}".replace("-", "−")
    exponent = math.floor(math.log10(abs(x)) + 1e-9)
    mantissa = f"{x / 10.0**exponent:.3g}".replace("-", "−")
    power = "10" + str(exponent).translate(SUPERSCRIPTS)
    return power if mantissa == "1" else f"−{power}" if mantissa == "−1" else f"{mantissa}×{power}"


def level_axis(axes: Axes, levels: Sequence[float]) -> None:
    """Set a panel's x axis to the levels of a grid axis, with as many tick labels as fit."""
    every = math.ceil(len(levels) * LEVEL_LABEL / (axes.get_position().width * WIDTH))
    # On a logarithmic axis only the levels get ticks: readers misplace round numbers between them.
    at_levels = every == 1 or axes.get_xscale() == "log"
    axes.xaxis.set_major_locator(FixedLocator(list(levels[::every])) if at_levels else MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.margins(x=0.06)


def signed(value: float) -> str:
    """Return a number as the reports' text has it, with a true minus sign."""
    return number(value).replace("-", "−")


def reference(axes: Axes, level: float) -> None:
    """Draw a reference level, such as chance, as a dotted line."""
    axes.axhline(level, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
