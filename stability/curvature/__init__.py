"""Curvature of any objective: Hessian-vector products, extreme eigenvalues, trace and spectral density."""

from __future__ import annotations

from stability.curvature.crosscheck import CrossCheck, pyhessian_check
from stability.curvature.extremes import Eigenvectors, eigenvectors
from stability.curvature.products import hvp
from stability.curvature.spectra import Spectrum, spectrum
from stability.curvature.thresholds import adaptive_threshold, momentum_threshold

__all__ = [
    "CrossCheck",
    "Eigenvectors",
    "Spectrum",
    "adaptive_threshold",
    "eigenvectors",
    "hvp",
    "momentum_threshold",
    "pyhessian_check",
    "spectrum",
]
