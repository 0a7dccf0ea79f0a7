"""The figure of power over the number of seeds: a panel per claim, the target as a dotted line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stability.report.figures import panels
from stability.report.style import LIGHT, arm_styles, styled
from stability.sample_size import TARGET, Need
from stability.store import write_files

COLUMNS = 3


def power_figure(curves: pd.DataFrame, needs: Sequence[Need]) -> Figure:
    """Return a figure of the power of every claim over the number of seeds, for the likely and the cautious spread."""
    planned = [need for need in needs if need.safe is not None]
    columns = min(COLUMNS, len(planned))
    positions = {need.id: divmod(index, columns) for index, need in enumerate(planned)}
    words = ("at the pilot's spread", "at its upper 80% bound") if planned[0].pilot else ("at the spread assumed",)
    styles = arm_styles(words)
    rows = math.ceil(len(planned) / columns)
    sheet = panels.sheet(dict.fromkeys(range(rows), ""), dict.fromkeys(range(columns), ""), styles, height=1.6)
    with styled():
        for need in planned:
            axes, curve = sheet.axes[positions[need.id]], curves[curves["id"] == need.id]
            for word, column in zip(words, ("likely", "safe"), strict=False):
                axes.plot(curve["seeds"], curve[column], color=styles[word].color, linestyle=styles[word].dash)
            panels.reference(axes, TARGET)
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.text(0.97, 0.05, need.id, transform=axes.transAxes, ha="right", color=LIGHT["ink"])
        for key, axes in sheet.axes.items():
            axes.set_visible(key in positions.values())
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
