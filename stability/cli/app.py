"""The program: its verbs register here, and `main` turns what they raise into exit codes."""

from __future__ import annotations

import signal
import sys

import typer

from stability.cli.terminal import complain
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
    """Run the command line; wrong input is one plain sentence and exit code 2."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        complain(str(error))
        code = 2
    except UsageError as error:
        complain(getattr(error, "format_message", error.__str__)())
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(code)


@app.callback(invoke_without_command=True)
def top(context: typer.Context) -> None:
    """Print the help when no verb is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201
        raise typer.Exit(2)
