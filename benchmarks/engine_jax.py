"""The same towers, loss and optimizer in JAX: ``jit(vmap(scan))`` with optax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from engines import EPOCH, Advance
from workload import Work, batches

from stability.study import optimizer_of
from stability.train import population_of

Params = Mapping[str, Any]


def jitted(work: Work, threads: int) -> Advance:
    """Train all replicas in one compiled call: a scan over steps, mapped over replicas. *threads* is JAX's choice."""
    del threads
    study = work.study()
    pairs, runs = study.pairs(), work.runs(study)
    population = population_of(study, runs, pairs, torch.device("cpu"))
    named = population.spec.layout.unflatten(population.theta.detach())
    params = {name: jnp.asarray(value.numpy()) for name, value in named.items()}
    image, text = jnp.asarray(pairs.image.numpy()), jnp.asarray(pairs.text.numpy())
    places = jnp.asarray(np.stack([batches(pairs, run, EPOCH).numpy() for run in runs]))
    tower = {"mlp": (_mlp, _mlp), "transformer": (_image_transformer, _text_transformer)}[work.towers]
    options = optimizer_of(study.train)[1]
    optimizer = optax.adamw(
        runs[0].lr,
        *options["betas"],
        eps=options["eps"],
        weight_decay=study.train.weight_decay,
        mask={name: value.ndim > 2 for name, value in params.items()},
    )

    def objective(params: Params, place: jax.Array) -> jax.Array:
        rows = [
            forward({key.removeprefix(side): value for key, value in params.items() if key.startswith(side)}, data)
            for side, forward, data in zip(("image.", "text."), tower, (image[place], text[place]), strict=True)
        ]
        return _clip(*(row / jnp.linalg.norm(row, axis=-1, keepdims=True) for row in rows), params["loss.log_scale"])

    def step(carry: Any, place: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(objective)(params, place)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    def scan(params: Params, state: Any, place: jax.Array) -> Any:
        return jax.lax.scan(step, (params, state), place)

    run_steps: Callable[..., Any] = jax.jit(jax.vmap(scan), donate_argnums=(0, 1))
    state = jax.vmap(optimizer.init)(params)
    done = 0

    def advance(steps: int) -> np.ndarray:
        nonlocal params, state, done
        chosen = places[:, (done + np.arange(steps)) % EPOCH]
        (params, state), losses = run_steps(params, state, chosen)
        done += steps
        return np.asarray(losses).T

    return advance


def _clip(image: jax.Array, text: jax.Array, log_scale: jax.Array) -> jax.Array:
    logits = jnp.exp(log_scale) * image @ text.T
    both = jax.nn.log_softmax(logits, 1) + jax.nn.log_softmax(logits, 0)
    return -jnp.diagonal(both).mean() / 2


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    bias = params.get(f"{name}.bias")
    product = x @ params[f"{name}.weight"].T
    return product if bias is None else product + bias


def _norm(params: Params, name: str, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return unit * params[f"{name}.weight"] + params[f"{name}.bias"]


def _mlp(params: Params, x: jax.Array) -> jax.Array:
    x = x.reshape(len(x), -1)
    layers = sorted({int(name.split(".")[0]) for name in params})
    for layer in layers[:-1]:
        x = _gelu(_linear(params, str(layer), x))
    return _linear(params, str(layers[-1]), x)


def _image_transformer(params: Params, x: jax.Array, patch: int = 2) -> jax.Array:
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    x = x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, (height // patch) * (width // patch), -1)
    return _transformer(params, _linear(params, "embed.linear", x))


def _text_transformer(params: Params, x: jax.Array) -> jax.Array:
    return _transformer(params, params["embed.weight"][x])


def _transformer(params: Params, x: jax.Array) -> jax.Array:
    x = x + params["position"]
    for block in ("blocks.0", "blocks.1"):
        x = x + _attention(params, f"{block}.attention", _norm(params, f"{block}.attention_norm", x))
        hidden = _gelu(_linear(params, f"{block}.expand", _norm(params, f"{block}.mlp_norm", x)))
        x = x + _linear(params, f"{block}.contract", hidden)
    return _linear(params, "project", _norm(params, "norm", x).mean(-2))


def _attention(params: Params, name: str, x: jax.Array, heads: int = 4) -> jax.Array:
    batch, length, width = x.shape
    split = _linear(params, f"{name}.query_key_value", x).reshape(batch, length, 3, heads, width // heads)
    query, key, value = split.transpose(2, 0, 3, 1, 4)
    weights = jax.nn.softmax(query @ key.transpose(0, 1, 3, 2) * (width // heads) ** -0.5, -1)
    return _linear(params, f"{name}.out", (weights @ value).transpose(0, 2, 1, 3).reshape(batch, length, width))
