"""A real scheduler and real workers on the loopback interface, started as a user starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_disk_faults import QUICK

from stability.execute import Callbacks, executor_of, run
from stability.registry import InputError
from stability.store import checksum
from stability.study import parse_study

pytest.importorskip("distributed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a process of Dask's command line; all are killed at the end."""
    running: list[subprocess.Popen] = []
    root = Path(__file__).parent.parent
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH", "")])])

    def start(kind: str, *words: str) -> subprocess.Popen:
        with (tmp_path / f"{kind}-{len(running)}.log").open("w") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(started) -> str:
    port = free_port()
    started("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    address = f"tcp://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return address
        time.sleep(0.2)
    pytest.fail("no scheduler")


WORKER = ("--nthreads", "1", "--no-dashboard", "--no-nanny")


def workers_there(address: str, count: int) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=120)


def sums(run_dir: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted((run_dir / "groups").iterdir())}


@pytest.mark.slow
def test_a_study_survives_the_death_of_a_worker_and_a_late_one_to_the_same_bytes(started, scheduler, tmp_path):
    text = QUICK.replace("batch_size = [8]", "batch_size = [8, 16]").replace("steps = 6\n", "steps = 200\n")
    study = parse_study(text, "quick.toml", "quick")
    local = run(study, "cpu", out=tmp_path / "local")
    workers = [started("worker", scheduler, *WORKER) for _ in range(3)]
    workers_there(scheduler, 3)
    killed: list[int] = []
    steps: dict[str, set[int]] = {}

    def step(group, done) -> None:
        steps.setdefault(group.id, set()).add(done)
        if not killed:
            sign = (tmp_path / "there" / "groups" / f".{group.id}.heartbeat").read_text().split()
            killed.append(int(sign[2]))
            os.kill(killed[0], signal.SIGKILL)
            started("worker", scheduler, *WORKER)

    with executor_of(f"dask:{scheduler}", "cpu") as executor:
        there = run(study, "cpu", executor=executor, out=tmp_path / "there", callbacks=Callbacks(step=step))
    assert killed[0] in [worker.pid for worker in workers]
    assert sums(there) == sums(local)
    assert len(steps) > 1


@pytest.mark.slow
def test_what_no_worker_declares_is_refused_at_once_and_so_are_too_many_threads(started, scheduler, tmp_path):
    quick = parse_study(QUICK, "quick.toml", "quick")
    started("worker", scheduler, "--nthreads", "2", "--no-dashboard", "--no-nanny", "--resources", "MEMORY=1000")
    workers_there(scheduler, 1)
    with (
        pytest.raises(InputError, match="resource GPU is needed, and no worker declares"),
        executor_of(f"dask:{scheduler}?GPU=1", "cpu"),
    ):
        pass
    with (
        executor_of(f"dask:{scheduler}", "cpu") as executor,
        pytest.raises(InputError, match="bytes of memory, and no worker declares more than 1,000 of MEMORY"),
    ):
        run(quick, "cpu", executor=executor, out=tmp_path / "r")
    with (
        executor_of(f"dask:{scheduler}?MEMORY=1", "cpu") as executor,
        pytest.raises(InputError, match="has 2 threads; start it with --nthreads 1"),
    ):
        run(quick, "cpu", executor=executor, out=tmp_path / "r")


def test_an_address_where_nobody_answers_is_one_sentence(monkeypatch):
    from stability.execute import cluster

    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT", 0.5)
    with (
        pytest.raises(InputError, match="no scheduler answers there"),
        executor_of(f"dask:tcp://127.0.0.1:{free_port()}", "cpu"),
    ):
        pass


def test_resources_that_are_no_numbers_are_one_sentence():
    with (
        pytest.raises(InputError, match="GPU is 'one'; allowed: a number"),
        executor_of("dask:tcp://a:1?GPU=one", "cpu"),
    ):
        pass


def test_other_versions_are_refused_in_words():
    from stability.execute.cluster import _check_alike

    ours = {"torch": "2.13", "model of the cpu": "A"}
    _check_alike({"tcp://w": dict(ours)}, ours)
    with pytest.raises(InputError, match=r"worker tcp://w: has torch 2\.12, this machine 2\.13; results could differ"):
        _check_alike({"tcp://w": {**ours, "torch": "2.12"}}, ours)
    with pytest.raises(InputError, match="cannot be asked for its versions"):
        _check_alike({"tcp://w": ModuleNotFoundError("No module named 'stability'")}, ours)


@pytest.mark.slow
def test_a_worker_with_another_version_is_refused_in_words(scheduler, tmp_path):
    other = tmp_path / "other/contrastive_stability-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: contrastive-stability\nVersion: 99.0\n")
    root = str(Path(__file__).parent.parent)
    paths = [str(other.parent), root]
    script = f"import sys; sys.path[:0] = {paths}; from distributed.cli.dask_worker import main; main()"
    worker = subprocess.Popen(
        [sys.executable, "-c", script, scheduler, *WORKER], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        workers_there(scheduler, 1)
        with (
            pytest.raises(InputError, match=r"has contrastive-stability 99\.0, this machine .*; results could differ"),
            executor_of(f"dask:{scheduler}", "cpu"),
        ):
            pass
    finally:
        worker.kill()
        worker.wait()


def test_two_workers_on_one_gpu_while_others_are_idle_are_refused_in_words():
    from stability.execute.cluster import _check_cards

    _check_cards({"tcp://a:1": ("GPU-3f", 1), "tcp://a:2": ("GPU-3f", 1)})  # there is no other
    _check_cards({"tcp://a:1": ("GPU-3f", 2), "tcp://b:1": ("GPU-77", 2)})
    with pytest.raises(InputError, match="workers tcp://a:1 and tcp://a:2: train on the same GPU and see 2"):
        _check_cards({"tcp://a:1": ("GPU-3f", 2), "tcp://a:2": ("GPU-3f", 2)})


def test_the_source_is_part_of_what_must_be_equal():
    import torch

    from stability.execute.cluster import _check_alike
    from stability.execute.worker import environment

    ours = environment(torch.device("cpu"))
    with pytest.raises(InputError, match="has a source of stability 0123, this machine "):
        _check_alike({"tcp://w": {**ours, "a source of stability": "0123"}}, ours)
