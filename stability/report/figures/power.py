"""The figure of power over the number of seeds: a panel per claim, the target as a dotted line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stability.report.figures import panels, scales
from stability.report.style import LIGHT, arm_styles, styled
from stability.sample_size import TARGET, Need
from stability.store import write_files

COLUMNS = 3
"""Maximum number of panels side by side."""


def power_figure(curves: pd.DataFrame, needs: Sequence[Need]) -> Figure:
    """Return a figure of the power of every claim over the number of seeds, for the likely and the cautious spread."""
    planned = [need for need in needs if need.safe is not None]
    labels = ("at the pilot's spread", "at its upper 80% bound") if planned[0].pilot else ("at the spread assumed",)
    styles = arm_styles(labels)
    sheet = panels.wrapped({need.id: need.id for need in planned}, styles, height=1.6, most=COLUMNS)
    with styled():
        for need in planned:
            axes, curve = sheet.axes[need.id], curves[curves["id"] == need.id]
            for style, column in zip(styles.values(), ("likely", "safe"), strict=False):
                axes.plot(curve["seeds"], curve[column], color=style.color, linestyle=style.dash)
            scales.reference(axes, TARGET)
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels.name_axes(sheet, "seeds", "power to find the margin")
    return sheet.figure


def write_power(folder: Path, curves: pd.DataFrame, needs: Sequence[Need]) -> dict[str, Path]:
    """Write power.svg and power.png to *folder* and return their paths; raises `InputError` if that fails."""
    import io

    figure, files = power_figure(curves, needs), {}
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        with styled():
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(buffer, format=kind, dpi=160, facecolor=LIGHT["page"], metadata=metadata)
        files[f"power.{kind}"] = buffer.getvalue()
    write_files(folder, files, "the figure")
    return {kind: folder / f"power.{kind}" for kind in ("svg", "png")}
