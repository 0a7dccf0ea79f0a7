"""The program `stability`, also as ``python -m stability``.

Reading the command line takes a third of a second of imports, in which an interruption must not show a traceback
either: this module imports nothing slow, and no module of the package, before it listens.
"""

import os
import signal
import sys


def main() -> None:
    """Run the command line; an interruption is exit code 130 from the first moment on, until everything is done."""
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    from stability.cli import main as command

    try:
        command()
    finally:
        # Python takes itself down for some tenths of a second and would die of an interruption then, its code lost.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _leave(*_: object) -> None:
    print("stability: interrupted before anything was begun", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(130)


if __name__ == "__main__":
    main()
