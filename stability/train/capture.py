"""A training step as a CUDA graph: captured once, then replayed with one launch instead of a hundred."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
Step = Callable[[Inputs], Tensor]

EAGER_STEPS = 3
"""Steps run on a side stream before the capture, in which libraries allocate their workspaces."""


class CapturedStep:
    """A step on the device that is captured as a CUDA graph at its fourth call and replayed from then on.

    The step must read its inputs from the same memory at every call, so inputs are copied into static tensors and
    everything else is updated in place. If the step cannot be captured (for example, a custom loss reads a number on
    the host), its operations are launched one by one, and *note* holds the reason.
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
        """Whether the step has been captured."""
        return self._graph is not None

    def __call__(self, inputs: Inputs) -> Tensor:
        """Run a step and return its result, which the next step does not overwrite."""
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
        static_inputs = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                result = self._step(static_inputs)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            self.note = (
                f"the step cannot be recorded as a CUDA graph, so its operations are launched one by one: {reason}"
            )
            return
        self._graph, self._inputs, self._result = graph, static_inputs, result
