"""Is this contrastive loss more stable than that one? Train, measure, test, report."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# The submodule of each public name. Names are imported at first access, because importing the package must not import
# torch.
_MODULES = {
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
    "optimizer": "optimizers",
    "probe": "probes",
    "load_results": "analysis",
    "run": "execute",
    "stats": "",
    "write_report": "report",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'stability' has no attribute {name!r}")
    module = _MODULES[name]
    return getattr(import_module(f"stability.{module}"), name) if module else import_module(f"stability.{name}")


def __dir__() -> list[str]:
    return __all__
