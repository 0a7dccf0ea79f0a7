"""The model of a group: parameters, flat and by name, the towers, and the objective of one replica."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from stability.datasets import Pairs
from stability.devices import padded
from stability.encoders import encoder
from stability.encoders.validation import check_no_batch_coupling
from stability.losses import Scalar, loss, options_of, reserved_of, scalars_with
from stability.losses.batched import RowsKernel
from stability.losses.sharded import sharded
from stability.precision import FLOAT32, Precision
from stability.probes import Batch, Params
from stability.registry import InputError
from stability.streams import seed_of
from stability.study import Arm, Options, Study, modalities
from stability.train.batched_layers import Forward, batched_forward
from stability.train.frozen import FrozenSplit, split_frozen_prefix


@dataclass(frozen=True)
class Layout:
    """Names and shapes of all parameters, and their positions in one flat vector of P numbers.

    Matrices come first, then vectors, then the loss's scalars, so parameters with the same optimizer settings are
    contiguous. The weights of linear maps, (out, in), are *transposed*: they are stored as (in, out), the layout in
    which their gradient is computed, so gradients need no transposition in memory.

    Attributes:
        shapes: shape of each parameter by name.
        transposed: names of the matrices that are stored transposed.
    """

    shapes: dict[str, tuple[int, ...]]
    transposed: frozenset[str] = frozenset()

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of elements of each parameter, in memory order."""
        order = sorted(self.shapes, key=lambda name: (name.startswith("loss."), len(self.shapes[name]) < 2))
        return {name: math.prod(self.shapes[name]) for name in order}

    @cached_property
    def starts(self) -> dict[str, int]:
        """Offset of each parameter."""
        return dict(zip(self.sizes, itertools.accumulate(self.sizes.values(), initial=0), strict=False))

    @cached_property
    def size(self) -> int:
        """Number of elements of all parameters."""
        return sum(self.sizes.values())

    @cached_property
    def width(self) -> int:
        """The length P of flat vectors: the size padded to whole cache lines; the padding is zero."""
        return padded(self.size)

    def stored(self, flat: Tensor) -> Params:
        """Return the parameters with their memory order and layout, as views of *flat* (..., P)."""
        sizes = [*self.sizes.values(), flat.shape[-1] - self.size]
        parts = zip(self.sizes, flat.split(sizes, -1)[:-1], strict=True)
        return {
            name: part.view((*flat.shape[:-1], *self.shapes[name][:: -1 if name in self.transposed else 1]))
            for name, part in parts
        }

    def view(self, flat: Tensor, name: str) -> Tensor:
        """Return one parameter as a view of *flat* (..., P)."""
        start, shape = self.starts[name], self.shapes[name]
        part = flat[..., start : start + self.sizes[name]]
        return (
            part.view((*flat.shape[:-1], *shape[::-1])).mT
            if name in self.transposed
            else part.view((*flat.shape[:-1], *shape))
        )

    def unflatten(self, flat: Tensor) -> Params:
        """Return the parameters as views of *flat* (..., P)."""
        stored = self.stored(flat)
        return {name: stored[name].mT if name in self.transposed else stored[name] for name in self.shapes}

    def unflatten_contiguous(self, flat: Tensor) -> Params:
        """Return the parameters of *flat* (..., P), each contiguous in memory, for repeated computation with them."""
        return {name: value.contiguous() for name, value in self.unflatten(flat).items()}

    def flatten(self, params: Params) -> Tensor:
        """Return one tensor (..., P) of all parameters, with their common leading axes."""
        name, shape = next(iter(self.shapes.items()))
        lead = params[name].shape[: params[name].dim() - len(shape)]
        flat = params[name].new_zeros(*lead, self.width)
        # Copy directly into the flat tensor: a concatenation would copy a transposed gradient twice.
        for name, out in self.unflatten(flat).items():
            out.copy_(params[name])
        return flat


@dataclass(frozen=True)
class LossSpec:
    """The loss of an arm.

    Attributes:
        function: the loss with its options bound.
        scalars: its scalars by name.
        reserved: the reserved inputs that it takes in addition to the batch.
        initial_state: maps the number of training pairs to its initial state.
        kernel: computes the loss and its gradient for all replicas at once; None if the loss declares no kernel or does
            not have its default options.
    """

    function: Callable[..., Any]
    scalars: dict[str, Scalar]
    reserved: tuple[str, ...]
    initial_state: Callable[[int], dict[str, Tensor]]
    kernel: RowsKernel | None


