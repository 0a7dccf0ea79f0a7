"""The tables of a study as frozen data."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from stability.precision import LogitsName, PrecisionName
from stability.registry import InputError, snake_case

SCALES = ("smoke", "small", "full")
DEFAULT_SCALE = "small"

LATE = 0.2
"""The late window: the last share of a run's steps."""

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$"
Name = Annotated[str, Field(min_length=1, pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1)]


Options = tuple[tuple[str, Any], ...]
"""Options of a loss and initial values of its scalars, by name, as hashable pairs."""


class Frozen(BaseModel):
    """A table that cannot change and takes no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class Open(Frozen):
    """A table that also takes the options of a variant."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """Return the variant's own options as written: the keys that are not fields."""
        return dict(self.model_extra or {})


class Named(Open):
    """A variant by name, with its options."""

    name: Name


Tower = Annotated[Named, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]
"""A variant given by its bare name, or as a table with options."""


class Shift(Open):
    """A change of the training data, the same for all arms; it also takes options of the dataset.

    Attributes:
        step: The first update on the shifted data. With ``train.budget = "samples"`` it applies to the smallest batch
            size, like *steps*.
        noise: Share of corrupted pairs from then on; None: that of the run.
        corruption: Corruption from then on; None: that of the run.
    """

    step: Positive
    noise: Share | None = None
    corruption: Annotated[Name, BeforeValidator(snake_case)] | None = None


class Data(Named):
    """The dataset.

    Attributes:
        corruption: Whether corruption is drawn once for the data ("fixed") or at every step ("fresh").
        shift: The change of the training data, if there is one.
    """

    corruption: Literal["fixed", "fresh"] = "fixed"
    shift: Shift | None = None


class Model(Frozen):
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


class Train(Open):
    """How every run is trained.

    Keys that are not fields are options of an optimizer of one's own.

    Attributes:
        steps: Number of steps.
        budget: What is equal between batch sizes: the steps, or the samples seen. With "samples", *steps* and *warmup*
            apply to the smallest batch size, and larger ones take proportionally fewer.
        warmup: Steps of linear warm-up.
        lr_schedule: Learning rate schedule after warm-up.
        optimizer: Name of the update rule; options that it takes and the study leaves out have its own defaults.
        momentum: Momentum, as of SGD.
        nesterov: Whether momentum is Nesterov's.
        betas: Decay rates of running means, as of AdamW.
        eps: Added to a denominator, as of AdamW.
        weight_decay: Decay of weight matrices.
        scalar_lr_multiplier: Multiplies the learning rate of the losses' scalars.
        clip_quantile: Clip gradients at this quantile of past norms.
        clip_norm: Clip gradients at this norm.
        precision: Number format of the towers' matrix products; parameters, moments and updates stay float32.
        logits: Number format of the similarities and the loss: float32, or that of the towers.
        initial_loss_scale: Factor on the loss before its gradient is taken in float16.
        loss_scale_growth_interval: Steps without overflow after which that factor is doubled.
        shards: Parts of a batch, each with the negatives of its own pairs only; the loss is their mean.
        lr_multiplier: Multiplies the learning rate of the grid at every step.
    """

    steps: Positive
    budget: Literal["steps", "samples"] = "steps"
    warmup: Annotated[int, Field(ge=0)] = 0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Name = "adamw"
    momentum: Beta | None = None
    nesterov: bool | None = None
    betas: tuple[Beta, Beta] | None = None
    eps: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    scalar_lr_multiplier: Rate = 1.0
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Rate | None = None
    precision: PrecisionName = "float32"
    logits: LogitsName = "float32"
    initial_loss_scale: Annotated[float, Field(ge=1)] = 65536.0
    loss_scale_growth_interval: Positive = 2000
    shards: Positive = 1
    lr_multiplier: Rate = 1.0


class ArmTrain(Open):
    """Overrides of ``[train]`` for one arm; keys that are not given keep the study's value.

    Attributes: as in `Train`; keys that are not fields are options of an optimizer of one's own.
    """

    lr_schedule: Literal["constant", "cosine"] | None = None
    optimizer: Name | None = None
    momentum: Beta | None = None
    nesterov: bool | None = None
    betas: tuple[Beta, Beta] | None = None
    eps: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    scalar_lr_multiplier: Rate | None = None
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Rate | None = None
    precision: PrecisionName | None = None
    logits: LogitsName | None = None
    shards: Positive | None = None
    lr_multiplier: Rate | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Return the overridden keys and their values."""
        return self.model_dump(exclude_none=True)


class Grid(Open):
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


def _number_or(*words: str) -> BeforeValidator:
    """Return the validator of a key that takes a finite number or one of some *words*."""

    def read(value: Any) -> str | float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number and value not in words:
            allowed = ", ".join(map(repr, words))
            raise PydanticCustomError("number_or_word", "a number, or one of {allowed}", {"allowed": allowed})
        return value if isinstance(value, str) else float(value)

    return BeforeValidator(read)


class Start(Frozen):
    """What the runs of an arm start from instead of fresh weights: other runs in mid-training, or a file.

    Attributes:
        arm: The arm whose run of the same cell and seed is the parent.
        step: The step of the switch: the towers are those of the parent before its update of this step, and training
            goes on from there. With ``train.budget = "samples"`` it is that of the smallest batch size, like *warmup*.
        parameters: A safetensors file with the towers (and scalars of the loss that are "kept"), instead of an arm;
            training then starts at step 0.
        run: Which run of a file of several: its id or a unique prefix.
        optimizer_state: Whether running means of the towers, and of the scalars that both losses have, start at zero
            or as the parent had them.
        log_scale: Where log t starts: as the parent had it, at a number, or at the arm's own initial value. Left out:
            "kept" if both losses have it and the arm sets no initial value, else "initial".
        bias: Where the bias starts; "fitted" is the value that minimizes the arm's loss on its first batch.
        warmup: Steps of linear warm-up after the switch, in addition to the schedule of ``[train]``, which goes on.
        lr_multiplier: Multiplies the learning rate after the switch.
    """

    arm: Name | None = None
    step: Positive | None = None
    parameters: Text | None = None
    run: Text | None = None
    optimizer_state: Literal["reset", "kept"] = "reset"
    log_scale: Annotated[str | float, _number_or("kept", "initial")] | None = None
    bias: Annotated[str | float, _number_or("kept", "initial", "-log B", "fitted")] = "initial"
    warmup: Annotated[int, Field(ge=0)] = 0
    lr_multiplier: Rate = 1.0

    @property
    def first_step(self) -> int:
        """Return the first step that the runs train: that of the switch, or 0 for parameters from a file."""
        return self.step or 0


class Arm(Open):
    """A named arm: a loss with non-default options or initial values of its scalars.

    Arms share initial weights, batches and noise at each seed, so that they can be paired.

    Attributes:
        loss: Name of the loss.
        rng_stream: Name of a separate random stream. Two arms of one loss then differ only by randomness, which is how
            the verdicts themselves are tested.
        train: Overrides of ``[train]`` for this arm, for example one loss at two values of beta2.
        start: What its runs start from; None: fresh weights.
    """

    loss: Name
    rng_stream: str = ""
    train: ArmTrain | None = None
    start: Start | None = None


class Schedule(Open):
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


class Tune(Open):
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
