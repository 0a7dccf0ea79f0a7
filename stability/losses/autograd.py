"""Functions with memory-efficient derivatives: recomputed in the backward pass, or computed together with the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp


def checkpointed(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Return ``function(*inputs)`` and save only the inputs; derivatives of any order recompute it."""
    return _Checkpointed.apply(function, *inputs)


def custom_grad(fused: Callable[..., tuple[Tensor, ...]], plain: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return the scalar ``plain(*inputs)``; if gradients are enabled, compute it and its gradient by *fused*.

    Args:
        fused: returns the value and its gradient with respect to each input. It is called once, on plain tensors of one
            replica, outside autograd, so it may work in place; the backward pass then only multiplies.
        plain: the same function, of which derivatives of second and higher order are taken.
        inputs: the inputs.
    """
    # `requires_grad` of the inputs cannot be used: inside vmap it is False for all of them.
    if torch.is_grad_enabled():
        return _CustomGrad.apply(fused, plain, *inputs)[0]
    return plain(*inputs)


class _Checkpointed(torch.autograd.Function):
    """``function(*inputs)`` that saves only its inputs; derivatives recompute it and are checkpointed as well."""

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
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        function, inputs = ctx.function, ctx.saved_tensors

        def recompute_vjp(*tensors: Tensor) -> Any:
            arguments, cotangents = tensors[: len(inputs)], tensors[len(inputs) :]
            output, vjp_fn, *_ = vjp(function, *arguments)
            return vjp_fn(cotangents[0] if isinstance(output, Tensor) else cotangents)

        return None, *_Checkpointed.apply(recompute_vjp, *inputs, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        return jvp(ctx.function, tuple(inputs), _zeros_if_none(tangents, inputs))[1]


class _CustomGrad(torch.autograd.Function):
    """``(value, *grads)``: the gradients are outputs, so that the backward pass is differentiable through them."""

    @staticmethod
    def forward(fused: Callable[..., tuple[Tensor, ...]], plain: Callable[..., Tensor], *inputs: Tensor) -> Any:
        return fused(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, ctx.plain, *tensors = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.save_for_forward(*tensors, *output[1:])
        # A first derivative has no cotangents for the gradients: materialized zeros would cost a needless HVP.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, *grad_of_grads: Tensor | None) -> Any:
        inputs, grads = _halves(ctx.saved_tensors)
        parts = []
        if grad_value is not None:
            parts.append(tuple(grad_value * grad_input for grad_input in grads))
        if any(cotangent is not None for cotangent in grad_of_grads):
            _, vjp_fn, *_ = vjp(_gradient(ctx.plain, inputs), *inputs)
            parts.append(vjp_fn(_zeros_if_none(grad_of_grads, grads)))
        return None, None, *(map(sum, zip(*parts, strict=True)) if parts else [None] * len(inputs))

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> Any:
        inputs, grads = _halves(ctx.saved_tensors)
        tangents_in = _zeros_if_none(tangents, inputs)
        tangent_out = sum((grad_input * tangent).sum() for grad_input, tangent in zip(grads, tangents_in, strict=True))
        return tangent_out, *jvp(_gradient(ctx.plain, inputs), inputs, tangents_in)[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], fused: Any, plain: Any, *inputs: Tensor) -> Any:
        # One replica after another: a replica's tiles stay in cache, and its bits do not depend on the others.
        unbound = [
            [x] * info.batch_size if dim is None else x.unbind(dim) for x, dim in zip(inputs, in_dims[2:], strict=True)
        ]
        outputs = [_CustomGrad.apply(fused, plain, *replica) for replica in zip(*unbound, strict=True)]
        stacked = tuple(torch.stack(values) for values in zip(*outputs, strict=True))
        return stacked, (0,) * len(stacked)


def _gradient(plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    return grad(plain, argnums=tuple(range(len(inputs))))


def _halves(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]


def _zeros_if_none(tensors: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(x) if v is None else v for x, v in zip(like, tensors, strict=True))
