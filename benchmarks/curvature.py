"""Curvature side by side: this package, PyHessian, and the loop that loss-landscapes runs. See README.md beside this.

    python benchmarks/curvature.py [--quick] [--json FILE] [--threads N] [--repeats N]

One MLP dual encoder under a sigmoid loss, after a hundred steps of Adam, so that its spectrum has outliers. Peer and
ours do the same work in the same process, in turns; each time is the least of its repeats, so that other work on the
machine counts little. Times are wall-clock seconds and no promise: read the ratios.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import stability as st

LANCZOS = 100  # products behind both ends and the density, for both
TARGET = 0.05  # standard error of the trace, as a share of max(|trace|, |H|_F)
MOST_PROBES = 2_000
GRID = 21
SIZES = {"5k": (32, 48, 16), "500k": (256, 640, 128)}
QUICK = (("5k", 64),)
CASES = (("5k", 64), ("5k", 512), ("500k", 64), ("500k", 512))


class DualEncoder(nn.Module):
    """Two tanh MLPs, trained log t and b, and a batch of pairs: calling it returns the sigmoid loss."""

    def __init__(self, features: int, width: int, dim: int, batch_size: int) -> None:
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, dim)) for _ in range(2)
        )
        self.log_scale, self.bias = (nn.Parameter(torch.tensor(value)) for value in (math.log(10.0), -10.0))
        image = torch.randn(batch_size, features)
        self.register_buffer("images", image)
        self.register_buffer("texts", image + 0.5 * torch.randn(batch_size, features))

    def forward(self, _: object = None) -> Tensor:
        image, text = F.normalize(self.image(self.images), dim=-1), F.normalize(self.text(self.texts), dim=-1)
        logits = self.log_scale.exp() * image @ text.T + self.bias
        sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        return F.softplus(-sign * logits).sum() / len(logits)


@dataclass(frozen=True)
class Row:
    """One comparison: what, on which case, seconds of peer and ours, their ratio, and the ratio that was asked for."""

    case: str
    what: str
    peer: str
    peer_s: float
    ours_s: float
    ratio: float
    bar: float
    notes: dict[str, float | int]


def trained(size: str, batch_size: int, steps: int = 100) -> DualEncoder:
    """Return a dual encoder of about *size* parameters after *steps* of Adam on its own batch, by one seed."""
    torch.manual_seed(0)
    model = DualEncoder(*SIZES[size], batch_size)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    return model


def objective_of(model: nn.Module) -> tuple[Callable[[dict[str, Tensor]], Tensor], dict[str, Tensor]]:
    """Return ``params -> loss`` of a module, and its parameters by name."""
    params = {name: value.detach().clone() for name, value in model.named_parameters()}
    return (lambda p: functional_call(model, p, (None,))), params


# --- what is true ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """Both ends, trace and Frobenius norm; all eigenvalues where the dense Hessian is small enough to diagonalise."""

    high: float
    low: float
    trace: float
    frobenius: float
    eigenvalues: Tensor | None

    @property
    def scale(self) -> float:
        return max(abs(self.trace), self.frobenius)


def truth_of(model: DualEncoder) -> Truth:
    """Return the dense float64 Hessian's figures below 5,000 parameters, else those of long runs of ours."""
    objective, params = objective_of(model)
    count = sum(value.numel() for value in params.values())
    if count > 5_000:
        long = st.curvature.spectrum(objective, params, steps=200, trace_probes=64, seed=1)
        z = {name: torch.randint(2, (64, *value.shape)).float() * 2 - 1 for name, value in params.items()}
        images = st.curvature.hvp(objective, params, z)
        frobenius = sum((value**2).reshape(len(value), -1).sum(1) for value in images.values()).mean().sqrt()
        return Truth(*map(float, (long.eigenvalues_high, long.eigenvalues_low, long.trace, frobenius)), None)
    objective, params = objective_of(copy.deepcopy(model).double())
    shapes = {name: value.shape for name, value in params.items()}

    def of(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        return objective({name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)})

    flat = torch.cat([value.reshape(-1) for value in params.values()])
    dense = torch.func.jacrev(torch.func.grad(of), chunk_size=64)(flat)
    values = torch.linalg.eigvalsh((dense + dense.T) / 2)
    return Truth(*map(float, (values[-1], values[0], values.sum(), values.norm())), values)


