"""Two runs in one directory: the second is refused in words; a killed owner holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from stability.execute import run
from stability.execute.lock import run_lock
from stability.registry import InputError

HOLD = """
import sys, time
from pathlib import Path
from stability.execute.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_and_told_who_holds_the_directory(owner, tmp_path, tiny):
    with pytest.raises(InputError) as error:
        run(tiny, "cpu", out=tmp_path)
    assert f"process {owner.pid} on " in str(error.value)
    assert "for 0 minutes" in str(error.value)
    assert not (tmp_path / "manifest.json").exists()


def test_a_killed_owner_holds_nothing(owner, tmp_path):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with run_lock(tmp_path):
        assert f'"process": {os.getpid()}' in (tmp_path / ".owner.json").read_text()


def test_an_owner_that_has_not_said_who_it_is_is_still_an_owner(owner, tmp_path):
    (tmp_path / ".owner.json").write_text("{")
    with pytest.raises(InputError, match="just started"), run_lock(tmp_path):
        pass


def test_the_directory_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), run_lock(tmp_path):
        raise RuntimeError
    start = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - start < 1


def test_nobody_owns_the_directory_after_an_error(tmp_path):
    def torn() -> None:
        with run_lock(tmp_path):
            assert (tmp_path / ".owner.json").exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        torn()
    assert not (tmp_path / ".owner.json").exists()
