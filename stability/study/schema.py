"""What a study is: frozen data, and the digest of what decides its results."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from stability.datasets import Pairs, dataset, declared_offers
from stability.encoders import Modality, encoder
from stability.probes import Measure, measures_of, probe
from stability.registry import InputError, Registry

SCALES = ("smoke", "small", "full")
DEFAULT_SCALE = "small"
CLAIM_AXES = ("batch_size", "train_pairs", "noise", "lr")

LATE = 0.2
"""The late window: this last share of a run's steps."""

DOUBLING = ("batch_size", "train_pairs", "lr")
"""The axes on which a step is a factor: slopes over them are per doubling. Noise, which starts at 0, is linear."""

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$"
Name = Annotated[str, Field(min_length=1, pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1)]


Options = tuple[tuple[str, Any], ...]
"""Options of a loss and initial values of its scalars, by name, as pairs that can be hashed."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class _Open(_Frozen):
    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """Return the variant's own options as written: the keys that are not fields."""
        return dict(self.model_extra or {})


class Named(_Open):
    """A variant by name, with the options given for it."""

    name: Name


Tower = Annotated[Named, BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given)]
"""A variant given by its bare name, or as a table with options."""


class Data(Named):
    """The dataset, and whether corruption is drawn once for the data (``fixed``) or anew each step (``fresh``)."""

    corruption: Literal["fixed", "fresh"] = "fixed"


class Model(_Frozen):
    """The towers and the dimension that they share; *extra_modalities* is built for each modality beyond image and text."""

    image: Tower
    text: Tower
    extra_modalities: Tower | None = None
    embed_dim: Positive = 32

    def tower(self, modality: str) -> Named:
        """Return the tower that reads a modality: image, text, or a further one."""
        towers = {"image": self.image, "text": self.text}
        found = towers.get(modality, self.extra_modalities)
        if found is None:
            raise InputError(f"model.extra_modalities: required by the modality {modality!r} of the data, but missing")
        return found


Optimizer = Literal["adamw", "sgd"]


class Train(_Frozen):
    """How every run is trained: its optimizer with decay on weight matrices, warm-up, then constant or cosine.

    AdamW reads *betas* and *eps*, its decay is decoupled; SGD reads *momentum*, its decay is part of the gradient.
    What is equal between batch sizes is the number of steps, or that of the samples seen: then *steps* and *warmup*
    are those of the smallest batch, and larger ones take proportionally fewer.
    """

    steps: Positive
    budget: Literal["steps", "samples"] = "steps"
    warmup: Annotated[int, Field(ge=0)] = 0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Optimizer = "adamw"
    momentum: Beta = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    scalar_lr_multiplier: Rate = 1.0
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Rate | None = None


