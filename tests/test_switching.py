"""Runs that start from others in mid-training, or from a file: the same bits however they come there, and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pretended_device import DEVICE, counted, pretended
from safetensors.torch import load_file, save_file

from stability.analysis import analyze, load_results
from stability.analysis.pairing import run_values
from stability.execute import Callbacks, estimate, replay_run, run
from stability.execute.planning import plan_groups
from stability.execute.verifying import verify
from stability.execute.worker import Task, train_remote
from stability.grid import Group, groups_of, run_table, runs_of, study_of
from stability.registry import InputError
from stability.report.figures.trajectories import over_training
from stability.report.method import paragraphs
from stability.results import Results, summarize
from stability.stats import SUMMARIES
from stability.store import group_path
from stability.study import Start, parse_study
from stability.train import Trainer
from stability.train.checkpoints import checkpoint_of, read_checkpoint, write_checkpoint
from stability.train.optimizer import lr_schedule_factor
from stability.train.trainer import Parents

CPU = torch.device("cpu")

TEXT = """
title = "Switching"
question = "What does a change of the loss cost?"

[data]
name = "digits"

[model]
image = { name = "mlp", width = 8, depth = 1 }
text = { name = "token_transformer", width = 4, heads = 1 }
embed_dim = 4

[train]
steps = 9
warmup = 2
lr_schedule = "cosine"
weight_decay = 0.01
scalar_lr_multiplier = 10.0

[arms.child]
loss = "siglip"
start = { arm = "clip", step = 4, bias = "fitted" }

[arms.grandchild]
loss = "clip"
start = { arm = "child", step = 7 }

[grid]
arms = ["grandchild", "child", "clip"]
batch_size = [16]
noise = [0.0, 0.4]
lr = [0.01]
seeds = 2

[probes.retrieval]
every = 3

[probes.held_out_loss]
every = 5
batches = 2
"""

CLAIMS = """
[[claims]]
id = "retained"
primary = true
text = "The child keeps more of its recall than the grandchild"
measure = "recall_retained"
contrast = "difference"
compare = ["child", "grandchild"]
expect = "higher"
margin = 0.05

