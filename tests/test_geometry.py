"""Geometry of embeddings against closed forms: effective rank, variance of the shift, separability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from stability.grid import Group, runs_of
from stability.probes.embeddings import effective_rank, shift_variance
from stability.probes.separability import linear_separability
from stability.train import Trainer


def test_the_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    g = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(30, 4, generator=g, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(7, 4, generator=g, dtype=torch.float64))
    values = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    # Shares 1/2, 1/4, 1/8, 1/8: an entropy of 1.75 bits.
    assert_close(effective_rank(u @ values.diag() @ v.T).item(), 2**1.75, rtol=1e-6, atol=0)
    assert_close(effective_rank(3 * u @ v.T).item(), 4.0, rtol=1e-6, atol=0)


def test_a_replica_that_is_not_finite_has_no_rank_and_leaves_the_others_theirs():
    rows = torch.stack([torch.eye(3), torch.full((3, 3), math.nan)])
    assert_close(torch.vmap(effective_rank)(rows), torch.tensor([3.0, math.nan]), equal_nan=True)


def test_a_common_translation_has_no_shift_variance():
    g = torch.Generator().manual_seed(1)
    image = torch.randn(50, 5, generator=g, dtype=torch.float64)
    text = torch.randn(50, 5, generator=g, dtype=torch.float64)
    assert shift_variance(image, image + torch.arange(5)) < 1e-24
    x = image - text
    assert_close(shift_variance(image, text), x.square().sum(1).mean() - x.mean(0).square().sum())


def test_a_gap_separates_and_equal_clouds_do_not():
    rng = np.random.default_rng(0)
    cloud, other = rng.standard_normal((2, 400, 6))
    fit = np.arange(400) % 2 == 0
    gap = np.array([6.0, 0, 0, 0, 0, 0])
    assert linear_separability(cloud, other + 2 * gap, fit) == 1.0
    assert abs(linear_separability(cloud, other, fit) - 0.5) < 0.1
    # Two normal clouds a distance d apart: the best plane is right with probability Phi(d / 2).
    assert linear_separability(cloud, other + gap / 3, fit) == pytest.approx(0.841, abs=0.05)
    assert math.isnan(linear_separability(cloud * np.nan, other, fit))


def test_the_probes_measure_these_on_the_held_out_pairs(tiny):
    runs = tuple(run for run in runs_of(tiny) if (run.arm, run.batch_size, run.noise) == ("clip", 8, 0.0))[:2]
    trainer = Trainer(tiny, Group("g", runs), tiny.pairs(), torch.device("cpu"))
    trainer.step()
    population = trainer.population
    params = population.spec.layout.unflatten(population.theta.detach()[1])
    image = population.spec.embed_image(params, population.held_out.image)
    text = population.spec.embed_text(params, population.held_out.text)
    values = {name: value[1] for name, value in trainer.read("geometry").values.items()}
    assert_close(values["effective_rank_image"], effective_rank(image), rtol=1e-4, atol=0)
    assert_close(values["effective_rank_text"], effective_rank(text), rtol=1e-4, atol=0)
    assert_close(values["modality_shift_variance"], values["alignment"] - values["modality_gap"] ** 2)
    assert_close(values["separation"], 2 * values["margin"])
    share = trainer.read("separability").values["modality_separability"]
    assert ((share >= 0.4) & (share <= 1)).all()
    alone = linear_separability(
        image.double().numpy(), text.double().numpy(), np.zeros(len(image), bool) | (np.arange(len(image)) % 2 == 0)
    )
    assert abs(share[1] - alone) < 0.1
