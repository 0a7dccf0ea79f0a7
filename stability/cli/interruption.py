"""SIGINT and SIGTERM: what is under way unwinds, and the program ends with 130 whatever the unwinding meets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):  # noqa: N818 (no error: what the user asked for)
    """An interruption, as words that say what is kept."""


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Turn an interruption into `KeyboardInterrupt`, and yield a function that tells whether one has come.

    A second one, while the first unwinds, ends the process at once. SIGINT stays ignored where the process was begun
    so, as a shell begins what a script puts in the background; SIGTERM, by which a scheduler of jobs ends its jobs, is
    heard there too. The handlers from before are restored.
    """
    came = False

    def unwind(*_: object) -> None:
        nonlocal came
        if came:
            os._exit(130)
        came = True
        raise KeyboardInterrupt

    heard = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        heard.append(signal.SIGINT)
    before = {number: signal.signal(number, unwind) for number in heard}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
