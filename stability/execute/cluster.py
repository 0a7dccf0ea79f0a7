"""An executor that trains groups on the workers of a Dask cluster, with the same numbers on more than one machine.

A worker must have this machine's versions and device model, and one thread. The resources that workers declare are
respected. A group on a GPU takes one ``GPU``, which is the first that its worker sees, so each worker of a machine must
be started with a separate ``CUDA_VISIBLE_DEVICES``. If workers declare ``MEMORY``, a group takes the bytes that it
needs. Further resources are named in the address, as in ``dask:tcp://HOST:PORT?BIG=1``. Dask pickles what it sends
between machines, so run a scheduler on a trusted network only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch

from stability.execute.devices import VISIBLE, card_in_use
from stability.execute.worker import GroupResult, Task, environment, heartbeat_path, train_remote
from stability.extras import optional
from stability.plugins import Plugin, load_plugins
from stability.registry import InputError

TOPIC = "stability"
"""Dask topic of the events with which workers without a shared disk send heartbeats."""

CONNECT_TIMEOUT = 10.0
"""Seconds within which a scheduler must answer."""


@contextmanager
def cluster_of(address: str, device: torch.device, plugins: Sequence[Plugin] = ()) -> Iterator[Cluster]:
    """Yield an executor on the workers of the Dask scheduler at *address*.

    Workers may join later; groups wait while the scheduler has no workers.

    Args:
        address: ``tcp://HOST:PORT``, with ``?NAME=AMOUNT`` for resources.
        device: The device that workers train on.
        plugins: Files with losses or encoders that workers load first.

    Raises:
        InputError: No scheduler answers, a worker has other versions or another device than this machine, workers would
            share a GPU while others are idle, or no worker declares a requested resource.
    """
    distributed = optional("distributed", f"--on dask:{address}", "dask")
    scheduler, _, query = address.partition("?")
    needs = _resources(query, address) | ({"GPU": 1.0} if device.type == "cuda" else {})
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--on dask:{address}: no scheduler answers there ({reason})") from error
    with client:
        declared = [worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
        _check_declared(needs, declared, address)
        _check_alike(client.run(environment, device, on_error="return"), environment(device))
        if device.type == "cuda":
            _check_cards(client.run(card_in_use, device))
        cluster = Cluster(client, plugins, needs)
        try:
            yield cluster
        finally:
            cluster.shutdown(wait=False)


def _resources(query: str, address: str) -> dict[str, float]:
    """Return the resources requested in the query of an address.

    >>> _resources("GPU=1&MEMORY=8e9", "")
    {'GPU': 1.0, 'MEMORY': 8000000000.0}
    """
    resources = {}
    for name, amount in parse_qsl(query, keep_blank_values=True):
        try:
            resources[name] = float(amount)
        except ValueError:
            raise InputError(f"--on dask:{address}: {name} is {amount!r}; allowed: a number, as {name}=1") from None
    return resources


def _check_declared(needs: Mapping[str, float], declared: Sequence[Mapping[str, float]], address: str) -> None:
    """Raise `InputError` if no worker declares enough of a resource; without workers there is nothing to check."""
    for name, amount in needs.items():
        most = max((worker.get(name, 0.0) for worker in declared), default=amount)
        if most < amount:
            raise InputError(
                f"--on dask:{address}: {amount:g} of the resource {name} is needed, and no worker declares more than "
                f"{most:g}; start workers with --resources {name}={amount:g}"
            )


def _check_alike(environments: Mapping[str, Any], ours: Mapping[str, str]) -> None:
    """Raise `InputError` naming the first worker whose versions or device differ from those of this machine."""
    for worker, theirs in environments.items():
        if isinstance(theirs, BaseException):
            raise InputError(f"worker {worker}: cannot be asked for its versions ({type(theirs).__name__}: {theirs})")
        for name, here in ours.items():
            if (there := theirs.get(name, "unknown")) != here:
                raise InputError(f"worker {worker}: has {name} {there}, this machine {here}; results could differ")


def _check_cards(cards: Mapping[str, tuple[str, int]]) -> None:
    """Raise `InputError` if two workers train on the same GPU although they see several.

    *cards* maps each worker to the UUID of its GPU and the number of GPUs it sees.

    >>> _check_cards({"tcp://a:1": ("GPU-3f", 1), "tcp://a:2": ("GPU-3f", 1), "tcp://b:1": ("GPU-77", 2)})
    """
    users: dict[str, str] = {}
    for worker, (card, seen) in cards.items():
        if seen > 1 and card in users:
            raise InputError(
                f"workers {users[card]} and {worker}: train on the same GPU and see {seen}; start each with a "
                f"{VISIBLE} of its own, as `dask cuda worker` of the package dask-cuda does"
            )
        users[card] = worker


class Cluster(Executor):
    """An `Executor` over a `distributed.Client` that declares the resources of each group and sends *plugins* along."""

    def __init__(self, client: Any, plugins: Sequence[Plugin], needs: Mapping[str, float]) -> None:
        self._client, self._plugins, self._needs = client, tuple(plugins), dict(needs)
        # pure=True would deduplicate a resubmitted group against its lost first future.
        self._executor = client.get_executor(pure=False)
        self._heartbeat_paths: dict[str, Path] = {}
        client.subscribe_topic(TOPIC, self._write_heartbeat)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule the training of a task; *function* is always `worker.train_remote`."""
        (task,) = args
        self._heartbeat_paths[task.group.id] = heartbeat_path(task.where, task.group)
        ours = environment(task.device)
        return self._executor.submit(
            _train_on_node, task, self._plugins, ours, str(Path.cwd()), resources=self._needs | self._memory(task)
        )

    def _memory(self, task: Task) -> dict[str, float]:
        """Return the memory that a task takes, or nothing if workers do not declare theirs."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        declared = [worker["resources"]["MEMORY"] for worker in workers if "MEMORY" in worker["resources"]]
        if not declared or "MEMORY" in self._needs:
            return {}
        if task.bytes > max(declared):
            raise InputError(
                f"group {task.group.id} takes {task.bytes:,} bytes of memory, and no worker declares more than "
                f"{max(declared):,.0f} of MEMORY"
            )
        return {"MEMORY": float(task.bytes)}

    def _write_heartbeat(self, event: tuple[float, Mapping[str, str]]) -> None:
        """Write the heartbeat of a worker without a shared disk to the file that such a worker would write itself."""
        _, message = event
        if path := self._heartbeat_paths.get(message["group"]):
            with contextlib.suppress(FileNotFoundError):  # The directory may have been removed meanwhile.
                path.write_text(message["heartbeat"])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the groups in flight, or cancel them."""
        self._client.unsubscribe_topic(TOPIC)
        self._executor.shutdown(wait=wait and not cancel_futures)


def _train_on_node(task: Task, plugins: tuple[Plugin, ...], ours: Mapping[str, str], folder: str) -> GroupResult:
    """Train a group on a worker of a cluster, in *folder* (that of the submitting process) if it exists."""
    from distributed import get_worker

    worker = get_worker()
    _check_alike({worker.address: environment(task.device)}, ours)
    if worker.state.nthreads != 1:
        raise InputError(f"worker {worker.address}: has {worker.state.nthreads} threads; start it with --nthreads 1")
    _load_once(plugins)
    with contextlib.chdir(folder) if Path(folder).is_dir() else contextlib.nullcontext():
        return train_remote(
            task, lambda heartbeat: worker.log_event(TOPIC, {"group": task.group.id, "heartbeat": heartbeat})
        )


@cache
def _load_once(plugins: tuple[Plugin, ...]) -> None:
    load_plugins(plugins)
