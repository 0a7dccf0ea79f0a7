"""The same work for every engine: towers, pairs, batches, first weights and optimizer of some replicas."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stability.datasets import Pairs
from stability.grid import Run, runs_of
from stability.study import Study, parse_study
from stability.train.batches import batch_indices

TOWERS = {
    "mlp": """
[data]
name = "latent"
view_dim = 64
pairs = 8192
[model]
embed_dim = 64
image = { name = "mlp", width = 128, depth = 2 }
text = { name = "mlp", width = 128, depth = 2 }
""",
    "transformer": """
[data]
name = "digits"
held_out = 0.1
[model]
embed_dim = 64
image = { name = "patch_transformer", patch = 2, width = 64, depth = 2, heads = 4, mlp_ratio = 4 }
text = { name = "token_transformer", width = 64, depth = 2, heads = 4, mlp_ratio = 4 }
""",
}

STUDY = """
title = "Benchmark"
question = "How long does a step take?"
source = "benchmarks/training.py"
[train]
steps = 100000
betas = [0.9, 0.95]
weight_decay = 1e-2
[grid]
arms = ["clip", "siglip"]
batch_size = [{batch_size}]
lr = [1e-3]
seeds = {replicas}
[[claims]]
id = "none"
primary = true
text = "none"
measure = "loss"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.1
"""


@dataclass(frozen=True)
class Work:
    """Some replicas of one case: *first* to *last* (excluded) of *replicas*; replica r has seed r."""

    towers: str
    batch_size: int
    replicas: int
    first: int
    last: int
    device: str

    def study(self) -> Study:
        """Return the study whose runs with CLIP's loss are the replicas."""
        text = STUDY.format(batch_size=self.batch_size, replicas=self.replicas) + TOWERS[self.towers]
        return parse_study(text, "benchmark.toml", "benchmark")

    def runs(self, study: Study) -> tuple[Run, ...]:
        """Return the runs of this share of the replicas."""
        return tuple(run for run in runs_of(study) if run.arm == "clip")[self.first : self.last]


def share(work: Work, parts: int) -> list[Work]:
    """Return *work* in at most *parts* even parts, one for each process."""
    parts = min(parts, work.replicas)
    cuts = [part * work.replicas // parts for part in range(parts + 1)]
    return [
        Work(work.towers, work.batch_size, work.replicas, first, last, work.device)
        for first, last in itertools.pairwise(cuts)
    ]


def batches(pairs: Pairs, run: Run, steps: int) -> Tensor:
    """Return the places (steps, B) in the data of the first batches that a run reads."""
    drawn = batch_indices(run.seed, len(pairs.train), run.batch_size)
    return pairs.train[torch.stack([next(drawn) for _ in range(steps)])]


def agree(losses: np.ndarray, reference: np.ndarray, tolerance: float = 2e-3) -> bool:
    """Tell whether two engines computed the same losses (steps, replicas), where both did."""
    steps, replicas = (min(sizes) for sizes in zip(losses.shape, reference.shape, strict=True))
    return np.allclose(losses[:steps, :replicas], reference[:steps, :replicas], rtol=tolerance, atol=tolerance)
