"""Time and memory of the softmax and the sigmoid loss, forward and backward: plain formula, compiled, ours.

    python benchmarks/losses.py [--quick] [--compile] [--json FILE]

D = 64, float32, t = 10, b = -10, unit rows. The engines take turns, and each one's best of the repeats counts: other
work on the machine then disturbs all alike. Memory is the growth of the process's peak, one fresh process a row.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stability.losses.fused import clip_sum_tiled, siglip_sum_tiled
from stability.losses.logits import sigmoid_loss_sum, symmetrize

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def plain_siglip(image: Tensor, text: Tensor, log_t: Tensor, bias: Tensor) -> Tensor:
    """Return the definition, all logits at once."""
    return sigmoid_loss_sum(log_t.exp() * image @ text.T + bias) / len(image)


def plain_clip(image: Tensor, text: Tensor, log_t: Tensor, bias: Tensor) -> Tensor:
    """Return the definition, all logits at once."""
    logits = log_t.exp() * image @ text.T
    return symmetrize(lambda x: (torch.logsumexp(x, -1) - torch.diagonal(x)).mean(), logits)


def ours_siglip(image: Tensor, text: Tensor, log_t: Tensor, bias: Tensor) -> Tensor:
    """Return the tiled form at every batch size."""
    return siglip_sum_tiled(log_t.exp() * image, text, bias) / len(image)


def ours_clip(image: Tensor, text: Tensor, log_t: Tensor, bias: Tensor) -> Tensor:
    """Return the tiled form at every batch size."""
    return clip_sum_tiled(log_t.exp() * image, text) / 2 / len(image)


LOSSES: dict[str, dict[str, Loss]] = {
    "siglip": {"plain": plain_siglip, "ours": ours_siglip},
    "clip": {"plain": plain_clip, "ours": ours_clip},
}


def inputs(batch: int, device: str = "cpu") -> tuple[Tensor, ...]:
    """Return images, texts, log t and bias."""
    image, text = normalize(torch.randn(2, batch, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    scalars = torch.tensor(math.log(10.0)), torch.tensor(-10.0)
    return tuple(x.to(device).requires_grad_() for x in (image, text, *scalars))


def step(loss: Loss, given: tuple[Tensor, ...]) -> float:
    """Return the seconds of one forward and backward pass."""
    start = time.perf_counter()
    torch.autograd.grad(loss(*given), given, allow_unused=True)
    if given[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times(name: str, batch: int, repeats: int, compiled: bool) -> list[dict[str, object]]:
    """Return one row for each engine, after checking that all compute the same loss."""
    engines = dict(LOSSES[name])
    if compiled:
        engines["plain, compiled"] = torch.compile(LOSSES[name]["plain"], dynamic=False)
    given = inputs(batch)
    values = [loss(*given).item() for loss in engines.values()]
    if max(values) - min(values) > 1e-4 * abs(values[0]):
        raise SystemExit(f"{name} at B = {batch}: the engines disagree: {values}")
    best = dict.fromkeys(engines, math.inf)
    for repeat in range(repeats + 1):
        for engine, loss in engines.items():
            seconds = step(loss, given)
            best[engine] = min(best[engine], seconds) if repeat else math.inf  # the first one warms up
    return [
        {
            "loss": name,
            "batch": batch,
            "engine": engine,
            "ms": 1e3 * best[engine],
            "ratio": best["plain"] / best[engine],
        }
        for engine in engines
    ]


def resident_peak() -> float:
    """Return the most memory that this process has had at once since the peak was last forgotten, in MB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def peak(name: str, engine: str, batch: int) -> None:
    """Print, as JSON, the seconds of one pass and the growth of this process's peak memory, in MB."""
    step(LOSSES[name][engine], inputs(512))
    given = inputs(batch)
    # What the imports needed for a moment must not hide it: Linux forgets the peak when 5 is written here.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_peak()
    seconds = step(LOSSES[name][engine], given)
    grown = resident_peak() - before
    print(json.dumps({"loss": name, "batch": batch, "engine": engine, "ms": 1e3 * seconds, "peak_mb": grown}))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="B = 512 and 2,048 only, memory at 8,192")
    parser.add_argument("--compile", action="store_true", help="the plain formula under torch.compile too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=3, metavar=("LOSS", "ENGINE", "B"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        return peak(asked.peak[0], asked.peak[1], int(asked.peak[2]))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows = []
    for batch in (512, 2048) if asked.quick else (512, 2048, 8192):
        for name in LOSSES:
            for row in times(name, batch, max(2, min(20, 2**25 // batch**2)), asked.compile):
                rows.append(row)
                print("{loss:8} B {batch:6,} {engine:16} {ms:10.1f} ms {ratio:6.2f}x".format(**row), flush=True)
    for batch in (8192,) if asked.quick else (32768, 65536):
        for name in LOSSES:
            command = [sys.executable, __file__, "--peak", name, "ours", str(batch)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append(row)
            print("{loss:8} B {batch:6,} {engine:16} {ms:10.0f} ms {peak_mb:6.0f} MB".format(**row), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
