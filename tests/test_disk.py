"""Datasets from disk: what every format promises, on small data made on the spot and read by the real readers."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stability import cli
from stability.datasets import dataset, disk
from stability.datasets.captions import tokenizer
from stability.datasets.disk import is_held_out
from stability.datasets.images import decode
from stability.execute import run
from stability.grid import runs_of
from stability.registry import InputError
from stability.study import modalities, parse_study
from stability.train.data import population_data
from stability.train.population import held_out

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'contrastive-stability[disk]'")
pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'contrastive-stability[disk]'")

COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}
NAMES = tuple(COLOURS)
KINDS = ("folder", "parquet", "webdataset")
COUNT = 60


def png(number: int) -> bytes:
    """A square in one of three colours, a little different each time."""
    pixels = np.full((10, 12, 3), COLOURS[NAMES[number % 3]], np.uint8)
    pixels[4:6, 4:6] = (number, 2 * number, 7)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def sample(number: int) -> dict[str, object]:
    colour = NAMES[number % 3]
    return {"name": f"{number:03}", "image": png(number), "caption": f"a {colour} square, ça va", "label": colour}


SAMPLES = [sample(number) for number in range(COUNT)]


def write_folder(where: Path, samples) -> dict[str, str]:
    (where / "pictures").mkdir(parents=True)
    rows = []
    for one in samples:
        if one["image"] is not None:
            (where / "pictures" / f"{one['name']}.png").write_bytes(one["image"])
        rows.append([f"pictures/{one['name']}.png", one["caption"], one["label"]])
    with (where / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "caption", "label"], *rows])
    return {"path": str(where)}


def write_parquet(where: Path, samples) -> dict[str, str]:
    where.mkdir(parents=True)
    half = len(samples) // 2
    for part, some in (("0", samples[:half]), ("1", samples[half:])):
        images = [{"bytes": one["image"], "path": None} for one in some]
        columns = {
            "image": images,
            "caption": [one["caption"] for one in some],
            "label": [one["label"] for one in some],
        }
        pq.write_table(pa.table(columns), where / f"part-{part}.parquet")
    return {"path": str(where)}


def write_shard(file: Path, samples) -> None:
    with tarfile.open(file, "w") as tar:
        for one in samples:
            members = {"png": one["image"], "txt": one["caption"], "cls": one["label"]}
            for ending, content in members.items():
                if content is not None:
                    data = content if isinstance(content, bytes) else str(content).encode()
                    entry = tarfile.TarInfo(f"{one['name']}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def write_webdataset(where: Path, samples) -> dict[str, str]:
    pytest.importorskip(
        "webdataset", reason="webdataset is not installed: pip install 'contrastive-stability[webdataset]'"
    )
    where.mkdir(parents=True)
    half = len(samples) // 2
    for part, some in ((0, samples[:half]), (1, samples[half:])):
        write_shard(where / f"shard-{part:04}.tar", some)
    return {"path": str(where / "shard-{0000..0001}.tar")}


WRITERS = {"folder": write_folder, "parquet": write_parquet, "webdataset": write_webdataset}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STABILITY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def labels(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(NAMES) + "\n")
    return str(file)


def load(kind: str, where: Path, samples=SAMPLES, **options):
    return dataset[kind](
        **WRITERS[kind](where, samples), **{"image_size": 8, "max_tokens": 24, "vocab_size": 300, **options}
    )


# --- what every format promises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_as_every_dataset_promises(kind, tmp_path, labels):
    pairs = load(kind, tmp_path / "data", classes=labels)
    assert pairs.image.shape == (COUNT, 3, 8, 8)
    assert -1 <= pairs.image.min() < pairs.image.max() <= 1
    assert pairs.offers == ("classes",)
    assert pairs.prompts.shape == (3, 1, 24)
    assert sorted([*pairs.train.tolist(), *pairs.held_out.tolist()]) == list(range(COUNT))
    assert len(pairs.train) > len(pairs.held_out) > 0
    image, text = modalities(pairs).values()
    assert image.shape == (3, 8, 8)
    assert text.vocabulary == len(pairs.vocabulary)
    assert pairs.text.max() < len(pairs.vocabulary)
    for index in range(0, COUNT, 7):
        colour = NAMES[int(pairs.label[index])]
        assert pairs.words(index) == f"a {colour} square, ça va"
        brightest = pairs.image[index].mean((1, 2)).argmax()
        assert NAMES[brightest] == colour
        assert (pairs.caption == pairs.caption[index]).tolist() == (pairs.label == pairs.label[index]).tolist()
    assert pairs.say(pairs.prompts[1, 0]) == "a photo of a green"


def test_the_three_formats_give_the_same_pairs(tmp_path):
    made = [load(kind, tmp_path / kind) for kind in KINDS]
    for other in made[1:]:
        for name in ("image", "text", "caption", "label", "train"):
            assert torch.equal(getattr(other, name), getattr(made[0], name))
    assert len({pairs.fingerprint for pairs in made}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_image_is_never_on_both_sides_and_others_do_not_move_it(kind, tmp_path):
    twice = [{**one, "name": f"{one['name']}-again", "caption": f"{one['caption']} again"} for one in SAMPLES]
    once, both = (
        load(kind, tmp_path / "once", held_out=0.5),
        load(kind, tmp_path / "both", [*SAMPLES, *twice], held_out=0.5),
    )

    def sides(pairs):
        return [{image.numpy().tobytes() for image in pairs.image[side]} for side in (pairs.train, pairs.held_out)]

    assert not sides(both)[0] & sides(both)[1]
    assert sides(once) == sides(both)
    assert len(both.train) == 2 * len(once.train)
    assert len(sides(once)[0]) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_used_is_left_out_counted_and_named(kind, tmp_path):
    bad = [
        {**sample(91), "name": "corrupt", "image": png(1)[:40]},
        {**sample(92), "name": "blank", "caption": "  "},
        {**sample(93), "name": "no-image", "image": None},
        {**sample(94), "name": "corrupt2", "image": b"not an image"},
    ]
    pairs = load(kind, tmp_path / "data", [*SAMPLES, *bad], max_invalid_share=0.2)
    assert len(pairs.image) == COUNT
    (note,) = pairs.notes
    assert note.startswith(f"4 of {COUNT + 4} samples cannot be used: 2 with corrupt image (the first: ")
    assert "1 with empty caption" in note
    assert "1 with no image" in note
    named = ("corrupt", "blank", "no-image") if kind != "parquet" else ("part-1.parquet: row", "row 29", "row 30")
    assert all(name in note for name in named)
    clean = load(kind, tmp_path / "clean")
    assert clean.fingerprint == pairs.fingerprint
    with pytest.raises(
        InputError, match=r"path: .*4 of 64 samples cannot be used: 2 with corrupt image.*max_invalid_share = 0\.01"
    ):
        dataset[kind](**_options(kind, tmp_path / "data"))


def _options(kind, where):
    return {"path": str(where / "shard-{0000..0001}.tar" if kind == "webdataset" else where), "image_size": 8}


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_missing_caption_counts(kind, tmp_path):
    pairs = load(kind, tmp_path / "data", [*SAMPLES, {**sample(95), "caption": None}], max_invalid_share=0.1)
    assert "1 with no caption" in pairs.notes[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_is_missing_or_unknown_is_refused_by_name(kind, tmp_path, labels):
    with pytest.raises(InputError, match=r"unknown class 'purple'.*blue, green, red"):
        load(kind, tmp_path / "unknown", [*SAMPLES, {**sample(96), "label": "purple"}], classes=labels)


def test_a_class_whose_name_would_be_cut_off_is_refused(tmp_path, labels):
    with pytest.raises(
        InputError, match="max_tokens: got 4; allowed: room for the texts of all classes, of which 3 are"
    ):
        load("folder", tmp_path / "data", classes=labels, max_tokens=4)


@pytest.mark.parametrize("name", ["folder", "parquet", "webdataset"])
@pytest.mark.parametrize(
    ("former", "today"), [("words", "vocab_size"), ("length", "max_tokens"), ("tokens", "tokenizer")]
)
def test_an_option_that_was_renamed_is_answered_with_its_new_name(name, former, today):
    with pytest.raises(InputError, match=f"data.{former}: dataset '{name}' has no such option; did you mean '{today}'"):
        dataset[name].check_options({former: 300}, "data")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path": ""}, "path: required, but missing: "),
        ({"path": "/no/such"}, "path: /no/such: there is no such file or folder; allowed: "),
        ({"tokenizer": "bpee"}, r"tokenizer: unknown tokenizer 'bpee'; did you mean 'bpe'\? \(known: bpe, bytes\)"),
        ({"vocab_size": 200}, "vocab_size: got 200; allowed: 257 or more"),
        ({"held_out": 1.0}, "held_out: got 1; allowed: a share between 0 and 1"),
        ({"held_out": 1e-9}, "held_out = 1e-09: of 60 usable pairs in .*, 60 are left to train on and 0 held out"),
        ({"image_size": 0}, "image_size: got 0; allowed: 1 or more"),
        ({"classes": "/no/such"}, "classes: /no/such cannot be read: "),
    ],
)
def test_wrong_options_are_one_sentence(kind, options, sentence, tmp_path):
    given = WRITERS[kind](tmp_path / "data", SAMPLES)
    with pytest.raises(InputError, match=sentence):
        dataset[kind](**{**given, **options})


# --- the formats, each on its own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_captions_may_be_tsv_or_json_lines(ending, tmp_path):
    expected = load("folder", tmp_path / "csv")
    where = tmp_path / ending
    write_folder(where, SAMPLES)
    (where / "captions.csv").unlink()
    rows = [{"image": f"pictures/{one['name']}.png", "text": one["caption"]} for one in SAMPLES]
    if ending == "tsv":
        lines = ["image\ttext", *("\t".join(row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    (where / f"captions.{ending}").write_text("\n".join(lines), encoding="utf-8")
    pairs = dataset["folder"](path=str(where), image_size=8, max_tokens=24, vocab_size=300)
    assert pairs.fingerprint == expected.fingerprint


def test_a_folder_says_what_is_wrong_with_its_captions(tmp_path):
    where = tmp_path / "data"
    write_folder(where, SAMPLES)
    with pytest.raises(InputError, match=r"caption_column: captions.csv has no column 'words' .columns: file_name, "):
        dataset["folder"](path=str(where), caption_column="words")
    (where / "more.jsonl").write_text('{"image": "a.png", "text": "a"}\n{broken\n')
    with pytest.raises(InputError, match=r"holds 2 tables \(captions.csv, more.jsonl\); name one by data.captions"):
        dataset["folder"](path=str(where))
    with pytest.raises(InputError, match=r"captions: .*more.jsonl: cannot be read after line 2: "):
        dataset["folder"](path=str(where), captions="more.jsonl")


def test_images_of_a_folder_that_no_caption_names_are_counted(tmp_path):
    where = tmp_path / "data"
    write_folder(where, SAMPLES)
    assert dataset["folder"](path=str(where), image_size=8).notes == ()
    for name in ("pictures/900.png", "pictures/901.JPG", "902.png", "pictures/notes.txt"):
        (where / name).write_bytes(png(1))
    before = dataset["folder"](path=str(where), image_size=8)
    assert before.notes == (
        "3 images lie in the folder that no row of captions.csv names (the first: 902.png) and were not used.",
    )
    for name in ("pictures/900.png", "902.png"):
        (where / name).unlink()
    (note,) = dataset["folder"](path=str(where), image_size=8).notes
    assert note.startswith("1 image lies in the folder that no row of captions.csv names (the first: pictures/901.JPG)")


def test_several_captions_of_one_image_make_as_many_pairs_on_one_side(tmp_path):
    captions = [[f"{one['caption']}", f"the {one['label']} one"] for one in SAMPLES]
    images = [one["image"] for one in SAMPLES]
    pq.write_table(pa.table({"img": images, "sentence": captions}), tmp_path / "data.parquet")
    pairs = dataset["parquet"](path=str(tmp_path / "data.parquet"), image_size=8)
    assert len(pairs.image) == 2 * COUNT
    assert len(pairs.train) % 2 == 0


def test_json_members_give_captions_and_classes(tmp_path, labels):
    pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for one in SAMPLES:
            facts = json.dumps({"caption": one["caption"], "alt": "other", "label": NAMES.index(one["label"])}).encode()
            for ending, data in (("png", one["image"]), ("json", facts)):
                entry = tarfile.TarInfo(f"deep/{one['name']}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    pairs = dataset["webdataset"](path=str(tmp_path), image_size=8, classes=labels)
    assert pairs.words(0).endswith("square, ça va")
    assert {*pairs.label.tolist()} == {0, 1, 2}
    other = dataset["webdataset"](path=str(tmp_path / "a.tar"), image_size=8, caption_key="alt")
    assert other.words(0) == "other"


def test_a_shard_that_breaks_off_is_refused_by_name(tmp_path):
    given = write_webdataset(tmp_path / "data", SAMPLES)
    broken = tmp_path / "data" / "shard-0001.tar"
    broken.write_bytes(broken.read_bytes()[:10_000])
    with pytest.raises(InputError, match=r"shard-0001.tar: cannot be read after the sample \d+: unexpected end"):
        dataset["webdataset"](**given)
    broken.write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match=r"shard-0001.tar: cannot be read after its first member"):
        dataset["webdataset"](**given)


@pytest.mark.parametrize("kept", ["between two members", "within a header"])
def test_a_shard_that_breaks_off_where_its_reader_does_not_notice_is_refused_too(tmp_path, kept):
    given = write_webdataset(tmp_path / "data", SAMPLES)
    broken = tmp_path / "data" / "shard-0001.tar"
    with tarfile.open(broken) as shard:
        third = shard.getmembers()[2].offset
    broken.write_bytes(broken.read_bytes()[: third + (0 if kept == "between two members" else 100)])
    with pytest.raises(InputError, match=r"shard-0001.tar: cannot be read after the sample \d+: it ends without"):
        dataset["webdataset"](**given, max_invalid_share=0.9)


@pytest.mark.parametrize("library", [gzip, bz2, lzma], ids=["gzip", "bz2", "xz"])
def test_compressed_shards_are_read_and_refused_where_they_break_off(tmp_path, library):
    given = write_webdataset(tmp_path / "data", SAMPLES)
    whole = dataset["webdataset"](**given)
    for shard in (tmp_path / "data").glob("*.tar"):
        shard.write_bytes(library.compress(shard.read_bytes()))
    assert torch.equal(dataset["webdataset"](**given).image, whole.image)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{shard.name}: cannot be read after "):
        dataset["webdataset"](**given, max_invalid_share=0.9)


def test_an_address_that_would_run_a_command_is_just_a_missing_file(tmp_path):
    pytest.importorskip("webdataset")
    for path in (f"pipe:touch {tmp_path}/ran", f"pipe:touch {tmp_path}/ran{{0..1}}"):
        with pytest.raises(InputError, match="there is no such file"):
            dataset["webdataset"](path=path)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_parquet_file_is_refused_by_name(tmp_path):
    given = write_parquet(tmp_path / "data", SAMPLES)
    broken = tmp_path / "data" / "part-1.parquet"
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"part-1.parquet: is no Parquet file that can be read"):
        dataset["parquet"](**given)


# --- images, captions, the split -------------------------------------------------------------------------------------


def test_an_image_is_cut_to_its_middle_and_normalized():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = (255, 0, 51)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    decoded = decode(file.getvalue(), 4)
    expected = np.broadcast_to(np.array([1.0, -1.0, -0.6], np.float32)[:, None, None], (3, 4, 4))
    np.testing.assert_allclose(decoded.pixels, expected, atol=1e-6)


def test_one_picture_in_two_lossless_formats_is_one_content():
    pixels = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    contents = set()
    for kind in ("png", "bmp", "tiff"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        contents.add(decode(file.getvalue(), 4).content)
    assert len(contents) == 1


def test_a_format_that_other_programs_would_have_to_run_is_not_read():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "eps")
    assert file.getvalue().startswith(b"%!PS")
    with pytest.raises(ValueError, match="cannot identify image file"):
        decode(file.getvalue(), 4)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_image_are_a_value_error(encoded):
    with pytest.raises(ValueError):
        decode(encoded, 4)


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_every_text_can_be_written_in_bytes_and_bpe(text):
    bpe, plain = (tokenizer(kind, ["a dog and a cat", "the dog"], 270) for kind in ("bpe", "bytes"))
    row, _ = plain.table([text], 400)
    assert bytes((row[0][row[0] > 0] - 1).tolist()).decode() == text
    ids = bpe.ids(text)
    assert all(0 < word < len(bpe.vocabulary) for word in ids)
    assert bpe.ids(text) == ids


def test_captions_longer_than_their_room_are_cut_and_counted(tmp_path):
    pairs = load("folder", tmp_path / "data", tokenizer="bytes", max_tokens=5)
    assert pairs.words(0)[:2] == "a "
    assert f"{COUNT} of {COUNT} captions are longer than data.max_tokens = 5 tokens and were cut." in pairs.notes


def test_the_share_held_out_is_about_the_share_asked_for():
    kept = sum(is_held_out(str(number).encode(), 0.2) for number in range(10_000))
    assert kept == pytest.approx(2000, abs=5 * (10_000 * 0.2 * 0.8) ** 0.5)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_data_are_prepared_once_and_again_when_they_change(tmp_path, monkeypatch, own_cache):
    given = write_folder(tmp_path / "data", SAMPLES)
    first = dataset["folder"](**given, image_size=8)
    monkeypatch.setattr(disk, "decode", None)  # From here on, nothing may be decoded.
    again = dataset["folder"](**given, image_size=8)
    assert torch.equal(again.image, first.image)
    assert again.image.untyped_storage().nbytes() == first.image.numel() * 4
    monkeypatch.undo()
    monkeypatch.setenv("STABILITY_CACHE", str(own_cache))
    (tmp_path / "data" / "pictures" / "000.png").write_bytes(png(77))
    assert dataset["folder"](**given, image_size=8).fingerprint != first.fingerprint


def test_writing_to_pairs_does_not_reach_the_cache(tmp_path):
    pairs = load("folder", tmp_path / "data")
    pairs.image.zero_()
    assert (
        dataset["folder"](path=str(tmp_path / "data"), image_size=8, max_tokens=24, vocab_size=300).image.abs().max()
        > 0
    )


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "facts"])
def test_a_damaged_entry_is_made_again(damage, tmp_path, own_cache):
    first = load("folder", tmp_path / "data")
    fingerprint, image = first.fingerprint, first.image.clone()
    (entry,) = own_cache.iterdir()
    file = entry / ("data.json" if damage == "facts" else "image.npy")
    content = file.read_bytes()
    changed = {"cut": content[:-100], "flip": content[:-1] + bytes([content[-1] ^ 1]), "facts": b"{"}
    file.unlink() if damage == "missing" else file.write_bytes(changed[damage])
    again = dataset["folder"](path=str(tmp_path / "data"), image_size=8, max_tokens=24, vocab_size=300)
    assert again.fingerprint == fingerprint
    assert torch.equal(again.image, image)


def test_a_failed_preparation_leaves_nothing_behind(tmp_path, own_cache):
    with pytest.raises(InputError):
        load("folder", tmp_path / "data", [*SAMPLES, {**sample(3), "image": b"no"}], max_invalid_share=0.0)
    assert not [*own_cache.iterdir()]


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache: .*file/cache cannot be written .*data.cache or \$STABILITY_CACHE"):
        load("folder", tmp_path / "data", cache=str(tmp_path / "file" / "cache"))


# --- a study ---------------------------------------------------------------------------------------------------------

STUDY = """
title = "Mine"
question = "Which?"
[data]
name = "{kind}"
path = '{path}'
image_size = 8
max_tokens = 24
{more}
[model]
image = {{ name = "patch_transformer", width = 8, heads = 1 }}
text = {{ name = "token_transformer", width = 8, heads = 1 }}
embed_dim = 4
[train]
steps = 3
[grid]
arms = ["clip", "siglip"]
batch_size = [8]
noise = [0.0, 0.5]
lr = [0.01]
seeds = 2
[probes.retrieval]
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_of_data_on_disk_runs_and_measures_classes_where_they_are(kind, tmp_path, labels):
    given = WRITERS[kind](tmp_path / "data", SAMPLES)
    study = parse_study(STUDY.format(kind=kind, more=f"classes = '{labels}'", **given), "mine.toml", "mine")
    assert "zero_shot_accuracy" in study.measures
    steps = pq.read_table(run(study, "cpu", out=tmp_path / "run") / "groups").to_pandas()
    assert np.isfinite(steps["loss"].dropna()).all()
    assert steps["zero_shot_accuracy"].dropna().between(0, 1).all()
    plain = parse_study(STUDY.format(kind=kind, more="", **given), "mine.toml", "mine")
    assert "zero_shot_accuracy" not in plain.measures


