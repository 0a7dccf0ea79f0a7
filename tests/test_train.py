"""The population trainer against torch's own optimizer, a plain loop over single runs, and itself at other widths."""

from __future__ import annotations

import math
import platform
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from stability.encoders import Modality, encoder
from stability.encoders.registry import EncoderTraits
from stability.execute.machine import reproducible_arithmetic
from stability.grid import Group, runs_of
from stability.losses import clip, loss, siglip
from stability.losses.batched import clip_kernel, loss_and_grads, siglip_kernel
from stability.registry import InputError, Variant
from stability.results import diverged_at
from stability.study import Study, Train, load_study, optimizer_of, parse_study
from stability.train import Trainer, population_of, train_step
from stability.train.batched_layers import batched_forward
from stability.train.batches import STEPS_AHEAD, BatchStream, batch_indices
from stability.train.data import false_negative_fraction, independent_indices, population_data, text_fingerprints
from stability.train.gradient import value_and_grad
from stability.train.model import Layout, build_towers
from stability.train.optimizer import (
    GradClipper,
    LearningRates,
    Recipe,
    apply_update_,
    initial_state,
    lr_schedule_factor,
)
from stability.train.trainer import step_inputs

CPU = torch.device("cpu")


def some_runs(study: Study, arm: str, batch_size: int = 8):
    return [run for run in runs_of(study) if (run.arm, run.batch_size) == (arm, batch_size)]


# --- optimizer -------------------------------------------------------------------------------------------------------


