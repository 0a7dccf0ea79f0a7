"""Optimizers: a catalogue of update rules over flat parameters; each decorated function is one optimizer."""

from __future__ import annotations

from stability.optimizers.adam import adamw
from stability.optimizers.gradient_descent import sgd
from stability.optimizers.registry import optimizer

__all__ = ["adamw", "optimizer", "sgd"]
