"""Kill a small study at random moments, run it again, and compare every byte with an uninterrupted run.

python benchmarks/faults.py [--kills 50] [--seed 0] [--json FILE]

Each trial starts the command line in a fresh directory on one core, waits for the first sign of a phase on disk and,
in half of the trials, up to a second more, kills the process with SIGKILL, and runs the same command again to the end.
Trials go on side by side, one a core; which moments are tried hangs on the seed alone.
Work is lost if a group that the manifest called finished is trained again; a number is wrong if any group file,
findings.json or report.json differs from the uninterrupted run's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path

import torch

from stability import analysis, cli, report  # noqa: F401 (imported once, for every process)
from stability.execute.machine import device_model, pick_device, versions
from stability.store import checksum

STUDY = """
title = "Faults"
question = "Is anything lost?"
source = "benchmarks/faults.py"

[data]
name = "digits"

[model]
image = { name = "mlp", width = 8, depth = 1 }
text = { name = "token_transformer", width = 4, heads = 1 }
embed_dim = 4

[train]
steps = 60
warmup = 2

[grid]
arms = ["clip", "siglip"]
batch_size = [8, 16]
lr = [0.01]
seeds = 4

[probes.retrieval]
every = 10

[probes.gradient_noise]
every = 20
batches = 3

[[claims]]
id = "noise"
primary = true
text = "SigLIP's gradients are less noisy than CLIP's"
measure = "gradient_noise_fraction"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.1
"""

PHASES: dict[str, Callable[[Path], bool]] = {
    "planning, before the manifest": lambda out: (out / ".owner.json").exists(),
    "manifest written, no group begun": lambda out: (out / "manifest.json").exists(),
    "training and probes": lambda out: any((out / "groups").glob(".*.arrows")),
    "write and rename of a group": lambda out: any((out / "groups").glob(".*.tmp")) or finished(out) > 0,
    "replacing the manifest": lambda out: any(out.glob(".manifest.json.*.tmp")) or noted(out) > 0,
    "report": lambda out: (out / "report").exists() or noted(out) == 4,
}


def finished(out: Path) -> int:
    """Return how many group files there are."""
    return len(list((out / "groups").glob("*.parquet")))


def noted(out: Path) -> int:
    """Return how many groups the manifest calls finished."""
    path = out / "manifest.json"
    return path.read_text().count('"status": "finished"') if path.exists() else 0


def results(out: Path) -> dict[str, str]:
    """Return the checksums of everything that is promised to be bit-identical."""
    paths = [
        *sorted((out / "groups").glob("*.parquet")),
        *(out / "report" / f"{n}.json" for n in ("findings", "report")),
    ]
    return {path.relative_to(out).as_posix(): checksum(path) for path in paths}


@dataclass(frozen=True)
class Moment:
    """When a trial kills: so many seconds after the first sign of a phase."""

    number: int
    phase: str
    delay: float


@dataclass(frozen=True)
class Trial:
    """One kill: in which phase, whether it came before the end, and what it cost."""

    phase: str
    killed: bool
    survived: bool
    lost: int
    wrong: int


def start(folder: Path, out: Path) -> BaseProcess:
    """Start the command line under test: a process of its own, forked, so that it need not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=command, args=(folder, out))
    process.start()
    return process


def command(folder: Path, out: Path) -> None:
    """Run the command line, silently; the exit code is its own."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.argv = ["stability", "run", str(folder / "faults.toml"), "--device", "cpu", "--out", str(out)]
    cli.main()


def moments(kills: int, seed: int) -> list[Moment]:
    """Return the moments to be tried: every phase in turn, half of them at its first sign."""
    draw = random.Random(seed)
    phases = list(PHASES)
    return [
        Moment(number, phases[number % len(phases)], draw.choice([0.0, draw.uniform(0.0, 1.0)]))
        for number in range(kills)
    ]


def take_core(cores: Queue[int]) -> None:
    """Give this process a core of its own: there a study trains in the process of the command itself.

    Nothing is computed here: what is forked from a process whose libraries have begun threads can hang.
    """
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {cores.get()})


def trial(folder: Path, moment: Moment, expected: dict[str, str]) -> Trial:
    """Kill a run at *moment*, run it again and compare."""
    out = folder / f"trial-{moment.number}"
    process = start(folder, out)
    while process.is_alive() and not PHASES[moment.phase](out):
        time.sleep(0.001)
    time.sleep(moment.delay)
    process.kill()
    process.join()
    killed = process.exitcode == -signal.SIGKILL
    manifest = out / "manifest.json"
    entries = json.loads(manifest.read_text())["groups"] if manifest.exists() else []
    done = [out / "groups" / f"{entry['id']}.parquet" for entry in entries if entry["status"] == "finished"]
    before = {path: path.stat().st_mtime_ns for path in done}
    again = start(folder, out)
    again.join()
    lost = sum(path.stat().st_mtime_ns != moment for path, moment in before.items())
    found = results(out) if again.exitcode == 0 else {}
    wrong = len({path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)})
    shutil.rmtree(out)
    return Trial(moment.phase, killed, again.exitcode == 0, lost, wrong)


def whole(folder: Path, core: int) -> None:
    """Run the study once without a fault, on one core as every trial."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    start(folder, folder / "whole").join()
    os.sched_setaffinity(0, everywhere)


def table(trials: list[Trial], asked: str) -> str:
    """Return the trials as a Markdown table with where it was measured."""
    lines = [
        "| killed during | tried | before the end | survived | finished groups lost | wrong files |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in (*PHASES, "all"):
        some = [each for each in trials if name in (each.phase, "all")]
        numbers = (len(some), sum(t.killed for t in some), sum(t.survived for t in some))
        lines.append(
            f"| {name} | {' | '.join(map(str, (*numbers, sum(t.lost for t in some), sum(t.wrong for t in some))))} |"
        )
    where = f"{device_model(pick_device('cpu'))}, Python {platform.python_version()}, torch {versions()['torch']}"
    return "\n".join([f"`{asked}`, on {where}:", "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    fork = multiprocessing.get_context("fork")
    cores = sorted(os.sched_getaffinity(0))
    queue: Queue[int] = fork.Queue()
    for core in cores:
        queue.put(core)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "faults.toml").write_text(STUDY)
        whole(folder, cores[0])
        expected = results(folder / "whole")
        begun = time.perf_counter()
        with ProcessPoolExecutor(len(cores), fork, take_core, (queue,)) as lanes:
            chosen = moments(given.kills, given.seed)
            for done in lanes.map(partial(trial, folder, expected=expected), chosen):
                trials.append(done)
                print(len(trials), done, file=sys.stderr, flush=True)
                if given.json:
                    given.json.write_text(json.dumps([vars(each) for each in trials], indent=1))
        print(f"{len(trials)} kills in {time.perf_counter() - begun:.0f} s on {len(cores)} cores", file=sys.stderr)
    print(table(trials, f"python benchmarks/faults.py --kills {given.kills} --seed {given.seed}"))


if __name__ == "__main__":
    main()