def test_the_optimizer_equals_torch_s_adamw_step_for_step_with_a_rate_of_its_own_for_each_replica():
    generator = torch.Generator().manual_seed(0)
    train = Train(steps=20, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
    start = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    lrs = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)
    ours, state = start.clone(), initial_state(train, start)
    recipes = [Recipe.of_all(train, [(3, 0.1, 1.0), (1, 0.1, 1.0), (3, 0.0, 1.0)], start)]
    theirs = [(nn.Parameter(row[:4].clone()), nn.Parameter(row[4:].clone())) for row in start]
    optimizers = [
        torch.optim.AdamW(
            [{"params": [decayed], "weight_decay": 0.1}, {"params": [bare], "weight_decay": 0.0}],
            lr=float(lr),
            betas=train.betas,
            eps=train.eps,
        )
        for lr, (decayed, bare) in zip(lrs, theirs, strict=True)
    ]
    for _ in range(20):
        gradient = torch.randn(3, 7, generator=generator, dtype=torch.float64)
        apply_update_(ours, gradient.clone(), state, lrs, recipes)
        for row, (decayed, bare), optimizer in zip(gradient, theirs, optimizers, strict=True):
            decayed.grad, bare.grad = row[:4].clone(), row[4:].clone()
            optimizer.step()
        expected = torch.stack([torch.cat(pair).detach() for pair in theirs])
        assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_the_cosine_schedule_falls_from_one_to_nearly_zero_after_a_linear_warm_up():
    train = Train(steps=100, warmup=10, lr_schedule="cosine")
    factors = [lr_schedule_factor(train, step) for step in range(100)]
    assert_close(factors[:10], [(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert factors[-1] < 1e-3


def test_clipping_at_a_norm_scales_the_gradient_and_leaves_small_ones():
    clipper = GradClipper(quantile=None, norm=2.0, recent=torch.zeros(2, 4))
    grad = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    clipped = clipper(grad, grad.norm(dim=-1))
    assert_close(grad, torch.tensor([[1.2, 1.6], [0.3, 0.4]]))
    assert clipped.tolist() == [1.0, 0.0]


def test_clipping_at_a_quantile_follows_each_replica_s_own_norms_whatever_their_scale():
    clipper = GradClipper(quantile=0.5, norm=None, recent=torch.zeros(2, 4))
    scale = torch.tensor([[1.0], [64.0]])
    for size in (1.0, 2.0, 3.0, 4.0):
        grad = size * scale
        assert clipper(grad, grad.norm(dim=-1)).tolist() == [0.0, 0.0]
        assert_close(grad, size * scale)
    grad = 10 * scale
    assert clipper(grad, grad.norm(dim=-1)).tolist() == [1.0, 1.0]
    assert_close(grad, 2.5 * scale)


def test_parameters_lie_flat_and_come_back_with_what_the_optimizer_treats_alike_side_by_side():
    layout = Layout({"a.weight": (2, 3), "a.bias": (2,), "b.weight": (1, 4), "loss.log_scale": ()})
    assert list(layout.sizes) == ["a.weight", "b.weight", "a.bias", "loss.log_scale"]
    assert (layout.size, layout.width) == (13, 16)
    flat = F.pad(torch.arange(2 * 13.0).view(2, 13), (0, 3))
    params = layout.unflatten(flat)
    assert {name: tuple(value.shape[1:]) for name, value in params.items()} == layout.shapes
    assert params["loss.log_scale"].tolist() == [12.0, 25.0]
    transposed = params | {"a.weight": params["a.weight"].mT.contiguous().mT}
    assert torch.equal(layout.flatten(transposed), flat)
    assert torch.equal(layout.flatten({name: value[1] for name, value in params.items()}), flat[1])


def test_turned_matrices_lie_transposed_and_come_back_the_same():
    layout = Layout({"a.weight": (2, 3), "b.weight": (2, 2), "a.bias": (2,)}, transposed=frozenset({"a.weight"}))
    weight = torch.arange(12.0).view(2, 2, 3)
    params = {"a.weight": weight, "b.weight": torch.ones(2, 2, 2), "a.bias": torch.zeros(2, 2)}
    flat = layout.flatten(params)
    assert flat[0, :6].tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    views, copies = layout.unflatten(flat), layout.unflatten_contiguous(flat)
    assert views["a.weight"].data_ptr() == flat.data_ptr()
    for name, value in params.items():
        assert torch.equal(views[name], value)
        assert torch.equal(copies[name], value)
        assert copies[name].is_contiguous()


def test_the_optimizer_returns_the_norms_of_the_updates_and_leaves_dead_replicas_whatever_its_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 5, 7, generator=generator)
    train, rates = Train(steps=3), torch.tensor([0.1, 0.1, 0.2, 0.1, 0.2])
    recipes, dead = (
        [Recipe.of_all(train, [(4, 0.1, 1.0), (3, 0.0, 2.0)], start)],
        torch.tensor([False, True, False, False, True]),
    )
    results = []
    for chunk in (1, 14, 10**6):
        monkeypatch.setattr("stability.train.optimizer.CHUNK_FLOATS", chunk)
        theta, state = start.clone(), initial_state(train, start)
        norms = apply_update_(theta, gradient.clone(), state, rates, recipes, dead=dead)["update_norm"]
        assert_close(norms, (theta - start).norm(dim=-1))
        assert torch.equal(norms == 0, dead)
        assert torch.equal((theta == start).all(-1), dead)
        results.append((theta, norms))
    assert all(torch.equal(one, other) for each in results[1:] for one, other in zip(results[0], each, strict=True))


def test_rates_are_those_of_each_replica_at_each_step_and_stay_after_the_last():
    train = Train(steps=8, warmup=4, lr_schedule="cosine")
    lrs = [0.1, 0.3, 0.1]
    rates = LearningRates.of([train] * 3, lrs, CPU)
    assert rates.table.shape == (8, 2)
    for step in range(10):
        assert (
            rates.at(step).tolist()
            == torch.tensor([lr * lr_schedule_factor(train, min(step, 7)) for lr in lrs]).tolist()
        )
    assert rates.select(torch.tensor([1, 0])).at(2).tolist() == rates.at(2)[[1, 0]].tolist()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_memory_that_a_step_frees_is_kept_for_the_next_step():
    import resource

    def pages() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    values = torch.ones(10_000_000)
    with reproducible_arithmetic():
        for _ in range(3):
            values * values
        before = pages()
        for _ in range(10):
            values * values
        touched = pages() - before
    # 10 results of 40 MB are 98,000 pages, if each is new; a heap in pieces may make one or two of them new.
    assert touched < 25_000


# --- a population is its runs ----------------------------------------------------------------------------------------


def test_a_population_equals_a_plain_loop_over_single_runs(tiny):
    """The slow twin: nn.Modules, torch.optim.AdamW, one run at a time."""
    runs = [run for run in some_runs(tiny, "clip") if run.noise == 0.0][:2]
    pairs = tiny.pairs()
    trainer = Trainer(tiny, Group("g", tuple(runs)), pairs, CPU)
    logged = [trainer.step() for _ in range(tiny.train.steps)]
    for place, run in enumerate(runs):
        image, text = build_towers(tiny, pairs, run.seed).values()
        log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        named = [*image.named_parameters(), *text.named_parameters()]
        matrices = [value for _, value in named if value.dim() > 1]
        vectors = [value for _, value in named if value.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": tiny.train.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
                {"params": [log_scale], "weight_decay": 0.0},
            ],
            **optimizer_of(tiny.train)[1],
        )
        draws = batch_indices(run.seed, len(pairs.train), run.batch_size)
        for step in range(tiny.train.steps):
            rate = run.lr * lr_schedule_factor(tiny.train, step)
            for group, factor in zip(optimizer.param_groups, (1, 1, tiny.train.scalar_lr_multiplier), strict=True):
                group["lr"] = rate * factor
            index = pairs.train[next(draws)]
            u = F.normalize(image(pairs.image[index]), dim=-1)
            v = F.normalize(text(pairs.text[index]), dim=-1)
            value = clip(u, v, log_scale=log_scale)
            optimizer.zero_grad()
            value.backward()
            assert_close(logged[step]["log_scale"][place], log_scale.detach(), rtol=1e-4, atol=1e-5)
            assert_close(logged[step]["loss"][place], value.detach(), rtol=1e-4, atol=1e-5)
            optimizer.step()


def test_the_quickstart_s_own_towers_give_the_same_numbers_at_widths_2_and_5():
    study = load_study("quickstart", "smoke")
    runs = tuple(run for run in runs_of(study) if (run.arm, run.batch_size) == ("siglip", 16))[:5]
    many, few = (Trainer(study, Group("g", part), study.pairs(), CPU) for part in (runs, (runs[1], runs[4])))
    for _ in range(3):
        both = many.step(), few.step()
        assert all(torch.equal(both[0][name][[1, 4]], both[1][name]) for name in both[0])
    ours, theirs = many.read("gradient_noise"), few.read("gradient_noise")
    assert all(torch.equal(ours.values[name][[1, 4]], values) for name, values in theirs.values.items())


@pytest.mark.parametrize("arm", ["clip", "siglip-log-b"])
def test_a_replica_gives_the_same_numbers_in_groups_of_2_and_of_24(tiny, arm):
    wide = tiny.model_copy(update={"grid": tiny.grid.model_copy(update={"seeds": 12})})
    runs = tuple(some_runs(wide, arm))
    assert len(runs) == 24
    pairs = wide.pairs()
    many, few = (Trainer(wide, Group("g", part), pairs, CPU) for part in (runs, (runs[5], runs[17])))
    for _ in range(wide.train.steps):
        both = many.step(), few.step()
        for name in both[0]:
            assert torch.equal(both[0][name][[5, 17]], both[1][name]), name
    for probe in ("retrieval", "gradient_noise"):
        wide_reading, narrow_reading = many.read(probe), few.read(probe)
        for name, values in narrow_reading.values.items():
            assert torch.equal(wide_reading.values[name][[5, 17]], values), name


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 1.0}, {"clip_quantile": 0.5}])
def test_a_replica_that_turns_nan_is_frozen_and_its_neighbours_do_not_notice(tiny, clip):
    tiny = tiny.model_copy(update={"train": tiny.train.model_copy(update=clip)})
    runs = some_runs(tiny, "siglip-log-b")[:3]
    pairs = tiny.pairs()
    healthy, sick = (population_of(tiny, runs, pairs, CPU) for _ in range(2))
    draws = {run.seed: batch_indices(run.seed, len(pairs.train), run.batch_size) for run in runs}
    for step in range(6):
        drawn = {seed: next(indices) for seed, indices in draws.items()}
        index = torch.stack([drawn[run.seed] for run in runs])
        if step == 2:
            sick.theta.data[1, 0] = torch.nan
            frozen = sick.theta[1].detach().clone()
        fine, ill = (
            dict(zip(p.measures, train_step(p, step_inputs(p, index, index)), strict=True)) for p in (healthy, sick)
        )
        for name in ("loss", "gradient_norm", "update_norm"):
            assert torch.equal(fine[name][[0, 2]], ill[name][[0, 2]]), name
            assert torch.isnan(ill[name][1]) == (step >= 2)
    assert torch.equal(healthy.theta[[0, 2]], sick.theta[[0, 2]])
    assert torch.equal(sick.theta[1].nan_to_num(7.0), frozen.nan_to_num(7.0))


