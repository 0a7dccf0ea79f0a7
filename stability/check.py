"""Conformance of a loss: what the trainer and the probes rely on, one property at a time, for any loss.

``check(loss["clip"])`` returns one `Outcome` per property. The required ones are what training relies on; the others
are reported, since a good loss may lack them. A loss that raises has failed the property, with its own message.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from stability.losses import reserved_of, scalars_of, scalars_with
from stability.registry import InputError, Variant
from stability.streams import stream

SIZE, DIM = 6, 4
AVAILABLE = 64
LATE = 10**9
SCALES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3)
BATCH_SIZES = (4, 16, 64, 256)


@dataclass(frozen=True)
class Outcome:
    """Whether a loss has one property, whether training requires it, and why or why not, in one sentence."""

    property: str
    required: bool
    passed: bool
    reason: str


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a loss: what can be differentiated, what is given, and the state where it has one.

    *varying* holds image, text (B, D) and the scalars; *given* the reserved names except the state.
    """

    varying: dict[str, Tensor]
    given: dict[str, Tensor]
    state: dict[str, Tensor]

    @property
    def everything(self) -> dict[str, Tensor]:
        """Return all tensors by name, those of the state as ``state.<name>``."""
        return {**self.varying, **self.given, **{f"state.{name}": value for name, value in self.state.items()}}

    def changed(self, **values: Tensor) -> Inputs:
        """Return the same call with other values of what varies."""
        return replace(self, varying=self.varying | values)

    def reordered(self, order: Tensor) -> Inputs:
        """Return the same call on the same pairs in another order, with all that belongs to a pair."""
        varying = {name: value[order] if value.ndim == 2 else value for name, value in self.varying.items()}
        given = dict(self.given)
        if "index" in given:
            given["index"] = given["index"][order]
        if "uniform" in given:
            given["uniform"] = given["uniform"][order][:, order]
        return Inputs(varying, given, self.state)


