"""Validation of what arms start from: a parent that exists at that step, a loss that has the scalars that are set."""

from __future__ import annotations

from stability.losses import loss, reserved_of, scalars_of, scalars_with
from stability.optimizers import optimizer
from stability.probes import probe
from stability.registry import InputError, nearest
from stability.study.parameter_files import Shapes, read_parameters_of
from stability.study.schema import Start
from stability.study.starts import SCALARS, parent_has, scalar_starts, sets_scalar
from stability.study.study import Study
from stability.study.tuning_grid import Locate


def check_starts(study: Study, shapes: Shapes, locate: Locate) -> None:
    """Raise `InputError` with one sentence on the first start that the runs of its arm cannot have.

    Args:
        study: The study, whose arms and training are valid apart from their starts.
        shapes: Shapes of the parameters of the towers, by name.
        locate: Returns the location of keys in the file.
    """
    starts = {name: arm.start for name, arm in study.arms.items() if arm.start}
    for name, start in starts.items():

        def locate_in_start(*keys: str | int, name: str = name) -> str:
            return locate("arms", name, "start", *keys)

        if study.tune:
            raise InputError(
                f"{locate('tune')}: is not for studies in which an arm starts from another or from a file, as "
                f"{name!r} does: tune the arms in a study of their own, and give the rates here"
            )
        _check_keys(start, locate_in_start)
        if start.arm is not None:
            _check_parent(study, name, start.arm, locate_in_start)
            _check_steps(study, name, locate_in_start)
        else:
            _check_file(start, shapes, locate_in_start)
        _check_scalars(study, name, start, locate_in_start)
        if start.optimizer_state == "kept":
            _check_optimizer(study, name, start, locate_in_start)
        _check_warmup(study, name, locate_in_start)
        _check_forks(study, name, locate)


def _check_keys(start: Start, locate: Locate) -> None:
    """Raise `InputError` unless a start names an arm and a step, or a file."""
    if (start.arm is None) == (start.parameters is None):
        both = "got both arm and parameters" if start.arm else "got neither arm nor parameters"
        raise InputError(f'{locate()}: {both}; allowed: arm and step, or parameters = "FILE.safetensors"')
    if start.arm is not None and start.step is None:
        raise InputError(f"{locate('step')}: required with arm, but missing")
    for key in ("step",) if start.arm is None else ("run",):
        if getattr(start, key) is not None:
            allowed = "arm" if key == "step" else "parameters"
            raise InputError(f"{locate(key)}: got {getattr(start, key)!r}; allowed with {allowed} only")


def _check_parent(study: Study, name: str, parent: str, locate: Locate) -> None:
    """Raise `InputError` unless the parent is another arm of the grid, and no ancestor is the arm itself."""
    if parent not in study.grid.arms:
        raise InputError(f"{locate('arm')}: {parent!r} is not in grid.arms{nearest(parent, study.grid.arms)}")
    ancestors, ancestor = [name], parent
    while ancestor not in ancestors:
        ancestors.append(ancestor)
        start = study.arm(ancestor).start
        if start is None or start.arm is None:
            return
        ancestor = start.arm
    if parent == name:
        raise InputError(f"{locate('arm')}: {name!r} starts from itself; allowed: another arm")
    chain = ", which starts from ".join(repr(arm) for arm in (*ancestors[1:], ancestor))
    raise InputError(f"{locate('arm')}: {name!r} starts from {chain}; allowed: an arm that does not lead back")


def _check_steps(study: Study, name: str, locate: Locate) -> None:
    """Raise `InputError` unless the parent is being trained at the step of the switch, at every batch size."""
    for size in study.grid.batch_size:
        start = study.start_of(name, size)
        assert start is not None
        assert start.arm is not None
        steps, born = study.lengths(size)[0], study.first_step(start.arm, size)
        if not born < start.first_step < steps:
            written = study.arm(name).start
            at = f", which is {start.step} at batch size {size}" if written != start else ""
            since = f", which itself starts at step {born}" if born else ""
            raise InputError(
                f"{locate('step')}: got {written.step if written else None}{at}; allowed: {born + 1} to {steps - 1}, "
                f"steps inside the training of {start.arm!r}{since}"
            )


