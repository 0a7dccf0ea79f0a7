"""The schema of a study as frozen data, and the digest of everything that decides its results."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from stability.datasets import Pairs, dataset, declared_offers
from stability.encoders import Modality, encoder
from stability.optimizers import optimizer
from stability.probes import Measure, measures_of, probe
from stability.registry import InputError, Registry, Variant
from stability.study.setting_axes import Settings, with_settings
from stability.vocabulary import ReductionName, TransformName

SCALES = ("smoke", "small", "full")
DEFAULT_SCALE = "small"

LATE = 0.2
"""The late window: the last share of a run's steps."""

HIDDEN = ("name", "scale", "text", "replications", "replication", "changes")
"""Fields of a study that are not part of its data."""

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$"
Name = Annotated[str, Field(min_length=1, pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1)]


Options = tuple[tuple[str, Any], ...]
"""Options of a loss and initial values of its scalars, by name, as hashable pairs."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class _Open(_Frozen):
    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """Return the variant's own options as written: the keys that are not fields."""
        return dict(self.model_extra or {})


class Named(_Open):
    """A variant by name, with its options."""

    name: Name


Tower = Annotated[Named, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]
"""A variant given by its bare name, or as a table with options."""


class Data(Named):
    """The dataset, and whether corruption is drawn once for the data ("fixed") or at every step ("fresh")."""

    corruption: Literal["fixed", "fresh"] = "fixed"


class Model(_Frozen):
    """The towers.

    Attributes:
        image: Tower of the images.
        text: Tower of the texts.
        extra_modalities: Tower built for each further modality.
        embed_dim: Shared embedding dimension.
    """

    image: Tower
    text: Tower
    extra_modalities: Tower | None = None
    embed_dim: Positive = 32

    def tower(self, modality: str) -> Named:
        """Return the tower that reads a modality: image, text, or a further one."""
        towers = {"image": self.image, "text": self.text}
        tower = towers.get(modality, self.extra_modalities)
        if tower is None:
            raise InputError(f"model.extra_modalities: required by the modality {modality!r} of the data, but missing")
        return tower


class Train(_Frozen):
    """How every run is trained.

    Attributes:
        steps: Number of steps.
        budget: What is equal between batch sizes: the steps, or the samples seen. With "samples", *steps* and *warmup*
            apply to the smallest batch size, and larger ones take proportionally fewer.
        warmup: Steps of linear warm-up.
        lr_schedule: Learning rate schedule after warm-up.
        optimizer: AdamW with decoupled decay, or SGD with decay as part of the gradient.
        momentum: Momentum of SGD.
        betas: Betas of AdamW.
        eps: Epsilon of AdamW.
        weight_decay: Decay of weight matrices.
        scalar_lr_multiplier: Multiplies the learning rate of the losses' scalars.
        clip_quantile: Clip gradients at this quantile of past norms.
        clip_norm: Clip gradients at this norm.
    """

    steps: Positive
    budget: Literal["steps", "samples"] = "steps"
    warmup: Annotated[int, Field(ge=0)] = 0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Name = "adamw"
    momentum: Beta = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    scalar_lr_multiplier: Rate = 1.0
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Rate | None = None


OPTIMIZER_OPTIONS = ("betas", "eps", "momentum")
"""Keys of ``[train]`` that some optimizers take."""


def optimizer_of(train: Train) -> tuple[Variant, dict[str, Any]]:
    """Return the optimizer of a ``[train]`` table and its options."""
    variant = optimizer[train.optimizer]
    return variant, {name: getattr(train, name) for name in variant.options}


def optimizer_options(name: str) -> tuple[str, ...]:
    """Return the keys that an optimizer takes; none for one that does not exist, which is refused elsewhere."""
    return tuple(optimizer[name].options) if name in optimizer else ()


class ArmTrain(_Frozen):
    """Overrides of ``[train]`` for one arm; keys that are not given keep the study's value."""

    lr_schedule: Literal["constant", "cosine"] | None = None
    optimizer: Name | None = None
    momentum: Beta | None = None
    betas: tuple[Beta, Beta] | None = None
    eps: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    scalar_lr_multiplier: Rate | None = None
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Rate | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Return the overridden keys and their values."""
        return self.model_dump(exclude_none=True)


class Grid(_Open):
    """The axes that are crossed: every combination is a run.

    A dotted key is an axis over a key of another table (see `settings`).

    Attributes:
        arms: Names of losses or of tables ``[arms.NAME]``.
        batch_size: Batch sizes.
        train_pairs: Numbers of training pairs: nested subsets of the training split, drawn per seed and the same for
            all losses. Empty: all pairs.
        corruption: Corruptions.
        noise: Shares of corrupted pairs.
        lr: Learning rates.
        lr_multipliers: Multipliers of the single rate, tuned or in *lr*.
        seeds: Number of seeds.
        first_seed: First seed; seeds of a search are offset by the same amount.
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

    @property
    def settings(self) -> dict[str, tuple[Any, ...]]:
        """Return the axes over keys of other tables, by dotted key such as ``train.warmup``, in alphabetical order."""
        return {
            key: tuple(tuple(value) if isinstance(value, list) else value for value in values)
            for key, values in sorted(self.options.items())
        }

    def values(self, axis: str) -> tuple[Any, ...]:
        """Return the values of an axis of a claim; for the rate its multipliers, if the grid has them."""
        if axis in self.options:
            return self.settings[axis]
        values: tuple[Any, ...] = getattr(self, "lr_multipliers" if self.column(axis) == "lr_multiplier" else axis)
        return values or (0,)

    def column(self, axis: str) -> str:
        """Return the column of an axis of a claim in run tables."""
        return "lr_multiplier" if axis == "lr" and self.lr_multipliers else axis


