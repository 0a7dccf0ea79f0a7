"""The application that verbs register with, and `main`, which turns exceptions into sentences and exit codes."""

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

# Depending on its version, typer uses the installed click or a bundled copy; this is the error class of either.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

FORMER_OPTIONS = {
    ("export", "--to"): "--tracker",
    ("landscape", "--to"): "--second-run",
    ("verify", "--sample"): "--groups",
    ("init", "--option"): "--data-option",
}
"""The present names of options that were renamed, by verb and former name."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Is this contrastive loss more stable than that one? Train, measure, test, report.",
)


def main() -> None:
    """Run the command line and exit: wrong input prints one sentence and gives code 2, an interruption gives 130."""
    with interruptions() as interrupted:
        code = _exit_code(interrupted)
        if interrupted():
            # If the interruption passed through `exec`, as during the import of a library, Python would kill itself
            # with SIGINT at exit instead of returning the code.
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
        # A library whose import is interrupted may raise a different exception instead.
        elif not interrupted() and not isinstance(error, KeyboardInterrupt | typer.Abort):
            if not isinstance(error, InputError | UsageError):
                raise
            print_error(_sentence(error))
            return 2
    print_error(f"interrupted; {kept}, and the same command goes on from there: stability {shlex.join(sys.argv[1:])}")
    return 130


def _sentence(error: Exception) -> str:
    """Return the sentence of an error; for an option that was renamed, it names the new one."""
    verb = getattr(getattr(error, "ctx", None), "info_name", "")
    option = getattr(error, "option_name", "")
    if renamed := FORMER_OPTIONS.get((verb, option)):
        return f"No such option: {option}; did you mean {renamed}?"
    return str(getattr(error, "format_message", error.__str__)())


@app.callback(invoke_without_command=True)
def top(context: typer.Context) -> None:
    """Print the help when no verb is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201
        raise typer.Exit(2)
