"""The engines that train the replicas: a builder returns ``advance(steps) -> losses (steps, replicas)``.

All are built in a process of their own. Data lie on the device before the clock starts.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from workload import Work, batches

from stability.execute.machine import reproducible_arithmetic
from stability.execute.planning import MAX_REPLICAS
from stability.grid import Group
from stability.losses import clip
from stability.study import Study, optimizer_of
from stability.train import Trainer
from stability.train.model import build_towers

Advance = Callable[[int], np.ndarray]

EPOCH = 64
"""Batches that a peer holds ready; it reads them in turn."""


def ours(work: Work, threads: int) -> Advance:
    """Train as `stability run` does: groups no wider than a plan makes them, in a worker process with one thread.

    A worker trains a group from its first step to its last in one context, which is entered here for good.
    """
    del threads  # one, whatever is offered
    context = ExitStack()
    context.enter_context(reproducible_arithmetic())
    step_all = advance_of(trainers_of(work), work.last - work.first)

    def advance(steps: int, held: ExitStack = context) -> np.ndarray:
        return step_all(steps)

    return advance


def trainers_of(work: Work, capture: bool | None = None) -> list[Trainer]:
    """Return a trainer for each group of the replicas; *capture* as `Trainer` takes it, where it does."""
    study = work.study()
    pairs, runs, device = study.pairs(), work.runs(study), torch.device(work.device)
    width = MAX_REPLICAS[device.type]
    parts = [runs[start : start + width] for start in range(0, len(runs), width)]
    options = {"capture": capture} if can_capture() else {}
    return [Trainer(study, Group("benchmark", part), pairs, device, **options) for part in parts]


def can_capture() -> bool:
    """Return whether this version's trainer takes the option to capture its step in a CUDA graph."""
    return "capture" in inspect.signature(Trainer).parameters


def advance_of(trainers: Sequence[Trainer], replicas: int) -> Advance:
    """Return what trains one group after the other, as a worker does."""

    def advance(steps: int) -> np.ndarray:
        # A captured step writes its losses where the next one will write them too.
        losses = [torch.stack([trainer.step()["loss"].clone() for _ in range(steps)]) for trainer in trainers]
        return torch.cat(losses, 1).cpu().numpy()[:, :replicas]

    return advance


def loop(work: Work, threads: int, compiled: bool = False, graphed: bool = False) -> Advance:
    """Train one replica after the other with modules, autograd and fused AdamW, as a tutorial would.

    Losses are read after the last step, so that a GPU is not waited for at every one.
    """
    torch.set_num_threads(threads)
    study = work.study()
    pairs = study.pairs()
    steppers = [
        _one_replica(work, study, run.seed, _pairs_of_batches(work, study, run), compiled, graphed)
        for run in work.runs(study)
    ]
    del pairs

    def advance(steps: int) -> np.ndarray:
        losses = [torch.stack([next(stepper) for _ in range(steps)]) for stepper in steppers]
        return torch.stack(losses, 1).cpu().numpy()

    return advance


def loop_in_one_thread(work: Work, threads: int) -> Advance:
    """Train like `loop`, without the threads that small operations wait for."""
    del threads
    return loop(work, threads=1)


def compiled_loop(work: Work, threads: int) -> Advance:
    """Train like `loop`, forward and backward compiled for these shapes."""
    return loop(work, threads, compiled=True)


def graphed_loop(work: Work, threads: int) -> Advance:
    """Train like `loop`, its whole step captured in a CUDA graph and replayed."""
    return loop(work, threads, graphed=True)


def _pairs_of_batches(work: Work, study: Study, run: object) -> list[tuple[Tensor, Tensor]]:
    pairs = study.pairs()
    places = batches(pairs, run, EPOCH)  # type: ignore[arg-type]
    return [(pairs.image[place].to(work.device), pairs.text[place].to(work.device)) for place in places]


def _one_replica(
    work: Work, study: Study, seed: int, data: list[tuple[Tensor, Tensor]], compiled: bool, graphed: bool
) -> Iterator[Tensor]:
    image, text = (tower.to(work.device) for tower in build_towers(study, study.pairs(), seed).values())
    log_scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32, device=work.device))
    parameters = [*image.parameters(), *text.parameters()]
    matrices, vectors = ([p for p in parameters if (p.dim() > 1) == decayed] for decayed in (True, False))
    run = next(run for run in work.runs(study) if run.seed == seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": study.train.weight_decay},
            {"params": [*vectors, log_scale], "weight_decay": 0.0},
        ],
        lr=run.lr,
        **optimizer_of(study.train)[1],
        fused=True,
        capturable=graphed,
    )

    def objective(pixels: Tensor, words: Tensor) -> Tensor:
        return clip(F.normalize(image(pixels), dim=-1), F.normalize(text(words), dim=-1), log_scale=log_scale)

    measured = torch.compile(objective, dynamic=False) if compiled else objective

    def take_step(pixels: Tensor, words: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = measured(pixels, words)
        value.backward()
        optimizer.step()
        return value.detach()

    if graphed:
        yield from _replayed(take_step, data)
    for step in itertools.count():
        yield take_step(*data[step % EPOCH])


WARM_UP = 3
"""Steps before a capture: they set up what is set up once, such as the optimizer's state and cuBLAS."""


def _replayed(take_step: Callable[[Tensor, Tensor], Tensor], data: list[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """Yield the losses of a step that is captured after its first executions, on a stream of their own."""
    pixels, words = (samples.clone() for samples in data[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first = [take_step(*data[step]) for step in range(WARM_UP)]
    torch.cuda.current_stream().wait_stream(side)
    yield from first
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = take_step(pixels, words)
    for step in itertools.count(WARM_UP):
        fresh_pixels, fresh_words = data[step % EPOCH]
        pixels.copy_(fresh_pixels)
        words.copy_(fresh_words)
        graph.replay()
        yield value.clone()
