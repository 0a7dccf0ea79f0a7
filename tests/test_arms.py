"""Arms that train in their own way: optimizer, betas, decay, schedule, clipping; in the numbers, the ids, the words."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from stability.analysis import analyze, load_results
from stability.curvature import momentum_threshold
from stability.execute import run
from stability.grid import groups_of, runs_of
from stability.optimizers.adam import adam_threshold
from stability.optimizers.gradient_descent import sgd_threshold
from stability.probes import Replica, probe
from stability.registry import InputError
from stability.study import Train, parse_study
from stability.train import Trainer
from stability.train.optimizer import Recipe, apply_update_, initial_state, preconditioner
from tests.report_blocks import texts_of


def study_of(tiny_text, old="", new=""):
    assert old in tiny_text
    return parse_study(tiny_text.replace(old, new, 1), "t.toml", "t")


def with_train(tiny_text, table):
    return study_of(tiny_text, 'bias = "-log B"', f'bias = "-log B"\ntrain = {table}')


def trained(study, arm, steps=5):
    runs = [run for run in runs_of(study) if run.arm == arm and run.batch_size == 8]
    (group,) = groups_of(runs, lambda run: 32)
    trainer = Trainer(study, group, study.pairs(), torch.device("cpu"))
    for _ in range(steps):
        trainer.step()
    return trainer.population.theta


# --- SGD ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_equals_torch_s_step_for_step_with_a_rate_of_its_own_for_each_replica(momentum, nesterov):
    generator = torch.Generator().manual_seed(0)
    train = Train(steps=20, optimizer="sgd", momentum=momentum, nesterov=nesterov, weight_decay=0.1)
    start = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    rates = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)
    ours, state = start.clone(), initial_state(train, start)
    recipes = [Recipe.of_all(train, [(4, 0.1, 1.0), (3, 0.0, 2.0)], start)]
    theirs = [(nn.Parameter(row[:4].clone()), nn.Parameter(row[4:].clone())) for row in start]
    optimizers = [
        torch.optim.SGD(
            [{"params": [decayed], "weight_decay": 0.1}, {"params": [bare], "lr": 2 * float(rate)}],
            lr=float(rate),
            momentum=momentum,
            nesterov=nesterov,
        )
        for rate, (decayed, bare) in zip(rates, theirs, strict=True)
    ]
    for _ in range(20):
        gradient = torch.randn(3, 7, generator=generator, dtype=torch.float64)
        apply_update_(ours, gradient.clone(), state, rates, recipes)
        for row, (decayed, bare), optimizer in zip(gradient, theirs, optimizers, strict=True):
            decayed.grad, bare.grad = row[:4].clone(), row[4:].clone()
            optimizer.step()
        assert_close(ours, torch.stack([torch.cat(pair).detach() for pair in theirs]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True), (0.5, True)])
def test_momentum_on_a_parabola_converges_just_below_the_threshold_and_explodes_just_above(momentum, nesterov):
    train = Train(steps=1, optimizer="sgd", momentum=momentum, nesterov=nesterov)
    edge = momentum_threshold(0.1, momentum, nesterov)
    ends = []
    for sharpness in (0.99 * edge, 1.01 * edge):
        place = torch.ones(2, 1, dtype=torch.float64)
        state, rates, recipes = (
            initial_state(train, place),
            torch.full((2,), 0.1),
            [Recipe.of_all(train, [(1, 0.0, 1.0)], place)],
        )
        for _ in range(4000):
            apply_update_(place, sharpness * place, state, rates, recipes)
        ends.append(float(place.abs().max()))
    assert ends[0] < 1e-3
    assert ends[1] > 1e3


def test_sgd_divides_by_nothing():
    train = Train(steps=1, optimizer="sgd")
    assert_close(preconditioner(initial_state(train, torch.ones(2, 3)), train), torch.ones(2, 3))


def test_the_sharpness_of_sgd_is_the_top_eigenvalue_of_the_towers_as_a_multiple_of_its_threshold():
    params = {"image.w": torch.zeros(2, 3, dtype=torch.float64), "loss.bias": torch.zeros(2, dtype=torch.float64)}
    eigenvalues = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)

    def objective(params, batch):
        return (
            0.5 * (eigenvalues * params["image.w"].square()).sum() + params["loss.bias"].square() + 0 * batch["x"].sum()
        )

    replica = Replica(
        params=params,
        objective=objective,
        embed_image=None,
        embed_text=None,
        embed_extra_modalities=None,
        held_out=None,
        batches={"x": torch.zeros(2, 1, 1, dtype=torch.float64)},
        preconditioner={name: torch.ones_like(value) for name, value in params.items()},
        learning_rate=torch.tensor([0.1, 0.2], dtype=torch.float64),
        constant_rate=True,
        stability_threshold=sgd_threshold(momentum=0.5),
    )
    found = probe["curvature"](replica, batches=1, steps=4, edge_steps=3, trace_probes=1)
    expected = 5.0 * replica.learning_rate / (2 + 2 * 0.5)
    assert_close(found["sharpness_ratio"], expected, rtol=1e-9, atol=0)
    adam = probe["curvature"](
        dataclasses.replace(replica, stability_threshold=adam_threshold(betas=(0.9, 0.999))),
        batches=1,
        steps=4,
        edge_steps=3,
        trace_probes=1,
    )
    assert_close(adam["sharpness_ratio"], 5.0 * replica.learning_rate * 0.1 / 3.8, rtol=1e-9, atol=0)


# --- an arm's own training -----------------------------------------------------------------------------------------


OVERRIDES = [
    ("betas = [0.9, 0.999]", "betas = [0.9, 0.999]"),
    ('lr_schedule = "cosine"', 'lr_schedule = "cosine"'),
    ("scalar_lr_multiplier = 1.0", "scalar_lr_multiplier = 1.0"),
    ("weight_decay = 0.5", "weight_decay = 0.5"),
    ("clip_norm = 0.01", "clip_norm = 0.01"),
    ("clip_quantile = 0.5", "clip_quantile = 0.5"),
    ('optimizer = "sgd", momentum = 0.9', 'optimizer = "sgd"\nmomentum = 0.9'),
    ('optimizer = "sgd", momentum = 0.9, nesterov = true', 'optimizer = "sgd"\nmomentum = 0.9\nnesterov = true'),
]


@pytest.mark.parametrize(("inline", "lines"), OVERRIDES, ids=[inline for inline, _ in OVERRIDES])
def test_an_arm_trains_bit_for_bit_as_a_study_with_its_keys_would_and_leaves_the_others_alone(tiny_text, inline, lines):
    plain, own = study_of(tiny_text), with_train(tiny_text, f"{{ {inline} }}")
    head, rest = tiny_text.split("[train]\n")
    table, tail = rest.split("\n\n", 1)
    keys = {line.split(" = ")[0] for line in lines.splitlines()}
    kept = "\n".join(line for line in table.splitlines() if line.split(" = ")[0] not in keys)
    whole = study_of(f"{head}[train]\n{kept}\n{lines}\n\n{tail}")
    assert own.train_of("siglip-log-b") == whole.train
    assert own.train_of("clip") == plain.train
    assert own.hash != plain.hash
    of_own, of_whole, of_plain = ({run.arm: run.id for run in runs_of(study)} for study in (own, whole, plain))
    assert of_own["siglip-log-b"] == of_whole["siglip-log-b"] != of_plain["siglip-log-b"]
    assert of_own["clip"] == of_plain["clip"]
    if "quantile" not in inline:  # which needs a hundred steps before it clips
        assert torch.equal(trained(own, "siglip-log-b"), trained(whole, "siglip-log-b"))
        assert not torch.equal(trained(own, "siglip-log-b"), trained(plain, "siglip-log-b"))


def test_spelling_out_what_the_study_says_changes_no_run(tiny_text):
    own = with_train(tiny_text, "{ betas = [0.9, 0.95] }")
    assert [run.id for run in runs_of(own)] == [run.id for run in runs_of(study_of(tiny_text))]


def test_an_arm_that_turns_to_adam_leaves_sgd_s_momentum_behind_and_its_clipping_replaces_the_study_s(tiny_text):
    text = tiny_text.replace("warmup = 2", 'warmup = 2\noptimizer = "sgd"\nmomentum = 0.9\nclip_quantile = 0.9', 1)
    train = with_train(text, '{ optimizer = "adamw", clip_norm = 1.0 }').train_of("siglip-log-b")
    assert (train.optimizer, train.momentum, train.clip_quantile, train.clip_norm) == ("adamw", None, None, 1.0)


MISTAKES = [
    ("{ steps = 5 }", r"t\.toml: arms\.siglip-log-b\.train\.steps: unknown key.*"),
    ("{ betas = [0.9, 1.5] }", r"t\.toml: arms\.siglip-log-b\.train\.betas\[1\]: got 1\.5; allowed: .*less than 1"),
    (
        '{ optimizer = "adam" }',
        r"t\.toml: arms\.siglip-log-b\.train\.optimizer: unknown optimizer 'adam'; did you mean 'adamw'\?.*",
    ),
    (
        "{ momentum = 0.9 }",
        r"t\.toml: arms\.siglip-log-b\.train\.momentum: the optimizer 'adamw' takes no momentum; .*",
    ),
    (
        "{ nesterov = true }",
        r"t\.toml: arms\.siglip-log-b\.train\.nesterov: the optimizer 'adamw' takes no nesterov; .*",
    ),
    (
        "{ clip_norm = 1.0, clip_quantile = 0.5 }",
        r"t\.toml: arms\.siglip-log-b\.train\.clip_norm: give clip_norm or .*",
    ),
    (
        '{ optimizer = "sgd", betas = [0.9, 0.95] }',
        r"t\.toml: arms\.siglip-log-b\.train\.betas: the optimizer 'sgd' takes no betas; allowed with 'adamw'.* only",
    ),
    ("3", r"t\.toml: arms\.siglip-log-b\.train: got 3; allowed: .*"),
]


@pytest.mark.parametrize(("table", "sentence"), MISTAKES, ids=[table for table, _ in MISTAKES])
def test_a_mistake_is_one_sentence_that_names_the_key(tiny_text, table, sentence):
    with pytest.raises(InputError) as caught:
        with_train(tiny_text, table)
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)


# --- the RMS of updates ----------------------------------------------------------------------------------------------


def test_the_rms_of_an_update_is_that_of_the_weight_matrices_that_are_trained(tiny_text):
    study = study_of(tiny_text)
    runs = [run for run in runs_of(study) if run.arm == "clip" and run.batch_size == 8]
    (group,) = groups_of(runs, lambda run: 32)
    trainer = Trainer(study, group, study.pairs(), torch.device("cpu"))
    spec, before = trainer.population.spec, trainer.population.theta.clone()
    measured = trainer.step()["update_rms"]
    taken = spec.layout.unflatten(trainer.population.theta - before)
    matrices = [value.flatten(1) for name, value in taken.items() if len(spec.layout.shapes[name]) > 1]
    assert_close(measured, torch.cat(matrices, 1).square().mean(1).sqrt(), rtol=1e-5, atol=0)
    # Adam's first step moves every entry by about the rate; the loss's scalars go ten times as far.
    assert_close(measured, torch.full_like(measured, 0.01 / 2), rtol=0.05, atol=0)
    frozen = dataclasses.replace(spec, frozen=frozenset(spec.layout.shapes))
    assert frozen.rms_of_matrices(before).isnan().all()


# --- end to end ------------------------------------------------------------------------------------------------------


def test_a_run_of_such_a_study_is_judged_and_its_method_says_how_each_arm_was_trained(tiny_text, tmp_path):
    text = tiny_text.replace('bias = "-log B"', 'bias = "-log B"\ntrain = { optimizer = "sgd", momentum = 0.9 }')
    text = text.replace("batch_size = [8, 16]", "batch_size = [8]")
    text = re.sub(r"\[probes\.(matched_gradient_noise|geometry|separability|cross_check)\]\n(\w.*\n)*", "", text)
    study = parse_study(text, "t.toml", "t", "smoke")
    results = load_results(run(study, "cpu", out=tmp_path / "run"))
    assert set(results.runs["status"]) <= {"finished", "diverged"}
    rows = results.steps.merge(results.runs[["run", "arm"]], on="run")
    last = rows[(rows["step"] == 4) & rows["sharpness_ratio"].notna()]
    of_sgd = last[last["arm"] == "siglip-log-b"]
    assert len(of_sgd) == 1
    expected = of_sgd["hessian_max_eigenvalue_towers"] * 0.01 / (2 + 2 * 0.9)
    assert all(math.isclose(*pair, rel_tol=1e-3) for pair in zip(of_sgd["sharpness_ratio"], expected, strict=True))
    told = " ".join(texts_of("method", results, analyze(results, checks=False)).values())
    assert "AdamW with β₁ = 0.9 and β₂ = 0.95" in told
    assert "The arm siglip-log-b trains with its own optimizer = sgd, momentum = 0.9." in told
