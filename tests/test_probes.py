"""Probes: each against a slow twin on one replica, and the replica axis against a loop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from stability.grid import Group, runs_of
from stability.losses import clip, loss
from stability.losses.registry import LossTraits
from stability.probes import in_towers, measures_of, probe
from stability.probes.embeddings import margin_and_relative_bias, quantile
from stability.probes.noise import gradient_noise
from stability.registry import Variant
from stability.study import Schedule, parse_study
from stability.train import Trainer
from stability.train.data import independent_indices
from stability.train.probe_runner import learning_rates

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trainer(tiny_text):
    """Two seeds of one arm, three steps into training; what is slow, or differs from run to run, is read here alone."""
    more = "[probes.few_shot]\ndraws = 1\n[probes.cost]\nrepeats = 1\n[probes.flatness]\nbatches = 2\n"
    more += "[probes.scalar_gradients]\n[probes.activations]\n[probes.held_out_loss]\n[probes.fixed_held_out_loss]\n"
    more += "[probes.linear_mode]\nfork = 3\npoints = 3\n"
    tiny = parse_study(tiny_text.split("[[claims]]")[0] + more, "tiny.toml", "tiny")
    runs = tuple(run for run in runs_of(tiny) if (run.arm, run.batch_size, run.noise) == ("siglip-log-b", 8, 0.0))[:2]
    trained = Trainer(tiny, Group("g", runs), tiny.pairs(), CPU)
    for _ in range(3):
        trained.step()
    return trained


def replica(trainer, place):
    """Return parameters and embeddings of one replica on the held-out pairs."""
    population = trainer.population
    params = population.spec.layout.unflatten(population.theta.detach()[place])
    held = population.held_out
    return (
        params,
        population.spec.embed_image(params, held.image),
        population.spec.embed_text(params, held.text),
        held,
    )


@pytest.mark.parametrize("name", sorted(probe))
def test_every_probe_returns_exactly_the_measures_it_declares(trainer, name):
    reading = trainer.read(name)
    offered = trainer.study.measures
    declared = {m.name for m in probe[name].traits.measures if m.stored and m.name in offered}
    assert set(reading.values) == declared
    for measure in (each for each in probe[name].traits.measures if each.name in offered):
        assert measure.text.endswith("."), measure
        assert measure.pooled is None or set(measure.pooled) <= declared
        assert not measure.chance or measure.chance in declared
        if measure.stored:
            assert reading.values[measure.name].dim() == 1 + measure.listed


def test_the_study_of_these_tests_reads_every_registered_probe(trainer):
    assert set(trainer.study.probes) == set(probe)


def test_no_two_probes_make_a_measure_of_one_name():
    names = [m.name for variant in probe.values() for m in variant.traits.measures]
    assert len(names) == len(set(names))
    assert set(names) <= set(measures_of(probe, {m.needs for v in probe.values() for m in v.traits.measures}))


@pytest.mark.parametrize("place", [0, 1])
def test_recall_counts_any_item_with_the_identical_caption(trainer, place):
    _, image, text, held = replica(trainer, place)
    values = trainer.read("retrieval").values
    caption = held.caption.tolist()
    to_text = sum(caption[int((text @ row).argmax())] == caption[i] for i, row in enumerate(image)) / len(image)
    to_image = sum(caption[int((image @ row).argmax())] == caption[i] for i, row in enumerate(text)) / len(text)
    assert_close(values["recall_at_1_image_to_text"][place].item(), to_text)
    assert_close(values["recall_at_1_text_to_image"][place].item(), to_image)
    assert_close(values["recall_at_1"][place].item(), (to_text + to_image) / 2)
    share = sum(a == b for a in caption for b in caption) / len(caption) ** 2
    assert_close(values["recall_at_1_chance"][place].item(), share)


def test_zero_shot_picks_the_class_of_the_nearest_mean_prompt(trainer):
    params, image, _, held = replica(trainer, 0)
    spec = trainer.population.spec
    means = torch.stack([F.normalize(spec.embed_text(params, held.prompts[c]).mean(0), dim=0) for c in range(10)])
    right = ((image @ means.T).argmax(-1) == held.label).double().mean()
    assert_close(trainer.read("retrieval").values["zero_shot_accuracy"][0].double(), right)


def test_margins_are_over_pairs_with_distinct_captions(trainer):
    _, image, text, held = replica(trainer, 1)
    values = trainer.read("geometry").values
    positive, negative = [], []
    for i, row in enumerate(image @ text.T):
        for j, s in enumerate(row.tolist()):
            (positive if held.caption[i] == held.caption[j] else negative).append(s)
    assert_close(values["margin"][1].item(), (min(positive) - max(negative)) / 2)
    assert_close(values["relative_bias"][1].item(), (min(positive) + max(negative)) / 2)
    assert_close(values["modality_gap"][1], (image.mean(0) - text.mean(0)).norm())
    assert_close(
        values["alignment"][1].item(),
        sum(float((u - v) @ (u - v)) for u, v in zip(image, text, strict=True)) / len(image),
    )


def test_a_constellation_has_the_margin_and_relative_bias_it_was_built_with():
    m, b = margin_and_relative_bias(torch.tensor(0.7), torch.tensor(0.1))
    assert_close(m, torch.tensor(0.3))
    assert_close(b, torch.tensor(0.4))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 1.0])
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(share):
    values = torch.randperm(37).double()
    expected = next(v for v in sorted(values.tolist()) if (values <= v).double().mean() >= share)
    assert quantile(values, share).item() == expected


def test_the_sharpness_ratio_is_over_the_adaptive_edge_of_stability(trainer):
    values = trainer.read("curvature").values
    run = trainer.population.runs[0]
    threshold = (2 + 2 * 0.9) / ((1 - 0.9) * run.lr)
    assert_close(values["sharpness_ratio"], values["preconditioned_sharpness"] / threshold)


def test_the_preconditioned_sharpness_is_that_of_the_dense_towers_block_whichever_replica_it_is(tiny):
    runs = tuple(run for run in runs_of(tiny) if (run.arm, run.batch_size) == ("clip", 8))
    # Enough Lanczos steps to converge, on the last seed with noise, which is not the first replica.
    options = {"seeds": None, "noise": (0.4,), "steps": 60, "edge_steps": 60, "batches": 2}
    curvature = Schedule.model_validate(options)
    study = tiny.model_copy(update={"probes": {"curvature": curvature}})
    trained = Trainer(study, Group("g", runs), study.pairs(), CPU)
    for _ in range(4):
        trained.step()
    reading = trained.read("curvature")
    place = reading.replicas[-1]
    assert place > 0
    population = trained.population
    layout = population.spec.layout
    params = layout.unflatten(population.theta.detach().double()[place])
    names = [name for name in params if name.startswith(("image.", "text."))]
    state = population.optimizer
    v_hat = state.buffers["second"][place].double() / (1 - 0.95**state.steps)
    scale = layout.unflatten((v_hat.sqrt() + 1e-8).rsqrt())
    index = independent_indices(runs[place].seed, "probe/curvature", 2, population.data.available, 8)
    batches = population.data.select([place]).batch(index[None], ())

    def loss(flat):
        parts = flat.split([params[name].numel() for name in names])
        towers = {name: part.view(params[name].shape) for name, part in zip(names, parts, strict=True)}
        batch = [{key: value[0, k] for key, value in batches.items()} for k in range(2)]
        batch = [{**each, "image": each["image"].double()} for each in batch]
        return sum(population.spec.objective(params | towers, each) for each in batch) / 2

    start = torch.cat([params[name].flatten() for name in names])
    root = torch.cat([scale[name].flatten() for name in names])
    dense = torch.func.hessian(loss)(start)
    top = torch.linalg.eigvalsh(root[:, None] * dense * root)[-1]
    assert_close(reading.values["preconditioned_sharpness"][-1].double(), top, rtol=1e-3, atol=0)


def test_gradient_noise_is_of_new_batches_at_every_step_and_curvature_of_fixed_ones(trainer):
    first, again = (trainer.read("gradient_noise").values["gradient_second_moment_towers"] for _ in range(2))
    assert torch.equal(first, again)
    fixed = trainer.read("curvature").values["hessian_max_eigenvalue"]
    trainer.population.step += 1
    assert not torch.equal(trainer.read("gradient_noise").values["gradient_second_moment_towers"], first)
    assert torch.equal(trainer.read("curvature").values["hessian_max_eigenvalue"], fixed)
    trainer.population.step -= 1


def test_gradient_noise_has_no_adam_norm_before_the_first_step_and_one_after(tiny, trainer):
    runs = tuple(run for run in runs_of(tiny) if (run.arm, run.batch_size, run.noise) == ("clip", 8, 0.0))[:2]
    values = Trainer(tiny, Group("g", runs), tiny.pairs(), CPU).read("gradient_noise").values
    assert torch.isnan(values["gradient_noise_trace_towers_preconditioned"]).all()
    assert torch.isfinite(values["gradient_noise_trace_towers"]).all()
    values = trainer.read("gradient_noise").values
    total = values["gradient_noise_trace_towers_preconditioned"] + values["gradient_sq_norm_towers_preconditioned"]
    assert_close(values["gradient_second_moment_towers_preconditioned"], total)


def test_at_its_own_parameters_the_matched_noise_of_a_loss_is_its_own(trainer):
    """The same batches, given to both: SigLIP keeps the run's bias, and so its own gradient."""
    population = trainer.population
    study = trainer.study
    alike = study.model_copy(
        update={
            "probes": {
                name: Schedule.model_validate({"batches": 3}) for name in ("gradient_noise", "matched_gradient_noise")
            }
        }
    )
    both = Trainer(alike, Group("g", tuple(population.runs)), alike.pairs(), CPU)
    both.step()
    matched = both.read("matched_gradient_noise").values
    layout = both.population.spec.layout
    assert_close(matched["matched_bias"], layout.unflatten(both.population.theta.detach())["loss.bias"])
    index = independent_indices(
        population.runs[0].seed, "probe/matched_gradient_noise/1", 3, both.population.data.available, 8
    )
    batches = both.population.data.select([0]).batch(index[None], both.population.data.select([0]).generators("x"))
    params = {name: value[0] for name, value in layout.unflatten(both.population.theta.detach()).items()}
    own = gradient_noise(
        both.population.spec.objective,
        params,
        {name: value[0] for name, value in batches.items()},
        blocks={"towers": in_towers},
    ).by_block["towers"]
    assert_close(matched["gradient_noise_trace_towers_as_siglip"][0], own.trace_cov, rtol=1e-4, atol=0)
    assert not torch.isclose(matched["gradient_noise_trace_towers_as_clip"][0], own.trace_cov, rtol=1e-2)


