"""The training stages of the GPU benchmark: ours against a PyTorch loop and JAX, and shorter formats of products."""

from __future__ import annotations

import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from engines import Advance, advance_of, can_capture, compiled_loop, graphed_loop, loop, trainers_of
from gpu_table import Row
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from training import demand, settle
from workload import Work, agree

from stability.execute.machine import core_count, reproducible_arithmetic

if TYPE_CHECKING:
    from gpu_stages import Plan

    from stability.train import Trainer

CELLS = (
    ("mlp", 1024),
    ("transformer", 256),
    ("mlp", 256),
    ("transformer", 64),
    ("mlp", 32),
    ("transformer", 16),
    ("mlp", 1),
    ("transformer", 1),
)
"""Towers and replicas, what is worth most first."""

TOY_CELLS = (("mlp", 3), ("transformer", 2))

NAMES = {"mlp": "perceptron", "transformer": "transformers"}

GOALS = {("mlp", 1024): ">= 200", ("transformer", 256): ">= 50"}
"""Times faster than the eager loop."""

CHECKED = 4
"""Steps on which an engine must agree with the loop."""

UNIT = "ms a replica and step"


def work_of(plan: Plan, towers: str, replicas: int) -> Work:
    """Return the benchmark's work for some replicas, at batch size 128."""
    return Work(towers, 8 if plan.dry else 128, replicas, 0, replicas, plan.device)


def case_of(work: Work) -> str:
    """Return what the table calls this work."""
    return f"{NAMES[work.towers]}, B = {work.batch_size}, {work.replicas:,} replicas"


def timed(advance: Advance, replicas: int, dry: bool) -> tuple[np.ndarray, float]:
    """Return the losses (`CHECKED`, replicas) of the first steps, and milliseconds a replica and step, best of 3."""
    losses = advance(CHECKED)
    advance(CHECKED)  # warm
    start = time.perf_counter()
    advance(CHECKED)
    each = (time.perf_counter() - start) / CHECKED
    steps = 2 if dry else max(4, min(100, int(0.3 / each)))
    best = float("inf")
    for _ in range(1 if dry else 3):
        start = time.perf_counter()
        advance(steps)
        best = min(best, (time.perf_counter() - start) / steps)
    return losses, 1000 * best / replicas


def threads_of(plan: Plan) -> int:
    """Return the threads of a peer: all cores, or one at toy sizes, where threads only wait for each other."""
    return 1 if plan.dry else core_count()


@dataclass(frozen=True)
class Loop:
    """What is known of the loop on some towers: its time and its first losses, with which others must agree."""

    ms: float
    losses: np.ndarray


def training(plan: Plan) -> Iterator[Row]:
    """Yield ours at every cell, what is worth most first, with the eager loop; then the loop's graph, JAX, compiled."""
    cells, loops = TOY_CELLS if plan.dry else CELLS, {}
    for towers, replicas in cells:
        work = work_of(plan, towers, replicas)
        if plan.left() < (0 if plan.dry else 12):
            yield Row("training", case_of(work), "ours", "left out: no time left")
            continue
        if towers not in loops:
            losses, ms = timed(loop(work_of(plan, towers, 1), threads_of(plan)), 1, plan.dry)
            loops[towers] = Loop(ms, losses)
            yield Row("training", NAMES[towers], "loop, eager", ms, UNIT, 1.0)
        yield from ours(plan, work, loops[towers])
        tidy()
    for towers, known in loops.items():
        yield from peer(plan, towers, "loop, CUDA graph", graphed_loop, known, 8, why_no_graph(plan))
    for towers, replicas in cells:
        if towers in loops:
            yield from jax_row(plan, work_of(plan, towers, replicas), loops[towers])
    for towers, known in loops.items():
        yield from peer(plan, towers, "loop, compiled", compiled_loop, known, 40, why_not_compiled(plan))


