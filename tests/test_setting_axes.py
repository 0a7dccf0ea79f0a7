"""Axes of the grid over keys of other tables: `"train.warmup" = [0, 20]`."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from stability.analysis import analyze, load_results
from stability.encoders import encoder
from stability.execute import run
from stability.grid import groups_of, runs_of, study_of
from stability.losses import loss
from stability.losses.chance import chance_level
from stability.registry import InputError
from stability.report import write_report
from stability.report.figures.trajectories import PLOTS, values_of
from stability.report.method import paragraphs
from stability.report.sections.limitations import _slow_scalars
from stability.results import chance_losses
from stability.stats.wording import number
from stability.study import Study, parse_study
from stability.train import Trainer

CPU = torch.device("cpu")

PER_REPLICA = {
    '"train.warmup"': "[0, 4]",
    '"train.lr_schedule"': '["constant", "cosine"]',
    '"train.betas"': "[[0.9, 0.95], [0.5, 0.999]]",
    '"train.eps"': "[1e-8, 1e-3]",
    '"train.weight_decay"': "[0.0, 0.5]",
    '"train.clip_norm"': '["none", 0.01]',
    '"train.scalar_lr_multiplier"': "[1.0, 10.0]",
    '"arms.*.log_scale"': "[0.0, 2.0]",
}
OTHERS = {
    '"model.image.width"': "[8, 16]",
    '"model.*.width"': "[8, 16]",
    '"model.embed_dim"': "[4, 8]",
    '"data.pairs"': "[64, 96]",
    '"arms.*.max_scale"': "[2.0, 100.0]",
    '"arms.*.logit_cap"': "[2.0, 30.0]",
}


def study_with(axis: str, levels: str, claims: str = "") -> Study:
    text = f"""