def inputs_of(
    variant: Variant, size: int = SIZE, *, seed: int = 0, step: int = 3, dtype: torch.dtype = torch.float64
) -> Inputs:
    """Return a call of *variant* on *size* random pairs, at its initial scalars and initial state."""
    generator = stream(seed, "check")
    image, text = F.normalize(torch.randn(2, size, DIM, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    scalars = {name: torch.tensor(scalar.at(size), dtype=dtype) for name, scalar in scalars_of(variant).items()}
    offered = {
        "step": torch.tensor(step),
        "index": torch.randperm(max(AVAILABLE, size), generator=generator)[:size],
        "uniform": torch.rand(size, size, generator=generator, dtype=torch.float64).to(dtype),
    }
    asked = reserved_of(variant)
    initial = variant.traits["state"](max(AVAILABLE, size)) if "state" in asked else {}
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in initial.items()}
    given = {name: value for name, value in offered.items() if name in asked}
    return Inputs({"image": image, "text": text, **scalars}, given, state)


def call(variant: Variant, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and its new state (empty where it has none).

    Raises `InputError` where the loss does not return what it promises: one number, and a state where it asks for one.
    """
    rest = {name: value for name, value in inputs.varying.items() if name not in ("image", "text")} | inputs.given
    state: dict[str, Tensor] = {}
    if "state" not in reserved_of(variant):
        returned = variant(inputs.varying["image"], inputs.varying["text"], **rest)
    else:
        both = variant(inputs.varying["image"], inputs.varying["text"], **rest, state=dict(inputs.state))
        if not (isinstance(both, tuple) and len(both) == 2 and isinstance(both[1], Mapping)):
            raise InputError("it asks for a state, so it has to return two things: (loss, new_state)")
        returned, state = both[0], dict(both[1])
        if state.keys() != inputs.state.keys():
            raise InputError(f"its new state has {sorted(state)}, its initial state {sorted(inputs.state)}")
    if not isinstance(returned, Tensor):
        raise InputError(f"it returns a value of type {type(returned).__name__}; allowed: a tensor that is one number")
    if returned.ndim:
        raise InputError(f"it returns a tensor of shape {tuple(returned.shape)}; allowed: one number, shape ()")
    if not returned.is_floating_point():
        raise InputError(f"it returns a number of type {_type(returned)}; allowed: a real one, as float32 is")
    return returned, state


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def validate_loss(variant: Variant) -> None:
    """Raise `InputError` with one sentence on a loss that cannot be called at all, or is not one number."""
    where = f"loss {variant.name!r}"
    if "state" in reserved_of(variant) and not callable(variant.traits.get("state")):
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
        raise InputError(f"{where} can't be called: {_told(error)}") from error


def check(variant: Variant) -> tuple[Outcome, ...]:
    """Return one outcome per property of a loss, the required ones first.

    An exception that the loss raises is a failed outcome with its message, not an exception here.
    """
    judged = [(name, True, judge) for name, judge in REQUIRED.items()]
    judged += [(name, False, judge) for name, judge in REPORTED.items()]
    return tuple(_outcome(variant, *each) for each in judged)


PropertyCheck = Callable[[Variant], tuple[bool, str]]


def _outcome(variant: Variant, name: str, required: bool, judge: PropertyCheck) -> Outcome:
    try:
        passed, reason = judge(variant)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a loss may raise anything: that is the outcome)
        return Outcome(name, required, False, _told(error))
    return Outcome(name, required, passed, reason)


def _told(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"


def _value(variant: Variant, inputs: Inputs) -> Tensor:
    return call(variant, inputs)[0]


def _gradients(variant: Variant, inputs: Inputs) -> dict[str, Tensor]:
    return grad(lambda varying: _value(variant, replace(inputs, varying=varying)))(inputs.varying)


def _not_finite(variant: Variant, inputs: Inputs) -> str:
    """Return what is not finite, the value or the names of gradients; empty where all is finite."""
    value = _value(variant, inputs)
    if not torch.isfinite(value):
        return f"the value is {value.item()}"
    bad = [name for name, slope in _gradients(variant, inputs).items() if not torch.isfinite(slope).all()]
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
    one, other = _value(variant, inputs), _value(variant, inputs.reordered(order))
    same = _close(one, other)
    return same, "the order of the pairs changes nothing" if same else f"{one:.9g}, and {other:.9g} in another order"


def _vmap(variant: Variant) -> tuple[bool, str]:
    calls = [inputs_of(variant, seed=seed) for seed in range(3)]
    stacked = [
        {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        for parts in ([c.varying for c in calls], [c.given for c in calls], [c.state for c in calls])
    ]

    def one(varying: Any, given: Any, state: Any) -> Any:
        slopes = _gradients(variant, Inputs(varying, given, state))
        value, new_state = call(variant, Inputs(varying, given, state))
        return {"value": value, **slopes, **{f"state.{name}": each for name, each in new_state.items()}}

    together = vmap(one)(*stacked)
    apart = [one(c.varying, c.given, c.state) for c in calls]
    differing = [name for name in together if not _close(together[name], torch.stack([each[name] for each in apart]))]
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
    value, given = _value(variant, inputs), inputs.varying["image"]
    if value.dtype != given.dtype:
        return False, (
            f"it returns {_type(value)} for embeddings of {_type(given)}; make new tensors of the inputs' type, as by "
            "dtype=image.dtype, and convert none"
        )
    slopes = _gradients(variant, inputs)
    if not any(slope.any() for slope in slopes.values()):
        return False, "the gradient is zero in all inputs: the value does not depend on them"
    for name, value in inputs.varying.items():
        direction = torch.randn(value.shape, generator=stream(0, f"direction/{name}"), dtype=value.dtype)
        width = 1e-5

        def at(shift: float, name: str = name, moved: Tensor = direction) -> Tensor:
            return _value(variant, inputs.changed(**{name: inputs.varying[name] + shift * moved}))

        # Fourth order: the error is about width^4 of truncation and 1e-16 / width of rounding.
        measured = (8 * (at(width) - at(-width)) - (at(2 * width) - at(-2 * width))) / (12 * width)
        expected = (slopes[name] * direction).sum()
        if not _close(measured, expected, 1e-6):
            return False, f"along {name} the gradient says {expected:.6g}, differences of the value {measured:.6g}"
    return True, "gradients agree with differences of the value in float64"


def _second_derivatives(variant: Variant) -> tuple[bool, str]:
    inputs = inputs_of(variant)
    direction = {
        name: torch.randn(value.shape, generator=stream(0, f"direction/{name}"), dtype=value.dtype)
        for name, value in inputs.varying.items()
    }

    def slopes(varying: dict[str, Tensor]) -> dict[str, Tensor]:
        return _gradients(variant, replace(inputs, varying=varying))

    product = jvp(slopes, (inputs.varying,), (direction,))[1]
    width = 1e-5
    ahead, behind = (
        slopes({name: value + shift * direction[name] for name, value in inputs.varying.items()})
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
    turned = {side: inputs.varying[side] @ rotation for side in ("image", "text")}
    one, other = _value(variant, inputs), _value(variant, inputs.changed(**turned))
    same = _close(one, other)
    return same, "turning both towers changes nothing" if same else f"{one:.9g}, and {other:.9g} after a turn of both"


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
        slopes = _gradients(variant, inputs)
        norms.append(torch.cat([slopes["image"].flatten(), slopes["text"].flatten()]).norm().item())
    sizes, losses, slopes_shown = (", ".join(f"{x:.3g}" for x in row) for row in (BATCH_SIZES, values, norms))
    finite = all(math.isfinite(value) for value in (*values, *norms))
    return finite, f"at B = {sizes} and random embeddings: loss {losses}; gradient norm {slopes_shown}"


def _chance(variant: Variant) -> tuple[bool, str]:
    found = best_constant(variant)
    where = f"at B = {SIZE} the best constant similarity reaches {round(found, 6):.4g}"
    if (least := _minimize(variant, _matched)) >= found - 1e-6 * max(1.0, abs(found)):
        return (
            False,
            f"{where}, and no more is lost by it than by embeddings that match ({round(least, 6):.4g}): every "
            "run would count as diverged",
        )
    declared = variant.traits.get("chance")
    if declared is None:
        return True, f"none declared (chance = a function of B), so it is computed; {where}"
    said = declared(SIZE)
    return math.isclose(said, found, rel_tol=1e-4, abs_tol=1e-4), f"declared {said:.4g}; {where}"


def chance_level(variant: Variant, batch_size: int, given: Mapping[str, Any] | None = None) -> float:
    """Return the loss of embeddings that say nothing, of an arm that gives its loss these scalars and options.

    By the declared formula where it knows every option given, else the least of a constant similarity, searched for.
    """
    given = given or {}
    scalars, formula = scalars_with(variant, given), variant.traits.get("chance")
    options = {key: value for key, value in given.items() if key not in scalars}
    # Where a trained scalar starts does not matter; where it is held does.
    held = any(not scalar.trained and scalar != scalars_of(variant)[name] for name, scalar in scalars.items())
    if formula and not held and options.keys() <= inspect.signature(formula).parameters.keys():
        return float(formula(batch_size, **options))
    arm = replace(variant, function=partial(variant.function, **options), traits={**variant.traits, **scalars})
    return best_constant(arm, batch_size)


def best_constant(variant: Variant, size: int = SIZE) -> float:
    """Return the least loss that one similarity, the same for all pairs, reaches with the best trained scalars.

    All images are one vector, all texts another; their angle and the trained scalars are optimised, late in training.
    """
    return _minimize(variant, _constant, size)


def _constant(angle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    axes = torch.eye(DIM, dtype=torch.float64)[:2]
    text = torch.cos(angle) * axes[0] + torch.sin(angle) * axes[1]
    return axes[0].expand(size, DIM), text.expand(size, DIM)


def _matched(angle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pairs that match but for an angle, on as many axes as there are."""
    axes, places = torch.eye(DIM, dtype=torch.float64), torch.arange(size)
    image, aside = axes[places % DIM], axes[(places + 1) % DIM]
    # The search begins at a right angle: here where matches are almost one.
    turn = angle - math.pi / 2 + 0.1
    return image, torch.cos(turn) * image + torch.sin(turn) * aside


def _minimize(variant: Variant, place: Callable[[Tensor, int], tuple[Tensor, Tensor]], size: int = SIZE) -> float:
    """Return the least loss of embeddings placed by an angle, over that angle and the trained scalars."""
    inputs = inputs_of(variant, size, step=LATE)
    angle = torch.tensor(math.pi / 2, dtype=torch.float64, requires_grad=True)
    free: dict[str, Tensor] = {
        name: inputs.varying[name].clone().requires_grad_()
        for name, scalar in scalars_of(variant).items()
        if scalar.trained
    }
    optimiser = torch.optim.LBFGS([angle, *free.values()], max_iter=200, line_search_fn="strong_wolfe")

    def evaluate() -> float:
        optimiser.zero_grad()
        image, text = place(angle, size)
        value = _value(variant, inputs.changed(image=image, text=text, **free))
        value.backward()
        return value.item()

    optimiser.step(evaluate)
    return evaluate()


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