def tidy() -> None:
    """Give back the memory of what has been measured."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ours(plan: Plan, work: Work, known: Loop) -> Iterator[Row]:
    """Yield rows of our trainer: captured, then eager; with launches, kernels, and shares of the ceilings."""
    from gpu_stages import measured_ceilings

    case, goal = case_of(work), GOALS.get((work.towers, work.replicas), "")
    limits, needs = measured_ceilings(plan), demand(work_of(plan, work.towers, 1))
    for figure, capture in (("ours, CUDA graph", None), ("ours, eager", False)):
        if capture is None and (plan.device == "cpu" or not can_capture()):
            yield Row("training", case, figure, "absent: nothing is captured here")
            continue
        with reproducible_arithmetic():
            begun = time.perf_counter()
            trainers = trainers_of(work, capture)
            losses, ms = timed(advance_of(trainers, work.replicas), work.replicas, plan.dry)
            yield Row("training", case, f"{figure}: until timed", time.perf_counter() - begun, "s")
            for note in dict.fromkeys(note for trainer in trainers for note in getattr(trainer, "notes", ())):
                yield Row("training", case, f"{figure}: note", note)
            if capture is None and not all(getattr(trainer, "captured", False) for trainer in trainers):
                figure = f"{figure} (not captured)"
            yield speed_row(case, figure, ms, losses, known, goal)
            yield Row("training", case, f"{figure}: of the matrix ceiling", 1000 * needs[0] / limits[0] / ms, "share")
            yield Row("training", case, f"{figure}: of the copy ceiling", 1000 * needs[1] / limits[1] / ms, "share")
            yield from launch_rows(plan, case, figure, trainers, ms * work.replicas)
            del trainers
        tidy()
        if not plan.dry and plan.left() < 8:
            break


def speed_row(case: str, figure: str, ms: float, losses: np.ndarray, known: Loop, goal: str = "") -> Row:
    """Return a row with the time over the eager loop's; one whose losses are not the loop's says so."""
    if not agree(losses, known.losses):
        return Row("training", case, f"{figure} (VOID: other losses than the loop)", ms, UNIT)
    return Row("training", case, figure, ms, UNIT, known.ms / ms, goal)


@dataclass(frozen=True)
class Launches:
    """What one step does: launches by the host, kernels on the device, and the milliseconds these take alone."""

    launches: int
    kernels: int
    device_ms: float


def launches_of(step: Callable[[], object], device: str) -> Launches:
    """Count one step under the profiler; on a CPU, operations stand for launches and their time for the device's."""
    on_gpu = device == "cuda"
    settle(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        step()
        settle(device)
    events = list(seen.events())
    if not on_gpu:
        calls = [event for event in events if event.name.startswith("aten::")]
        return Launches(len(calls), 0, sum(event.self_cpu_time_total for event in calls) / 1000)
    # Calls of CUDA's runtime and driver: cudaLaunchKernel, cudaLaunchKernelExC, cuLaunchKernel, cudaGraphLaunch...
    words = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
    host = [event for event in events if event.name.startswith("cu") and any(word in event.name for word in words)]
    # What is annotated on the host, as an optimizer's step, is seen on the device again, around its kernels.
    work = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    return Launches(len(host), len(work), sum(event.time_range.elapsed_us() for event in work) / 1000)


def launch_rows(plan: Plan, case: str, figure: str, trainers: Sequence[Trainer], step_ms: float) -> Iterator[Row]:
    """Yield launches and kernels of one step of all groups, and the step over the device's time alone."""

    def step() -> None:
        for trainer in trainers:
            trainer.step()

    # Of two steps, the one that draws no block of indices.
    found = min((launches_of(step, plan.device) for _ in range(2)), key=lambda each: each.launches)
    yield Row("training", case, f"{figure}: launches by the host", found.launches, "a step")
    yield Row("training", case, f"{figure}: kernels", found.kernels, "a step")
    if found.device_ms:
        goal = "<= 1.3" if "graph" in figure else ""
        over = step_ms / found.device_ms
        yield Row("training", case, f"{figure}: step over device time alone", found.device_ms, "ms a step", over, goal)


def peer(
    plan: Plan,
    towers: str,
    figure: str,
    builder: Callable[[Work, int], Advance],
    known: Loop,
    needs_s: float,
    why_not: str,
) -> Iterator[Row]:
    """Yield a variant of the loop, of one replica: what it takes is the same for every number of them."""
    if why_not or (plan.left() < needs_s and not plan.dry):
        yield Row("training", NAMES[towers], figure, why_not or "left out: no time left")
        return
    try:
        losses, ms = timed(builder(work_of(plan, towers, 1), threads_of(plan)), 1, plan.dry)
    except Exception as error:  # noqa: BLE001 (a peer that fails costs its own row)
        yield Row("training", NAMES[towers], figure, f"failed: {last_line(error)}")
        return
    yield speed_row(NAMES[towers], figure, ms, losses, known)
    tidy()


def last_line(error: BaseException) -> str:
    """Return the type of an error and its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def why_no_graph(plan: Plan) -> str:
    """Return why the loop is not captured here, or nothing."""
    return "absent: CUDA graphs need a GPU" if plan.device == "cpu" else ""


def why_not_compiled(plan: Plan) -> str:
    """Return why the loop is not compiled here, or nothing."""
    if plan.dry:
        return "absent: a dry run compiles nothing"
    return "" if importlib.util.find_spec("triton") else "absent: torch.compile needs triton"


def jax_row(plan: Plan, work: Work, known: Loop) -> Iterator[Row]:
    """Yield JAX on the same work, where it is installed and sees the GPU."""
    case = case_of(work)
    if missing := [name for name in ("jax", "optax") if importlib.util.find_spec(name) is None]:
        yield Row("training", case, "JAX", f"absent: {missing[0]} is not installed")
        return
    if plan.dry:
        yield Row("training", case, "JAX", "absent: a dry run compiles nothing")
        return
    if plan.left() < 30:
        yield Row("training", case, "JAX", "left out: no time left")
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # it would take most of the GPU's memory at once
    import jax

    if jax.default_backend() == "cpu":
        yield Row("training", case, "JAX", "absent: this JAX sees no GPU")
        return
    try:
        from engine_jax import jitted

        losses, ms = timed(jitted(work, core_count()), work.replicas, plan.dry)
    except Exception as error:  # noqa: BLE001 (a peer that fails costs its own row)
        yield Row("training", case, "JAX", f"failed: {last_line(error)}")
        return
    yield speed_row(case, "JAX", ms, losses, known)


FORMATS = (("float32", "highest", False), ("TF32", "high", False), ("bfloat16, cast at each product", "highest", True))
"""Formats of matrix products: a name, what torch calls the precision of float32 ones, and whether all are bfloat16."""

aten = torch.ops.aten
PRODUCTS = {aten.mm: aten.mm, aten.bmm: aten.bmm, aten.addmm: aten.addmm, aten.baddbmm: aten.baddbmm}
IN_PLACE = {aten.addmm_: aten.addmm, aten.baddbmm_: aten.baddbmm}


class ShortProducts(TorchDispatchMode):
    """Compute matrix products of float32 in bfloat16 and give float32 back, also where they are written in place.

    Autocast cannot take the trainer's step, which writes products into memory of its own.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        options = dict(kwargs or {})
        product = (PRODUCTS | IN_PLACE).get(func.overloadpacket)
        if product is None or args[0].dtype != torch.float32:
            return func(*args, **options)
        out = options.pop("out", args[0] if func.overloadpacket in IN_PLACE else None)
        value = product(*(arg.bfloat16() if isinstance(arg, torch.Tensor) else arg for arg in args), **options)
        return value.float() if out is None else out.copy_(value)


def precision(plan: Plan) -> Iterator[Row]:
    """Yield the step with products in shorter formats: its time, and how far the first losses lie from float32's."""
    for towers, replicas in TOY_CELLS if plan.dry else (("mlp", 1024), ("transformer", 64)):
        work = work_of(plan, towers, replicas)
        exact: tuple[np.ndarray, float] | None = None
        for name, setting, short in FORMATS:
            if not plan.dry and plan.left() < 8:
                yield Row("precision", case_of(work), name, "left out: no time left")
                continue
            try:
                found = in_format(plan, work, setting, short)
            except Exception as error:  # noqa: BLE001 (a format that the step cannot take is a finding, in its row)
                yield Row("precision", case_of(work), name, f"does not run: {last_line(error)}")
                continue
            exact = exact or found
            yield Row("precision", case_of(work), name, found[1], UNIT, exact[1] / found[1])
            apart = float(np.max(np.abs(found[0] - exact[0]) / np.abs(exact[0])))
            yield Row("precision", case_of(work), f"{name}: largest difference of first losses", apart, "relative")
            tidy()


def in_format(plan: Plan, work: Work, setting: str, short: bool) -> tuple[np.ndarray, float]:
    """Return the first losses and the milliseconds a replica and step with products in one format."""
    with ExitStack() as stack:
        stack.enter_context(reproducible_arithmetic())
        torch.set_float32_matmul_precision(setting)  # the context above puts back what was before
        if short:
            stack.enter_context(ShortProducts())
        return timed(advance_of(trainers_of(work), work.replicas), work.replicas, plan.dry)
