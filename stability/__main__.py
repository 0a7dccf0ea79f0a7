"""The entry point of the program `stability` and of ``python -m stability``.

The imports of the command line take a third of a second, during which an interruption must not print a traceback. So
this module imports nothing slow, and no module of the package, before it has installed its signal handlers.
"""

import os
import signal
import sys


def main() -> None:
    """Run the command line; an interruption at any time from start to exit gives exit code 130."""
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    from stability.cli import main as command

    try:
        command()
    finally:
        # Ignore signals during interpreter shutdown (some tenths of a second), or the exit code is lost.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _leave(*_: object) -> None:
    print("stability: interrupted before anything was begun", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(130)


if __name__ == "__main__":
    main()
