"""`stability verify`: what was stored comes out again, and what was tampered with is found."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_disk_faults import QUICK

from stability import cli
from stability.execute import run
from stability.execute.verifying import TOLERANCE, _difference, _timed, verify
from stability.registry import InputError
from stability.store import checksum
from stability.study import parse_study


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    text = QUICK + "\n[probes.cost]\n"
    return run(parse_study(text, "quick.toml", "quick"), "cpu", out=tmp_path_factory.mktemp("verify") / "r")


@pytest.fixture
def copied(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "r"))


def edit(run_dir: Path, **change: object) -> None:
    path = run_dir / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def tamper(run_dir: Path, name: str, factor: float) -> Path:
    """Change one column of one group, and its checksum, as someone would who hides it."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    entry = manifest["groups"][0]
    path = run_dir / "groups" / f"{entry['id']}.parquet"
    frame = pd.read_parquet(path)
    frame[name] = (frame[name] * np.float32(factor)).astype("float32")
    frame.to_parquet(path, index=False)
    entry["checksum"] = checksum(path)
    edit(run_dir, groups=manifest["groups"])
    return path


def test_a_sound_directory_is_verified_bit_for_bit_and_not_touched(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    told: list[tuple[int, int]] = []
    found = verify(made, 0, lambda done, total: told.append((done, total)))
    assert found.differences == ()
    assert found.sentence == "2 of 2 finished groups trained again, compared bit for bit: all agree"
    assert told == [(0, 2), (1, 2)]
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_a_value_off_by_one_bit_is_found_and_the_exit_code_is_1(copied, monkeypatch, capsys):
    tamper(copied, "loss", 1.0000001)
    monkeypatch.setattr(sys, "argv", ["stability", "verify", str(copied), "--sample", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert "loss of run" in printed.err
    assert "stored is" in printed.err
    assert "1 of 2 finished groups trained again, compared bit for bit: 1 differ" in printed.out


def test_a_damaged_file_is_a_difference(copied):
    path = next((copied / "groups").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    assert ["missing or damaged" in each for each in verify(copied, 0).differences] == [True]


def test_with_other_versions_means_are_compared_within_the_tolerance(copied):
    versions = json.loads((copied / "manifest.json").read_text())["versions"] | {"torch": "1.0"}
    edit(copied, versions=versions)
    tamper(copied, "loss", 1 + TOLERANCE / 2)
    assert "within tolerance (run with torch 1.0" in verify(copied, 1).sentence
    assert verify(copied, 1).differences == ()
    tamper(copied, "loss", 1 + 3 * TOLERANCE)
    assert ["the mean of loss at step" in each for each in verify(copied, 1).differences] == [True]


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"run": ["a", "a"], "step": [0, 1], **columns})


@pytest.mark.parametrize("exact", [True, False])
def test_numbers_that_have_become_missing_and_other_shapes_are_differences(exact):
    stored = frame(loss=np.float32([1, 2]))
    assert _difference(stored, stored, exact) == ""
    assert "loss" in _difference(stored, frame(loss=np.float32([1, np.nan])), exact)
    assert "other columns" in _difference(stored, frame(lost=np.float32([1, 2])), exact)
    assert "other columns" in _difference(stored, stored.iloc[:1], exact)


def test_time_is_not_compared():
    names = sorted(_timed())
    assert names
    stored, again = frame(**{names[0]: np.float32([1, 2])}), frame(**{names[0]: np.float32([3, 4])})
    assert _difference(stored, again, True) == ""


def test_what_cannot_be_verified_is_one_sentence(copied):
    with pytest.raises(InputError, match="--sample: got -1"):
        verify(copied, -1)
    edit(copied, groups=[])
    with pytest.raises(InputError, match="holds no finished group"):
        verify(copied)
