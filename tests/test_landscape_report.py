"""Pictures and grids of landscapes: the command line from end to end, and figures of made tables."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from stability import landscape
from stability.execute import replay_run, run
from stability.grid import runs_of
from stability.landscape.figures import Place, connectivity_figure, contour_levels, line_figure, plane_figure
from stability.study import parse_study
from tests.test_cli import called


@pytest.fixture(scope="module")
def study(tiny_text):
    text = tiny_text.split("[probes.retrieval]")[0].replace("steps = 8\n", "steps = 6\n").replace("[8, 16]", "[8]")
    return parse_study(
        text + "[probes.curvature]\nbatches = 2\nseeds = 1\nsteps = 2\nnoise = [0.4]\n", "bare.toml", "bare"
    )


@pytest.fixture(scope="module")
def where(study, tmp_path_factory):
    """A finished run; its folder landscape/ is written to."""
    return run(study, "cpu", out=tmp_path_factory.mktemp("landscape") / "bare")


def one(study, arm):
    return next(each for each in runs_of(study) if each.arm == arm).id


def words_of(figure) -> str:
    texts = [figure.get_suptitle(), *(text.get_text() for axes in figure.axes for text in axes.texts)]
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    return "\n".join(texts + [text.get_text() for legend in legends for text in legend.get_texts()])


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["filter", "eigen", "pca", "scalars"])
def test_the_verb_writes_picture_and_grid_and_prints_where(monkeypatch, capsys, study, where, kind):
    run_id = one(study, "siglip-log-b")
    code, out, err = called(
        monkeypatch, capsys, "landscape", str(where), "--run", run_id[:10], "--kind", kind, "--points", "3"
    )
    assert code == 0, err
    paths = [where / "landscape" / f"{run_id}-{kind}.{ending}" for ending in ("png", "svg", "parquet")]
    assert out.split() == [str(path) for path in paths]
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert "curvature d'Hd" in paths[1].read_text()
    grid = pd.read_parquet(paths[2])
    assert list(grid) == ["first", "second", "value"]
    assert len(grid) == 9
    again = replay_run(where, run_id)
    center = landscape.slice1d(again.objective, again.params, again.params, points=2, batches=again.batches).center
    if kind == "scalars":
        assert grid["first"][4] == pytest.approx(float(again.params["loss.log_scale"]))
        assert grid["second"][4] == pytest.approx(float(again.params["loss.bias"]))
    if kind != "pca":
        assert grid["value"][4] == pytest.approx(center, rel=1e-5)


def test_one_scalar_is_a_line_at_a_step_of_one_s_own_and_a_second_call_gives_the_same_bytes(
    monkeypatch, capsys, study, where
):
    run_id = one(study, "clip")
    words = ["landscape", str(where), "--run", run_id, "--kind", "scalars", "--step", "2", "--span", "-1", "0.5"]
    code, _, err = called(monkeypatch, capsys, *words, "--points", "4")
    assert code == 0, err
    files = {path: path.read_bytes() for path in where.glob(f"landscape/{run_id}-scalars-step-2.*")}
    assert len(files) == 3
    grid = pd.read_parquet(where / "landscape" / f"{run_id}-scalars-step-2.parquet")
    log_scale = float(replay_run(where, run_id, step=2).params["loss.log_scale"])
    assert np.allclose(grid["first"], log_scale + np.array([-1.0, -0.5, 0.0, 0.5]))
    called(monkeypatch, capsys, *words, "--points", "4")
    assert {path: path.read_bytes() for path in files} == files


def test_the_way_between_two_runs_starts_and_ends_at_their_own_loss_and_recall(monkeypatch, capsys, study, where):
    ids = [each.id for each in runs_of(study) if each.arm == "clip"][:2]
    code, _, err = called(
        monkeypatch, capsys, "landscape", str(where), "--run", ids[0], "--second-run", ids[1], "--points", "5"
    )
    assert code == 0, err
    way = pd.read_parquet(where / "landscape" / f"{ids[0]}-{ids[1]}-connectivity.parquet")
    first, second = (replay_run(where, each) for each in ids)
    for place, replay in ((0, first), (4, second)):
        assert way["recall_error"][place] == pytest.approx(float(first.recall_error(replay.params)), abs=1e-6)
        losses = torch.vmap(first.objective, in_dims=(None, 0))(replay.params, first.batches)
        assert way["loss"][place] == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--run", "zzz"], "holds no run 'zzz' (known are "),
        (["--run", "{clip}", "--kind", "fliter"], "--kind: unknown kind 'fliter'; did you mean 'filter'"),
        (["--run", "{clip}", "--points", "1"], "--points: got 1"),
        (["--run", "{clip}", "--step", "7"], "step is 7; allowed: 0 to 6"),
        (
            ["--run", "{clip}", "--second-run", "{siglip-log-b}"],
            "--second-run: run {siglip-log-b} is of arm 'siglip-log-b'",
        ),
        (["--run", "{clip}", "--span", "1", "0"], "span is (1, 0); allowed"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(monkeypatch, capsys, study, where, words, sentence):
    ids = {arm: one(study, arm) for arm in ("clip", "siglip-log-b")}
    before = set(where.rglob("*"))
    code, _, err = called(monkeypatch, capsys, "landscape", str(where), *(word.format(**ids) for word in words))
    assert code == 2
    assert sentence.format(**ids) in err
    assert len(err.strip().splitlines()) == 1
    assert set(where.rglob("*")) == before


# --- figures of made tables ------------------------------------------------------------------------------------------


def made(function) -> pd.DataFrame:
    first, second = (
        part.flatten() for part in np.meshgrid(np.linspace(-1, 2, 7), np.linspace(-1, 1, 5), indexing="ij")
    )
    return pd.DataFrame({"first": first, "second": second, "value": function(first, second)})


def drawn(table, at=(0.0, 0.0)):
    return plane_figure(table, ("x", "y"), "loss (nats)", "made", Place(at, 1.0, (2.0, -4.0)))


def test_a_plane_names_axes_curvature_centre_and_lowest_point():
    figure = drawn(made(lambda x, y: 1 + x**2 - 2 * y**2))
    words = words_of(figure)
    assert "curvature d'Hd 2 across, −4 up" in words
    assert "the run (1)" in words
    assert "lowest on the grid (-1)" in words
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), figure.axes[1].get_ylabel()) == ("x", "y", "loss (nats)")
    assert axes.get_xlim() == (-1.0, 2.0)
    figure.savefig("/dev/null", format="png")


def test_points_that_are_not_finite_are_counted_on_the_picture_even_if_all_are():
    figure = drawn(made(lambda x, y: np.where(x < 0, np.nan, np.where(x > 1.9, np.inf, x + y))))
    assert "15 of 35 points not finite" in words_of(figure)
    figure.savefig("/dev/null", format="svg")
    nothing = drawn(made(lambda x, y: x * np.nan))
    assert "35 of 35 points not finite" in words_of(nothing)
    nothing.savefig("/dev/null", format="png")


def test_a_flat_plane_and_a_centre_outside_it_can_be_drawn():
    figure = drawn(made(lambda x, y: 0 * x + 3), at=(5.0, 0.0))
    assert "the run" not in words_of(figure)
    figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 7.5), (0.01, 500.0), (2.0, 2.0), (1.93, 331.7)])
def test_bands_rise_and_hold_all_values(low, high):
    edges = contour_levels(low, high)
    assert edges == sorted(set(edges))
    assert edges[0] <= low <= high <= edges[-1]


def test_a_line_shows_its_parabola_and_where_it_is_not_finite():
    steps = np.linspace(-1, 1, 5)
    table = pd.DataFrame({"first": steps, "value": [np.nan, 1.0, 0.0, 1.0, 4.0], "model": 4 * steps**2})
    figure = line_figure(table, "log t", "loss (nats)", "made", Place((0.0,), 0.0, (8.0,)))
    assert "curvature d'Hd 8 along the line; 1 of 5 points not finite" in words_of(figure)
    figure.savefig("/dev/null", format="png")


def test_the_way_between_two_runs_shows_the_widest_gap_of_loss_and_recall():
    hill = landscape.connectivity(
        lambda p: 4 * p["w"] * (1 - p["w"]) * 0.5 + 1, *({"w": torch.tensor(e)} for e in (0.0, 1.0))
    )
    figure = connectivity_figure(hill.table(), hill.table() / 4, "loss (nats)", "made", "barrier")
    gaps = re.findall(r"[\d.]+", "".join(text.get_text() for axes in figure.axes for text in axes.texts))
    assert math.isclose(float(gaps[0]), 0.5)
    assert math.isclose(float(gaps[1]), 0.125)
    figure.savefig("/dev/null", format="png")
