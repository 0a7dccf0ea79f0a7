"""What runs on every device: each registered loss, optimizer, encoder, corruption and probe, in tiny studies.

`TRAINING` and `PROBES` are made from the registries, so that a new variant is run on every device without being named.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from stability.corruptions import corruption
from stability.datasets import Pairs, dataset
from stability.encoders import encoder
from stability.grid import Group, runs_of
from stability.losses import loss
from stability.optimizers import optimizer
from stability.probes import probe
from stability.study import Study, parse_study
from stability.train import Trainer

STEPS = 4
SHAPES = 'name = "shapes"\npairs = 160\nsize = 8'
LATENT = 'name = "latent"\npairs = 400\nview_dim = 6\nlatent_dim = 3'
MLP = '{ name = "mlp", width = 8, depth = 1 }'
TOKENS = '{ name = "token_transformer", width = 8, heads = 2, depth = 1 }'

SMALL = {"batches": 2, "draws": 1, "steps": 3, "edge_steps": 2, "trace_probes": 2, "points": 3, "repeats": 1, "fork": 2}
"""Options of probes that make them quick, or the least that a probe takes; *fork* is the step at which it is read."""


def study_text(
    *, name: str = "clip", data: str = SHAPES, image: str = MLP, text: str = TOKENS, model: str = "", more: str = "",
    grid: str = "noise = [0.5]", seeds: int = 3, probes: str = "",
) -> str:  # fmt: skip
    """Return a study of one loss with one cell, trained in batches of 8; *more* belongs to its table ``[train]``."""
    return f"""
