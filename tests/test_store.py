"""The run directory: round trips, crash safety, and words for what cannot be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.probes import Measure
from stability.registry import InputError
from stability.store import (
    group_log,
    group_path,
    make_writable,
    read_manifest,
    remove_stale,
    write_atomically,
    write_manifest,
)

MEASURES = {
    "loss": Measure("loss", "Loss", "A number."),
    "nodes": Measure("nodes", "Nodes", "A list.", listed=True),
    "share": Measure("share", "Share", "Derived.", pooled=("loss", "loss")),
}

floats = st.floats(width=32, allow_infinity=True, allow_nan=True)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.tuples(floats, floats), min_size=1, max_size=12), block=st.integers(1, 5))
def test_what_is_logged_in_blocks_is_read_back_by_pandas_run_by_run(tmp_path_factory, values, block):
    path = tmp_path_factory.mktemp("log") / "g.parquet"
    written = np.array(values, dtype=np.float32)
    with group_log(path, ["b", "a"], MEASURES) as log:
        for start in range(0, len(written), block):
            part = written[start : start + block]
            lists = [[[1.5] * start, None] for _ in part]
            log.write(np.arange(start, start + len(part)), {"loss": part, "nodes": lists})
        log.finish()
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["run", "step", "loss", "nodes"]
    assert frame["run"].tolist() == ["b"] * len(written) + ["a"] * len(written)
    assert frame["step"].tolist() == [*range(len(written))] * 2
    np.testing.assert_array_equal(frame["loss"].to_numpy(), written.T.reshape(-1))
    assert frame["nodes"][0].tolist() == []
    assert frame["nodes"].iloc[-1] is None
    assert [each.name for each in path.parent.iterdir()] == ["g.parquet"]


def test_columns_are_float32_compressed_and_split_by_byte(tiny_run):
    path = next((tiny_run / "groups").glob("*.parquet"))
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert column.physical_type == "FLOAT"
    assert column.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in column.encodings


def test_an_unknown_measure_is_refused_and_leaves_no_file(tmp_path):
    with (
        pytest.raises(KeyError, match="no probe declares the measures"),
        group_log(tmp_path / "g.parquet", ["a"], MEASURES) as log,
    ):
        log.write(np.arange(1), {"lost": np.zeros((1, 1))})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "f"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_leftovers_of_a_killed_process_are_dropped_and_results_kept(tmp_path):
    make_writable(tmp_path)
    (tmp_path / "groups" / ".g.123.arrows").write_bytes(b"half")
    group_path(tmp_path, "g").write_bytes(b"whole")
    remove_stale(tmp_path)
    assert [path.name for path in (tmp_path / "groups").iterdir()] == ["g.parquet"]


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .*file: cannot be written \(.*\); name a directory that can"):
        make_writable(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no run lies here"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"schema": 99}', "written in schema 99; this version reads schema 1"),
        (b"[]", "written in schema None"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_sentence(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_manifest(tmp_path)


SOUND = {"schema": 1, "study": "s", "scale": "small", "study_text": "", "device": {}, "versions": {}, "groups": []}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"study_text": None}, "study_text is None; was the file edited"),
        ({"device": "cpu"}, "device is 'cpu'; was the file edited"),
        ({"groups": None}, "holds a group None"),
        ({"groups": [{"id": "../../etc/passwd", "runs": [], "status": "planned"}]}, "holds a group '../../etc/passwd'"),
        ({"groups": [{"id": "a"}]}, "its runs or its status are missing"),
        ({"groups": [{"id": "a", "runs": [], "status": "finished"}]}, "finished without a checksum"),
    ],
)
def test_a_manifest_that_was_edited_is_one_sentence_and_leads_nowhere_else(tmp_path, change, sentence):
    write_manifest(tmp_path, SOUND | change)
    with pytest.raises(InputError, match=sentence):
        read_manifest(tmp_path)


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    manifest = {**SOUND, "groups": [{"id": "x", "runs": ["é"], "status": "planned"}]}
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
