"""The engines that train the replicas: a builder returns ``advance(steps) -> losses (steps, replicas)``.

All are built in a process of their own. Data lie on the device before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from workload import Work, batches

from stability.execute.machine import reproducible_arithmetic
from stability.execute.planning import WIDEST
from stability.grid import Group
from stability.losses import clip
from stability.study import Study
from stability.train import Trainer
from stability.train.population import towers

Advance = Callable[[int], np.ndarray]

EPOCH = 64
"""Batches that a peer holds ready; it reads them in turn."""


def ours(work: Work, threads: int) -> Advance:
    """Train as `stability run` does: groups no wider than a plan makes them, in a worker process with one thread.

    A worker trains a group from its first step to its last in one context, which is entered here for good.
    """
    study = work.study()
    del threads  # one, whatever is offered
    context = ExitStack()
    context.enter_context(reproducible_arithmetic())
    pairs, runs = study.pairs(), work.runs(study)
    width = WIDEST[torch.device(work.device).type]
    parts = [runs[start : start + width] for start in range(0, len(runs), width)]
    trainers = [Trainer(study, Group("benchmark", part), pairs, torch.device(work.device)) for part in parts]

    def advance(steps: int, held: ExitStack = context) -> np.ndarray:
        # One group after the other, as a worker trains them.
        losses = [torch.stack([trainer.step()["loss"] for _ in range(steps)]) for trainer in trainers]
        return torch.cat(losses, 1).cpu().numpy()[:, : work.last - work.first]

    return advance


def loop(work: Work, threads: int, compiled: bool = False) -> Advance:
    """Train one replica after the other with modules, autograd and fused AdamW, as a tutorial would."""
    torch.set_num_threads(threads)
    study = work.study()
    pairs = study.pairs()
    steppers = [
        _one_replica(work, study, run.seed, _pairs_of_batches(work, study, run), compiled) for run in work.runs(study)
    ]
    del pairs
    return lambda steps: np.array([[next(stepper) for _ in range(steps)] for stepper in steppers]).T


def loop_in_one_thread(work: Work, threads: int) -> Advance:
    """Train like `loop`, without the threads that small operations wait for."""
    del threads
    return loop(work, threads=1)


def compiled_loop(work: Work, threads: int) -> Advance:
    """Train like `loop`, forward and backward compiled for these shapes."""
    return loop(work, threads, compiled=True)


def _pairs_of_batches(work: Work, study: Study, run: object) -> list[tuple[Tensor, Tensor]]:
    pairs = study.pairs()
    places = batches(pairs, run, EPOCH)  # type: ignore[arg-type]
    return [(pairs.image[place].to(work.device), pairs.text[place].to(work.device)) for place in places]


def _one_replica(
    work: Work, study: Study, seed: int, data: list[tuple[Tensor, Tensor]], compiled: bool
) -> Iterator[float]:
    image, text = (tower.to(work.device) for tower in towers(study, study.pairs(), seed).values())
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
        betas=study.train.betas,
        eps=study.train.eps,
        fused=True,
    )

    def objective(pixels: Tensor, words: Tensor) -> Tensor:
        return clip(F.normalize(image(pixels), dim=-1), F.normalize(text(words), dim=-1), log_scale=log_scale)

    measured = torch.compile(objective, dynamic=False) if compiled else objective
    step = 0
    while True:
        optimizer.zero_grad()
        value = measured(*data[step % EPOCH])
        value.backward()
        optimizer.step()
        yield value.item()
        step += 1
