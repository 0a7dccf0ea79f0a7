"""The parameters of a population, flat and by name, and the objective of one replica."""

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
from stability.encoders.soundness import check_no_batch_coupling
from stability.losses import Scalar, loss, options_of, reserved_of, scalars_with
from stability.losses.batched import RowsKernel
from stability.probes import Batch, Params
from stability.registry import InputError
from stability.streams import seed_of
from stability.study import Arm, Options, Study, modalities
from stability.train.batched_layers import Forward, batched_forward
from stability.train.cuts import FrozenSplit, split_frozen_prefix


@dataclass(frozen=True)
class Layout:
    """Names and shapes of all parameters, and where they lie in one flat vector of P numbers.

    Matrices lie first, then vectors, then the loss's scalars: what the optimizer treats alike lies side by side. The
    weights of linear maps, (out, in), are *turned*: they lie as (in, out), which is how their gradient is computed, so
    that nothing is transposed in memory on the way to the optimizer.
    """

    shapes: dict[str, tuple[int, ...]]
    turned: frozenset[str] = frozenset()

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of elements of each parameter, in the order in which they lie."""
        order = sorted(self.shapes, key=lambda name: (name.startswith("loss."), len(self.shapes[name]) < 2))
        return {name: math.prod(self.shapes[name]) for name in order}

    @cached_property
    def starts(self) -> dict[str, int]:
        """Where each parameter begins."""
        return dict(zip(self.sizes, itertools.accumulate(self.sizes.values(), initial=0), strict=False))

    @cached_property
    def size(self) -> int:
        """Number of elements of all parameters."""
        return sum(self.sizes.values())

    @cached_property
    def width(self) -> int:
        """The same, padded to whole cache lines: the P of flat vectors, whose last elements are zero."""
        return padded(self.size)

    def stored(self, flat: Tensor) -> Params:
        """Return the parameters in their order and orientation in memory, as views of *flat* (..., P)."""
        sizes = [*self.sizes.values(), flat.shape[-1] - self.size]
        parts = zip(self.sizes, flat.split(sizes, -1)[:-1], strict=True)
        return {
            name: part.view((*flat.shape[:-1], *self.shapes[name][:: -1 if name in self.turned else 1]))
            for name, part in parts
        }

    def view(self, flat: Tensor, name: str) -> Tensor:
        """Return one parameter as a view of *flat* (..., P)."""
        start, shape = self.starts[name], self.shapes[name]
        part = flat[..., start : start + self.sizes[name]]
        return (
            part.view((*flat.shape[:-1], *shape[::-1])).mT
            if name in self.turned
            else part.view((*flat.shape[:-1], *shape))
        )

    def unflatten(self, flat: Tensor) -> Params:
        """Return the parameters as views of *flat* (..., P)."""
        stored = self.stored(flat)
        return {name: stored[name].mT if name in self.turned else stored[name] for name in self.shapes}

    def apart(self, flat: Tensor) -> Params:
        """Return the parameters of *flat* (..., P), each contiguous in memory, for those who compute with them."""
        return {name: value.contiguous() for name, value in self.unflatten(flat).items()}

    def flatten(self, params: Params) -> Tensor:
        """Return one tensor (..., P) of all parameters, with the axes that lead each of them."""
        name, shape = next(iter(self.shapes.items()))
        lead = params[name].shape[: params[name].dim() - len(shape)]
        flat = params[name].new_zeros(*lead, self.width)
        # One copy straight to its place: a gradient may come transposed, and a concatenation would copy it twice.
        for name, place in self.unflatten(flat).items():
            place.copy_(params[name])
        return flat


@dataclass(frozen=True)
class LossPlan:
    """An arm's loss: the function with its options, its scalars, what it asks for beside the batch, its first state.

    *kernel* computes it with its gradient for all replicas at once, where it declares one and has its default options;
    else it is None.
    """

    function: Callable[..., Any]
    scalars: dict[str, Scalar]
    reserved: tuple[str, ...]
    initial_state: Callable[[int], dict[str, Tensor]]
    kernel: RowsKernel | None


def loss_plan(arm: Arm) -> LossPlan:
    """Return what an arm asks of its loss."""
    variant = loss[arm.loss]
    scalars = scalars_with(variant, arm.options)
    options = {key: value for key, value in arm.options.items() if key not in scalars}
    state = variant.traits.get("state", lambda available: {})
    defaults = {name: parameter.default for name, parameter in options_of(variant).items()}
    kernel = variant.traits.get("value_and_grad") if defaults | options == defaults else None
    return LossPlan(partial(variant.function, **options), scalars, reserved_of(variant), state, kernel)


@dataclass(frozen=True)
class ModelSpec:
    """What all replicas of a group share: towers (whose own weights are never used), a loss, the layout."""

    towers: dict[str, nn.Module]
    loss: LossPlan
    layout: Layout
    initial_scalars: dict[str, float]
    frozen: frozenset[str]
    renormalized: tuple[str, ...]
    forwards: dict[str, Forward]
    cuts: dict[str, FrozenSplit]

    def rms_of_matrices(self, flat: Tensor) -> Tensor:
        """Return the root mean square (...,) of *flat* (..., P) over the weight matrices that are trained.

        Entries of those that are not trained must be zero, as in a step or a gradient. NaN without any matrix.
        """
        matrices = [name for name, shape in self.layout.shapes.items() if len(shape) > 1]
        # Matrices lie first.
        lying = sum(self.layout.sizes[name] for name in matrices)
        trained = sum(self.layout.sizes[name] for name in matrices if name not in self.frozen)
        if not trained:
            return torch.full_like(flat[..., 0], torch.nan)
        return torch.linalg.vector_norm(flat[..., :lying], dim=-1) / math.sqrt(trained)

    def embed(self, modality: str, params: Params, samples: Tensor) -> Tensor:
        """Return unit rows (B, D) for the samples of one modality and one replica."""
        return F.normalize(functional_call(self.towers[modality], within(f"{modality}.", params), samples), dim=-1)

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
        """Return the loss of one replica on one batch, and the loss's state after it (empty for most losses).

        With k towers it is the sum of the pair losses over the k (k - 1) / 2 pairs of modalities, divided by their
        number: the scalars, the random numbers and the chance level are those of one pair.
        """
        params = {name: value.detach() if name in self.frozen else value for name, value in params.items()}
        return self.loss_of([self.embed(name, params, batch[name]) for name in self.towers], params, batch)

    def loss_of(self, towers: list[Tensor], params: Params, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one replica's unit rows (B, D) of each tower, and the loss's state after it."""
        given = within("loss.", params) | {name: batch[name] for name in self.loss.reserved}
        if len(towers) > 2:
            # Made on the device: an index from the host would be waited for in every step.
            first, second = torch.triu_indices(len(towers), len(towers), offset=1, device=towers[0].device)
            stacked = torch.stack(towers)
            pair_losses = vmap(lambda one, other: self.loss.function(one, other, **given))(
                stacked[first], stacked[second]
            )
            return pair_losses.mean(), {}
        result = self.loss.function(*towers, **given)
        return result if "state" in self.loss.reserved else (result, {})


