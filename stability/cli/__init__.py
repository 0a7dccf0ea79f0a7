"""The command line: each verb parses its arguments, calls one function and prints the result.

Exit codes: 0 done; 1 a run failed; 2 the input was wrong; 130 interrupted, with everything finished kept. Importing
torch takes seconds, so every verb imports what it needs only when it is called, and --help answers at once.
"""

from stability.cli.app import app, main

# Verbs register on import, in the order in which --help lists them.
from stability.cli import catalogues, studies, custom, runs, calibration  # isort: skip
from stability.cli.catalogues import CATALOGUES, catalogue, measures

__all__ = [
    "CATALOGUES",
    "app",
    "calibration",
    "catalogue",
    "catalogues",
    "custom",
    "main",
    "measures",
    "runs",
    "studies",
]
