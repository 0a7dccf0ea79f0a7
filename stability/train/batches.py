"""The batches of a population: indices drawn on the CPU a block of steps ahead, moved to the device in one copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stability.devices import to_device
from stability.streams import stream

STEPS_AHEAD = 50
"""Steps of a block."""


def batch_indices(seed: int | str, available: int, batch_size: int, use: str = "batches") -> Iterator[Tensor]:
    """Yield (B,) indices for ever: each epoch is a new permutation of the pairs, its last part batch dropped.

    The stream depends on the seed and its *use* alone, so all losses and noise levels see the same batches.
    """
    generator = stream(seed, use)
    while True:
        order = torch.randperm(available, generator=generator)
        yield from order[: available // batch_size * batch_size].split(batch_size)


class BatchStream:
    """The batches of R replicas, step by step; replicas of one seed read the same.

    A block of steps is drawn while the one before it is used, a few seeds at each step: otherwise all seeds would draw
    the permutations of a new epoch at once, and a step would wait for a thousand of them.
    """

    def __init__(
        self, seeds: Sequence[int | str], available: int, batch_size: int, device: torch.device, use: str = "batches"
    ) -> None:
        distinct = list(dict.fromkeys(seeds))
        self._draws = [batch_indices(seed, available, batch_size, use) for seed in distinct]
        self._column = torch.tensor([distinct.index(seed) for seed in seeds])
        self._column_there = self._column.to(device)
        self._shape = (STEPS_AHEAD, len(distinct), batch_size)
        self._device = device
        self._coming, self._drawn = torch.empty(self._shape, dtype=torch.int64), 0
        self._here = self._there = self._coming
        self._step = STEPS_AHEAD

    def advance(self) -> None:
        """Go on to the next step."""
        if self._step == STEPS_AHEAD:
            self._draw(len(self._draws))
            self._here, self._there = self._coming, to_device(self._coming, self._device)
            self._coming, self._drawn = torch.empty(self._shape, dtype=torch.int64), 0
            self._step = 0
        self._step += 1
        self._draw(-(-len(self._draws) * self._step // STEPS_AHEAD))

    def _draw(self, seeds: int) -> None:
        """Draw what is missing of the coming block for the first *seeds* seeds."""
        for column in range(self._drawn, seeds):
            rows = [next(self._draws[column]) for _ in range(STEPS_AHEAD)]
            torch.stack(rows, out=self._coming[:, column])
        self._drawn = seeds

    def index(self) -> Tensor:
        """Return the indices (R, B) of this step, on the device."""
        return self._there[self._step - 1].index_select(0, self._column_there)

    def host_index(self) -> Tensor:
        """Return the indices (R, B) of this step, on the CPU."""
        return self._here[self._step - 1].index_select(0, self._column)
