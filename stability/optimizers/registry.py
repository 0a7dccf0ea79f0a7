"""The catalogue of optimizers: what one is, and what its decorator declares."""

from __future__ import annotations

from stability.registry import Registry

optimizer = Registry("optimizer", group="stability.optimizers")
"""An optimizer is a function ``(grad, buffers, count, *, <its options>) -> direction`` over rows of flat parameters.

*grad* (R, P) holds the gradients of R replicas, *buffers* its running state by name, each like *grad* and updated in
place, *count* (0-d, float32, on the device) the number of steps including this one. The trainer adds *rate* times
*direction* to the parameters, with a rate for each replica. Everything is elementwise, so a replica's numbers do not
depend on its neighbors, and nothing is read by the host, so a step can be captured as a CUDA graph.

The decorator declares

- ``buffers``: the names of the buffers, which start at zero;
- ``decay``: ``"decoupled"`` (the trainer adds ``- weight_decay * theta`` to the direction) or ``"in_grad"`` (it adds
  ``weight_decay * theta`` to the gradient);
- ``preconditioner(buffers, steps, *, <options>) -> (R, P)``: the positive diagonal by which a step is divided;
- ``stability_threshold(**options) -> float``: the largest sharpness that is stable at learning rate 1.

Options are keys of a study's ``[train]`` table.
"""
