"""Functions that keep little for their derivatives: computed again when asked, or found together with the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp


def checkpointed(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Return ``function(*inputs)``, of which only the inputs are kept; derivatives of any order call it again."""
    return _Checkpointed.apply(function, *inputs)


def custom_grad(fused: Callable[..., tuple[Tensor, ...]], plain: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return the scalar ``plain(*inputs)``; unless gradients are off, *fused* finds the gradient together with it.

    ``fused(*inputs)`` returns the value and its derivative with respect to each input. It is called once, on plain
    tensors of one replica, outside all differentiation, so it may work in place; going backward then only multiplies.
    Derivatives of second and higher order are those of *plain*.
    """
    # Not `requires_grad` of the inputs: inside vmap it is False for all of them.
    if torch.is_grad_enabled():
        return _CustomGrad.apply(fused, plain, *inputs)[0]
    return plain(*inputs)


class _Checkpointed(torch.autograd.Function):
    """``function(*inputs)``, of which only the inputs are kept; derivatives call it again, and are such calls too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Any], *inputs: Tensor) -> Any:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        function, inputs = ctx.function, ctx.saved_tensors

        def pull_back(*tensors: Tensor) -> Any:
            arguments, cotangents = tensors[: len(inputs)], tensors[len(inputs) :]
            output, pull, *_ = vjp(function, *arguments)
            return pull(cotangents[0] if isinstance(output, Tensor) else cotangents)

        return None, *_Checkpointed.apply(pull_back, *inputs, *upstream)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        return jvp(ctx.function, tuple(inputs), _filled(tangents, inputs))[1]


class _CustomGrad(torch.autograd.Function):
    """``(value, *slopes)``: the slopes are outputs, so that the backward pass is differentiable through them."""

    @staticmethod
    def forward(fused: Callable[..., tuple[Tensor, ...]], plain: Callable[..., Tensor], *inputs: Tensor) -> Any:
        return fused(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, ctx.plain, *tensors = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.save_for_forward(*tensors, *output[1:])
        # A first derivative asks nothing of the slopes: zeros here would cost it a Hessian-vector product.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *bends: Tensor | None) -> Any:
        inputs, slopes = _halves(ctx.saved_tensors)
        parts = []
        if upstream is not None:
            parts.append(tuple(upstream * slope for slope in slopes))
        if any(bend is not None for bend in bends):
            _, pull, *_ = vjp(_gradient(ctx.plain, inputs), *inputs)
            parts.append(pull(_filled(bends, slopes)))
        return None, None, *(map(sum, zip(*parts, strict=True)) if parts else [None] * len(inputs))

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> Any:
        inputs, slopes = _halves(ctx.saved_tensors)
        moved = _filled(tangents, inputs)
        rise = sum((slope * step).sum() for slope, step in zip(slopes, moved, strict=True))
        return rise, *jvp(_gradient(ctx.plain, inputs), inputs, moved)[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], fused: Any, plain: Any, *inputs: Tensor) -> Any:
        # One replica after the other: each one's tiles stay in cache, and no replica's bits depend on the others.
        each = [
            [x] * info.batch_size if dim is None else x.unbind(dim) for x, dim in zip(inputs, in_dims[2:], strict=True)
        ]
        outputs = [_CustomGrad.apply(fused, plain, *replica) for replica in zip(*each, strict=True)]
        stacked = tuple(torch.stack(values) for values in zip(*outputs, strict=True))
        return stacked, (0,) * len(stacked)


def _gradient(plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    return grad(plain, argnums=tuple(range(len(inputs))))


def _halves(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]


def _filled(tensors: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(x) if v is None else v for x, v in zip(like, tensors, strict=True))
