from __future__ import annotations

import dataclasses
import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability.analysis import Results, analyze
from stability.grid import runs_of
from stability.report import render
from stability.report.data import ReportData
from stability.report.figures import svg, tables
from stability.report.figures.convergence import convergence, share_reached
from stability.report.figures.forest import forest_figure, forest_plot
from stability.report.figures.geometry import embedding_geometry
from stability.report.figures.levels import claimed, decline, sharpness, strip_figure
from stability.report.figures.panels import axes_of, faceted
from stability.report.figures.scales import level_axis, log_ticks
from stability.report.figures.spectra import density, spectral_densities, symmetric_log
from stability.report.figures.svg import pair_of_tenths, relative_path
from stability.report.figures.tables import POINTS, of_steps, sparse, window_of, windowed
from stability.report.figures.trajectories import over_training
from stability.report.sections import section, sections_of
from stability.report.style import LIGHT, arm_styles, theme_css
from stability.study import parse_study
from stability.vocabulary import AXES
from tests.report_blocks import figures_of

NUMBER = r"-?\d*\.?\d+"

STUDY = """
title = "Made"
question = "Are closed forms drawn as they are?"

[data]
name = "digits"

[model]
image = "patch_transformer"
text = "token_transformer"

[train]
steps = 300
warmup = 20

[arms.siglip-log-b]
loss = "siglip"
bias = "-log B"

[grid]
arms = ["clip", "siglip", "siglip-log-b"]
batch_size = [32, 128]
noise = [0.0, 0.4]
lr = [3e-3]
seeds = 3

[probes]
retrieval.every = 25
gradient-noise.every = 50
curvature = { seeds = 2, noise = [0.0] }
geometry.every = 100

[[claims]]
id = "gradient-noise"
primary = true
text = "SigLIP's gradients are less noisy than CLIP's"
measure = "gradient_noise_fraction"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.1

[[claims]]
id = "convergence"
text = "SigLIP reaches a recall of .2 in fewer steps than CLIP"
measure = "recall_at_1"
contrast = "time_to_threshold"
threshold = 0.2
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.1
"""

SLOPE = """
[[claims]]
id = "noise-slope"
text = "SigLIP's recall falls more slowly than CLIP's as captions are mismatched"
measure = "recall_at_1"
contrast = "slope"
axis = "noise"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.25
"""

LEVEL = {"clip": 0.6, "siglip": 0.35, "siglip-log-b": 0.45}