class ArmTrain(_Frozen):
    """What an arm trains with instead of the study's own ``[train]``; a key that is not given is not changed."""

    lr_schedule: Literal["constant", "cosine"] | None = None
    optimizer: Optimizer | None = None
    momentum: Beta | None = None
    betas: tuple[Beta, Beta] | None = None
    eps: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    scalar_lr_multiplier: Rate | None = None
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Rate | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Return what is overridden, by name."""
        return self.model_dump(exclude_none=True)


class Grid(_Frozen):
    """The axes that are crossed: every combination is a run.

    *train_pairs* are numbers of training pairs: parts of the training split, drawn per seed and nested, the same for all
    losses; none given: all pairs. *lr_multipliers* multiply the one rate that there is, the tuned or that of *lr*. Seeds
    count from *first_seed*, those of a search from as much later.
    """

    arms: Annotated[tuple[Name, ...], Field(min_length=1)]
    batch_size: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]
    train_pairs: tuple[Positive, ...] = ()
    corruption: Annotated[tuple[Name, ...], Field(min_length=1)] = ("mismatch",)
    noise: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0,)
    lr: Annotated[tuple[Rate, ...], Field(min_length=1)]
    lr_multipliers: tuple[Rate, ...] = ()
    seeds: Positive
    first_seed: Annotated[int, Field(ge=0)] = 0

    def values(self, axis: str) -> tuple[Any, ...]:
        """Return the values of an axis that a claim may go over: of the rate its multiples, where the grid has them."""
        found: tuple[Any, ...] = getattr(self, "lr_multipliers" if self.column(axis) == "lr_multiplier" else axis)
        return found or (0,)

    def column(self, axis: str) -> str:
        """Return the name that run tables have for an axis that a claim may go over."""
        return "lr_multiplier" if axis == "lr" and self.lr_multipliers else axis


class Arm(_Open):
    """A loss under a name of its own, with options or initial values of its scalars that differ from the default.

    *train* replaces keys of the study's ``[train]`` for this arm alone: one loss at two values of beta2, say.

    Arms share weights, batches and noise at a seed, so that they can be paired. One that names an *rng_stream* draws its
    own: two arms of one loss then differ by luck alone, which is how the verdicts themselves are tested.
    """

    loss: Name
    rng_stream: str = ""
    train: ArmTrain | None = None


class Schedule(_Open):
    """When and on which runs a probe measures: every so many steps, or at shares of the run; always at the end.

    *seeds* keeps the first so many seeds; *noise*, *batch_size* and *train_pairs* keep the runs with these values.
    """

    every: Positive | None = None
    at: tuple[Share, ...] = ()
    seeds: Positive | None = None
    noise: tuple[Share, ...] | None = None
    batch_size: tuple[Positive, ...] | None = None
    train_pairs: tuple[Positive, ...] | None = None

    def steps(self, total: int) -> frozenset[int]:
        """Return the steps at which to measure, before the update; *total* means after the last."""
        regular = range(0, total, self.every) if self.every else ()
        return frozenset({*regular, *(round(share * total) for share in self.at), total})


Reduction = Literal["first", "final", "best", "mean_after_warmup", "tail_mean"]
"""How the steps of a run become one number: see `results.summarize`."""


class Claim(_Frozen):
    """One sentence that can turn out false, with all that decides it, written before any run.

    Two arms are compared by one *measure*; with *against_measure*, another measure, one arm (named twice) is compared with
    itself: what each of its runs has of the one and of the other.

    *transform* replaces the measure's own; ``relative_to_chance`` is the training loss divided by its chance level, at most 1, which
    is what a diverged run has: free of the loss's scale.
    """

    id: Name
    text: Text
    source: str = ""
    primary: bool = False
    measure: Name
    contrast: Name
    compare: tuple[Name, Name]
    expect: Literal["higher", "lower", "equal"]
    margin: Annotated[float, Field(gt=0)]
    axis: str = ""
    reduction: Reduction | None = None
    transform: Literal["linear", "log", "log_above_chance", "relative_to_chance"] | None = None
    threshold: float | None = None
    against_measure: str = ""

    @property
    def measures(self) -> tuple[str, str]:
        """Return the measures of both sides, which differ only where one is held against another."""
        return self.measure, self.against_measure or self.measure


class Ranking(_Frozen):
    """A measure by which losses are put in order, all pairs compared at once: a table and a figure, no verdict.

    *losses* are arms of the grid, all of them unless named; *reduction* and *transform* as a claim's.
    """

    measure: Name
    losses: Literal["all"] | tuple[Name, ...] = "all"
    reduction: Reduction | None = None
    transform: Literal["linear", "log", "log_above_chance", "relative_to_chance"] | None = None


class Published(_Frozen):
    """Figures that a paper reports, which stand beside ours in the report: a table, no verdict.

    *values* are the published figures by arm. With *axis* and *compare* they are differences, first arm minus second,
    by the value of that axis, which need not be values of our grid. *statistic* is what they are over the seeds: a
    mean, or a standard deviation between them. *factor* turns our measure into the published one, *unit* is theirs;
    *transfers* says what may be expected to agree here, and what not.
    """

    text: Text
    source: Text
    transfers: Text
    measure: Name
    values: dict[str, float]
    statistic: Literal["mean", "sd"] = "mean"
    reduction: Reduction = "tail_mean"
    factor: float = 1.0
    unit: str = ""
    compare: tuple[Name, Name] | None = None
    axis: str = ""


class Tune(_Open):
    """What is searched for each loss and batch size before the test runs, on seeds that the test never uses.

    *lr* are the rates to try; every key that is not a field is a scalar (its initial value) or an option of a loss,
    with the values to try. *steps* is the length of a tuning run if not that of the test's; *measure* is what a good
    setting has more (or less) of; *noise* the level to tune at, the lowest of the grid if not given. With *untuned* the
    test is run at ``grid.lr`` and the losses' defaults as well.
    """

    lr: Annotated[tuple[Rate, ...], Field(min_length=1)]
    seeds: Positive
    steps: Positive | None = None
    measure: Name | None = None
    noise: Share | None = None
    untuned: bool = False


class Study(_Frozen):
    """A question, the runs that answer it, and the claims that they decide."""

    title: Text
    question: Text
    source: str = ""
    data: Data
    model: Model
    train: Train
    grid: Grid
    arms: dict[Name, Arm] = {}
    probes: dict[str, Schedule] = {}
    claims: tuple[Claim, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    published: tuple[Published, ...] = ()
    tune: Tune | None = None

    looks: tuple[int, ...] = ()
    """Numbers of seeds after which the claims are tested, registered before the first step; none: once, at the end."""
    name: Annotated[str, Field(exclude=True)] = ""
    scale: Annotated[str, Field(exclude=True)] = DEFAULT_SCALE
    text: Annotated[str, Field(exclude=True)] = ""

    replications: Annotated[tuple[Study, ...], Field(exclude=True)] = ()
    """The same claims asked of other data or seeds: no part of the hash of this study, whose runs they leave alone."""
    replication: Annotated[str, Field(exclude=True)] = ""
    """The name under which another study lists this one as its replication, and *changes* what it changes there."""
    changes: Annotated[str, Field(exclude=True)] = ""

    @property
    def hash(self) -> str:
        """Return a digest of everything that decides a result or a verdict; comments and defaults do not count."""
        return digest(self.canonical())

    def canonical(self) -> dict[str, Any]:
        """Return the study as plain data without the values that equal their defaults."""
        plain = self.model_dump(mode="json", exclude_defaults=True)
        plain["data"] = self._data()
        for side, tower in plain["model"].items():
            if side == "embed_dim":
                continue
            plain["model"][side] = _without_defaults(encoder, tower["name"], tower)
        if sources := self.encoder_sources:
            plain["model"]["sources"] = sources
        if self.probes:
            plain["probes"] = {name: _without_defaults(probe, name, plain["probes"][name]) for name in self.probes}
        return plain

    @property
    def encoder_sources(self) -> dict[str, str]:
        """Return the digests of the sources of the encoders that are the user's own, by name."""
        towers = (self.model.image, self.model.text, self.model.extra_modalities)
        named = sorted({tower.name for tower in towers if tower is not None})
        return {name: encoder[name].traits["source"] for name in named if "source" in encoder[name].traits}

    def _data(self) -> dict[str, Any]:
        """Return what decides the data: for those from disk their content, wherever it lies and however it was read."""
        plain: dict[str, Any] = self.data.model_dump(mode="json", exclude_defaults=True)
        if dataset[self.data.name].traits.get("on_disk"):
            kept = {key: value for key, value in plain.items() if key in Data.model_fields}
            return {**kept, "fingerprint": self.pairs().fingerprint}
        return _without_defaults(dataset, self.data.name, plain)

    def arm(self, name: str, settings: Options = ()) -> Arm:
        """Return the arm of that name, with *settings* on top; a bare loss name is an arm without options."""
        arm = self.arms.get(name) or Arm(loss=name)
        return arm.model_copy(update=dict(settings)) if settings else arm

    def ranked(self, ranking: Ranking) -> tuple[str, ...]:
        """Return the arms that a ranking puts in order."""
        return self.grid.arms if ranking.losses == "all" else ranking.losses

    def train_of(self, arm: str) -> Train:
        """Return how the runs of an arm are trained: ``[train]``, with what the arm sets instead."""
        own = self.arm(arm).train
        if own is None:
            return self.train
        train = self.train.model_copy(update=own.given)
        if train.optimizer == "adamw" and own.momentum is None:
            train = train.model_copy(update={"momentum": 0.0})
        # Clipping by a norm and by a quantile exclude each other: an arm's own way replaces the study's.
        if own.clip_norm is not None or own.clip_quantile is not None:
            train = train.model_copy(update={"clip_norm": own.clip_norm, "clip_quantile": own.clip_quantile})
        return train

    def lengths(self, batch_size: int) -> tuple[int, int]:
        """Return the steps and the warm-up steps of the runs of a batch size."""
        if self.train.budget == "steps":
            return self.train.steps, self.train.warmup
        share = min(self.grid.batch_size) / batch_size
        return max(1, round(self.train.steps * share)), round(self.train.warmup * share)

    def trained_as(self, arm: str, batch_size: int) -> Study:
        """Return the study whose ``[train]`` is that of the runs of an arm at a batch size."""
        steps, warmup = self.lengths(batch_size)
        own = {"steps": steps, "warmup": warmup, "budget": "steps"}
        train = self.train_of(arm).model_copy(update=own)
        return self if train == self.train else self.model_copy(update={"train": train})

    @property
    def measures(self) -> dict[str, Measure]:
        """Return the measures that the study's runs make on its data, by name."""
        return measures_of(self.probes, declared_offers(self.data.name, self.data.options))

    def pairs(self) -> Pairs:
        """Build the study's data."""
        pairs: Pairs = dataset[self.data.name](**self.data.options)
        declared = declared_offers(self.data.name, self.data.options)
        if {*pairs.offers} != {*declared}:
            raise InputError(
                f"dataset {self.data.name!r} declares offers={declared!r}, but its pairs hold what makes "
                f"{pairs.offers!r}; declare that in its decorator"
            )
        return pairs

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a sentence on each thing that was left out of the data or cut; data made here have none."""
        return self.pairs().notes if dataset[self.data.name].traits.get("on_disk") else ()

    @property
    def untuned(self) -> str:
        """Return one sentence on what was not tuned, for the reader of a report."""
        rates = self.grid.lr
        if self.tune:
            return (
                f"The rate was chosen per loss and batch size from {self.tune.lr[0]:g} to {self.tune.lr[-1]:g} only, "
                f"by {self.tune.seeds} {'seed' if self.tune.seeds == 1 else 'seeds'} at one level of noise; what the "
                "search did not vary is the same for every loss."
            )
        if self.grid.lr_multipliers:
            shown = ", ".join(f"{factor:g}" for factor in self.grid.lr_multipliers)
            return f"No learning rate was chosen per loss: every arm was trained at {shown} times {rates[0]:g}."
        if len(rates) > 1:
            shown = ", ".join(f"{rate:g}" for rate in rates)
            return (
                f"No learning rate was chosen per loss: every arm was trained at each of {shown}; cells are averaged."
            )
        return (
            f"Nothing was tuned per loss: every arm was trained at the learning rate {rates[0]:g}, the same for every "
            "loss and batch size. A loss whose best rate lies elsewhere is shown below its best."
        )

    def due(self, name: str) -> frozenset[int]:
        """Return the steps at which a probe measures: those of its schedule, or those at which it forks the runs."""
        forks = probe[name].traits.get("forks")
        if not forks:
            return self.probes[name].steps(self.train.steps)
        given = self.probes[name].options.get(forks, probe[name].options[forks].default)
        return frozenset(given if isinstance(given, list) else [given])

    @property
    def primary(self) -> Claim | None:
        """Return the claim that decides the study's verdict."""
        return next((claim for claim in self.claims if claim.primary), None)


def modalities(pairs: Pairs) -> dict[str, Modality]:
    """Return what each tower for these data reads, by the name of its modality: image, text, modality-3 and on."""

    def read(name: str, samples: Tensor) -> Modality:
        ids = len(pairs.vocabulary) if name == "text" else pairs.image_vocabulary
        return Modality(tuple(samples.shape[1:]), 0 if samples.is_floating_point() else ids)

    return {name: read(name, samples) for name, samples in pairs.modalities.items()}


def digest(plain: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of plain data, whatever the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _without_defaults(registry: Registry, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a variant that do not just spell out its signature's default."""
    known = registry[name].options
    return {key: value for key, value in options.items() if key not in known or value != known[key].default}
