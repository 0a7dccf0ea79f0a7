"""A shift of the training data at one step, the same for all arms: `[data.shift]`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from stability.analysis import analyze, load_results
from stability.execute import run
from stability.grid import groups_of, runs_of, study_of, tuning_runs_of
from stability.registry import InputError
from stability.report.figures.trajectories import over_training
from stability.report.method import paragraphs
from stability.study import Study, parse_study, search_of
from stability.train import Trainer, replay
from stability.train.data import population_data
from stability.train.memory import bytes_of_data, bytes_per_replica
from stability.train.shift import shifted_runs

CPU = torch.device("cpu")
STEPS, STEP = 8, 3


def text_with(shift: str, *, data: str = "", grid: str = "", train: str = "", more: str = "", image='"mlp"') -> str:
    table = f"[data.shift]\n{shift}" if shift else ""
    return f"""
title = "T"
question = "Q?"
[data]
name = "latent"
pairs = 64
held_out = 0.25
{data}
{table}
[model]
image = {image}
text = "mlp"
embed_dim = 8
[train]
steps = {STEPS}
{train}
[grid]
arms = ["clip", "siglip"]
lr = [1e-2]
seeds = 2
{grid if "batch_size" in grid else "batch_size = [8]" + chr(10) + grid}
[probes.retrieval]
every = 5
{more}
"""


def study_with(shift: str, **parts: str) -> Study:
    return parse_study(text_with(shift, **parts), "t.toml", "t")


def trainer_of(study: Study, arm: str = "clip", width: int = 32) -> Trainer:
    group = next(group for group in groups_of(runs_of(study), lambda run: width) if group.arm == arm)
    return Trainer(study_of(study, group), group, study.pairs(), CPU)


def losses(trainer: Trainer, steps: int = STEPS) -> torch.Tensor:
    return torch.stack([trainer.step()["loss"] for _ in range(steps)])


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", ["", 'corruption = "fresh"'])
@pytest.mark.parametrize("shift", ["noise = 0.5", 'noise = 0.5\ncorruption = "text_noise"', "snr = 0.25"])
def test_before_the_shift_steps_are_those_without_it_and_from_it_on_they_differ(shift, fresh):
    plain, shifted = (trainer_of(study_with(one, data=fresh)) for one in ("", f"step = {STEP}\n{shift}"))
    ours, theirs = losses(shifted), losses(plain)
    assert torch.equal(ours[:STEP], theirs[:STEP])
    assert (ours[STEP] != theirs[STEP]).all()


def test_from_the_shift_on_batches_are_rows_of_the_shifted_data():
    study = study_with(f"step = {STEP}\nnoise = 0.5")
    trainer = trainer_of(study)
    runs = trainer.population.runs
    after = population_data(shifted_runs(runs, study.data.shift), study.pairs(), "fixed", CPU)
    before = population_data(runs, study.pairs(), "fixed", CPU)
    for step in range(STEPS):
        data = trainer.population.data
        expected = before if step < STEP else after
        assert torch.equal(data.text.expand_as(after.text), expected.text.expand_as(after.text))
        assert torch.equal(data.image, expected.image)
        trainer.advance()
    assert not torch.equal(before.text.expand_as(after.text), after.text)


def test_pairs_that_were_corrupted_stay_so_when_noise_grows():
    study = study_with(f"step = {STEP}\nnoise = 0.75", grid="noise = [0.25]")
    trainer = trainer_of(study)
    clean = trainer_of(study_with("")).population.data.text
    before = trainer.population.data.text
    trainer.move_to(STEP)
    after = trainer.population.data.text
    was, now = ((text != clean).any(-1) for text in (before, after))
    assert was.sum(-1).tolist() == [12, 12]
    assert now.sum(-1).tolist() == [36, 36]
    assert (now | ~was).all()


def test_held_out_pairs_change_with_an_option_of_the_data_only():
    noisy, other = (trainer_of(study_with(f"step = {STEP}\n{shift}")) for shift in ("noise = 0.5", "snr = 0.25"))
    for trainer, same in ((noisy, True), (other, False)):
        before = trainer.population.held_out
        trainer.move_to(STEP - 1)
        assert trainer.population.held_out is before
        trainer.move_to(STEP)
        assert torch.equal(trainer.population.held_out.image, before.image) == same
    # The same seeds: the signal of each pair is that of before, only its noise grows.
    image, shifted = (study_with(f"step = {STEP}\nsnr = 0.25").pairs().image, other.population.data.image)
    latent = study_with("").pairs()
    kept = latent.train
    cosine = torch.nn.functional.cosine_similarity(image[kept], shifted, dim=-1)
    assert cosine.mean() > 0.5


def test_runs_with_a_shift_are_as_if_trained_alone():
    study = study_with(f"step = {STEP}\nnoise = 0.5", grid="noise = [0.0, 0.25]")
    together = trainer_of(study)
    whole = losses(together)
    for index, alone in enumerate(groups_of(runs_of(study), lambda run: 1)[:4]):
        assert together.population.runs[index].id == alone.runs[0].id
        single = Trainer(study_of(study, alone), alone, study.pairs(), CPU)
        assert torch.equal(losses(single)[:, 0], whole[:, index])


def test_frozen_features_are_those_of_the_shifted_data():
    how = {"image": '{ name = "mlp", frozen = true }'}
    with_table = trainer_of(study_with(f"step = {STEP}\nsnr = 0.25", **how))
    assert "image" in with_table.population.features
    without = trainer_of(study_with(f"step = {STEP}\nsnr = 0.25", **how))
    without.population.features = {}
    for step in range(STEPS):
        ours, theirs = with_table.step()["loss"], without.step()["loss"]
        without.population.features = {}
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert step + 1 == with_table.population.step


def test_children_that_branch_before_the_shift_pass_it_and_leave_the_parent_alone():
    shift = f"step = {STEP}\nsnr = 0.25"
    trainer, plain, untouched = (trainer_of(study_with(one)) for one in (shift, "", shift))
    for each in (trainer, plain, untouched):
        each.advance()
    children, others = trainer.children([0, 1]), plain.children([0, 1])
    assert all((ours != theirs).any() for ours, theirs in zip(children, others, strict=True))
    assert torch.equal(losses(trainer, STEPS - 1), losses(untouched, STEPS - 1))
    assert trainer.population.data is not untouched.population.data


def test_a_child_at_the_last_step_before_the_shift_trains_on_the_shifted_data():
    study = study_with(f"step = {STEP}\nnoise = 0.5")
    trainer = trainer_of(study)
    for _ in range(STEP):
        trainer.advance()
    trainer.children([0])
    assert trainer.population.data.runs[0].noise == 0.5


# --- runs ------------------------------------------------------------------------------------------------------------


def test_every_probe_is_read_at_the_step_of_the_shift_and_a_replay_agrees(tmp_path):
    study = study_with(f"step = {STEP}\nsnr = 0.25", more="[probes.gradient_noise]\nbatches = 2\n")
    folder = run(study, device="cpu", out=tmp_path / "runs")
    results = load_results(folder)
    rows = results.steps.dropna(subset=["recall_at_1"])
    assert sorted(rows["step"].unique()) == [0, STEP, 5, STEPS]
    noise = results.steps.dropna(subset=["gradient_noise_trace_towers"])
    assert sorted(noise["step"].unique()) == [STEP, STEPS]
    group = groups_of(runs_of(study), lambda run: 32)[0]
    member = group.runs[1]
    of_group = study_of(study, group)
    seen = replay(of_group, group, member, stored=results.steps)
    saved = replay(of_group, group, member, saved=seen.params)
    assert torch.equal(seen.batches["image"], saved.batches["image"])
    assert torch.equal(seen.held_out.image, saved.held_out.image)
    assert torch.equal(seen.held_out.image, study.shifted_pairs().image[study.pairs().held_out])
    early = replay(of_group, group, member, step=STEP - 1)
    assert torch.equal(early.held_out.image, study.pairs().image[study.pairs().held_out])


def test_a_probe_at_the_step_of_the_shift_draws_shifted_batches():
    study = study_with(f"step = {STEP}\nsnr = 0.25", more="[probes.gradient_noise]\nbatches = 2\n")
    plain = study_with("", more="[probes.gradient_noise]\nbatches = 2\n")
    ours, theirs = (trainer_of(each) for each in (study, plain))
    for step in range(STEP + 1):
        one, other = (each.read("gradient_noise").values["gradient_noise_trace_towers"] for each in (ours, theirs))
        assert torch.equal(one, other) == (step < STEP)
        if step < STEP:
            ours.advance(), theirs.advance()


def test_figures_mark_the_shift_and_the_method_says_what_changes(tmp_path):
    study = study_with(
        f"step = {STEP}\nsnr = 0.25",
        grid='batch_size = [8, 16]\n"data.shift.noise" = [0.0, 0.5]',
        train='budget = "samples"',
    )
    results = load_results(run(study, device="cpu", out=tmp_path / "runs"))
    drawn = {figure.id: figure for figure in over_training(results)}
    for figure in (drawn["loss"], drawn["recall"]):
        assert figure.caption.endswith("Thin vertical lines: where the data shift.")
    marks = [
        [line.get_xdata()[0] for line in axes.lines if len({*line.get_xdata()}) == 1 and len(line.get_xdata()) == 2]
        for axes in drawn["recall"].figure.axes
    ]
    assert sorted(step for steps in marks for step in steps) == [2, 2, 3, 3]
    text = next(words for title, words, *_ in paragraphs(results, analyze(results)) if title == "A shift of the data")
    assert "From step 3 on at the smallest batch size" in text
    assert "snr is 0.25" in text
    assert "Held-out pairs are those of the new data" in text


def test_runs_without_a_shift_keep_their_ids_and_those_with_one_have_their_own():
    plain = {one.id for one in runs_of(study_with(""))}
    noisy = {one.id for one in runs_of(study_with(f"step = {STEP}\nnoise = 0.5"))}
    axis = study_with("", grid=f'"data.shift.step" = [{STEP}]\n"data.shift.noise" = [0.25, 0.5]')
    assert not plain & noisy
    assert noisy < {one.id for one in runs_of(axis)}
    assert "shift" not in study_with("").canonical()["data"]


def test_a_shift_counts_samples_where_the_budget_does():
    study = study_with(f"step = {STEP}\nnoise = 0.5", train='budget = "samples"', grid="batch_size = [8, 16]")
    assert [study.event_step("clip", size) for size in (8, 16)] == [3, 2]
    trained = study.trained_as("clip", 16)
    assert (trained.train.steps, trained.event_step("clip", 16)) == (4, 2)
    assert {2} < trained.due("retrieval")
    assert study_with("").event_step("clip", 8) is None


def test_a_search_never_sees_shifted_data():
    tune = "[tune]\nlr = [1e-3, 1e-2]\nseeds = 1\nsteps = 2\n"
    shifted, plain = (study_with(shift, more=tune) for shift in (f"step = {STEP}\nnoise = 0.5", ""))
    assert search_of(shifted).data.shift is None
    assert [one.id for one in tuning_runs_of(shifted)] == [one.id for one in tuning_runs_of(plain)]


def test_memory_counts_the_data_before_and_after():
    plain, shifted = study_with(""), study_with(f"step = {STEP}\nnoise = 0.5")
    before, both = (bytes_of_data(study, study.pairs()) for study in (plain, shifted))
    text = shifted.pairs().text[shifted.pairs().train]
    assert both.own == before.own + text.numel() * text.element_size()
    how = {"image": '{ name = "mlp", frozen = true }'}
    one, two = (
        bytes_per_replica(study, "clip", 8, study.pairs())
        for study in (study_with("", **how), study_with(f"step = {STEP}\nnoise = 0.5", **how))
    )
    assert two - one == 48 * 8 * 4  # a second table of features


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [
        ("step = 8\nnoise = 0.5", "data.shift.step: got 8; allowed: 1 to 7, so that some of the 8 steps of the study"),
        ("step = 0\nnoise = 0.5", "data.shift.step: got 0; allowed: greater than 0"),
        ("noise = 0.5", "data.shift.step: required, but missing"),
        ("step = 3", "data.shift: says when the data change, but not how; allowed: noise, corruption, or an option"),
        ("step = 3\nnoise = 0.0", "data.shift: changes nothing in any run of the study"),
        ("step = 3\nsnr = 4.0", "data.shift: changes nothing in any run of the study"),
        ('step = 3\ncorruption = "text-noise"', "data.shift: changes nothing in any run of the study"),
        ("step = 3\nnoise = 1.5", "data.shift.noise: got 1.5; allowed: less than or equal to 1"),
        ('step = 3\ncorruption = "swop"', "data.shift.corruption: unknown corruption 'swop'"),
        ("step = 3\nsrn = 1.0", "data.shift.srn: dataset 'latent' has no such option; did you mean 'snr'?"),
        ("step = 3\npairs = 32", "data.shift: pairs = 32 changes the number of training pairs from 48 to 24"),
        ("step = 3\nview_dim = 8", "data.shift: view_dim = 8 changes the shape of the samples of image"),
        ("step = 3\nseed = 1", "data.shift.seed: shifted data keep the seed of the data"),
        ("step = 3\nsnr = -1.0", "got snr = -1; allowed: a finite number above 0"),
    ],
)
def test_a_shift_that_cannot_take_place_is_refused_in_one_sentence(shift, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        study_with(shift)
    assert str(error.value).startswith("t.toml: ")
    assert "\n" not in str(error.value)


def test_a_shift_after_the_end_of_the_larger_batches_is_refused():
    with pytest.raises(InputError, match=re.escape("got 7, which is 1 at batch size 48; allowed: runs of")):
        study_with("step = 7\nnoise = 0.5", train='budget = "samples"', grid="batch_size = [8, 48]")


def test_a_level_of_an_axis_may_change_nothing_as_a_control():
    study = study_with(f"step = {STEP}\nnoise = 0.5", grid='"data.shift.noise" = [0.0, 0.5]')
    assert len(runs_of(study)) == 8
    with pytest.raises(InputError, match=re.escape('grid."data.shift.step"[1]: got 9; allowed: 1 to 7')):
        study_with("step = 3\nnoise = 0.5", grid='"data.shift.step" = [2, 9]')


# --- the guide -------------------------------------------------------------------------------------------------------


def test_the_example_of_the_guide_is_a_shift_of_its_study():
    page = (Path(__file__).parent.parent / "docs" / "vary.md").read_text(encoding="utf-8")
    whole = re.search(r"```toml\n(.*?)```", page, flags=re.DOTALL).group(1)
    example = re.search(r'```toml title="shift"\n(.*?)```', page, flags=re.DOTALL).group(1)
    study = parse_study(whole + example, "t.toml", "t")
    assert study.event_step("clip", 64) == 150
    assert study.data.shift.noise == 0.3