class Doubled(nn.Linear):
    """A linear map that is not one: nothing is known of a subclass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def of_shared_layers() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer)


def with_a_hook() -> nn.Module:
    tower = nn.Sequential(nn.Flatten(), nn.Linear(6, 6))
    tower[1].register_forward_hook(lambda module, args, output: 2 * output)
    return tower


@pytest.mark.parametrize(
    ("build", "supported"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)), True),
        (lambda: nn.Sequential(nn.Flatten(1, -1), nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU())), True),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Flatten(-2), nn.Linear(16, 4)), True),
        (lambda: nn.Sequential(nn.Flatten(), *[nn.Tanh()] * 2, nn.Linear(6, 4)), True),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ELU(inplace=True)), True),
        (of_shared_layers, False),
        (lambda: nn.Sequential(nn.Flatten(), Doubled(6, 4)), False),
        (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), False),
        (with_a_hook, False),
    ],
)
def test_a_tower_of_supported_layers_gives_all_replicas_the_bits_that_vmap_gives_each(build, supported):
    torch.manual_seed(0)
    tower = build()
    forward = batched_forward(tower)
    assert (forward is not None) == supported
    if forward is None:
        return
    samples = torch.randn(3, 5, 2, 3)
    params = {name: torch.randn(3, *value.shape, requires_grad=True) for name, value in tower.named_parameters()}
    slow = vmap(lambda own, x: functional_call(tower, own, x))(params, samples)
    fast = forward(params, samples)
    assert torch.equal(fast, slow)
    ours, theirs = (
        torch.autograd.grad(output.square().sum(), list(params.values()), allow_unused=True) for output in (fast, slow)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_losses_share_weights_batches_and_noise_at_one_seed(tiny):
    pairs = tiny.pairs()
    ours, theirs = (population_of(tiny, some_runs(tiny, arm), pairs, CPU) for arm in ("clip", "siglip-log-b"))
    towers_only = ours.spec.layout.size - 1
    assert torch.equal(ours.theta[:, :towers_only], theirs.theta[:, :towers_only])
    assert torch.equal(ours.data.text, theirs.data.text)


def test_scalars_start_where_the_arm_says_and_neither_they_nor_biases_decay(tiny):
    population = population_of(tiny, some_runs(tiny, "siglip-log-b"), tiny.pairs(), CPU)
    params = population.spec.layout.unflatten(population.theta.detach())
    assert_close(params["loss.bias"], torch.full((6,), -math.log(8)))
    groups, width = population.recipes[0].groups, population.theta.shape[1]
    decay = F.pad(groups.decay, (0, width - len(groups.decay)))
    multiplier = groups.lr_multiplier
    for name, value in population.spec.layout.unflatten(decay).items():
        assert (value == (tiny.train.weight_decay if value.dim() > 1 else 0)).all(), name
    for name, value in population.spec.layout.unflatten(multiplier).items():
        assert (value == (tiny.train.scalar_lr_multiplier if name.startswith("loss.") else 1)).all(), name


def test_a_batchnorm_in_a_tower_is_refused_because_it_couples_samples(tiny_text, monkeypatch):
    def coupled(modality: Modality, embed_dim: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, embed_dim), nn.BatchNorm1d(embed_dim))

    monkeypatch.setitem(encoder._variants, "coupled", Variant("encoder", "coupled", coupled, {}, EncoderTraits()))
    study = parse_study(tiny_text.replace('name = "mlp", width = 8, depth = 1', 'name = "coupled"'), "t.toml", "t")
    with pytest.raises(InputError, match="BatchNorm, which couples the samples"):
        build_towers(study, study.pairs(), 0)


# --- every loss of the catalogue, and what it may ask for ------------------------------------------------------------


def trainer_of(tiny_text: str, name: str, replicas: int = 2, arm: str = "") -> Trainer:
    """Return a trainer of one arm of the tiny study: a registered loss, or the table *arm* under that name."""
    text = tiny_text.split("[[claims]]")[0].replace('["clip", "siglip-log-b"]', f'["{name}"]')
    text = re.sub(r"\[arms.*?\n\n", arm, text, flags=re.DOTALL)
    study = parse_study(text, "t.toml", "t")
    runs = tuple(run for run in runs_of(study) if run.batch_size == 8)[:replicas]
    return Trainer(study, Group("g", runs), study.pairs(), CPU)


@pytest.mark.parametrize("name", sorted(loss))
def test_every_loss_trains_and_is_probed_and_a_replica_does_not_notice_the_others(tiny_text, name):
    few, many = trainer_of(tiny_text, name, 2), trainer_of(tiny_text, name, 3)
    for _ in range(3):
        first, second = few.step(), many.step()
        assert torch.isfinite(first["loss"]).all()
        assert all(torch.equal(values, second[key][:2]) for key, values in first.items())
    ours, theirs = few.read("gradient_noise").values, many.read("gradient_noise").values
    for key, values in ours.items():
        assert torch.equal(values.nan_to_num(), theirs[key][:2].nan_to_num()), key
        assert "towers" not in key or torch.isfinite(values).all()
    assert few.population.state.keys() == many.population.state.keys()


@pytest.mark.parametrize("name", [*sorted(loss), "smoothed"])
def test_gradients_of_a_population_are_those_of_autograd_under_vmap(tiny_text, name):
    """In float64: every loss, with nothing frozen, and with a bias and the loss's scalars frozen."""
    arm = f'[arms.{name}]\nloss = "clip"\nlabel_smoothing = 0.1\n\n' if name not in loss else ""
    population = trainer_of(tiny_text, name, 3, arm).population
    assert population.spec.forwards.keys() == {"image", "text"}
    assert (population.spec.loss.kernel is not None) == (name in ("clip", "siglip"))
    theta = population.theta.double()
    index = torch.stack([torch.randperm(40)[:8] for _ in range(3)])
    batch = step_inputs(population, index, index) | population.data.batch(index, ()) | {"state": population.state}
    batch["image"] = batch["image"].double()
    for frozen in (set(), {"image.1.bias", *(f"loss.{scalar}" for scalar in population.spec.initial_scalars)}):
        spec = replace(population.spec, frozen=population.spec.frozen | frozen)
        grad = torch.full_like(theta, torch.nan)
        with torch.no_grad():
            ours, state = value_and_grad(spec, theta, batch, grad)
        params = {key: value.requires_grad_() for key, value in spec.layout.unflatten(theta).items()}
        theirs, carried = vmap(spec.training_objective)(params, batch)
        expected = torch.autograd.grad(theirs.sum(), list(params.values()), allow_unused=True, materialize_grads=True)
        assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)
        assert_close(list(spec.layout.unflatten(grad).values()), list(expected), rtol=1e-12, atol=1e-12)
        assert_close(state, {key: value.detach() for key, value in carried.items()}, rtol=1e-12, atol=1e-12)
        assert not grad[:, spec.layout.size :].any()


