"""Runs that are interrupted, killed, damaged, changed or broken: nothing is lost, and no number changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch

from stability import execute
from stability.execute import Callbacks, executor_of, planning, run
from stability.execute.manifest import open_run
from stability.execute.planning import plan_groups, worker_count
from stability.execute.pool import WorkerPool
from stability.grid import runs_of
from stability.losses import loss
from stability.registry import InputError, Variant
from stability.store import checksum, write_manifest
from stability.study import parse_study


def group_sums(run_dir: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted((run_dir / "groups").iterdir())}


def statuses(run_dir: Path) -> list[str]:
    return [group["status"] for group in json.loads((run_dir / "manifest.json").read_text())["groups"]]


def test_a_finished_study_is_not_run_again_and_its_manifest_keeps_what_it_said(brief, brief_run, tmp_path):
    brief_run = shutil.copytree(brief_run, tmp_path / "r")
    manifest = json.loads((brief_run / "manifest.json").read_text())
    manifest["started"] = manifest["groups"][0]["git_commit"] = "long ago"
    (brief_run / "manifest.json").write_text(json.dumps(manifest))
    before = {path: path.stat().st_mtime_ns for path in (brief_run / "groups").iterdir()}
    trained = []
    run(brief, "cpu", out=brief_run, callbacks=Callbacks(done=lambda group, seconds: trained.append(group)))
    assert trained == []
    assert json.loads((brief_run / "manifest.json").read_text()) == manifest
    assert {path: path.stat().st_mtime_ns for path in (brief_run / "groups").iterdir()} == before


def test_worker_processes_give_the_same_bytes_as_this_process(tiny, tiny_run, tmp_path):
    with executor_of("processes:2") as pool:
        run(tiny, "cpu", executor=pool, out=tmp_path / "r")
    assert group_sums(tmp_path / "r") == group_sums(tiny_run)


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(brief, brief_text, brief_run, tmp_path, delay):
    (tmp_path / "brief.toml").write_text(brief_text)
    script = "import sys; from stability.execute import run; run(sys.argv[1], 'cpu', out=sys.argv[2])"
    command = [sys.executable, "-c", script, str(tmp_path / "brief.toml"), str(tmp_path / "r")]
    process = subprocess.Popen(command, cwd=tmp_path)
    while process.poll() is None and not list((tmp_path / "r" / "groups").glob("*.parquet")):
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "planned" in statuses(tmp_path / "r"), "killed too late to test anything"
    run(brief, "cpu", out=tmp_path / "r")
    assert group_sums(tmp_path / "r") == group_sums(brief_run)
    assert set(statuses(tmp_path / "r")) == {"finished"}


def test_a_damaged_group_file_is_named_and_computed_again(brief, brief_run, tmp_path):
    copied = tmp_path / "r"
    (copied / "groups").mkdir(parents=True)
    for path in [brief_run / "manifest.json", *(brief_run / "groups").iterdir()]:
        (copied / path.relative_to(brief_run)).write_bytes(path.read_bytes())
    victim = next((copied / "groups").iterdir())
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    harm = bytes(content)
    said, trained = [], []
    run(
        brief,
        "cpu",
        out=copied,
        callbacks=Callbacks(say=said.append, done=lambda group, seconds: trained.append(group.id)),
    )
    assert [victim.name in sentence for sentence in said] == [True]
    assert trained == [victim.stem]
    assert (copied / "damaged" / victim.name).read_bytes() == harm
    assert "kept as" in said[0]
    assert group_sums(copied) == group_sums(brief_run)


def test_new_seeds_train_only_the_new_runs_and_removed_cells_are_ignored_aloud(brief_text, brief_run, tmp_path):
    out = shutil.copytree(brief_run, tmp_path / "r")
    kept = group_sums(out)
    more = parse_study(brief_text.replace("seeds = 3", "seeds = 4"), "brief.toml", "brief")
    trained = []
    run(more, "cpu", out=out, callbacks=Callbacks(done=lambda group, seconds: trained.extend(group.runs)))
    assert {each.seed for each in trained} == {3}
    assert kept.items() <= group_sums(out).items()
    said = []
    run(
        parse_study(brief_text.replace("seeds = 3", "seeds = 2"), "brief.toml", "brief"),
        "cpu",
        out=out,
        callbacks=Callbacks(say=said.append),
    )
    assert said == [f"{out}: 16 stored runs are not in the study any more and are ignored"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"study": "other"}, "holds study 'other', not 'brief'; give another --out"),
        ({"scale": "full"}, "holds scale 'full', not 'small'; give another --out"),
        ({"device": {"type": "cuda", "model": "H"}}, r"was run on cuda \(H\), this is cpu"),
        ({"versions": {"torch": "1.0"}}, "was run with python None, this is 3"),
        ({"schema": 2}, "written in schema 2; this version reads schema 1"),
    ],
)
def test_a_directory_of_something_else_is_refused(brief, brief_run, tmp_path, change, sentence):
    manifest = json.loads((brief_run / "manifest.json").read_text()) | change
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=sentence):
        run(brief, "cpu", out=tmp_path)


def test_a_group_that_raises_leaves_the_others_going_and_is_tried_again(brief, brief_run, tmp_path, monkeypatch):
    sound = loss["siglip"]

    def broken(image, text, *, log_scale, bias):
        raise RuntimeError("a loss that fails")

    # Without the kernel that has the gradient by hand, which would be trained with instead.
    traits = replace(sound.traits, value_and_grad=None)
    failing = Variant("loss", "siglip", broken, sound.options, traits)
    monkeypatch.setattr(execute, "open_run", with_sound(execute.open_run, sound, failing, monkeypatch))
    said = []
    out = run(brief, "cpu", out=tmp_path / "r", callbacks=Callbacks(say=said.append))
    assert sorted(statuses(out)) == ["failed", "failed", "finished", "finished"]
    assert all(sentence.endswith("RuntimeError: a loss that fails") for sentence in said)
    errors = [g["error"] for g in json.loads((out / "manifest.json").read_text())["groups"] if g["status"] == "failed"]
    assert all("Traceback" in error for error in errors)
    monkeypatch.undo()
    run(brief, "cpu", out=out)
    assert group_sums(out) == group_sums(brief_run)


def with_sound(open_run, sound, failing, monkeypatch):
    """Planning measures the loss, so it must not be broken yet."""

    def opened(*arguments):
        monkeypatch.setitem(loss._variants, "siglip", sound)
        result = open_run(*arguments)
        monkeypatch.setitem(loss._variants, "siglip", failing)
        return result

    return opened


def all_gone(processes: list[int], seconds: float = 10.0) -> bool:
    """Tell whether all of *processes* end in time."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{process}").exists() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def test_workers_end_even_frozen_when_the_process_that_started_them_is_killed(tmp_path, tiny_text):
    (tmp_path / "tiny.toml").write_text(tiny_text.replace("steps = 8\n", "steps = 100000\n"))
    command = [sys.executable, "-m", "stability.cli", "run", "tiny.toml", "--on", "processes:2", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    groups = tmp_path / "runs/tiny-small/groups"
    while process.poll() is None and len(list(groups.glob(".*.arrows"))) < 2:
        time.sleep(0.05)
    workers = [int(path.name.split(".")[2]) for path in groups.glob(".*.arrows")]
    assert len(workers) == 2
    if sys.platform == "linux":  # Elsewhere a frozen worker ends once it is let go on.
        os.kill(workers[0], signal.SIGSTOP)
    process.kill()
    process.wait()
    ended = all_gone(workers)
    if not ended:
        os.kill(workers[0], signal.SIGKILL)
    assert ended


def test_workers_whose_parent_is_killed_while_they_start_end_too():
    script = (
        "import os, time\n"
        "from stability.execute.pool import WorkerPool\n"
        "pool = WorkerPool(2)\n"
        "pool.submit(time.sleep, 60), pool.submit(time.sleep, 60)\n"
        "print(*pool._pool._processes, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers = [int(word) for word in killed.stdout.split()]
    assert len(workers) == 2
    assert all_gone(workers, 60.0)


def test_workers_outlive_the_thread_that_gave_them_their_work():
    with WorkerPool(1) as pool:
        workers: list[int] = []
        thread = Thread(target=lambda: workers.append(pool.submit(os.getpid).result(60)))
        thread.start()
        thread.join()
        time.sleep(0.1)  # A worker that ended with the thread would be gone by then.
        assert [pool.submit(os.getpid).result(60)] == workers


def test_groups_once_planned_keep_their_runs_when_a_run_goes_on(brief, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "MAX_REPLICAS", {"cpu": 4, "cuda": 4})
    device = torch.device("cpu")
    where = tmp_path / "r"
    manifest, groups = open_run(brief, where, device, print)
    manifest["groups"][0]["status"] = "failed"
    write_manifest(where, manifest)
    monkeypatch.setattr(planning, "MAX_REPLICAS", {"cpu": 2, "cuda": 2})
    again, kept = open_run(brief, where, device, print)
    assert {group.id for group in kept} == {group.id for group in groups}
    assert {entry["id"] for entry in again["groups"]} == {entry["id"] for entry in manifest["groups"]}


@pytest.mark.parametrize(
    "on", ["", "process:2", "processes:", "processes:0", "processes:-1", "local:2", "processes:²", "dask:", "dask"]
)
def test_an_executor_that_does_not_exist_is_one_sentence(on):
    with (
        pytest.raises(InputError, match="allowed: local, or processes:N with N at least 1, or dask:tcp://HOST:PORT"),
        executor_of(on),
    ):
        pass


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        execute.pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="this machine has no CUDA device"):
            execute.pick_device("cuda")


def test_groups_narrow_when_memory_is_short_and_never_to_one(brief, monkeypatch):
    monkeypatch.setattr(planning, "device_memory", lambda device: 1)
    plan = plan_groups(brief, torch.device("cpu"), runs_of(brief))
    assert {len(group.runs) for group in plan.groups} == {2}
    assert worker_count(torch.device("cuda")) == 1


def test_the_estimate_counts_what_the_study_has(brief):
    cost = execute.estimate(brief, torch.device("cpu"), steps=1)
    assert (cost.runs, cost.groups, cost.steps) == (24, 4, 8)
    assert cost.seconds > 0
    assert cost.bytes > 0
