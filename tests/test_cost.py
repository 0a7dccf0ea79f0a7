"""What a step costs: bytes in closed form, and times that grow with the work."""

from __future__ import annotations

import time

import pytest
import torch
from conftest import TINY

from stability.grid import Group, runs_of
from stability.probes.cost import saved_bytes, seconds
from stability.study import parse_study
from stability.train import Trainer

CPU = torch.device("cpu")


def test_a_matrix_product_holds_its_two_factors():
    a, b = (torch.ones(32, 32, requires_grad=True) for _ in range(2))
    assert saved_bytes(lambda: (a @ b).sum()) == 2 * 32 * 32 * 4
    assert saved_bytes(lambda: (a @ a).sum()) == 32 * 32 * 4


def test_seconds_are_those_of_the_median_call_without_the_first():
    pauses = iter([0.5, 0.01, 0.01, 0.2])
    assert seconds(lambda: time.sleep(next(pauses)), 3, CPU) == pytest.approx(0.01, abs=0.05)


def test_a_larger_batch_holds_more_and_memory_is_the_same_in_every_seed():
    study = parse_study(TINY.split("[[claims]]")[0] + "\n[probes.cost]\nrepeats = 1\n", "t.toml", "t")
    pairs = study.pairs()

    def read(size: int):
        runs = tuple(run for run in runs_of(study) if run.arm == "clip" and run.batch_size == size)[:3]
        return Trainer(study, Group("g", runs), pairs, CPU).read("cost").values

    small, large = read(8), read(16)
    assert len(set(small["step_megabytes"].tolist())) == 1
    alone = Trainer(study, Group("g", runs_of(study)[:1]), pairs, CPU).read("cost").values
    assert alone["step_megabytes"][0] == small["step_megabytes"][0]  # whatever the width of the group
    assert 1.3 < large["step_megabytes"][0] / small["step_megabytes"][0] < 3
    assert (small["step_milliseconds"] > 0).all()
