"""The command line, called in the process of the tests: no new interpreter, and no second import of torch."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from stability import cli
from stability.contrasts import contrast
from stability.datasets import dataset
from stability.encoders import encoder
from stability.losses import loss
from stability.optimizers import optimizer
from stability.probes import probe

CATALOGUES = (loss, encoder, optimizer, dataset, probe, contrast)


@dataclass(frozen=True)
class Called:
    """The exit code of a command line and what it printed."""

    code: int
    out: str
    err: str


def call(*words: str) -> Called:
    """Run ``stability`` with these words; variants that a file registers are unknown again afterwards."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["stability", *words])
        for registry in CATALOGUES:
            patch.setattr(registry, "_variants", dict(registry._variants))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return Called(int(ended.value.code or 0), out.getvalue(), err.getvalue())
