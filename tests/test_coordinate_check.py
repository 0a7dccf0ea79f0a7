"""A coordinate check over the width: a study of it, and the figure of its report."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from stability.analysis import analyze, load_results
from stability.execute import run
from stability.report import render
from stability.report.figures import tables
from stability.report.figures.coordinates import coordinate_check, coordinates_figure
from stability.study import parse_study
from tests.report_blocks import figures_of

STUDY = """\
title = "Coordinate check"
question = "Which sizes change with the width of the towers?"
[data]
name = "digits"
[model]
image = { name = "patch_transformer", heads = 4 }
text = { name = "token_transformer", heads = 4 }
embed_dim = 16
[train]
steps = 100
[grid]
arms = ["clip", "siglip"]
batch_size = [64]
lr = [3e-3]
seeds = 4
"model.*.width" = [16, 32, 64, 128]
[probes.activations]
every = 25

[[claims]]
id = "activations"
primary = true
text = "SigLIP's activations grow faster with the width than CLIP's"
measure = "activation_rms_image_max"
contrast = "slope"
axis = "model.*.width"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.05
[scales.smoke]
grid.seeds = 2
train.steps = 4
"""
WIDTHS = (16, 32, 64, 128)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    study = parse_study(STUDY, "coordinates.toml", "coordinates", "smoke")
    return load_results(run(study, device="cpu", out=tmp_path_factory.mktemp("runs") / "run"))


def test_the_study_is_short():
    assert len(STUDY.splitlines()) <= 40


def test_activations_and_updates_of_every_layer_are_in_the_figure_over_the_width(results, tmp_path):
    (figure,) = coordinate_check(results)
    table = figure.table
    assert sorted(table["model.*.width"].unique()) == [*WIDTHS]
    assert {*table["measure"]} == {
        f"{kind}_rms_{side}" for kind in ("activation", "update") for side in ("image", "text")
    }
    # Embedding, one block, final norm and projection.
    assert len(table) == 4 * 4 * len(WIDTHS) * 2
    last = results.steps[results.steps["step"] == results.steps["step"].max()].set_index("run")
    for row in table.rename(columns={"model.*.width": "width"}).itertuples():
        runs = results.runs[(results.runs["arm"] == row.arm) & (results.runs["model.*.width"] == row.width)]
        values = [last[row.measure][each][row.layer - 1] for each in runs["run"]]
        assert len(values) == row.seeds == 2
        assert math.isclose(row.median, np.median(values), rel_tol=1e-3)
    assert len(figure.figure.axes) == 4 * 4
    findings = analyze(results, checks=False)
    paths = render(results, findings, tmp_path)
    assert "Activations and updates by layer over the width" in paths["html"].read_text()
    # The claim's own figure, over the same axis.
    assert {"coordinates", "along-1"} <= {figure.id for figure in figures_of(results, findings)}


def test_early_sizes_are_those_that_follow_from_initial_weights_and_optimizer(results):
    """A norm's output has size 1 at any width, and an early step of Adam about the size of its rate in any layer."""
    (figure,) = coordinate_check(results)
    table = figure.table.set_index(["measure", "layer"])["median"]
    for side in ("image", "text"):
        assert np.allclose(table[f"activation_rms_{side}", 3], 1, atol=0.05)
        assert table[f"update_rms_{side}"].between(3e-4, 6e-3).all()


def test_a_study_without_an_axis_over_the_towers_has_no_such_figure(brief_run):
    assert not list(coordinate_check(load_results(brief_run)))


def test_deep_towers_show_the_first_and_the_last_of_their_layers(results):
    rows = [
        {"arm": "clip", "model.*.width": width, "batch_size": 64, "seed": 0, "run": f"r{width}", "layer": layer}
        | {"measure": "activation_rms_image", "value": 1.0 + layer * width}
        for width in WIDTHS
        for layer in range(1, 12)
    ]
    long = pd.DataFrame(rows)
    styles = tables.styles_in(results, long)
    figure = coordinates_figure(long, tables.across_seeds(long, "measure", "layer"), styles, "model.*.width")
    assert [axes.get_title() for axes in figure.axes] == [f"layer {layer}" for layer in (1, 3, 5, 7, 9, 11)]
    assert [list(axes.get_lines()[-1].get_ydata()) for axes in figure.axes] == [
        [1.0 + layer * width for width in WIDTHS] for layer in (1, 3, 5, 7, 9, 11)
    ]