class Arm(_Open):
    """A named arm: a loss with non-default options or initial values of its scalars.

    Arms share initial weights, batches and noise at each seed, so that they can be paired.

    Attributes:
        loss: Name of the loss.
        rng_stream: Name of a separate random stream. Two arms of one loss then differ only by randomness, which is how
            the verdicts themselves are tested.
        train: Overrides of ``[train]`` for this arm, for example one loss at two values of beta2.
    """

    loss: Name
    rng_stream: str = ""
    train: ArmTrain | None = None


class Schedule(_Open):
    """When and on which runs a probe measures; it always measures at the end.

    Attributes:
        every: Measure every so many steps.
        at: Measure at these shares of the run.
        seeds: Measure only the first so many seeds.
        noise: Measure only runs with these noise levels.
        batch_size: Measure only runs with these batch sizes.
        train_pairs: Measure only runs with these numbers of training pairs.
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


class Claim(_Frozen):
    """One falsifiable statement with everything that decides it, written before any run.

    Attributes:
        id: Unique identifier.
        text: The statement.
        source: Where it comes from.
        primary: Whether it decides the study's verdict.
        measure: Name of the measure.
        contrast: Name of the contrast.
        compare: The two arms.
        expect: Expected direction.
        margin: Smallest effect that matters.
        axis: Axis of a contrast over levels.
        reduction: Overrides the contrast's reduction.
        transform: Overrides the measure's transform. "relative_to_chance" is the training loss divided by its chance
            level, at most 1 (the value of a diverged run), and is free of the loss's scale.
        threshold: Threshold of a time to threshold.
        against_measure: Second measure: one arm (listed twice in *compare*) is compared between the two measures,
            paired by run.
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
    reduction: ReductionName | None = None
    transform: TransformName | None = None
    threshold: float | None = None
    against_measure: str = ""

    @property
    def measures(self) -> tuple[str, str]:
        """Return the measures of both sides; they differ only if `against_measure` is set."""
        return self.measure, self.against_measure or self.measure


class Ranking(_Frozen):
    """A ranking of losses by one measure with all pairs compared simultaneously; it gives no verdict.

    Attributes:
        measure: Name of the measure.
        losses: Arms of the grid.
        reduction: As in a claim.
        transform: As in a claim.
    """

    measure: Name
    losses: Literal["all"] | tuple[Name, ...] = "all"
    reduction: ReductionName | None = None
    transform: TransformName | None = None


class Published(_Frozen):
    """Figures that a paper reports, shown next to ours in the report; they give no verdict.

    Attributes:
        text: What the figures show.
        source: The paper.
        transfers: What is expected to agree here, and what is not.
        measure: Our measure.
        values: The published figures by arm. With *axis* and *compare* they are differences, first arm minus second, by
            value of that axis, which need not be a value of our grid.
        statistic: Statistic over the seeds: mean or standard deviation.
        reduction: As in a claim.
        factor: Converts our measure to the published unit.
        unit: The published unit.
        compare: The two arms of a difference.
        axis: The axis of a difference.
    """

    text: Text
    source: Text
    transfers: Text
    measure: Name
    values: dict[str, float]
    statistic: Literal["mean", "sd"] = "mean"
    reduction: ReductionName = "tail_mean"
    factor: float = 1.0
    unit: str = ""
    compare: tuple[Name, Name] | None = None
    axis: str = ""


class Tune(_Open):
    """The hyperparameter search for each loss and batch size before the test runs, on seeds that the test never uses.

    Every key that is not a field names a scalar (its initial value) or an option of a loss, with the values to try.

    Attributes:
        lr: Learning rates to try.
        seeds: Number of seeds of the search.
        steps: Steps of a tuning run; default those of the test.
        measure: Measure to optimize, in its better direction.
        noise: Noise level to tune at; default the lowest of the grid.
        untuned: Also run the test at ``grid.lr`` and the losses' defaults.
    """

    lr: Annotated[tuple[Rate, ...], Field(min_length=1)]
    seeds: Positive
    steps: Positive | None = None
    measure: Name | None = None
    noise: Share | None = None
    untuned: bool = False


