"""Losses of all replicas at once with hand-written gradients, without an autograd graph.

Under vmap and autograd every operation of a loss makes two passes over the logits of all replicas; the kernels here
need about a third of the passes and calls. A loss declares its kernel as the trait ``value_and_grad``; a loss without
one is differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.devices import is_aligned
from stability.losses.fused import clip_value_and_grad, is_large, siglip_value_and_grad

RowsKernel = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor, Tensor | None]]
"""Maps rows and columns (R, B, D) and a bias (R,) or None to the losses (R,) of the logits <row_i, column_j> + bias and
their gradients with respect to rows, columns and bias."""

LossAndGrads = tuple[Tensor, list[Tensor], dict[str, Tensor]]
"""Losses (R,), and their gradients with respect to both towers' embeddings (R, B, D) and to scalars (R,), by name."""

EPSILON = 1e-12
"""Lower bound on the norm that divides a row, as in `torch.nn.functional.normalize`."""


def loss_and_grads(kernel: RowsKernel, embeddings: list[Tensor], scalars: Mapping[str, Tensor]) -> LossAndGrads:
    """Return the losses of all replicas and their gradients.

    Args:
        kernel: computes the loss of scaled rows.
        embeddings: the outputs of both towers, (R, B, D) each, before normalization.
        scalars: ``log_scale`` and, if the loss has one, ``bias``, (R,) each.
    """
    replicas, size, width = embeddings[0].shape
    if replicas > 1 and not is_aligned(embeddings[0].device, size * size, size * width):
        return _concatenate(
            [
                loss_and_grads(kernel, [x[[i]] for x in embeddings], {name: x[[i]] for name, x in scalars.items()})
                for i in range(replicas)
            ]
        )
    lengths = [torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=EPSILON) for x in embeddings]
    image, text = (x / length for x, length in zip(embeddings, lengths, strict=True))
    scale = scalars["log_scale"].exp()[:, None, None]
    rows = image * scale
    losses, grad_rows, grad_text, grad_bias = kernel(rows, text, scalars.get("bias"))
    grad_scalars = {"log_scale": (grad_rows * rows).sum((1, 2))}
    if grad_bias is not None:
        grad_scalars["bias"] = grad_bias
    grad_units = (grad_rows.mul_(scale), grad_text)
    grads = [
        (grad - unit * (unit * grad).sum(-1, keepdim=True)).div_(length)
        for grad, unit, length in zip(grad_units, (image, text), lengths, strict=True)
    ]
    return losses, grads, grad_scalars


def sharded_loss_and_grads(
    kernel: RowsKernel, embeddings: list[Tensor], scalars: Mapping[str, Tensor], shards: int
) -> LossAndGrads:
    """Return the losses of all replicas over *shards* parts of their batches, and their gradients.

    Shards are further replicas of the kernel, (R k, B/k, D), so that a step stays one call; a replica's loss is the
    mean of its shards (`stability.losses.sharded`).

    Args:
        kernel: as in `loss_and_grads`.
        embeddings: as in `loss_and_grads`.
        scalars: as in `loss_and_grads`.
        shards: k, which divides B.
    """
    if shards == 1:
        return loss_and_grads(kernel, embeddings, scalars)
    parts = [x.unflatten(1, (shards, -1)).flatten(0, 1) for x in embeddings]
    repeated = {name: value[:, None].expand(-1, shards).flatten() for name, value in scalars.items()}
    losses, grads, grad_scalars = loss_and_grads(kernel, parts, repeated)
    whole = [(grad / shards).unflatten(0, (-1, shards)).flatten(1, 2) for grad in grads]
    return _mean(losses, shards), whole, {name: _mean(value, shards) for name, value in grad_scalars.items()}


def _mean(values: Tensor, shards: int) -> Tensor:
    """Return the means (R,) over the shards of each replica of *values* (R k,)."""
    # One addition after the other: a reduction may sum a replica's numbers in an order that depends on its position.
    first, *others = values.unflatten(0, (-1, shards)).unbind(1)
    return sum(others, first) / shards


def _concatenate(parts: list[LossAndGrads]) -> LossAndGrads:
    losses, grads, grad_scalars = zip(*parts, strict=True)
    scalars = {name: torch.cat([part[name] for part in grad_scalars]) for name in grad_scalars[0]}
    return torch.cat(losses), [torch.cat(tower) for tower in zip(*grads, strict=True)], scalars


def clip_kernel(rows: Tensor, columns: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    """Return the losses of `stability.losses.clip` at its default options, and their gradients; see `RowsKernel`."""
    size = rows.shape[1]
    if is_large(rows[0]):
        losses, grad_rows, grad_columns = _per_replica(clip_value_and_grad, rows, columns)
    else:
        logits = torch.bmm(rows, columns.mT)
        by_row, by_column = logits.softmax(-1), logits.softmax(-2)
        # The largest probability is e^0 over the sum, so its logarithm gives logsumexp without another pass.
        log_sums = logits.amax(-1) - by_row.amax(-1).log_() + logits.amax(-2) - by_column.amax(-2).log_()
        losses = (log_sums - 2 * torch.diagonal(logits, dim1=1, dim2=2)).sum(-1)
        grad_logits = by_row.add_(by_column)
        torch.diagonal(grad_logits, dim1=1, dim2=2).sub_(2)
        grad_rows, grad_columns = torch.bmm(grad_logits, columns), torch.bmm(grad_logits.mT, rows)
    return losses / 2 / size, grad_rows.div_(2 * size), grad_columns.div_(2 * size), None


def siglip_kernel(rows: Tensor, columns: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the losses of `stability.losses.siglip` at its default options, and their gradients; see `RowsKernel`."""
    assert bias is not None
    size = rows.shape[1]
    if is_large(rows[0]):
        losses, grad_rows, grad_columns, grad_bias = _per_replica(siglip_value_and_grad, rows, columns, bias)
    else:
        # -z_ij l_ij, with z = +1 on the diagonal and -1 elsewhere.
        signed = torch.bmm(rows, columns.mT).add_(bias[:, None, None])
        torch.diagonal(signed, dim1=1, dim2=2).neg_()
        losses = F.softplus(signed).sum((1, 2))
        grad_logits = signed.sigmoid_()
        torch.diagonal(grad_logits, dim1=1, dim2=2).neg_()
        grad_rows, grad_columns = torch.bmm(grad_logits, columns), torch.bmm(grad_logits.mT, rows)
        grad_bias = grad_logits.sum((1, 2))
    return losses / size, grad_rows.div_(size), grad_columns.div_(size), grad_bias / size


def _per_replica(function: Callable[..., tuple[Tensor, ...]], *stacked: Tensor) -> list[Tensor]:
    results = [function(*replica) for replica in zip(*stacked, strict=True)]
    return [torch.stack(values) for values in zip(*results, strict=True)]
