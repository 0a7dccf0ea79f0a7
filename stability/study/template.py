"""The template of a commented, valid study for the user's own data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stability.datasets import Pairs, dataset
from stability.losses import loss
from stability.registry import KINDS, InputError, nearest
from stability.study.loader import parse_study
from stability.study.schema import SCALES

MOST_HELD_OUT = 4000
"""Number of held-out pairs above which retrieval, which is quadratic, costs more than training."""


@dataclass(frozen=True)
class Size:
    """The size of a study that one kind of device trains in minutes.

    Attributes:
        batch_sizes: Batch sizes, as far as there are pairs for them.
        steps: Training steps.
        seeds: Number of seeds.
        width: Embedding dimension.
    """

    batch_sizes: tuple[int, ...]
    steps: int
    seeds: int
    width: int


SIZES = {"cpu": Size((32, 128), 300, 8, 32), "cuda": Size((128, 512), 2000, 16, 64)}

TEMPLATE = """\
# {title}: which loss is more stable on these data?
#
#   stability plan {name}    what it costs here
#   stability run {name}     train, test the claims, write the report (--scale smoke: seconds; does everything work?)
#
# Claims are written before any run. Read those below, and change them to what you expect and care about.
title = "{title}"
question = "Is {other} more stable than {first} on {name}?"

[data]
{data}
corruption = "fixed"            # noise is drawn once, for the data: a model can memorize it

[model]                         # `stability list encoders` names others
image = {image}
text = {text}
embed_dim = {width}

[train]
steps = {steps}
warmup = {warmup}
lr_schedule = "constant"           # sharpness has a threshold only at a constant rate
betas = [0.9, 0.95]
weight_decay = 1e-4
scalar_lr_multiplier = 10.0                # Adam moves a scalar by at most the sum of the rates: let t and b arrive

[grid]                          # every combination is a run
arms = {losses}
batch_size = {batch_sizes}         # at most {available} pairs to train on
corruption = ["mismatch"]
noise = [0.0, 0.2, 0.4]         # share of the training pairs whose text is another's
lr = [1e-3]                     # several rates: each is trained, cells are averaged
seeds = {seeds}

[probes.retrieval]
every = {often}

[probes.gradient_noise]
every = {seldom}
at = [0.85, 0.9, 0.95]          # more of them in the late window, which the claim is about
batches = 8

[probes.geometry]
every = {seldom}

[probes.curvature]              # expensive: at the end, the first seeds without noise, small batches
seeds = {curved}
noise = [0.0]
batch_size = [{smallest}]
{claims}
[scales.smoke]
grid.seeds = 2
grid.noise = [0.0, 0.4]
grid.batch_size = [{smallest}]
train.steps = 20
train.warmup = 5
probes.retrieval.every = 10
probes.gradient_noise.every = 10
probes.gradient_noise.batches = 2
probes.geometry.every = 10
probes.curvature.batches = 2
probes.curvature.steps = 6
probes.curvature.seeds = 1

[scales.full]
grid.seeds = 20
train.steps = {many}
"""

CLAIMS = """
[[claims]]
id = "gradient-noise-{other}"{primary}
text = "{other}'s gradients are less noisy than {first}'s"
measure = "gradient_noise_fraction"
contrast = "difference"
compare = ["{other}", "{first}"]
expect = "lower"
margin = 0.1                    # smallest effect worth caring about

[[claims]]
id = "noise-slope-{other}"
text = "{other}'s recall falls more slowly than {first}'s as texts are mismatched"
measure = "recall_at_1"
contrast = "slope"
axis = "noise"
compare = ["{other}", "{first}"]
expect = "higher"
margin = 0.25
"""


def kinds() -> tuple[str, ...]:
    """Return the names of the datasets that read from disk."""
    return tuple(sorted(name for name, variant in dataset.items() if variant.traits.on_disk))


def parse_options(kind: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return options of a dataset from texts ``KEY=VALUE``, converted to the type of each option's default.

    >>> parse_options("folder", ["image_size=16", "captions=a.csv"])
    {'image_size': 16, 'captions': 'a.csv'}
    """
    variant = dataset[kind]
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in variant.options:
            raise InputError(
                f"--data-option: {text!r} is no KEY=VALUE of dataset {kind!r}{nearest(key, variant.options)}"
            )
        option_type = type(variant.options[key].default)
        try:
            options[key] = option_type(value)
        except ValueError as error:
            raise InputError(f"--data-option: {key}: got {value!r}; allowed: {KINDS[option_type]}") from error
    return options


def study_path(name: str) -> Path:
    """Return where the study of that name is written: ``studies/<name>.toml``, or the path if it ends in .toml."""
    is_path = name.endswith(".toml")
    path = Path(name) if is_path else Path("studies") / f"{name}.toml"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", path.stem if is_path else name):
        raise InputError(f"NAME: got {name!r}; allowed: letters, digits and . _ + -, or a path that ends in .toml")
    if path.exists():
        raise InputError(f"{path}: exists already, and is left as it is; give another name")
    return path


