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
from stability.execute.machine import reproducible_arithmetic
from stability.grid import Group, runs_of
from stability.losses import clip, loss, siglip
from stability.registry import InputError, Variant
from stability.study import Study, Train, load_study, parse_study
from stability.train import Trainer, diverged_at, population_of, train_step
from stability.train.chains import chain_of
from stability.train.feed import batch_indices, duplicate_share, feed_of, identity, independent_indices
from stability.train.gradient import slopes
from stability.train.optimizer import Clip, Moments, blocks_of, schedule, take_step
from stability.train.population import Layout, towers
from stability.train.probing import asked_of
from stability.train.stacked_losses import judged_by

CPU = torch.device("cpu")


def some_runs(study: Study, arm: str, batch_size: int = 8):
    return [run for run in runs_of(study) if (run.arm, run.batch_size) == (arm, batch_size)]


# --- optimizer -------------------------------------------------------------------------------------------------------


def test_the_optimizer_equals_torch_s_adamw_step_for_step_with_a_rate_of_its_own_for_each_replica():
    generator = torch.Generator().manual_seed(0)
    train = Train(steps=20, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
    start = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    lrs = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)
    ours, moments = start.clone(), Moments.zeros_like(start)
    blocks = blocks_of([(3, 0.1, 1.0), (1, 0.1, 1.0), (3, 0.0, 1.0)])
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
        take_step(ours, gradient, moments, lrs.tolist(), blocks, train)
        for row, (decayed, bare), optimizer in zip(gradient, theirs, optimizers, strict=True):
            decayed.grad, bare.grad = row[:4].clone(), row[4:].clone()
            optimizer.step()
        expected = torch.stack([torch.cat(pair).detach() for pair in theirs])
        assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_the_cosine_schedule_falls_from_one_to_nearly_zero_after_a_linear_warm_up():
    train = Train(steps=100, warmup=10, schedule="cosine")
    factors = [schedule(train, step) for step in range(100)]
    assert_close(factors[:10], [(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert factors[-1] < 1e-3


def test_clipping_at_a_norm_scales_the_gradient_and_leaves_small_ones():
    clipping = Clip(quantile=None, norm=2.0, recent=torch.zeros(2, 4))
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    clipped, was = clipping(gradient, gradient.norm(dim=-1))
    assert_close(clipped, torch.tensor([[1.2, 1.6], [0.3, 0.4]]))
    assert was.tolist() == [1.0, 0.0]


def test_clipping_at_a_quantile_follows_each_replica_s_own_norms_whatever_their_scale():
    clipping = Clip(quantile=0.5, norm=None, recent=torch.zeros(2, 4))
    scale = torch.tensor([[1.0], [64.0]])
    for size in (1.0, 2.0, 3.0, 4.0):
        gradient = size * scale
        _, was = clipping(gradient, gradient.norm(dim=-1))
        assert was.tolist() == [0.0, 0.0]
    clipped, was = clipping(10 * scale, (10 * scale).norm(dim=-1))
    assert_close(clipped, 2.5 * scale)
    assert was.tolist() == [1.0, 1.0]


def test_parameters_lie_flat_and_come_back_with_what_the_optimizer_treats_alike_side_by_side():
    layout = Layout({"a.weight": (2, 3), "a.bias": (2,), "b.weight": (1, 4), "loss.log_scale": ()})
    assert list(layout.sizes) == ["a.weight", "b.weight", "a.bias", "loss.log_scale"]
    flat = torch.arange(2 * 13.0).view(2, 13)
    params = layout.unflatten(flat)
    assert {name: tuple(value.shape[1:]) for name, value in params.items()} == layout.shapes
    assert params["loss.log_scale"].tolist() == [12.0, 25.0]
    transposed = params | {"a.weight": params["a.weight"].mT.contiguous().mT}
    assert torch.equal(layout.flatten(transposed), flat)
    assert torch.equal(layout.flatten({name: value[1] for name, value in params.items()}), flat[1])


def test_turned_matrices_lie_transposed_and_come_back_the_same():
    layout = Layout({"a.weight": (2, 3), "b.weight": (2, 2), "a.bias": (2,)}, turned=frozenset({"a.weight"}))
    weight = torch.arange(12.0).view(2, 2, 3)
    params = {"a.weight": weight, "b.weight": torch.ones(2, 2, 2), "a.bias": torch.zeros(2, 2)}
    flat = layout.flatten(params)
    assert flat[0, :6].tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    views, copies = layout.unflatten(flat), layout.apart(flat)
    assert views["a.weight"].data_ptr() == flat.data_ptr()
    for name, value in params.items():
        assert torch.equal(views[name], value)
        assert torch.equal(copies[name], value)
        assert copies[name].is_contiguous()


def test_the_optimizer_returns_the_norms_of_the_updates_and_leaves_frozen_replicas_whatever_its_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 5, 7, generator=generator)
    blocks, frozen = blocks_of([(4, 0.1, 1.0), (3, 0.0, 2.0)]), torch.tensor([False, True, False, False, True])
    found = []
    for cache in (1, 14, 10**6):
        monkeypatch.setattr("stability.train.optimizer.CACHE", cache)
        theta, moments = start.clone(), Moments.zeros_like(start)
        taken = take_step(theta, gradient, moments, [0.1, 0.1, 0.2, 0.1, 0.2], blocks, Train(steps=3), frozen=frozen)
        norms = taken["update_norm"]
        assert_close(norms, (theta - start).norm(dim=-1))
        assert torch.equal(norms == 0, frozen)
        assert torch.equal((theta == start).all(-1), frozen)
        found.append((theta, norms))
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))


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
        image, text = towers(tiny, pairs, run.seed).values()
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
            betas=tiny.train.betas,
            eps=tiny.train.eps,
        )
        draws = batch_indices(run.seed, len(pairs.train), run.batch_size)
        for step in range(tiny.train.steps):
            rate = run.lr * schedule(tiny.train, step)
            for group, factor in zip(optimizer.param_groups, (1, 1, tiny.train.scalar_lr), strict=True):
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
    ours, theirs = many.read("gradient-noise"), few.read("gradient-noise")
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
    for probe in ("retrieval", "gradient-noise"):
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
        fine, ill = train_step(healthy, index), train_step(sick, index)
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
    ("build", "known"),
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
def test_a_chain_of_known_layers_gives_all_replicas_the_bits_that_vmap_gives_each(build, known):
    torch.manual_seed(0)
    tower = build()
    chain = chain_of(tower)
    assert (chain is not None) == known
    if chain is None:
        return
    samples = torch.randn(3, 5, 2, 3)
    params = {name: torch.randn(3, *value.shape, requires_grad=True) for name, value in tower.named_parameters()}
    slow = vmap(lambda own, x: functional_call(tower, own, x))(params, samples)
    expected = torch.autograd.grad(slow.square().sum(), list(params.values()), allow_unused=True)
    locked = min(params)
    for written in (params, params.keys() - {locked}, {}):
        places = {name: torch.full_like(params[name], torch.nan) for name in written}
        with torch.no_grad():
            fast, pull = chain(params, places, samples)
            assert torch.equal(fast, slow)
            pull(2 * fast)
        assert all(torch.equal(places.get(name, slope), slope) for name, slope in zip(params, expected, strict=True))


