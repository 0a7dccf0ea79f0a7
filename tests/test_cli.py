"""The command line as a user meets it: real processes where start-up matters, in-process elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import call

from stability import cli
from stability.study import study_files

PROGRAM = [sys.executable, "-m", "stability.cli"]


def fresh_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_a_rate_of_spikes_is_listed_as_one_number_a_run():
    from stability.cli.catalogues import measures

    told = {name: by for name, (_, by) in measures().items()}
    assert (told["loss_spike_rate"], told["loss"]) == ("one number a run", "made at each step")


def test_help_answers_without_importing_torch():
    answer = fresh_python(
        "import sys; sys.argv = ['stability', '--help']\n"
        "from stability import cli\n"
        "try: cli.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    assert answer.returncode == 0, answer.stderr
    for verb in ("list", "plan", "run", "report", "publish"):
        assert f"  {verb}" in answer.stdout


def test_importing_the_package_does_not_import_torch_and_offers_the_promised_names():
    answer = fresh_python(
        "import sys, stability as st; assert 'torch' not in sys.modules\n"
        "print(*dir(st)); assert all(getattr(st, name) is not None for name in dir(st))"
    )
    assert answer.returncode == 0, answer.stderr
    promised = "load_study run load_results analyze write_report loss encoder dataset corruption probe contrast Scalar"
    assert {*promised.split(), "losses", "curvature", "gradient_noise", "stats"} <= set(answer.stdout.split())


@pytest.mark.parametrize("what", cli.CATALOGUES)
def test_every_catalogue_is_listed_with_a_line_for_each_entry(what):
    called = call("list", what)
    assert called.code == 0
    entries = {"studies": study_files, "measures": cli.measures}.get(what, lambda: cli.catalogue(what))()
    assert entries
    for name in entries:
        # Beside the name, or below it, something is said of it.
        assert re.search(rf"^{re.escape(name)}(\n)? +\S.{{9}}", called.out, re.MULTILINE), name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["list", "loses"], "unknown catalogue 'loses'; did you mean 'losses'?"),
        (["run", "quickstar"], "unknown study 'quickstar'; did you mean 'quickstart'?"),
        (["run", "quickstart", "--scale", "tiny"], "unknown scale 'tiny'"),
        (["run", "quickstart", "--device", "tpu"], "--device: unknown device 'tpu'"),
        (["run", "quickstart", "--on", "dusk"], "--on: got 'dusk'; allowed: local, or processes:N"),
        (["plan"], "Missing argument 'study'"),
        (["plan", "quickstart", "--sale", "smoke"], "No such option"),
        (["export", "nowhere", "--to", "wandb"], "No such option: --to; did you mean --tracker?"),
        (["landscape", "nowhere", "--to=7f"], "No such option: --to; did you mean --second-run?"),
        (["verify", "nowhere", "--sample", "1"], "No such option: --sample; did you mean --groups?"),
        (["init", "mine", "--option", "captions=c.txt"], "No such option: --option; did you mean --data-option?"),
        (["rnu"], "No such command 'rnu'"),
        (["report", "nowhere"], "nowhere: no run lies here"),
        (["report", "nowhere", "elsewhere"], "nowhere: no run lies here"),
        (["report", "nowhere", "--out", "x"], "--out: only with two runs"),
        (["publish", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(monkeypatch, tmp_path, words, sentence):
    here = Path.cwd()
    monkeypatch.chdir(tmp_path)
    called = call(*words)
    assert called.code == 2
    assert called.err.startswith("stability: ")
    assert sentence in called.err
    assert len(called.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], here


def test_a_study_is_planned_run_and_reported(monkeypatch, tmp_path, brief_text, one_core):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brief.toml").write_text(brief_text)
    planned = call("plan", "brief.toml", "--scale", "smoke")
    assert planned.code == 0, planned.err
    assert "16, in 4 groups, 4 steps each" in planned.out
    ran = call("run", "brief.toml", "--scale", "smoke", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert ran.out.strip().splitlines()[-1] == "report: runs/brief-smoke/report/index.html"
    report = tmp_path / "runs/brief-smoke/report"
    assert {path.name for path in report.iterdir()} == {
        "index.html",
        "report.pdf",
        "findings.json",
        "report.json",
        "answer.svg",
    }
    for claim in json.loads((report / "findings.json").read_text())["claims"]:
        assert claim["verdict"] in ran.out
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    assert call("report", "runs/brief-smoke").code == 0
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before


def test_a_run_is_compared_with_another_and_published(monkeypatch, tmp_path, tiny_run):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "runs/tiny-small")
    reported = call("report", "runs/tiny-small", "--json")
    assert reported.code == 0, reported.err
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs/tiny-small/report").iterdir()}
    assert reported.out == before["findings.json"].decode()
    shutil.copytree("runs/tiny-small", "other")
    compared = call("report", "runs/tiny-small", "other")
    page = tmp_path / "other-against-tiny-small" / "index.html"
    assert (compared.code, compared.out) == (0, f"comparison: {page}\n")
    compared = call("report", "runs/tiny-small", "other", "--json", "--out", "beside")
    assert compared.code == 0
    assert json.loads(compared.out)["names"] == ["tiny-small", "other"]
    assert call("publish", "runs/tiny-small").code == 0
    published = {path.name: path.read_bytes() for path in (tmp_path / "reports/tiny").iterdir()}
    assert published == before
    assert "tiny" in (tmp_path / "reports/index.html").read_text()


def test_a_report_without_typst_ends_well_and_says_what_brings_the_pdf(monkeypatch, brief_run, tmp_path):
    where = tmp_path / "brief"
    shutil.copytree(brief_run, where)
    monkeypatch.setitem(sys.modules, "typst", None)
    called = call("report", str(where))
    assert called.code == 0, called.err
    assert f"`pip install typst` brings it, and `stability report {where}` writes the PDF then" in called.out
    assert (where / "report" / "index.html").is_file()
    assert not (where / "report" / "report.pdf").exists()


def test_a_run_that_is_interrupted_keeps_what_is_finished_and_exits_with_130(tmp_path, tiny_text):
    (tmp_path / "tiny.toml").write_text(tiny_text.replace("steps = 8\n", "steps = 4000\n"))
    command = [*PROGRAM, "run", "tiny.toml", "--on", "processes:1", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    groups = tmp_path / "runs/tiny-small/groups"
    while process.poll() is None and not list(groups.glob(".*.heartbeat")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "every finished group is kept in runs/tiny-small, and the same command goes on from there" in err
    assert "Traceback" not in err