title = "T"
question = "Q?"
[data]
name = "latent"
pairs = 64
held_out = 0.25
[model]
image = "mlp"
text = "mlp"
embed_dim = 8
[train]
steps = 12
[grid]
arms = ["clip", "siglip"]
batch_size = [8]
lr = [1e-2]
seeds = 2
{axis} = {levels}
[probes.retrieval]
every = 4
{claims}
"""
    return parse_study(text, "t.toml", "t")


def without_axis(study: Study, assignment: str) -> Study:
    """Return the study whose own key has the value of one level of its axis."""
    key, _, value = assignment.partition(" = ")
    lines = [line for line in study.text.splitlines() if not line.startswith(f'"{key}"')]
    table, _, name = key.rpartition(".")
    index = lines.index(f"[{table}]")
    lines = [line for line in lines if not line.startswith(f"{name} = ")]
    lines.insert(index + 1, f"{name} = {value}")
    return parse_study("\n".join(lines), "t.toml", "t")


@pytest.mark.parametrize(("axis", "levels"), [*PER_REPLICA.items(), *OTHERS.items()])
def test_every_level_makes_runs_of_its_own(axis, levels):
    study = study_with(axis, levels)
    runs = runs_of(study)
    assert len(runs) == len({run.id for run in runs}) == 2 * 2 * 2
    assert {key for run in runs for key, _ in run.settings} == {axis.strip('"')}


@pytest.mark.parametrize(
    ("axis", "levels", "value"),
    [
        ('"train.warmup"', "[0, 4]", "train.warmup = 4"),
        ('"train.betas"', "[[0.9, 0.95], [0.9, 0.999]]", "train.betas = [0.9, 0.95]"),
        ('"data.pairs"', "[64, 96]", "data.pairs = 96"),
        ('"model.embed_dim"', "[4, 8]", "model.embed_dim = 4"),
    ],
)
def test_a_run_has_the_id_that_it_has_in_a_study_that_sets_the_key(axis, levels, value):
    study = study_with(axis, levels)
    alone = {run.id for run in runs_of(without_axis(study, value))}
    assert alone < {run.id for run in runs_of(study)}
    assert len(alone) == 4


@pytest.mark.parametrize(("axis", "levels"), PER_REPLICA.items())
def test_levels_of_training_settings_share_a_population_and_each_run_is_as_if_alone(axis, levels):
    study = study_with(axis, levels)
    groups = groups_of(runs_of(study), lambda run: 32)
    assert len(groups) == 2
    for group in groups:
        together = Trainer(study_of(study, group), group, study.pairs(), CPU)
        for _ in range(study.train.steps):
            together.advance()
        measured = together.read("retrieval")
        assert len({tuple(row.tolist()) for row in together.population.theta}) == len(group.runs)
        for index, one in enumerate(group.runs):
            (alone_group,) = groups_of([one], lambda run: 32)
            alone = Trainer(study_of(study, alone_group), alone_group, study.pairs(), CPU)
            for _ in range(study.train.steps):
                alone.advance()
            assert torch.equal(alone.population.theta[0], together.population.theta[index]), (axis, one.settings)
            values = alone.read("retrieval").values
            assert all(torch.equal(values[name][0], measured.values[name][index]) for name in values)


@pytest.mark.parametrize(("axis", "levels"), PER_REPLICA.items())
def test_a_run_trains_as_in_a_study_whose_own_table_has_the_level(axis, levels):
    """The slow way: a study for each level, with the key written where it belongs."""
    study = study_with(axis, levels)
    for run_ in [each for each in runs_of(study) if each.seed == 0]:
        plain = study.at(run_.settings)
        (slow,) = (each for each in runs_of(plain) if (each.arm, each.seed) == (run_.arm, 0))
        trained = []
        for owner, chosen in ((study, run_), (plain, slow)):
            (group,) = groups_of([chosen], lambda run: 32)
            trainer = Trainer(study_of(owner, group), group, owner.pairs(), CPU)
            for _ in range(6):
                trainer.advance()
            trained.append(trainer.population.theta[0])
        assert slow.id == run_.id
        assert torch.equal(*trained), (axis, run_.settings)


@pytest.mark.parametrize(("axis", "levels"), OTHERS.items())
def test_settings_that_change_shapes_data_or_the_loss_get_groups_of_their_own(axis, levels):
    groups = groups_of(runs_of(study_with(axis, levels)), lambda run: 32)
    assert len(groups) == 4
    assert all(len({run.settings for run in group.runs}) == 1 for group in groups)


CLAIM = """
[[claims]]
id = "a"
primary = true
text = "siglip's recall changes more with warm-up"
measure = "recall_at_1"
contrast = "slope"
axis = "train.warmup"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.1
transform = "linear"
"""


def test_a_claim_along_a_setting_is_the_slope_over_its_levels(tmp_path):
    study = study_with('"train.warmup"', "[0, 2, 8]", CLAIM)
    run(study, device="cpu", out=tmp_path / "run")
    results = load_results(tmp_path / "run")
    assert sorted(results.runs["train.warmup"].unique()) == [0, 2, 8]
    (finding,) = analyze(results).claims
    late = results.steps[results.steps["step"] >= 0.8 * 12][["run", "recall_at_1", "recall_at_1_chance"]].dropna()
    table = results.runs.set_index("run").join(late.groupby("run").mean())
    # A diverged run has learned nothing.
    table["recall_at_1"] = table["recall_at_1"].where(table["status"] == "finished", table["recall_at_1_chance"])
    slopes = {}
    for (arm, seed), rows in table.groupby(["arm", "seed"]):
        x = rows["train.warmup"].to_numpy(float)
        slopes[arm, seed] = (x - x.mean()) @ rows["recall_at_1"].to_numpy(float) / ((x - x.mean()) ** 2).sum()
    expected = sum(slopes["siglip", seed] - slopes["clip", seed] for seed in (0, 1)) / 2
    assert math.isclose(finding.effect, expected, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("axis", "levels", "sentence"),
    [
        ('"train.warmup"', "[0, 50]", 'grid."train.warmup"[1]: got 50; allowed: fewer than train.steps = 12'),
        ('"train.warmupp"', "[0]", "did you mean 'warmup'"),
        ('"train.warmup"', "[]", "allowed: a list of at least one value"),
        ('"train.warmup"', "4", "allowed: a list of at least one value"),
        ('"train.warmup"', "[4, 4]", "allowed: values that differ"),
        ('"train.steps"', "[4, 8]", "cannot be an axis: all runs of a study are equally long"),
        ('"data.name"', '["digits"]', "cannot be an axis: other data are a replication"),
        ('"train.betas"', "[[0.9, 1.5]]", 'grid."train.betas"[0]: got 1.5; allowed: less than 1'),
        ('"train.betas"', '["none"]', "got 'none'"),
        ('"model.*.widht"', "[8]", "did you mean 'width'"),
        ('"model.image.width"', "[0]", "width"),
        ('"arms.*.max_scales"', "[1.0]", "did you mean 'max_scale'"),
        ('"arms.clip.max_scale"', "[1.0]", "allowed: arms.*.KEY"),
        ('"arms.*.logit_cap"', "[0.0]", "logit_cap: got 0.0; allowed: 0.001 or more"),
        ('"arms.*.z_loss"', "[1e-4]", "loss 'siglip' has no such option"),
        ('"tune.lr"', "[1.0]", "allowed: keys of other tables, as train.KEY, model.KEY, data.KEY, arms.KEY"),
        ("warmup", "[1]", "grid.warmup: unknown key"),
        ('"train.nesterov"', "[false, true]", "the optimizer 'adamw' takes no nesterov; allowed with 'sgd'"),
        ('"train.optimizer"', '["adamw", "adam"]', "unknown optimizer 'adam'; did you mean 'adamw'?"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_sentence(axis, levels, sentence):
    with pytest.raises(InputError) as error:
        study_with(axis, levels)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("t.toml")


def test_an_arm_that_sets_the_key_itself_is_refused():
    arms = '[arms.clip]\nloss = "clip"\nmax_scale = 5.0\n'
    with pytest.raises(InputError, match="arm 'clip' sets max_scale itself; allowed: one of the two"):
        study_with('"arms.*.max_scale"', "[1.0, 2.0]", arms)


@pytest.mark.parametrize(
    ("axis", "levels", "sentence"),
    [
        ('"train.betas"', "[[0.9, 0.95], [0.9, 0.999]]", "allowed: an axis of numbers"),
        ('"train.scalar_lr_multiplier"', "[1.0]", "has one value; allowed: two or more"),
        ('"train.eps"', "[1e-8, 1e-3]", "unknown axis 'train.warmup'"),
    ],
)
def test_a_claim_along_what_has_no_slope_is_refused(axis, levels, sentence):
    claim = CLAIM if "unknown" in sentence else CLAIM.replace('"train.warmup"', axis)
    with pytest.raises(InputError) as error:
        study_with(axis, levels, claim)
    assert sentence in str(error.value)


def test_an_unquoted_key_and_one_of_a_scale_are_read_alike():
    quoted, unquoted = study_with('"train.warmup"', "[0, 4]"), study_with("train.warmup", "[0, 4]")
    assert quoted.hash == unquoted.hash
    scaled = study_with('"train.warmup"', "[0, 4]", "[scales.smoke]\ngrid.train.warmup = [1, 2]")
    smaller = parse_study(scaled.text, "t.toml", "t", "smoke")
    assert smaller.grid.settings == {"train.warmup": (1, 2)}


def test_equal_samples_scale_the_warm_up_of_every_level():
    study = study_with(
        '"train.warmup"', "[0, 4]", "[scales.smoke]\ntrain.budget = 'samples'\ngrid.batch_size = [8, 16]"
    )
    study = parse_study(study.text, "t.toml", "t", "smoke")
    warmups = {
        (run.batch_size, dict(run.settings)["train.warmup"]): dict(run.train)["warmup"] for run in runs_of(study)
    }
    assert warmups == {(8, 0): 0, (8, 4): 4, (16, 0): 0, (16, 4): 2}


PAGE = (Path(__file__).parent.parent / "docs" / "vary.md").read_text(encoding="utf-8")


def test_the_study_of_the_guide_runs_to_a_report_that_draws_the_claim_along_its_axis(tmp_path):
    text, arm, *_ = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    compared = text.replace('["clip", "siglip"]', '["clip", "siglip", "siglip-lion"]').replace(
        "[[claims]]", "[probes.gradient_noise]\nevery = 50\n\n[[claims]]", 1
    )
    assert parse_study(compared + arm, "t.toml", "t").train_of("siglip-lion").optimizer == "lion"
    assert parse_study(text, "t.toml", "t").grid.settings == {"train.warmup": (0, 20, 100)}
    study = parse_study(text, "t.toml", "t", "smoke")
    run(study, device="cpu", out=tmp_path / "run")
    written = write_report(tmp_path / "run", ["html"])
    page = written["html"].read_text(encoding="utf-8")
    assert "over the warm-up length" in page
    assert "2 levels of warm-up length" in page


def test_every_key_that_the_guide_names_is_an_axis():
    keys = {key for key in re.findall(r'`"([a-z_.*]+)"`', PAGE) if "." in key and "KEY" not in key}
    assert len(keys) > 12
    levels = {"train.lr_schedule": '["constant"]', "train.betas": "[[0.9, 0.95]]", "train.clip_norm": '["none"]'}
    levels |= {"train.optimizer": '["sgd"]', "arms.*.bias": "[0.0]", "arms.*.log_scale": "[0.0]"}
    of_transformers = {"model.*.qk_norm", "model.*.norm"}
    assert {key.rpartition(".")[2] for key in of_transformers} <= encoder["patch_transformer"].options.keys()
    for key in keys - {"arms.*.bias"} - of_transformers:
        text = levels.get(key, "[2]" if "model" in key else "[0.5]" if "warmup" not in key else "[2]")
        assert study_with(f'"{key}"', text).grid.settings
    # CLIP's loss has no bias.
    with pytest.raises(InputError, match="loss 'clip' has no such option"):
        study_with('"arms.*.bias"', "[0.0]")


def test_chance_levels_limits_and_method_follow_the_levels_of_each_run(tmp_path):
    study = study_with('"arms.*.logit_cap" = [1.0, 100.0]\n"train.scalar_lr_multiplier"', "[0.1, 1.0]")
    run(study, device="cpu", out=tmp_path / "run")
    results = load_results(tmp_path / "run")
    runs = results.runs.set_index("run")
    expected = {
        name: chance_level(loss[row["arm"]], 8, {"logit_cap": row["arms.*.logit_cap"]}) for name, row in runs.iterrows()
    }
    assert chance_losses(results).to_dict() == expected
    assert len({expected[name] for name in runs.index[runs["arm"] == "siglip"]}) == 2
    loss_plot = values_of(results, next(plot for plot in PLOTS if plot.measure == "loss"))
    raw = results.steps.set_index(["run", "step"])["loss"]
    for name, step, value in loss_plot[["run", "step", "value"]].itertuples(index=False):
        assert math.isclose(value, raw[name, step] / expected[name], rel_tol=1e-6)

    findings = analyze(results, checks=False)
    rates = results.steps.groupby("run")["learning_rate"].sum() * runs["train.scalar_lr_multiplier"]
    texts = dict(_slow_scalars(results))
    reach = rates[runs.index[runs["arm"] == "siglip"]].mean()
    assert f"here {number(reach)}:" in texts["How far the bias of siglip could move"]
    pairing = next(text for title, text, *_ in paragraphs(results, findings) if title == "Runs and pairing")
    assert "Runs also differ in arms.*.logit_cap: 1.0, 100.0; train.scalar_lr_multiplier: 0.1, 1.0." in pairing
