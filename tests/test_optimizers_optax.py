"""Lion, LAMB and schedule-free AdamW against optax, step for step in float64 (``pip install -e .[oracles]``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_optimizers import DECAY, LAYOUT, SIZE, WIDTH, parts_of

from stability.study import Train
from stability.train.optimizer import Recipe, apply_update_, evaluation_point, initial_state

optax = pytest.importorskip("optax", reason="needs the extra oracles: pip install -e .[oracles]")
jax = pytest.importorskip("jax", reason="needs the extra oracles: pip install -e .[oracles]")

STEPS = 12
RATES = (0.001, 0.02, 0.6)
BETAS = (0.8, 0.95)
MASK = {part.name: bool(part.decay) for part in LAYOUT}


@pytest.fixture(autouse=True)
def float64():
    """Numbers of 64 bits in JAX, as in the other textbook loops."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def arrays_of(row: torch.Tensor) -> dict:
    return {name: jax.numpy.asarray(value.numpy()) for name, value in parts_of(row).items()}


def largest_difference(train: Train, theirs_of, evaluate=lambda state, params: params) -> float:
    """Return the largest difference from optax over all steps, relative to the largest entry of each parameter."""
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(len(RATES), WIDTH, dtype=torch.float64)
    start[:, :SIZE] = torch.randn(len(RATES), SIZE, generator=generator, dtype=torch.float64)
    theta, state = start.clone(), initial_state(train, start, LAYOUT)
    recipes = [Recipe.of_all(train, [(part.size, part.decay, 1.0) for part in LAYOUT], start, LAYOUT)]
    transforms = [theirs_of(rate) for rate in RATES]
    params = [arrays_of(row) for row in start]
    states = [transform.init(each) for transform, each in zip(transforms, params, strict=True)]
    worst = 0.0
    for count in range(1, STEPS + 1):
        gradient = torch.zeros_like(start)
        size = 30.0 if count == 8 else 0.3
        gradient[:, :SIZE] = size * torch.randn(len(RATES), SIZE, generator=generator, dtype=torch.float64)
        apply_update_(theta, gradient.clone(), state, torch.tensor(RATES, dtype=torch.float64), recipes)
        measured = evaluation_point(theta, state, train)
        for row, transform in enumerate(transforms):
            updates, states[row] = transform.update(arrays_of(gradient[row]), states[row], params[row])
            params[row] = optax.apply_updates(params[row], updates)
            for ours, expected in ((theta, params[row]), (measured, evaluate(states[row], params[row]))):
                for name, value in parts_of(ours[row]).items():
                    gap = np.abs(value.numpy() - np.asarray(expected[name])).max()
                    worst = max(worst, gap / np.abs(np.asarray(expected[name])).max())
    return float(worst)


def test_lion_is_optax_s():
    worst = largest_difference(
        Train(steps=STEPS, optimizer="lion", betas=BETAS, weight_decay=DECAY),
        lambda rate: optax.lion(rate, *BETAS, weight_decay=DECAY, mask=MASK),
    )
    assert worst < 1e-13


def test_lamb_is_optax_s():
    worst = largest_difference(
        Train(steps=STEPS, optimizer="lamb", betas=BETAS, weight_decay=DECAY),
        lambda rate: optax.lamb(rate, *BETAS, eps=1e-6, weight_decay=DECAY, mask=MASK),
    )
    assert worst < 1e-13


def test_schedule_free_is_optax_s_where_both_correct_the_bias_alike():
    # Optax corrects v and weighs by the rate alone; the paper's rate contains the correction. Equal at beta2 = 0.
    def theirs(rate):
        base = optax.chain(
            optax.scale_by_rms(decay=0.0, eps=1e-3, eps_in_sqrt=False),
            optax.add_decayed_weights(DECAY, MASK),
            optax.scale_by_learning_rate(rate),
        )
        return optax.contrib.schedule_free(base, rate, b1=0.8)

    worst = largest_difference(
        Train(steps=STEPS, optimizer="schedule_free", betas=(0.8, 0.0), eps=1e-3, weight_decay=DECAY),
        theirs,
        optax.contrib.schedule_free_eval_params,
    )
    assert worst < 1e-13
