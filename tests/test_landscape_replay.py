"""A run trained again is the run that was stored, bit for bit; saved parameters are those it ends with."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from stability import curvature
from stability.execute import Callbacks, replay_run, run
from stability.grid import Group, runs_of
from stability.registry import InputError
from stability.store import checksum, group_path, parameters_path, read_parameters
from stability.study import parse_study
from stability.train import Trainer, replay

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bare(tiny_text):
    """The tiny study without probes and claims: it trains in no time."""
    text = tiny_text.split("[probes.retrieval]")[0] + "[scales.smoke]\ngrid.seeds = 2\ntrain.steps = 4\n"
    return parse_study(text, "bare.toml", "bare", "smoke")


@pytest.fixture(scope="module")
def saved(bare, tmp_path_factory):
    """A finished run that kept its parameters; treat it as read-only."""
    return run(bare, "cpu", out=tmp_path_factory.mktemp("saved") / "bare", save_params=True)


def manifest_of(where):
    return json.loads((where / "manifest.json").read_text())


def test_a_replay_equals_the_stored_group_bit_for_bit_and_ends_where_a_trainer_does(tiny, tiny_run):
    entry = manifest_of(tiny_run)["groups"][0]
    known = {each.id: each for each in runs_of(tiny)}
    group = Group(entry["id"], tuple(known[each] for each in entry["runs"]))
    stored = pq.read_table(group_path(tiny_run, group.id)).to_pandas()
    trainer = Trainer(tiny, group, tiny.pairs(), CPU)
    for _ in range(tiny.train.steps):
        trainer.step()
    again = replay(tiny, group, group.runs[3], stored=stored, keep=[0, 5])
    theirs = trainer.population.spec.layout.unflatten(trainer.population.theta[3].detach())
    assert {name for name in again.params if torch.equal(again.params[name], theirs[name])} == set(theirs)
    assert list(again.path) == [0, 5]
    five = replay(tiny, group, group.runs[3], stored=stored, step=5)
    assert all(torch.equal(five.params[name], again.path[5][name]) for name in theirs)
    assert not torch.equal(five.params["loss.log_scale"], again.params["loss.log_scale"])


def test_a_replay_that_differs_in_one_bit_of_one_measure_is_refused(tiny, tiny_run):
    entry = manifest_of(tiny_run)["groups"][0]
    known = {each.id: each for each in runs_of(tiny)}
    group = Group(entry["id"], tuple(known[each] for each in entry["runs"]))
    stored = pq.read_table(group_path(tiny_run, group.id)).to_pandas()
    row = stored.index[(stored["run"] == group.runs[1].id) & (stored["step"] == 2)]
    stored.loc[row, "gradient_norm"] *= 1 + 2**-23
    with pytest.raises(InputError, match=r"the replay differs from what is stored: gradient_norm at step 2 is [\d.]+"):
        replay(tiny, group, group.runs[1], stored=stored)
    replay(tiny, group, group.runs[1], stored=stored, step=2)
    replay(tiny, group, group.runs[0], stored=stored)


def test_the_objective_is_the_mean_over_the_fixed_batches_of_the_curvature_probe(tiny, tiny_run):
    """The probe's own top eigenvalue, stored by the run, comes out of the replayed objective again."""
    first = runs_of(tiny)[0]
    again = replay_run(tiny_run, first.id)
    assert again.batches["image"].shape[:2] == (2, first.batch_size)
    found = curvature.spectrum(
        again.objective, again.params, batches=again.batches, chunk_size=1, steps=4, trace_probes=1
    ).eigenvalues_high
    rows = pd.read_parquet(tiny_run / "groups")
    stored = rows[(rows["run"] == first.id) & (rows["step"] == tiny.train.steps)]["hessian_max_eigenvalue"].item()
    torch.testing.assert_close(found, torch.tensor([stored]), rtol=1e-3, atol=0)


def test_the_recall_error_is_what_the_retrieval_probe_stored(tiny, tiny_run):
    first = runs_of(tiny)[0]
    again = replay_run(tiny_run, first.id)
    rows = pd.read_parquet(tiny_run / "groups")
    stored = rows[(rows["run"] == first.id) & (rows["step"] == tiny.train.steps)]["recall_at_1"].item()
    assert again.recall_error(again.params).item() == pytest.approx(1 - stored, abs=1e-6)