def test_losses_share_weights_batches_and_noise_at_one_seed(tiny):
    pairs = tiny.pairs()
    ours, theirs = (population_of(tiny, some_runs(tiny, arm), pairs, CPU) for arm in ("clip", "siglip-log-b"))
    towers_only = min(ours.theta.shape[1], theirs.theta.shape[1]) - 1
    assert torch.equal(ours.theta[:, :towers_only], theirs.theta[:, :towers_only])
    assert torch.equal(ours.feed.text, theirs.feed.text)


def test_scalars_start_where_the_arm_says_and_neither_they_nor_biases_decay(tiny):
    population = population_of(tiny, some_runs(tiny, "siglip-log-b"), tiny.pairs(), CPU)
    params = population.plan.layout.unflatten(population.theta.detach())
    assert_close(params["loss.bias"], torch.full((6,), -math.log(8)))
    decay, multiplier = torch.full((2, population.theta.shape[1]), torch.nan)
    for block in population.blocks:
        decay[block.start : block.stop], multiplier[block.start : block.stop] = block.decay, block.multiplier
    for name, value in population.plan.layout.unflatten(decay).items():
        assert (value == (tiny.train.weight_decay if value.dim() > 1 else 0)).all(), name
    for name, value in population.plan.layout.unflatten(multiplier).items():
        assert (value == (tiny.train.scalar_lr if name.startswith("loss.") else 1)).all(), name