def made(text: str = STUDY + SLOPE, diverge: int = 2, curved_at_all: bool = False) -> Results:
    """Results of a study as closed-form curves: recall a (1 - noise) s / (s + 60), log t and b straight lines."""
    study = parse_study(text, "made.toml", "made", "small")
    rng = np.random.default_rng(0)
    rows, frames = [], []
    total = study.train.steps
    step = np.arange(total + 1)
    for place, run in enumerate(runs_of(study)):
        level = (
            LEVEL.get(run.arm, 0.3 + 0.05 * len(run.arm) % 0.4)
            * (run.batch_size / 128) ** 0.25
            * (1 - run.noise)
            * math.exp(rng.normal(0, 0.06))
        )
        recall = 0.0136 + level * step / (step + 60)
        loss = math.log(run.batch_size) * (1 - level * step / (step + 90) + rng.normal(0, 0.02, len(step)))
        diverged = run.arm == "siglip" and run.noise > 0 and place % 7 == 0 and diverge > 0
        diverge -= diverged
        at = 120 if diverged else math.nan
        loss[step == total] = math.nan
        if diverged:
            loss[step > at] = math.nan
        frame = pd.DataFrame({"run": run.id, "step": step, "loss": loss, "log_scale": 2.3 + level * step / total})
        frame["bias"] = math.nan if run.arm == "clip" else -10.0 + step / total
        frame["false_negative_fraction"], frame["learning_rate"] = 0.01, run.lr
        every25, every50, every100 = step % 25 == 0, step % 50 == 0, step % 100 == 0
        frame["recall_at_1"] = np.where(every25, recall, math.nan)
        frame["recall_at_1_chance"] = np.where(every25, 0.0136, math.nan)
        frame["zero_shot_accuracy"] = np.where(every25, 0.1 + recall, math.nan)
        frame["zero_shot_accuracy_chance"] = np.where(every25, 0.1, math.nan)
        for block, noise in (("towers", 0.2 + 0.5 * step / total), ("scalars", 0.05 + 0.9 * step / total)):
            share = noise * LEVEL.get(run.arm, 0.5) * np.exp(rng.normal(0, 0.1, len(step)))
            frame[f"gradient_noise_trace_{block}"] = np.where(every50, 3 * share, math.nan)
            frame[f"gradient_second_moment_{block}"] = np.where(every50, 3.0, math.nan)
        for name, value in (("margin_trimmed", -0.2), ("relative_bias_trimmed", 0.3), ("modality_gap", 0.9)):
            frame[name] = np.where(every100, value + level * step / total, math.nan)
        curved = (step == total) & (curved_at_all or (run.seed < 2 and run.noise == 0))
        high = 100.0 * LEVEL.get(run.arm, 0.5) * math.exp(rng.normal(0, 0.2))
        nodes = np.sort(np.concatenate([[-high / 20], np.geomspace(1e-3, high, 9), -np.geomspace(1e-3, high / 30, 6)]))
        weights = np.exp(-np.abs(np.arcsinh(nodes * 50)))
        frame["hessian_max_eigenvalue"] = np.where(curved, high, math.nan)
        frame["hessian_min_eigenvalue"] = np.where(curved, -high / 20, math.nan)
        for end in ("max", "min"):
            frame[f"hessian_{end}_eigenvalue_residual"] = np.where(curved, 1e-6 * high, math.nan)
        frame["sharpness_ratio"] = np.where(curved, high / 120, math.nan)
        frame["hessian_nodes"] = [nodes if shown else None for shown in curved]
        frame["hessian_weights"] = [weights / weights.sum() if shown else None for shown in curved]
        frames.append(frame)
        cell = {key: getattr(run, key) for key in ("arm", "seed", *AXES)}
        rows.append({"run": run.id, **cell, "status": "diverged" if diverged else "finished", "diverged_at": at})
        rows[-1] |= {"collapsed": float(diverged), "collapsed_at": at}
    manifest = {"versions": {"python": "3"}, "device": {"type": "cpu", "model": "chip"}, "groups": []}
    manifest["arithmetic"] = {}
    return Results(study, manifest, pd.DataFrame(rows), pd.concat(frames, ignore_index=True), study.measures)


@pytest.fixture(scope="module")
def results():
    return made()


@pytest.fixture(scope="module")
def sections(results):
    return sections_of(ReportData(results, analyze(results)))


@pytest.fixture(scope="module")
def drawn(sections):
    return [figure for each in sections for figure in each.figures]


@pytest.fixture(scope="module")
def markup(drawn):
    return {figure.id: svg(figure.figure, figure.id, label=figure.alt) for figure in drawn}


# --- which figures, in which order -----------------------------------------------------------------------------------


def test_a_full_study_fills_every_section_in_reading_order(sections, drawn):
    shown = ["claims", "learning", "noise", "convergence", "gradients", "scalars", "curvature", "geometry"]
    assert [each.id for each in sections if each.figures] == shown
    assert len({figure.id for figure in drawn}) == len(drawn)


def test_what_was_not_measured_is_left_out(results, drawn):
    columns = ["recall_at_1", "gradient_noise_trace_towers", "bias", "hessian_nodes", "sharpness_ratio", "modality_gap"]
    gone = {"forest", "cells", "recall", "noise-decline", "time-1", "gradient-noise", "bias", "spectra", "sharpness"}
    less = dataclasses.replace(results, steps=results.steps.drop(columns=columns))
    data = ReportData(less, dataclasses.replace(analyze(results), claims=()))
    sections = section.defined_in("stability.report.sections.measures").values()
    left = [figure for each in sections for figure in each(data)]
    assert {figure.id for figure in left} == {figure.id for figure in drawn} - gone
    assert "modality_gap" not in set(left[-1].table["measure"])


def test_a_measure_without_a_single_value_draws_nothing(results):
    names = [name for name in results.steps if name.startswith(("hessian", "sharpness", "margin", "relative", "modal"))]
    empty = {name: None if name in ("hessian_nodes", "hessian_weights") else math.nan for name in names}
    bare = dataclasses.replace(results, steps=results.steps.assign(**empty))
    assert not [*spectral_densities(bare), *sharpness(bare), *embedding_geometry(bare)]


def test_one_noise_level_draws_no_decline_and_geometry_over_steps():
    clean = made(STUDY.replace("noise = [0.0, 0.4]", "noise = [0.0]"))
    assert not list(decline(clean))
    (shown,) = embedding_geometry(clean)
    assert set(shown.table["step"]) == {0, 100, 200, 300}


