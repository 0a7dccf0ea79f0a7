"""Is this contrastive loss more stable than that one? Train, measure, test, report."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Where each public name lives. Nothing is imported until it is asked for: importing the package must not import torch.
_HOMES = {
    "Scalar": "losses",
    "analyze": "analysis",
    "contrast": "contrasts",
    "corruption": "corruptions",
    "curvature": "",
    "dataset": "datasets",
    "encoder": "encoders",
    "gradient_noise": "probes.noise",
    "landscape": "",
    "load_study": "study",
    "loss": "losses",
    "losses": "",
    "matched_gradient_noise": "probes.matched",
    "probe": "probes",
    "load_results": "analysis",
    "run": "execute",
    "stats": "",
    "write_report": "report",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stability' has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(f"stability.{home}"), name) if home else import_module(f"stability.{name}")


def __dir__() -> list[str]:
    return __all__
