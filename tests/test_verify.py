"""`stability verify`: what was stored comes out again, and what was tampered with is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_disk_faults import QUICK

from stability import cli
from stability.execute import run
from stability.execute.tolerances import ERRORS, SHARE, pair_of
from stability.execute.verifying import _difference, timed, verify
from stability.probes import probe
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
    monkeypatch.setattr(sys, "argv", ["stability", "verify", str(copied), "--groups", "1"])
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
    found = verify(copied, 0)
    assert ["missing or damaged" in each for each in found.differences] == [True]
    assert found.sentence == "1 of 2 finished groups missing or damaged; none trained again"


def test_every_file_is_compared_before_anything_is_trained(copied, monkeypatch, capsys):
    """A group of the search that is damaged leaves the runs of the test unknown: that is not what is said."""
    manifest = json.loads((copied / "manifest.json").read_text())
    first, last = (copied / "groups" / f"{entry['id']}.parquet" for entry in manifest["groups"])
    last.write_bytes(last.read_bytes()[:200])
    # As replications lie: each a run directory inside that of its study.
    again = copied / "replications" / "again"
    shutil.copytree(copied / "groups", again / "groups")
    shutil.copy(copied / "manifest.json", again)
    (again / "groups" / first.name).unlink()
    monkeypatch.setattr(sys, "argv", ["stability", "verify", str(copied), "--groups", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 1
    found = " ".join(printed.err.split())
    for path in (last, again / "groups" / last.name, again / "groups" / first.name):
        assert f"{path.name}: missing or damaged; `stability run` will compute it again" in found
    assert found.count("missing or damaged") == 3
    assert "trained again, compared" not in printed.out


def test_with_other_versions_means_are_compared_within_the_tolerance(copied):
    versions = json.loads((copied / "manifest.json").read_text())["versions"] | {"torch": "1.0"}
    edit(copied, versions=versions)
    tamper(copied, "loss", 1 + SHARE / 2)
    assert "within tolerance (run with torch 1.0" in verify(copied, 1).sentence
    assert verify(copied, 1).differences == ()
    tamper(copied, "loss", 1.2)
    assert ["loss at step 0 is" in each and "early" in each for each in verify(copied, 1).differences] == [True]


NO_VECTORS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}


@pytest.mark.slow
def test_kernels_that_round_otherwise_differ_in_bits_and_agree_within_the_tolerance(copied):
    command = [sys.executable, "-m", "stability", "verify", str(copied), "--groups", "0"]
    how = {"env": {**os.environ, **NO_VECTORS}, "capture_output": True, "text": True, "check": False}
    by_bits = subprocess.run(command, **how)
    if by_bits.returncode == 0:
        pytest.skip("this processor has no vector instructions to do without")
    assert "2 of 2 finished groups trained again, compared bit for bit" in by_bits.stdout
    edit(copied, versions=json.loads((copied / "manifest.json").read_text())["versions"] | {"torch": "1.0"})
    within = subprocess.run(command, **how)
    assert within.returncode == 0, within.stderr
    assert "all agree" in within.stdout


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"run": ["a", "a"], "step": [0, 1], **columns})


EVEN, LATER = [2.0, 2.0, 2.0, 2.0], [1.0, 3.0, 5.0, 9.0]


def table(first: list[float], last: list[float]) -> pd.DataFrame:
    """Return the loss of runs a, b, c and d at the first step and at one long after."""
    rows = [
        (run, step, value) for step, each in ((0, first), (500, last)) for run, value in zip("abcd", each, strict=True)
    ]
    return pd.DataFrame(rows, columns=["run", "step", "loss"])


def test_means_may_differ_by_a_share_and_by_standard_errors_of_their_difference():
    pair = pair_of("loss", table(EVEN, LATER), table(EVEN, [0.0, 3.0, 5.0, 13.0]))
    assert list(pair.early.median(axis=1)) == [0.0]
    assert list(pair.off) == [0.0, 0.75]
    assert pair.size == 4.5
    assert pair.error == pytest.approx(np.std([-1, 0, 0, 4], ddof=1) / 2)
    assert pair.allowed == pytest.approx(SHARE * 4.5 + ERRORS * pair.error)


def test_chaos_that_scatters_runs_agrees_and_a_shift_of_them_all_does_not():
    assert _difference(table(EVEN, LATER), table(EVEN, [3.0, 1.0, 9.0, 6.0]), False) == ""
    said = _difference(table(EVEN, LATER), table(EVEN, [1.1, 3.1, 5.1, 9.11]), False)
    assert said.startswith("the mean of loss at step 500 is 4.6025, stored is 4.5: more than 0.019 off")


def test_early_in_training_a_typical_run_must_agree_and_one_may_tip_over():
    said = "loss at step 0 is 0.1 off in a typical run: more than 0.0045, so early in training"
    assert _difference(table(EVEN, LATER), table([2.0, 2.1, 1.9, 2.1], LATER), False) == said
    assert _difference(table(EVEN, LATER), table([2.0, 2.1, 2.0, 2.0], LATER), False) == ""


def tables(run_dir: Path) -> list[pd.DataFrame]:
    groups = json.loads((run_dir / "manifest.json").read_text())["groups"]
    return [pd.read_parquet(run_dir / "groups" / f"{group['id']}.parquet") for group in groups]


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("lr = [0.01]", "lr = [0.0102]"),
        ("seeds = 3", "seeds = 3\nfirst_seed = 7"),
        ("warmup = 2", "warmup = 2\nbetas = [0.9, 0.99]"),
    ],
)
def test_training_that_is_another_is_found(made, tmp_path, was, now):
    assert was in QUICK
    other = run(parse_study(QUICK.replace(was, now), "quick.toml", "quick"), "cpu", out=tmp_path / "r")
    for stored, again in zip(tables(made), tables(other), strict=True):
        found = _difference(stored[again.columns], again.assign(run=stored["run"]), False)
        assert found.endswith("so early in training")


def test_one_run_alone_has_no_error_to_tell_chaos_by():
    stored = frame(loss=np.float32([1, 2]))
    pair = pair_of("loss", stored, stored)
    assert (pair.error, pair.allowed) == (0.0, 2 * SHARE)


def test_a_run_that_is_a_number_on_one_machine_alone_leaves_the_comparison_to_the_others():
    stored = table([2.0, 2.0, 2.0, 2.0], [1.0, 3.0, 5.0, 9.0])
    assert _difference(stored, table([2.0, 2.0, 2.0, 2.0], [1.0, 3.0, 5.0, np.nan]), False) == ""
    assert "the mean of loss at step 500 is nan" in _difference(
        stored, table([2.0, 2.0, 2.0, 2.0], [np.nan] * 4), False
    )


def test_an_error_that_is_all_rounding_is_held_against_what_it_is_the_error_of():
    stored = frame(
        hessian_max_eigenvalue=np.float32([50, 60]), hessian_max_eigenvalue_residual=np.float32([1e-5, 2e-5])
    )
    again = stored.assign(hessian_max_eigenvalue_residual=np.float32([5e-5, 1e-6]))
    assert pair_of("hessian_max_eigenvalue_residual", stored, again).size == 60.0
    assert _difference(stored, again, False) == ""
    assert "hessian_max_eigenvalue_residual" in _difference(stored, again, True)
    worse = stored.assign(hessian_max_eigenvalue_residual=np.float32([1, 1]))
    assert "hessian_max_eigenvalue_residual at step 0 is 1 off in a typical run" in _difference(stored, worse, False)


def test_every_error_is_that_of_a_column_of_the_same_probe():
    of = {
        name: {each.name: each.error_of for each in variant.traits.measures if each.error_of}
        for name, variant in probe.items()
    }
    assert len(of["curvature"]) == 4
    for name, errors in of.items():
        assert set(errors.values()) <= {each.name for each in probe[name].traits.measures if each.stored}


@pytest.mark.parametrize("exact", [True, False])
def test_numbers_that_have_become_missing_and_other_shapes_are_differences(exact):
    stored = frame(loss=np.float32([1, 2]))
    assert _difference(stored, stored, exact) == ""
    assert "loss" in _difference(stored, frame(loss=np.float32([1, np.nan])), exact)
    assert "other columns" in _difference(stored, frame(lost=np.float32([1, 2])), exact)
    assert "other columns" in _difference(stored, stored.iloc[:1], exact)


def test_time_is_not_compared():
    names = sorted(timed())
    assert names
    stored, again = frame(**{names[0]: np.float32([1, 2])}), frame(**{names[0]: np.float32([3, 4])})
    assert _difference(stored, again, True) == ""


def test_what_cannot_be_verified_is_one_sentence(copied):
    with pytest.raises(InputError, match="--groups: got -1"):
        verify(copied, -1)
    edit(copied, groups=[])
    with pytest.raises(InputError, match="holds no finished group"):
        verify(copied)
