"""Conformance checks of a loss or an optimizer: the properties that the trainer and the probes rely on.

``check(loss["clip"])`` returns one `CheckResult` per property. Training relies on the required ones; the others are
only reported, since a good loss may lack them. If a variant raises, the property fails with the message of the
exception. The properties of losses are below, those of optimizers in `stability.optimizers.conformance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from stability.losses import reserved_of, scalars_of
from stability.losses.calls import DIM, SIZE, Inputs, call, dtype_name, inputs_of
from stability.losses.chance import best_constant, matched_pairs, minimum_loss
from stability.optimizers import conformance
from stability.optimizers.validation import error_message
from stability.registry import InputError, Variant
from stability.streams import stream

SCALES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3)
BATCH_SIZES = (4, 16, 64, 256)


@dataclass(frozen=True)
class CheckResult:
    """The result of checking one property of a loss or an optimizer.

    Attributes:
        property: Name of the property.
        required: Whether training requires it.
        passed: Whether the variant has it.
        reason: Why or why not, in one sentence.
    """

    property: str
    required: bool
    passed: bool
    reason: str


def validate_loss(variant: Variant) -> None:
    """Raise `InputError` with one sentence if a loss cannot be called or does not return one number."""
    where = f"loss {variant.name!r}"
    if "state" in reserved_of(variant) and not callable(variant.traits.state):
        raise InputError(f"{where} asks for a state; declare state=function(available) in its decorator")
    missing = [
        name
        for name, parameter in variant.options.items()
        if parameter.default is parameter.empty and name not in {*scalars_of(variant), *reserved_of(variant)}
    ]
    if missing:
        raise InputError(f"{where}: {missing[0]!r} has no default; declare it as a Scalar, or give it a default")
    try:
        call(variant, inputs_of(variant))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{where} can't be called: {error_message(error)}") from error


def check(variant: Variant) -> tuple[CheckResult, ...]:
    """Return one result per property of a loss or an optimizer, the required ones first.

    An exception that it raises becomes a failed result with its message; it is not propagated.
    """
    required, reported = (
        (conformance.REQUIRED, conformance.REPORTED) if variant.kind == "optimizer" else (REQUIRED, REPORTED)
    )
    properties = [(name, True, property_check) for name, property_check in required.items()]
    properties += [(name, False, property_check) for name, property_check in reported.items()]
    return tuple(_run_check(variant, *entry) for entry in properties)


PropertyCheck = Callable[[Variant], tuple[bool, str]]


def _run_check(variant: Variant, name: str, required: bool, property_check: PropertyCheck) -> CheckResult:
    try:
        passed, reason = property_check(variant)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a variant may raise anything: that is the result)
        return CheckResult(name, required, False, error_message(error))
    return CheckResult(name, required, passed, reason)


def _value(variant: Variant, inputs: Inputs) -> Tensor:
    return call(variant, inputs)[0]


def _gradients(variant: Variant, inputs: Inputs) -> dict[str, Tensor]:
    return grad(lambda varying: _value(variant, replace(inputs, varying=varying)))(inputs.varying)


def _not_finite(variant: Variant, inputs: Inputs) -> str:
    """Return what is not finite, the value or the names of gradients; empty if all is finite."""
    value = _value(variant, inputs)
    if not torch.isfinite(value):
        return f"the value is {value.item()}"
    bad = [name for name, gradient in _gradients(variant, inputs).items() if not torch.isfinite(gradient).all()]
    return f"the gradient of {', '.join(bad)} is not finite" if bad else ""


def _close(left: Tensor, right: Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance)


def _finite(variant: Variant) -> tuple[bool, str]:
    wrong = _not_finite(variant, inputs_of(variant))
    return not wrong, wrong or f"value and gradients are finite at B = {SIZE}"


def _two_pairs(variant: Variant) -> tuple[bool, str]:
    wrong = _not_finite(variant, inputs_of(variant, 2))
    return not wrong, wrong or "value and gradients are finite at B = 2"


def _order(variant: Variant) -> tuple[bool, str]:
    inputs = inputs_of(variant)
    order = torch.randperm(SIZE, generator=stream(0, "order"))
    before, after = _value(variant, inputs), _value(variant, inputs.reordered(order))
    same = _close(before, after)
    return same, "the order of the pairs changes nothing" if same else f"{before:.9g}, and {after:.9g} in another order"


def _vmap(variant: Variant) -> tuple[bool, str]:
    calls = [inputs_of(variant, seed=seed) for seed in range(3)]
    stacked = [
        {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        for parts in ([c.varying for c in calls], [c.reserved for c in calls], [c.state for c in calls])
    ]

    def evaluate(varying: Any, reserved: Any, state: Any) -> Any:
        gradients = _gradients(variant, Inputs(varying, reserved, state))
        value, new_state = call(variant, Inputs(varying, reserved, state))
        return {"value": value, **gradients, **{f"state.{name}": result for name, result in new_state.items()}}

    batched = vmap(evaluate)(*stacked)
    looped = [evaluate(c.varying, c.reserved, c.state) for c in calls]
    differing = [
        name for name in batched if not _close(batched[name], torch.stack([result[name] for result in looped]))
    ]
    if differing:
        return False, f"under vmap, these differ from a loop: {', '.join(differing)}"
    return True, "value, gradients and state under vmap are those of a loop"


def _inputs_kept(variant: Variant) -> tuple[bool, str]:
    inputs = inputs_of(variant)
    before = {name: value.clone() for name, value in inputs.everything.items()}
    call(variant, inputs)
    edited = [name for name, value in inputs.everything.items() if not torch.equal(value, before[name])]
    return not edited, f"it edits {', '.join(edited)} in place" if edited else "no input is edited in place"


def _finite_differences(variant: Variant) -> tuple[bool, str]:
    inputs = inputs_of(variant)
    value, image = _value(variant, inputs), inputs.varying["image"]
    if value.dtype != image.dtype:
        return False, (
            f"it returns {dtype_name(value)} for embeddings of {dtype_name(image)}; make new tensors of the inputs' "
            "type, as by dtype=image.dtype, and convert none"
        )
    gradients = _gradients(variant, inputs)
    if not any(gradient.any() for gradient in gradients.values()):
        return False, "the gradient is zero in all inputs: the value does not depend on them"
    for name, value in inputs.varying.items():
        direction = torch.randn(value.shape, generator=stream(0, f"direction/{name}"), dtype=value.dtype)
        width = 1e-5

        def at(shift: float, name: str = name, moved: Tensor = direction) -> Tensor:
            return _value(variant, inputs.changed(**{name: inputs.varying[name] + shift * moved}))

        # Fourth order: the truncation error is about width^4, the rounding error about 1e-16 / width.
        measured = (8 * (at(width) - at(-width)) - (at(2 * width) - at(-2 * width))) / (12 * width)
        expected = (gradients[name] * direction).sum()
        if not _close(measured, expected, 1e-6):
            return False, f"along {name} the gradient says {expected:.6g}, differences of the value {measured:.6g}"
    return True, "gradients agree with differences of the value in float64"


def _second_derivatives(variant: Variant) -> tuple[bool, str]:
    inputs = inputs_of(variant)
    direction = {
        name: torch.randn(value.shape, generator=stream(0, f"direction/{name}"), dtype=value.dtype)
        for name, value in inputs.varying.items()
    }

    def gradients_at(varying: dict[str, Tensor]) -> dict[str, Tensor]:
        return _gradients(variant, replace(inputs, varying=varying))

    product = jvp(gradients_at, (inputs.varying,), (direction,))[1]
    width = 1e-5
    ahead, behind = (
        gradients_at({name: value + shift * direction[name] for name, value in inputs.varying.items()})
        for shift in (width, -width)
    )
    for name, value in product.items():
        if not _close(value, (ahead[name] - behind[name]) / (2 * width), 1e-4):
            return False, f"the second derivatives of {name} disagree with differences of its gradient"
    if not any(value.any() for value in product.values()):
        return True, "all second derivatives are zero: curvature probes have nothing to measure"
    return True, "second derivatives agree with differences of the gradient"


def _rotation(variant: Variant) -> tuple[bool, str]:
    inputs = inputs_of(variant)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=stream(0, "rotation"), dtype=torch.float64)).Q
    rotated = {side: inputs.varying[side] @ rotation for side in ("image", "text")}
    before, after = _value(variant, inputs), _value(variant, inputs.changed(**rotated))
    same = _close(before, after)
    return (
        same,
        "turning both towers changes nothing" if same else f"{before:.9g}, and {after:.9g} after a turn of both",
    )


def _extreme_scales(variant: Variant) -> tuple[bool, str]:
    names = [name for name in scalars_of(variant) if name.endswith("log_scale")]
    inputs = inputs_of(variant, dtype=torch.float32)
    if not names:
        wrong = _not_finite(variant, inputs)
        return not wrong, wrong or "finite in float32; it declares no log_scale"
    for scale in SCALES:
        at_scale = {name: torch.tensor(math.log(scale), dtype=torch.float32) for name in names}
        wrong = _not_finite(variant, inputs.changed(**at_scale))
        if wrong:
            return False, f"at t = {scale:g} in float32, {wrong}"
    return True, "finite in float32 from t = 0.001 to t = 1000"


def _duplicates(variant: Variant) -> tuple[bool, str]:
    inputs = inputs_of(variant)
    twice = torch.tensor([0, 0, *range(2, SIZE)])
    wrong = _not_finite(
        variant, inputs.changed(image=inputs.varying["image"][twice], text=inputs.varying["text"][twice])
    )
    return not wrong, f"with a pair twice in the batch, {wrong}" if wrong else "finite with a pair twice in the batch"


def _scale_with_batch(variant: Variant) -> tuple[bool, str]:
    values, norms = [], []
    for size in BATCH_SIZES:
        inputs = inputs_of(variant, size)
        values.append(_value(variant, inputs).item())
        gradients = _gradients(variant, inputs)
        norms.append(torch.cat([gradients["image"].flatten(), gradients["text"].flatten()]).norm().item())
    sizes_text, losses_text, norms_text = (", ".join(f"{x:.3g}" for x in row) for row in (BATCH_SIZES, values, norms))
    finite = all(math.isfinite(value) for value in (*values, *norms))
    return finite, f"at B = {sizes_text} and random embeddings: loss {losses_text}; gradient norm {norms_text}"


def _chance(variant: Variant) -> tuple[bool, str]:
    best = best_constant(variant)
    where = f"at B = {SIZE} the best constant similarity reaches {round(best, 6):.4g}"
    if (best_matched := minimum_loss(variant, matched_pairs)) >= best - 1e-6 * max(1.0, abs(best)):
        return (
            False,
            f"{where}, and no more is lost by it than by embeddings that match ({round(best_matched, 6):.4g}): every "
            "run would count as diverged",
        )
    declared = variant.traits.chance
    if declared is None:
        return True, f"none declared (chance = a function of B), so it is computed; {where}"
    level = declared(SIZE)
    return math.isclose(level, best, rel_tol=1e-4, abs_tol=1e-4), f"declared {level:.4g}; {where}"


REQUIRED: dict[str, PropertyCheck] = {
    "finite": _finite,
    "batch order": _order,
    "vmap": _vmap,
    "inputs kept": _inputs_kept,
    "gradient": _finite_differences,
    "two pairs": _two_pairs,
}
REPORTED: dict[str, PropertyCheck] = {
    "second derivatives": _second_derivatives,
    "rotation": _rotation,
    "extreme scales": _extreme_scales,
    "duplicates": _duplicates,
    "scale with B": _scale_with_batch,
    "chance level": _chance,
}
