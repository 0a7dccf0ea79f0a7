"""Groups that fail, run out of memory, hang or lose their worker: the others go on, and no number changes."""

from __future__ import annotations

import json
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stability import execute
from stability.execute import Callbacks, executor_of, run, scheduling
from stability.execute.pool import WorkerPool
from stability.execute.worker import GroupResult, Task, heartbeat_path, train_remote
from stability.grid import groups_of, halves, runs_of
from stability.losses import loss
from stability.plugins import Plugin, load_plugin
from stability.registry import InputError, Variant
from stability.store import checksum
from stability.study import Study, parse_study

QUICK = """
title = "Quick"
question = "Does it survive?"
source = "the test suite"

[data]
name = "digits"

[model]
image = { name = "mlp", width = 8, depth = 1 }
text = { name = "token_transformer", width = 4, heads = 1 }
embed_dim = 4

[train]
steps = 6
warmup = 2

[grid]
arms = ["clip", "siglip"]
batch_size = [8]
lr = [0.01]
seeds = 4

[probes.retrieval]
every = 3
"""


@pytest.fixture(scope="module")
def quick() -> Study:
    return parse_study(QUICK, "quick.toml", "quick")


@pytest.fixture(scope="module")
def quick_run(quick: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(quick, "cpu", out=tmp_path_factory.mktemp("quick") / "r")


def sums(run_dir: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted((run_dir / "groups").iterdir())}


def groups_in(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "manifest.json").read_text())["groups"]


def statuses(run_dir: Path) -> list[str]:
    return sorted(group["status"] for group in groups_in(run_dir))


class Fault:
    """Raises in a loss of the study while it is armed; planning, which measures the loss, goes before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, times: int) -> None:
        self.left, self.error, sound = 0, error, loss[name]
        self.times = times

        def faulty(image, text, **scalars):
            if self.left:
                self.left -= 1
                raise self.error
            return sound.function(image, text, **scalars)

        # Without the kernel that the loss declares for all replicas at once: it would compute without the function.
        traits = replace(sound.traits, value_and_grad=None)
        monkeypatch.setitem(loss._variants, name, Variant("loss", name, faulty, sound.options, traits))

    def watch(self, said: list[str]) -> Callbacks:
        return Callbacks(say=said.append, begin=self.arm)

    def arm(self, groups: int) -> None:
        self.left, self.times = self.left + self.times, 0


@pytest.fixture(scope="module")
def wrapped_run(quick: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with CLIP's loss behind a wrapper, as where it is made to fail.

    A wrapper has no kernel of its own, so it goes through autograd: equal numbers up to their last bits.
    """
    with pytest.MonkeyPatch.context() as patch:
        Fault(patch, "clip", AssertionError("never"), 0)
        return run(quick, "cpu", out=tmp_path_factory.mktemp("wrapped") / "r")


@pytest.mark.parametrize("error", [AssertionError("torn"), AttributeError("torn"), OSError("torn"), KeyError("torn")])
def test_whatever_a_loss_raises_fails_its_group_only_and_the_next_run_tries_it_again(
    quick, wrapped_run, tmp_path, monkeypatch, error
):
    said: list[str] = []
    out = run(quick, "cpu", out=tmp_path / "r", callbacks=Fault(monkeypatch, "clip", error, 1).watch(said))
    assert statuses(out) == ["failed", "finished"]
    assert [type(error).__name__ in sentence and "torn" in sentence for sentence in said] == [True]
    (failed,) = (group for group in groups_in(out) if group["status"] == "failed")
    assert "Traceback" in failed["error"]
    assert not (out / "groups" / f"{failed['id']}.parquet").exists()
    run(quick, "cpu", out=out)
    assert statuses(out) == ["finished", "finished"]
    assert all("error" not in group for group in groups_in(out))
    assert sums(out) == sums(wrapped_run)