[[claims]]
id = "recall"
text = "The child recalls as much as its parent"
measure = "recall_at_1"
contrast = "difference"
compare = ["child", "clip"]
expect = "equal"
margin = 0.5
"""


def parsed(*changes: tuple[str, str], text: str = TEXT + CLAIMS):
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return parse_study(text, "t.toml", "t")


def child_of(start: str, *changes: tuple[str, str], loss: str = "siglip", text: str = TEXT):
    """A study of clip and one child of it with this start, without claims."""
    return parsed(
        (
            text[text.index("[arms.child]") : text.index("[grid]")],
            f'[arms.child]\nloss = "{loss}"\nstart = {start}\n\n',
        ),
        ('"grandchild", "child"', '"child"'),
        *changes,
        text=text,
    )


def trainer_of(study, arm, device=CPU, **how):
    runs = tuple(run for run in runs_of(study) if run.arm == arm)
    size = runs[0].batch_size
    group = Group("g", tuple(run for run in runs if run.batch_size == size))
    return Trainer(study_of(study, group), group, study.pairs(), device, **how)


def trained(study, arm, to=None):
    """Train an arm up to a step, and return its trainer and the rows of its steps by step."""
    trainer, rows = trainer_of(study, arm), {}
    last = trainer.study.train.steps if to is None else to
    for step in range(trainer.population.step, last):
        rows[step] = trainer.step()
    return trainer, rows


def towers(population):
    names = [name for name in population.spec.layout.sizes if not name.startswith("loss.")]
    return torch.cat([population.spec.layout.view(population.theta, name).flatten(1) for name in names], 1)


# --- what a child starts from ----------------------------------------------------------------------------------------


def test_a_child_has_the_towers_of_its_parent_before_the_step_and_sees_its_batches_from_there_on():
    study = parsed()
    parent, _ = trained(study, "clip", to=4)
    child = trainer_of(study, "child")
    assert child.population.step == 4
    assert torch.equal(towers(child.population), towers(parent.population))
    assert torch.equal(child.inputs()["index"], parent.inputs()["index"])
    kept, theirs = (
        each.population.spec.layout.view(each.population.theta, "loss.log_scale") for each in (child, parent)
    )
    assert torch.equal(kept, theirs)
    assert not child.population.optimizer.steps
    assert all((buffer == 0).all() for buffer in child.population.optimizer.buffers.values())


@pytest.mark.parametrize("corruption", ["fixed", "fresh"])
def test_a_fitted_bias_makes_the_probabilities_of_the_first_batch_sum_to_its_matches(corruption):
    """At the minimum over b, d/db sum_ij softplus(-z_ij (t s_ij + b)) = sum_ij sigmoid(t s_ij + b) - B is zero."""
    study = parsed(('name = "digits"', f'name = "digits"\ncorruption = "{corruption}"'))
    trainer, again = trainer_of(study, "child"), trainer_of(study, "child")
    population, spec = trainer.population, trainer.population.spec
    inputs = trainer.inputs()
    batch = population.data.batch(inputs["index"], ()) if corruption == "fixed" else inputs
    measured = again.step()
    for replica in range(len(population.runs)):
        params = {name: value[replica] for name, value in spec.layout.unflatten_contiguous(population.theta).items()}
        image, text = (spec.embed(name, params, batch[name][replica]).double() for name in ("image", "text"))
        similarity = params["loss.log_scale"].double().exp() * image @ text.T
        low, high = -100.0, 100.0
        for _ in range(80):  # plain bisection
            middle = (low + high) / 2
            low, high = (low, middle) if (similarity + middle).sigmoid().sum() > 16 else (middle, high)
        assert_allclose(params["loss.bias"], low, rtol=1e-6)
        signs = 2 * torch.eye(16, dtype=torch.float64) - 1
        loss = torch.nn.functional.softplus(-signs * (similarity + low)).sum() / 16
        assert_allclose(measured["loss"][replica], loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("start", "log_scale", "bias"),
    [
        ("", None, -10.0),
        ("log_scale = 'initial'", math.log(10), -10.0),
        ("log_scale = 1, bias = '-log B'", 1.0, -math.log(16)),
        ("log_scale = 'kept', bias = -3", None, -3.0),
    ],
)
def test_scalars_start_where_the_study_says(start, log_scale, bias):
    study = child_of(f'{{ arm = "clip", step = 4, {start} }}'.replace(",  }", " }").replace("'", '"'))
    parent, child = trained(study, "clip", to=4)[0].population, trainer_of(study, "child").population
    view = {name: child.spec.layout.view(child.theta, f"loss.{name}") for name in ("log_scale", "bias")}
    theirs = parent.spec.layout.view(parent.theta, "loss.log_scale")
    assert_allclose(view["log_scale"], theirs if log_scale is None else np.full(4, log_scale), rtol=1e-7)
    assert_allclose(view["bias"], np.full(4, bias), rtol=1e-7)


def test_a_bias_of_the_parent_is_kept_and_an_initial_value_of_the_arm_counts():
    study = parsed(("step = 7 }", "step = 7 }\nlog_scale = 3.0"), ('loss = "clip"', 'loss = "siglip"'), text=TEXT)
    assert float(trainer_of(study, "grandchild").step()["log_scale"][0]) == 3.0
    kept = parsed(("step = 7 }", 'step = 7, bias = "kept" }'), ('loss = "clip"', 'loss = "siglip"'), text=TEXT)
    _, rows = trained(kept, "child", to=8)
    assert torch.equal(trainer_of(kept, "grandchild").step()["bias"], rows[7]["bias"])


def test_the_schedule_goes_on_with_a_warm_up_and_a_multiplier_of_its_own():
    study = child_of('{ arm = "clip", step = 4, warmup = 3, lr_multiplier = 0.5 }')
    _, rows = trained(study, "child")
    expected = [0.5 * min(1, (step - 3) / 3) * 0.5 * (1 + math.cos(math.pi * (step - 2) / 7)) for step in range(4, 9)]
    assert_allclose(
        [float(rows[step]["learning_rate"][0]) for step in range(4, 9)], 0.01 * np.array(expected), rtol=1e-6
    )
    start = study.start_of("child", 16)
    assert [lr_schedule_factor(study.train, step, start) for step in range(4, 9)] == pytest.approx(expected)


CONTINUED = {
    "adamw": [],
    "muon": [("steps = 9", 'steps = 9\noptimizer = "muon"')],
    "schedule_free": [("steps = 9", 'steps = 9\noptimizer = "schedule_free"')],
    "float16, with skipped steps": [("steps = 9", 'steps = 9\nprecision = "float16"\ninitial_loss_scale = 1e8')],
    "bfloat16 logits": [("steps = 9", 'steps = 9\nprecision = "bfloat16"\nlogits = "same"')],
    "shards": [("steps = 9", "steps = 9\nshards = 2")],
    "a shift before": [('name = "digits"', 'name = "digits"\nshift = { step = 3, noise = 0.5 }')],
    "a shift after": [('name = "digits"', 'name = "digits"\nshift = { step = 6, noise = 0.5 }')],
    "adafactor": [("steps = 9", 'steps = 9\noptimizer = "adafactor"')],
    "sgd, clipped at a quantile": [("steps = 9", 'steps = 9\noptimizer = "sgd"\nmomentum = 0.9\nclip_quantile = 0.5')],
    "fresh corruption": [('name = "digits"', 'name = "digits"\ncorruption = "fresh"')],
    "equal samples": [("steps = 9", 'steps = 18\nbudget = "samples"'), ("batch_size = [16]", "batch_size = [8, 16]")],
    "train_pairs": [("batch_size = [16]", "batch_size = [16]\ntrain_pairs = [40]")],
}


@pytest.mark.parametrize("case", CONTINUED)
def test_a_child_with_its_parent_s_loss_and_state_is_its_parent_bit_for_bit(case):
    step = 8 if case == "equal samples" else 4
    study = child_of(f'{{ arm = "clip", step = {step}, optimizer_state = "kept" }}', *CONTINUED[case], loss="clip")
    for size in study.grid.batch_size:
        runs = {
            arm: tuple(r for r in runs_of(study) if (r.arm, r.batch_size) == (arm, size)) for arm in study.grid.arms
        }
        groups = {arm: Group(arm, members) for arm, members in runs.items()}
        parent, child = (
            Trainer(study_of(study, groups[arm]), groups[arm], study.pairs(), CPU) for arm in ("clip", "child")
        )
        while parent.population.step < child.population.step:
            parent.step()
        while parent.population.step < parent.study.train.steps:
            ours, theirs = child.step(), parent.step()
            # A step that float16 skips has no gradient norm.
            assert all(torch.equal(ours[name].nan_to_num(-7.0), theirs[name].nan_to_num(-7.0)) for name in theirs)
        assert torch.equal(parent.population.theta, child.population.theta)
        assert torch.equal(parent.population.clipper.recent, child.population.clipper.recent)
        assert int(parent.population.clipper.seen) == int(child.population.clipper.seen)
        for name in study.probes:
            ours, theirs = child.read(name).values, parent.read(name).values
            assert all(torch.equal(ours[key].nan_to_num(), theirs[key].nan_to_num()) for key in theirs)


def test_a_child_without_the_state_of_an_average_starts_from_the_average():
    changes = [("steps = 9", 'steps = 9\noptimizer = "schedule_free"')]
    study = child_of('{ arm = "clip", step = 4 }', *changes, loss="clip")
    parent, child = trained(study, "clip", to=4)[0].population, trainer_of(study, "child").population
    assert torch.equal(child.theta, parent.evaluated)
    assert not torch.equal(child.theta, parent.theta)


def test_kept_means_of_towers_and_common_scalars_belong_to_the_right_numbers():
    study = child_of('{ arm = "clip", step = 4, optimizer_state = "kept", bias = -3.0 }')
    parent, child = trained(study, "clip", to=4)[0].population, trainer_of(study, "child").population
    assert child.optimizer.steps == int(child.optimizer.count) == 4
    for name, ours in child.optimizer.buffers.items():
        ours, theirs = child.spec.layout.unflatten(ours), parent.spec.layout.unflatten(parent.optimizer.buffers[name])
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
        assert not ours["loss.bias"].any()


def test_a_population_of_children_is_its_members_trained_alone_bit_for_bit():
    study = parsed()
    for arm in ("child", "grandchild"):
        together, rows = trained(study, arm)
        members = [member for member in runs_of(study) if member.arm == arm]
        for index, member in enumerate(members):
            alone = Trainer(study, Group("one", (member,)), study.pairs(), CPU)
            for step in range(alone.population.step, study.train.steps):
                measured = alone.step()
                assert all(torch.equal(measured[name][0], rows[step][name][index]) for name in measured), (arm, step)
            assert torch.equal(alone.population.theta[0], together.population.theta[index])


def test_a_run_whose_parent_is_no_longer_finite_is_not_finite_either():
    study = parsed()
    parent = trainer_of(study, "clip")
    parent.population.theta[1] = torch.nan
    for _ in range(4):
        parent.step()
    child = trainer_of(study, "child", parents=Parents(trained=False))
    assert child.population.alive.all()
    from stability.train.starting import start_state_

    child.population.theta.nan_to_num_(0.5)
    origin = dataclasses.replace(
        checkpoint_of(parent.population, 4), runs=tuple(run.parent.id for run in child.population.runs)
    )
    start_state_(child.population, origin)
    assert child.population.alive.tolist() == [True, False, True, True]
    assert child.step()["loss"].isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("optimizer_state", ["reset", "kept"])
def test_an_accelerator_starts_children_with_the_bits_of_the_cpu_and_then_waits_for_nothing(optimizer_state):
    state = ('bias = "fitted" }', f'bias = "fitted", optimizer_state = "{optimizer_state}" }}')
    few = ("noise = [0.0, 0.4]", "noise = [0.4]"), ("step = 4, bias", "step = 1, bias")
    study = parsed(state, *few, ("lr_schedule", "clip_quantile = 0.5\nlr_schedule"), text=TEXT)
    measured = {}
    for device in (CPU, DEVICE):
        with pretended():
            trainer = trainer_of(study, "child", device=device)
            first = {name: value.cpu() for name, value in trainer.step().items()}
            with counted() as counts:
                trainer.step()
            measured[device] = first | {"theta": trainer.population.theta.cpu()}
    assert not counts.waits, counts.waits
    assert all(torch.equal(measured[DEVICE][name], value) for name, value in measured[CPU].items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_a_child_captured_as_a_cuda_graph_is_a_child_trained_eagerly():
    study, device = parsed(("steps = 9", "steps = 30"), text=TEXT), torch.device("cuda")
    captured, eager = (trainer_of(study, "child", device=device, capture=capture) for capture in (True, False))
    for _ in range(captured.warmup_steps + 4):
        ours, theirs = captured.step(), eager.step()
        assert_allclose(ours["loss"].cpu(), theirs["loss"].cpu(), rtol=1e-3)
    assert captured.captured, captured.notes
    assert captured.population.optimizer.steps == int(captured.population.optimizer.count)


# --- files -----------------------------------------------------------------------------------------------------------


def group_files(where: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((where / "groups").glob("*.parquet"))}


@pytest.fixture(scope="module")
def switched(tmp_path_factory) -> Path:
    """A finished run of the study; treat it as read-only."""
    return run(parsed(), "cpu", out=tmp_path_factory.mktemp("runs") / "switched", save_params=True)


class Killed(Exception):
    pass


def killed_after(groups: int) -> Callbacks:
    """Callbacks that end the run when so many groups are done."""
    left = [groups]

    def done(group, seconds):
        left[0] -= 1
        if not left[0]:
            raise Killed

    return Callbacks(done=done)


def test_rows_begin_at_the_switch_and_every_probe_is_read_there(switched):
    results = load_results(switched)
    rows = results.steps.merge(results.runs[["run", "arm"]], on="run")
    for arm, first in (("clip", 0), ("child", 4), ("grandchild", 7)):
        mine = rows[rows["arm"] == arm]
        assert sorted(mine["step"].unique()) == [*range(first, 10)]
        recalled = sorted(mine.dropna(subset=["recall_at_1"])["step"].unique())
        assert recalled == sorted({first, *(step for step in (0, 3, 6, 9) if step > first)})
        assert sorted(mine.dropna(subset=["held_out_loss"])["step"].unique())[0] == first
        diverged = results.runs[results.runs["arm"] == arm]["diverged_at"].dropna()
        assert (diverged >= first).all()
        assert len(diverged) or arm != "child"


def test_a_checkpoint_the_parent_trained_again_a_kill_and_another_machine_give_the_same_bytes(switched, tmp_path):
    whole, study = group_files(switched), parsed()
    assert not (switched / "checkpoints").exists()
    out, without = tmp_path / "r", tmp_path / "without"
    with pytest.raises(Killed):
        run(study, "cpu", out=out, callbacks=killed_after(1))
    assert len(list((out / "checkpoints").glob("*.safetensors"))) == 1
    shutil.copytree(out, without)
    shutil.rmtree(without / "checkpoints")
    with pytest.raises(Killed):
        run(study, "cpu", out=out, callbacks=killed_after(1))
    assert len(list((out / "checkpoints").glob("*.safetensors"))) == len(group_files(out)) == 2
    for resumed in (out, without):
        run(study, "cpu", out=resumed)
        assert group_files(resumed) == whole
        assert not (resumed / "checkpoints").exists()
    group = plan_groups(study, CPU, runs_of(study)).groups[-1]
    sent = train_remote(Task(study, group, tmp_path / "elsewhere", CPU, checkpoints=True))
    assert sent.files == {f"groups/{group.id}.parquet": whole[f"{group.id}.parquet"]}


def test_checkpoints_are_read_and_damaged_ones_are_not(switched, tmp_path):
    study, whole = parsed(), group_files(switched)
    with pytest.raises(Killed):
        run(study, "cpu", out=tmp_path / "r", callbacks=killed_after(1))
    (path,) = (tmp_path / "r" / "checkpoints").glob("*.safetensors")
    original = path.read_bytes()
    ids = [member.id for member in runs_of(study) if member.arm == "clip"]
    found, notes = read_checkpoint(path.parent, ids[::-1], 4)
    assert found.runs == tuple(ids[::-1])
    assert notes == ()
    assert read_checkpoint(path.parent, [*ids, "another"], 4) == (None, ())
    assert read_checkpoint(path.parent, ids, 5) == (None, ())
    assert read_checkpoint(tmp_path / "none", ids, 4) == (None, ())
    # Written again from memory: the same bytes.
    write_checkpoint(tmp_path / "c" / path.name, read_checkpoint(path.parent, ids, 4)[0])
    assert (tmp_path / "c" / path.name).read_bytes() == original
    # Others are believed: the child starts from what the checkpoint says.
    other = dataclasses.replace(found, theta=found.theta * 1.01)
    write_checkpoint(path, other)
    shutil.copytree(tmp_path / "r", tmp_path / "other")
    run(study, "cpu", out=tmp_path / "other")
    assert group_files(tmp_path / "other") != whole
    for damaged in (original[:-100], original[:-1] + bytes([original[-1] ^ 1]), b"no such file"):
        path.write_bytes(damaged)
        assert read_checkpoint(path.parent, ids, 4)[0] is None
    said: list[str] = []
    run(study, "cpu", out=tmp_path / "r", callbacks=Callbacks(say=said.append))
    assert group_files(tmp_path / "r") == whole
    assert any("damaged" in sentence and "trained again" in sentence for sentence in said)


def test_workers_train_children_after_their_parents_to_the_same_bytes(switched, tmp_path):
    order: list[str] = []
    with ThreadPoolExecutor(1) as executor:
        callbacks = Callbacks(done=lambda group, seconds: order.append(group.arm))
        run(parsed(), "cpu", executor, tmp_path / "r", callbacks)
    assert group_files(tmp_path / "r") == group_files(switched)
    assert order == ["clip", "child", "grandchild"]


def test_verify_and_replay_train_the_parents_too(switched):
    assert not verify(switched, 0).differences
    study = parsed()
    for arm, first in (("child", 4), ("grandchild", 7)):
        run_id = next(member.id for member in runs_of(study) if member.arm == arm)
        final, kept = replay_run(switched, run_id), replay_run(switched, run_id, keep=lambda first, last: [first, last])
        assert sorted(kept.path) == [first, 9]
        assert all(torch.equal(final.params[name], value) for name, value in kept.params.items())
        with pytest.raises(InputError, match=f"step is 3; allowed: {first} to 9, the steps of the run"):
            replay_run(switched, run_id, step=3)


def test_a_plan_has_parents_first_and_counts_the_steps_of_children():
    study = parsed()
    assert [group.arm for group in plan_groups(study, CPU, runs_of(study)).groups] == ["clip", "child", "grandchild"]
    assert [group.depth for group in plan_groups(study, CPU, runs_of(study)).groups] == [0, 1, 2]
    cost = estimate(study, CPU, 1)
    assert (cost.steps, cost.least_steps, cost.groups) == (9, 2, 3)
    assert study.switches_from("clip", 16) == (4,)
    assert study.switches_from("grandchild", 16) == ()


def test_equal_samples_move_the_switch_with_the_batch_size():
    budget = ("steps = 9", 'steps = 18\nbudget = "samples"'), ("batch_size = [16]", "batch_size = [8, 16]")
    study = child_of('{ arm = "clip", step = 8, warmup = 4 }', *budget)
    for size, first in ((8, 8), (16, 4)):
        trained = study.trained_as("child", size)
        assert study.first_step("child", size) == trained.first_step("child", size) == first
        assert trained.start_of("child", size).warmup == first // 2
        assert trained.untrained == study


# --- identity --------------------------------------------------------------------------------------------------------


def ids(study, arm):
    return [member.id for member in runs_of(study) if member.arm == arm]


def test_a_start_is_part_of_what_a_run_is_and_its_parent_is_not_changed_by_it():
    study = child_of('{ arm = "clip", step = 4 }')
    plain = parsed(
        (TEXT[TEXT.index("[arms.child]") : TEXT.index("[grid]")], ""), ('"grandchild", "child", ', ""), text=TEXT
    )
    assert ids(study, "clip") == ids(plain, "clip")
    spelled = child_of(
        '{ arm = "clip", step = 4, optimizer_state = "reset", log_scale = "kept", bias = "initial", warmup = 0, '
        "lr_multiplier = 1.0 }"
    )
    assert ids(study, "child") == ids(spelled, "child")
    others = [
        child_of('{ arm = "clip", step = 5 }'),
        child_of('{ arm = "clip", step = 4, bias = "fitted" }'),
        child_of('{ arm = "clip", step = 4, log_scale = "initial" }'),
        child_of('{ arm = "clip", step = 4, warmup = 1 }'),
        child_of('{ arm = "clip", step = 4, optimizer_state = "kept" }'),
    ]
    seen = {run_id for other in (study, *others) for run_id in ids(other, "child")}
    assert len(seen) == 4 * (1 + len(others))
    assert len({other.hash for other in (study, *others)}) == 1 + len(others)
    parents = [row["parent"] for row in run_table(runs_of(study)) if row["arm"] == "child"]
    assert parents == ids(study, "clip")


def test_replications_have_parents_of_their_own():
    (other,) = parsed(
        ('[[claims]]\nid = "retained"', '[replications.later]\ngrid.first_seed = 50\n\n[[claims]]\nid = "retained"')
    ).replications
    assert {member.parent.seed for member in runs_of(other) if member.parent} == {50, 51}


def test_what_changes_a_parent_changes_its_children_and_no_other_run():
    plain, hotter = (
        parsed(),
        parsed(("[arms.grandchild]", "[arms.clip]\nloss = 'clip'\nlog_scale = 3.0\n\n[arms.grandchild]")),
    )
    for arm in ("clip", "child", "grandchild"):
        assert not {*ids(plain, arm)} & {*ids(hotter, arm)}
    reset = parsed(("step = 7 }", "step = 7, warmup = 1 }"))
    assert [ids(reset, arm) == ids(plain, arm) for arm in ("clip", "child", "grandchild")] == [True, True, False]


def test_what_an_axis_sets_is_set_for_parent_and_child():
    axis = ("seeds = 2", 'seeds = 2\n"train.weight_decay" = [0.0, 0.1]')
    study = child_of('{ arm = "clip", step = 4, optimizer_state = "kept" }', axis, loss="clip")
    assert all(member.parent.settings == member.settings for member in runs_of(study) if member.parent)
    (group,) = (group for group in groups_of(runs_of(study), lambda run: 32) if group.arm == "child")
    parents = Group("p", tuple(member.parent for member in group.runs))
    child, parent = (Trainer(study_of(study, each), each, study.pairs(), CPU) for each in (group, parents))
    for _ in range(9):
        theirs = parent.step()
    for _ in range(5):
        ours = child.step()
    assert torch.equal(ours["loss"], theirs["loss"])


# --- parameters from disk --------------------------------------------------------------------------------------------


def saved_of(switched: Path, arm: str) -> tuple[Path, list[str]]:
    study = parsed()
    (group,) = (group for group in plan_groups(study, CPU, runs_of(study)).groups if group.arm == arm)
    return switched / "params" / f"{group.id}.safetensors", [member.id for member in group.runs]


def test_runs_start_from_a_file_of_a_run_and_from_one_s_own(switched, tmp_path):
    path, run_ids = saved_of(switched, "clip")
    own = tmp_path / "own.safetensors"
    save_file({name: value[2].contiguous() for name, value in load_file(path).items()}, own)
    studies = [
        child_of(f'{{ parameters = "{file}"{key}, bias = "fitted" }}')
        for file, key in ((path, f', run = "{run_ids[2][:8]}"'), (own, ""))
    ]
    for study in studies:
        trainer = trainer_of(study, "child")
        assert trainer.population.step == 0
        for name, value in load_file(own).items():
            assert torch.equal(trainer.population.spec.layout.view(trainer.population.theta, name)[1], value)
        out = run(study, "cpu", out=tmp_path / str(len(list(tmp_path.iterdir()))))
        retained = summarize(load_results(out), "recall_retained", "tail_mean")
        assert retained[ids(study, "child")].notna().all()
        assert retained.reindex(ids(study, "clip")).isna().all()


def test_the_content_of_a_file_not_its_place_is_part_of_a_run(switched, tmp_path):
    path, _ = saved_of(switched, "clip")
    for name, factor in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        save_file({key: value[0] * factor for key, value in load_file(path).items()}, tmp_path / f"{name}.safetensors")
    a, b, c = (child_of(f'{{ parameters = "{tmp_path / name}.safetensors" }}') for name in "abc")
    assert ids(a, "child") == ids(b, "child")
    assert a.hash == b.hash != c.hash
    assert not {*ids(a, "child")} & {*ids(c, "child")}


def rewritten(path: Path, to: Path, **changes) -> str:
    tensors = {name: value[0].contiguous() for name, value in load_file(path).items()} | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, to)
    return str(to)


def test_files_that_do_not_fit_are_refused_in_one_sentence(switched, tmp_path):
    path, _ = saved_of(switched, "clip")
    name = next(name for name in load_file(path) if name.endswith("weight"))
    first = load_file(path)[name][0]
    to = tmp_path / "f.safetensors"

    def refused(match, file=None, more=""):
        with pytest.raises(InputError, match=match) as error:
            child_of(f'{{ parameters = "{file or to}"{more} }}')
        assert str(error.value).startswith("t.toml: arms.child.start")

    refused("4 runs; allowed: one of them, as run = ", path)
    refused("no run begins with 'zz'", path, ', run = "zz"')
    refused("no such file", tmp_path / "none.safetensors")
    refused(r"got '.*none.pt'; allowed: a file called \*.safetensors", tmp_path / "none.pt")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + bytes(100))
    refused("cannot be read as a safetensors file", tmp_path / "pickle.safetensors")
    rewritten(path, to, **{name: None})
    refused(f"has no '{re.escape(name)}', a parameter of the towers")
    rewritten(path, to, **{"image.more": torch.zeros(2)})
    refused("has 'image.more', which no tower has")
    rewritten(path, to, **{name: first[:1].contiguous()})
    refused(r"has the shape \[1, .*as in the towers")
    rewritten(path, to, **{name: first.half()})
    refused("is float16; allowed: float32")
    rewritten(path, to, **{name: first * math.nan})
    refused("numbers that are not finite")
    rewritten(path, to, **{"loss.log_scale": None})
    refused("got 'kept', but .* has no log_scale", more=', log_scale = "kept"')
    refused("a file of parameters has none", more=', optimizer_state = "kept"')
    refused("step: got 3; allowed with arm only", more=", step = 3")
    assert child_of(f'{{ parameters = "{to}" }}')  # log t then starts at the arm's own


# --- measures after the event ----------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.7])), unique_by=lambda pair: pair[0]),
    st.integers(0, 30),
    st.booleans(),
)
def test_summaries_after_an_event_are_those_of_a_plain_loop(pairs, event, higher):
    steps, values = (np.array([pair[k] for pair in sorted(pairs)], dtype=float) for k in (0, 1))
    before, after, fell, recovered = math.nan, [], False, None
    for step, value in sorted(pairs):
        if step == event:
            before = value
        if step <= event:
            continue
        after.append(value)
        worse = value < before if higher else value > before
        if fell and not worse and recovered is None:
            recovered = step
        fell = fell or worse
    expected = {"retained": math.nan, "recovery": math.nan, "jump": math.nan}
    if after and not math.isnan(before):
        expected["recovery"] = 0 if not fell else (31 if recovered is None else recovered) - event
        expected["jump"] = max(after) - before
        expected["retained"] = (min(after) if higher else max(after)) / before if before else math.nan
    for name, number in expected.items():
        assert_allclose(SUMMARIES[name](steps, values, event, 31, higher), number)


def curves(study, recall) -> Results:
    """Results with this recall by arm and step, the same for every seed and noise level, and a chance level of .1."""
    runs = runs_of(study)
    frame = pd.DataFrame(
        [{"run": r.id, "arm": r.arm, "seed": r.seed, "batch_size": r.batch_size, "noise": r.noise} for r in runs]
    ).assign(status="finished", corruption="mismatch", lr=0.01, train_pairs=0, lr_multiplier=1.0)
    rows = [
        {"run": r.id, "step": step, "loss": 1.0, "recall_at_1": value, "recall_at_1_chance": 0.1}
        for r in runs
        for step, value in recall[r.arm].items()
    ]
    return Results(study, {"groups": []}, frame, pd.DataFrame(rows), study.measures)


def test_what_is_retained_and_the_steps_to_recover_are_those_of_each_run_s_own_event():
    study = parsed()
    results = curves(
        study,
        {
            "clip": {0: 0.1, 4: 0.5, 9: 0.2},
            "child": {4: 0.5, 5: 0.2, 6: 0.45, 8: 0.5, 9: 0.1},
            "grandchild": {7: 0.1, 8: 0.05, 9: 0.05},
        },
    )
    by_arm = {arm: results.runs.set_index("run")["arm"] == arm for arm in study.grid.arms}
    for name, child, grandchild in (("recall_retained", 0.2, 0.5), ("steps_to_recover", 4, 2)):
        values = summarize(results, name, "tail_mean").reindex(results.runs["run"])
        assert_allclose(values[by_arm["child"]], child)
        assert_allclose(values[by_arm["grandchild"]], grandchild)
        assert values[by_arm["clip"]].isna().all()
    results.runs["status"] = "diverged"
    claim = study.claims[0]
    # A run that diverged counts as one at chance from its event on.
    for name, child in (("recall_retained", 0.2), ("steps_to_recover", 5)):
        values = run_values(results, claim, name, "raw", "tail_mean", "linear")
        assert_allclose(values[by_arm["child"]], child)


def test_the_held_out_loss_is_the_run_s_own_loss_of_pairs_it_never_sees():
    study = child_of('{ arm = "clip", step = 4, bias = "fitted" }')
    parent, child = trained(study, "clip", to=4)[0], trainer_of(study, "child")
    both = [trainer.read("held_out_loss").values["held_out_loss"] for trainer in (parent, child)]
    assert all(values.isfinite().all() for values in both)
    assert not torch.equal(*both)
    stateful = parsed(('loss = "siglip"', 'loss = "global_contrastive"'), (', bias = "fitted"', ""), text=TEXT)
    assert trainer_of(stateful, "child").read("held_out_loss").values["held_out_loss"].isnan().all()


def test_studies_without_an_event_have_no_such_measures_and_say_so(tiny_text):
    study = parse_study(tiny_text, "t.toml", "t")
    assert not {"recall_retained", "steps_to_recover", "held_out_loss_jump"} & {*study.measures}
    assert {"recall_retained", "steps_to_recover", "held_out_loss_jump"} <= {*parsed().measures}
    with pytest.raises(InputError, match="'recall_retained' is measured after an event, and this study has none"):
        parse_study(tiny_text.replace('"gradient_noise_fraction"', '"recall_retained"'), "t.toml", "t")


def test_claims_compare_children_and_a_child_with_its_parent(switched):
    findings = analyze(load_results(switched))
    assert [claim.n_pairs for claim in findings.claims] == [2, 2]
    results = load_results(switched)
    tail = summarize(results, "recall_at_1", "tail_mean")
    rows = results.steps.dropna(subset=["recall_at_1"])
    late = rows[rows["step"] >= 0.8 * 9].groupby("run")["recall_at_1"].mean()
    assert_allclose(tail.reindex(late.index), late)


def test_figures_mark_the_switch_and_the_method_says_what_arms_start_from(switched):
    results = load_results(switched)
    figure = next(figure for figure in over_training(results) if figure.id == "loss")
    lines = {
        float(line.get_xdata()[0]) for axes in figure.figure.axes for line in axes.lines if len(line.get_xdata()) == 2
    }
    assert {4.0, 7.0} <= lines
    assert "Thin vertical lines: where arms start from others." in figure.caption
    told = {title: text for title, text, *_ in paragraphs(results, analyze(results))}
    words = told["Runs that start from others"]
    assert (
        "The runs of child start from those of clip at the same seed, in the same cell and before their update 4"
        in words
    )
    assert "the bias at the value that minimizes the loss on the first batch" in words
    assert "all arms but those that start from others start from the same tower weights" in told["Runs and pairing"]


# --- bad input -------------------------------------------------------------------------------------------------------

START = 'start = { arm = "clip", step = 4, bias = "fitted" }'
REFUSED = [
    (START, "start = { step = 4 }", "arms.child.start: got neither arm nor parameters; allowed: arm and step"),
    (START, 'start = { arm = "clip" }', "arms.child.start.step: required with arm, but missing"),
    (
        START,
        'start = { arm = "clp", step = 4 }',
        "arms.child.start.arm: 'clp' is not in grid.arms; did you mean 'clip'",
    ),
    (
        START,
        'start = { arm = "child", step = 4 }',
        "arms.child.start.arm: 'child' starts from itself; allowed: another",
    ),
    (
        START,
        'start = { arm = "grandchild", step = 4 }',
        "which starts from 'child'; allowed: an arm that does not lead",
    ),
    (
        START,
        'start = { arm = "clip", step = 9 }',
        "arms.child.start.step: got 9; allowed: 1 to 8, steps inside the trai",
    ),
    (START, 'start = { arm = "clip", step = 0 }', "arms.child.start.step: got 0; allowed: greater than 0"),
    (
        "step = 7",
        "step = 4",
        "arms.grandchild.start.step: got 4; allowed: 5 to 8, .*'child', which itself starts at step",
    ),
    (START, 'start = { arm = "clip", step = 4, run = "a" }', "start.run: got 'a'; allowed with parameters only"),
    (
        START,
        'start = { arm = "clip", step = 4, bias = "kept" }',
        "bias: got 'kept', but the loss of 'clip' has no bias",
    ),
    (
        START,
        'start = { arm = "clip", step = 4, bias = "best" }',
        "start.bias: got 'best'; allowed: a number, or one of",
    ),
    (
        START,
        'start = { arm = "clip", step = 4, bias = true }',
        "start.bias: got True; allowed: a number, or one of 'kep",
    ),
    (START, 'start = { arm = "clip", step = 4, baias = 1 }', "start.baias: unknown key; did you mean 'bias'"),
    (START, f"{START}\nbias = -3.0", "start.bias: got 'fitted', but the arm sets an initial bias of its own"),
    (
        START,
        'start = { arm = "clip", step = 4, warmup = 5 }',
        "warmup: got 5 at batch size 16; allowed: fewer than the 5",
    ),
    (
        "step = 7 }",
        'step = 7, bias = "initial", log_scale = "best" }',
        "log_scale: got 'best'; allowed: a number, or one",
    ),
    ("step = 7 }", "step = 7, bias = -3.0 }", "arms.grandchild.start.bias: loss 'clip' has no bias; leave it out"),
    (
        'step = 4, bias = "fitted" }',
        'step = 4, optimizer_state = "kept" }\ntrain = { optimizer = "sgd" }',
        "optimizer_state: got 'kept', but 'clip' trains with adamw and 'child' with sgd; allowed: 'reset'",
    ),
    (
        "[probes.retrieval]",
        "[probes.linear_mode]\nfork = 2\n\n[probes.retrieval]",
        "linear_mode.fork: got 2; allowed: ",
    ),
    ("seeds = 2", 'seeds = 2\n"arms.*.start" = [1]', "cannot be an axis: an arm that every arm starts from"),
    ("[grid]", "[tune]\nlr = [0.01, 0.1]\nseeds = 1\n\n[grid]", "tune: is not for studies in which an arm starts from"),
    (
        'compare = ["child", "grandchild"]',
        'compare = ["child", "clip"]',
        "'clip' has no event, so it has no 'recall_re",
    ),
    (
        'contrast = "difference"\ncompare = ["child", "grandchild"]',
        'contrast = "difference"\nreduction = "final"\ncompare = ["child", "grandchild"]',
        "'recall_retained' is one number a run and takes no reduction",
    ),
    (
        'contrast = "difference"\ncompare = ["child", "grandchild"]',
        'contrast = "time_to_threshold"\nthreshold = 0.5\ncompare = ["child", "grandchild"]',
        "is one number a run and reaches no threshold",
    ),
    ("step = 7", "step = 8", "'tail_mean' is the last 20% of a run, and 'grandchild' starts inside it at step 8"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), REFUSED)
def test_a_start_that_cannot_be_is_refused_in_one_sentence(old, new, sentence):
    text = TEXT + CLAIMS
    if "tail_mean" in sentence:
        text = text.replace('compare = ["child", "clip"]', 'compare = ["grandchild", "clip"]')
    with pytest.raises(InputError, match=sentence) as error:
        parsed((old, new), text=text)
    assert str(error.value).startswith("t.toml: ")
    assert "\n" not in str(error.value)


def test_a_packaged_field_of_the_study_cannot_be_set_in_a_file():
    with pytest.raises(InputError, match="unknown key 'base'"):
        parsed(("[data]", "base = 1\n\n[data]"))


def test_a_loss_without_a_minimum_over_its_bias_says_so():
    """The loss of big logits alone: at a scale of e^8 no bias of at most 1,000 balances the pairs."""
    study = child_of('{ arm = "clip", step = 4, log_scale = 12.0, bias = "fitted" }')
    with pytest.raises(InputError, match="no bias from -1000 to 1000 minimizes the loss of run"):
        trainer_of(study, "child")


def test_manifests_name_the_parents(switched):
    manifest = json.loads((switched / "manifest.json").read_text())
    by_arm = {arm: [row for row in manifest["runs"] if row["arm"] == arm] for arm in ("clip", "child", "grandchild")}
    assert [row["parent"] for row in by_arm["child"]] == [row["run"] for row in by_arm["clip"]]
    assert [row["parent"] for row in by_arm["grandchild"]] == [row["run"] for row in by_arm["child"]]
    assert "parent" not in by_arm["clip"][0]
    for entry in manifest["groups"]:
        assert group_path(switched, entry["id"]).is_file()


# --- the guide -------------------------------------------------------------------------------------------------------

GUIDE = (Path(__file__).parent.parent / "docs" / "vary.md").read_text(encoding="utf-8")


def test_the_study_of_the_guide_runs_to_its_findings(tmp_path):
    (text,) = (
        block for block in re.findall(r"```toml\n(.*?)```", GUIDE, flags=re.DOTALL) if "Switching the loss" in block
    )
    assert {
        start.bias for start in (parse_study(text, "t.toml", "t").arm(f"bias-{name}").start for name in ("10",))
    } == {-10}
    study = parse_study(text, "t.toml", "t", "smoke")
    findings = analyze(load_results(run(study, "cpu", out=tmp_path / "run")), checks=False)
    assert [claim.n_pairs for claim in findings.claims] == [2, 2, 2]


def test_the_guide_names_every_key_of_a_start():
    table = GUIDE[GUIDE.index("| Key of `start`") :]
    named = {
        key for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for key in re.findall("`([a-z_]+)`", row)
    }
    assert named == {*Start.model_fields}
