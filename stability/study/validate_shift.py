"""Validation of ``[data.shift]``: a step within every run, known options, and data that fit those before the shift."""

from __future__ import annotations

from stability.corruptions import corruption
from stability.datasets import Pairs, dataset
from stability.registry import InputError, shortened
from stability.study.schema import Shift
from stability.study.study import Study
from stability.study.tuning_grid import Locate

TABLE = ("data", "shift")


def check_shift(study: Study, shift: Shift, pairs: Pairs, locate: Locate) -> None:
    """Raise `InputError` with one sentence on the first part of a shift of the data that cannot take place.

    Args:
        study: The study.
        shift: Its shift.
        pairs: The data before the shift.
        locate: Returns the location of keys in the file.
    """
    for size in study.grid.batch_size:
        steps, step = study.lengths(size)[0], study.shift_step(size)
        if step is not None and step >= steps:
            run = "the study" if steps == study.train.steps else f"a run at batch size {size}"
            got = f"got {shift.step}" + (f", which is {step} at batch size {size}" if step != shift.step else "")
            within = f"1 to {steps - 1}, so that some of the {steps} steps of {run} are before it and some after it"
            allowed = within if steps > 1 else "runs of two steps or more"
            raise InputError(f"{locate(*TABLE, 'step')}: {got}; allowed: {allowed}")
    if shift.noise is None and shift.corruption is None and not shift.options:
        raise InputError(
            f"{locate(*TABLE)}: says when the data change, but not how; allowed: noise, corruption, or an option of "
            f"{study.data.name!r}"
        )
    if shift.corruption is not None:
        corruption.get_or_explain(shift.corruption, locate(*TABLE, "corruption"))
    if shift.options:
        _check_options(study, shift, pairs, locate)


def _check_options(study: Study, shift: Shift, pairs: Pairs, locate: Locate) -> None:
    """Raise `InputError` unless the options make data that a run can continue with."""
    variant = dataset[study.data.name]
    variant.check_options(shift.options, locate(*TABLE))
    if "seed" in shift.options:
        raise InputError(
            f"{locate(*TABLE, 'seed')}: shifted data keep the seed of the data, and with it their concepts; allowed: "
            "other options"
        )
    try:
        shifted = study.shifted_pairs()
    except InputError as error:
        raise InputError(f"{locate(*TABLE)}.{error}") from error
    names = ", ".join(f"{key} = {shortened(value)}" for key, value in shift.options.items())
    for what, (before, after) in _facts(pairs, shifted).items():
        if before != after:
            raise InputError(
                f"{locate(*TABLE)}: {names} changes {what} from {shortened(before)} to {shortened(after)}; allowed: "
                "options that keep shapes, vocabulary and numbers of pairs"
            )


def _facts(pairs: Pairs, shifted: Pairs) -> dict[str, tuple[object, object]]:
    """Return what both data must have in common, by its name in a sentence."""

    def facts(data: Pairs) -> dict[str, object]:
        shapes = {
            f"the shape of the samples of {name}": tuple(samples.shape[1:]) for name, samples in data.modalities.items()
        }
        return {
            "the number of training pairs": len(data.train),
            "the number of held-out pairs": len(data.held_out),
            "the number of modalities": len(data.modalities),
            **shapes,
            "the size of the vocabulary": len(data.vocabulary),
            "the vocabulary": data.vocabulary,
            "the number of image ids": data.image_vocabulary,
            "the shape of the prompts": tuple(data.prompts.shape),
        }

    before, after = facts(pairs), facts(shifted)
    return {what: (value, after.get(what)) for what, value in before.items()}


def check_change(study: Study, locate: Locate) -> None:
    """Raise `InputError` if a shift changes nothing in any run of the study.

    A study with an axis over a key of the shift may have a level that changes nothing, as a control.
    """
    shift = study.data.shift
    if shift is None or any(key.startswith("data.shift.") for key in study.grid.settings):
        return
    options = dataset[study.data.name].options
    before = {key: study.data.options.get(key, options[key].default) for key in shift.options}
    if before != shift.options:
        return
    for name in study.grid.corruption:
        for noise in study.grid.noise:
            after = (shift.corruption or name, noise if shift.noise is None else shift.noise)
            if (name, noise) != after and (noise or after[1]):
                return
    raise InputError(
        f"{locate(*TABLE)}: changes nothing in any run of the study; allowed: noise, corruption or options that differ "
        "from those before the shift"
    )
