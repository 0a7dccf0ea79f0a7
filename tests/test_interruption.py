"""An interruption in whatever phase, of real processes: 130 within seconds, one sentence, nothing left half done."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stability.cli.interruption import interruptions

PROGRAM = [sys.executable, "-m", "stability"]

SECONDS = 10.0
"""In which a process must have ended on a busy machine; on a quiet one it takes about one."""

CONNECT_TIMEOUT = 120.0
"""Seconds in which a phase must be reached."""


@dataclass(frozen=True)
class Ended:
    """How a process ended after its interruption, and how long that took."""

    code: int
    err: str
    seconds: float


def interrupted(
    words: list[str],
    folder: Path,
    ready: Callable[[int], object],
    number: signal.Signals = signal.SIGINT,
    cores: int = 0,
) -> Ended:
    """Start the program, interrupt its whole group once it is *ready*, as a terminal does, and return how it ended.

    *ready* is asked again and again, with the process id.
    """
    process = subprocess.Popen(
        [*PROGRAM, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])) if cores else None,
    )
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while process.poll() is None and not ready(process.pid):
        assert time.monotonic() < deadline, "the phase was never reached"
        time.sleep(0.01)
    start = time.monotonic()
    if process.poll() is None:
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    return Ended(process.returncode, err, time.monotonic() - start)


def told(ended: Ended, words: list[str]) -> None:
    """Assert that a process has ended as one should that is interrupted."""
    assert ended.code == 130, ended
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("stability: interrupted; ")
    assert line.endswith(f"and the same command goes on from there: stability {' '.join(words)}")
    assert ended.seconds < SECONDS


def hidden(folder: Path) -> list[Path]:
    """Return what is half written below a folder."""
    return [path for path in folder.rglob(".*.*") if path.suffix in (".tmp", ".arrows") or ".shared" in path.name]


SEARCH = "\n[tune]\nlr = [0.003, 0.03]\nseeds = 2\nsteps = 50000\n"


def prolonged(text: str, phase: str) -> str:
    """Return a study in which *phase* is where the time goes, for minutes."""
    if phase == "tuning":
        return text + SEARCH
    if phase == "training":
        return text.replace("steps = 8\n", "steps = 50000\n")
    return text.replace("batches = 2\nsteps = 4\n", "batches = 200\nsteps = 400\n")


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 0], ids=["here", "workers"])
@pytest.mark.parametrize("phase", ["tuning", "training", "probing"])
def test_a_run_interrupted_while_it_computes_says_how_it_goes_on(tmp_path, tiny_text, phase, cores):
    text = prolonged(tiny_text, phase)
    assert text != tiny_text
    (tmp_path / "tiny.toml").write_text(text)
    groups = tmp_path / "out/groups"
    words = ["run", "tiny.toml", "--device", "cpu", "--out", "out"]
    words += [] if cores else ["--on", "processes:2"]
    told(interrupted(words, tmp_path, lambda process: list(groups.glob(".*.arrows")), cores=cores), words)
    # Workers are killed, not asked: what they leave is dropped by the next run.
    assert cores == 0 or hidden(tmp_path) == []
    assert not (tmp_path / "out/.owner.json").exists()


@pytest.fixture(scope="module")
def reported(tiny_run, tmp_path_factory) -> Path:
    """A finished run with its report, in a folder of its own."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(tiny_run, folder / "r")
    subprocess.run([*PROGRAM, "report", "r"], cwd=folder, check=True, capture_output=True)
    return folder