def test_runs_are_known_by_the_content_of_their_data_not_by_its_place(tmp_path):
    write_folder(tmp_path / "here", SAMPLES)
    write_folder(tmp_path / "there", SAMPLES)
    write_folder(tmp_path / "other", SAMPLES[1:])
    studies = [
        parse_study(STUDY.format(kind="folder", path=tmp_path / place, more=""), "mine.toml", "mine")
        for place in ("here", "there", "other")
    ]
    here, there, other = ([run.id for run in runs_of(study)] for study in studies)
    assert here == there
    assert not {*here} & {*other}
    assert studies[0].hash == studies[1].hash != studies[2].hash


def test_a_study_names_its_file_and_key_when_data_are_wrong(tmp_path):
    with pytest.raises(InputError, match=r"mine.toml: data\.path: /no/such: there is no such file or folder"):
        parse_study(STUDY.format(kind="folder", path="/no/such", more=""), "mine.toml", "mine")


def test_the_loaders_read_the_mapped_file_itself(tmp_path):
    given = write_folder(tmp_path / "data", SAMPLES)
    study = parse_study(STUDY.format(kind="folder", more="", **given), "mine.toml", "mine")
    pairs = study.pairs()
    feed = population_data(runs_of(study)[:2], pairs, "fixed", torch.device("cpu"))
    assert feed.image.data_ptr() == pairs.image.data_ptr()
    held = held_out(pairs, torch.device("cpu")).image
    assert held.data_ptr() == pairs.image[len(pairs.train) :].data_ptr()


@pytest.mark.slow
def test_from_shards_to_a_report_that_says_what_was_left_out(tmp_path, monkeypatch, capsys, labels):
    given = write_webdataset(tmp_path / "data", [*SAMPLES, {**sample(91), "image": b"no image"}])
    monkeypatch.chdir(tmp_path)
    options = [
        f"--data-option={option}"
        for option in ("image_size=8", "max_tokens=24", "max_invalid_share=0.1", f"classes={labels}")
    ]
    commands = (
        ["init", "mine", "--data", "webdataset", "--path", given["path"], *options, "--device", "cpu"],
        ["run", "mine", "--scale", "smoke", "--device", "cpu", "--on", "processes:1"],
    )
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["stability", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, capsys.readouterr().err
    page = (tmp_path / "runs/mine-smoke/report/index.html").read_text()
    assert "1 of 61 samples cannot be used: 1 with corrupt image" in page
