"""The properties of an optimizer that training relies on, each tried on a few replicas of small parameters.

`REQUIRED` and `REPORTED` map the name of a property to a function of the optimizer that returns whether it has it, and
why. `stability.check` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from stability.losses.calls import dtype_name
from stability.optimizers.host_reads import host_reads_of
from stability.optimizers.registry import OptimizerTraits
from stability.optimizers.trials import (
    LARGE,
    REPLICAS,
    STEPS,
    Gradients,
    Outcome,
    Trial,
    defaults_of,
    direction_of,
    random_gradients,
    run_trial,
    size_of,
    trial,
    zero_buffers,
)
from stability.optimizers.validation import check_direction, check_threshold, error_message
from stability.registry import Variant

PropertyCheck = Callable[[Variant[OptimizerTraits]], tuple[bool, str]]

LARGEST_BOUNDED = 10.0
"""The largest entry of a direction that counts as about the learning rate, in learning rates."""

BOWL_RATES = (1e-3, 1e-2, 1e-1)
BOWL_STEPS = 200


def _sound(variant: Variant[OptimizerTraits], dtype: torch.dtype) -> tuple[bool, str]:
    of = trial(dtype=dtype)
    one, other = (run_trial(variant, of, random_gradients(of, seed)) for seed in (0, 1))
    for step, direction in enumerate(one.directions, 1):
        check_direction(direction, of.params, f"the direction of step {step}")
    if all(torch.equal(*pair) for pair in zip(one.directions, other.directions, strict=True)):
        return False, "other gradients give the same directions: they do not depend on the gradient"
    return True, f"{STEPS} directions are finite, of the gradients' shape and of {dtype_name(of.params)}"


def _buffers(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial()
    declared, gradients = zero_buffers(variant, of), random_gradients(of)
    held, count = dict(declared), torch.zeros((), dtype=torch.float32)
    for step in range(1, STEPS):
        count += 1
        direction_of(variant, of, of.params, gradients(step, of.params), held, count)
        if extra := held.keys() - declared.keys():
            return False, f"it adds the buffer {min(extra)!r}, which it does not declare and which is lost"
        for name, buffer in declared.items():
            if held.get(name) is not buffer:
                return False, f"it replaces the buffer {name!r}; update it in place, as by mul_, add_ or copy_"
            if not bool(buffer.isfinite().all()):
                return False, f"the buffer {name!r} is not finite after {step} steps"
    if idle := [name for name, buffer in declared.items() if buffer.numel() and not bool(buffer.any())]:
        return False, f"the buffer {idle[0]!r} never changes; update it in place, or do not declare it"
    return True, f"updated in place: {', '.join(declared)}" if declared else "none declared"


def _inputs_kept(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial()
    grads, buffers = random_gradients(of)(1, of.params), zero_buffers(variant, of)
    inputs = {"grad": grads, "params": of.params, "rates": of.rates, "count": torch.ones((), dtype=torch.float32)}
    before = {name: value.clone() for name, value in inputs.items()}
    direction = direction_of(variant, of, of.params, grads, buffers, inputs["count"])
    if edited := [name for name, value in inputs.items() if not torch.equal(value, before[name])]:
        return False, f"it edits {', '.join(edited)} in place"
    memory = direction.untyped_storage().data_ptr()
    kept = {f"the buffer {name!r}": value for name, value in buffers.items() if value.numel()}
    for name, value in (kept | inputs).items():
        if value.untyped_storage().data_ptr() == memory:
            return False, f"the direction is {name} itself, which training then scales in place; return a new tensor"
    return True, "nothing but the buffers is edited, and the direction is a tensor of its own"


def _differing(one: Outcome, other: Outcome, rows: list[int], other_rows: list[int]) -> str:
    """Return the first tensor in which some replicas differ between two outcomes; empty if they are equal."""
    for name, value in one.tensors.items():
        if not torch.allclose(value[rows], other.tensors[name][other_rows], rtol=0, atol=0, equal_nan=True):
            return name
    return ""


def _deterministic(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = run_trial(variant, of, random_gradients(of))
        torch.manual_seed(1)
        second = run_trial(variant, of, random_gradients(of))
    every = list(range(REPLICAS))
    if name := _differing(first, second, every, every):
        return False, f"called again it gives other numbers: {name}; it may draw no random numbers and keep no state"
    return True, "called again it gives the same bits"


def _replicas(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial(LARGE)
    gradients = random_gradients(of)
    together = run_trial(variant, of, gradients)
    for replica in range(REPLICAS):
        for rows in ([replica], [replica, replica]):
            alone = run_trial(variant, of.of(rows), _of_rows(gradients, rows))
            if name := _differing(together, alone, [replica], [0]):
                return False, (
                    f"with other replicas beside it, {name} has other bits: nothing may be reduced over replicas, and "
                    "sums over a parameter are those of stability.optimizers.reproducible"
                )
    return True, f"{REPLICAS} replicas have the bits of each one trained alone"


def _of_rows(gradients: Gradients, rows: list[int]) -> Gradients:
    return lambda step, params: gradients(step, params)[rows]


def _extreme_replica(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial()
    gradients = random_gradients(of)
    plain, others = run_trial(variant, of, gradients), [0, *range(2, REPLICAS)]
    for name, factor in (("zero", 0.0), ("huge", 1e30), ("NaN", math.nan)):

        def changed(step: int, params: Tensor, factor: float = factor) -> Tensor:
            grads = gradients(step, params).clone()
            grads[1] *= factor
            return grads

        outcome = run_trial(variant, of, changed)
        if differing := _differing(plain, outcome, others, others):
            return False, f"a replica with a {name} gradient changes the others: {differing}"
        if name == "zero" and not all(bool(direction.isfinite().all()) for direction in outcome.directions):
            return False, "a replica whose gradient is zero gets a direction that is not finite; guard the division"
    return True, "a replica with a zero, huge or NaN gradient leaves the others alone"


def _at_rest(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial()
    outcome = run_trial(variant, of, random_gradients(of))
    for segment in of.layout:
        if not segment.trained and any(bool(segment.of(direction).any()) for direction in outcome.directions):
            return False, f"{segment.name!r} is not trained, has no gradient and no decay, and moves nevertheless"
    if any(bool(direction[:, size_of(of.layout) :].any()) for direction in outcome.directions):
        return False, "the padding behind the last parameter moves, although its gradient is zero"
    return True, "what is not trained, and the padding, stay as they are"


def _weight_decay(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of, declared = trial(), variant.traits.decay
    grads, count = random_gradients(of)(1, of.params), torch.ones((), dtype=torch.float32)
    with_decay, without = (
        direction_of(variant, each, of.params, grads.clone(), zero_buffers(variant, of), count)
        for each in (of, of.without_decay())
    )
    uses = not torch.equal(with_decay, without)
    if declared == "own":
        return uses, (
            "its direction includes Segment.decay"
            if uses
            else 'declared decay="own", but Segment.decay changes nothing; request params and layout, or declare '
            '"decoupled" or "in_grad"'
        )
    if uses:
        return False, f'declared decay="{declared}", which the trainer adds, but it uses Segment.decay too: twice'
    return True, f"the trainer adds it, {declared.replace('_', ' ').replace('in grad', 'to the gradient')}"


def _own_counts(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial()
    gradients = random_gradients(of)
    shared, own = zero_buffers(variant, of), zero_buffers(variant, of)
    for step in range(1, STEPS + 1):
        count = torch.full((), float(step))
        expected = direction_of(variant, of, of.params, gradients(step, of.params), shared, count)
        grads = gradients(step, of.params)
        direction = direction_of(variant, of, of.params, grads, own, count.expand(REPLICAS, 1).clone())
        if direction.shape != expected.shape or not torch.allclose(direction, expected, rtol=1e-5, atol=1e-6):
            return False, (
                "with a count for each replica, (R, 1), as in float16, its directions differ from those with one count "
                "for all, ()"
            )
    return True, "one count for all replicas, or one for each as in float16, give the same directions"


def _host_reads(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial()
    grads, buffers = random_gradients(of)(1, of.params), zero_buffers(variant, of)
    count = torch.ones((), dtype=torch.float32)
    if found := host_reads_of(lambda: direction_of(variant, of, of.params, grads, buffers, count)):
        return (
            False,
            f"it reads on the host {found[0]}; a step is replayed on a GPU without the host, so use torch.where",
        )
    return True, "the host reads no number, as far as a CPU can tell"


def _preconditioner(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    diagonal_of = variant.traits.preconditioner
    if diagonal_of is None:
        return True, "none declared: there is no preconditioned sharpness"
    of = trial()
    states = ((0, zero_buffers(variant, of)), (STEPS, run_trial(variant, of, random_gradients(of)).buffers))
    for steps, buffers in states:
        before = {name: value.clone() for name, value in buffers.items()}
        diagonal = diagonal_of(buffers, steps, **defaults_of(variant))
        if not isinstance(diagonal, Tensor) or diagonal.shape != of.params.shape:
            shape = tuple(diagonal.shape) if isinstance(diagonal, Tensor) else type(diagonal).__name__
            return False, f"after {steps} steps it is {shape}; allowed: a tensor of shape {tuple(of.params.shape)}"
        if not bool((diagonal.isfinite() & (diagonal > 0)).all()):
            return False, f"after {steps} steps it is not positive and finite everywhere"
        if any(not torch.equal(value, before[name]) for name, value in buffers.items()):
            return False, "it edits the buffers in place"
    return True, "positive, of the parameters' shape, before the first step and later"


def _evaluation_point(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    evaluated = variant.traits.evaluated
    if evaluated is None:
        return True, "none declared: probes measure the parameters at which gradients are taken"
    of = trial()
    start = evaluated(of.params, zero_buffers(variant, of), **defaults_of(variant))
    if not isinstance(start, Tensor) or start.shape != of.params.shape or not torch.equal(start, of.params):
        return False, "before the first step it is not the parameters"
    outcome = run_trial(variant, of, random_gradients(of))
    before = {name: value.clone() for name, value in (outcome.buffers | {"params": outcome.params}).items()}
    point = evaluated(outcome.params, outcome.buffers, **defaults_of(variant))
    after = outcome.buffers | {"params": outcome.params}
    if edited := [name for name, value in before.items() if not torch.equal(value, after[name])]:
        return False, f"it edits {edited[0]} in place"
    if not bool(point.isfinite().all()):
        return False, f"after {STEPS} steps it is not finite"
    return True, "the parameters before the first step, and finite later"


def _threshold(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    threshold_of = variant.traits.stability_threshold
    if threshold_of is None:
        return True, "none declared: there is no sharpness ratio"
    threshold = threshold_of(**defaults_of(variant))
    check_threshold(threshold)
    return True, f"sharpness times rate is stable up to {threshold:g}"


def _words(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    words = variant.traits.describe(**defaults_of(variant))
    return True, f"a report says: {words}"


def _precision(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    single, double = (
        run_trial(variant, of, random_gradients(of)) for of in (trial(dtype=torch.float32), trial(dtype=torch.float64))
    )
    gap = max(
        float((one.double() - two).abs().max() / two.abs().max().clamp(min=1e-30))
        for one, two in zip(single.directions, double.directions, strict=True)
    )
    return gap < 1e-3, f"directions in float32 and float64 differ by {gap:.1e} of the largest entry"


def _bounded_step(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial()
    plain = random_gradients(of)

    def growing(step: int, params: Tensor) -> Tensor:
        return plain(step, params) * 10.0**step

    largest = max(float(each.abs().max()) for each in run_trial(variant, of.without_decay(), growing).directions)
    reason = f"under gradients that grow tenfold each step, the largest move is {largest:.3g} learning rates"
    declared = variant.traits.bounded_step
    if declared:
        return largest <= LARGEST_BOUNDED, f"declared bounded; {reason}"
    return True, f"not declared bounded; {reason}"


def _bowl(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    of = trial().of(range(len(BOWL_RATES))).without_decay()
    of = Trial(of.params, of.layout, torch.tensor(BOWL_RATES))
    curvature = torch.zeros(of.params.shape[1])
    for segment in of.layout:
        if segment.trained:
            curvature[segment.start : segment.start + segment.size] = torch.logspace(-1, 1, segment.size)
    bowl: Gradients = lambda step, params: curvature * params  # noqa: E731
    end = run_trial(variant, of, bowl, BOWL_STEPS).params
    levels = [(curvature * each.square()).sum(1) / 2 for each in (of.params, end)]
    shares = (levels[1] / levels[0]).tolist()
    rates, values = (", ".join(f"{x:.3g}" for x in row) for row in (BOWL_RATES, shares))
    best = min((share for share in shares if math.isfinite(share)), default=math.inf)
    return best < 0.5, f"{BOWL_STEPS} steps down a quadratic bowl at rates {rates} leave {values} of its height"


def _graph(variant: Variant[OptimizerTraits]) -> tuple[bool, str]:
    if not torch.cuda.is_available():
        return True, "there is no GPU here to try it on"
    return _captured(variant, trial(), torch.device("cuda"))


def _captured(variant: Variant[OptimizerTraits], of: Trial, device: torch.device) -> tuple[bool, str]:
    """Capture one step as a CUDA graph, replay it, and compare the directions with those of steps without a graph."""
    of = Trial(of.params.to(device), of.layout, of.rates.to(device))
    grads = random_gradients(trial())(1, of.params)
    held, plain = zero_buffers(variant, of), zero_buffers(variant, of)
    count, plain_count = (torch.zeros((), dtype=torch.float32, device=device) for _ in range(2))

    def step(buffers: Mapping[str, Tensor], counter: Tensor) -> Tensor:
        counter += 1
        result: Tensor = direction_of(variant, of, of.params, grads, buffers, counter)
        return result

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(held, count)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            direction = step(held, count)
    except RuntimeError as error:
        return False, f"it cannot be captured, so a step is launched operation by operation: {error_message(error)}"
    for _ in range(2):
        graph.replay()
    expected = [step(plain, plain_count) for _ in range(4)][-1]
    same = torch.allclose(direction, expected, rtol=1e-4, atol=1e-6)
    return same, "replayed from a CUDA graph it gives " + ("the same directions" if same else "other directions")


REQUIRED: dict[str, PropertyCheck] = {
    "float32": partial(_sound, dtype=torch.float32),
    "float64": partial(_sound, dtype=torch.float64),
    "buffers": _buffers,
    "inputs kept": _inputs_kept,
    "deterministic": _deterministic,
    "own counts": _own_counts,
    "replicas": _replicas,
    "extreme replica": _extreme_replica,
    "at rest": _at_rest,
    "weight decay": _weight_decay,
    "host reads": _host_reads,
    "preconditioner": _preconditioner,
    "threshold": _threshold,
    "evaluation point": _evaluation_point,
    "words": _words,
}
REPORTED: dict[str, PropertyCheck] = {
    "precision": _precision,
    "bounded step": _bounded_step,
    "descent": _bowl,
    "CUDA graph": _graph,
}
