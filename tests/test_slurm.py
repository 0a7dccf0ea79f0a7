"""SLURM for real, a controller and one node on this machine: the README's lines and the page's script, as written."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_dask import free_port, sums
from test_disk_faults import QUICK

from stability.execute import run
from stability.study import parse_study

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

CONFIGURATION = """
ClusterName=alone
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""The processors are as many as we say, so that two workers and more fit on any machine."""


def wait_for(ready: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a SLURM cluster of one node that is up while the tests run."""
    missing = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"no SLURM here ({', '.join(missing)} missing; Debian: apt-get install slurmctld slurmd munge)")
    folder = tmp_path_factory.mktemp("slurm")
    for each in (folder / "state", folder / "spool"):
        each.mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    host = os.uname().nodename.partition(".")[0]
    configuration = folder / "slurm.conf"
    ports = {"controller": free_port(), "node": free_port()}
    configuration.write_text(CONFIGURATION.format(host=host, user=getpass.getuser(), folder=folder, **ports))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{PATH}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "SLURM_CONF": str(configuration),
        "DASK_JOBQUEUE__SLURM__INTERFACE": "lo",
    }
    files = {"key-file": key, "socket": folder / "munge.sock", "log-file": folder / "munged.log"}
    files |= {"pid-file": folder / "munged.pid", "seed-file": folder / "munged.seed"}
    munged = ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items())]
    daemons = []
    try:
        for words, sign in ((munged, files["socket"]), (["slurmctld", "-D"], None), (["slurmd", "-D"], None)):
            with (folder / f"{words[0]}.out").open("w") as log:
                daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT))
            wait_for(lambda sign=sign: sign is None or sign.exists(), words[0])
        wait_for(lambda: "idle" in asked(environment, "sinfo", "--noheader", "--format=%t"), "idle node")
        yield environment
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=environment, check=True)
        wait_for(lambda: not asked(environment, "squeue", "--noheader"), "end of the jobs")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def asked(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False).stdout.strip()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksums of the same study, run in this process."""
    study = parse_study(QUICK, "quick.toml", "quick")
    return sums(run(study, "cpu", out=tmp_path_factory.mktemp("here") / "r"))


def lines_of_the_readme() -> str:
    """The lines that start workers on SLURM, for two workers that need not be large."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [each for each in re.findall(r"```py\n(.*?)```", readme, re.DOTALL) if "SLURMCluster" in each]
    assert "scale(64)" in block
    return block.replace("scale(64)", "scale(2)").replace("4GB", "2GB")


def test_a_study_on_workers_that_slurm_starts_gives_the_same_bytes_as_here(slurm, here, tmp_path):
    pytest.importorskip("dask_jobqueue", reason="no dask-jobqueue here (pip install dask-jobqueue)")
    (tmp_path / "start.py").write_text(lines_of_the_readme())
    (tmp_path / "quick.toml").write_text(QUICK)
    with (tmp_path / "start.err").open("w") as log:
        starter = subprocess.Popen(
            [sys.executable, "start.py"],
            cwd=tmp_path,
            env=slurm,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert starter.stdout is not None
    try:
        address = starter.stdout.readline().strip()
        assert address.startswith("tcp://127.0.0.1:"), (tmp_path / "start.err").read_text()
        words = ["run", "quick.toml", "--device", "cpu", "--on", f"dask:{address}", "--out", "there"]
        ended = subprocess.run(
            [sys.executable, "-m", "stability.cli", *words],
            cwd=tmp_path,
            env=slurm,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        jobs = asked(slurm, "squeue", "--noheader", "--format=%t").split()
        assert jobs == ["R", "R"]
    finally:
        starter.communicate("\n", timeout=60)
    assert sums(tmp_path / "there") == here


def script_of_the_page() -> str:
    """The script of docs/cluster.md, for a smaller study and node."""
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```text\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    for was, now in {"run quickstart --scale full": "run quick.toml", "=16": "=2", ":16": ":2"}.items():
        assert was in block
        block = block.replace(was, now)
    return block


def test_a_study_as_a_job_gives_the_same_bytes_as_here(slurm, here, tmp_path):
    (tmp_path / "quick.toml").write_text(QUICK)
    (tmp_path / "job.sh").write_text(script_of_the_page())
    job = subprocess.run(
        ["sbatch", "--parsable", "--wait", "--output=job.out", "job.sh"],
        cwd=tmp_path,
        env=slurm,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert job.returncode == 0, job.stderr + (tmp_path / "job.out").read_text()
    assert sums(tmp_path / "runs/quickstart-full") == here
