"""The program: its verbs register here, and `main` turns what they raise into exit codes."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from collections.abc import Callable

import typer

from stability.cli.interruption import Interrupted, interruptions
from stability.cli.terminal import print_error
from stability.registry import InputError

# Typer carries its own copy of click or uses the installed one, by version; its errors are reached through its own.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Is this contrastive loss more stable than that one? Train, measure, test, report.",
)


def main() -> None:
    """Run the command line; wrong input is one plain sentence and exit code 2, an interruption is 130."""
    with interruptions() as interrupted:
        code = _exit_code(interrupted)
        if interrupted():
            # Where the interruption has come through `exec`, as in the import of a library, Python would in the end
            # strike itself with SIGINT in place of the code.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def _exit_code(interrupted: Callable[[], bool]) -> int:
    kept = "what is finished is kept"
    try:
        code: int = app(standalone_mode=False) or 0
        if not interrupted() or code != 130:
            return code
    except BaseException as error:
        if isinstance(error, Interrupted):
            kept = str(error)
        # A library whose import is interrupted may turn that into an error of its own.
        elif not interrupted() and not isinstance(error, KeyboardInterrupt | typer.Abort):
            if not isinstance(error, InputError | UsageError):
                raise
            print_error(getattr(error, "format_message", error.__str__)())
            return 2
    print_error(f"interrupted; {kept}, and the same command goes on from there: stability {shlex.join(sys.argv[1:])}")
    return 130


@app.callback(invoke_without_command=True)
def top(context: typer.Context) -> None:
    """Print the help when no verb is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201
        raise typer.Exit(2)