class Study(_Frozen):
    """A study: a question, the runs that answer it, and the claims that they decide."""

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
    """Numbers of seeds at which the claims are tested, registered before the first step; empty: once, at the end."""
    name: Annotated[str, Field(exclude=True)] = ""
    scale: Annotated[str, Field(exclude=True)] = DEFAULT_SCALE
    text: Annotated[str, Field(exclude=True)] = ""

    replications: Annotated[tuple[Study, ...], Field(exclude=True)] = ()
    """The same claims on other data or seeds; not part of this study's hash, and they do not affect its runs."""
    replication: Annotated[str, Field(exclude=True)] = ""
    """Name of this replication in the original study; *changes* lists its overrides. Empty for an original study."""
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
        """Return the digests of the source code of user-defined encoders, by name."""
        towers = (self.model.image, self.model.text, self.model.extra_modalities)
        named = sorted({tower.name for tower in towers if tower is not None})
        return {name: encoder[name].source for name in named if encoder[name].source}

    def _data(self) -> dict[str, Any]:
        """Return what determines the data; for data from disk their content, regardless of path and reading options."""
        plain: dict[str, Any] = self.data.model_dump(mode="json", exclude_defaults=True)
        if dataset[self.data.name].traits.on_disk:
            kept = {key: value for key, value in plain.items() if key in Data.model_fields}
            return {**kept, "fingerprint": self.pairs().fingerprint}
        return _without_defaults(dataset, self.data.name, plain)

    def at(self, settings: Settings) -> Study:
        """Return the study as its runs with these values of `Grid.settings` are trained."""
        if not settings:
            return self
        plain = with_settings(self.model_dump(mode="json"), settings)
        # Written with the same bytes as in a file, so that a run has the same id as in a study that sets the key.
        study = Study.model_validate_json(json.dumps(plain))
        return study.model_copy(update={key: getattr(self, key) for key in HIDDEN})

    def arm(self, name: str, settings: Options = ()) -> Arm:
        """Return the arm of that name with *settings* applied; a loss name is an arm without options."""
        arm = self.arms.get(name) or Arm(loss=name)
        return arm.model_copy(update=dict(settings)) if settings else arm

    def ranked(self, ranking: Ranking) -> tuple[str, ...]:
        """Return the arms of a ranking."""
        return self.grid.arms if ranking.losses == "all" else ranking.losses

    def train_of(self, arm: str) -> Train:
        """Return how the runs of an arm are trained: ``[train]`` with the arm's overrides."""
        arm_train = self.arm(arm).train
        if arm_train is None:
            return self.train
        train = self.train.model_copy(update=arm_train.given)
        # The study's momentum is that of its own optimizer: an arm with another that takes none has none.
        if arm_train.momentum is None and "momentum" not in optimizer_options(train.optimizer):
            train = train.model_copy(update={"momentum": 0.0})
        # Clipping by norm and by quantile are mutually exclusive, so an arm that sets one replaces the study's choice.
        if arm_train.clip_norm is not None or arm_train.clip_quantile is not None:
            train = train.model_copy(
                update={"clip_norm": arm_train.clip_norm, "clip_quantile": arm_train.clip_quantile}
            )
        return train

    def lengths(self, batch_size: int, warmup: int | None = None) -> tuple[int, int]:
        """Return the total and warm-up steps of the runs at a batch size; *warmup* replaces that of ``[train]``."""
        warmup = self.train.warmup if warmup is None else warmup
        if self.train.budget == "steps":
            return self.train.steps, warmup
        share = min(self.grid.batch_size) / batch_size
        return max(1, round(self.train.steps * share)), round(warmup * share)

    def trained_as(self, arm: str, batch_size: int) -> Study:
        """Return the study with the ``[train]`` that the runs of an arm at a batch size have."""
        steps, warmup = self.lengths(batch_size)
        overrides = {"steps": steps, "warmup": warmup, "budget": "steps"}
        train = self.train_of(arm).model_copy(update=overrides)
        return self if train == self.train else self.model_copy(update={"train": train})

    @property
    def measures(self) -> dict[str, Measure]:
        """Return the measures that the study's probes produce on its data, by name."""
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
        """Return a sentence on each thing that was left out of the data or truncated; synthetic data have none."""
        return self.pairs().notes if dataset[self.data.name].traits.on_disk else ()

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
        """Return the steps at which a probe measures: those of its schedule, or those at which it forks runs."""
        forks = probe[name].traits.forks
        if not forks:
            return self.probes[name].steps(self.train.steps)
        steps = self.probes[name].options.get(forks, probe[name].options[forks].default)
        return frozenset(steps if isinstance(steps, list) else [steps])

    @property
    def primary(self) -> Claim | None:
        """Return the claim that decides the study's verdict."""
        return next((claim for claim in self.claims if claim.primary), None)


def modalities(pairs: Pairs) -> dict[str, Modality]:
    """Return the input of each tower for these data, by modality: image, text, modality-3 and so on."""

    def read(name: str, samples: Tensor) -> Modality:
        ids = len(pairs.vocabulary) if name == "text" else pairs.image_vocabulary
        return Modality(tuple(samples.shape[1:]), 0 if samples.is_floating_point() else ids)

    return {name: read(name, samples) for name, samples in pairs.modalities.items()}


def digest(plain: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of plain data, independent of the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _without_defaults(registry: Registry, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a variant that differ from the defaults of its signature."""
    parameters = registry[name].options
    return {key: value for key, value in options.items() if key not in parameters or value != parameters[key].default}
