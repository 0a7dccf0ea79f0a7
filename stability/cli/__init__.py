"""The command line: each verb parses, calls one function, prints.

Exit codes: 0 done; 1 a run failed; 2 the input was wrong; 130 interrupted, everything finished kept. Torch takes
seconds to import, so every verb imports what it needs when it is called: --help answers at once.
"""

from stability.cli.app import app, main

# Verbs register on import, in the order in which --help lists them.
from stability.cli import catalogues, studies, own, finished, calibration  # isort: skip
from stability.cli.catalogues import CATALOGUES, catalogue, measures

__all__ = [
    "CATALOGUES",
    "app",
    "calibration",
    "catalogue",
    "catalogues",
    "finished",
    "main",
    "measures",
    "own",
    "studies",
]