def test_the_threshold_is_for_the_rate_of_the_step_not_of_the_study(tiny):
    cosine = tiny.model_copy(update={"train": tiny.train.model_copy(update={"warmup": 0})})
    runs = tuple(run for run in runs_of(cosine) if (run.arm, run.batch_size, run.noise) == ("clip", 8, 0.0))[:2]
    warming = Trainer(tiny, Group("g", runs), tiny.pairs(), CPU)
    population = warming.population
    rates = [learning_rates(replace(population, step=step), [0, 1])[0].item() for step in (0, 1, 5)]
    assert rates == pytest.approx([runs[0].lr * 0.5, runs[0].lr, runs[0].lr])


def test_a_loss_without_trained_scalars_has_no_scalar_block_and_every_other_measure(tiny, monkeypatch):
    def bare(image, text):
        return clip(image, text, log_scale=torch.tensor(2.0))

    monkeypatch.setitem(loss._variants, "clip", Variant("loss", "clip", bare, {}, LossTraits(chance=math.log)))
    runs = tuple(run for run in runs_of(tiny) if (run.arm, run.batch_size, run.noise) == ("clip", 8, 0.0))[:2]
    bare_trainer = Trainer(tiny, Group("g", runs), tiny.pairs(), CPU)
    bare_trainer.step()
    for name in ("gradient_noise", "curvature"):
        for measure, values in bare_trainer.read(name).values.items():
            assert torch.isnan(values).any() == ("scalars" in measure or measure == "sharpness_ratio"), measure


