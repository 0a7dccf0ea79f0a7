"""Local negatives: the loss of a batch is the mean over shards that see their own pairs only."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from device_cases import study_text
from torch import Tensor
from torch.testing import assert_close

from stability.analysis import analyze, load_results
from stability.execute import run
from stability.grid import groups_of, runs_of, study_of
from stability.losses import loss
from stability.losses.calls import call, inputs_of
from stability.losses.chance import chance_level
from stability.losses.sharded import sharded
from stability.registry import InputError
from stability.report.method import paragraphs
from stability.results import chance_losses
from stability.study import parse_study
from stability.train import Trainer
from stability.train.data import false_negative_fraction
from stability.train.gradient import value_and_grad
from stability.train.memory import bytes_per_replica
from stability.train.probe_runner import probe_batches
from stability.train.trainer import step_inputs

CPU = torch.device("cpu")


def separate_losses(variant, inputs, shards: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean of separate calls of a loss, one for each part of the batch, and the merged states: the twin."""
    size = len(inputs.varying["image"]) // shards
    values, states = [], []
    for shard in range(shards):
        rows = slice(shard * size, (shard + 1) * size)
        varying = {name: value[rows] if value.ndim else value for name, value in inputs.varying.items()}
        cut = {"index": lambda x, r=rows: x[r], "uniform": lambda x, r=rows: x[r, r], "step": lambda x: x}
        reserved = {name: cut[name](value) for name, value in inputs.reserved.items()}
        value, state = call(variant, type(inputs)(varying, reserved, inputs.state))
        values.append(value)
        states.append(state)
    merged = {name: value.clone() for name, value in inputs.state.items()}
    for name, value in merged.items():
        if "index" in inputs.reserved:  # every shard changes the entries of its own pairs
            for shard, state in enumerate(states):
                own = inputs.reserved["index"][shard * size : (shard + 1) * size]
                value[own] = state[name][own]
        else:
            merged[name] = torch.stack([state[name] for state in states]).mean(0)
    return torch.stack(values).mean(), merged


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("name", sorted(loss))
def test_the_loss_is_the_mean_of_separate_losses_and_so_is_its_gradient(name, shards):
    variant = loss[name]
    inputs = inputs_of(variant, 8)
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.varying.items()}
    inputs = inputs.changed(**leaves)
    expected, merged = separate_losses(variant, inputs, shards)
    rest = {key: value for key, value in leaves.items() if key not in ("image", "text")} | inputs.reserved
    found = sharded(variant.function, shards)(
        leaves["image"], leaves["text"], **rest, **({"state": inputs.state} if inputs.state else {})
    )
    if inputs.state:
        found, state = found
        assert_close(state, merged, rtol=1e-12, atol=1e-12)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        for value in (found, expected)
    )
    assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# --- populations -----------------------------------------------------------------------------------------------------


