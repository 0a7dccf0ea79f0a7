"""Ours beside PyHessian's and the dense Hessian, where PyHessian is right and where it is known to fail."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from stability.curvature import pyhessian_check, spectrum
from stability.curvature.crosscheck import DENSE_LIMIT

Params = dict[str, Tensor]


def contrastive(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    image, text = (F.normalize(x @ params[k].T, dim=-1) for x, k in zip(batch, ("u.weight", "v.weight"), strict=True))
    logits = params["log_scale"].exp() * image @ text.T + params["bias"]
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return F.softplus(-sign * logits).sum() / len(logits)


@pytest.fixture
def params() -> Params:
    g = torch.Generator().manual_seed(0)
    return {
        "u.weight": torch.randn(4, 6, generator=g),
        "v.weight": torch.randn(4, 6, generator=g),
        "log_scale": torch.tensor(0.5),
        "bias": torch.tensor(-1.0),
    }


@pytest.fixture
def batches() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(3, 12, 6, generator=g), torch.randn(3, 12, 6, generator=g)


def test_three_ways_agree_on_a_contrastive_loss_with_trained_scalars(params, batches):
    check = pyhessian_check(contrastive, params, batches=batches, trace_probes=40)
    assert check.high == pytest.approx(check.dense_high, rel=1e-9)
    assert check.residual < 1e-8 * abs(check.high)
    assert check.pyhessian_high == pytest.approx(check.dense_high, rel=1e-3)
    assert abs(check.trace - check.dense_trace) <= 3 * check.trace_stderr + 1e-9 * abs(check.dense_trace)
    assert abs(check.pyhessian_trace - check.dense_trace) < 4 * check.pyhessian_trace_stderr


def test_the_scalars_count(params, batches):
    """PyHessian on a module of the towers alone drops them in silence."""
    few = {"batches": batches, "iterations": 5, "trace_probes": 20}
    whole = pyhessian_check(contrastive, params, **few)
    towers = {name: value for name, value in params.items() if name.endswith("weight")}
    fixed = {name: value.double() for name, value in params.items() if name not in towers}
    alone = pyhessian_check(lambda p, batch: contrastive(p | fixed, batch), towers, **few)
    assert whole.dense_trace > alone.dense_trace + 1
    assert whole.pyhessian_trace - alone.pyhessian_trace > 1


def test_a_second_check_of_one_objective_gives_the_same(params, batches):
    """A second PyHessian object on one model doubles the Hessian; each check has a module of its own."""
    few = {"batches": batches, "iterations": 5, "trace_probes": 5}
    assert pyhessian_check(contrastive, params, **few) == pyhessian_check(contrastive, params, **few)


def test_nothing_of_the_caller_changes(params, batches):
    module = torch.nn.Linear(6, 1, dtype=torch.float64)
    before = {name: value.clone() for name, value in params.items()}
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    pyhessian_check(
        lambda p, b: torch.func.functional_call(module, {"weight": p["u.weight"][:1]}, (b[0],)).pow(2).mean(),
        params,
        batches=batches,
        steps=5,
        trace_probes=3,
        iterations=3,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    assert module.training
    assert all(value.grad is None for value in module.parameters())
    for name, value in params.items():
        assert torch.equal(value, before[name])
        assert value.grad is None


def test_the_caller_s_random_numbers_do_not_matter(params, batches):
    first = pyhessian_check(contrastive, params, batches=batches, steps=5, trace_probes=3, iterations=3)
    torch.rand(10)
    assert first == pyhessian_check(contrastive, params, batches=batches, steps=5, trace_probes=3, iterations=3)


def test_a_negative_trace_is_probed_to_the_end():
    """PyHessian's own stopping rule ends it after two probes: then the standard error would be off."""
    g = torch.Generator().manual_seed(2)
    a = torch.randn(20, 20, generator=g, dtype=torch.float64)
    a = (a + a.T) / 2 - 3 * torch.eye(20, dtype=torch.float64)
    check = pyhessian_check(lambda p: p["w"] @ a @ p["w"] / 2, {"w": torch.ones(20)}, trace_probes=200)
    assert check.dense_trace == pytest.approx(a.trace().item())
    per_probe = 2 * (a.square().sum() - a.diagonal().square().sum())
    assert check.pyhessian_trace_stderr == pytest.approx((per_probe / 200).sqrt().item(), rel=0.25)
    assert abs(check.pyhessian_trace - check.dense_trace) < 4 * check.pyhessian_trace_stderr
    assert check.trace == pytest.approx(check.dense_trace)  # 20 unit vectors do, where 200 probes are allowed


def test_a_symmetric_spectrum_misleads_power_iteration_but_not_us():
    """Eigenvalues come in pairs +-s: a power iteration's Rayleigh quotient can stop anywhere between."""
    g = torch.Generator().manual_seed(4)
    a = torch.randn(15, 15, generator=g, dtype=torch.float64)
    objective, params = (lambda p: p["u"] @ a @ p["v"]), {"u": torch.zeros(15), "v": torch.zeros(15)}
    checks = [pyhessian_check(objective, params, seed=seed) for seed in range(4)]
    top = torch.linalg.svdvals(a)[0].item()
    for check in checks:
        assert abs(check.high) == pytest.approx(top, rel=1e-9)
        assert abs(check.dense_high) == pytest.approx(top, rel=1e-9)
    assert max(abs(abs(check.pyhessian_high) - top) for check in checks) > 0.01 * top


def test_unused_and_linear_parameters_are_allowed():
    params = {"w": torch.tensor([1.0, 2.0]), "linear": torch.ones(2), "unused": torch.tensor(5.0)}
    check = pyhessian_check(lambda p: (p["w"] ** 3).sum() + p["linear"].sum(), params)
    assert check.high == pytest.approx(12)
    assert check.dense_trace == pytest.approx(18)
    assert check.pyhessian_high == pytest.approx(12, rel=1e-5)
    assert check.pyhessian_trace == pytest.approx(18)


def test_the_most_negative_eigenvalue_is_the_top_where_it_is_larger():
    check = pyhessian_check(lambda p: -3 * p["a"] ** 2 + p["b"] ** 2, {"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    assert check.high == pytest.approx(-6)
    assert check.dense_high == pytest.approx(-6)
    assert check.pyhessian_high == pytest.approx(-6, rel=1e-4)


def test_a_large_model_has_no_dense_figures():
    size = DENSE_LIMIT + 1
    check = pyhessian_check(lambda p: (p["w"] ** 2).sum(), {"w": torch.ones(size)}, steps=3, trace_probes=2)
    assert math.isnan(check.dense_high)
    assert math.isnan(check.dense_trace)
    assert check.high == pytest.approx(2)
    assert check.trace == pytest.approx(2 * size, rel=2e-3)


def test_ours_does_not_crash_where_peers_do():
    """Density on today's torch, and parameters of no axis."""
    s = spectrum(lambda p: p["t"] ** 2 - p["b"] ** 2, {"t": torch.tensor(1.0), "b": torch.tensor(1.0)}, probes=50)
    density = s.density(torch.linspace(-12, 12, 4001), width=0.5)
    assert_close(torch.trapezoid(density, dx=24 / 4000), torch.tensor(1.0), rtol=1e-4, atol=0)
    assert 0.35 < s.negative_share < 0.65
