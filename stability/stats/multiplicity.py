"""Corrections for multiple claims: Bonferroni in a study, Benjamini-Hochberg over primary claims of all studies."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from stability.registry import InputError
from stability.stats.comparison import Array, check_confidence

STATSMODELS_NAMES = {"bonferroni": "bonferroni", "benjamini-hochberg": "fdr_bh"}


def adjust(p_values: ArrayLike, method: Literal["bonferroni", "benjamini-hochberg"] = "bonferroni") -> Array:
    """Return p-values adjusted for the number of claims; NaN (nothing could be tested) counts as 1.

    The size of the family does not shrink, so an untestable claim never lowers the p-values of the others.

    >>> adjust([0.01, 0.04, float("nan")]).tolist()
    [0.03, 0.12, 1.0]
    """
    if method not in STATSMODELS_NAMES:
        raise InputError(f"adjustment {method!r}; allowed: {', '.join(STATSMODELS_NAMES)}")
    raw = np.asarray(p_values, dtype=np.float64)
    raw = np.where(np.isnan(raw), 1.0, raw)
    if raw.ndim != 1 or ((raw < 0) | (raw > 1)).any():
        raise InputError(f"p-values {raw.tolist()}; allowed: one list of numbers from 0 to 1, or NaN")
    if not raw.size:
        return raw
    # Importing statsmodels changes the warning filters of the whole process; this restores them.
    with warnings.catch_warnings():
        from statsmodels.stats.multitest import multipletests
    return np.asarray(multipletests(raw, method=STATSMODELS_NAMES[method])[1], dtype=np.float64)


def shared_confidence(claims: int, confidence: float = 0.95) -> float:
    """Return the confidence of each of several intervals that hold jointly at *confidence* (Bonferroni).

    >>> round(shared_confidence(5), 3)
    0.99
    """
    check_confidence(confidence)
    if claims < 1:
        raise InputError(f"{claims} claims; allowed: 1 or more")
    return 1 - (1 - confidence) / claims