def test_a_batchnorm_in_a_tower_is_refused_because_it_couples_samples(tiny_text, monkeypatch):
    def coupled(modality: Modality, embed_dim: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, embed_dim), nn.BatchNorm1d(embed_dim))

    monkeypatch.setitem(encoder._variants, "coupled", Variant("encoder", "coupled", coupled, {}, {"modality": "any"}))
    study = parse_study(tiny_text.replace('name = "mlp", width = 8, depth = 1', 'name = "coupled"'), "t.toml", "t")
    with pytest.raises(InputError, match="BatchNorm, which couples the samples"):
        towers(study, study.pairs(), 0)


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
    ours, theirs = few.read("gradient-noise").values, many.read("gradient-noise").values
    for key, values in ours.items():
        assert torch.equal(values.nan_to_num(), theirs[key][:2].nan_to_num()), key
        assert "towers" not in key or torch.isfinite(values).all()
    assert few.population.state.keys() == many.population.state.keys()


@pytest.mark.parametrize("name", [*sorted(loss), "smoothed"])
def test_gradients_of_a_population_are_those_of_autograd_under_vmap(tiny_text, name):
    """In float64: every loss, one tower that is a chain of known layers and one that is not, a parameter locked."""
    arm = f'[arms.{name}]\nloss = "clip"\nlabel_smoothing = 0.1\n\n' if name not in loss else ""
    population = trainer_of(tiny_text, name, 3, arm).population
    assert population.plan.chains.keys() == {"image", "text"}
    assert (population.plan.loss.judged is not None) == (name in ("clip", "siglip"))
    theta = population.theta.double()
    batch = population.feed.batch(torch.stack([torch.randperm(40)[:8] for _ in range(3)]), population.generators)
    batch["image"] = batch["image"].double()
    batch |= asked_of(population.plan, population.runs, population.draws, population.state, 0, torch.Size())
    for locked in (set(), {"image.1.bias", *(f"loss.{scalar}" for scalar in population.scalars)}):
        plan = replace(population.plan, fixed=population.plan.fixed | locked)
        places = plan.layout.unflatten(torch.full_like(theta, torch.nan))
        with torch.no_grad():
            ours, state = slopes(plan, plan.layout.unflatten(theta), batch, places)
        params = {key: value.requires_grad_() for key, value in plan.layout.unflatten(theta).items()}
        theirs, carried = vmap(plan.training_objective)(params, batch)
        expected = torch.autograd.grad(theirs.sum(), list(params.values()), allow_unused=True, materialize_grads=True)
        assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)
        assert_close(list(places.values()), list(expected), rtol=1e-12, atol=1e-12)
        assert_close(state, {key: value.detach() for key, value in carried.items()}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("function", "scalars"), [(clip, ("log_scale",)), (siglip, ("log_scale", "bias"))])