KERNELS = [(clip, clip_kernel, ("log_scale",)), (siglip, siglip_kernel, ("log_scale", "bias"))]


@pytest.mark.parametrize(("function", "kernel", "names"), KERNELS)
@pytest.mark.parametrize(("size", "scale"), [(2, 1.0), (7, 10.0), (7, 5000.0), (516, 10.0)])
def test_kernels_of_losses_give_the_value_and_the_gradient_of_the_plain_formula(function, kernel, names, size, scale):
    """Also where exponentials of the logits overflow, and where tiles take over."""
    generator = torch.Generator().manual_seed(0)
    embeddings = [torch.randn(2, size, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    scalars = {"log_scale": torch.tensor([scale, 1.0]).double().log(), "bias": torch.tensor([-3.0, 0.5]).double()}
    scalars = {name: scalars[name].requires_grad_() for name in names}

    def plain(image, text, own):
        return function(F.normalize(image, dim=-1), F.normalize(text, dim=-1), **own)

    expected = vmap(plain)(*embeddings, scalars)
    grads = torch.autograd.grad(expected.sum(), [*embeddings, *scalars.values()])
    with torch.no_grad():
        losses, grad_embeddings, grad_scalars = loss_and_grads(kernel, embeddings, scalars)
    assert grad_scalars.keys() == {*names}
    assert_close(losses, expected.detach(), rtol=1e-11, atol=1e-12)
    assert_close([*grad_embeddings, *(grad_scalars[name] for name in names)], list(grads), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("function", "kernel", "names"), KERNELS)
@pytest.mark.parametrize(("size", "width"), [(6, 24), (9, 11), (13, 12), (5, 39)])
def test_kernels_of_losses_give_a_replica_its_own_bits(function, kernel, names, size, width):
    """Also where its logits do not fill whole cache lines."""
    generator = torch.Generator().manual_seed(0)
    embeddings = [torch.randn(16, size, width, generator=generator) for _ in range(2)]
    scalars = {name: torch.randn(16, generator=generator) for name in names}

    def results_of(replicas):
        losses, grad_embeddings, grad_scalars = loss_and_grads(
            kernel, [x[replicas] for x in embeddings], {name: value[replicas] for name, value in scalars.items()}
        )
        return [losses, *grad_embeddings, *grad_scalars.values()]

    everything = results_of(list(range(16)))
    for few in ([0, 1], [5, 15], [15, 3], [3, 14, 15]):
        assert all(torch.equal(own, all_[few]) for own, all_ in zip(results_of(few), everything, strict=True)), few


def test_a_row_of_zeros_has_a_gradient_and_leaves_the_others_alone():
    embeddings = torch.randn(2, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    embeddings[0, 1, 2] = 0.0
    scalars = {"log_scale": torch.zeros(2)}
    _, grads, _ = loss_and_grads(clip_kernel, list(embeddings), scalars)
    assert all(grad.isfinite().all() for grad in grads)
    _, alone, _ = loss_and_grads(clip_kernel, list(torch.stack([embeddings[:, 0]] * 2, 1)), scalars)
    assert torch.equal(grads[0][0], alone[0][0])


def test_a_state_is_carried_from_step_to_step_for_each_replica(tiny_text):
    trainer = trainer_of(tiny_text, "global_contrastive")
    before = trainer.population.state["image"].clone()
    assert torch.isinf(before).all()
    trainer.step()
    after = trainer.population.state["image"]
    assert torch.isfinite(after).sum(-1).tolist() == [8, 8]


def test_a_scalar_that_is_not_trained_stays_and_one_with_a_rate_of_its_own_moves_at_it(tiny_text):
    arm = '[arms.own]\nloss = "siglip"\nbias = { trained = false }\nlog_scale = { lr_multiplier = 3.0 }\n\n'
    own, plain = trainer_of(tiny_text, "own", arm=arm), trainer_of(tiny_text, "siglip")
    first, second = own.step(), plain.step()
    again, more = own.step(), plain.step()
    assert torch.equal(again["bias"], first["bias"])
    assert not torch.equal(more["bias"], second["bias"])
    # Adam's first step has the size of the rate whatever the gradient.
    moved, usual = again["log_scale"] - first["log_scale"], more["log_scale"] - second["log_scale"]
    assert_close(moved.abs(), 3 * usual.abs(), rtol=1e-4, atol=1e-6)


# --- what they read --------------------------------------------------------------------------------------------------


def test_an_epoch_of_batches_meets_every_pair_at_most_once():
    draws = batch_indices(seed=4, available=10, batch_size=3)
    epoch = torch.cat([next(draws) for _ in range(3)])
    assert len(set(epoch.tolist())) == 9
    again = batch_indices(seed=4, available=10, batch_size=3)
    assert torch.equal(epoch[:3], next(again))


@pytest.mark.parametrize(("available", "batch_size"), [(10, 3), (500, 8)])
def test_batches_drawn_ahead_are_those_of_each_seed_s_own_stream(available, batch_size):
    seeds = [4, "b", 4, 0]
    batches = BatchStream(seeds, available, batch_size, CPU)
    draws = {seed: batch_indices(seed, available, batch_size) for seed in dict.fromkeys(seeds)}
    for _ in range(2 * STEPS_AHEAD + 3):
        batches.advance()
        drawn = {seed: next(indices) for seed, indices in draws.items()}
        expected = torch.stack([drawn[seed] for seed in seeds])
        assert torch.equal(batches.index(), expected)
        assert torch.equal(batches.host_index(), expected)


def test_independent_batches_repeat_no_pair_inside_a_batch_and_ignore_each_other():
    index = independent_indices(0, "probe", count=50, available=6, batch_size=5)
    assert all(len(set(batch.tolist())) == 5 for batch in index)
    assert len({tuple(sorted(batch.tolist())) for batch in index}) > 1


@pytest.mark.parametrize("kind", ["fixed", "fresh"])
def test_fixed_noise_is_the_same_at_every_visit_and_fresh_noise_is_not(tiny, kind):
    runs = [run for run in some_runs(tiny, "clip", 16) if run.noise > 0]
    feed = population_data(runs, tiny.pairs(), kind, CPU)
    generators = feed.generators("train")
    index = torch.arange(16).repeat(len(runs), 1)
    first, second = (feed.batch(index, generators) for _ in range(2))
    assert torch.equal(first["text"], second["text"]) == (kind == "fixed")
    clean = tiny.pairs().text[tiny.pairs().train][:16]
    changed = (second["text"] != clean).any(-1).sum(-1)
    if kind == "fresh":
        assert changed.tolist() == [round(0.4 * 16)] * len(runs)


def test_duplicates_are_counted_by_their_text():
    text = torch.tensor([[1, 2], [3, 4], [1, 2], [2, 1]])
    salt = torch.tensor([3, 5]) * 2 + 1
    assert_close(false_negative_fraction(text_fingerprints(text, salt)), torch.tensor(2 / 12))
    many = torch.randint(9, (3, 50, 1), generator=torch.Generator().manual_seed(0))
    equal = (many == many.mT).sum((1, 2)) - 50
    assert_close(false_negative_fraction(many[..., 0]), equal / (50 * 49))
    reals = torch.tensor([[0.5, 1.0], [0.5, 1.0], [1.0, 0.5]])
    assert_close(false_negative_fraction(text_fingerprints(reals, salt)), torch.tensor(2 / 6))


# --- divergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (np.full(200, 1.0), None),
        (np.full(200, 5.0), 20),
        (np.where(np.arange(200) == 30, 3e7, 4.9).astype(np.float32), None),
        (np.where(np.arange(200) == 0, 1e8, 5.1).astype(np.float32), 20),
        (np.where(np.arange(200) >= 150, np.inf, 1.0), 150),
        (np.where(np.arange(200) == 150, np.inf, 1.0), None),
        (np.where(np.arange(200) == 150, np.nan, 9.0), 20),
        (np.full(200, np.nan), 0),
        (np.where(np.arange(200) < 100, 1.0, 9.0), None),
        (np.where((np.arange(200) > 50) & (np.arange(200) < 60), 99.0, 1.0), None),
    ],
)
def test_divergence_is_a_loss_that_is_not_finite_or_ends_at_chance(series, expected):
    found = diverged_at(series, chance=5.0, warmup=20)
    if (series[-1] >= 5.0) and expected is None:
        # From chance on for good: the trailing mean over 10 steps crosses it within 10 steps of the jump.
        assert found is not None
        assert 100 <= found < 110
    else:
        assert found == expected
