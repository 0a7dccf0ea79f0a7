"""The parameters of a population, flat and by name, and the objective of one replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from stability.datasets import Pairs
from stability.encoders import Modality, encoder
from stability.losses import Scalar, loss, scalars_of
from stability.probes import Batch, Params
from stability.registry import InputError
from stability.streams import seed_of
from stability.study import Study


@dataclass(frozen=True)
class Layout:
    """Names and shapes of all parameters, and the order in which they lie in one flat vector of P numbers."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each parameter."""
        return [torch.Size(shape).numel() for shape in self.shapes.values()]

    def unflatten(self, flat: Tensor) -> Params:
        """Return the parameters as views of *flat* (..., P). One split, so its backward is one concatenation."""
        parts = flat.split(self.sizes, -1)
        lead = flat.shape[:-1]
        return {
            name: part.view((*lead, *shape)) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flatten(self, params: Params) -> Tensor:
        """Return one vector of P numbers for the parameters of one replica."""
        return torch.cat([params[name].reshape(-1) for name in self.shapes])

    def spread(self, value: Callable[[str, tuple[int, ...]], float]) -> Tensor:
        """Return (P,) with *value* of each parameter's name and shape, repeated over its elements."""
        values = torch.tensor([value(name, shape) for name, shape in self.shapes.items()])
        return values.repeat_interleave(torch.tensor(self.sizes))


@dataclass(frozen=True)
class Blueprint:
    """What all replicas of a group share: two towers (templates without weights of their own), a loss, the layout."""

    image: nn.Module
    text: nn.Module
    loss: Callable[..., Tensor]
    layout: Layout
    initial_scalars: dict[str, float]

    def embed_image(self, params: Params, image: Tensor) -> Tensor:
        """Return unit rows (B, D) for the images of one replica."""
        return F.normalize(functional_call(self.image, _within("image.", params), image), dim=-1)

    def embed_text(self, params: Params, text: Tensor) -> Tensor:
        """Return unit rows (B, D) for the texts of one replica."""
        return F.normalize(functional_call(self.text, _within("text.", params), text), dim=-1)

    def objective(self, params: Params, batch: Batch) -> Tensor:
        """Return the loss of one replica on one batch, a scalar."""
        image = self.embed_image(params, batch["image"])
        text = self.embed_text(params, batch["text"])
        return self.loss(image, text, **_within("loss.", params))


def _within(prefix: str, params: Params) -> Params:
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def modalities(pairs: Pairs) -> tuple[Modality, Modality]:
    """Return what the image tower and the text tower of these data read."""
    image = Modality(tuple(pairs.image.shape[1:]), pairs.image_vocabulary)
    return image, Modality(tuple(pairs.text.shape[1:]), len(pairs.vocabulary))


def towers(study: Study, pairs: Pairs, seed: int) -> tuple[nn.Module, nn.Module]:
    """Build both towers with the weights of one seed: the same for every loss, noise level and batch size."""
    image, text = modalities(pairs)
    built = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights"))
        for modality, tower in ((image, study.model.image), (text, study.model.text)):
            built.append(encoder[tower.name](modality, study.model.embed_dim, **tower.options))
    for module_tree in built:
        for name, module in module_tree.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise InputError(
                    f"encoder layer {name!r} is a BatchNorm, which couples the samples of a batch; use LayerNorm"
                )
    return built[0], built[1]


def blueprint(study: Study, arm_name: str, batch_size: int, pairs: Pairs) -> Blueprint:
    """Return what every replica of one arm and batch size shares."""
    image, text = towers(study, pairs, seed=0)
    arm = study.arm(arm_name)
    variant = loss[arm.loss]
    scalars = {
        name: Scalar(arm.options[name]) if name in arm.options else scalar
        for name, scalar in scalars_of(variant).items()
    }
    options: dict[str, Any] = {key: value for key, value in arm.options.items() if key not in scalars}
    shapes = {
        **{f"image.{name}": tuple(value.shape) for name, value in image.named_parameters()},
        **{f"text.{name}": tuple(value.shape) for name, value in text.named_parameters()},
        **{f"loss.{name}": () for name in scalars},
    }
    initial = {name: scalar.at(batch_size) for name, scalar in scalars.items()}
    return Blueprint(image, text, partial(variant.function, **options), Layout(shapes), initial)


def initial_parameters(study: Study, plan: Blueprint, pairs: Pairs, seeds: list[int]) -> Tensor:
    """Return the flat parameters (R, P) of replicas with these seeds, on the CPU."""

    def flat(seed: int) -> Tensor:
        image, text = towers(study, pairs, seed)
        params = {
            **{f"image.{name}": value.detach() for name, value in image.named_parameters()},
            **{f"text.{name}": value.detach() for name, value in text.named_parameters()},
            **{f"loss.{name}": torch.tensor(value) for name, value in plan.initial_scalars.items()},
        }
        return plan.layout.flatten(params)

    by_seed = {seed: flat(seed) for seed in dict.fromkeys(seeds)}
    return torch.stack([by_seed[seed] for seed in seeds])
