"""Equal samples seen: larger batches take fewer steps, and everything that hangs on the length of a run follows."""

from __future__ import annotations

import numpy as np
import pytest

from stability.analysis import load_results, summarize
from stability.execute import run
from stability.grid import runs_of
from stability.registry import InputError
from stability.report.model import lengths_in_words
from stability.study import parse_study


def matched(tiny_text: str, steps: int = 16, warmup: int = 4):
    train = f'steps = {steps}\nwarmup = {warmup}\nbudget = "samples"\n'
    return parse_study(tiny_text.replace("steps = 8\nwarmup = 2\n", train), "t", "t")


@pytest.fixture(scope="module")
def results(tiny_text, tmp_path_factory):
    return load_results(run(matched(tiny_text), "cpu", out=tmp_path_factory.mktemp("matched") / "run"))


def test_steps_times_batch_size_is_the_same_at_every_batch_size(results):
    lasted = results.steps.dropna(subset=["loss"]).groupby("run")["step"].max() + 1
    size = results.runs.set_index("run")["batch_size"]
    assert set(lasted * size[lasted.index]) == {16 * 8}
    assert results.study.lengths(8) == (16, 4)
    assert results.study.lengths(16) == (8, 2)
    assert lengths_in_words(results.study) == "8 to 16 steps, equal samples seen"


def test_the_late_window_and_the_area_are_those_of_each_run(results):
    late, area = (summarize(results, "loss", how) for how in ("tail_mean", "mean_after_warmup"))
    for batch_size, (window, warmup) in {8: ((13, 14, 15), 4), 16: ((7,), 2)}.items():
        one = results.runs[results.runs["batch_size"] == batch_size]["run"].iloc[0]
        rows = results.steps[results.steps["run"] == one].dropna(subset=["loss"]).set_index("step")["loss"]
        np.testing.assert_allclose(late[one], rows[list(window)].mean(), rtol=1e-6)
        after = rows[rows.index >= warmup]
        np.testing.assert_allclose(area[one], np.trapezoid(after, after.index) / (after.index[-1] - warmup), rtol=1e-6)


def test_a_run_is_the_one_that_a_study_of_its_own_length_would_train(tiny_text):
    ids = [
        {run.id for run in runs_of(study) if run.batch_size == 16}
        for study in (matched(tiny_text), parse_study(tiny_text, "t", "t"))
    ]
    assert ids[0] == ids[1] != set()


def test_a_batch_too_large_for_its_warm_up_is_refused(tiny_text):
    with pytest.raises(InputError, match=r"t: train\.steps: got 5, which is 2 at batch size 16; allowed: more than"):
        matched(tiny_text, steps=5)
