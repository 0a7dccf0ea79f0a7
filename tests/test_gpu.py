"""The same study on a GPU: the same draws, so the same numbers within float32 rounding, until training amplifies it."""

from __future__ import annotations

import pytest
import torch

from stability.analysis import read, summarise
from stability.execute import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def test_the_first_steps_on_a_gpu_are_those_on_the_cpu(tiny, tiny_run, tmp_path):
    here, there = read(tiny_run), read(run(tiny, "cuda", out=tmp_path / "r"))
    for name in ("loss", "gradient_norm", "log_scale", "duplicate_share"):
        first, second = (
            results.steps.query("step < 3").set_index(["run", "step"])[name].sort_index() for results in (here, there)
        )
        assert (first - second).abs().max() <= 1e-3 * first.abs().max(), name


def test_every_measure_is_there_on_a_gpu(tiny, tiny_run, tmp_path):
    here, there = read(tiny_run), read(run(tiny, "cuda", out=tmp_path / "r"))
    for name, measure in here.measures.items():
        if not measure.listed:
            ours, theirs = (summarise(results, name, "final") for results in (here, there))
            assert ours.isna().sum() == theirs.isna().sum(), name