def trainer_of(name: str, shards: int = 2, **how: str) -> Trainer:
    study = parse_study(study_text(name=name, more=f"shards = {shards}", **how), "t.toml", "t")
    group = groups_of(runs_of(study), lambda run: 32)[0]
    return Trainer(study_of(study, group), group, study.pairs(), CPU)


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("name", sorted(loss))
def test_the_gradient_of_a_population_is_that_of_the_mean_of_separate_losses(name, shards):
    population = trainer_of(name, shards).population
    spec, theta = population.spec, population.theta.double()
    index = torch.stack([torch.randperm(40)[:8] for _ in range(3)])
    batch = step_inputs(population, index, index) | population.data.batch(index, ()) | {"state": population.state}
    batch["image"] = batch["image"].double()
    if "uniform" in batch:
        batch["uniform"] = batch["uniform"].double()
    grad = torch.full_like(theta, torch.nan)
    with torch.no_grad():
        ours, _ = value_and_grad(spec, theta, batch, grad)
    params = {key: value.requires_grad_() for key, value in spec.layout.unflatten(theta).items()}
    size = 8 // shards
    total = 0.0
    for replica in range(3):
        own = {key: value[replica] for key, value in params.items()}
        towers = [spec.embed(side, own, batch[side][replica]) for side in ("image", "text")]
        scalars = {key.removeprefix("loss."): value for key, value in own.items() if key.startswith("loss.")}
        parts = []
        for start in range(0, 8, size):
            rows = slice(start, start + size)
            cut = {
                "index": lambda r=rows, i=replica: index[i, r],
                "uniform": lambda r=rows, i=replica: batch["uniform"][i, r, r],
                "step": lambda i=replica: batch["step"][i],
                "state": lambda i=replica: {key: value[i] for key, value in population.state.items()},
            }
            reserved = {key: cut[key]() for key in spec.loss.reserved}
            value = spec.loss.function(*(rows_[rows] for rows_ in towers), **scalars, **reserved)
            parts.append(value[0] if isinstance(value, tuple) else value)
        mean = torch.stack(parts).mean()
        assert_close(ours[replica], mean.detach(), rtol=1e-10, atol=1e-10)
        total = total + mean
    expected = torch.autograd.grad(total, list(params.values()), allow_unused=True, materialize_grads=True)
    for (key, value), other in zip(spec.layout.unflatten(grad).items(), expected, strict=True):
        if key not in spec.frozen:
            assert_close(value, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("name", ["clip", "siglip", "dcl", "adaptive", "global_contrastive", "siglip_masked"])
def test_a_run_is_as_if_trained_alone(name, shards):
    study = parse_study(study_text(name=name, more=f"shards = {shards}", seeds=5), "t.toml", "t")
    (group,) = groups_of(runs_of(study), lambda run: 32)
    together = Trainer(study_of(study, group), group, study.pairs(), CPU)
    whole = torch.stack([together.advance()[0] for _ in range(4)])
    for place in (0, 3, 4):
        alone = next(one for one in groups_of(runs_of(study), lambda run: 1) if one.runs[0] == group.runs[place])
        single = Trainer(study_of(study, alone), alone, study.pairs(), CPU)
        assert torch.equal(torch.stack([single.advance()[0] for _ in range(4)])[:, 0], whole[:, place])
        assert torch.equal(single.population.theta[0], together.population.theta[place])


def test_three_modalities_are_sharded_too():
    latent = 'name = "latent"\npairs = 64\nview_dim = 6\nlatent_dim = 3\nmodalities = 3'
    mlp = '{ name = "mlp", width = 8, depth = 1 }'
    trainer = trainer_of("siglip", data=latent, text=mlp, model=f"extra_modalities = {mlp}")
    spec, pairs = trainer.population.spec, trainer.study.pairs()
    params = spec.layout.unflatten(trainer.population.theta[0].double())
    batch = {name: samples[:8].double() for name, samples in pairs.modalities.items()}
    halves = [spec.embed(name, params, samples) for name, samples in batch.items()]
    scalars = {name: params[f"loss.{name}"] for name in ("log_scale", "bias")}
    parts = [
        loss["siglip"](halves[i][rows], halves[j][rows], **scalars)
        for i, j in ((0, 1), (0, 2), (1, 2))
        for rows in (slice(0, 4), slice(4, 8))
    ]
    assert_close(spec.objective(params, batch), torch.stack(parts).mean(), rtol=1e-12, atol=1e-12)


# --- studies ---------------------------------------------------------------------------------------------------------


def tiny_with(grid: str = "", train: str = "", more: str = "", probes: str = "") -> str:
    text = re.sub(r"(?s)\[probes.*", "", TINY)
    text = text.replace("lr = [0.01]", f"lr = [0.01]\n{grid}").replace("steps = 8", f"steps = 8\n{train}")
    return text + "[probes.retrieval]\nevery = 4\n" + probes + more


def test_an_axis_of_shards_trains_in_groups_of_its_own_with_its_own_chance_levels_and_starts(tmp_path):
    study = parse_study(
        tiny_with('"train.shards" = [1, 4]').replace("seeds = 3", "seeds = 2").replace("[8, 16]", "[8]"), "t.toml", "t"
    )
    groups = groups_of(runs_of(study), lambda run: 32)
    assert len(groups) == 2 * 2
    assert {len({dict(run.shared)["train.shards"] for run in group.runs}) for group in groups} == {1}
    results = load_results(run(study, device="cpu", out=tmp_path / "runs"))
    table = results.runs.set_index("run")
    chance = chance_losses(results)
    bias = results.steps.dropna(subset=["bias"]).query("step == 0").set_index("run")["bias"]
    for name, row in table.iterrows():
        seen = row["batch_size"] // row["train.shards"]
        arm = study.arm(row["arm"])
        assert chance[name] == chance_level(loss[arm.loss], seen, arm.options)
        if row["arm"] == "siglip-log-b":
            assert bias[name] == pytest.approx(-math.log(seen), rel=1e-6)
    words = next(text for title, text, *_ in paragraphs(results, analyze(results)) if title == "Local negatives")
    assert words.startswith("Batches have 1, 4 shards.")
    # With fewer negatives the loss starts lower.
    first = results.steps.query("step == 0").set_index("run")["loss"].groupby(table["train.shards"]).mean()
    assert np.all(np.diff(first.to_numpy()) < 0)


def test_one_shard_is_the_run_without_the_key():
    plain = {one.id for one in runs_of(parse_study(tiny_with(), "t.toml", "t"))}
    assert plain == {one.id for one in runs_of(parse_study(tiny_with(train="shards = 1"), "t.toml", "t"))}
    assert not plain & {one.id for one in runs_of(parse_study(tiny_with(train="shards = 2"), "t.toml", "t"))}


def test_an_arm_has_shards_of_its_own():
    arms = tiny_with(more='[arms.local]\nloss = "clip"\ntrain = { shards = 4 }\n')
    study = parse_study(arms.replace('["clip", ', '["clip", "local", '), "t.toml", "t")
    assert [study.train_of(name).shards for name in ("clip", "local")] == [1, 4]
    groups = {group.arm: group for group in groups_of(runs_of(study), lambda run: 32) if group.batch_size == 16}
    first = {}
    for name in ("clip", "local"):
        trainer = Trainer(study_of(study, groups[name]), groups[name], study.pairs(), CPU)
        assert trainer.population.spec.shards == study.train_of(name).shards
        first[name] = trainer.step()["loss"]
    assert (first["local"] < first["clip"]).all()
    assert bytes_per_replica(study, "local", 16, study.pairs()) <= bytes_per_replica(study, "clip", 16, study.pairs())


def test_probes_of_gradients_measure_the_objective_over_shards():
    probes = "[probes.gradient_noise]\nbatches = 3\n[probes.matched_gradient_noise]\nbatches = 2\n"
    study = parse_study(tiny_with(train="shards = 4", probes=probes), "t.toml", "t")
    group = next(one for one in groups_of(runs_of(study), lambda run: 32) if one.arm == "clip" and one.batch_size == 8)
    trainer = Trainer(study_of(study, group), group, study.pairs(), CPU)
    trainer.advance()
    noise, matched = (trainer.read(name).values for name in ("gradient_noise", "matched_gradient_noise"))
    population = trainer.population
    drawn = probe_batches(population, "gradient_noise", 3, [0])
    params = population.spec.layout.unflatten(population.theta[0])
    gradients = []
    for k in range(3):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        image, text = (population.spec.embed(side, leaves, drawn[side][0, k]) for side in ("image", "text"))
        parts = [
            loss["clip"](image[rows], text[rows], log_scale=leaves["loss.log_scale"])
            for rows in (slice(i, i + 2) for i in range(0, 8, 2))
        ]
        towers = [value for name, value in leaves.items() if not name.startswith("loss.")]
        flat = torch.autograd.grad(torch.stack(parts).mean(), towers)
        gradients.append(torch.cat([part.flatten() for part in flat]))
    second = torch.stack(gradients).square().sum(-1).mean()
    assert_close(noise["gradient_second_moment_towers"][0], second, rtol=1e-4, atol=1e-7)
    assert torch.isfinite(matched["matched_bias"]).all()


def test_false_negatives_are_those_within_shards():
    fingerprint = torch.tensor([[1, 1, 2, 3], [1, 2, 1, 2]])
    assert false_negative_fraction(fingerprint, 2).tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (tiny_with(train="shards = 3"), "train.shards: got 3; allowed with batches of 8: a number that divides them"),
        (tiny_with(train="shards = 8"), "train.shards: got 8; allowed with batches of 8: a number that divides them"),
        (tiny_with(train="shards = 0"), "train.shards: got 0; allowed: greater than 0"),
        (tiny_with('"train.shards" = [1, 8]'), 'grid."train.shards"[1]: got 8; allowed with batches of 8'),
        (
            tiny_with().replace('bias = "-log B"', 'bias = "-log B"\ntrain = { shards = 5 }'),
            "arms.siglip-log-b.train.shards: got 5; allowed with batches of 8",
        ),
    ],
)
def test_shards_that_do_not_fit_a_batch_are_refused_in_one_sentence(text, sentence):
    with pytest.raises(InputError, match=re.escape(f"t.toml: {sentence}")):
        parse_study(text, "t.toml", "t")


def test_the_example_of_the_guide_is_an_axis_of_its_study():
    page = (Path(__file__).parent.parent / "docs" / "vary.md").read_text(encoding="utf-8")
    whole = re.search(r"```toml\n(.*?)```", page, flags=re.DOTALL).group(1)
    example = re.search(r'```toml title="shards"\n(.*?)```', page, flags=re.DOTALL).group(1)
    text = re.sub(r"(?s)\[grid\].*?\n\n", example + "\n", whole)
    text = re.sub(r"(?s)\[\[claims\]\].*", "", text)
    assert parse_study(text, "t.toml", "t").grid.settings == {"train.shards": (1, 2, 4, 8)}
