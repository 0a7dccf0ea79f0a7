"""Few-shot classifiers on frozen embeddings: closed forms, and the probe in a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY

from stability.grid import Group, runs_of
from stability.probes.few_shot import SHOTS, few_shot_accuracy, shots_of
from stability.study import parse_study
from stability.train import Trainer


def test_shots_are_balanced_and_drawn_without_repetition():
    label = np.arange(60) % 5
    fit = shots_of(label, 3, torch.Generator().manual_seed(1))
    assert len(set(fit.tolist())) == 15
    assert np.bincount(label[fit]).tolist() == [3] * 5


def test_separable_classes_are_found_and_noise_is_at_chance():
    rng = np.random.default_rng(0)
    label = np.arange(4000) % 4
    apart = np.eye(4)[label] + 0.01 * rng.normal(size=(4000, 4))
    noise = rng.normal(size=(4000, 4))
    fit = shots_of(label, 10, torch.Generator().manual_seed(0))
    assert few_shot_accuracy(apart, label, fit) == 1.0
    assert few_shot_accuracy(noise, label, fit) == pytest.approx(0.25, abs=0.04)


def test_embeddings_that_are_not_finite_have_no_accuracy():
    assert np.isnan(few_shot_accuracy(np.full((6, 2), np.nan), np.arange(6) % 2, np.array([0, 1])))


def test_accuracy_does_not_depend_on_the_scale_of_the_embeddings():
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    image = np.eye(3)[label] + rng.normal(size=(90, 3))
    fit = shots_of(label, 5, torch.Generator().manual_seed(0))
    assert few_shot_accuracy(image, label, fit) == few_shot_accuracy(1e-3 * image, label, fit)


def test_the_probe_reads_replicas_one_by_one():
    study = parse_study(TINY.split("[[claims]]")[0] + "\n[probes.few_shot]\ndraws = 1\n", "t.toml", "t")
    runs = tuple(run for run in runs_of(study) if run.arm == "clip" and run.batch_size == 8)[:2]
    pairs = study.pairs()
    together = Trainer(study, Group("g", runs), pairs, torch.device("cpu")).read("few_shot").values
    alone = Trainer(study, Group("g", runs[1:]), pairs, torch.device("cpu")).read("few_shot").values
    assert {name: values.shape for name, values in together.items()} == {
        **{f"few_shot_accuracy_{shots}": (2,) for shots in SHOTS},
        "few_shot_chance": (2,),
    }
    assert (together["few_shot_accuracy_10"] > 0.1).all()
    assert together["few_shot_accuracy_10"][1] == alone["few_shot_accuracy_10"][0]
    assert together["few_shot_chance"].tolist() == pytest.approx([0.1, 0.1])
