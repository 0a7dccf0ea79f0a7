"""The shared words of studies, tables, figures and sentences: one table each of axes, reductions, transforms, verdicts.

Whoever names, formats or orders one of these reads it here, so that a new axis or reduction is one entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class Axis:
    """An axis of the grid: a column of run tables, by whose levels the runs of one seed and arm differ.

    Attributes:
        name: Column in run tables.
        label: Name in sentences and on the axis of a figure.
        unit: What its numbers are, in parentheses on the axis of a figure; "" where the label says it.
        plural: Name of several levels, for the facts at the head of a report.
        head: Head of a column in tables.
        text: Definition, for exports.
        short: Format of a level in the title of a panel.
        phrase: Format of a level in a sentence.
        doubling: Whether levels are multiplicative: slopes are then per doubling and figures logarithmic.
        facet: Whether the panels of a figure lay its levels out in rows or in columns.
        default: Level of a study that does not use the axis; None if every study sets it.
    """

    name: str
    label: str
    plural: str
    head: str
    text: str
    short: str
    phrase: str
    doubling: bool
    facet: Literal["row", "column"]
    default: Any = None
    unit: str = ""

    @property
    def axis_label(self) -> str:
        """Return the label of a figure's axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def per(self) -> str:
        """Return the unit of a slope over the axis, as " per doubling of the batch size"."""
        return f" per doubling of the {self.label}" if self.doubling else f" per unit of {self.label}"

    def position(self, level: float) -> float:
        """Return a level as slopes use it: its base-2 logarithm if levels are multiplicative."""
        return math.log2(level) if self.doubling else float(level)


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis(
            "batch_size",
            label="batch size",
            plural="batch sizes",
            head="Batch",
            text="Pairs in a batch.",
            short="B = {}",
            phrase="batch size {}",
            doubling=True,
            facet="row",
        ),
        Axis(
            "train_pairs",
            label="number of training pairs",
            plural="numbers of pairs",
            head="Pairs",
            text="Training pairs of the run; 0 for all there are.",
            short="{} pairs",
            phrase="{} pairs",
            doubling=True,
            facet="row",
            default=0,
        ),
        Axis(
            "corruption",
            label="corruption",
            plural="corruptions",
            head="Corruption",
            text="How training pairs are corrupted.",
            short="{}",
            phrase="{}",
            doubling=False,
            facet="column",
        ),
        Axis(
            "noise",
            label="noise",
            plural="noise levels",
            head="Noise",
            text="Share of the training pairs that are corrupted.",
            short="noise {:g}",
            phrase="noise {:g}",
            doubling=False,
            facet="column",
            unit="share of corrupted pairs",
        ),
        Axis(
            "lr",
            label="learning rate",
            plural="learning rates",
            head="Rate",
            text="Learning rate.",
            short="lr {:g}",
            phrase="learning rate {:g}",
            doubling=True,
            facet="row",
        ),
        Axis(
            "lr_multiplier",
            label="multiple of the learning rate",
            plural="multiples of the learning rate",
            head="× rate",
            text="Multiple of the tuned or configured rate.",
            short="{:g} × lr",
            phrase="{:g} times the rate",
            doubling=True,
            facet="row",
            default=1.0,
        ),
    )
}
"""The axes in the order in which runs are sorted and cells are named."""

DOUBLING_SETTINGS = {
    *("width", "depth", "heads", "embed_dim"),
    *("lr_multiplier", "scalar_lr_multiplier", "clip_norm", "max_scale", "logit_cap", "initial_loss_scale", "shards"),
}
"""Keys of other tables whose levels are multiplicative when they are an axis."""

SETTINGS_IN_WORDS = {
    "warmup": "warm-up length",
    "lr_schedule": "learning rate schedule",
    "lr_multiplier": "multiplier of the rate",
    "scalar_lr_multiplier": "multiplier of the scalars' rate",
    "clip_norm": "clipping norm",
    "clip_quantile": "clipping quantile",
    "log_scale": "initial log t",
    "bias": "initial bias",
    "shards": "number of shards",
    "snr": "signal-to-noise ratio",
    "precision": "number format",
    "logits": "number format of the logits",
}
"""Keys of other tables whose names are not their words."""

INNER_TABLES = {
    "image": " of the image tower",
    "text": " of the text tower",
    "extra_modalities": " of the other towers",
    "shift": " of the shift",
}
"""Tables within other tables, as the name of a key in one of them ends."""