title = "Tiny"
question = "Does it run on every device?"
[data]
{data}
[model]
image = {image}
text = {text}
embed_dim = 4
{model}
[train]
steps = {STEPS}
warmup = 2
{more}
[grid]
arms = ["{name}"]
batch_size = [8]
lr = [0.01]
seeds = {seeds}
{grid}
{probes}
"""


def _tower(name: str) -> str:
    """Return the study of an encoder: free vectors on both sides, any other on the side that it reads."""
    if name == "free_vectors":
        tower = '{ name = "free_vectors" }'
        return study_text(data='name = "sphere"\npairs = 24', image=tower, text=tower, grid="noise = [0.0]")
    small = {"width": 8, "depth": 1, "patch": 4, "heads": 2}
    options = "".join(f", {option} = {small[option]}" for option in encoder[name].options if option in small)
    side = "text" if encoder[name].traits.modality == "text" else "image"
    return study_text(**{side: f'{{ name = "{name}"{options} }}'})


def _locked(tower: str) -> str:
    return tower.replace(" }", ", frozen = true }")


TRAINING: dict[str, str] = {
    **{f"loss {name}": study_text(name=name) for name in sorted(loss)},
    **{f"optimizer {name}": study_text(more=f'optimizer = "{name}"') for name in sorted(optimizer)},
    **{f"encoder {name}": _tower(name) for name in sorted(encoder)},
    **{
        f"{kind} {name}": study_text(
            data=f'{SHAPES}\ncorruption = "{kind}"', grid=f'noise = [0.5]\ncorruption = ["{name}"]'
        )
        for kind in ("fixed", "fresh")
        for name in sorted(corruption)
    },
    "SGD with momentum": study_text(more='optimizer = "sgd"\nmomentum = 0.9'),
    "SGD with Nesterov's momentum": study_text(more='optimizer = "sgd"\nmomentum = 0.9\nnesterov = true'),
    "clipping at a quantile": study_text(more="clip_quantile = 0.5"),
    "clipping at a norm": study_text(more="clip_norm = 0.1"),
    "cosine schedule": study_text(more='lr_schedule = "cosine"'),
    "several rates": study_text(grid="noise = [0.5]").replace("lr = [0.01]", "lr = [0.01, 0.03]"),
    "a locked tower": study_text(image=_locked(MLP), grid="noise = [0.0, 0.5]"),
    "a locked tower, fresh": study_text(image=_locked(MLP), data=f'{SHAPES}\ncorruption = "fresh"'),
    "parts of the pairs": study_text(grid="noise = [0.5]\ntrain_pairs = [64]"),
    "a shift of the data": study_text(data=f"{LATENT}\n[data.shift]\nstep = 1\nsnr = 0.5\nnoise = 0.75", text=MLP),
    "a shift of the data, fresh": study_text(
        data=f'{SHAPES}\ncorruption = "fresh"\n[data.shift]\nstep = 1\nnoise = 0.75\ncorruption = "image_noise"'
    ),
    "a shift of the data, a locked tower": study_text(
        image=_locked(MLP), data=f"{SHAPES}\n[data.shift]\nstep = 1\nnoise = 0.75\ncorruption = 'image_noise'"
    ),
    **{
        f"shards, {name}": study_text(name=name, more="shards = 2") for name in ("clip", "siglip", "global_contrastive")
    },
    "three modalities": study_text(data=f"{LATENT}\nmodalities = 3", text=MLP, model=f"extra_modalities = {MLP}"),
}
"""Studies by what is trained in them."""


def _table(name: str) -> str:
    least = probe[name].traits.least
    small = {option: max(SMALL[option], least.get(option, 0)) for option in probe[name].options if option in SMALL}
    options = "".join(f"{option} = {value}\n" for option, value in small.items())
    # One model after the other, each with its whole Hessian: the slowest by far.
    return f"[probes.{name}]\n{options}" + "seeds = 1\n" * (name == "cross_check")


def probed(name: str, seeds: int) -> str:
    """Return the study in which the probe called *name* is read, with every other that the same data suit."""
    data = _data_for(name)
    alike = [each for each in sorted(probe) if _data_for(each) == data]
    return study_text(
        name="siglip",
        data=data,
        text=TOKENS if data == SHAPES else MLP,
        seeds=seeds,
        probes="\n".join(map(_table, alike)),
    )


def _data_for(name: str) -> str:
    wanted = {measure.needs for measure in probe[name].traits.measures}
    return SHAPES if "hard-negatives" in wanted else LATENT


@cache
def study_of(text: str) -> Study:
    return parse_study(text, "tiny.toml", "tiny")


@cache
def _pairs_of(data: str) -> Pairs:
    options = tomllib.loads(data)
    return dataset[options.pop("name")](**options)


def pairs_of(text: str) -> Pairs:
    """Return the data of a study, made once for all studies with the same."""
    data = text.split("[data]\n")[1].split("\n[")[0]
    return _pairs_of("\n".join(line for line in data.splitlines() if not line.startswith("corruption")))


def trainer_on(device: torch.device, text: str, **how: bool) -> Trainer:
    """Return the trainer of all runs of a study, on *device*."""
    study = study_of(text)
    return Trainer(study, Group("g", runs_of(study)), pairs_of(text), device, **how)


def on_cpu(measures: Mapping[str, Tensor], trainer: Trainer) -> dict[str, Tensor]:
    """Return the measures of a step and the parameters after it, copied to the CPU."""
    return {
        name: value.cpu() for name, value in {**measures, "theta": trainer.population.theta.detach().clone()}.items()
    }


def steps_of(trainer: Trainer, count: int) -> list[dict[str, Tensor]]:
    """Train so many steps and return the measures of each, with the parameters after it."""
    return [on_cpu(trainer.step(), trainer) for _ in range(count)]


def reading_of(trainer: Trainer, name: str) -> dict[str, Tensor]:
    """Return what a probe reads now, on the CPU, without what differs from one reading to the next."""
    noisy = probe[name].traits.timed
    values = {key: value.cpu() for key, value in trainer.read(name).values.items()}
    return {key: value for key, value in values.items() if not (noisy and "milliseconds" in key)}


def comparable(name: str, reading: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what is a computed error: it may be nothing but rounding."""
    errors = {measure.name for measure in probe[name].traits.measures if measure.error_of}
    return {key: value for key, value in reading.items() if key not in errors}


def assert_close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], share: float) -> None:
    """Raise unless each measure differs by at most a *share* of its largest value among the replicas."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = ours[name].double()
        expected = expected.double()
        assert torch.equal(found.isfinite(), expected.isfinite()), name
        largest = expected.nan_to_num().abs().max()
        assert (found - expected).nan_to_num().abs().max() <= share * largest + 1e-6, (name, found, expected)
