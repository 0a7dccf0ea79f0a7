"""The same studies on a GPU: the same draws, so the same numbers within float32 rounding, until training amplifies it.

They need what trains and measures alone: no typst, no Dask, no browser.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from device_cases import TRAINING, assert_close, comparable, probed, reading_of, steps_of, trainer_on
from torch import Tensor

from stability.analysis import load_results, summarize
from stability.execute import run
from stability.execute.machine import reproducible_arithmetic
from stability.probes import probe
from stability.train import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")


# --- one step of everything -------------------------------------------------------------------------------------------


def without_parameters(measures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the parameters: where a gradient is nothing but rounding, Adam's first steps have full size."""
    return {name: value for name, value in measures.items() if name != "theta"}


@pytest.mark.parametrize("case", TRAINING)
def test_a_step_on_a_gpu_is_the_step_on_the_cpu_and_the_host_waits_for_nothing(case):
    with reproducible_arithmetic():
        ours, theirs = trainer_on(GPU, TRAINING[case], capture=False), trainer_on(CPU, TRAINING[case])
        (first,), (expected,) = steps_of(ours, 1), steps_of(theirs, 1)
        assert_close(without_parameters(first), without_parameters(expected), share=1e-3)
        torch.cuda.set_sync_debug_mode("error")
        try:
            ours.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", TRAINING)
def test_a_step_replayed_from_a_cuda_graph_gives_the_numbers_of_an_eager_step(case):
    with reproducible_arithmetic():
        captured, eager = (trainer_on(GPU, TRAINING[case], capture=capture) for capture in (True, False))
        steps = captured.warmup_steps + 2
        for ours, theirs in zip(steps_of(captured, steps), steps_of(eager, steps), strict=True):
            assert_close(without_parameters(ours), without_parameters(theirs), share=1e-3)
        assert captured.captured, captured.notes
        assert not eager.captured


# --- one reading of every probe ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained() -> dict[tuple[torch.device, str], Trainer]:
    """Trainers before their first step, whose parameters are equal on both devices, by device and study."""
    return {
        (device, text): trainer_on(device, text)
        for device in (CPU, GPU)
        for text in dict.fromkeys(probed(name, 4) for name in probe)
    }


@pytest.mark.parametrize("name", sorted(probe))
def test_every_probe_reads_on_a_gpu_what_it_reads_on_the_cpu(untrained, name):
    with reproducible_arithmetic():
        ours, theirs = (reading_of(untrained[device, probed(name, 4)], name) for device in (GPU, CPU))
    assert_close(comparable(name, ours), comparable(name, theirs), share=0.02)


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_the_first_steps_on_a_gpu_are_those_on_the_cpu(tiny, tiny_run, tmp_path):
    here, there = load_results(tiny_run), load_results(run(tiny, "cuda", out=tmp_path / "r"))
    for name in ("loss", "gradient_norm", "log_scale", "false_negative_fraction"):
        first, second = (
            results.steps.query("step < 3").set_index(["run", "step"])[name].sort_index() for results in (here, there)
        )
        assert (first - second).abs().max() <= 1e-3 * first.abs().max(), name


def test_every_measure_is_there_on_a_gpu(tiny, tiny_run, tmp_path):
    here, there = load_results(tiny_run), load_results(run(tiny, "cuda", out=tmp_path / "r"))
    for name, measure in here.measures.items():
        if not measure.listed:
            ours, theirs = (summarize(results, name, "final") for results in (here, there))
            assert ours.isna().sum() == theirs.isna().sum(), name