def within(prefix: str, params: Params) -> Params:
    """Return the parameters whose names begin with *prefix*, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def towers(study: Study, pairs: Pairs, seed: int | str) -> dict[str, nn.Module]:
    """Build a tower for each modality with the weights of one seed: the same for every loss, noise and batch size."""
    built = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights"))
        for name, modality in modalities(pairs).items():
            tower = study.model.tower(name)
            built[name] = encoder[tower.name](modality, study.model.embed_dim, **tower.options)
    for name, tree in built.items():
        try:
            check_no_batch_coupling(tree)
        except InputError as error:
            raise InputError(f"encoder {study.model.tower(name).name!r}: {error}") from error
    return built


def model_spec(study: Study, arm_name: str, batch_size: int, pairs: Pairs, options: Options = ()) -> ModelSpec:
    """Return what every replica of one arm (with *options* on top) and batch size shares."""
    built = towers(study, pairs, seed=0)
    plan = loss_plan(study.arm(arm_name, options))
    named = [(f"{side}.{name}", value) for side, tower in built.items() for name, value in tower.named_parameters()]
    frozen = {name for name, value in named if not value.requires_grad}
    constant = {f"loss.{name}" for name, scalar in plan.scalars.items() if not scalar.trained}
    linear = {
        ".".join(filter(None, (side, place, "weight")))
        for side, tower in built.items()
        for place, module in tower.named_modules()
        if isinstance(module, nn.Linear)
    }
    forwards = {name: forward for name, tower in built.items() if (forward := batched_forward(tower)) is not None}
    cuts = {
        name: cut
        for name, tower in built.items()
        if (cut := split_frozen_prefix(tower, pairs.modalities[name][pairs.train[:2]])) is not None
    }
    shapes = {**{n: tuple(v.shape) for n, v in named}, **{f"loss.{name}": () for name in plan.scalars}}
    return ModelSpec(
        towers=built,
        loss=plan,
        layout=Layout(shapes, frozenset(linear & shapes.keys())),
        initial_scalars={name: scalar.at(batch_size) for name, scalar in plan.scalars.items()},
        frozen=frozenset(frozen | constant),
        renormalized=tuple(
            ".".join(filter(None, (side, place, name)))
            for side, tower in built.items()
            for place, module in tower.named_modules()
            for name in getattr(module, "renormalized", ())
        ),
        forwards=forwards,
        cuts=cuts,
    )


def initial_parameters(study: Study, plan: ModelSpec, pairs: Pairs, seeds: Sequence[int | str]) -> Tensor:
    """Return the flat parameters (R, P) of replicas with these seeds, on the CPU."""

    def flat(seed: int | str) -> Tensor:
        params = {
            **{
                f"{side}.{name}": value.detach()
                for side, tower in towers(study, pairs, seed).items()
                for name, value in tower.named_parameters()
            },
            **{f"loss.{name}": torch.tensor(value) for name, value in plan.initial_scalars.items()},
        }
        return plan.layout.flatten(params)

    by_seed = {seed: flat(seed) for seed in dict.fromkeys(seeds)}
    return torch.stack([by_seed[seed] for seed in seeds])