def test_the_head_of_an_id_is_enough_where_it_is_unique(tiny, tiny_run):
    ids = [each.id for each in runs_of(tiny)]
    head = next(ids[0][:n] for n in range(1, 17) if sum(each.startswith(ids[0][:n]) for each in ids) == 1)
    assert replay_run(tiny_run, head, step=0).run.id == ids[0]
    assert replay_run(tiny_run, None, step=0).run.id == ids[0]


def test_a_run_whose_id_is_mistyped_is_named(tiny, tiny_run):
    known = [run.id for run in runs_of(tiny)]
    for given in (known[3][:5] + "_" + known[3][5:], known[3][:6] + "_"):
        with pytest.raises(InputError, match=f"holds no run '{given}'; did you mean '{known[3]}'"):
            replay_run(tiny_run, given)


@pytest.mark.parametrize(
    ("given", "step", "sentence"),
    [
        ("zzz", None, r"holds no run 'zzz' \(known are 24: "),
        ("", None, "holds no run ''"),
        (None, 9, "step is 9; allowed: 0 to 8"),
        (None, -1, "step is -1; allowed: 0 to 8"),
    ],
)
def test_an_unknown_run_or_step_is_one_sentence(tiny, tiny_run, given, step, sentence):
    with pytest.raises(InputError, match=sentence):
        replay_run(tiny_run, runs_of(tiny)[0].id if given is None else given, step=step)


def test_a_head_that_several_runs_share_asks_for_more(tiny, tiny_run):
    ids = [each.id for each in runs_of(tiny)]
    shared = next(each[0] for each in ids if sum(other[0] == each[0] for other in ids) > 1)
    with pytest.raises(InputError, match=f"runs begin with '{shared}' .*; give more of the id"):
        replay_run(tiny_run, shared)


def test_a_run_directory_of_another_version_or_machine_is_refused(saved, tmp_path):
    where = shutil.copytree(saved, tmp_path / "copy")
    manifest = manifest_of(where)
    first = manifest["runs"][0]["run"]
    for key, entry, sentence in (
        ("versions", {"numpy": "1.0"}, "was run with numpy 1.0, this is"),
        ("device", {"model": "abacus"}, "was run on abacus, this is"),
    ):
        (where / "manifest.json").write_text(json.dumps(manifest | {key: manifest[key] | entry}))
        with pytest.raises(InputError, match=sentence):
            replay_run(where, first)


def test_saved_parameters_are_those_of_a_replay_and_spare_it(saved):
    manifest = manifest_of(saved)
    entry = manifest["groups"][1]
    path = parameters_path(saved, entry["id"])
    assert checksum(path) == entry["params_checksum"]
    for run_id in entry["runs"]:
        steps: list[int] = []
        loaded = replay_run(saved, run_id, progress=lambda done, of, steps=steps: steps.append(done))
        trained = replay_run(saved, run_id, keep=[0])
        assert steps == [4]
        assert loaded.params.keys() == trained.params.keys() == read_parameters(path, run_id).keys()
        assert all(torch.equal(loaded.params[name], trained.params[name]) for name in loaded.params)
        assert all(torch.equal(loaded.batches[name], trained.batches[name]) for name in loaded.batches)


def test_a_run_without_parameters_is_trained_again_for_them_to_the_same_bytes(saved, bare, tmp_path):
    where = run(bare, "cpu", out=tmp_path / "bare")
    groups = {path.name: path.read_bytes() for path in (where / "groups").iterdir()}
    assert not (where / "params").exists()
    said: list[str] = []
    run(bare, "cpu", out=where, callbacks=Callbacks(say=said.append), save_params=True)
    assert len(said) == len(groups)
    assert {path.name: path.read_bytes() for path in (where / "groups").iterdir()} == groups
    ours, theirs = ({path.name: path.read_bytes() for path in (at / "params").iterdir()} for at in (where, saved))
    assert ours == theirs
    next((where / "params").iterdir()).write_bytes(b"damaged")
    said.clear()
    run(bare, "cpu", out=where, callbacks=Callbacks(say=said.append))
    assert not said
    run(bare, "cpu", out=where, callbacks=Callbacks(say=said.append), save_params=True)
    assert len(said) == 1
    assert {path.name: path.read_bytes() for path in (where / "params").iterdir()} == theirs


def test_a_file_that_holds_no_parameters_is_named(saved, tmp_path):
    path = next((saved / "params").iterdir())
    with pytest.raises(InputError, match="holds no parameters of run 'nobody'"):
        read_parameters(path, "nobody")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        read_parameters(broken, "nobody")
