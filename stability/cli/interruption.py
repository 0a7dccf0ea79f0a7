"""Turns SIGINT and SIGTERM into an orderly exit with code 130, whatever exceptions the unwinding raises."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):  # noqa: N818 (the user requested it, so it is no error)
    """An interruption; the message says which results are kept."""


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Turn an interruption into `KeyboardInterrupt`, and yield a function that returns whether one was received.

    A second signal, while the first unwinds, ends the process at once. SIGINT stays ignored if the process was started
    with it ignored, as a shell does for background jobs of a script. SIGTERM, which job schedulers send, is handled
    even then. The previous handlers are restored at the end.
    """
    received = False

    def unwind(*_: object) -> None:
        nonlocal received
        if received:
            os._exit(130)
        received = True
        raise KeyboardInterrupt

    handled = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        handled.append(signal.SIGINT)
    previous = {number: signal.signal(number, unwind) for number in handled}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