def _check_file(start: Start, shapes: Shapes, locate: Locate) -> None:
    assert start.parameters is not None
    if not start.parameters.endswith(".safetensors"):
        raise InputError(f"{locate('parameters')}: got {start.parameters!r}; allowed: a file called *.safetensors")
    try:
        read_parameters_of(start.parameters, start.run, shapes)
    except InputError as error:
        raise InputError(f"{locate('parameters')}: {error}") from error


def _check_scalars(study: Study, name: str, start: Start, locate: Locate) -> None:
    """Raise `InputError` for a scalar that the arm's loss or the parent does not have, or that is set twice."""
    variant = loss[study.arm(name).loss]
    for key in SCALARS:
        value, declared = getattr(start, key), key in scalars_of(variant)
        if value != Start.model_fields[key].default and not declared:
            raise InputError(f"{locate(key)}: loss {variant.name!r} has no {key}; leave it out")
    for key, value in scalar_starts(study, name, start).items():
        if value == "kept" and not parent_has(study, start, key):
            owner = start.parameters if start.arm is None else f"the loss of {start.arm!r}"
            raise InputError(f"{locate(key)}: got 'kept', but {owner} has no {key}; allowed: 'initial' or a number")
        if value != "initial" and sets_scalar(study, name, key):
            raise InputError(
                f"{locate(key)}: got {value!r}, but the arm sets an initial {key} of its own; allowed: one of the two"
            )
        if value == "fitted" and (needed := {"uniform", "state"} & {*reserved_of(variant)}):
            raise InputError(
                f"{locate(key)}: got 'fitted', but loss {variant.name!r} depends on {min(needed)!r} as well; allowed: "
                "'kept', 'initial', '-log B' or a number"
            )


def _check_optimizer(study: Study, name: str, start: Start, locate: Locate) -> None:
    """Raise `InputError` unless the optimizer's state before the switch has a meaning after it."""
    where = f"{locate('optimizer_state')}: got 'kept', but"
    if start.arm is None:
        raise InputError(f"{where} a file of parameters has none; allowed: 'reset'")
    ours, theirs = (study.train_of(arm).optimizer for arm in (name, start.arm))
    if ours != theirs:
        raise InputError(f"{where} {start.arm!r} trains with {theirs} and {name!r} with {ours}; allowed: 'reset'")
    trained = [
        {key: scalar.trained for key, scalar in scalars_with(loss[arm.loss], arm.options).items()}
        for arm in (study.arm(name), study.arm(start.arm))
    ]
    if callable(optimizer[ours].traits.buffers) and trained[0] != trained[1]:
        raise InputError(f"{where} {ours} arranges it by the scalars of the loss, which differ; allowed: 'reset'")


def _check_warmup(study: Study, name: str, locate: Locate) -> None:
    for size in study.grid.batch_size:
        start, steps = study.start_of(name, size), study.lengths(size)[0]
        assert start is not None
        if start.warmup >= steps - start.first_step:
            raise InputError(
                f"{locate('warmup')}: got {start.warmup} at batch size {size}; allowed: fewer than the "
                f"{steps - start.first_step} steps after the start"
            )


def _check_forks(study: Study, name: str, locate: Locate) -> None:
    """Raise `InputError` for a probe that forks runs before the runs of an arm exist."""
    first = max(study.first_step(name, size) for size in study.grid.batch_size)
    for key in study.probes:
        option = probe[key].traits.forks
        if option and min(study.due(key)) < first:
            raise InputError(
                f"{locate('probes', key, option)}: got {min(study.due(key))}; allowed: {first} or later, since the "
                f"runs of {name!r} start at step {first}"
            )
