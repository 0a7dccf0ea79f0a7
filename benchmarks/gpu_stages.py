"""The stages of the GPU benchmark, each run in a process of its own by gpu.py: a generator of rows under a deadline.

python benchmarks/gpu_stages.py STAGE --out DIR --seconds N [--dry] [--study NAME]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import torch
from gpu_table import Row, StageFile
from training import ceilings

from stability.execute.machine import device_model, git_commit, peak_of

ROOT = Path(__file__).resolve().parents[1]

OPTIONAL = {
    "typst": "PDFs",
    "distributed": "--on dask",
    "pyhessian": "the peer of the curvature stage",
    "jax": "a peer of the training stage",
    "optax": "a peer of the training stage",
    "triton": "torch.compile",
    "pytest": "the gpu tests",
}

TOY_STUDY = """
title = "Toy"
question = "Does the path work?"
source = "benchmarks/gpu.py"
[data]
name = "digits"
[model]
image = { name = "mlp", width = 8, depth = 1 }
text = { name = "token_transformer", width = 4, heads = 1 }
embed_dim = 4
[train]
steps = 4
[grid]
arms = ["clip", "siglip"]
batch_size = [8]
lr = [0.01]
seeds = 3
[probes.retrieval]
every = 4
[[claims]]
id = "recall"
primary = true
text = "SigLIP recalls more"
measure = "recall_at_1"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.1
[scales.smoke]
grid.seeds = 2
"""


@dataclass(frozen=True)
class Plan:
    """What a stage may use: a device, toy sizes or not, a folder, and until when (by the monotonic clock)."""

    device: str
    dry: bool
    out: Path
    deadline: float
    study: str

    def left(self) -> float:
        """Return the seconds left."""
        return self.deadline - time.monotonic()


# --- environment and tests -------------------------------------------------------------------------------------------


def environment(plan: Plan) -> Iterator[Row]:
    """Yield what the figures were taken on, its ceilings, what optional packages are absent, and the gpu tests."""
    for name, value in about(plan.device).items():
        yield Row("environment", "machine", name, value)
    for name, use in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            yield Row("environment", "optional", name, f"absent: {use} is left out")
    yield from ceiling_rows(plan)
    yield from gpu_tests(plan)


def about(device: str) -> dict[str, str]:
    """Return versions, the device's model, driver, memory and clocks, and the commit."""
    found = {"device": device_model(torch.device(device)), "cores": str(os.cpu_count())}
    if device == "cuda":
        clocks = {"clock now": "clocks.sm", "clock at most": "clocks.max.sm"}
        found |= _asked_of_the_driver({"driver": "driver_version", "memory": "memory.total", **clocks})
        found["cuda"] = str(torch.version.cuda)
    found |= {"python": platform.python_version(), "commit": git_commit() or "unknown: no git here"}
    return found | {name: metadata.version(name) for name in ("torch", "numpy")}