@pytest.mark.parametrize(("size", "scale"), [(2, 1.0), (7, 10.0), (7, 5000.0), (516, 10.0)])
def test_losses_with_written_derivatives_are_the_plain_ones(function, scalars, size, scale):
    """Also where exponentials of the logits overflow, and where tiles take over."""
    generator = torch.Generator().manual_seed(0)
    ends = [torch.randn(2, size, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    given = {"log_scale": torch.tensor([scale, 1.0]).double().log(), "bias": torch.tensor([-3.0, 0.5]).double()}
    given = {name: given[name].requires_grad_() for name in scalars}

    def plain(image, text, own):
        return function(F.normalize(image, dim=-1), F.normalize(text, dim=-1), **own)

    expected = vmap(plain)(*ends, given)
    slopes = torch.autograd.grad(expected.sum(), [*ends, *given.values()])
    with torch.no_grad():
        found, state, by_end, by_scalar = judged_by(function)(ends, given, given.keys())
    assert_close(found, expected.detach(), rtol=1e-11, atol=1e-12)
    assert_close([*by_end, *(by_scalar[name] for name in scalars)], list(slopes), rtol=1e-10, atol=1e-12)
    assert state == {}


@pytest.mark.parametrize("function", [clip, siglip])
@pytest.mark.parametrize(("size", "width"), [(6, 24), (9, 11), (13, 12), (5, 39)])
def test_losses_with_written_derivatives_give_a_replica_its_own_bits(function, size, width):
    """Also where its logits do not fill whole lines of the cache."""
    generator = torch.Generator().manual_seed(0)
    ends = [torch.randn(16, size, width, generator=generator) for _ in range(2)]
    given = {name: torch.randn(16, generator=generator) for name in ("log_scale", "bias")}

    def judged(places):
        losses, _, by_end, by_scalar = judged_by(function)(
            [end[places] for end in ends], {name: value[places] for name, value in given.items()}, given.keys()
        )
        return [losses, *by_end, by_scalar["log_scale"]]

    everything = judged(list(range(16)))
    for few in ([0, 1], [5, 15], [15, 3], [3, 14, 15]):
        assert all(torch.equal(own, all_[few]) for own, all_ in zip(judged(few), everything, strict=True)), few


def test_a_row_of_zeros_has_a_derivative_and_leaves_the_others_alone():
    ends = torch.randn(2, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    ends[0, 1, 2] = 0.0
    judge, scalars = judged_by(clip), {"log_scale": torch.zeros(2)}
    _, _, by_end, _ = judge(list(ends), scalars, ())
    assert all(slope.isfinite().all() for slope in by_end)
    assert torch.equal(by_end[0][0], judge(list(torch.stack([ends[:, 0]] * 2, 1)), scalars, ())[2][0][0])


def test_a_state_is_carried_from_step_to_step_for_each_replica(tiny_text):
    trainer = trainer_of(tiny_text, "global-contrastive")
    before = trainer.population.state["image"].clone()
    assert torch.isinf(before).all()
    trainer.step()
    after = trainer.population.state["image"]
    assert torch.isfinite(after).sum(-1).tolist() == [8, 8]


def test_a_scalar_that_is_not_trained_stays_and_one_with_a_rate_of_its_own_moves_at_it(tiny_text):
    arm = '[arms.own]\nloss = "siglip"\nbias = { trained = false }\nlog_scale = { lr = 3.0 }\n\n'
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


def test_independent_batches_repeat_no_pair_inside_a_batch_and_ignore_each_other():
    index = independent_indices(0, "probe", count=50, available=6, batch_size=5)
    assert all(len(set(batch.tolist())) == 5 for batch in index)
    assert len({tuple(sorted(batch.tolist())) for batch in index}) > 1


@pytest.mark.parametrize("kind", ["fixed", "fresh"])
def test_fixed_noise_is_the_same_at_every_visit_and_fresh_noise_is_not(tiny, kind):
    runs = [run for run in some_runs(tiny, "clip", 16) if run.noise > 0]
    feed = feed_of(runs, tiny.pairs(), kind, CPU)
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
    assert_close(duplicate_share(identity(text, salt)), torch.tensor(2 / 12))
    many = torch.randint(9, (3, 50, 1), generator=torch.Generator().manual_seed(0))
    equal = (many == many.mT).sum((1, 2)) - 50
    assert_close(duplicate_share(many[..., 0]), equal / (50 * 49))
    reals = torch.tensor([[0.5, 1.0], [0.5, 1.0], [1.0, 0.5]])
    assert_close(duplicate_share(identity(reals, salt)), torch.tensor(2 / 6))


# --- divergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (np.full(200, 1.0), None),
        (np.full(200, 5.0), 20),
        (np.where(np.arange(200) == 30, 3e7, 4.9).astype(np.float32), None),
        (np.where(np.arange(200) == 0, 1e8, 5.1).astype(np.float32), 20),
        (np.where(np.arange(200) == 150, np.inf, 1.0), 150),
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
