"""The CLIP and SigLIP losses in blocks of rows, for batches whose B x B logits do not fit into memory.

Value, gradient and Hessian-vector product equal those of `clip` and `siglip`. Each block of logits is computed, used
and discarded, so the peak memory is O(B x chunk) for derivatives of every order. (`clip` and `siglip` are tiled
themselves for large batches; here the number of rows per block is an option, at every batch size.)
"""

from __future__ import annotations

import math

from torch import Tensor

from stability.losses.fused import clip_sum_tiled, siglip_sum_tiled
from stability.losses.registry import Scalar, loss
from stability.losses.sigmoid import siglip_chance
from stability.losses.softmax import clip_chance


@loss(log_scale=Scalar(math.log(10.0)), bias=Scalar(-10.0), chance=siglip_chance)
def siglip_chunked(image: Tensor, text: Tensor, *, log_scale: Tensor, bias: Tensor, chunk: int = 1024) -> Tensor:
    """SigLIP's loss computed *chunk* rows at a time; nats per image.

    The value and all derivatives of `siglip`, with O(B x chunk) memory.
    Zhai et al. (2023), arXiv:2303.15343, Sec. 3.3, chunks over devices; this is one device.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        bias: b, a scalar added to every logit.
        chunk: rows of the logits in memory at once.
    """
    return siglip_sum_tiled(log_scale.exp() * image, text, bias, chunk) / len(image)


@loss(log_scale=Scalar(math.log(10.0)), chance=clip_chance)
def clip_chunked(image: Tensor, text: Tensor, *, log_scale: Tensor, chunk: int = 1024) -> Tensor:
    """CLIP's loss computed *chunk* rows at a time; nats per pair.

    The value and all derivatives of `clip`, with O(B x chunk) memory. Radford et al. (2021), arXiv:2103.00020, Fig. 3.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        chunk: rows of the logits in memory at once.
    """
    return clip_sum_tiled(log_scale.exp() * image, text, chunk) / 2 / len(image)
