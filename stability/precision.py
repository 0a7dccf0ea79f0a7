"""Training with 16-bit numbers: what is computed in them, and how a CPU without such instructions rounds to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from stability.devices import is_accelerator
from stability.registry import InputError

PrecisionName = Literal["float32", "bfloat16", "float16"]
LogitsName = Literal["float32", "same"]

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """The number formats of a training step. Parameters, gradients, moments and updates are always float32.

    Attributes:
        towers: Format of the matrix products and convolutions of the towers.
        logits: Format of the similarities, and of what the loss computes from them.
    """

    towers: torch.dtype = torch.float32
    logits: torch.dtype = torch.float32

    @classmethod
    def of(cls, precision: str, logits: str) -> Precision:
        """Return the formats by the names that a study gives them.

        >>> Precision.of("bfloat16", "float32")
        Precision(towers=torch.bfloat16, logits=torch.float32)
        >>> Precision.of("float16", "same").logits
        torch.float16
        """
        towers = DTYPES[precision]
        return cls(towers, towers if logits == "same" else torch.float32)

    @property
    def scales_loss(self) -> bool:
        """Whether gradients may overflow or underflow the format, so that the loss is scaled before it is derived."""
        return self.towers == torch.float16


FLOAT32 = Precision()


@contextmanager
def autocast(dtype: torch.dtype, device: torch.device, *, carried: bool = False) -> Iterator[None]:
    """Compute matrix products and convolutions within it in *dtype*; nothing changes for float32.

    An accelerator does so by `torch.autocast`. On a CPU the operands of these operations are rounded to *dtype*, the
    products are summed in float32 and the result is rounded again, which is what units for 16-bit products do. The
    gradients of operands and results are rounded in the same way. A CPU with instructions for bfloat16 uses them.
    All else is computed in float32, also the addition of a bias.

    Args:
        dtype: the number format.
        device: where the tensors are.
        carried: on a CPU, leave results in *dtype*, so that elementwise operations on them round too, but for those
            that `torch.autocast` computes in float32, such as ``exp``, ``softmax`` and ``sum``. For losses.
    """
    if dtype == torch.float32:
        yield
    elif is_accelerator(device):
        # A cache of cast weights would outlive the step of a captured CUDA graph.
        with torch.autocast(device.type, dtype=dtype, cache_enabled=False):
            yield
    else:
        with _Rounding(dtype, carried):
            _active.append(dtype)
            try:
                yield
            finally:
                _active.pop()


_active: list[torch.dtype] = []


def is_reduced(device: torch.device) -> bool:
    """Return whether products on *device* are now computed in a 16-bit format (see `autocast`)."""
    if not is_accelerator(device):
        return bool(_active)
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def multiplies_natively(dtype: torch.dtype) -> bool:
    """Return whether this CPU has instructions for products of *dtype*; without them products are rounded."""
    cpu = torch.cpu
    known = [getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return dtype == torch.bfloat16 and any(supported() for supported in known if supported)


def in_words(name: str, device: torch.device) -> str:
    """Return how products in a 16-bit format are computed on *device*, in words.

    >>> in_words("float16", torch.device("cpu"))
    'by rounding operands and results to float16 on a CPU'
    """
    if is_accelerator(device):
        return f"by torch.autocast on a {device.type.upper()} device"
    if multiplies_natively(DTYPES[name]):
        return "by instructions of the CPU"
    return f"by rounding operands and results to {name} on a CPU"


def check_products(tower: nn.Module) -> None:
    """Raise `InputError` if a tower has modules whose products cannot be rounded, since they are not called by name."""
    for path, module in tower.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
            raise InputError(
                f"its {type(module).__name__} ({path or 'the tower itself'}) cannot be computed with 16-bit products; "
                "allowed with train.precision: linear maps, convolutions, products of matrices, "
                "scaled_dot_product_attention"
            )


AFFINE: Mapping[Callable[..., Any], int] = {
    F.linear: 0,
    F.conv1d: 1,
    F.conv2d: 2,
    F.conv3d: 3,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 2,
    F.conv_transpose3d: 3,
}
"""Products that may add a bias to each channel, with the number of axes behind that of the channels."""

PRODUCTS = {
    *(torch.mm, torch.mv, torch.bmm, torch.matmul, torch.einsum, torch.inner, torch.chain_matmul),
    *(torch.addmm, torch.addmv, torch.addbmm, torch.baddbmm, torch.linalg.multi_dot, torch.linalg.matmul),
    *(Tensor.mm, Tensor.mv, Tensor.bmm, Tensor.matmul, Tensor.inner, Tensor.__matmul__, Tensor.__rmatmul__),
    *(Tensor.addmm, Tensor.addmv, Tensor.addbmm, Tensor.baddbmm),
    *(F.bilinear, F.scaled_dot_product_attention),
}
"""Products of matrices."""

IN_FLOAT32 = {
    *(
        getattr(owner, name)
        for owner in (torch, Tensor)
        for name in (
            *(
                "exp",
                "expm1",
                "log",
                "log2",
                "log10",
                "log1p",
                "logsumexp",
                "softmax",
                "log_softmax",
                "pow",
                "reciprocal",
            ),
            *("rsqrt", "sum", "prod", "cumsum", "cumprod", "norm", "acos", "asin", "cosh", "sinh", "tan", "dist"),
        )
    ),
    *(torch.cdist, torch.linalg.vector_norm, torch.linalg.matrix_norm, Tensor.__pow__, Tensor.__rpow__),
    *(F.softplus, F.softmax, F.softmin, F.log_softmax, F.layer_norm, F.group_norm, F.cosine_similarity),
    *(F.cross_entropy, F.nll_loss, F.binary_cross_entropy_with_logits, F.kl_div, F.mse_loss, F.l1_loss),
    *(F.smooth_l1_loss, F.huber_loss, F.hinge_embedding_loss, F.margin_ranking_loss, F.triplet_margin_loss),
    *(F.cosine_embedding_loss, F.soft_margin_loss, F.multi_margin_loss, F.multilabel_margin_loss),
}
"""Functions that `torch.autocast` computes in float32 (the "autocasts to float32" list of its documentation)."""


class _Rounding(TorchFunctionMode):
    """Rounds the operands and results of products on a CPU; see `autocast`."""

    def __init__(self, dtype: torch.dtype, carried: bool) -> None:
        super().__init__()
        self.dtype, self.carried, self.native = dtype, carried, multiplies_natively(dtype)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in AFFINE:
            return self._affine(function, *args, **kwargs)
        if function in PRODUCTS:
            return self._product(function, *args, **kwargs)
        if self.carried and function in IN_FLOAT32:
            args, kwargs = pytree.tree_map_only(Tensor, _widened, (args, kwargs))
        return function(*args, **kwargs)

    def _product(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, self._operand, (args, kwargs))
        result = function(*args, **kwargs).to(self.dtype)
        return result if self.carried else result.to(torch.float32)

    def _operand(self, tensor: Tensor) -> Tensor:
        """Return what a product reads; a float64 oracle's tensors are rounded too."""
        if not tensor.is_floating_point():
            return tensor
        rounded = tensor.to(self.dtype)
        return rounded if self.native else rounded.to(torch.float32)

    def _affine(
        self,
        function: Callable[..., Any],
        input: Tensor,  # noqa: A002 (torch's name)
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        product = self._product(function, input, weight, None, *args, **kwargs)
        return product if bias is None else product + bias.view(-1, *(1,) * AFFINE[function])


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