def loss_spec(arm: Arm, logits: torch.dtype = torch.float32) -> LossSpec:
    """Return the loss of an arm; kernels for all replicas are only for *logits* in float32."""
    variant = loss[arm.loss]
    scalars = scalars_with(variant, arm.options)
    options = {key: value for key, value in arm.options.items() if key not in scalars}
    state = variant.traits.state or (lambda available: {})
    defaults = {name: parameter.default for name, parameter in options_of(variant).items()}
    kernel = variant.traits.value_and_grad if defaults | options == defaults and logits == torch.float32 else None
    return LossSpec(partial(variant.function, **options), scalars, reserved_of(variant), state, kernel)


@dataclass(frozen=True)
class ModelSpec:
    """What all replicas of a group share.

    Attributes:
        towers: a module per modality; its own weights are never used.
        loss: the loss.
        layout: names, shapes and memory layout of the parameters.
        initial_scalars: initial values of the loss's scalars.
        frozen: names of the parameters that are not trained.
        renormalized: names of the parameters whose rows are scaled to unit length after each step.
        forwards: forward passes for all replicas at once, by modality, where all layers are supported.
        splits: the frozen prefix and the rest of each tower that can be split.
        precision: the number formats of a training step. Probes compute everything in float32.
        shards: the number of parts of a batch of which each sees its own negatives only (`stability.losses.sharded`).
    """

    towers: dict[str, nn.Module]
    loss: LossSpec
    layout: Layout
    initial_scalars: dict[str, float]
    frozen: frozenset[str]
    renormalized: tuple[str, ...]
    forwards: dict[str, Forward]
    splits: dict[str, FrozenSplit]
    precision: Precision = FLOAT32
    shards: int = 1

    def rms_of_matrices(self, flat: Tensor) -> Tensor:
        """Return the root mean square (...,) of *flat* (..., P) over the trained weight matrices.

        Entries of frozen matrices must be zero, as in an update or a gradient. NaN if no matrix is trained.
        """
        matrices = [name for name, shape in self.layout.shapes.items() if len(shape) > 1]
        # Matrices come first in memory.
        end = sum(self.layout.sizes[name] for name in matrices)
        trained = sum(self.layout.sizes[name] for name in matrices if name not in self.frozen)
        if not trained:
            return torch.full_like(flat[..., 0], torch.nan)
        return torch.linalg.vector_norm(flat[..., :end], dim=-1) / math.sqrt(trained)

    def embed(self, modality: str, params: Params, samples: Tensor) -> Tensor:
        """Return unit rows (B, D) for the samples of one modality and one replica."""
        return F.normalize(functional_call(self.towers[modality], subtree(f"{modality}.", params), samples), dim=-1)

    def embed_image(self, params: Params, image: Tensor) -> Tensor:
        """Return unit rows (B, D) for the images of one replica."""
        return self.embed("image", params, image)

    def embed_text(self, params: Params, text: Tensor) -> Tensor:
        """Return unit rows (B, D) for the texts of one replica."""
        return self.embed("text", params, text)

    def embed_extra_modalities(self, params: Params, samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return unit rows (B, D) for the samples of each modality beyond image and text."""
        names = [name for name in self.towers if name not in ("image", "text")]
        return tuple(self.embed(name, params, part) for name, part in zip(names, samples, strict=True))

    def objective(self, params: Params, batch: Batch) -> Tensor:
        """Return the loss of one replica on one batch, a scalar."""
        return self.training_objective(params, batch)[0]

    def training_objective(self, params: Params, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one replica on one batch, and the loss's new state (empty for most losses).

        With k towers the loss is the mean over the k (k - 1) / 2 pairs of modalities; the scalars, random numbers and
        chance level are those of one pair.
        """
        params = {name: value.detach() if name in self.frozen else value for name, value in params.items()}
        return self.loss_of([self.embed(name, params, batch[name]) for name in self.towers], params, batch)

    def loss_of(self, towers: list[Tensor], params: Params, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one replica's unit rows (B, D) of each tower, and the loss's new state.

        With several shards it is the mean of their losses.
        """
        function = sharded(self.loss.function, self.shards)
        inputs = subtree("loss.", params) | {name: batch[name] for name in self.loss.reserved}
        if len(towers) > 2:
            # Created on the device: copying an index from the host would synchronize at every step.
            first, second = torch.triu_indices(len(towers), len(towers), offset=1, device=towers[0].device)
            stacked = torch.stack(towers)
            pair_losses = vmap(partial(function, **inputs))(stacked[first], stacked[second])
            return pair_losses.mean(), {}
        result = function(*towers, **inputs)
        return result if "state" in self.loss.reserved else (result, {})


def subtree(prefix: str, params: Params) -> Params:
    """Return the parameters whose names begin with *prefix*, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def build_towers(study: Study, pairs: Pairs, seed: int | str) -> dict[str, nn.Module]:
    """Build a tower for each modality; its weights depend only on the seed, not on loss, noise or batch size."""
    towers: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights"))
        for name, modality in modalities(pairs).items():
            config = study.model.tower(name)
            towers[name] = encoder[config.name](modality, study.model.embed_dim, **config.options)
    for name, tower in towers.items():
        try:
            check_no_batch_coupling(tower)
        except InputError as error:
            raise InputError(f"encoder {study.model.tower(name).name!r}: {error}") from error
    return towers


def model_spec(study: Study, arm_name: str, batch_size: int, pairs: Pairs, options: Options = ()) -> ModelSpec:
    """Return what all replicas of one arm and batch size share; *options* override those of the arm.

    Args:
        study: the study.
        arm_name: the arm.
        batch_size: B; initial scalars may depend on the pairs that the loss sees, B or those of one shard.
        pairs: the study's data.
        options: options of the loss that override those of the arm.
    """
    towers = build_towers(study, pairs, seed=0)
    train = study.train_of(arm_name)
    precision, shards = Precision.of(train.precision, train.logits), train.shards
    arm_loss = loss_spec(study.arm(arm_name, options), precision.logits)
    named_params = [
        (f"{modality}.{name}", value) for modality, tower in towers.items() for name, value in tower.named_parameters()
    ]
    frozen = {name for name, value in named_params if not value.requires_grad}
    constant = {f"loss.{name}" for name, scalar in arm_loss.scalars.items() if not scalar.trained}
    linear = {
        ".".join(filter(None, (modality, path, "weight")))
        for modality, tower in towers.items()
        for path, module in tower.named_modules()
        if isinstance(module, nn.Linear)
    }
    forwards = {name: forward for name, tower in towers.items() if (forward := batched_forward(tower)) is not None}
    splits = {
        name: split
        for name, tower in towers.items()
        if (split := split_frozen_prefix(tower, pairs.modalities[name][pairs.train[:2]])) is not None
    }
    shapes = {**{n: tuple(v.shape) for n, v in named_params}, **{f"loss.{name}": () for name in arm_loss.scalars}}
    return ModelSpec(
        towers=towers,
        loss=arm_loss,
        layout=Layout(shapes, frozenset(linear & shapes.keys())),
        initial_scalars={name: scalar.at(batch_size // shards) for name, scalar in arm_loss.scalars.items()},
        frozen=frozenset(frozen | constant),
        renormalized=tuple(
            ".".join(filter(None, (modality, path, name)))
            for modality, tower in towers.items()
            for path, module in tower.named_modules()
            for name in getattr(module, "renormalized", ())
        ),
        forwards=forwards,
        splits=splits,
        precision=precision,
        shards=shards,
    )


def initial_parameters(study: Study, spec: ModelSpec, pairs: Pairs, seeds: Sequence[int | str]) -> Tensor:
    """Return the flat parameters (R, P) of replicas with these seeds, on the CPU.

    Args:
        study: the study.
        spec: what all replicas share.
        pairs: the study's data.
        seeds: seed of each replica.
    """

    def flat(seed: int | str) -> Tensor:
        params = {
            **{
                f"{modality}.{name}": value.detach()
                for modality, tower in build_towers(study, pairs, seed).items()
                for name, value in tower.named_parameters()
            },
            **{f"loss.{name}": torch.tensor(value) for name, value in spec.initial_scalars.items()},
        }
        return spec.layout.flatten(params)

    by_seed = {seed: flat(seed) for seed in dict.fromkeys(seeds)}
    return torch.stack([by_seed[seed] for seed in seeds])