# --- the peers -------------------------------------------------------------------------------------------------------


def _eig(matrix: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
    """What torch.eig returned until it was removed, by torch.linalg.eig: without it PyHessian's density fails."""
    values, vectors = torch.linalg.eig(matrix)
    return torch.view_as_real(values), vectors.real


@dataclass(frozen=True)
class Measured:
    high: float
    low: float
    trace: float
    stderr: float
    probes: int
    nodes: list[float]
    weights: list[float]


def by_pyhessian(model: DualEncoder, bound: float, lanczos: int = LANCZOS) -> Measured:
    """Return PyHessian's three quantities: its top eigenvalue, its trace until the error is small, its density.

    It has one end, that of largest magnitude; the other is read off its density. Its own stopping rule of the trace
    has no standard error, so probes are added four at a time until there is one below *bound*, as for ours.
    """
    import pyhessian

    torch.eig = _eig
    on_gpu, ignored = next(model.parameters()).is_cuda, torch.zeros(())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
        peer = pyhessian.hessian(model, lambda loss, _: loss, data=(ignored, ignored), cuda=on_gpu)
        (top, *_), _ = peer.eigenvalues(maxIter=100, tol=1e-3)
        forms: list[float] = []
        while not forms or (torch.tensor(forms).std() / len(forms) ** 0.5 > bound and len(forms) < MOST_PROBES):
            forms += peer.trace(maxIter=4, tol=-math.inf)
        nodes, weights = peer.density(iter=lanczos, n_v=1)
    model.zero_grad(set_to_none=True)
    nodes, weights = [float(x) for x in nodes[0]], [float(x) for x in weights[0]]
    ends = (top, min(nodes)) if top > 0 else (max(nodes), top)
    stderr = float(torch.tensor(forms).std() / len(forms) ** 0.5)
    return Measured(*map(float, ends), sum(forms) / len(forms), stderr, len(forms), nodes, weights)


def by_ours(model: DualEncoder, probes: int) -> Measured:
    """Return the same three quantities by this package, from one Lanczos run and *probes* further products."""
    objective, params = objective_of(model)
    s = st.curvature.spectrum(objective, params, steps=LANCZOS, trace_probes=probes)
    figures = (s.eigenvalues_high, s.eigenvalues_low, s.trace, s.trace_stderr)
    return Measured(*map(float, figures), probes, s.nodes[0].tolist(), s.weights[0].tolist())


def grid_by_loop(model: DualEncoder, plane: tuple[dict[str, Tensor], dict[str, Tensor]]) -> list[list[float]]:
    """Return the loss on the plane, as loss-landscapes does: the model moved in place, one forward a point.

    That package walks odd rows backwards to save moves; here each row starts anew, so that no row is off by a cell.
    """
    step = 2 / (GRID - 1)
    rows = []
    with torch.no_grad():
        here = dict(model.named_parameters())
        start = {name: value.clone() for name, value in here.items()}
        for i in range(GRID):
            for name, value in here.items():
                value.copy_(start[name]).add_(plane[0][name], alpha=i * step - 1).sub_(plane[1][name])
            row = []
            for _ in range(GRID):
                row.append(model().item())
                for name, value in here.items():
                    value.add_(plane[1][name], alpha=step)
            rows.append(row)
        for name, value in here.items():
            value.copy_(start[name])
    return rows


# --- the comparisons -------------------------------------------------------------------------------------------------


def in_turns(*work: Callable[[], object], repeats: int) -> list[float]:
    """Return the least seconds of each piece of work over *repeats*, taken in turns."""
    least = [math.inf] * len(work)
    for _ in range(repeats):
        for place, run in enumerate(work):
            start = time.perf_counter()
            run()
            least[place] = min(least[place], time.perf_counter() - start)
    return least


def compare_spectra(size: str, batch_size: int, repeats: int) -> Row:
    """Return one replica's both ends, trace and density: PyHessian's time over ours, at the errors in the notes."""
    model = trained(size, batch_size)
    truth = truth_of(model)
    bound, probes = TARGET * truth.scale, 4
    while (ours := by_ours(model, probes)).stderr > bound and probes < MOST_PROBES:
        probes += 4
    seen: list[Measured] = []
    peer_s, ours_s = in_turns(
        lambda: seen.append(by_pyhessian(model, bound)), lambda: by_ours(model, probes), repeats=repeats
    )
    notes = {f"{who}_{key}": value for who, m in (("peer", seen[0]), ("ours", ours)) for key, value in errors(m, truth)}
    case = f"{size}, B = {batch_size}"
    return Row(case, "both ends, trace, density", "PyHessian", peer_s, ours_s, peer_s / ours_s, 5.0, notes)


def errors(measured: Measured, truth: Truth) -> Iterator[tuple[str, float]]:
    """Yield the errors of what was measured, as shares of the norm or of the trace's scale."""
    norm = max(abs(truth.high), abs(truth.low))
    yield "high_error", abs(measured.high - truth.high) / norm
    yield "low_error", abs(measured.low - truth.low) / norm
    yield "trace_error", abs(measured.trace - truth.trace) / truth.scale
    yield "trace_stderr", measured.stderr / truth.scale
    yield "trace_probes", measured.probes
    if truth.eigenvalues is not None:
        distance = wasserstein_distance(measured.nodes, truth.eigenvalues, u_weights=measured.weights)
        yield "density_distance", float(distance) / norm


def compare_replicas(size: str, batch_size: int, repeats: int, replicas: int = 16, steps: int = 30) -> Row:
    """Return 16 replicas one after the other against 16 at once, both by ours."""
    objective, params = objective_of(trained(size, batch_size))
    many = {name: value.expand(replicas, *value.shape).clone() for name, value in params.items()}
    one_s, many_s = in_turns(
        lambda: st.curvature.spectrum(objective, params, steps=steps, trace_probes=8),
        lambda: st.curvature.spectrum(objective, many, steps=steps, trace_probes=8, batched=True),
        repeats=repeats,
    )
    case = f"{size}, B = {batch_size}"
    return Row(case, f"{replicas} replicas at once", "ours, one by one", replicas * one_s, many_s,
               replicas * one_s / many_s, 2.0, {"replicas": replicas, "steps": steps})  # fmt: skip


def compare_grids(size: str, batch_size: int, repeats: int) -> Row:
    """Return a 21 x 21 plane of the loss: a loop as in loss-landscapes against our slice."""
    model = trained(size, batch_size)
    objective, params = objective_of(model)
    plane = st.landscape.directions(params, kind="filter", count=2)

    def ours() -> Tensor:
        return torch.as_tensor(st.landscape.slice2d(objective, params, plane, (-1.0, 1.0), GRID).values)

    apart = (torch.tensor(grid_by_loop(model, plane)) - ours().float()).abs().max() / ours().float().abs().max()
    peer_s, ours_s = in_turns(lambda: grid_by_loop(model, plane), ours, repeats=repeats)
    notes = {"largest_difference": float(apart)}
    case = f"{size}, B = {batch_size}"
    return Row(
        case, f"{GRID} x {GRID} plane", "loop as in loss-landscapes", peer_s, ours_s, peer_s / ours_s, 3.0, notes
    )


def compare_on_gpu(
    size: str = "5k",
    batch_size: int = 64,
    replicas: int = 64,
    sample: int = 2,
    device: str = "cuda",
    lanczos: int = LANCZOS,
) -> Row:
    """Return 64 replicas at once on the GPU against PyHessian one by one, *sample* of them timed and scaled up.

    PyHessian adds probes of the trace until its standard error is below `TARGET` of max(|trace|, |H|_F), or ours.
    """
    model = trained(size, batch_size, steps=100 if device == "cuda" else 5).to(device)
    objective, params = objective_of(model)
    many = {name: value.expand(replicas, *value.shape).clone() for name, value in params.items()}

    def ours() -> st.curvature.Spectrum:
        spectrum = st.curvature.spectrum(objective, many, steps=lanczos, trace_probes=16, batched=True)
        spectrum.trace.cpu()  # waits for the device
        return spectrum

    found = ours()
    nodes, weights = (values.flatten()[:lanczos] for values in (found.nodes, found.weights))  # of the first replica
    frobenius = float(((weights * nodes**2).sum() * sum(value.numel() for value in params.values())).sqrt())
    scale = max(abs(float(found.trace[0])), frobenius)
    bound = max(TARGET * scale, float(found.trace_stderr[0]))
    (ours_s,) = in_turns(ours, repeats=2)
    (one_s,) = in_turns(lambda: [by_pyhessian(model, bound, lanczos) for _ in range(sample)], repeats=1)
    peer_s = one_s / sample * replicas
    case = f"{size}, B = {batch_size}, GPU"
    notes = {"timed": sample, "trace_stderr": float(found.trace_stderr[0]) / scale}
    return Row(case, f"{replicas} replicas", "PyHessian one by one", peer_s, ours_s, peer_s / ours_s, 50.0, notes)


# --- the table -------------------------------------------------------------------------------------------------------


def rows_of(quick: bool, repeats: int) -> Iterator[Row | str]:
    """Yield every comparison, or a sentence on why it was skipped."""
    cases = QUICK if quick else CASES
    for size, batch_size in cases:
        yield compare_spectra(size, batch_size, 1 if (size, batch_size) == ("500k", 512) else repeats)
    for size, batch_size in cases[:3]:
        yield compare_replicas(size, batch_size, repeats)
    if importlib.util.find_spec("stability.landscape"):
        for size, batch_size in cases:
            yield compare_grids(size, batch_size, repeats)
    else:
        yield "21 x 21 plane: skipped, this version has no stability.landscape"
    yield compare_on_gpu() if torch.cuda.is_available() else "64 replicas on a GPU: skipped, there is none here"


def machine(threads: int) -> dict[str, object]:
    """Return what the times were taken on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyhessian": importlib.metadata.version("pyhessian"),
    }


def _processor() -> str:
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """Print the table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="the smallest case only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    parser.add_argument("--repeats", type=int, default=3, help="the least time of so many counts (default 3)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    about, console = machine(given.threads), Console()
    table = Table("case", "what", "peer", "peer s", "ours s", "ratio", "asked", title=str(about))
    found: list[Row] = []
    for row in rows_of(given.quick, given.repeats):
        if isinstance(row, str):
            console.print(row)
            continue
        found.append(row)
        console.print(f"{row.case}: {row.what}: {row.ratio:.1f} times faster than {row.peer} {_short(row.notes)}")
        times = (f"{row.peer_s:.3g}", f"{row.ours_s:.3g}", f"{row.ratio:.1f}", f"{row.bar:g}")
        table.add_row(row.case, row.what, row.peer, *times)
    console.print(table)
    if given.json:
        given.json.write_text(json.dumps({"machine": about, "rows": [asdict(row) for row in found]}, indent=1) + "\n")


def _short(notes: dict[str, float | int]) -> str:
    return ", ".join(f"{key} {value:.2g}" for key, value in notes.items())


if __name__ == "__main__":
    main()
