"""The first minutes on a GPU: checks, a study, training, curvature, losses and precision, one table at the end.

python benchmarks/gpu.py --minutes 8 --out DIR       every stage, each in a process of its own with a limit of its own
python benchmarks/gpu.py --stages a,c --out DIR      some of them, by letter or name
python benchmarks/gpu.py --dry --out DIR             the same at toy sizes on a CPU, to find typos
python benchmarks/gpu.py --merge DIR                 write its rows into gpu.json and README.md beside this file

Each stage writes DIR/<stage>.json after every row and DIR/<stage>.log; one that fails or is stopped keeps its rows.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpu_table import Row, StageFile, merge, read_stage, table

HERE = Path(__file__).resolve().parent

LIMITS = {"environment": 100, "study": 130, "training": 180, "curvature": 45, "losses": 30, "precision": 45}
"""Seconds of each stage, in the order in which they run."""

LETTERS = dict(zip("abcdef", LIMITS, strict=True))


@dataclass(frozen=True)
class Options:
    """What was chosen on the command line."""

    out: Path
    dry: bool
    study: str


def run_stage(name: str, limit: float, options: Options) -> StageFile:
    """Run a stage in a process of its own, killed with its children at the limit, and return what it wrote."""
    path, log = options.out / f"{name}.json", options.out / f"{name}.log"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "gpu_stages.py"), name, "--out", str(options.out), "--study", options.study]
    command += ["--seconds", str(limit), *(["--dry"] if options.dry else [])]
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"OMP_NUM_THREADS": "1"} if options.dry else {}  # at toy sizes threads only wait for each other
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children are killed with it
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **threads},
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return ended(read_stage(path, options.dry), name, code, limit, log)


def ended(stage: StageFile, name: str, code: int | None, limit: float, log: Path) -> StageFile:
    """Return a stage with a last row on how it ended, unless it ended well, and write it."""
    if code == 0:
        stage.ended = "finished"
    else:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        why = f"stopped at its limit of {limit:.0f} s" if code is None else f"failed: {(lines or ['no output'])[-1]}"
        stage.ended = why
        stage.rows.append(Row(name, "stage", "end", why))
    stage.write()
    return stage


def run_all(names: Sequence[str], minutes: float, options: Options) -> list[StageFile]:
    """Run stages until the minutes are over, in order, at toy sizes side by side; what was left out has a row."""
    deadline = time.monotonic() + 60 * minutes
    options.out.mkdir(parents=True, exist_ok=True)

    def run_one(name: str) -> StageFile:
        begun = time.monotonic()
        if begun >= deadline:
            why = f"left out: {minutes:g} minutes were over"
            stage = StageFile(options.out / f"{name}.json", options.dry, [Row(name, "stage", "end", why)], why)
            stage.write()
        else:
            # What is under way when the minutes are over may end a row, and begins no other.
            stage = run_stage(name, min(LIMITS[name], deadline - begun + 15), options)
        print(f"{name}: {stage.ended}, {len(stage.rows)} rows, {time.monotonic() - begun:.0f} s", flush=True)
        return stage

    if options.dry:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(run_one, names))
    return [run_one(name) for name in names]


def chosen(text: str) -> list[str]:
    """Return the stages named, by letter or name, in the order in which they run.

    >>> chosen("c,a"), chosen("losses")
    (['environment', 'training'], ['losses'])
    """
    named = [LETTERS.get(word.strip(), word.strip()) for word in text.split(",")]
    if unknown := [name for name in named if name not in LIMITS]:
        raise SystemExit(f"--stages: unknown stage {unknown[0]!r} (known: {', '.join(LIMITS)}, or a to f)")
    return [name for name in LIMITS if name in named]


def main(words: Sequence[str]) -> None:
    """Run the stages named on the command line and print their table, or merge what was written before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing new after this time")
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"), help="folder of the results")
    parser.add_argument("--stages", type=chosen, default=list(LIMITS), help="as a,c or environment,training")
    parser.add_argument("--study", default="quickstart", help="the study that is run at full scale")
    parser.add_argument("--dry", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="write the rows of DIR into gpu.json and README.md")
    parser.add_argument("--into", type=Path, default=HERE, help="folder of gpu.json and README.md, for --merge")
    given = parser.parse_args(words)
    if given.merge:
        found = [read_stage(given.merge / f"{name}.json", False) for name in LIMITS]
        print(merge([stage for stage in found if stage.rows], given.into))
        return
    stages = run_all(given.stages, given.minutes, Options(given.out, given.dry, given.study))
    print(table(row for stage in stages for row in stage.rows))


if __name__ == "__main__":
    main(sys.argv[1:])
