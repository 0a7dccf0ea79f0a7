"""When a run diverged or collapsed: it ends at chance, or has left training for good."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stability.stats.comparison import Array

RECALL_LIMIT = 5.0
"""A late recall below this many times chance is that of a run that retrieves nothing."""

LOSS_LIMIT = 0.9
"""A smoothed loss above this share of the way from the best loss to chance is that of a run that learned nothing."""

LEARNED = 0.05
"""A best loss must be below chance by this share of it: otherwise nothing was learned that could be lost."""

STILL_FALLING = 0.02
"""A loss that falls below chance by this share of it in the second half of a run has not had the time to learn."""


@dataclass(frozen=True)
class Course:
    """What is read of one run to tell whether it collapsed; its steps count from the run's own first step.

    Attributes:
        loss: Training loss at each step, (steps,).
        chance: The loss of uninformative embeddings.
        warmup: Number of warm-up steps.
        recall_steps: Steps at which recall was measured, ascending, (k,); empty if it was not.
        recall: Recall at each of them as a multiple of its chance level, (k,).
        recall_ceiling: The largest possible recall as a multiple of its chance level.
    """

    loss: Array
    chance: float
    warmup: int
    recall_steps: Array
    recall: Array
    recall_ceiling: float = math.inf


def diverged_at(loss: np.ndarray, chance: float, warmup: int) -> int | None:
    """Return the step at which a run diverged, or None.

    A run has diverged if its loss became non-finite for good (at the first such step), or if its smoothed loss
    (trailing mean over a twentieth of the run, at least 10 steps) is at or above chance at the end; it then diverged at
    the first step after warm-up since which it never fell below chance. A spike that recovers is not a divergence, nor
    is a step that was skipped because float16 overflowed: where its loss is not finite, the loss before counts.

    Args:
        loss: the training loss (steps,).
        chance: the loss of uninformative embeddings.
        warmup: the number of warm-up steps.

    >>> healthy = np.linspace(5.0, 1.0, 100)
    >>> diverged_at(healthy, 3.0, 10), diverged_at(healthy[::-1], 3.0, 10), diverged_at(np.full(100, 9.0), 3.0, 10)
    (None, 54, 10)
    >>> diverged_at(np.where(np.arange(100) < 40, 1.0, np.nan), 3.0, 10)
    40
    >>> diverged_at(np.where(np.arange(100) == 40, np.nan, 1.0), 3.0, 10)
    """
    lasts = _finite_steps(loss)
    return lasts if lasts < len(loss) else _above_for_good(smoothed(loss), len(loss), chance, warmup)


def best_loss(course: Course) -> float:
    """Return the lowest smoothed loss of a run after its warm-up; infinity if there is none."""
    smooth = smoothed(course.loss[: _finite_steps(course.loss)])
    width = len(course.loss) - len(smooth) + 1 if len(smooth) else 0
    later = smooth[max(0, course.warmup - width + 1) :]
    return float(later.min()) if len(later) else math.inf


def late_recall(course: Course, late: float) -> float:
    """Return the mean recall of the last share *late* of a run, as a multiple of chance; NaN if it was not measured."""
    values = course.recall[course.recall_steps >= (1 - late) * len(course.loss)]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def collapsed_at(course: Course, *, best: float, learnable: bool, late: float = 0.2) -> int | None:
    """Return the step at which a run collapsed, or None.

    A run has collapsed if it diverged (`diverged_at`), or if, having had the time to learn,

    - its recall over the last share *late* of its steps is below `RECALL_LIMIT` times chance, or
    - its smoothed loss ends above best + `LOSS_LIMIT` (chance - best).

    It has had the time to learn if warm-up ended before the last share *late* and the loss is not still falling: from
    the middle of the run to its end, by more than `STILL_FALLING` of the chance level below chance. The recall decides
    only if *learnable*, and if a recall above the limit leaves room (twice the limit is possible); the loss only if
    *best* is below chance by the share `LEARNED`. Whatever holds for good counts from the first step after warm-up
    since which it held.

    A run that just misses chance, which `diverged_at` misses, has collapsed:

    >>> none = np.empty(0)
    >>> stuck = Course(np.full(100, 2.99), 3.0, 10, none, none)
    >>> diverged_at(stuck.loss, 3.0, 10), collapsed_at(stuck, best=1.0, learnable=False)
    (None, 10)
    >>> collapsed_at(stuck, best=2.99, learnable=False)

    Args:
        course: The loss and the recall of the run.
        best: The lowest smoothed loss that any run of the same arm and cell reached, at any rate and seed.
        learnable: Whether any run of the same cell, of any arm, rate and seed, had a late recall above the limit.
        late: The share of the run over which the late recall is averaged.
    """
    total, found = len(course.loss), []
    step = diverged_at(course.loss, course.chance, course.warmup)
    if step is not None:
        found.append(step)
    smooth = smoothed(course.loss)
    timely = course.warmup <= (1 - late) * total and _finite_steps(course.loss) == total
    if not timely or _still_falling(smooth, total, course.chance):
        return min(found, default=None)
    if course.chance - best > LEARNED * abs(course.chance):
        step = _above_for_good(smooth, total, best + LOSS_LIMIT * (course.chance - best), course.warmup)
        found += [] if step is None else [step]
    roomy = course.recall_ceiling >= 2 * RECALL_LIMIT
    if learnable and roomy and late_recall(course, late) < RECALL_LIMIT:
        found.append(_recall_lost_at(course, late))
    return min(found, default=None)


def smoothed(loss: np.ndarray) -> Array:
    """Return the trailing mean of a loss over a twentieth of the run, at least 10 steps; the first whole window first.

    A value that is not finite counts as the one before.
    """
    # In float32 one spike would absorb all later terms of the cumulative sum.
    loss = np.asarray(loss, dtype=np.float64)
    finite = np.flatnonzero(np.isfinite(loss))
    if not len(finite):
        return np.empty(0)
    loss = loss[finite[np.maximum(np.searchsorted(finite, np.arange(len(loss)), side="right") - 1, 0)]]
    width = min(len(loss), max(10, len(loss) // 20))
    total = np.cumsum(np.insert(loss, 0, 0.0))
    return np.asarray((total[width:] - total[:-width]) / width)


def _finite_steps(loss: np.ndarray) -> int:
    """Return the number of steps until the loss is not finite for good."""
    finite = np.flatnonzero(np.isfinite(loss))
    return int(finite[-1]) + 1 if len(finite) else 0


def _above_for_good(smooth: Array, total: int, limit: float, warmup: int) -> int | None:
    """Return the first step after warm-up since which a smoothed loss was never below a limit, or None."""
    below = np.flatnonzero(smooth < limit)
    first = 0 if not len(below) else int(below[-1]) + 1
    if first == len(smooth):
        return None
    return max(first + total - len(smooth) if first else 0, warmup)


def _still_falling(smooth: Array, total: int, chance: float) -> bool:
    middle = smooth[min(len(smooth) - 1, max(0, total // 2 - (total - len(smooth))))]
    return bool(min(middle, chance) - smooth[-1] > STILL_FALLING * abs(chance))


def _recall_lost_at(course: Course, late: float) -> int:
    """Return the first step after warm-up since which no recall reached the limit, at most the late part's."""
    reached = course.recall_steps[course.recall >= RECALL_LIMIT]
    later = course.recall_steps[course.recall_steps > (reached[-1] if len(reached) else -1)]
    start = math.ceil((1 - late) * len(course.loss))
    return max(min(int(later[0]) if len(later) else start, start), course.warmup)
