"""Milliseconds per replica and step: ours, a PyTorch loop (eager, compiled), a process pool, and JAX, on the same work.

python benchmarks/training.py --json benchmarks/training.json --figure benchmarks/training.svg

Every engine lives in processes of its own and rests while another is timed; rounds alternate between engines, and the
best round counts, since other programs may use the machine. An engine whose losses differ from the loop's is void.
The file is written anew after every part, so that a run that is killed leaves what it has measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from workload import Work, agree, share

from stability.execute.machine import core_count, device_model
from stability.store import write_atomically
from stability.train.model import initial_parameters, model_spec

CASES = {f"{towers}-{size}": (towers, size) for towers in ("mlp", "transformer") for size in (32, 128, 512, 2048)}
DEFAULT = ("mlp-32", "mlp-128", "mlp-512", "transformer-32")
LOOPS = ("loop", "loop, one thread")
"""The faster of these is the loop that the others are compared with: two threads may wait for each other."""

CHECKED = 4
"""Steps on which engines must agree with the loop."""


@dataclass(frozen=True)
class Engine:
    """A builder by module and name, run in one process with all threads, or in one process a core with one thread."""

    name: str
    builder: str
    a_process_a_core: bool
    scales: bool
    """Whether more replicas can cost less each; else two replicas tell the cost of all."""


ENGINES = (
    Engine("loop", "engines:loop", a_process_a_core=False, scales=False),
    Engine("loop, one thread", "engines:loop_in_one_thread", a_process_a_core=False, scales=False),
    Engine("loop, compiled", "engines:compiled_loop", a_process_a_core=False, scales=False),
    Engine("process pool", "engines:loop", a_process_a_core=True, scales=False),
    Engine("jax", "engine_jax:jitted", a_process_a_core=False, scales=True),
    Engine("ours", "engines:ours", a_process_a_core=True, scales=True),
)


@dataclass(frozen=True)
class Row:
    """One measurement; ratios are a peer's time over ours (on a peer's row: over its own), shares are of a ceiling."""

    case: str
    engine: str
    replicas: int
    ms_per_replica_step: float | None
    ratio_to_loop: float | None
    ratio_to_jax: float | None
    matmul_share: float | None
    copy_share: float | None
    megabytes: float
    first_call_seconds: float


def serve(channel: Connection, builder: str, work: Work, threads: int) -> None:
    """Build an engine in this process, then advance it whenever the channel says by how many steps."""
    module, name = builder.split(":")
    advance = getattr(import_module(module), name)(work, threads)
    channel.send(None)
    while (steps := channel.recv()) is not None:
        losses = advance(steps)
        channel.send((losses, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


@dataclass
class Team:
    """The processes of one engine at work on one case."""

    channels: Sequence[Connection]
    replicas: int
    megabytes: float = 0.0

    def advance(self, steps: int) -> tuple[np.ndarray, float]:
        """Return the losses (steps, replicas) of the next steps, and the seconds they took."""
        start = time.perf_counter()
        for channel in self.channels:
            channel.send(steps)
        answers = [channel.recv() for channel in self.channels]
        seconds = time.perf_counter() - start
        self.megabytes = sum(megabytes for _, megabytes in answers)
        return np.concatenate([losses for losses, _ in answers], axis=1), seconds


@contextmanager
def team(engine: Engine, work: Work) -> Iterator[Team]:
    """Yield the engine's processes, ready to go."""
    cores = core_count()
    split = engine.a_process_a_core and work.device == "cpu"
    context = multiprocessing.get_context("spawn")
    pairs = [(part, *context.Pipe()) for part in share(work, cores if split else 1)]
    processes = [
        context.Process(target=serve, args=(theirs, engine.builder, part, 1 if split else cores), daemon=True)
        for part, _, theirs in pairs
    ]
    for process in processes:
        process.start()
    channels = [ours for _, ours, _ in pairs]
    try:
        for channel in channels:
            channel.recv()
        yield Team(channels, work.replicas)
    finally:
        for channel, process in zip(channels, processes, strict=True):
            channel.send(None)
            process.join()