def computed(process: int) -> float:
    """Return the seconds that a process has computed: how far it is, however busy the machine."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")  # utime: proc(5), counted from the state


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "product"),
    [
        (["report", "r"], "r/report"),
        (["publish", "r"], "reports"),
        (["export", "r", "--format", "json"], "r/export"),
        (["verify", "r", "--groups", "0"], "r/groups"),
    ],
    ids=["report", "publish", "export", "verify"],
)
def test_a_verb_interrupted_at_any_time_leaves_nothing_half_done(reported, tmp_path, words, product):
    home = shutil.copytree(reported, tmp_path / "home")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([*PROGRAM, *words], cwd=home, check=True, capture_output=True)
    takes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    whole = bytes_below(home / product)
    codes = []
    for part in (0.4, 0.7, 0.85, 0.95):
        again = shutil.copytree(reported, tmp_path / f"at-{part}")
        ended = interrupted(words, again, lambda process, part=part: computed(process) > part * takes)
        codes.append(ended.code)
        if ended.code:
            told(ended, words)
        else:
            assert bytes_below(again / product) == whole
        assert hidden(again) == []
        if (again / product).exists():
            found = bytes_below(again / product)
            assert {name: whole[name] for name in found if name in whole} == found
        subprocess.run([*PROGRAM, *words], cwd=again, check=True, capture_output=True)
        assert bytes_below(again / product) == whole
    assert 130 in codes


@pytest.mark.slow
def test_a_run_interrupted_while_it_reports_keeps_its_groups(tmp_path, tiny_text):
    (tmp_path / "tiny.toml").write_text(tiny_text)
    words = ["run", "tiny.toml", "--device", "cpu", "--on", "processes:2", "--out", "out"]
    manifest = tmp_path / "out/manifest.json"

    def finished(process: int) -> bool:
        text = manifest.read_text() if manifest.exists() else ""
        return text.count('"status": "finished"') == text.count('"status"') > 0

    ended = interrupted(words, tmp_path, finished)
    told(ended, words)
    assert "every finished group is kept in out" in ended.err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/groups").glob("*.parquet")}
    assert before
    subprocess.run([*PROGRAM, *words], cwd=tmp_path, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "out/report/findings.json").exists()


def test_while_the_program_is_imported_too(tmp_path):
    words = ["run", "no-such-study"]
    moment = time.monotonic() + 0.25
    ended = interrupted(words, tmp_path, lambda process: time.monotonic() > moment)
    # Where Python itself had not begun, or was done with everything, that is so.
    assert ended.code in (130, -signal.SIGINT, 2)
    assert ended.code != 130 or ended.err.startswith("stability: interrupted")


def test_while_python_takes_itself_down_what_was_done_stays_done(tmp_path):
    script = (
        "import atexit, os, signal, sys\n"
        "from stability.__main__ import main\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    atexit.register(os.kill, os.getpid(), number)\n"
        "sys.argv = ['stability', *sys.argv[1:]]\n"
        "main()\n"
    )
    for words, code in ((["list", "studies"], 0), (["verify", "nowhere"], 2)):
        ended = subprocess.run(
            [sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.returncode == code, ended
        assert "interrupted" not in ended.stderr


def test_in_the_background_of_a_script_it_ends_at_a_sigterm(tmp_path):
    """A shell begins what a script puts in the background with SIGINT ignored; SIGTERM must be heard nevertheless."""
    script = (
        "import signal, time\n"
        "from stability.cli.interruption import interruptions\n"
        "with interruptions() as came:\n"
        "    print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, flush=True)\n"
        "    time.sleep(60)\n"
    )
    words = ["sh", "-c", f'"{sys.executable}" -c "$0" & echo $!; wait', script]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        process = int(shell.stdout.readline())
        assert shell.stdout.readline() == "True\n"
        os.kill(process, signal.SIGTERM)
        shell.communicate(timeout=20)
    assert not Path(f"/proc/{process}").exists()


@pytest.fixture(autouse=True)
def heard():
    """Interrupts that are heard, even where the tests themselves run in the background of a shell that ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_import_that_turns_an_interruption_into_its_own_error_is_an_interruption(monkeypatch, capfd):
    def torn(**_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None
        return 0

    module = sys.modules["stability.cli.app"]
    monkeypatch.setattr(module, "app", torn)
    monkeypatch.setattr(sys, "argv", ["stability", "run", "a study"])
    with interruptions() as came:
        assert module._exit_code(came) == 130
    assert capfd.readouterr().err == (
        "stability: interrupted; what is finished is kept, and the same command goes on from there: "
        "stability run 'a study'\n"
    )


def test_the_handlers_from_before_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptions() as came:
        assert not came()
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
