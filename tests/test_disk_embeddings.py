"""Precomputed embeddings: every file format gives the same pairs, and what is wrong with one is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stability.datasets import dataset
from stability.execute import run
from stability.registry import InputError
from stability.study import parse_study

ROWS = 80
NUMBERS = np.random.default_rng(0)
AUDIO = NUMBERS.normal(0, 3, (ROWS, 6)).astype(np.float32)
TEXT = (0.01 * NUMBERS.normal(size=(ROWS, 4))).astype(np.float32)
LABEL = np.arange(ROWS) % 5
PROMPTS = NUMBERS.normal(size=(5, 4)).astype(np.float32)
ALL = {"audio": AUDIO, "text": TEXT, "label": LABEL, "prompts": PROMPTS}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STABILITY_CACHE", str(tmp_path / "cache"))


def write(where: Path, kind: str, arrays) -> str:
    if kind == "npy":
        where.mkdir()
        for name, array in arrays.items():
            np.save(where / f"{name}.npy", array)
        return str(where)
    path = where.with_suffix(f".{kind}")
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "safetensors":
        numpy = pytest.importorskip("safetensors.numpy", reason="pip install 'contrastive-stability[disk]' brings it")
        numpy.save_file(dict(arrays), path)
    else:
        table = {name: list(array) for name, array in arrays.items() if len(array) == len(arrays["audio"])}
        pq.write_table(pa.table(table), path)
    return str(path)


KINDS = ("npy", "npz", "safetensors", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_stay_paired_and_are_scaled_to_a_unit_mean_square_of_training(kind, tmp_path):
    pairs = dataset["embeddings"](path=write(tmp_path / "data", kind, ALL))
    assert pairs.offers == ()
    assert len(pairs.train) + len(pairs.held_out) == ROWS
    for side in (pairs.image, pairs.text):
        assert side[pairs.train].double().square().mean().item() == pytest.approx(1, abs=1e-6)
    # Rows keep their directions, so each is most similar to the one that it was.
    found = (pairs.image @ torch.from_numpy(AUDIO / np.linalg.norm(AUDIO, axis=1, keepdims=True)).T).argmax(1)
    assert sorted(found.tolist()) == list(range(ROWS))
    for side, source in ((pairs.image, AUDIO), (pairs.text, TEXT)):
        torch.testing.assert_close(side / side.abs().max(), torch.from_numpy(source)[found] / np.abs(source).max())


def test_all_formats_give_the_same_pairs(tmp_path):
    given = {"image": "audio", "text": "text"}
    made = [dataset["embeddings"](path=write(tmp_path / kind, kind, ALL), **given) for kind in KINDS]
    assert len({pairs.fingerprint for pairs in made}) == 1


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_labels_and_prompts_make_classes(kind, tmp_path):
    pairs = dataset["embeddings"](path=write(tmp_path / "data", kind, ALL), label="label", prompts="prompts")
    assert pairs.offers == ("classes",)
    assert pairs.prompts.shape == (5, 1, 4)
    ratio = pairs.prompts[:, 0].numpy() / PROMPTS
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert np.bincount(pairs.label).tolist() == [16] * 5


def test_a_row_keeps_its_class_and_equal_rows_are_on_one_side(tmp_path):
    twice = {name: array if name == "prompts" else np.concatenate([array, array]) for name, array in ALL.items()}
    options = {"path": write(tmp_path / "data", "npz", twice), "held_out": 0.5, "image": "audio", "text": "text"}
    pairs = dataset["embeddings"](**options, label="label", prompts="prompts")
    found = (pairs.image @ torch.from_numpy(AUDIO / np.linalg.norm(AUDIO, axis=1, keepdims=True)).T).argmax(1)
    assert pairs.label.tolist() == LABEL[found].tolist()
    assert not {*found[pairs.train].tolist()} & {*found[pairs.held_out].tolist()}
    assert min(len(pairs.train), len(pairs.held_out)) > 40


def test_halves_are_read_in_every_format_that_has_them(tmp_path):
    small = {"a": AUDIO.astype(np.float16), "b": TEXT.astype(np.float64)}
    assert dataset["embeddings"](path=write(tmp_path / "data", "npz", small)).image.dtype == torch.float32
    library = pytest.importorskip("safetensors.torch")
    library.save_file(
        {"a": torch.from_numpy(AUDIO).bfloat16(), "b": torch.from_numpy(TEXT)}, tmp_path / "b.safetensors"
    )
    assert torch.isfinite(dataset["embeddings"](path=str(tmp_path / "b.safetensors")).image).all()


def changed(**arrays) -> dict[str, np.ndarray]:
    return {**ALL, **arrays}


BROKEN = AUDIO.copy()
BROKEN[7, 2] = np.nan


@pytest.mark.parametrize(
    ("arrays", "options", "sentence"),
    [
        (ALL, {"image": "audoi", "text": "text"}, r"image: .*: holds no array 'audoi'; did you mean 'audio'\?"),
        (ALL, {"image": "label", "text": "text"}, r"image: .*: 'label' has shape \(80,\); allowed: a table, \(N, F\)"),
        (
            ALL,
            {"image": "audio", "text": "prompts"},
            r"'audio' has shape \(80, 6\) and 'prompts' \(5, 4\)",
        ),
        (changed(more=AUDIO), {}, r"3 tables of equally many rows .*name them by data\.image and data\.text"),
        (changed(audio=BROKEN), {}, r"1 of 80 samples cannot be used: 1 with a number that is not finite .* row 7\)"),
        (changed(audio=0 * AUDIO), {}, "the image embeddings have a root mean square of 0"),
        (changed(audio=AUDIO.astype(str)), {}, "holds <U32; allowed: real numbers"),
        (
            changed(audio=AUDIO.astype(float) * 1e300),
            {},
            "80 of 80 samples cannot be used: 80 with a number that is not",
        ),
        (ALL, {"label": "label"}, r"data\.label and data\.prompts go together"),
        (ALL, {"label": "label", "prompts": "audio"}, r"'audio' has shape \(80, 6\); allowed: finite numbers of shape"),
        (changed(label=LABEL + 1), {"label": "label", "prompts": "prompts"}, "must hold whole numbers from 0 to 4"),
        (changed(audio=np.repeat(AUDIO[:1], ROWS, 0)), {}, "allowed: at least one of each"),
    ],
)
def test_what_is_wrong_is_one_sentence(arrays, options, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        dataset["embeddings"](path=write(tmp_path / "data", "npz", arrays), **options)


def test_a_few_rows_that_are_not_finite_may_be_left_out(tmp_path):
    path = write(tmp_path / "data", "npz", changed(audio=BROKEN))
    pairs = dataset["embeddings"](path=path, max_invalid_share=0.05)
    assert len(pairs.image) == ROWS - 1
    assert pairs.notes == (
        "1 of 80 samples cannot be used: 1 with a number that is not finite (the first: row 7); they were left out.",
    )


def test_nothing_that_is_loaded_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "a.npz", a=np.array([Evil()], dtype=object), b=TEXT)
    with pytest.raises(InputError, match="cannot be read: Object arrays cannot be loaded"):
        dataset["embeddings"](path=str(tmp_path / "a.npz"))
    assert not (tmp_path / "ran").exists()


def test_ragged_columns_and_unknown_endings_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [[1.0, 2.0], [3.0]], "b": [[1.0], [2.0]]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="'a' holds vectors of 1 to 2 numbers; allowed: vectors of one length"):
        dataset["embeddings"](path=str(tmp_path / "a.parquet"))
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"unknown ending '\.pt'; allowed: \.npz, \.safetensors, "):
        dataset["embeddings"](path=str(tmp_path / "a.pt"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["npz", "parquet", "safetensors"]), content=st.binary(max_size=200))
def test_a_file_of_anything_is_refused_in_a_sentence(kind, content, tmp_path):
    (tmp_path / f"any.{kind}").write_bytes(content)
    with pytest.raises(InputError, match=r"^path: "):
        dataset["embeddings"](path=str(tmp_path / f"any.{kind}"))


def test_a_study_of_embeddings_runs(tmp_path):
    text = f"""
title = "Mine"
question = "Which?"
[data]
name = "embeddings"
path = '{write(tmp_path / "data", "npz", ALL)}'
label = "label"
prompts = "prompts"
[model]
image = "linear"
text = {{ name = "mlp", width = 8 }}
embed_dim = 4
[train]
steps = 3
[grid]
arms = ["clip"]
batch_size = [8]
noise = [0.2]
lr = [0.01]
seeds = 2
[probes.retrieval]
"""
    where = run(parse_study(text, "mine.toml", "mine"), "cpu", out=tmp_path / "run")
    steps = pq.read_table(where / "groups").to_pandas()
    assert steps["zero_shot_accuracy"].dropna().between(0, 1).all()
    assert np.isfinite(steps["loss"].dropna()).all()
