"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyName = Annotated[str, typer.Argument(help="A study file, or the name of a predefined one (see `stability list`).")]
Scale = Annotated[str, typer.Option(help="smoke (seconds), small (minutes on two cores) or full (a GPU).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
On = Annotated[str, typer.Option(help="Where groups are trained: local, processes:N or dask:tcp://HOST:PORT.")]
Out = Annotated[Path | None, typer.Option(help="Directory of the run [default: runs/<study>-<scale>].")]
Encoders = Annotated[
    list[str] | None,
    typer.Option("--encoder", help="A file with encoders of your own that the study names.", metavar="FILE.py[:NAME]"),
]
Optimizers = Annotated[
    list[str] | None,
    typer.Option(
        "--optimizer", help="A file with optimizers of your own that the study names.", metavar="FILE.py[:NAME]"
    ),
]
LossFile = Annotated[str, typer.Option(help="The file of the loss, if the run compared one of your own.")]
RunDir = Annotated[Path, typer.Argument(help="A directory that `stability run` wrote.")]
