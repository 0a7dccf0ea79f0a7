"""Disks that are full or read-only: one sentence, nothing lost, and the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stability import cli
from stability.execute import Callbacks, run
from stability.registry import InputError
from stability.store import checksum, disk_fault, disk_faults_named, group_path, write_atomically
from stability.study import load_study, parse_study

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
seeds = 3

[probes.retrieval]
every = 3
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB of its own."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system, and here not even root" if not os.getuid() else "not root")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def sums(run_dir: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted((run_dir / "groups").iterdir())}


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(mounted, tmp_path):
    study = parse_study(QUICK, "quick.toml", "quick")
    whole = run(study, "cpu", out=tmp_path / "whole")
    out = mounted / "r"
    filler = mounted / "filler"

    def fill(group, seconds) -> None:
        free = os.statvfs(mounted)
        filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize))

    with pytest.raises(InputError, match="cannot be written \\(no space left on device\\); finished groups are kept"):
        run(study, "cpu", out=out, callbacks=Callbacks(done=fill))
    assert [path.name for path in out.rglob("*.tmp")] == []
    filler.unlink()
    trained = []
    run(study, "cpu", out=out, callbacks=Callbacks(done=lambda group, seconds: trained.append(group.id)))
    assert len(trained) == 1
    assert sums(out) == sums(whole)


def test_a_disk_that_is_full_for_the_manifest_alone_keeps_every_group_that_it_calls_finished(
    mounted, tmp_path, monkeypatch, capsys
):
    """Words in the study make its manifest larger than a group and all that its training leaves for a while."""
    words = "".join(f"# {'long words ' * 10}\n" for _ in range(700))
    (tmp_path / "quick.toml").write_text(QUICK + words)
    study = load_study(tmp_path / "quick.toml")
    whole = run(study, "cpu", out=tmp_path / "whole")
    room = max(path.stat().st_size for path in (whole / "groups").iterdir()) * 4
    assert room < (whole / "manifest.json").stat().st_size
    out, filler = mounted / "r", mounted / "filler"

    def fill(group, seconds) -> None:
        free = os.statvfs(mounted)
        filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - room))

    with pytest.raises(InputError, match="cannot be written \\(no space left on device\\); finished groups are kept"):
        run(study, "cpu", out=out, callbacks=Callbacks(done=fill))
    noted = (out / "manifest.json").read_bytes()
    statuses = [entry["status"] for entry in json.loads(noted)["groups"]]
    assert statuses == ["finished", "planned"]
    assert sums(out) == sums(whole), "the second group was written, so that it was the manifest that failed"
    first = group_path(out, json.loads(noted)["groups"][0]["id"])
    trained = first.stat().st_mtime_ns

    words = ["run", str(tmp_path / "quick.toml"), "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["stability", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"stability: {out}: cannot be written (no space left on device); finished groups are kept, and the same "
        "command goes on from there\n"
    )
    assert (out / "manifest.json").read_bytes() == noted
    assert list(out.rglob("*.tmp")) == []

    filler.unlink()
    run(study, "cpu", out=out)
    assert first.stat().st_mtime_ns == trained
    assert sums(out) == sums(whole)


def test_a_read_only_disk_is_one_sentence_for_every_verb_that_writes(mounted, monkeypatch, capsys):
    (mounted / "quick.toml").write_text(QUICK)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    monkeypatch.chdir(mounted)
    monkeypatch.setattr(sys, "argv", ["stability", "run", "quick.toml", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err == (
        "stability: --out runs/quick-small: cannot be written (read-only file system); name a directory that can\n"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_every_fault_of_a_disk_is_named_also_in_arrows_words(number):
    plain = OSError(number, os.strerror(number), "runs/a/groups/x")
    arrow = OSError(f"Error writing bytes to file. Detail: [errno {number}] {os.strerror(number)}")
    assert os.strerror(number).lower() in disk_fault(plain, Path("runs/a"))
    assert disk_fault(arrow, Path("runs/a")).startswith("runs/a: cannot be written")


def test_another_error_of_the_system_is_not_taken_for_one_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError), disk_faults_named(tmp_path):
        (tmp_path / "gone").read_text()


def test_a_write_that_fails_leaves_no_half_file_in_the_way(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "folder", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "empty", "gone"])
def test_a_group_file_harmed_in_any_way_is_put_aside_and_computed_again(tmp_path, harm):
    import pandas as pd

    study = parse_study(QUICK.replace('"clip", "siglip"', '"clip"'), "quick.toml", "quick")
    out = run(study, "cpu", out=tmp_path / "r")
    before = sums(out)
    (name,) = before
    victim = group_path(out, Path(name).stem)
    content = victim.read_bytes()
    harmed = {
        "truncated": content[: len(content) // 2],
        "flipped": content[:100] + bytes([content[100] ^ 1]) + content[101:],
        "empty": b"",
    }
    victim.unlink()
    if harm in harmed:
        victim.write_bytes(harmed[harm])
    said: list[str] = []
    run(study, "cpu", out=out, callbacks=Callbacks(say=said.append))
    assert ["missing" in sentence if harm == "gone" else "damaged" in sentence for sentence in said] == [True]
    assert sums(out) == before
    assert (out / "damaged").exists() == (harm != "gone")
    assert len(pd.read_parquet(out / "groups")) == 3 * 7