def axis_of(name: str) -> Axis:
    """Return an axis by its column: one of `AXES`, or a key of another table, such as ``train.warmup``.

    >>> axis_of("model.image.width").label, axis_of("train.weight_decay").phrase.format(0.1)
    ('width of the image tower', 'weight decay 0.1')
    >>> axis_of("data.shift.noise").label, axis_of("data.shift.noise").short.format(0.1)
    ('noise of the shift', 'shift noise 0.1')
    """
    if name in AXES:
        return AXES[name]
    _, *middle, key = name.split(".")
    label = SETTINGS_IN_WORDS.get(key, key.replace("_", " ")) + INNER_TABLES.get("".join(middle), "")
    return Axis(
        name,
        label=label,
        plural=f"levels of {label}",
        head=label[:1].upper() + label[1:],
        text=f"Value of {name} in the study.",
        short=f"{' '.join([*(part for part in middle if part in INNER_TABLES), key]).replace('_', ' ')} {{}}",
        phrase=f"{label} {{}}",
        doubling=key in DOUBLING_SETTINGS,
        facet="row",
    )


def axes_in(columns: Iterable[Any]) -> tuple[str, ...]:
    """Return the axes among the columns of a table of runs, in the order in which runs are sorted."""
    known = tuple(map(str, columns))
    return (*(name for name in AXES if name in known), *sorted(name for name in known if "." in name))


CLAIM_AXES = ("batch_size", "train_pairs", "noise", "lr")
"""The axes over which a claim can run; over *lr* it runs over the multiples of the rate if the grid has those."""


def cell_in_words(cell: Mapping[str, Any]) -> str:
    """Return the levels of a cell of the grid, as a sentence names them.

    >>> cell_in_words({"batch_size": 32, "noise": 0.2})
    'batch size 32, noise 0.2'
    """
    return ", ".join(axis_of(axis).phrase.format(level) for axis, level in cell.items())


def cell_title(cell: Mapping[str, Any]) -> str:
    """Return the levels of a cell of the grid as the title of a panel.

    >>> cell_title({"batch_size": 32, "lr": 1e-3})
    'B = 32, lr 0.001'
    """
    return ", ".join(axis_of(axis).short.format(level) for axis, level in cell.items())


@dataclass(frozen=True)
class Reduction:
    """A way to reduce the steps of a run to one number (`results.summarize` computes it).

    Attributes:
        text: What the number is, in the method of a report.
        of_run: The same after "of each run", in captions.
        adverb: When a measure is read, in a sentence about it; "" for the end of training.
    """

    text: str
    of_run: str
    adverb: str = ""


ReductionName = Literal["first", "final", "best", "mean_after_warmup", "tail_mean"]

REDUCTIONS: Mapping[str, Reduction] = {
    "first": Reduction("the first value of a run", "at its first measured step", "at the first step"),
    "final": Reduction("the last value of a run", "at its last measured step"),
    "best": Reduction("the best value of a run", "at its best", "at its best"),
    "mean_after_warmup": Reduction("the mean of a run after warm-up", "mean after warm-up", "averaged over training"),
    "tail_mean": Reduction("the mean over the last fifth of a run's steps", "mean over the last fifth of its steps"),
}


@dataclass(frozen=True)
class Transform:
    """A scale on which the values of a measure are compared.

    Attributes:
        log: Whether differences on it are logarithms of ratios.
        phrase: Format of a measure's label on this scale, as in "log {}".
        text: How the scale reads a value, in the method of a report; "" for values as they are.
        description: The scale in parentheses, in a ranking.
    """

    log: bool
    phrase: str
    text: str
    description: str


TransformName = Literal["linear", "log", "log_above_chance", "relative_to_chance"]

TRANSFORMS: Mapping[str, Transform] = {
    "linear": Transform(False, "{}", "", "as measured"),
    "log": Transform(True, "log {}", "as a logarithm", "logarithm"),
    "log_above_chance": Transform(
        True, "log {} above chance", "as a logarithm above chance", "log of what lies above chance"
    ),
    "relative_to_chance": Transform(False, "{} / chance", "as a share of chance", "share of the chance level"),
}


@dataclass(frozen=True)
class Verdict:
    """A verdict on a claim.

    Attributes:
        mark: A sign for it, so that no reader depends on its color.
        ascii: The same for terminals without Unicode.
        color: Its color in a terminal.
        marker: Its marker in figures (matplotlib); "" for a claim without an effect to draw.
    """

    mark: str
    ascii: str
    color: str
    marker: str


VerdictName = Literal["supported", "contradicted", "equivalent", "mixed", "inconclusive", "not-testable"]

VERDICTS: Mapping[str, Verdict] = {
    "supported": Verdict("✔", "+", "green", "o"),
    "contradicted": Verdict("✘", "x", "red", "X"),
    "equivalent": Verdict("=", "=", "blue", "s"),
    "mixed": Verdict("±", "~", "magenta", "P"),
    "inconclusive": Verdict("?", "?", "yellow", "D"),
    "not-testable": Verdict("–", "-", "dim", ""),
}

NOT_TESTABLE: VerdictName = "not-testable"
"""The verdict of a claim that has no effect, interval or p-value."""

assert {*REDUCTIONS} == {*get_args(ReductionName)}
assert {*TRANSFORMS} == {*get_args(TransformName)}
assert {*VERDICTS} == {*get_args(VerdictName)}