def test_the_sharpness_ratio_is_not_given_inside_the_warm_up(tiny):
    runs = tuple(run for run in runs_of(tiny) if (run.arm, run.batch_size, run.noise) == ("clip", 8, 0.0))[:2]
    early = Trainer(tiny, Group("g", runs), tiny.pairs(), CPU)
    early.step()
    values = early.read("curvature").values
    assert torch.isnan(values["sharpness_ratio"]).all()
    assert torch.isfinite(values["hessian_max_eigenvalue"]).all()


def test_probes_read_only_the_runs_that_their_schedule_selects(tiny):
    runs = tuple(run for run in runs_of(tiny) if (run.arm, run.batch_size) == ("clip", 8))
    whole = Trainer(tiny, Group("g", runs), tiny.pairs(), CPU)
    chosen = whole.read("curvature").replicas
    assert [(runs[place].seed, runs[place].noise) for place in chosen] == [(0, 0.0)]


def test_pyhessian_and_the_dense_hessian_agree_with_ours(trainer):
    values = {name: value[0].item() for name, value in trainer.read("cross_check").values.items()}
    assert values["crosscheck_high"] == pytest.approx(values["dense_high"], rel=1e-4)
    assert values["pyhessian_high"] == pytest.approx(values["dense_high"], rel=1e-2)
    assert abs(values["crosscheck_trace"] - values["dense_trace"]) < 5 * values["crosscheck_trace_stderr"]