def test_fail_fast_begins_no_further_group_and_only_failed_trains_nothing_else(quick, tmp_path, monkeypatch):
    fault = Fault(monkeypatch, "clip", RuntimeError("first"), 1)
    slow = Fault(monkeypatch, "siglip", RuntimeError("first"), 1)
    said: list[str] = []

    def begin(groups: int) -> None:
        fault.arm(groups)
        slow.arm(groups)

    out = run(quick, "cpu", out=tmp_path / "r", callbacks=Callbacks(say=said.append, begin=begin), fail_fast=True)
    assert statuses(out) == ["failed", "planned"]
    assert len(said) == 1
    monkeypatch.undo()
    run(quick, "cpu", out=out, only_failed=True)
    assert statuses(out) == ["finished", "planned"]
    run(quick, "cpu", out=out, only_failed=True, callbacks=Callbacks(say=said.append))
    assert said[-1] == f"{out}: no group has failed, so there is none to try again"
    assert statuses(out) == ["finished", "planned"]


def test_a_failure_is_remembered_until_its_group_is_tried_again(quick, tmp_path, monkeypatch):
    out = run(quick, "cpu", out=tmp_path / "r", callbacks=Fault(monkeypatch, "clip", RuntimeError("no"), 1).watch([]))

    def interrupted(groups: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(quick, "cpu", out=out, callbacks=Callbacks(begin=interrupted))
    assert statuses(out) == ["failed", "finished"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_group_without_memory_is_trained_in_halves_to_the_same_numbers(
    quick, wrapped_run, tmp_path, monkeypatch, error
):
    said: list[str] = []
    out = run(quick, "cpu", out=tmp_path / "r", callbacks=Fault(monkeypatch, "clip", error, 1).watch(said))
    assert [sentence.split(": ", 1)[1] for sentence in said] == ["memory does not suffice for 4 runs; halving it"]
    assert statuses(out) == ["finished"] * 3
    assert sorted(len(group["runs"]) for group in groups_in(out)) == [2, 2, 4]
    whole, parts = (execute.manifest.known_runs(quick, each, groups_in(each))[0] for each in (wrapped_run, out))
    assert whole == parts
    frames = [rows_of(each) for each in (wrapped_run, out)]
    assert frames[0].equals(frames[1])
    # A later call finds the plan as it was narrowed.
    run(quick, "cpu", out=out, callbacks=Callbacks(step=lambda group, step: pytest.fail("trained again")))


def rows_of(run_dir: Path):
    import pandas as pd

    return pd.read_parquet(run_dir / "groups").sort_values(["run", "step"], ignore_index=True)


def test_a_group_of_two_that_lacks_memory_has_failed(quick, tmp_path, monkeypatch):
    fault = Fault(monkeypatch, "clip", MemoryError("none left"), 3)
    out = run(quick, "cpu", out=tmp_path / "r", callbacks=fault.watch([]))
    assert statuses(out) == ["failed", "failed", "finished"]


def test_halves_keep_the_runs_in_order(quick):
    runs = runs_of(quick)[:3]
    (group,) = groups_of(runs, lambda run: 32)
    first, second = halves(group)
    assert first.runs + second.runs == group.runs
    assert (len(first.runs), len(second.runs)) == (2, 1)
    assert len({group.id, first.id, second.id}) == 3


DEADLY = """
import os, signal
from dataclasses import replace
from pathlib import Path
import stability as st
from stability.losses import siglip

GROUPS = Path({groups!r})

@st.loss(log_scale=st.Scalar(2.3), bias=st.Scalar(-10.0))
def deadly(image, text, *, log_scale, bias):
    \"\"\"As siglip, but once, in a worker that trains, it strikes its own process.\"\"\"
    mark = GROUPS.parent / "struck"
    if not mark.exists() and list(GROUPS.glob(".*.heartbeat")):
        mark.touch()
        os.kill(os.getpid(), signal.{signal})
    return siglip(image, text, log_scale=log_scale, bias=bias)
"""


@pytest.mark.parametrize(
    ("signal", "word"),
    [("SIGKILL", "a worker process died"), pytest.param("SIGSTOP", "its worker hangs", marks=pytest.mark.slow)],
)
def test_a_worker_that_is_killed_or_frozen_is_replaced_and_its_group_requeued(tmp_path, monkeypatch, signal, word):
    monkeypatch.setattr(scheduling, "HEARTBEAT_TIMEOUT", 5.0)
    monkeypatch.setattr(loss, "_variants", dict(loss._variants))
    plugin = Plugin("deadly.py", "deadly", DEADLY.format(groups=str(tmp_path / "r" / "groups"), signal=signal))
    load_plugin(plugin)
    study = parse_study(QUICK.replace('"clip", "siglip"', '"deadly"'), "q.toml", "q")
    said: list[str] = []
    with executor_of("processes:1", "cpu", (plugin,)) as pool:
        out = run(study, "cpu", executor=pool, out=tmp_path / "r", callbacks=Callbacks(say=said.append))
    assert (out / "struck").exists()
    assert any(word in sentence for sentence in said), said
    assert statuses(out) == ["finished"]
    alone = run(study, "cpu", out=tmp_path / "alone")
    assert sums(out) == sums(alone)


class Unreliable(Executor):
    """Runs each call in a thread, except the first *faults*, whose outcome is as *fault* says."""

    def __init__(self, fault: BaseException | None, faults: int, begun: bool) -> None:
        self.threads, self.fault, self.faults, self.begun = ThreadPoolExecutor(1), fault, faults, begun

    def submit(self, function, /, *args, **kwargs):
        if not self.faults:
            return self.threads.submit(function, *args, **kwargs)
        self.faults -= 1
        future: Future[GroupResult] = Future()
        if self.begun:
            heartbeat_path(args[0].where, args[0].group).write_text("2 7 1")
        if self.fault:
            future.set_exception(self.fault)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.threads.shutdown(wait)


def test_a_remote_worker_without_heartbeats_is_left_and_its_group_requeued(quick, quick_run, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduling, "HEARTBEAT_TIMEOUT", 1.0)
    said: list[str] = []
    steps: list[int] = []
    watch = Callbacks(say=said.append, step=lambda group, step: steps.append(step))
    with Unreliable(None, 1, begun=True) as executor:
        out = run(quick, "cpu", executor=executor, out=tmp_path / "r", callbacks=watch)
    assert ["its worker hangs (no heartbeat for 1 s)" in sentence for sentence in said] == [True]
    assert 2 in steps
    assert sums(out) == sums(quick_run)


def test_a_group_whose_workers_hang_again_and_again_has_failed(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduling, "HEARTBEAT_TIMEOUT", 0.1)
    with Unreliable(None, 6, begun=True) as executor:
        out = run(quick, "cpu", executor=executor, out=tmp_path / "r")
    assert statuses(out) == ["failed", "failed"]
    assert all("hang" in group["error"] for group in groups_in(out))


@pytest.mark.parametrize(("begun", "ends"), [(True, ["failed", "finished"]), (False, ["finished", "finished"])])
def test_where_an_executor_breaks_what_it_had_not_begun_is_trained_here(quick, tmp_path, begun, ends):
    with Unreliable(BrokenExecutor(), 1, begun=begun) as executor:
        out = run(quick, "cpu", executor=executor, out=tmp_path / "r")
    assert statuses(out) == ends


def test_an_executor_that_drops_its_groups_is_one_sentence_and_the_rest_can_go_on(quick, quick_run, tmp_path):
    class Dropping(Unreliable):
        def submit(self, function, /, *args, **kwargs):
            future = super().submit(function, *args, **kwargs)
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with (
        Dropping(None, 9, begun=False) as executor,
        pytest.raises(InputError, match=r"has dropped group .*is its scheduler still there"),
    ):
        run(quick, "cpu", executor=executor, out=tmp_path / "r")
    assert sums(run(quick, "cpu", out=tmp_path / "r")) == sums(quick_run)


def test_workers_that_cannot_begin_fail_their_groups_instead_of_being_started_for_ever(quick, tmp_path):
    class Stillborn(WorkerPool):
        sharing = 1

        def __init__(self) -> None:
            self.rebuilt = 0

        def submit(self, function, /, *args, **kwargs):
            raise BrokenExecutor

        def rebuild(self):
            self.rebuilt += 1

        def shutdown(self, wait=True, *, cancel_futures=False):
            pass

    pool = Stillborn()
    out = run(quick, "cpu", executor=pool, out=tmp_path / "r")
    assert statuses(out) == ["failed", "failed"]
    assert scheduling.MAX_ATTEMPTS <= pool.rebuilt <= 2 * scheduling.MAX_ATTEMPTS


def test_a_worker_without_the_disk_sends_its_files_and_reports_its_heartbeats(quick, quick_run, tmp_path):
    group = groups_of([each for each in runs_of(quick) if each.arm == "clip"], lambda run: 32)[0]
    heartbeats: list[str] = []
    task = Task(quick, group, tmp_path / "not-here", torch.device("cpu"), save_params=True, token="shared")
    outcome = train_remote(task, heartbeats.append)
    assert not (tmp_path / "not-here").exists()
    name = f"groups/{group.id}.parquet"
    assert set(outcome.files) == {name, f"params/{group.id}.safetensors"}
    assert outcome.files[name] == (quick_run / name).read_bytes()
    assert heartbeats[0].split()[:2] == ["0", "0"]


def test_what_workers_send_is_written_as_if_they_had_done_it(quick, quick_run, tmp_path):
    class Heterogeneity(Unreliable):
        def submit(self, function, /, task):
            from dataclasses import replace

            return self.threads.submit(function, replace(task, where=tmp_path / "elsewhere"))

    with Heterogeneity(None, 0, begun=False) as executor:
        out = run(quick, "cpu", executor=executor, out=tmp_path / "r", save_params=True)
    assert sums(out) == sums(quick_run)
    assert len(list((out / "params").iterdir())) == 2


def test_durations_and_ages_stay_positive_when_the_clock_goes_backwards(quick, tmp_path, monkeypatch):
    import time

    moments = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    out = run(quick, "cpu", out=tmp_path / "r")
    assert all(group["seconds"] >= 0 for group in groups_in(out))
    (out / ".owner.json").write_text(json.dumps({"process": 1, "host": "here", "since": 2e9}))
    from stability.execute.lock import _describe_owner

    assert _describe_owner(out / ".owner.json") == "process 1 on here, for 0 minutes"


def test_what_a_killed_run_leaves_is_dropped_and_what_is_not_ours_is_kept(quick, quick_run, tmp_path):
    import shutil

    out = Path(shutil.copytree(quick_run, tmp_path / "r"))
    left = [".manifest.json.7.ab.tmp", "report/.index.html.7.ab.tmp", "groups/.shared-ab", "groups/.g.7.ab.arrows"]
    kept = [".lock", ".gitignore", "report/.htaccess"]
    (out / "report").mkdir()
    for name in (*left, *kept):
        (out / name).touch()
    run(quick, "cpu", out=out)
    assert [name for name in left if (out / name).exists()] == []
    assert [name for name in kept if not (out / name).exists()] == []


def test_a_leftover_that_its_dying_worker_takes_away_meanwhile_is_no_error(tmp_path, monkeypatch):
    from stability.store import remove_stale

    (tmp_path / "groups").mkdir()
    (tmp_path / "groups/.g.7.ab.arrows").touch()
    unlink = Path.unlink

    def raced(path: Path, missing_ok: bool = False) -> None:
        unlink(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", raced)
    remove_stale(tmp_path)
    assert list((tmp_path / "groups").iterdir()) == []


def test_asking_whether_a_directory_can_be_written_leaves_the_files_of_its_owner_alone(tmp_path, monkeypatch):
    from stability import store

    monkeypatch.setattr(store, "write_atomically", lambda path, content: pytest.fail("a file with a name"))
    store.make_writable(tmp_path / "r")
    assert [path.name for path in (tmp_path / "r").rglob("*")] == ["groups"]


def test_a_worker_aborts_an_orphaned_group(quick, tmp_path, monkeypatch):
    from stability.execute import worker

    monkeypatch.setattr(worker, "HEARTBEAT", 0.0)
    (group, *_) = groups_of(runs_of(quick), lambda run: 32)
    (tmp_path / "groups").mkdir()
    token = tmp_path / "groups/.shared-7"
    task = Task(quick, group, tmp_path, torch.device("cpu"), token=token.name)
    steps: list[int] = []
    token.touch()
    progress = worker._abort_if_orphaned(task, steps.append)
    progress(1)
    token.unlink()
    with pytest.raises(RuntimeError, match="orphaned, the run that submitted it has ended"):
        progress(2)
    assert steps == [1]
    token.touch()
    assert train_remote(task).failure == ""


def test_a_heartbeat_that_cannot_be_written_leaves_the_disk_to_the_training(quick):
    from stability.execute.worker import _heartbeats

    def full(sign: str) -> None:
        raise OSError(28, "No space left on device")

    with _heartbeats(full) as progress:
        progress(1)
