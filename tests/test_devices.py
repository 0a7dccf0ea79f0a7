"""Several GPUs: which worker process sees which, and how wide groups are that share one. No GPU is needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor

import pytest
import torch

from stability.execute import planning
from stability.execute.devices import VISIBLE, device_of_worker, devices_alike, devices_of, workers_a_device
from stability.execute.planning import plan_groups, sharing_of, worker_count
from stability.execute.pool import WorkerPool
from stability.grid import runs_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def what_it_sees(seconds: float = 0.5) -> tuple[int, str | None, bool]:
    """Return, in a worker, its process, the devices that it may see, and whether CUDA is in use already."""
    time.sleep(seconds)  # so that every worker gets one of these
    return os.getpid(), os.environ.get(VISIBLE), torch.cuda.is_initialized()


def seen_by(pool: WorkerPool, workers: int) -> dict[int, str | None]:
    """Return what each of *workers* sees, by process."""
    found: dict[int, str | None] = {}
    while len(found) < workers:
        for job in [pool.submit(what_it_sees) for _ in range(workers)]:
            process, visible, initialised = job.result(120)
            found[process] = visible
            assert not initialised
    return found


def test_workers_take_the_devices_in_turn_also_after_a_death(monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    with WorkerPool(2, devices=("4", "GPU-77")) as pool:
        first = seen_by(pool, 2)
        assert sorted(first.values()) == ["4", "GPU-77"]
        job = pool.submit(what_it_sees, 60.0)
        pool.kill(next(iter(first)))
        with pytest.raises(BrokenExecutor):
            job.result(60)
        pool.rebuild()
        second = seen_by(pool, 2)
        assert sorted(second.values()) == ["4", "GPU-77"]
        assert not first.keys() & second.keys()
    assert VISIBLE not in os.environ


@pytest.mark.parametrize("devices", [(), ("0",)])
def test_without_several_devices_workers_see_what_their_parent_sees(monkeypatch, devices):
    monkeypatch.setenv(VISIBLE, "9")
    with WorkerPool(1, devices=devices) as pool:
        assert list(seen_by(pool, 1).values()) == ["9"]


def test_every_device_gets_as_many_workers_as_any_other_or_one_less():
    devices = ("0", "1", "2")
    for workers in range(1, 10):
        counts = [[device_of_worker(each, devices) for each in range(workers)].count(name) for name in devices]
        assert max(counts) - min(counts) <= 1
        assert max(counts) == workers_a_device(workers, devices)


def test_devices_of_another_model_than_the_first_are_left_out():
    assert devices_alike(["H100", "T4", "H100"]) == ("0", "2")
    assert devices_alike(["H100", "T4", "H100"], "5, MIG-1,GPU-2") == ("5", "GPU-2")
    assert devices_alike([]) == ()
    assert devices_of(CPU) == ()


def test_workers_that_share_a_gpu_share_its_memory_and_no_others_do(tiny, monkeypatch):
    width = widths_of(tiny, monkeypatch)
    need = max(planning.bytes_per_replica(tiny, arm, 16, tiny.pairs()) for arm in tiny.grid.arms)
    monkeypatch.setattr(planning, "device_memory", lambda device: 2 * 6 * need)
    assert width(CUDA, sharing=1) == 6
    assert width(CUDA, sharing=2) == 3
    assert width(CPU, sharing=1) == width(CPU, sharing=2)


def widths_of(tiny, monkeypatch) -> Callable[..., int]:
    monkeypatch.setattr(planning, "core_count", lambda: 2)

    def width(device: torch.device, sharing: int) -> int:
        return max(len(group.runs) for group in plan_groups(tiny, device, runs_of(tiny), sharing=sharing).groups)

    return width


def test_a_pool_says_how_many_of_its_workers_share_a_device():
    for workers, devices, sharing in ((4, ("0", "1"), 2), (2, ("0", "1"), 1), (3, ("0",), 3), (8, (), 1)):
        with WorkerPool(workers, devices=devices) as pool:
            assert sharing_of(pool) == sharing
    assert sharing_of(None) == 1


def test_one_process_trains_on_one_gpu():
    assert worker_count(CUDA) == max(1, torch.cuda.device_count())