def write_study(name: str, kind: str, options: Mapping[str, Any], losses: Sequence[str], device: str) -> Path:
    """Write a study of the user's data, checked at every scale, and return its path; no file is ever overwritten.

    Args:
        name: Name of the study, or a path that ends in .toml.
        kind: A dataset that reads from disk.
        options: Options of the dataset.
        losses: Losses to compare; the first is the reference.
        device: cpu or cuda; determines the size of the grid.

    Raises:
        InputError: The data cannot be read, a name is unknown, there are fewer than two losses, or the file exists.
    """
    path = study_path(name)
    if kind not in kinds():
        raise InputError(f"--data: unknown kind {kind!r}{nearest(kind, kinds())}")
    for each in losses:
        if each not in loss:
            raise InputError(f"--losses: unknown loss {each!r}{nearest(each, loss)}")
    if len(losses) < 2 or len({*losses}) < len(losses):
        raise InputError(f"--losses: got {', '.join(losses)!r}; allowed: two or more that differ, as clip,siglip")
    try:
        pairs: Pairs = dataset[kind](**options)
    except InputError as error:
        raise InputError(_as_typed(kind, str(error))) from error
    if len(pairs.held_out) > MOST_HELD_OUT and "held_out" not in options:
        # A round number, since it is written into the study file.
        share = float(f"{MOST_HELD_OUT / len(pairs.image):.1g}")
        options = {**options, "held_out": share}
        pairs = dataset[kind](**options)
    text = study_text(path.stem, kind, options, losses, SIZES[device], pairs)
    for scale in SCALES:
        parse_study(text, str(path), path.stem, scale)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({(error.strerror or str(error)).lower()})") from error
    return path


def _as_typed(kind: str, sentence: str) -> str:
    """Return an error about data options, with the command line form of each option after its key.

    >>> _as_typed("folder", "captions: a holds 0 tables (none); name one by data.captions")
    'captions: a holds 0 tables (none); name one by data.captions (--data-option captions=FILE)'
    >>> _as_typed("folder", "max_tokens: got 0; allowed: 1 or more")
    'max_tokens: got 0; allowed: 1 or more (--data-option max_tokens=VALUE)'
    >>> _as_typed("folder", "path: x: there is no such file or folder")
    'path: x: there is no such file or folder (--path)'
    """
    known = dataset[kind].options

    def typed(key: str) -> str:
        values = {"path": "", "captions": "FILE", "classes": "FILE", "cache": "FOLDER"}
        value = values.get(key, "COLUMN" if key.endswith("_column") else "VALUE")
        return f"(--data-option {key}={value})" if value else "(--path)"

    def with_option(match: re.Match[str]) -> str:
        return f"{match[0]} {typed(match[1])}" if match[1] in known else match[0]

    annotated = re.sub(r"\bdata\.(\w+)\b(?: = [\w.]*\w)?", with_option, sentence)
    head = re.match(r"(\w+)(?:: | = )", sentence)
    at_fault = head is not None and annotated == sentence and head[1] in known
    return f"{annotated} {typed(head[1])}" if head is not None and at_fault else annotated


def study_text(
    name: str, kind: str, options: Mapping[str, Any], losses: Sequence[str], size: Size, pairs: Pairs
) -> str:
    """Return the TOML of a study of the user's data.

    Args:
        name: Name of the study.
        kind: Name of the dataset.
        options: Options of the dataset.
        losses: The losses to compare; claims are about each of the others against the first.
        size: The size of the study.
        pairs: The data.
    """
    batch_sizes = _batch_sizes(size, len(pairs.train))
    first, *others = losses
    claims = [
        CLAIMS.format(other=other, first=first, primary="\nprimary = true" if index == 0 else "")
        for index, other in enumerate(others)
    ]
    return TEMPLATE.format(
        title=f"{', '.join(others)} against {first} on {name}",
        name=name,
        first=first,
        other=" or ".join(others),
        data="\n".join(f"{key} = {_toml(value)}" for key, value in {"name": kind, **options}.items()),
        image=_image_tower(pairs, size),
        text=_text_tower(pairs, size),
        width=size.width,
        steps=size.steps,
        warmup=max(1, size.steps // 15),
        losses=_toml(list(losses)),
        batch_sizes=_toml(batch_sizes),
        available=len(pairs.train),
        seeds=size.seeds,
        often=size.steps // 12,
        seldom=size.steps // 6,
        curved=size.seeds // 2,
        smallest=batch_sizes[0],
        claims="".join(claims),
        many=5 * size.steps,
    )


def _batch_sizes(size: Size, available: int) -> list[int]:
    """Return the batch sizes with at least four batches in an epoch, else the largest power of two with as many.

    >>> _batch_sizes(SIZES["cpu"], 1000), _batch_sizes(SIZES["cpu"], 300), _batch_sizes(SIZES["cpu"], 50)
    ([32, 128], [32], [8])
    """
    fitting = [batch for batch in size.batch_sizes if 4 * batch <= available]
    return fitting or [max(2, 2 ** ((available // 4).bit_length() - 1))]


def _image_tower(pairs: Pairs, size: Size) -> str:
    if pairs.image.dim() != 4:
        return f'{{ name = "mlp", width = {2 * size.width}, depth = 1 }}'
    side = pairs.image.shape[-1]
    patch = max(extent for extent in range(1, side + 1) if side % extent == 0 and (side // extent >= 4 or extent == 1))
    return f'{{ name = "patch_transformer", patch = {patch}, width = {size.width}, heads = 2 }}'


def _text_tower(pairs: Pairs, size: Size) -> str:
    if pairs.text.is_floating_point():
        return f'{{ name = "mlp", width = {2 * size.width}, depth = 1 }}'
    return f'{{ name = "token_transformer", width = {size.width}, heads = 2 }}'


def _toml(value: Any) -> str:
    """Return a value as TOML; its strings equal JSON's except for surrogates and the delete character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
