"""`stability init`: a study of one's own data that is valid at once, and never over another's file."""

from __future__ import annotations

import io
import os
import pty
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from stability import cli
from stability.datasets import Pairs
from stability.study import SCALES, load_study, write_study
from stability.study.template import SIZES, study_text

NUMBERS = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STABILITY_CACHE", str(tmp_path / "cache"))
    np.savez("vectors.npz", audio=NUMBERS.normal(size=(200, 6)), text=NUMBERS.normal(size=(200, 4)))
    return tmp_path


def stability(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["stability", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


EMBEDDINGS = ("--data", "embeddings", "--path", "vectors.npz")


@pytest.mark.parametrize("device", SIZES)
def test_the_study_is_valid_at_every_scale_and_fits_the_data(device):
    path = write_study("mine", "embeddings", {"path": "vectors.npz"}, ["clip", "siglip", "dcl"], device)
    for scale in SCALES:
        study = load_study("mine", scale)
        assert study.primary is not None
        assert max(study.grid.batch_size) * 4 <= len(study.pairs().train)
    assert [claim.compare for claim in load_study("mine").claims][::2] == [("siglip", "clip"), ("dcl", "clip")]
    assert path.read_text().count("#") > 8


@pytest.mark.parametrize("device", SIZES)
@pytest.mark.parametrize("side", [8, 30, 31, 64])
def test_towers_fit_images_of_any_size(device, side):
    text = torch.zeros(900, 5, dtype=torch.int64)
    ids = torch.arange(900)
    pairs = Pairs(torch.zeros(900, 3, side, side), text, ids, ids, ids[:800], ids[800:], text[:0, :0], ("", "a"))
    made = tomllib.loads(study_text("mine", "folder", {"path": "x"}, ["clip", "siglip"], SIZES[device], pairs))
    assert side % made["model"]["image"]["patch"] == 0
    assert made["model"]["text"]["name"] == "token_transformer"


def test_the_command_line_writes_it_and_says_what_is_next(monkeypatch, capsys):
    assert stability(monkeypatch, "init", "mine", *EMBEDDINGS, "--losses", "clip,siglip", "--device", "cpu") == 0
    assert "next: stability plan studies/mine.toml" in capsys.readouterr().out
    assert tomllib.loads(Path("studies/mine.toml").read_text())["grid"]["arms"] == ["clip", "siglip"]


@pytest.mark.slow
def test_from_a_file_of_embeddings_to_a_report(monkeypatch, workplace):
    assert stability(monkeypatch, "init", "mine", *EMBEDDINGS, "--losses", "clip,siglip", "--device", "cpu") == 0
    assert stability(monkeypatch, "run", "mine", "--scale", "smoke", "--device", "cpu", "--on", "processes:1") == 0
    assert (workplace / "runs/mine-smoke/report/index.html").is_file()


def test_a_file_that_is_there_is_never_overwritten(monkeypatch, capsys, workplace):
    (workplace / "mine.toml").write_text("precious")
    assert stability(monkeypatch, "init", "mine.toml", *EMBEDDINGS) == 2
    assert "mine.toml: exists already, and is left as it is; give another name" in capsys.readouterr().err
    assert (workplace / "mine.toml").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mine",), "--data: required, but missing"),
        (("mine", "--data", "embeddings"), "--path: required, but missing"),
        (("mine", "--data", "webdata", "--path", "x"), "--data: unknown kind 'webdata'; did you mean 'webdataset'?"),
        (("mine", *EMBEDDINGS, "--losses", "clip"), "--losses: got 'clip'; allowed: two or more that differ"),
        (("mine", *EMBEDDINGS, "--losses", "clip,siglp"), "--losses: unknown loss 'siglp'; did you mean 'siglip'?"),
        (
            ("mine", *EMBEDDINGS, "--data-option", "labl=x"),
            "'labl=x' is no KEY=VALUE of dataset 'embeddings'; did you mean",
        ),
        (("mine", *EMBEDDINGS, "--data-option", "held_out=x"), "held_out: got 'x'; allowed: a number"),
        (("mine", "--data", "embeddings", "--path", "no.npz"), "path: no.npz: there is no such file or folder"),
        (
            ("mine", *EMBEDDINGS, "--data-option", "held_out=2.0"),
            "a share between 0 and 1 (--data-option held_out=VALUE)",
        ),
        (("mine", "--data", "folder", "--path", "."), "name one by data.captions (--data-option captions=FILE)"),
        (("a/b", *EMBEDDINGS), "NAME: got 'a/b'; allowed: letters, digits"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(words, sentence, monkeypatch, capsys, workplace):
    monkeypatch.setattr(sys, "stdin", io.StringIO("embeddings\n"))
    assert stability(monkeypatch, "init", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not [*workplace.glob("**/*.toml")]


def test_a_terminal_is_asked_for_what_is_missing(monkeypatch, workplace):
    ours, theirs = pty.openpty()
    os.write(ours, b"embeddings\nvectors.npz\n\n")
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert stability(monkeypatch, "init", "mine", "--device", "cpu") == 0
    os.close(ours)
    assert load_study("mine").grid.arms == ("clip", "siglip")


def test_a_path_with_any_character_is_written_so_that_it_reads_back(workplace):
    odd = workplace / 'a "b" \\ é \U0001f600 \x7f.npz'
    odd.write_bytes((workplace / "vectors.npz").read_bytes())
    path = write_study("odd", "embeddings", {"path": str(odd)}, ["clip", "siglip"], "cpu")
    assert tomllib.loads(path.read_text(encoding="utf-8"))["data"]["path"] == str(odd)


def test_large_data_hold_out_no_more_than_retrieval_can_compare(workplace):
    rows = NUMBERS.normal(size=(30_000, 2))
    np.savez("large.npz", a=rows, b=rows)
    write_study("large", "embeddings", {"path": "large.npz"}, ["clip", "siglip"], "cpu")
    assert 2000 < len(load_study("large").pairs().held_out) < 5000
