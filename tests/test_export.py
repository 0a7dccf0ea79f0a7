"""Exports: tables with documented columns, and trackers that hold what the run directory holds."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stability import cli
from stability.analysis import analyze, load_results, summarize
from stability.curvature import spectrum
from stability.execute import run
from stability.exports import FORMATS, export, tables
from stability.registry import InputError
from stability.study import parse_study
from stability.trackers import send, tracker

READERS = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(
        missing, reason=f"{package} is not installed: pip install 'contrastive-stability[{package}]'"
    )


@pytest.fixture(scope="module")
def results(tiny_run):
    return load_results(tiny_run)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_tables_hold_what_was_measured_and_found(kind, tiny_run, results, tmp_path):
    paths = export(tiny_run, kind, tmp_path / "out")
    read_back = {name: READERS[kind](path) for name, path in paths.items()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{name}.{kind}" for name in paths}
    runs, curves, found = (read_back[name] for name in ("runs", "curves", "findings"))
    assert runs["run"].tolist() == results.runs["run"].tolist()
    final = summarize(results, "recall_at_1", "final").reindex(runs["run"]).to_numpy()
    np.testing.assert_allclose(runs["recall_at_1"], final, rtol=1e-6)
    assert len(curves) == len(results.steps)
    np.testing.assert_allclose(curves["loss"].astype(float), results.steps["loss"], rtol=1e-6)
    claims = analyze(results).claims
    assert found["verdict"].tolist() == [claim.verdict for claim in claims]
    assert found["compare_first"].tolist() == [claim.compare[0] for claim in claims]
    for end, place in (("low", 0), ("high", 1)):
        ends = np.array([claim.interval[place] for claim in claims])
        ends[~np.isfinite(ends)] = np.nan if kind == "json" else ends[~np.isfinite(ends)]
        np.testing.assert_allclose(found[f"interval_{end}"].astype(float), ends, rtol=1e-9)


def test_every_column_is_documented_once(results):
    made = tables(results, analyze(results))
    documented = made.pop("columns")
    for name, frame in made.items():
        assert documented[documented["table"] == name]["column"].tolist() == list(frame.columns)
    assert documented["text"].str.len().min() > 3


def test_the_rates_of_a_search_are_exported_and_documented(tiny_text, tmp_path):
    tuned = tiny_text.replace("[probes.retrieval]", "[tune]\nlr = [0.003, 0.03]\nseeds = 1\n[probes.retrieval]", 1)
    study = parse_study(tuned, "t.toml", "t", "smoke")
    run(study, out=tmp_path / "run")
    tabled = tables(found := load_results(tmp_path / "run"), analyze(found))
    assert set(tabled["runs"]["rate"]) <= {0.003, 0.03}
    documented = tabled["columns"].query("table == 'runs'")
    assert documented["column"].tolist() == list(tabled["runs"].columns)


def test_lists_survive_in_every_format(tiny_run, results, tmp_path):
    listed = [name for name, measure in results.measures.items() if measure.listed and name in results.steps]
    assert listed
    expected = next(value for value in results.steps[listed[0]] if value is not None)
    for kind in FORMATS:
        found = READERS[kind](export(tiny_run, kind, tmp_path / kind)["curves"])[listed[0]].dropna().iloc[0]
        np.testing.assert_allclose(json.loads(found) if kind == "csv" else found, expected, rtol=1e-6)


def test_wrong_wishes_are_one_sentence(tiny_run, tmp_path):
    with pytest.raises(InputError, match=r"--format: unknown format 'cvs'; did you mean 'csv'\?"):
        export(tiny_run, "cvs")
    with pytest.raises(InputError, match=r"--tracker: unknown tracker 'tensorbord'; did you mean 'tensorboard'\?"):
        send(tiny_run, "tensorbord")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .*file/in: cannot be written \(not a directory\)"):
        export(tiny_run, "csv", tmp_path / "file" / "in")
    with pytest.raises(InputError, match="no run lies here"):
        export(tmp_path)
    for name in tracker:
        with pytest.raises(InputError, match="holds files already; name a folder that is empty or not there"):
            send(tiny_run, name, tmp_path)


def test_the_command_line_exports(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stability", "export", str(tiny_run), "--format", "json", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert str(tmp_path / "findings.json") in capsys.readouterr().out


@pytest.mark.parametrize("name", tracker)
def test_a_tracker_that_is_missing_is_named_with_its_extra(name, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=rf"--tracker {name} needs the package '{name}'.*contrastive-stability\[{name}\]"
    ):
        send(tiny_run, name, tmp_path / "out")


# Trackers warn of their own dependencies' affairs; what they write is what is tested.
OTHERS_WARNINGS = pytest.mark.filterwarnings("ignore")


@needs("tensorboard")
@OTHERS_WARNINGS
def test_tensorboard_holds_the_curves(tiny_run, results, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert send(tiny_run, "tensorboard", tmp_path) == f"tensorboard --logdir {tmp_path}"
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) == len(results.runs)
    events = EventAccumulator(str(tmp_path / "clip-b8-mismatch0-lr0.01-s0"))
    events.Reload()
    run = results.runs.query("arm == 'clip' and batch_size == 8 and noise == 0 and seed == 0")["run"].item()
    expected = results.steps.loc[results.steps["run"] == run, ["step", "loss"]].dropna()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    np.testing.assert_allclose(found, expected.to_numpy(), rtol=1e-6)


@needs("wandb")
@OTHERS_WARNINGS
@pytest.mark.slow
def test_wandb_writes_offline_runs(tiny_run, results, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sentence = send(tiny_run, "wandb", tmp_path)
    assert sentence == f"wandb sync {tmp_path}/wandb/offline-run-*"
    written = [*tmp_path.glob("wandb/offline-run-*/run-*.wandb")]
    assert {path.stem.removeprefix("run-") for path in written} == {*results.runs["run"]}
    assert all(path.stat().st_size > 500 for path in written)


@needs("mlflow")
@OTHERS_WARNINGS
@pytest.mark.slow
def test_mlflow_holds_curves_parameters_and_final_values(tiny_run, results, tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy", reason="pip install 'contrastive-stability[mlflow]' brings sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    send(tiny_run, "mlflow", tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (len(results.runs),)
        losses = database.execute("select value from metrics where key = 'loss'").fetchall()
        arms = {value for (value,) in database.execute("select value from params where key = 'arm'")}
    np.testing.assert_allclose(sorted(value for (value,) in losses), np.sort(results.steps["loss"].dropna()), rtol=1e-6)
    assert arms == {*results.runs["arm"]}


def test_findings_show_themselves_in_a_notebook_with_everything_escaped(results):
    findings = analyze(results)
    odd = replace(findings.claims[0], text="<script>alert('x')</script> & more")
    page = replace(findings, claims=(odd, *findings.claims[1:]), study="<b>")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<tr>") == len(findings.claims)


def test_a_spectrum_shows_its_extremes_in_a_notebook():
    diagonal = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    found = spectrum(lambda p: (diagonal * p["x"] ** 2).sum() / 2, {"x": torch.ones(3, dtype=torch.float64)}, steps=3)
    page = found._repr_html_()
    assert "<td>3 ± " in page
    assert "<td>-1 ± " in page
    assert "<td>2.5 ± " in page
    assert page.count("<tr>") == 2