def _asked_of_the_driver(asked: Mapping[str, str]) -> dict[str, str]:
    """Return what nvidia-smi says of the first device, by our names; one sentence where it is not there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(asked.values())}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"driver": f"absent: nvidia-smi does not answer ({type(error).__name__})"}
    return dict(zip(asked, (word.strip() for word in answer.splitlines()[0].split(",")), strict=True))


def measured_ceilings(plan: Plan) -> tuple[float, float]:
    """Return operations a second of a large float32 product and bytes a second copied, as measured now."""
    return ceilings("cpu", 64, 10_000) if plan.dry else ceilings(plan.device, 8192, 250_000_000)


def ceiling_rows(plan: Plan) -> Iterator[Row]:
    """Yield both ceilings, and for comparison the matrix product in TF32."""
    operations, copied = measured_ceilings(plan)
    yield Row("environment", "ceiling", "float32 matrix product", operations / 1e12, "TFLOP/s")
    yield Row("environment", "ceiling", "copy", copied / 1e9, "GB/s")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield Row("environment", "ceiling", "TF32 matrix product", measured_ceilings(plan)[0] / 1e12, "TFLOP/s")
    torch.set_float32_matmul_precision(before)


def gpu_tests(plan: Plan) -> Iterator[Row]:
    """Yield how many tests marked *gpu* passed, failed and were skipped, within a minute."""
    if importlib.util.find_spec("pytest") is None:
        return
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    results = plan.out / "gpu-tests.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={results}"]
    begun = time.monotonic()
    try:
        subprocess.run([*command, *files], cwd=ROOT, check=False, timeout=min(60.0, max(1.0, plan.left() - 5)))
    except subprocess.TimeoutExpired:
        yield Row("environment", "gpu tests", "end", "stopped after a minute")
        return
    if not results.is_file():
        yield Row("environment", "gpu tests", "end", "failed before the first test; see environment.log")
        return
    suite = next(ElementTree.parse(results).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    yield Row("environment", "gpu tests", "passed", passed, "tests")
    yield Row("environment", "gpu tests", "failed", counts["failures"] + counts["errors"], "tests", goal="0")
    yield Row("environment", "gpu tests", "skipped", counts["skipped"], "tests")
    yield Row("environment", "gpu tests", "time", time.monotonic() - begun, "s")


# --- one study, end to end -------------------------------------------------------------------------------------------


def study(plan: Plan) -> Iterator[Row]:
    """Yield what a study takes from the command to its report: at full scale, or as far as it came."""
    name, scale, where = plan.study, "full", plan.out / "study-run"
    if plan.dry:
        name, scale = str(plan.out / "toy.toml"), "smoke"
        Path(name).write_text(TOY_STUDY)
    words = ["run", name, "--scale", scale, "--device", plan.device, "--out", str(where), "--no-replications"]
    if plan.dry:
        words += ["--on", "processes:1"]
    shutil.rmtree(where, ignore_errors=True)  # an earlier run would be finished already
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "stability", *words], cwd=ROOT)
    try:
        code = process.wait(max(5.0, plan.left() - 12))
    except subprocess.TimeoutExpired:
        code = interrupted(process)
    seconds, case = time.monotonic() - begun, f"{plan.study if not plan.dry else 'toy'}, {scale}"
    yield Row("study", case, "exit code", code, goal="0")
    yield Row("study", case, "whole command", seconds, "s")
    if (where / "manifest.json").is_file():
        yield from study_rows(case, seconds, json.loads((where / "manifest.json").read_text()))
    for file, figure in (("index.html", "page"), ("report.pdf", "PDF")):
        path = where / "report" / file
        if path.is_file():
            yield Row("study", case, figure, path.stat().st_size / 1e6, "MB")
        elif file == "report.pdf" and code == 0:
            yield Row("study", case, figure, "absent: typst is not here; pip install typst, then stability report")


def interrupted(process: subprocess.Popen[bytes], patience: float = 8.0) -> int:
    """Return the exit code of a process that is interrupted, and killed where that does not end it."""
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def study_rows(case: str, seconds: float, manifest: Mapping[str, object]) -> Iterator[Row]:
    """Yield how much of a run is finished, and where its seconds went."""
    groups = manifest["groups"]
    assert isinstance(groups, list)
    finished = [group for group in groups if group["status"] == "finished"]
    inside = sum(group["seconds"] for group in finished)
    yield Row("study", case, "groups finished", f"{len(finished)} of {len(groups)}", "groups")
    yield Row("study", case, "runs finished", sum(len(group["runs"]) for group in finished), "runs")
    yield Row("study", case, "training and probes", inside, "s")
    yield Row("study", case, "start, unfinished groups and report", seconds - inside, "s")
    for group in sorted(finished, key=lambda each: -each["seconds"])[:3]:
        figure = f"{group['arm']}, B = {group['batch_size']}, {len(group['runs'])} runs"
        yield Row("study", case, f"group: {figure}", group["seconds"], "s")


# --- curvature and losses --------------------------------------------------------------------------------------------


def curvature(plan: Plan) -> Iterator[Row]:
    """Yield the spectra of 64 replicas at once against PyHessian, which takes them one by one."""
    if importlib.util.find_spec("pyhessian") is None:
        yield Row("curvature", "all", "PyHessian", "absent: there is nothing to compare with")
        return
    from curvature import LANCZOS, compare_on_gpu

    for size in ("5k",) if plan.dry else ("5k", "500k"):
        if plan.left() < (1 if plan.dry else 15):
            yield Row("curvature", size, "end", "left out: no time left")
            continue
        replicas, sample, lanczos = (2, 1, 4) if plan.dry else (64, 2, LANCZOS)
        found = compare_on_gpu(size, 64, replicas, sample, plan.device, lanczos)
        case = f"{size}, B = 64, {replicas} replicas"
        yield Row("curvature", case, "ours, at once", found.ours_s, "s", found.ratio, ">= 50")
        yield Row("curvature", case, f"PyHessian ({sample} timed, scaled up)", found.peer_s, "s")
        yield Row("curvature", case, "standard error of the trace", found.notes["trace_stderr"], "of the trace")


def losses(plan: Plan) -> Iterator[Row]:
    """Yield time and peak memory of the losses as the library computes them, against the plain formulas."""
    from losses import LOSSES, inputs

    from stability import losses as library

    device = torch.device(plan.device)
    for batch in (64, 128) if plan.dry else (8192, 32768):
        given = inputs(batch, plan.device)
        for name, engines in LOSSES.items():
            case, plain = f"{name}, B = {batch:,}", math.nan
            forms: dict[str, Callable[..., torch.Tensor]] = {
                "plain formula": engines["plain"],
                "ours": _of_library(getattr(library, name), name),
                "ours, tiled at any size": engines["ours"],
            }
            for figure, form in forms.items():
                if plan.left() < 3:
                    yield Row("losses", case, figure, "left out: no time left")
                    continue
                try:
                    seconds, grown = time_and_peak(form, given, device)
                except torch.OutOfMemoryError:
                    yield Row("losses", case, figure, "does not fit into memory")
                    continue
                plain = seconds if figure == "plain formula" else plain
                yield Row("losses", case, figure, 1000 * seconds, "ms", plain / seconds)
                if grown is not None:
                    yield Row("losses", case, f"{figure}: peak", grown / 1e6, "MB")


def _of_library(loss: Callable[..., torch.Tensor], name: str) -> Callable[..., torch.Tensor]:
    """Return the library's loss with the arguments of the benchmark's."""
    if name == "clip":
        return lambda image, text, log_scale, bias: loss(image, text, log_scale=log_scale)
    return lambda image, text, log_scale, bias: loss(image, text, log_scale=log_scale, bias=bias)


def time_and_peak(
    form: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...], device: torch.device, repeats: int = 3
) -> tuple[float, int | None]:
    """Return the least seconds of forward and backward pass, and by how many bytes the peak of memory grew."""
    from losses import step

    step(form, given)
    with peak_of(device) as most:
        before = torch.cuda.memory_reserved(device) if device.type == "cuda" else most()
        seconds = min(step(form, given) for _ in range(repeats))
        after = most()
    return seconds, None if after is None or before is None else max(0, after - before)


# --- a process -------------------------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> None:
    """Run one stage and write its rows as they come."""
    from gpu_training import precision, training

    stages = {each.__name__: each for each in (environment, study, training, curvature, losses, precision)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--study", default="quickstart")
    given = parser.parse_args(words)
    device = "cpu" if given.dry else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here; --dry runs the stages on a CPU")
    plan = Plan(device, given.dry, given.out.resolve(), time.monotonic() + given.seconds - 3, given.study)
    file = StageFile(given.out / f"{given.stage}.json", given.dry, [])
    file.write()
    for row in stages[given.stage](plan):
        file.add(row)
        print(" | ".join(row.cells()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
