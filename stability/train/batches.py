"""Batch indices of a population, drawn on the CPU a block of steps ahead and moved to the device in one copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stability.devices import to_device
from stability.streams import stream

STEPS_AHEAD = 50
"""Number of steps in a block."""


def epochs(seed: int | str, available: int, batch_size: int, use: str = "batches") -> Iterator[Tensor]:
    """Yield the batch indices of one epoch after another, (batches, B), without end.

    Each epoch is a new permutation of the pairs; an incomplete last batch is dropped. The stream depends only on the
    seed and its *use*, so all losses and noise levels see the same batches.

    Args:
        seed: seed of the stream.
        available: number of training pairs.
        batch_size: B.
        use: name of the stream.
    """
    generator = stream(seed, use)
    while True:
        order = torch.randperm(available, generator=generator)
        yield order[: available // batch_size * batch_size].view(-1, batch_size)


def batch_indices(seed: int | str, available: int, batch_size: int, use: str = "batches") -> Iterator[Tensor]:
    """Yield the indices (B,) of one batch after another, without end; see `epochs`.

    Args:
        seed: seed of the stream.
        available: number of training pairs.
        batch_size: B.
        use: name of the stream.
    """
    for epoch in epochs(seed, available, batch_size, use):
        yield from epoch


def index_blocks(
    seed: int | str, available: int, batch_size: int, use: str = "batches", steps: int = STEPS_AHEAD
) -> Iterator[Tensor]:
    """Yield the same batches in blocks of *steps*, (steps, B).

    Args:
        seed: seed of the stream.
        available: number of training pairs.
        batch_size: B.
        use: name of the stream.
        steps: number of batches in a block.
    """
    source, epoch = epochs(seed, available, batch_size, use), torch.empty(0, batch_size, dtype=torch.int64)
    while True:
        parts, missing = [], steps
        while missing:
            epoch = epoch if len(epoch) else next(source)
            part, epoch = epoch[:missing], epoch[missing:]
            parts.append(part)
            missing -= len(part)
        yield torch.cat(parts)


class BatchStream:
    """Yields the batch indices of R replicas step by step; replicas with the same seed get the same batches.

    The next block of steps is drawn while the current one is used, for a few seeds at each step. Otherwise all seeds
    would permute a new epoch at the same step, which would wait for a thousand permutations. The stream begins with the
    batches of step *first*.
    """

    def __init__(
        self,
        seeds: Sequence[int | str],
        available: int,
        batch_size: int,
        device: torch.device,
        use: str = "batches",
        first: int = 0,
    ) -> None:
        distinct = list(dict.fromkeys(seeds))
        self._blocks = [index_blocks(seed, available, batch_size, use) for seed in distinct]
        self._column = torch.tensor([distinct.index(seed) for seed in seeds])
        self._column_on_device = self._column.to(device)
        self._shape = (STEPS_AHEAD, len(distinct), batch_size)
        self._device = device
        self._next, self._drawn = torch.empty(self._shape, dtype=torch.int64), 0
        self._on_host = self._on_device = self._next
        self._step = STEPS_AHEAD
        # The stream has no other state than what its permutations have drawn, so they are drawn.
        for _ in range(first):
            self.advance()

    def advance(self) -> None:
        """Advance to the next step."""
        if self._step == STEPS_AHEAD:
            self._draw(len(self._blocks))
            self._on_host, self._on_device = self._next, to_device(self._next, self._device)
            self._next, self._drawn = torch.empty(self._shape, dtype=torch.int64), 0
            self._step = 0
        self._step += 1
        self._draw(-(-len(self._blocks) * self._step // STEPS_AHEAD))

    def _draw(self, seeds: int) -> None:
        """Draw the next block for the first *seeds* seeds, as far as it is missing."""
        for column in range(self._drawn, seeds):
            self._next[:, column] = next(self._blocks[column])
        self._drawn = max(self._drawn, seeds)

    def index(self) -> Tensor:
        """Return the indices (R, B) of this step, on the device."""
        return self._on_device[self._step - 1].index_select(0, self._column_on_device)

    def host_index(self) -> Tensor:
        """Return the indices (R, B) of this step, on the CPU."""
        return self._on_host[self._step - 1].index_select(0, self._column)
