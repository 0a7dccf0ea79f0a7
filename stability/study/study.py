"""A study, what its runs are trained with, and the digest of everything that decides its results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from stability.datasets import Pairs, dataset, declared_offers
from stability.encoders import Modality, encoder
from stability.optimizers import optimizer, options_of
from stability.probes import Measure, measures_of, probe
from stability.registry import InputError, Registry, Variant
from stability.study.claim_schema import Claim, Control, Published, Ranking
from stability.study.parameter_files import digest_of
from stability.study.schema import (
    DEFAULT_SCALE,
    Arm,
    Data,
    Frozen,
    Grid,
    Model,
    Name,
    Options,
    Schedule,
    Shift,
    Start,
    Text,
    Train,
    Tune,
)
from stability.study.setting_axes import Settings, with_settings

OPTIMIZER_OPTIONS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "momentum": 0.0, "nesterov": False}
"""Keys of ``[train]`` that some optimizers take, with the value that has no effect under one that does not."""

SHARED_OPTIONS = ("betas", "eps")
"""Those that a study may set although its own optimizer does not take them, for the arms whose optimizers do."""


def optimizer_of(train: Train) -> tuple[Variant, dict[str, Any]]:
    """Return the optimizer of a ``[train]`` table and its options: those that the table sets, else its defaults."""
    variant = optimizer[train.optimizer]
    values = {name: getattr(train, name, None) for name in options_of(variant)}
    return variant, {
        name: default_option(train.optimizer, name) if value is None else value for name, value in values.items()
    }


def optimizer_options(name: str) -> tuple[str, ...]:
    """Return the keys that an optimizer takes; none for one that does not exist, which is refused elsewhere."""
    return tuple(options_of(optimizer[name])) if name in optimizer else ()


def own_options() -> set[str]:
    """Return the options of optimizers that are no keys of every ``[train]``: those of optimizers of one's own."""
    return {key for name in optimizer for key in optimizer_options(name)} - {*Train.model_fields}


def default_option(name: str, key: str) -> Any:
    """Return what leaving out an option of optimizers means under one of them.

    Under one that does not take it, that is the value without effect, or what it means to the first that takes it.

    >>> default_option("adamw", "eps"), default_option("sgd", "eps")
    (1e-08, 1e-08)
    """
    parameters = options_of(optimizer[name])
    if key in parameters:
        return parameters[key].default
    if key in OPTIMIZER_OPTIONS:
        return OPTIMIZER_OPTIONS[key]
    return next(options_of(optimizer[other])[key].default for other in optimizer if key in optimizer_options(other))


def train_table(train: Train, optimizers: Iterable[str]) -> dict[str, Any]:
    """Return a ``[train]`` table as plain data, without what leaving it out means under each of the *optimizers*."""
    table = train.model_dump(mode="json", exclude_defaults=True)
    for key in table.keys() & {*OPTIMIZER_OPTIONS, *train.options}:
        if all(getattr(train, key) == default_option(name, key) for name in optimizers):
            del table[key]
    return table


NOT_DATA = ("name", "scale", "text", "replications", "replication", "changes")
"""Fields of a study that are not part of its data."""


