"""Hessian-vector products and spectra against the dense Hessian of small dual encoders and of quadratics."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from stability.curvature import adaptive_threshold, hvp, spectrum
from stability.curvature.graphs import CPU_BYTES, bytes_of
from stability.curvature.lanczos import BLOCKED_FROM, lanczos
from stability.curvature.products import replica_slices
from stability.registry import InputError

Params = dict[str, Tensor]


def dual_encoder(seed: int = 0, features: int = 6, width: int = 8, dim: int = 4) -> Params:
    """Two tanh MLPs and the trained 0-d scalars of a sigmoid loss, in float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    params = {}
    for tower in ("image", "text"):
        params[f"{tower}.0.weight"] = normal(width, features) / math.sqrt(features)
        params[f"{tower}.0.bias"] = 0.1 * normal(width)
        params[f"{tower}.1.weight"] = normal(dim, width) / math.sqrt(width)
    params["loss.log_scale"] = torch.tensor(1.0 + 0.1 * seed, dtype=torch.float64)
    params["loss.bias"] = torch.tensor(-1.0, dtype=torch.float64)
    return params


def pairs(*shape: int, features: int = 6, seed: int = 99) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(*shape, features, generator=g, dtype=torch.float64)
    noise = torch.randn(*shape, features, generator=g, dtype=torch.float64)
    return {"image": image, "text": image + 0.5 * noise}


def sigmoid_loss(params: Params, batch: dict[str, Tensor]) -> Tensor:
    def embed(tower: str) -> Tensor:
        hidden = torch.tanh(batch[tower] @ params[f"{tower}.0.weight"].T + params[f"{tower}.0.bias"])
        return F.normalize(hidden @ params[f"{tower}.1.weight"].T, dim=-1)

    logits = params["loss.log_scale"].exp() * embed("image") @ embed("text").T + params["loss.bias"]
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return F.softplus(-sign * logits).sum() / len(logits)


ONE_BATCH = pairs(16)


def objective(params: Params) -> Tensor:
    return sigmoid_loss(params, ONE_BATCH)


def flat_of(tensors: Params) -> Tensor:
    return torch.cat([value.reshape(-1) for value in tensors.values()])


def unflat(flat: Tensor, params: Params) -> Params:
    parts = flat.split([value.numel() for value in params.values()])
    return {name: part.reshape(params[name].shape) for name, part in zip(params, parts, strict=True)}


def dense(f, params: Params, names: list[str] | None = None) -> Tensor:
    """The Hessian by forward over reverse mode, one block per pair of parameters."""
    names = names or list(params)
    fixed = {name: value for name, value in params.items() if name not in names}
    blocks = torch.func.hessian(lambda free: f({**free, **fixed}))({name: params[name] for name in names})
    rows = [torch.cat([blocks[a][b].reshape(params[a].numel(), params[b].numel()) for b in names], 1) for a in names]
    return torch.cat(rows)


PARAMS = dual_encoder()
HESSIAN = dense(objective, PARAMS)
EIGENVALUES = torch.linalg.eigvalsh(HESSIAN)
NORM = EIGENVALUES.abs().max().item()
P = len(EIGENVALUES)


def quadratic(diagonal: Tensor):
    return lambda params: (diagonal * params["w"] ** 2).sum() / 2


def stacked(*replicas: Params) -> Params:
    return {name: torch.stack([replica[name] for replica in replicas]) for name in replicas[0]}