def ceilings(device: str = "cpu", side: int = 1536, numbers: int = 16_000_000) -> tuple[float, float]:
    """Return the device's floating-point operations a second in a large matrix product, and bytes a second copied."""
    torch.set_num_threads(core_count())
    a, x = torch.randn(side, side, device=device), torch.randn(numbers, device=device)
    y = torch.empty_like(x)

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(10):
            settle(device)
            start = time.perf_counter()
            call()
            settle(device)
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * len(a) ** 3 / best(lambda: a @ a), 2 * x.nbytes / best(lambda: y.copy_(x))


def settle(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def demand(work: Work) -> tuple[float, float]:
    """Return the floating-point operations of matrix products in one step of one replica, and the bytes of AdamW.

    AdamW reads parameter, gradient and two moments and writes all but the gradient: 7 floats a parameter.
    """
    study = work.study()
    pairs = study.pairs()
    spec = model_spec(study, "clip", work.batch_size, pairs)
    theta = initial_parameters(study, spec, pairs, [0])[0].requires_grad_()
    place = pairs.train[: work.batch_size]
    batch = {"image": pairs.image[place], "text": pairs.text[place]}
    with FlopCounterMode(display=False) as counter:
        spec.objective(spec.layout.unflatten(theta), batch).backward()
    return counter.get_total_flops(), 28 * theta.numel()


Job = tuple[Engine, int]
"""An engine and how many replicas it trains."""


@dataclass
class Case:
    """What is known of one case so far: times in milliseconds per replica and step (NaN: void), memory, first calls."""

    name: str
    device: str
    times: dict[tuple[str, int], float] = field(default_factory=dict)
    about: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    reference: np.ndarray | None = None

    def work(self, replicas: int) -> Work:
        """Return what an engine has to do."""
        return Work(*CASES[self.name], replicas, 0, replicas, self.device)


def measure(case: Case, jobs: Sequence[Job], rounds: int) -> None:
    """Time some engines against each other: they rest side by side in memory, and take turns."""
    with ExitStack() as stack:
        teams = {(e.name, count): stack.enter_context(team(e, case.work(count))) for e, count in jobs}
        steps = {}
        for (name, count), group in teams.items():
            losses, first = group.advance(CHECKED)
            case.reference = losses if case.reference is None else case.reference
            if not agree(losses, case.reference):
                print(f"{case.name}, {name}: other losses than the loop's: {losses[:, 0]} for {case.reference[:, 0]}")
                case.times[name, count] = math.nan
            _, seconds = group.advance(CHECKED)
            steps[name, count] = CHECKED if name == "jax" else max(2, min(64, int(0.5 * CHECKED / seconds)))
            case.about[name, count] = (0.0, first)
        for _ in range(rounds):
            for (name, count), group in teams.items():
                _, seconds = group.advance(steps[name, count])
                each = 1000 * seconds / steps[name, count] / count
                case.times[name, count] = min(case.times.get((name, count), math.inf), each)
        for key, group in teams.items():
            case.about[key] = (group.megabytes, case.about[key][1])


def agenda(replicas: Sequence[int], engines: Sequence[Engine]) -> list[list[Job]]:
    """Return what to measure of a case, the most telling first: loops and the scaling engines at about 32 replicas.

    Then the other numbers of replicas; what takes a minute to compile comes last.
    """
    middle = min(replicas, key=lambda count: abs(count - 32))
    loops = [(engine, 2) for engine in engines if not engine.scales]
    slow = [job for job in loops if job[0].name == "loop, compiled"]
    scaling = [[(engine, count) for engine in engines if engine.scales] for count in replicas if count != middle]
    first = [job for job in loops if job not in slow] + [(engine, middle) for engine in engines if engine.scales]
    return [jobs for jobs in (first, *scaling, slow) if jobs]


def rows_of(
    case: Case,
    replicas: Sequence[int],
    engines: Sequence[Engine],
    limits: tuple[float, float],
    needs: tuple[float, float],
) -> list[Row]:
    """Return a row for each engine and number of replicas measured so far."""

    def time_of(name: str, count: int) -> float | None:
        found = case.times.get((name, count), case.times.get((name, 2)))
        return None if found is None or math.isnan(found) else found

    def over(peer: float | None, own: float | None) -> float | None:
        return None if peer is None or own is None else round(peer / own, 3)

    rows = []
    for engine, count in itertools.product(engines, replicas):
        about = case.about.get((engine.name, count if engine.scales else 2))
        if about is None:
            continue
        own = time_of(engine.name, count)
        rows.append(
            Row(
                case=case.name,
                engine=engine.name,
                replicas=count,
                ms_per_replica_step=None if own is None else round(own, 4),
                ratio_to_loop=over(min(filter(None, (time_of(name, count) for name in LOOPS)), default=None), own),
                ratio_to_jax=over(time_of("jax", count), own),
                matmul_share=None if own is None else round(needs[0] / limits[0] * 1000 / own, 3),
                copy_share=None if own is None else round(needs[1] / limits[1] * 1000 / own, 3),
                megabytes=round(about[0]),
                first_call_seconds=round(about[1], 2),
            )
        )
    return rows


def figure(rows: Sequence[Row], path: Path) -> None:
    """Draw milliseconds per replica and step against the number of replicas, one panel a case."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(row.case for row in rows))
    picture = Figure(figsize=(2.9 * len(cases) + 0.6, 3.2), layout="constrained")
    panels = picture.subplots(1, len(cases), squeeze=False)[0]
    names = list(dict.fromkeys(row.engine for row in rows))
    colours = dict(zip(names, ("#999999", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00"), strict=False))
    for panel, case in zip(panels, cases, strict=True):
        for name in names:
            points = [
                (row.replicas, row.ms_per_replica_step)
                for row in rows
                if (row.case, row.engine) == (case, name) and row.ms_per_replica_step
            ]
            x, y = zip(*points, strict=True) if points else ((), ())
            marker, width = ("o", 2.2) if name == "ours" else ("", 1.4)
            panel.plot(x, y, label=name, color=colours[name], marker=marker, markersize=4, linewidth=width)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted({row.replicas for row in rows}), labels=sorted({row.replicas for row in rows}))
        panel.set_ylim(0)
        panel.set_title(case, fontsize=10)
        panel.set_xlabel("replicas")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms per replica and step")
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside upper center", ncols=len(names), frameon=False, fontsize=8)
    picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def show(rows: Sequence[Row]) -> None:
    """Print rows as a Markdown table."""
    print("| case | engine | replicas | ms | x loop | x JAX | matmul | copy | MB | first s |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        cells = ["" if value is None else str(value) for value in asdict(row).values()]
        print("| " + " | ".join(cells) + " |", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Measure the cases named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "all"], default=list(DEFAULT))
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--engines", nargs="+", choices=[engine.name for engine in ENGINES])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing new after this time")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    asked = parser.parse_args(arguments)
    engines = [engine for engine in ENGINES if asked.engines is None or engine.name in asked.engines]
    cases = list(CASES) if "all" in asked.cases else asked.cases
    print(f"{device_model(torch.device(asked.device))}, {core_count()} cores, torch {torch.__version__}")
    known = {name: Case(name, asked.device) for name in cases}
    needs = {name: demand(case.work(2)) for name, case in known.items()}
    limits = ceilings()
    start, rows = time.monotonic(), []
    # First the most telling part of every case, then the second, and so on.
    for part in itertools.zip_longest(*([(name, jobs) for jobs in agenda(asked.replicas, engines)] for name in cases)):
        for name, jobs in part:
            if time.monotonic() - start > 60 * asked.minutes:
                print(f"{name}: no time left for {', '.join(f'{engine.name} ({count})' for engine, count in jobs)}")
                continue
            measure(known[name], jobs, asked.rounds)
            rows = [row for n in cases for row in rows_of(known[n], asked.replicas, engines, limits, needs[n])]
            if asked.json:
                write_atomically(asked.json, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())
            measured = {(engine.name, count) for engine, count in jobs}
            print(f"{name}: {', '.join(f'{e} {known[name].times[e, n]:.3g} ms ({n})' for e, n in measured)}")
    show(rows)
    if asked.figure:
        figure(rows, asked.figure)


if __name__ == "__main__":
    main(sys.argv[1:])