GAP = """
[[claims]]
id = "gap"
text = "SigLIP's trimmed margin is larger"
measure = "margin_trimmed"
contrast = "difference"
reduction = "final"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.1
"""


def test_what_a_claim_compares_is_shown_where_nothing_else_shows_it(results):
    asked = made(STUDY + GAP)
    (shown,) = claimed(asked, elsewhere={"gradient_noise_fraction"})
    assert shown.id == "values-margin-trimmed"
    assert "at its last measured step" in shown.caption
    assert set(shown.table["arm"]) == set(asked.study.grid.arms)
    assert not list(claimed(asked, elsewhere={"gradient_noise_fraction", "margin_trimmed"}))
    level = dataclasses.replace(asked, steps=asked.steps.assign(margin_trimmed=0.5))
    assert not list(claimed(level, elsewhere={"gradient_noise_fraction"}))  # the same everywhere: nothing to see


def test_a_scalar_that_is_held_draws_nothing(results):
    held = dataclasses.replace(results, steps=results.steps.assign(bias=0.0))
    assert "bias" not in {figure.id for figure in over_training(held)}


# --- how panels are laid out ------------------------------------------------------------------------------------------


def cells(**axes):
    """A table with a row for each cell of these axes of the grid."""
    whole = {"batch_size": [32], "train_pairs": [100], "lr": [1e-3], "lr_multiplier": [1.0], "corruption": ["mismatch"]}
    whole |= {"noise": [0.0]} | axes
    return pd.DataFrame(itertools.product(*whole.values()), columns=list(whole))


def titles(sheet):
    return [axes.get_title() for axes in sheet.axes.values()]


def test_many_levels_stand_in_lines_of_several_panels():
    factors = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    sheet = faceted(cells(lr_multiplier=factors), arm_styles(["clip"]))
    assert titles(sheet) == [f"B = 32, {factor:g} × lr" for factor in factors]
    tops = [round(axes.get_position().y0, 3) for axes in sheet.axes.values()]
    assert [tops.count(top) for top in dict.fromkeys(tops)] == [4, 3]
    assert len(sheet.figure.axes) == len(factors)


def test_several_corruptions_have_a_row_each():
    table = cells(corruption=["image_noise", "mismatch", "text_noise"], noise=[0.0, 0.3, 0.6])
    sheet = faceted(table, arm_styles(["clip"]))
    assert {title for title in titles(sheet) if title} == {"noise 0", "noise 0.3", "noise 0.6"}
    for key in table[axes_of(table)].itertuples(index=False, name=None):
        assert sheet.axes[key]


@pytest.mark.parametrize("arms", [["clip"], ["clip", "siglip"], [f"loss-of-some-name-{place}" for place in range(23)]])
def test_a_legend_is_read_line_by_line_and_stays_within_the_figure(arms):
    sheet = faceted(cells(), arm_styles(arms))
    sheet.figure.canvas.draw()
    (legend,) = sheet.figure.legends
    box, page = legend.get_window_extent(), sheet.figure.bbox
    assert box.x0 >= 0
    assert box.x1 <= page.x1
    assert box.y0 >= max(axes.get_window_extent().y1 for axes in sheet.axes.values())
    places = {text.get_text(): text.get_window_extent() for text in legend.get_texts()}
    assert sorted(arms, key=lambda arm: (-round(places[arm].y0 / 4), places[arm].x0)) == arms


def test_every_level_of_a_logarithmic_axis_is_named_as_far_as_there_is_room():
    axes = next(iter(faceted(cells(), {}).axes.values()))
    axes.set_xscale("log")
    levels = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    level_axis(axes, levels)
    assert list(axes.xaxis.get_major_locator()()) == levels
    many = [2.0**power for power in range(60)]
    level_axis(axes, many)
    assert set(axes.xaxis.get_major_locator()()) < set(many)


@pytest.mark.parametrize("words", ["log recall@1", "sensitivity over lr of log recall@1 above its chance level"])
def test_the_words_below_a_panel_do_not_meet(results, words):
    claims = analyze(results).claims
    figure = forest_figure(claims, {claim.id: f"siglip − clip: {words}" for claim in claims})
    figure.canvas.draw()
    axes = next(axes for axes in figure.axes if axes.get_xscale() == "linear")
    lower, quantity, higher = (text.get_window_extent() for text in axes.texts[:3])
    assert axes.texts[1].get_text().endswith(words)
    assert lower.x1 < quantity.x0 < quantity.x1 < higher.x0