# -- products --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (1,)])
def test_products_equal_the_dense_hessian_times_each_vector(lead):
    flat = torch.randn(*lead, P, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sizes = [value.numel() for value in PARAMS.values()]
    parts = flat.split(sizes, dim=-1)
    vectors = {name: part.reshape(lead + PARAMS[name].shape) for name, part in zip(PARAMS, parts, strict=True)}
    products = hvp(objective, PARAMS, vectors)
    assert {name: value.shape for name, value in products.items()} == {n: v.shape for n, v in vectors.items()}
    got = torch.cat([products[name].reshape(*lead, -1) for name in PARAMS], dim=-1)
    assert_close(got, flat @ HESSIAN, rtol=0, atol=1e-12 * NORM)


def test_products_of_many_vectors_do_not_depend_on_their_number():
    vectors = {name: torch.stack([value.cos()] * 100) for name, value in PARAMS.items()}
    many = hvp(objective, PARAMS, vectors)
    one = hvp(objective, PARAMS, {name: value[0] for name, value in vectors.items()})
    for name, value in one.items():
        assert_close(many[name][63:65], value.expand(2, *value.shape), rtol=0, atol=1e-12 * NORM)


def test_products_of_linear_constant_and_unused_parameters_are_zero():
    params = {"used": torch.ones(2), "linear": torch.ones(3), "unused": torch.tensor(1.0)}
    vectors = {name: torch.ones_like(value) for name, value in params.items()}
    products = hvp(lambda p: (p["used"] ** 2).sum() + p["linear"].sum(), params, vectors)
    assert_close(products, {"used": torch.full((2,), 2.0), "linear": torch.zeros(3), "unused": torch.tensor(0.0)})
    closed_over = torch.ones(3, requires_grad=True)
    for f in (lambda p: p["linear"].sum(), lambda p: torch.tensor(1.0), lambda p: p["linear"] @ closed_over):
        assert all((value == 0).all() for value in hvp(f, params, vectors).values())
    assert closed_over.grad is None


def test_products_work_for_attention_modules_without_changing_them():
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    params = {name: value.detach() for name, value in module.named_parameters()}
    tokens = torch.randn(3, 5, 8, dtype=torch.float64)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def f(p: Params) -> Tensor:
        return torch.func.functional_call(module, p, (tokens,)).pow(3).mean()

    direction = {name: torch.sin(value) for name, value in params.items()}
    h = 1e-5
    gradient = torch.func.grad(f)
    ahead = gradient({name: value + h * direction[name] for name, value in params.items()})
    behind = gradient({name: value - h * direction[name] for name, value in params.items()})
    difference = {name: (ahead[name] - behind[name]) / (2 * h) for name in params}
    assert_close(hvp(f, params, direction), difference, rtol=1e-6, atol=1e-7)
    assert module.training
    assert all(value.grad is None for value in module.parameters())
    assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_nothing_of_the_caller_changes():
    params = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    before = {name: value.detach().clone() for name, value in params.items()}
    state, grad_mode = torch.get_rng_state(), torch.is_grad_enabled()
    with torch.no_grad():
        result = spectrum(objective, params, steps=5, top=2)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == grad_mode
    for name, value in params.items():
        assert torch.equal(value, before[name])
        assert value.grad is None
    assert not any(v.requires_grad for v in vars(result).values() if isinstance(v, Tensor))


# -- extremes --------------------------------------------------------------------------------------------


def test_extremes_by_sign_are_exact_once_converged():
    s = spectrum(objective, PARAMS, steps=80, top=4)
    assert_close(s.eigenvalues_high, EIGENVALUES.flip(0)[:4], rtol=0, atol=1e-8 * NORM)
    assert_close(s.eigenvalues_low, EIGENVALUES[:4], rtol=0, atol=1e-8 * NORM)
    assert EIGENVALUES[0] < 0 < EIGENVALUES[-1]
    assert s.converged_high.all()
    assert s.converged_low.all()


@pytest.mark.parametrize("steps", [4, 10, 25, 60])
def test_residuals_are_those_of_the_dense_hessian_and_bound_the_error(steps):
    s = spectrum(objective, PARAMS, steps=steps, top=3)
    for values, residuals, vectors in (
        (s.eigenvalues_high, s.residuals_high, s.vectors_high),
        (s.eigenvalues_low, s.residuals_low, s.vectors_low),
    ):
        ritz = torch.stack([flat_of({name: value[k] for name, value in vectors.items()}) for k in range(3)])
        assert_close(ritz @ ritz.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
        true = (ritz @ HESSIAN - values[:, None] * ritz).norm(dim=-1)
        assert_close(residuals, true, rtol=1e-8, atol=1e-12 * NORM)
        error = (EIGENVALUES[:, None] - values).abs().amin(0)
        assert (error <= residuals + 1e-12 * NORM).all()


def test_converged_flags_follow_the_residuals():
    early, late = spectrum(objective, PARAMS, steps=4), spectrum(objective, PARAMS, steps=60)
    assert not early.converged_high
    assert not early.converged_low
    assert late.converged_high
    assert late.converged_low
    assert early.residuals_high > 1e-3 * NORM


def test_no_ghost_copies_at_200_steps():
    diagonal = torch.cat([torch.linspace(-1, 1, 298, dtype=torch.float64), torch.tensor([50.0, 90.0]).double()])
    s = spectrum(quadratic(diagonal), {"w": torch.zeros(300, dtype=torch.float64)}, steps=200, top=5)
    assert_close(s.eigenvalues_high[:2], torch.tensor([90.0, 50.0], dtype=torch.float64), rtol=1e-12, atol=0)
    assert (s.eigenvalues_high[2:] <= 1 + 1e-12).all()
    assert (s.nodes > 2).sum() == 2
    assert s.nodes.diff(dim=-1).min() > 0


def test_a_multiple_eigenvalue_appears_as_often_as_it_is():
    """Where the Krylov space ends early, the run goes on in its complement and finds the real copies."""
    diagonal = torch.tensor([5.0, 5.0, 5.0, 2.0, 2.0, -1.0], dtype=torch.float64)
    s = spectrum(quadratic(diagonal), {"w": torch.zeros(6, dtype=torch.float64)}, top=6)
    assert_close(s.eigenvalues_high, diagonal, rtol=0, atol=1e-12)
    assert_close(s.eigenvalues_low, diagonal.flip(0), rtol=0, atol=1e-12)
    assert s.converged_high.all()
    assert s.converged_low.all()


def test_a_symmetric_spectrum_gives_both_ends():
    """A bilinear form: power iteration has no limit here."""
    g = torch.Generator().manual_seed(3)
    a = torch.randn(12, 9, generator=g, dtype=torch.float64)
    params = {"u": torch.zeros(12, dtype=torch.float64), "v": torch.zeros(9, dtype=torch.float64)}
    s = spectrum(lambda p: p["u"] @ a @ p["v"], params, top=9)
    singular = torch.linalg.svdvals(a)
    assert_close(s.eigenvalues_high, singular, rtol=0, atol=1e-10)
    assert_close(s.eigenvalues_low, -singular, rtol=0, atol=1e-10)
    assert s.trace.abs() < 3 * s.trace_stderr


def test_scaling_the_loss_scales_the_spectrum_and_keeps_the_shares():
    s, scaled = spectrum(objective, PARAMS), spectrum(lambda p: objective(p) / 64, PARAMS)
    assert_close(scaled.eigenvalues_high * 64, s.eigenvalues_high)
    assert_close(scaled.trace * 64, s.trace)
    assert_close(scaled.negative_share, s.negative_share, rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_parameters_converge_within_the_default_steps(seed):
    params, batch = dual_encoder(seed, features=12, width=24, dim=8), pairs(32, features=12, seed=seed)
    s = spectrum(lambda p: sigmoid_loss(p, batch), params)
    gradient = torch.func.grad(lambda flat: sigmoid_loss(unflat(flat, params), batch))
    exact = torch.linalg.eigvalsh(torch.func.jacrev(gradient, chunk_size=64)(flat_of(params)))
    assert len(exact) > 1000
    assert s.converged_high
    assert s.converged_low
    assert_close(s.eigenvalues_high[0], exact[-1], rtol=0, atol=1e-8 * exact.abs().max().item())
    assert_close(s.eigenvalues_low[0], exact[0], rtol=0, atol=1e-8 * exact.abs().max().item())
    assert abs(s.trace - exact.sum()) < 3.5 * s.trace_stderr


# -- density ---------------------------------------------------------------------------------------------


def test_quadrature_integrates_moments_up_to_degree_2k_minus_1_exactly():
    """From the start v that the weights themselves reveal: here, the dense moments of the same start."""
    diagonal = torch.linspace(-1, 3, 40, dtype=torch.float64)
    params = {"w": torch.zeros(40, dtype=torch.float64)}
    full = spectrum(quadratic(diagonal), params, steps=40)
    assert_close(full.nodes[0], diagonal, rtol=0, atol=1e-10)  # so full.weights are the squared start
    six = spectrum(quadratic(diagonal), params, steps=6)
    moments = [(six.weights[0] @ six.nodes[0] ** d, full.weights[0] @ diagonal**d) for d in range(14)]
    for degree in range(12):
        assert_close(*moments[degree], rtol=1e-9, atol=1e-9)
    assert abs(moments[12][0] - moments[12][1]) > 1e-4


def test_density_integrates_to_one_and_averages_to_the_share_of_eigenvalues():
    s = spectrum(objective, PARAMS, steps=P, probes=20)
    width = 0.02 * NORM
    grid = torch.linspace(EIGENVALUES[0] - 6 * width, EIGENVALUES[-1] + 6 * width, 400, dtype=torch.float64)
    density = s.density(grid, width)
    assert density.shape == (400,)
    assert_close(torch.trapezoid(density, grid), torch.tensor(1.0, dtype=torch.float64), rtol=1e-6, atol=0)
    exact = torch.exp(-(((grid[:, None] - EIGENVALUES) / width) ** 2) / 2).mean(1) / (width * math.sqrt(2 * math.pi))
    assert torch.trapezoid((density - exact).abs(), grid) < 0.1
    assert abs(s.negative_share - (EIGENVALUES < -1e-10).double().mean()) < 0.05


def test_rounding_around_zero_is_no_negative_curvature():
    """A Hessian of rank 3 in 60 dimensions has 57 zeros whose computed signs mean nothing."""
    g = torch.Generator().manual_seed(5)
    a = torch.randn(3, 60, generator=g)
    s = spectrum(lambda p: (a @ p["w"]).square().sum(), {"w": torch.zeros(60)}, steps=30)
    assert s.nodes.min() < 0 or s.nodes.min() > -1e-3
    assert s.negative_share == 0
    assert_close(s.weights.sum(), torch.tensor(1.0))


# -- trace -----------------------------------------------------------------------------------------------


def test_trace_lies_within_three_standard_errors():
    s = spectrum(objective, PARAMS, trace_probes=64)
    assert (s.trace - HESSIAN.trace()).abs() < 3 * s.trace_stderr


def test_standard_error_of_the_trace_covers_as_often_as_it_says():
    """Hutchinson with Rademacher probes has variance 2 (|H|_F^2 - sum H_ii^2) per probe."""
    runs = [spectrum(objective, PARAMS, steps=1, trace_probes=32, seed=seed) for seed in range(40)]
    off_diagonal = HESSIAN.square().sum() - HESSIAN.diagonal().square().sum()
    expected = (2 * off_diagonal / 32).sqrt()
    typical = torch.stack([run.trace_stderr for run in runs]).square().mean().sqrt()
    assert_close(typical, expected, rtol=0.1, atol=0)
    errors = torch.stack([(run.trace - HESSIAN.trace()) / run.trace_stderr for run in runs])
    assert 0.85 <= (errors.abs() < 2.04).double().mean() <= 1.0  # 95% by Student with 31 degrees of freedom
    assert 0.7 < errors.std() < 1.4


def test_a_negative_trace_uses_all_probes():
    diagonal = -torch.linspace(1, 2, 50, dtype=torch.float64)
    w = {"w": torch.zeros(50, dtype=torch.float64)}
    s = spectrum(lambda p: quadratic(diagonal)(p) - p["w"][0] * p["w"][1:].sum() / 7, w, steps=10, trace_probes=30)
    assert s.trace < 0
    assert (s.trace - diagonal.sum()).abs() < 3 * s.trace_stderr
    assert s.hvps == 10 + 30 + 2


def test_with_as_many_steps_as_parameters_the_trace_is_exact_and_takes_no_probe():
    s = spectrum(objective, PARAMS, steps=P, trace_probes=4)
    assert_close(s.trace, HESSIAN.trace(), rtol=0, atol=1e-12 * NORM)
    assert 0 < s.trace_stderr < 1e-13 * NORM
    assert s.hvps == P + 2


def test_the_trace_is_that_of_the_krylov_space_plus_an_estimate_of_the_rest():
    """Ten outliers over a bulk: after 30 steps the variance is that of what is left, 2 |H'|_F^2 at most."""
    bulk = torch.linspace(-0.01, 0.02, 290, dtype=torch.float64)
    eigenvalues = torch.cat([bulk, torch.linspace(5, 50, 10, dtype=torch.float64)])
    g = torch.Generator().manual_seed(2)
    q, _ = torch.linalg.qr(torch.randn(300, 300, generator=g, dtype=torch.float64))
    matrix = q @ eigenvalues.diag() @ q.T
    w = {"w": torch.zeros(300, dtype=torch.float64)}

    def of(seed: int):
        return spectrum(lambda p: p["w"] @ matrix @ p["w"] / 2, w, steps=30, trace_probes=16, seed=seed)

    runs = [of(seed) for seed in range(30)]
    errors = torch.stack([run.trace - eigenvalues.sum() for run in runs])
    stderrs = torch.stack([run.trace_stderr for run in runs])
    assert stderrs.max() < 1.5 * (2 * bulk.square().sum() / 16).sqrt()
    assert (errors.abs() < 2.13 * stderrs).double().mean() >= 0.85  # 95% by Student with 15 degrees of freedom
    assert 0.7 < (errors / stderrs).std() < 1.4
    plain = (2 * (matrix.square().sum() - matrix.diagonal().square().sum()) / 16).sqrt()
    assert stderrs.max() < plain / 100


def test_with_as_many_probes_as_parameters_the_trace_is_exact():
    s = spectrum(objective, PARAMS, block=["loss.log_scale", "loss.bias"])
    sub = dense(objective, PARAMS, ["loss.log_scale", "loss.bias"])
    assert_close(s.trace, sub.trace(), rtol=1e-12, atol=0)
    assert s.trace_stderr == 0


def test_one_probe_has_no_standard_error():
    s = spectrum(objective, PARAMS, steps=2, trace_probes=1)
    assert s.trace.isfinite()
    assert s.trace_stderr.isnan()


# -- blocks, preconditioner, batches, replicas -----------------------------------------------------------

TOWERS = [name for name in PARAMS if not name.startswith("loss.")]
SCALARS = ["loss.log_scale", "loss.bias"]


@pytest.mark.parametrize(
    ("block", "names"),
    [
        (TOWERS, TOWERS),
        (lambda name: name.startswith("loss."), SCALARS),
        ({"loss.bias"}, ["loss.bias"]),
        ("text.1.weight", ["text.1.weight"]),
    ],
    ids=["towers", "scalars", "one scalar", "one layer"],
)
def test_a_block_is_the_dense_sub_block(block, names):
    exact = torch.linalg.eigvalsh(dense(objective, PARAMS, names))
    s = spectrum(objective, PARAMS, block=block)
    assert_close(s.eigenvalues_high[0], exact[-1], rtol=0, atol=1e-8 * NORM)
    assert_close(s.eigenvalues_low[0], exact[0], rtol=0, atol=1e-8 * NORM)
    assert list(s.vectors_high) == names


def test_leaving_out_the_scalars_changes_the_sharpness():
    """A peer drops parameters outside its model in silence; here all count unless a block says otherwise."""
    whole, towers = spectrum(objective, PARAMS), spectrum(objective, PARAMS, block=TOWERS)
    assert whole.eigenvalues_high > 1.03 * towers.eigenvalues_high


def test_preconditioned_extremes_solve_the_generalised_problem():
    g = torch.Generator().manual_seed(8)
    p = {k: torch.rand(v.shape, generator=g, dtype=torch.float64) * 3 + 0.01 for k, v in PARAMS.items()}
    s = spectrum(objective, PARAMS, preconditioner=p, steps=P, top=2)
    exact = torch.linalg.eigvals(HESSIAN / flat_of(p)[:, None]).real.sort().values
    assert_close(s.eigenvalues_high, exact.flip(0)[:2], rtol=1e-8, atol=0)
    assert_close(s.eigenvalues_low, exact[:2], rtol=1e-8, atol=0)
    exact_trace = (HESSIAN.diagonal() / flat_of(p)).sum()
    assert (s.trace - exact_trace).abs() < 4 * s.trace_stderr
    towers = spectrum(objective, PARAMS, preconditioner=p, block=TOWERS, steps=P)
    scale = flat_of({name: p[name] for name in TOWERS}).rsqrt()
    sub = scale[:, None] * dense(objective, PARAMS, TOWERS) * scale
    assert_close(towers.eigenvalues_high[0], torch.linalg.eigvalsh(sub)[-1], rtol=1e-8, atol=0)


def test_batches_give_the_hessian_of_the_mean_over_whole_batches():
    batches = pairs(5, 8)

    def mean(params: Params) -> Tensor:
        each = [sigmoid_loss(params, {"image": batches["image"][m], "text": batches["text"][m]}) for m in range(5)]
        return torch.stack(each).mean()

    exact = torch.linalg.eigvalsh(dense(mean, PARAMS))
    for options in ({}, {"chunk_size": 1}, {"chunk_size": 2, "retain_graph": False}, {"chunk_size": 9}):
        s = spectrum(sigmoid_loss, PARAMS, batches=batches, steps=60, trace_probes=1, **options)
        assert_close(s.eigenvalues_high[0], exact[-1], rtol=1e-9, atol=0)
        assert_close(s.eigenvalues_low[0], exact[0], rtol=1e-9, atol=0)
    # A batch is coupled: one batch of 40 is another objective than 5 of 8.
    whole = {name: value.reshape(1, 40, 6) for name, value in batches.items()}
    assert abs(spectrum(sigmoid_loss, PARAMS, batches=whole).eigenvalues_high / exact[-1] - 1) > 0.1


def test_one_batch_at_a_time_asks_nothing_of_the_objective():
    """With chunk_size=1 and one replica there is no vmap, so even data-dependent Python works."""

    def branching(params: Params, batch: dict[str, Tensor]) -> Tensor:
        return sigmoid_loss(params, batch) * (1 if float(batch["image"].sum()) > 0 else 2)

    batches = pairs(2, 8)
    s = spectrum(branching, PARAMS, batches=batches, chunk_size=1, steps=20)
    weights = [1 if float(x.sum()) > 0 else 2 for x in batches["image"]]
    weighted = {**batches, "weight": torch.tensor(weights)}
    twin = spectrum(lambda p, b: b["weight"] * sigmoid_loss(p, b), PARAMS, batches=weighted, steps=20)
    assert_close(s.eigenvalues_high, twin.eigenvalues_high)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("room", [CPU_BYTES, 1], ids=["all at once", "one by one"])
def test_replicas_equal_a_loop_over_replicas(monkeypatch, chunk_size, room):
    monkeypatch.setattr("stability.curvature.products.CPU_BYTES", room)
    members = [dual_encoder(seed) for seed in range(3)]
    shared = pairs(3, 3, 8)
    precondition = [{name: value.abs() + 0.1 for name, value in member.items()} for member in members]
    together = spectrum(
        sigmoid_loss,
        stacked(*members),
        batched=True,
        batches=shared,
        preconditioner=stacked(*precondition),
        block=lambda name: not name.endswith("0.bias"),
        chunk_size=chunk_size,
        steps=30,
        probes=2,
        top=2,
    )
    assert together.nodes.shape == together.weights.shape == (3, 2, 30)
    for r, member in enumerate(members):
        alone = spectrum(
            sigmoid_loss,
            member,
            batches={name: value[r] for name, value in shared.items()},
            preconditioner=precondition[r],
            block=lambda name: not name.endswith("0.bias"),
            steps=30,
            probes=2,
            top=2,
        )
        for field in dataclasses.fields(alone):
            one, many = getattr(alone, field.name), getattr(together, field.name)
            if isinstance(one, Tensor):
                assert_close(many[r], one, rtol=1e-6, atol=1e-8)
        for name, value in alone.vectors_high.items():
            assert_close(together.vectors_high[name][r], value, rtol=1e-5, atol=1e-6)
        assert together.hvps == alone.hvps
    grid = torch.linspace(-1, 5, 11, dtype=torch.float64)
    assert together.density(grid, 0.5).shape == (3, 11)
    assert together.negative_share.shape == together.trace.shape == (3,)


def test_replicas_without_batches_share_the_closed_over_data():
    members = [dual_encoder(seed) for seed in range(2)]
    together = spectrum(objective, stacked(*members), batched=True)
    for r, member in enumerate(members):
        assert_close(together.eigenvalues_high[r], spectrum(objective, member).eigenvalues_high, rtol=1e-9, atol=0)


def test_replicas_of_large_work_go_one_by_one_with_the_numbers_of_one_alone():
    """An evaluation that fills the cache by itself: no replica shares a call with others, so bits are its own."""
    x = torch.linspace(0, 1, CPU_BYTES // 16, dtype=torch.float64)

    def heavy(params: Params) -> Tensor:
        return (params["w"].sin().sum() * x).square().mean() + (params["w"] ** 3).sum()

    members = [{"w": torch.linspace(0.1, 1 + r, 5, dtype=torch.float64)} for r in range(3)]
    together = spectrum(heavy, stacked(*members), batched=True, steps=4, trace_probes=2)
    for r, member in enumerate(members):
        alone = spectrum(heavy, member, steps=4, trace_probes=2)
        assert torch.equal(together.nodes[r], alone.nodes)
        assert torch.equal(together.trace[r], alone.trace)


@given(st.integers(1, 40), st.integers(1, 8))
def test_groups_are_even_and_none_is_left_with_one_replica_beside_larger_ones(replicas, most):
    groups = replica_slices(replicas, most)
    sizes = [group.stop - group.start for group in groups]
    assert [place for group in groups for place in range(group.start, group.stop)] == list(range(replicas))
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 1 or max(sizes) == 1


def test_the_size_of_the_work_is_parameters_and_results_without_views():
    w = torch.ones(100, 100)
    assert bytes_of(lambda: (w @ w.T).exp().view(-1).sum(), {"w": w}) == 3 * w.numel() * 4 + 4


def test_a_long_basis_is_orthogonal_to_rounding_and_without_ghosts():
    """Where only what is present of the span is taken away: outliers that converge, over a bulk that never does."""
    g = torch.Generator().manual_seed(4)
    diagonal = torch.rand(2, BLOCKED_FROM, generator=g)
    diagonal[:, :3] = torch.tensor([-3.0, 4.0, 9.0])
    run = lanczos(lambda vectors: diagonal * vectors, torch.randn(2, BLOCKED_FROM, generator=g), 60, seed=0)
    angles = run.basis @ run.basis.mT
    assert (angles - angles.diagonal(dim1=1, dim2=2).diag_embed()).abs().max() < 2e-5
    assert (run.theta > 1.5).sum(1).tolist() == [2, 2]
    assert (run.theta < -0.5).sum(1).tolist() == [1, 1]
    assert_close(run.theta[:, -2:].float(), diagonal[:, 1:3], rtol=3e-5, atol=0)


# -- degenerate cases ------------------------------------------------------------------------------------


def test_a_zero_hessian_is_zero_and_converged():
    s = spectrum(lambda p: p["w"].sum(), {"w": torch.ones(7)}, top=3)
    for value in (s.eigenvalues_high, s.eigenvalues_low, s.residuals_high, s.residuals_low, s.trace, s.nodes):
        assert (value == 0).all()
    assert s.converged_high.all()
    assert s.negative_share == 0
    assert_close(s.weights.sum(), torch.tensor(1.0))


def test_one_parameter_is_enough():
    s = spectrum(lambda p: -2 * p["t"] ** 2, {"t": torch.tensor(3.0)})
    assert s.eigenvalues_high == s.eigenvalues_low == s.trace == -4
    assert s.negative_share == 1
    assert s.hvps == 1 + 2


def test_an_unused_parameter_adds_only_zeros():
    params = {**PARAMS, "unused": torch.ones(3, dtype=torch.float64)}
    s = spectrum(objective, params, steps=P, top=2)
    assert_close(s.eigenvalues_high, EIGENVALUES.flip(0)[:2], rtol=1e-9, atol=0)
    assert (s.vectors_high["unused"].abs() < 1e-9).all()


@pytest.mark.parametrize("spoil", [math.nan, math.inf, 1e4])
def test_a_replica_that_is_not_finite_is_named_so_and_leaves_its_neighbours_bit_identical(spoil):
    members = [dual_encoder(seed) for seed in range(3)]
    clean = spectrum(objective, stacked(*members), batched=True, steps=12, top=2)
    members[1]["loss.log_scale"].fill_(spoil)  # at 1e4, exp overflows
    has_nan = spectrum(objective, stacked(*members), batched=True, steps=12, top=2)
    for field in dataclasses.fields(clean):
        before, after = getattr(clean, field.name), getattr(has_nan, field.name)
        if isinstance(before, Tensor):
            assert torch.equal(after[[0, 2]], before[[0, 2]]), field.name
            assert not after[1].any() if after.dtype == torch.bool else after[1].isnan().all(), field.name
    assert has_nan.negative_share[1].isnan()
    assert torch.equal(has_nan.negative_share[[0, 2]], clean.negative_share[[0, 2]])


def test_an_objective_that_is_nan_beside_a_finite_gradient_is_not_finite():
    s = spectrum(lambda p: (p["w"] ** 2).sum() + math.nan, {"w": torch.ones(3)})
    assert s.eigenvalues_high.isnan()
    assert not s.converged_high
    assert s.trace.isnan()


def test_single_precision_agrees_to_single_precision():
    params = {name: value.float() for name, value in PARAMS.items()}
    batch = {name: value.float() for name, value in ONE_BATCH.items()}
    s = spectrum(lambda p: sigmoid_loss(p, batch), params)
    assert s.dtype == s.eigenvalues_high.dtype == s.nodes.dtype == torch.float32
    assert_close(s.eigenvalues_high[0].double(), EIGENVALUES[-1], rtol=1e-5, atol=0)
    assert_close(s.eigenvalues_low[0].double(), EIGENVALUES[0], rtol=0, atol=1e-5 * NORM)
    assert s.converged_high
    assert s.converged_low


def test_the_seed_decides_everything_and_nothing_else_does():
    first, again = spectrum(objective, PARAMS, steps=7), spectrum(objective, PARAMS, steps=7)
    torch.manual_seed(123)
    other = spectrum(objective, PARAMS, steps=7, seed=1)
    assert torch.equal(first.nodes, again.nodes)
    assert torch.equal(first.trace, again.trace)
    assert not torch.equal(first.nodes, other.nodes)
    assert first.trace != other.trace


def test_steps_are_capped_at_the_number_of_parameters():
    s = spectrum(quadratic(torch.tensor([1.0, 2.0, 3.0])), {"w": torch.zeros(3)}, steps=500, probes=2)
    assert s.nodes.shape == (2, 3)
    assert_close(s.nodes[0], torch.tensor([1.0, 2.0, 3.0]))


def test_a_spectrum_travels_between_processes():
    s = pickle.loads(pickle.dumps(spectrum(objective, PARAMS, steps=3)))  # noqa: S301
    assert s.eigenvalues_high.isfinite()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(-1e3, 1e3).filter(lambda x: abs(x) > 1e-3)), min_size=1, max_size=12),
    st.integers(0, 3),
)
def test_any_diagonal_quadratic_is_read_off(values, seed):
    diagonal = torch.tensor(values, dtype=torch.float64)
    s = spectrum(quadratic(diagonal), {"w": torch.zeros_like(diagonal)}, top=len(values), seed=seed)
    scale = diagonal.abs().max()
    ascending = diagonal.sort().values
    assert_close(s.eigenvalues_low, ascending, rtol=0, atol=1e-9 * scale.item())
    assert_close(s.eigenvalues_high, ascending.flip(0), rtol=0, atol=1e-9 * scale.item())
    assert s.converged_high.all()
    assert_close(s.trace, diagonal.sum(), rtol=0, atol=1e-9 * scale.item())
    assert_close(s.weights.sum(), torch.tensor(1.0, dtype=torch.float64))


# -- wrong input -----------------------------------------------------------------------------------------

W = {"w": torch.ones(3)}


def square(params: Params) -> Tensor:
    return (params["w"] ** 2).sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrum(square, W, top=4), "top is 4; allowed: 1 to 3"),
        (lambda: spectrum(square, W, steps=0), "steps is 0; allowed: a whole number of at least 1"),
        (lambda: spectrum(square, W, trace_probes=0), "trace_probes is 0"),
        (
            lambda: spectrum(lambda p: p["w"] ** 2, W),
            r"the objective returned shape \(3,\); allowed: a scalar",
        ),
        (lambda: spectrum(square, W, block=["v"]), "block: unknown parameter 'v'"),
        (
            lambda: spectrum(square, W, block=lambda name: False),
            "the block holds no parameter; allowed: some of w",
        ),
        (lambda: spectrum(square, W, preconditioner={}), "the preconditioner lacks 'w'"),
        (
            lambda: spectrum(square, W, preconditioner={"w": torch.ones(2)}),
            r"has shape \(2,\); allowed: \(3,\)",
        ),
        (lambda: spectrum(square, W, preconditioner={"w": torch.zeros(3)}), "not positive; allowed: P > 0"),
        (lambda: spectrum(square, {"w": torch.ones(3).half()}), "curvature was given float16; allowed"),
        (lambda: spectrum(square, {}), "curvature was given no parameter"),
        (lambda: spectrum(square, {"w": torch.tensor(1.0)}, batched=True), "no replica axis"),
        (lambda: spectrum(square, {**W, "v": torch.ones(2)}, batched=True), "the same replica axis for all"),
        (lambda: spectrum(square, W, batches=torch.tensor(1.0)), "number of batches as their first axis"),
        (lambda: spectrum(square, W, batches=(torch.ones(2), torch.ones(3))), "number of batches"),
        (lambda: spectrum(square, W, batches=torch.ones(2), chunk_size=0), "chunk_size is 0"),
        (lambda: spectrum(square, W).density(torch.zeros(2), 0.0), "width is 0.0; allowed: a positive"),
        (lambda: hvp(square, W, {"v": torch.ones(3)}), "params and vectors differ in v, w"),
        (lambda: hvp(square, W, {"w": torch.ones(2)}), r"vectors\['w'\] has shape \(2,\); allowed: \(3,\)"),
        (lambda: adaptive_threshold(0.0, 0.9), "lr is 0.0; allowed: a positive learning rate"),
        (lambda: adaptive_threshold(1e-3, 1.0), "beta1 is 1.0; allowed: at least 0 and below 1"),
    ],
)
def test_wrong_input_is_one_plain_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_adam_on_a_quadratic_diverges_just_above_the_threshold():
    """Momentum by exponential average on curvature h: stable below (2 + 2 beta) / ((1 - beta) lr)."""

    def grows(ratio: float, lr: float = 0.1, beta: float = 0.9) -> bool:
        h, x, m = ratio * adaptive_threshold(lr, beta), 1.0, 0.0
        for _ in range(2000):
            m = beta * m + (1 - beta) * h * x
            x -= lr * m
        return not abs(x) < 1

    assert grows(1.01)
    assert not grows(0.99)
