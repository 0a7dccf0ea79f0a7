"""A step as a CUDA graph: recorded once, then replayed with one launch in place of a hundred."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
Step = Callable[[Inputs], Tensor]

EAGER_STEPS = 3
"""Steps taken before the recording, on a stream of their own: libraries allocate their workspaces in them."""


class CapturedStep:
    """A step on the device that is recorded at its fourth call and replayed from then on.

    What the step reads must lie in tensors that it finds again: the inputs are copied into tensors kept for them, and
    everything else is updated in place. Where it cannot be recorded (a loss of one's own that reads a number on the
    host, say) steps go on one operation after the other, and *note* says why.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Inputs = {}
        self._result: Tensor | None = None
        self.note = ""

    @property
    def captured(self) -> bool:
        """Whether the step has been recorded."""
        return self._graph is not None

    def __call__(self, inputs: Inputs) -> Tensor:
        """Take a step and return its result, which the next step does not overwrite."""
        if self._graph is None and not self.note and self._calls >= EAGER_STEPS:
            self._capture(inputs)
        self._calls += 1
        if self._graph is None:
            return self._eager(inputs)
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        self._graph.replay()
        assert self._result is not None
        return self._result.clone()

    def _eager(self, inputs: Inputs) -> Tensor:
        if self.note:
            return self._step(inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = self._step(inputs)
        torch.cuda.current_stream().wait_stream(side)
        return result

    def _capture(self, inputs: Inputs) -> None:
        kept = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                result = self._step(kept)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            self.note = (
                f"the step cannot be recorded as a CUDA graph, so its operations are launched one by one: {reason}"
            )
            return
        self._graph, self._inputs, self._result = graph, kept, result