# --- what they say ---------------------------------------------------------------------------------------------------


def test_every_figure_says_what_it_shows_with_numbers(drawn):
    for figure in drawn:
        assert re.search(r"\d", figure.alt), figure.id
        assert figure.alt.endswith("."), figure.id
        assert not re.search(r"\bnan\b|\binf\b", f"{figure.title} {figure.caption} {figure.alt}"), figure.id
        assert len(figure.table), figure.id


def test_the_words_give_the_median_of_the_seeds(results, drawn):
    (recall,) = (figure for figure in drawn if figure.id == "recall")
    runs = results.runs.query("arm == 'clip' and batch_size == 32 and noise == 0.4")["run"]
    end = results.steps[results.steps["run"].isin(runs) & (results.steps["step"] == 300)]["recall_at_1"]
    assert f"batch size 32, noise 0.4: clip {end.median():.3g}" in recall.alt
    row = recall.table.query("arm == 'clip' and batch_size == 32 and noise == 0.4 and step == 300")
    assert float(row["median"].iloc[0]) == pytest.approx(end.median(), rel=1e-3)
    assert int(row["seeds"].iloc[0]) == 3


def test_diverged_runs_are_counted_and_crossed(results, drawn):
    (loss,) = (figure for figure in drawn if figure.id == "loss")
    count = int((results.runs["status"] == "diverged").sum())
    assert count > 0
    assert f"{count} of {len(results.runs)} runs" in loss.caption
    crosses = [line for axes in loss.figure.axes for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == pytest.approx([120] * count, abs=8)


def test_each_arm_keeps_one_color_and_marker_in_all_figures(results, drawn):
    styles = arm_styles(results.study.grid.arms)
    seen = set()
    for figure in drawn:
        for legend in figure.figure.legends:
            for line in legend.get_lines():
                style = styles[line.get_label()]
                assert (line.get_color(), line.get_marker()) == (style.color, style.marker)
                seen.add(line.get_label())
    assert seen == set(results.study.grid.arms)
    assert len({style.color for style in styles.values()}) == len({style.marker for style in styles.values()}) == 3


# --- the forest plot -------------------------------------------------------------------------------------------------


def test_a_claim_that_could_not_be_tested_has_a_row_without_an_interval(results):
    findings = analyze(results)
    lost = dataclasses.replace(
        findings.claims[0], verdict="not-testable", effect=math.nan, interval=(0.0, math.inf), p_value=math.nan
    )
    figure = forest_plot(results, dataclasses.replace(findings, claims=(lost,)))
    assert "not testable" in figure.alt
    assert figure.table[["effect", "high"]].isna().all(axis=None)
    (axes,) = figure.figure.axes
    assert not axes.lines  # the band and the line of no difference alone


def test_ratios_share_a_logarithmic_axis_and_differences_have_their_own(results):
    figure = forest_plot(results, analyze(results)).figure
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear"]
    for axes in figure.axes:
        low, high = axes.get_xlim()
        for line in axes.lines:
            assert (low <= np.asarray(line.get_xdata())).all()
            assert (np.asarray(line.get_xdata()) <= high).all()


# --- markup ----------------------------------------------------------------------------------------------------------


def test_markup_is_one_scalable_labelled_element_that_reaches_for_nothing(drawn, markup):
    for figure in drawn:
        text = markup[figure.id]
        root = ElementTree.fromstring(text)
        assert text.startswith("<svg ")
        assert root.get("role") == "img"
        assert root.get("aria-label") == figure.alt
        assert root.get("viewBox")
        assert "width" not in root.attrib
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|<image|@import|<metadata", text)


def test_ids_and_classes_bear_the_prefix_and_every_reference_is_met(drawn, markup):
    for figure in drawn:
        ids = re.findall(r'\bid="([^"]+)"', markup[figure.id])
        classes = re.findall(r'\bclass="([^"]+)"', markup[figure.id])
        references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', markup[figure.id])
        assert len(set(ids)) == len(ids)
        assert all(name.startswith(f"{figure.id}-") for name in [*ids, *classes])
        assert {first or second for first, second in references} == set(ids)
        assert "*{" not in markup[figure.id]


def test_equal_results_give_equal_markup_however_often_it_is_written(results, markup):
    some = (decline, convergence, spectral_densities, sharpness, embedding_geometry)
    for figure in (figure for function in some for figure in function(results)):
        for _ in range(2):
            assert svg(figure.figure, figure.id, label=figure.alt) == markup[figure.id]


def test_a_themed_figure_has_no_color_that_the_page_does_not_set(drawn):
    for figure in (drawn[0], drawn[1], drawn[-1]):
        themed = svg(figure.figure, "x", themed=True)
        roles = set(re.findall(r"var\(--figure-([\w-]+),#[0-9a-f]{6}\)", themed))
        assert roles <= set(LIGHT)
        assert all(f"--figure-{role}:" in theme_css() for role in roles)
        assert not re.search(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", themed))


def test_hostile_words_are_words(results):
    findings = analyze(results)
    text = 'is $x^2$ <script>alert(1)</script> & "q" \x00 損失?'
    hostile = dataclasses.replace(findings, claims=(dataclasses.replace(findings.claims[0], text=text),))
    label = '"><script>'
    root = ElementTree.fromstring(svg(forest_plot(results, hostile).figure, "x", label=label))
    words = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert 'is $x^2$ <script>alert(1)</script> & "q" 損失?' in words
    assert root.get("aria-label") == label


# --- what is computed for them ---------------------------------------------------------------------------------------


def test_the_share_of_seeds_rises_by_one_seed_at_a_time_and_never_counts_infinity():
    cell = {"arm": "clip", "batch_size": 32, "corruption": "mismatch", "noise": 0.0, "lr": 1e-3}
    cell |= {"train_pairs": 0, "lr_multiplier": 1.0}
    table = pd.DataFrame([{**cell, "step": step} for step in (50.0, 25.0, math.inf, 50.0)])
    shares = share_reached(table)
    assert shares[["step", "share"]].to_numpy().tolist() == [[0, 0], [25, 0.25], [50, 0.75]]


def test_a_spectral_density_holds_the_mass_of_its_nodes():
    nodes, weights = np.array([-3.0, 0.0, 0.5, 40.0]), np.array([0.1, 0.6, 0.2, 0.1])
    grid = np.linspace(symmetric_log(-3.0, 0.01) - 2, symmetric_log(40.0, 0.01) + 2, 4001)
    curve = density(nodes, weights, grid, 0.01)
    assert np.trapezoid(curve, grid) == pytest.approx(1.0, abs=1e-6)
    assert grid[curve.argmax()] == pytest.approx(0.0, abs=1e-2)


def test_the_symmetric_log_is_odd_and_counts_decades():
    assert symmetric_log(-7.0, 0.1) == -symmetric_log(7.0, 0.1)
    assert symmetric_log(1e6, 0.1) - symmetric_log(1e5, 0.1) == pytest.approx(1.0, abs=1e-9)


def test_windows_keep_the_mean_of_a_run(results):
    table = of_steps(results, results.steps["log_scale"])
    table = table[table["step"] < 300]
    window = 10
    means = windowed(table, window).groupby("run")["value"].mean()
    pd.testing.assert_series_equal(means, table.groupby("run")["value"].mean())


@pytest.mark.parametrize(("every", "window"), [(1, 38), (25, 1)])
def test_only_measures_of_every_step_are_averaged(every, window):
    steps = np.arange(0, 300, every)
    table = pd.DataFrame({"run": np.repeat(np.arange(2000), len(steps)), "step": np.tile(steps, 2000), "value": 0.0})
    # 250 cells of 8 seeds: two edges of a band and a median each.
    table = table.assign(**dict.fromkeys(["arm", *AXES], 0)).assign(batch_size=table["run"] // 8)
    assert window_of(table) == window


@given(st.floats(1e-12, 1e9), st.floats(1.3, 1e12))
def test_logarithmic_ticks_rise_within_their_ends_and_stay_few(low, factor):
    high = low * factor
    ticks = log_ticks(low, high)
    assert ticks == sorted(set(ticks))
    assert all(low * (1 - 1e-8) <= tick <= high * (1 + 1e-8) for tick in ticks)
    assert 1 <= len(ticks) <= 7


def test_a_long_line_written_point_from_point_stays_on_its_way_to_a_tenth():
    rng = np.random.default_rng(0)
    points = rng.uniform(-300, 300, (200, 2))
    points[7] = points[6]
    path = "M " + " L ".join(f"{x:.6f} {y:.6f}" for x, y in points)
    written = relative_path(path)
    assert len(written) < 0.6 * len(path)
    start, rest = written.split("l")
    here = [float(part) for part in re.findall(NUMBER, start)]
    moves = np.array([float(part) for part in re.findall(NUMBER, rest)]).reshape(-1, 2)
    walked = np.cumsum([here, *moves.tolist()], axis=0)
    expected = np.delete(points, 7, axis=0)
    assert np.abs(walked - expected).max() < 0.0501


@given(st.lists(st.tuples(st.integers(-9999, 9999), st.integers(-9999, 9999)), min_size=1, max_size=30))
def test_pairs_of_tenths_are_read_back_as_they_were(pairs):
    text = " ".join(pair_of_tenths(x, y) for x, y in pairs)
    assert [round(10 * float(part)) for part in re.findall(NUMBER, text)] == [n for pair in pairs for n in pair]


def test_thin_lines_are_thinned_only_where_there_are_too_many_points():
    few = pd.DataFrame({"run": ["a"] * 50, "step": range(50)})
    assert sparse(few)[1] == 1
    many = pd.DataFrame({"run": np.repeat([f"run-{i}" for i in range(600)], 101), "step": np.tile(range(101), 600)})
    kept, k = sparse(many)
    assert k > 1
    assert len(kept) < 2 * POINTS
    by_run = kept.groupby("run")["step"]
    assert set(by_run.min()) == {0}
    assert set(by_run.max()) == {100}


def test_a_strip_holds_its_marks_against_the_level_it_was_given():
    marks = pd.DataFrame({"arm": ["clip"] * 3, "seed": [0, 1, 2], "value": [0.2, 0.3, 0.5]})
    cell = {"batch_size": 8, "train_pairs": 0, "corruption": "mismatch", "noise": 0.0, "lr": 1e-3, "lr_multiplier": 1.0}
    table = marks.assign(**cell, run=["a", "b", "c"])
    styles = arm_styles(["clip"])
    for level, lowest in ((1.0, 0.2 / 1.15), (None, 0.0)):
        scale = "log" if level else "linear"
        axes = strip_figure(table, styles, "value", level, scale).axes[0]
        dotted = [float(line.get_ydata()[0]) for line in axes.lines if list(line.get_xdata()) == [0, 1]]
        assert dotted == ([level] if level else [])
        assert axes.get_ylim()[0] == pytest.approx(lowest)


# --- many panels -----------------------------------------------------------------------------------------------------


def test_many_seeds_become_a_band_from_the_lowest_to_the_highest(results, monkeypatch):
    monkeypatch.setattr(tables, "LINES", 20)
    shown = {figure.id: figure for figure in figures_of(results, analyze(results))}
    for name, median in (("recall", "the median of the seeds"), ("loss", "the median of the seeds")):
        assert f"Band: from the lowest seed to the highest; bold: {median}." in shown[name].caption
    low, high = (shown["recall"].table[name] for name in ("lowest", "highest"))
    collections = [band for axes in shown["recall"].figure.axes for band in axes.collections]
    assert len(collections) == 3 * 4
    drawn = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in collections])
    assert drawn.min() == pytest.approx(low.min(), abs=1e-4)
    assert drawn.max() == pytest.approx(high.max(), abs=1e-3)


@pytest.mark.slow
def test_a_page_of_thirty_panels_and_1800_runs_stays_under_a_megabyte_and_a_half(tmp_path):
    sizes, noise = "batch_size = [8, 16, 32, 64, 128]", "noise = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]"
    text = (STUDY + SLOPE).replace("batch_size = [32, 128]", sizes).replace("noise = [0.0, 0.4]", noise)
    text = text.replace("seeds = 3", "seeds = 20").replace("seeds = 2, noise = [0.0]", "batches = 2")
    results = made(text, curved_at_all=True)
    assert len(results.runs) == 1800
    page = render(results, analyze(results, checks=False), tmp_path, ["html"])["html"]
    assert page.stat().st_size < 1_500_000


def test_thin_lines_along_an_axis_join_the_runs_of_one_seed(results, drawn):
    (decline_figure,) = (figure for figure in drawn if figure.id == "noise-decline")
    levels, seeds = results.runs["noise"].nunique(), results.runs["seed"].nunique()
    thin = [line for axes in decline_figure.figure.axes for line in axes.lines if line.get_linewidth() == 0.5]
    assert thin
    for line in thin:
        points = np.isfinite(line.get_xydata()).all(axis=1)
        # Each seed is one stretch of all levels, and gaps lie between the seeds.
        stretches = [len(list(part)) for finite, part in itertools.groupby(points) if finite]
        assert stretches == [levels] * seeds
