"""Logits, activations and updates of towers: closed forms with weights set by hand, and a slow version."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from stability.encoders import Modality, encoder
from stability.grid import groups_of, runs_of, study_of
from stability.probes import HeldOut, Replica, probe
from stability.probes.activations import layers_of, recorded
from stability.study import modalities, parse_study
from stability.train import Trainer
from stability.train.batched_layers import is_hooked

CPU = torch.device("cpu")

STUDY = """
title = "T"
question = "Q?"
[data]
name = "digits"
[model]
image = { name = "patch_transformer", width = 8, heads = 2, depth = 2, qk_norm = true }
text = { name = "token_transformer", width = 6, heads = 3, norm = "post" }
embed_dim = 4
[train]
steps = 8
[grid]
arms = ["clip", "siglip", "siglip_relative_bias", "triplet"]
batch_size = [8]
lr = [1e-2]
seeds = 2
"""


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def by_hand(a: float, c: float, p: float) -> nn.Module:
    """Return a transformer of width 2 on tokens c (1, -1) and c (-1, 1), which its block leaves as they are.

    The norms make them (1, -1) and (-1, 1); queries are a times those, keys are those, and the projection is p.
    """
    tower = encoder["token_transformer"](Modality((2,), vocabulary=2), 2, width=2, heads=1).double()
    for value in tower.parameters():
        nn.init.zeros_(value)
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
            nn.init.ones_(module.weight)
    with torch.no_grad():
        tower.embed.weight.copy_(c * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        tower.blocks[0].attention.query_key_value.weight[:4] = torch.cat([a * torch.eye(2), torch.eye(2)])
        tower.project.weight.copy_(p * torch.eye(2))
    return tower


def replica_of(image: nn.Module, text: nn.Module, held_out: HeldOut, **scalars: float) -> Replica:
    towers = {"image": image, "text": text}
    params = {
        f"{side}.{name}": value.detach() for side, tower in towers.items() for name, value in tower.named_parameters()
    }
    return Replica(
        params=params | {f"loss.{name}": scalar(value) for name, value in scalars.items()},
        objective=lambda params, batch: scalar(0.0),
        embed_image=lambda params, x: x,
        embed_text=lambda params, x: x,
        embed_extra_modalities=lambda params, x: x,
        held_out=held_out,
        batches={},
        preconditioner={},
        learning_rate=scalar(0.1),
        constant_rate=True,
        towers=towers,
    )


def pairs(image: torch.Tensor, text: torch.Tensor) -> HeldOut:
    count = torch.arange(len(image))
    return HeldOut(image, text, count, count, torch.zeros(0, 0))


@pytest.mark.parametrize("a", [3.0, -0.5])
def test_closed_forms_of_a_transformer_whose_weights_are_set_by_hand(a):
    linear = nn.Linear(2, 2, bias=False).double()
    nn.init.eye_(linear.weight)
    held_out = pairs(torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64), torch.tensor([[0, 0], [1, 1]]))
    values = probe["activations"](
        replica_of(linear, by_hand(a, c=5.0, p=0.25), held_out, log_scale=math.log(20.0), bias=-10.0)
    )
    # <a (1, -1), (1, -1)> = 2 a and a head of width 2.
    assert_close(values["attention_logit_text"], scalar(abs(a) * math.sqrt(2)))
    assert_close(values["activation_rms_text"], torch.stack([scalar(x) for x in (5.0, 5.0, 1.0, 0.25)]))
    assert_close(values["activation_rms_text_max"], scalar(5.0))
    assert values["attention_logit_image"].isnan()
    assert_close(values["activation_rms_image"], torch.stack([scalar(math.sqrt((9 + 16 + 1) / 4))]))
    # (1, 0) and (-1, 1) / sqrt 2 are the farthest apart.
    assert_close(values["output_logit"], scalar(20 / math.sqrt(2) + 10))
    assert values["update_rms_text"].isnan().tolist() == [True] * 4


def test_the_threshold_of_a_relative_bias_is_in_the_output_logit():
    linear = nn.Linear(2, 2, bias=False).double()
    nn.init.eye_(linear.weight)
    held_out = pairs(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    value = {
        name: probe["activations"](replica_of(linear, linear, held_out, **scalars))["output_logit"]
        for name, scalars in {
            "relative": {"log_scale": math.log(7.0), "relative_bias": 3.0},
            "none": {"log_scale": math.log(7.0)},
            "absent": {},
        }.items()
    }
    assert_close(value["relative"], scalar(7.0 * 3.0))
    assert_close(value["none"], scalar(7.0))
    assert value["absent"].isnan()


def test_layers_are_the_parts_with_parameters():
    tower = encoder["token_transformer"](Modality((6,), vocabulary=7), 4, width=8, depth=2)
    assert list(layers_of(tower)) == ["embed", "blocks.0", "blocks.1", "norm", "project"]
    conv = encoder["conv"](Modality((1, 8, 8)), 4)
    assert list(layers_of(conv)) == ["0", "2", "5"]
    assert list(layers_of(encoder["free_vectors"](Modality((1,), vocabulary=7), 4))) == [""]


def test_no_hook_is_left_even_if_a_tower_raises():
    tower = encoder["token_transformer"](Modality((6,), vocabulary=7), 4, width=8)
    with pytest.raises(IndexError), recorded(tower):
        tower(torch.full((1, 6), 9))
    assert not any(map(is_hooked, tower.modules()))


def slow_attention_logit(tower: nn.Module, params: dict, samples: torch.Tensor) -> float:
    """Return the largest |<q, k>| / sqrt(d), one block, head and pair of positions after another."""
    largest = 0.0
    for name, parameter in params.items():
        tower.get_parameter(name).data.copy_(parameter)
    x = tower.embed(samples) + tower.position
    for block in tower.blocks:
        read = x if block.norm == "post" else block.attention_norm(x)
        attention = block.attention
        width = read.shape[-1] // attention.heads
        query, key, _ = (read @ attention.query_key_value.weight.T + attention.query_key_value.bias).chunk(3, -1)
        for head in range(attention.heads):
            part = slice(head * width, (head + 1) * width)
            q, k = attention.query_norm(query[..., part]), attention.key_norm(key[..., part])
            for i in range(read.shape[-2]):
                for j in range(read.shape[-2]):
                    largest = max(largest, float((q[:, i] * k[:, j]).sum(-1).abs().max()) / math.sqrt(width))
        x = block(x)
    return largest


def slow_sizes(tower: nn.Module, samples: torch.Tensor) -> list[float]:
    x = tower.embed(samples)
    outputs = [x]
    x = x + tower.position
    for block in tower.blocks:
        x = block(x)
        outputs.append(x)
    outputs += [tower.norm(x), tower.project(tower.norm(x).mean(-2))]
    return [math.sqrt(float(output.double().pow(2).mean())) for output in outputs]


def trainer_of(arm: str, probes: str = "[probes.activations]\n") -> Trainer:
    study = parse_study(STUDY + probes, "t.toml", "t")
    (group,) = groups_of([run for run in runs_of(study) if run.arm == arm], lambda run: 32)
    return Trainer(study_of(study, group), group, study.pairs(), CPU)


@pytest.mark.parametrize("arm", ["clip", "siglip_relative_bias"])
def test_every_replica_has_the_values_of_a_slow_version(arm):
    trainer = trainer_of(arm)
    assert all(
        value.isnan().all()
        for name, value in trainer.read("activations").values.items()
        if name.startswith("update_rms")
    )
    for _ in range(3):
        before = trainer.population.theta.clone()
        trainer.advance()
    population = trainer.population
    values = trainer.read("activations").values
    assert not any(is_hooked(module) for tower in population.spec.towers.values() for module in tower.modules())
    layout, held_out = population.spec.layout, population.held_out
    for replica in range(2):
        params = layout.unflatten(population.theta[replica])
        step = layout.unflatten(population.theta[replica] - before[replica])
        for side, samples in (("image", held_out.image), ("text", held_out.text)):
            config = population.study.model.tower(side)
            tower = encoder[config.name](modalities(population.study.pairs())[side], 4, **config.options)
            with torch.no_grad():
                own = {name.removeprefix(f"{side}."): p for name, p in params.items() if name.startswith(f"{side}.")}
                expected = slow_attention_logit(tower, own, samples)
                sizes = slow_sizes(tower, samples)
            assert_close(values[f"attention_logit_{side}"][replica].item(), expected, rtol=1e-5, atol=0)
            assert_close(values[f"activation_rms_{side}"][replica].tolist(), sizes, rtol=1e-5, atol=0)
            assert_close(values[f"activation_rms_{side}_max"][replica].item(), max(sizes), rtol=1e-5, atol=0)
            updates = [
                torch.cat([value.flatten() for name, value in step.items() if name.startswith(f"{side}.{layer}.")])
                for layer in layers_of(tower)
            ]
            expected = [math.sqrt(float(update.double().pow(2).mean())) for update in updates]
            assert_close(values[f"update_rms_{side}"][replica].tolist(), expected, rtol=1e-5, atol=0)
        image, text = (population.spec.embed(side, params, getattr(held_out, side)) for side in ("image", "text"))
        t = params["loss.log_scale"].exp()
        logits = t * image @ text.T - (t * params["loss.relative_bias"] if arm == "siglip_relative_bias" else 0)
        assert_close(values["output_logit"][replica], logits.abs().max())


def test_a_loss_without_a_scale_has_no_output_logit():
    assert trainer_of("triplet").read("activations").values["output_logit"].isnan().all()


def test_reading_activations_and_keeping_the_update_change_no_bit_of_training():
    thetas = []
    for probes in ("", "[probes.activations]\n", "[probes.activations]\n[probes.linear_mode]\nfork = 2\npoints = 3\n"):
        trainer = trainer_of("siglip", probes)
        for step in range(4):
            for name in trainer.study.probes:
                if name == "activations" or step == 2:
                    trainer.read(name)
            trainer.advance()
        thetas.append(trainer.population.theta)
        assert (trainer.population.update is None) == (not probes)
    assert torch.equal(thetas[0], thetas[1])
    assert torch.equal(thetas[0], thetas[2])


def test_hooks_record_each_replica_under_vmap():
    tower = encoder["token_transformer"](Modality((6,), vocabulary=7), 4, width=8).double()
    params = {name: torch.stack([value, 2 * value]).detach() for name, value in tower.named_parameters()}
    samples = torch.randint(0, 7, (5, 6))

    def measured(own: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        with recorded(tower) as (sizes, logits):
            functional_call(tower, own, (samples,))
        return torch.stack([*sizes.values()]), torch.stack(logits)

    together = vmap(measured)(params)
    for index in range(2):
        alone = measured({name: value[index] for name, value in params.items()})
        assert_close([part[index] for part in together], [*alone])
        embedded = F.embedding(samples, params["embed.weight"][index])
        assert_close(alone[0][0], embedded.square().mean().sqrt())
