"""Losses that installed packages add by entry points: found by name, in workers too; refused in one sentence."""

from __future__ import annotations

import sys

import pytest
from command_line import call

from stability.execute import executor_of, run
from stability.grid import runs_of
from stability.losses import loss
from stability.registry import InputError
from stability.store import read_manifest
from stability.study import parse_study

SOURCE = '''
import stability as st


@st.loss(log_scale=st.Scalar(1.0))
def acme_softmax(image, text, *, log_scale):
    """Rank each image's own text first."""
    logits = log_scale.exp() * image @ text.T
    return (logits.logsumexp(-1) - logits.diagonal()).mean()
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that lays out an installed package `acme`, version 1.2, with one entry point."""
    monkeypatch.setattr(loss, "_variants", dict(loss._variants))
    monkeypatch.syspath_prepend(tmp_path)

    def install(source: str = SOURCE, offered: str = "acme_softmax = acme:acme_softmax"):
        (tmp_path / "acme.py").write_text(source)
        info = tmp_path / "acme-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[stability.losses]\n{offered}\n")
        return tmp_path

    yield install
    sys.modules.pop("acme", None)


def study_of(tiny_text: str):
    text = tiny_text.split("[[claims]]")[0].replace('["clip", ', '["acme_softmax", ')
    return text, parse_study(text, "t.toml", "t")


def test_a_package_is_imported_only_when_its_loss_is_looked_up(installed, tiny_text):
    installed()
    assert "acme_softmax" in loss
    assert "acme_softmax" in list(loss)
    assert "acme" not in sys.modules
    assert loss["acme_softmax"].summary == "Rank each image's own text first."
    assert "acme" in sys.modules


def test_the_version_of_the_package_is_part_of_a_run_s_identity(installed, tiny_text):
    folder = installed()
    _, study = study_of(tiny_text)
    before = {run.id for run in runs_of(study) if run.arm == "acme_softmax"}
    info = folder / "acme-1.2.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("1.2", "1.3"))
    del loss._variants["acme_softmax"]
    sys.modules.pop("acme")
    after = {run.id for run in runs_of(study_of(tiny_text)[1]) if run.arm == "acme_softmax"}
    assert len(before) == len(after) > 0
    assert before.isdisjoint(after)


@pytest.mark.parametrize(
    ("source", "offered", "said"),
    [
        ("raise OSError('no licence')", "acme_softmax = acme:acme_softmax", "cannot be imported: OSError: no licence"),
        (SOURCE, "acme_softmax = acme:other", "cannot be imported: AttributeError"),
        (SOURCE.replace("@st.loss(log_scale=st.Scalar(1.0))", ""), "acme_softmax = acme", "does not define it"),
        (SOURCE.replace(".mean()", ""), "acme_softmax = acme", "shape (6,); allowed: one number"),
    ],
)
def test_a_package_that_does_not_keep_its_word_is_one_sentence(installed, tiny_text, source, offered, said):
    installed(source, offered)
    with pytest.raises(InputError) as error:
        study_of(tiny_text)
    assert said in str(error.value)
    assert "acme 1.2" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_packaged_loss_is_listed_and_checked(installed):
    installed()
    assert "Rank each image's own text first." in call("list", "losses").out
    del sys.modules["acme"]
    assert "pass" in call("check", "acme_softmax").out


def test_a_study_of_a_packaged_loss_trains_in_worker_processes(installed, brief_text, tmp_path):
    installed()
    with executor_of("processes:1", "cpu") as pool:
        out = run(study_of(brief_text)[1], "cpu", pool, tmp_path / "r")
    assert {group["status"] for group in read_manifest(out)["groups"]} == {"finished"}