class Study(Frozen):
    """A study: a question, the runs that answer it, and the claims that they decide.

    Attributes:
        title: Title of the report.
        question: The question, in one sentence.
        source: Where the claims are made.
        data: The data.
        model: The towers.
        train: How runs are trained.
        grid: The axes that are crossed.
        arms: Named arms, in addition to losses by their names.
        probes: When each probe measures, by its name.
        claims: The claims.
        controls: The differences that are planted to show that the claims' measures can move.
        rankings: The rankings.
        published: Figures of papers.
        tune: The hyperparameter search, if there is one.
        looks: Numbers of seeds at which the claims are tested, registered before the first step; empty: once, at the
            end.
        name: Name of the study.
        scale: Its scale.
        text: The TOML.
        replications: The same claims on other data or seeds; they are not part of this study's hash and do not affect
            its runs.
        replication: Name of this replication in the original study; empty for an original study.
        changes: What this replication overrides, in words.
        base: ``[train]`` and ``[data]`` as the study has them, if its own are of one arm and batch size (`trained_as`).
    """

    title: Text
    question: Text
    source: str = ""
    data: Data
    model: Model
    train: Train
    grid: Grid
    arms: dict[Name, Arm] = Field(default={})
    probes: dict[str, Schedule] = Field(default={})
    claims: tuple[Claim, ...] = ()
    controls: tuple[Control, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    published: tuple[Published, ...] = ()
    tune: Tune | None = None
    looks: tuple[int, ...] = ()
    name: Annotated[str, Field(exclude=True)] = ""
    scale: Annotated[str, Field(exclude=True)] = DEFAULT_SCALE
    text: Annotated[str, Field(exclude=True)] = ""
    replications: Annotated[tuple[Study, ...], Field(exclude=True)] = ()
    replication: Annotated[str, Field(exclude=True)] = ""
    changes: Annotated[str, Field(exclude=True)] = ""
    base: Annotated[tuple[Train, Data] | None, Field(exclude=True)] = None

    @property
    def hash(self) -> str:
        """Return a digest of everything that decides a result or a verdict; comments and defaults do not count."""
        return digest(self.canonical())

    def canonical(self) -> dict[str, Any]:
        """Return the study as plain data without the values that equal their defaults."""
        plain = self.model_dump(mode="json", exclude_defaults=True)
        plain["data"] = self._data()
        plain["train"] = train_table(self.train, self.optimizers)
        for side, tower in plain["model"].items():
            if side == "embed_dim":
                continue
            plain["model"][side] = _without_defaults(encoder, tower["name"], tower)
        if sources := self.encoder_sources:
            plain["model"]["sources"] = sources
        if sources := self.optimizer_sources:
            plain["optimizer_sources"] = sources
        for arm in plain.get("arms", {}).values():
            if path := arm.get("start", {}).get("parameters"):
                arm["start"]["parameters"] = digest_of(path)
        if self.probes:
            plain["probes"] = {name: _without_defaults(probe, name, plain["probes"][name]) for name in self.probes}
        return plain

    @property
    def optimizers(self) -> set[str]:
        """Return the names of all optimizers that its runs may be trained with."""
        of_arms = {arm.train.optimizer for arm in self.arms.values() if arm.train and arm.train.optimizer}
        return {self.train.optimizer, *of_arms, *self.grid.settings.get("train.optimizer", ())}

    @property
    def precisions(self) -> set[str]:
        """Return the number formats of the towers that its runs may be trained with."""
        of_arms = {arm.train.precision for arm in self.arms.values() if arm.train and arm.train.precision}
        return {self.train.precision, *of_arms, *self.grid.settings.get("train.precision", ())}

    @property
    def encoder_sources(self) -> dict[str, str]:
        """Return the digests of the source code of user-defined encoders, by name."""
        towers = (self.model.image, self.model.text, self.model.extra_modalities)
        named = sorted({tower.name for tower in towers if tower is not None})
        return {name: encoder[name].source for name in named if encoder[name].source}

    @property
    def optimizer_sources(self) -> dict[str, str]:
        """Return the digests of the source code of user-defined optimizers, by name."""
        return {name: optimizer[name].source for name in sorted(self.optimizers) if optimizer[name].source}

    def _data(self) -> dict[str, Any]:
        """Return what determines the data; for data from disk their content, regardless of path and reading options."""
        plain: dict[str, Any] = self.data.model_dump(mode="json", exclude_defaults=True)
        if dataset[self.data.name].traits.on_disk:
            kept = {key: value for key, value in plain.items() if key in Data.model_fields}
            if self.data.shift and self.data.shift.options:
                kept["shift"] = {key: value for key, value in kept["shift"].items() if key in Shift.model_fields}
                kept["shift"]["fingerprint"] = self.shifted_pairs().fingerprint
            return {**kept, "fingerprint": self.pairs().fingerprint}
        return _without_defaults(dataset, self.data.name, plain)

    def at(self, settings: Settings) -> Study:
        """Return the study as its runs with these values of `Grid.settings` are trained."""
        if not settings:
            return self
        plain = with_settings(self.model_dump(mode="json"), settings)
        # Written with the same bytes as in a file, so that a run has the same id as in a study that sets the key.
        study = Study.model_validate_json(json.dumps(plain))
        return study.model_copy(update={key: getattr(self, key) for key in NOT_DATA})

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
        train = self.train.model_copy(update=arm_train.overrides)
        # The study's momentum is that of its own optimizer: an arm with another that takes none has none.
        unused = {*OPTIMIZER_OPTIONS} - {*SHARED_OPTIONS, *optimizer_options(train.optimizer), *arm_train.overrides}
        train = train.model_copy(update=dict.fromkeys(unused))
        # Clipping by norm and by quantile are mutually exclusive, so an arm that sets one replaces the study's choice.
        if arm_train.clip_norm is not None or arm_train.clip_quantile is not None:
            train = train.model_copy(
                update={"clip_norm": arm_train.clip_norm, "clip_quantile": arm_train.clip_quantile}
            )
        return train

    def lengths(self, batch_size: int, warmup: int | None = None) -> tuple[int, int]:
        """Return the total and warm-up steps of the runs at a batch size; *warmup* replaces that of ``[train]``."""
        warmup = self.train.warmup if warmup is None else warmup
        share = self._share(self.train, batch_size)
        return (
            (self.train.steps, warmup)
            if share == 1
            else (max(1, round(self.train.steps * share)), round(warmup * share))
        )

    def _share(self, train: Train, batch_size: int) -> float:
        """Return the steps at a batch size as a share of those at the smallest; 1 unless *train* matches samples."""
        return 1.0 if train.budget == "steps" else min(self.grid.batch_size) / batch_size

    def trained_as(self, arm: str, batch_size: int) -> Study:
        """Return the study with ``[train]`` and the step of the shift that the runs of an arm at a batch size have."""
        steps, warmup = self.lengths(batch_size)
        overrides = {"steps": steps, "warmup": warmup, "budget": "steps"}
        train = self.train_of(arm).model_copy(update=overrides)
        if train == self.train:
            return self
        shift = self.data.shift and self.data.shift.model_copy(update={"step": self.shift_step(batch_size)})
        data = self.data.model_copy(update={"shift": shift})
        base = self.base or (self.train, self.data)
        return self.model_copy(update={"train": train, "data": data, "base": base})

    @property
    def untrained(self) -> Study:
        """Return the study before `trained_as`, with the tables from which those of every arm follow."""
        if self.base is None:
            return self
        train, data = self.base
        return self.model_copy(update={"train": train, "data": data, "base": None})

    def start_of(self, arm: str, batch_size: int) -> Start | None:
        """Return what the runs of an arm at a batch size start from, with their own steps; None: fresh weights."""
        start = self.arm(arm).start
        share = self._share(self.base[0] if self.base else self.train, batch_size)
        if start is None or share == 1:
            return start
        step = None if start.step is None else max(1, round(start.step * share))
        return start.model_copy(update={"step": step, "warmup": round(start.warmup * share)})

    def first_step(self, arm: str, batch_size: int) -> int:
        """Return the first step that the runs of an arm at a batch size train: 0, or that of the switch."""
        start = self.start_of(arm, batch_size)
        return start.first_step if start else 0

    def event_step(self, arm: str, batch_size: int) -> int | None:
        """Return the step of the event in the runs of an arm at a batch size; None without one.

        That is the step at which they start from others, else that of the shift of the data. The row of that step holds
        measurements before its update, on the shifted data.
        """
        start = self.start_of(arm, batch_size)
        return start.first_step if start else self.shift_step(batch_size)

    def shift_step(self, batch_size: int) -> int | None:
        """Return the step of the shift of the data in runs at a batch size; None without one."""
        if self.data.shift is None:
            return None
        share = self._share(self.train, batch_size)
        return self.data.shift.step if share == 1 else max(1, round(self.data.shift.step * share))

    def switches_from(self, arm: str, batch_size: int) -> tuple[int, ...]:
        """Return the steps at which runs of other arms start from those of this arm, in ascending order."""
        starts = [self.start_of(name, batch_size) for name in self.grid.arms]
        return tuple(sorted({start.first_step for start in starts if start and start.arm == arm}))

    @property
    def with_event(self) -> tuple[str, ...]:
        """Return the arms of the grid whose runs have an event, if only at some level of an axis over the shift."""
        if any(key.startswith("data.shift.") for key in self.grid.settings):
            return self.grid.arms
        return tuple(arm for arm in self.grid.arms if self.event_step(arm, min(self.grid.batch_size)) is not None)

    @property
    def measures(self) -> dict[str, Measure]:
        """Return the measures that the study's probes produce on its data, by name.

        Those derived after an event exist only if an arm of the study has one.
        """
        measures = measures_of(self.probes, {*self.offers, *self.precisions})
        events = bool(self.with_event)
        return {name: measure for name, measure in measures.items() if events or measure.after_event is None}

    @property
    def offers(self) -> set[str]:
        """Return what the data offer for evaluation, before or after a shift or at any level of an axis over them."""
        options = [self.data.options, self._shifted_options]
        for key, values in self.grid.settings.items():
            if key.startswith("data."):
                name = key.rpartition(".")[2]
                options += [self._shifted_options | {name: value} for value in values]
        return {offer for each in options for offer in declared_offers(self.data.name, each)}

    def pairs(self) -> Pairs:
        """Build the study's data.

        Where only the shift sets frequencies of classes, pairs have the ranks that they will have after it, so that
        head and tail are the same classes throughout.
        """
        pairs = self._built(self.data.options)
        own = declared_offers(self.data.name, self.data.options)
        if "frequencies" in declared_offers(self.data.name, self._shifted_options) and "frequencies" not in own:
            pairs = replace(pairs, frequency_rank=self.shifted_pairs().frequency_rank)
        return pairs

    def shifted_pairs(self, pairs: Pairs | None = None) -> Pairs:
        """Build the data of the study after its shift, before noise: those of `pairs` with the options of the shift.

        Args:
            pairs: those before the shift, returned if no option of the dataset changes; None: build them.
        """
        if pairs is not None and not (self.data.shift and self.data.shift.options):
            return pairs
        return self._built(self._shifted_options)

    @property
    def _shifted_options(self) -> dict[str, Any]:
        return self.data.options | (self.data.shift.options if self.data.shift else {})

    def _built(self, options: dict[str, Any]) -> Pairs:
        pairs: Pairs = dataset[self.data.name](**options)
        declared = declared_offers(self.data.name, options)
        # Data hold ranks by frequency whether or not the options set frequencies; only then are they part of a study.
        if {*pairs.offers} - {"frequencies"} != {*declared} - {"frequencies"}:
            raise InputError(
                f"dataset {self.data.name!r} declares offers={declared!r}, but its pairs hold what makes "
                f"{pairs.offers!r}; declare that in its decorator"
            )
        return pairs

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a sentence on each thing that was left out of the data or truncated; synthetic data have none."""
        return self.pairs().notes if dataset[self.data.name].traits.on_disk else ()

    def due(self, name: str, start: Start | None = None) -> frozenset[int]:
        """Return the steps at which a probe measures: those of its schedule and of the shift, or where it forks runs.

        Runs with a *start* are measured from their first step on, and at that step by every probe with a schedule.
        """
        forks = probe[name].traits.forks
        if not forks:
            steps = self.probes[name].steps(self.train.steps)
            if self.data.shift:
                steps |= {self.data.shift.step}
            if start is None:
                return steps
            return frozenset({start.first_step, *(step for step in steps if step > start.first_step)})
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
