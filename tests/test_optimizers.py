"""Every optimizer: its formula, a population equal to its members trained alone, its options, its words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from device_cases import TRAINING, pairs_of, study_of, study_text
from torch import Tensor, nn

from stability.analysis import analyze, load_results
from stability.execute import run
from stability.grid import Group, groups_of, runs_of
from stability.grid import study_of as trained_study_of
from stability.optimizers import Segment, optimizer, options_of
from stability.optimizers.muon import orthogonalized
from stability.optimizers.reproducible import sum_last
from stability.registry import InputError
from stability.store import read_parameters
from stability.study import Study, Train, optimizer_of, parse_study
from stability.train import Trainer
from stability.train.group import train_group
from stability.train.memory import bytes_per_replica
from stability.train.model import model_spec
from stability.train.optimizer import Recipe, apply_update_, evaluation_point, initial_state, preconditioner
from stability.train.replay import replay
from tests.report_blocks import texts_of

CPU = torch.device("cpu")
DECAY = 0.1
LAYOUT = (
    Segment("tall", 0, (5, 3), linear=True, decay=DECAY),
    Segment("wide", 15, (2, 4), linear=True, decay=DECAY),
    Segment("table", 23, (4, 3), decay=DECAY),
    Segment("stack", 35, (2, 3, 2), decay=DECAY),
    Segment("vector", 47, (6,)),
    Segment("loss.bias", 53, ()),
)
SIZE, WIDTH = 54, 64


def parts_of(flat: Tensor) -> dict[str, Tensor]:
    """Return the parameters of one replica by name, copied, with their shapes."""
    return {part.name: part.of(flat[None])[0].view(part.shape).clone() for part in LAYOUT}


def assert_steps_equal(train: Train, textbook, steps: int = 12, tolerance: float = 1e-11) -> None:
    """Raise unless each replica takes the steps of ``textbook(train, rate, params) -> step(grads, count)``."""
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(3, WIDTH, dtype=torch.float64)
    start[:, :SIZE] = torch.randn(3, SIZE, generator=generator, dtype=torch.float64)
    start[:, 53] = 0.0
    rates = torch.tensor([0.001, 0.02, 0.6], dtype=torch.float64)
    ours, state = start.clone(), initial_state(train, start, LAYOUT)
    groups = [(part.size, part.decay, 1.0) for part in LAYOUT]
    recipes = [Recipe.of_all(train, groups, start, LAYOUT)]
    params = [parts_of(row) for row in start]
    slow = [textbook(train, float(rate), each) for rate, each in zip(rates, params, strict=True)]
    for count in range(1, steps + 1):
        gradient = torch.zeros_like(start)
        # Gradients that grow suddenly, so that what depends on their history is not nearly constant.
        size = 30.0 if count == 8 else 0.3
        gradient[:, :SIZE] = size * torch.randn(3, SIZE, generator=generator, dtype=torch.float64)
        apply_update_(ours, gradient.clone(), state, rates, recipes)
        for row, step, own, expected in zip(gradient, slow, ours, params, strict=True):
            step(parts_of(row), count)
            for name, value in parts_of(own).items():
                difference = (value - expected[name].detach()).abs().max()
                assert difference < tolerance * (1 + expected[name].detach().abs().max()), (name, count)
        assert not ours[:, SIZE:].any()


def test_lion_is_the_textbook_loop():
    def textbook(train, rate, params):
        means = {name: torch.zeros_like(value) for name, value in params.items()}
        beta1, beta2 = train.betas

        def step(grads, count):
            for part in LAYOUT:
                name, grad = part.name, grads[part.name]
                sign = torch.sign(beta1 * means[name] + (1 - beta1) * grad)
                params[name] -= rate * (sign + part.decay * params[name])
                means[name] = beta2 * means[name] + (1 - beta2) * grad

        return step

    assert_steps_equal(Train(steps=12, optimizer="lion", betas=(0.8, 0.95), weight_decay=DECAY), textbook)


def adam_parts(train, means, name, grad, count):
    """Return m_hat and v_hat of one parameter after one more gradient, and keep m and v in *means*."""
    options = optimizer_of(train)[1]
    beta1, beta2 = options["betas"]
    first, second = means.get(name, (torch.zeros_like(grad), torch.zeros_like(grad)))
    means[name] = beta1 * first + (1 - beta1) * grad, beta2 * second + (1 - beta2) * grad**2
    return means[name][0] / (1 - beta1**count), means[name][1] / (1 - beta2**count), options["eps"]


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.0)])
def test_stable_adamw_is_the_textbook_loop(betas):
    rates = []

    def textbook(train, rate, params):
        means = {}

        def step(grads, count):
            for part in LAYOUT:
                grad = grads[part.name]
                first, second, eps = adam_parts(train, means, part.name, grad, count)
                rms = math.sqrt((grad**2 / second.clamp(min=eps**2)).mean())
                own_rate = rate / max(1.0, rms)
                rates.append(own_rate / rate)
                params[part.name] *= 1 - own_rate * part.decay
                params[part.name] -= own_rate * first / (second.sqrt() + eps)

        return step

    assert_steps_equal(Train(steps=12, optimizer="stable_adamw", betas=betas, weight_decay=DECAY), textbook)
    if betas[1]:
        assert min(rates) < 0.5
        assert max(rates) == 1.0


def test_the_first_step_of_stable_adamw_is_that_of_adamw():
    assert_steps_equal(
        Train(steps=1, optimizer="stable_adamw", weight_decay=DECAY, eps=1e-6),
        lambda train, rate, params: torch_steps(torch.optim.AdamW, rate, params, eps=1e-6),
        steps=1,
    )


def torch_steps(kind, rate, params, **options):
    """Return a step of torch's optimizer of this *kind*, with the weight decay of each parameter."""
    for name in params:
        params[name] = nn.Parameter(params[name])
    groups = [{"params": [params[part.name]], "weight_decay": part.decay} for part in LAYOUT]
    theirs = kind(groups, lr=rate, **options)

    def step(grads, count):
        for name, value in params.items():
            value.grad = grads[name]
        theirs.step()

    return step


def test_lamb_is_the_textbook_loop():
    ratios = set()

    def textbook(train, rate, params):
        means = {}

        def step(grads, count):
            for part in LAYOUT:
                theta = params[part.name]
                first, second, eps = adam_parts(train, means, part.name, grads[part.name], count)
                update = first / (second.sqrt() + eps) + part.decay * theta
                length, size = float(theta.norm()), float(update.norm())
                ratio = length / size if length > 0 and size > 0 else 1.0
                ratios.add(ratio)
                params[part.name] = theta - rate * ratio * update

        return step

    assert_steps_equal(Train(steps=12, optimizer="lamb", betas=(0.9, 0.95), weight_decay=DECAY), textbook)
    assert 1.0 in ratios  # of the bias, which starts at 0
    assert len(ratios) > 100


def test_adafactor_is_torch_s_step_for_step():
    assert_steps_equal(
        Train(steps=12, optimizer="adafactor", weight_decay=DECAY),
        lambda train, rate, params: torch_steps(torch.optim.Adafactor, rate, params),
    )


MUON = Train(steps=12, optimizer="muon", weight_decay=DECAY)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_maps_the_singular_values_of_linear_maps_by_its_polynomial_and_leaves_the_rest_to_adamw(nesterov):
    def textbook(train, rate, params):
        means, momenta = {}, {}

        def step(grads, count):
            for part in LAYOUT:
                theta, grad = params[part.name], grads[part.name]
                theta *= 1 - rate * part.decay
                if not part.linear:
                    first, second, eps = adam_parts(train, means, part.name, grad, count)
                    theta -= rate * first / (second.sqrt() + eps)
                    continue
                mean = momenta[part.name] = 0.9 * momenta.get(part.name, torch.zeros_like(grad)) + 0.1 * grad
                left, values, right = torch.linalg.svd(
                    0.1 * grad + 0.9 * mean if nesterov else mean, full_matrices=False
                )
                values = values / values.square().sum().sqrt()
                for _ in range(5):
                    values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
                theta -= rate * 0.2 * math.sqrt(max(part.shape)) * (left * values) @ right

        return step

    train = MUON.model_copy(update={"momentum": 0.9, "nesterov": nesterov})
    assert_steps_equal(train, textbook, tolerance=1e-9)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_muon_is_torch_s_up_to_the_half_precision_of_torch_s_iterations():
    def textbook(train, rate, params):
        for name in params:
            params[name] = nn.Parameter(params[name])
        own = [part for part in LAYOUT if part.linear]
        others = [part for part in LAYOUT if not part.linear]
        theirs = [
            torch.optim.Muon([params[part.name] for part in own], rate, DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": [params[part.name]], "weight_decay": part.decay} for part in others],
                lr=rate,
                betas=(0.9, 0.95),
            ),
        ]

        def step(grads, count):
            for name, value in params.items():
                value.grad = grads[name]
            for each in theirs:
                each.step()

        return step

    assert_steps_equal(MUON, textbook, steps=3, tolerance=0.02)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4)])
def test_orthogonalized_matrices_have_singular_values_near_one_and_zero_stays_zero(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrices[1] = 0.0
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert not values[1].any()
    assert 0.5 < values[[0, 2]].min() <= values[[0, 2]].max() < 1.25


def test_muon_is_refused_where_no_linear_map_is_trained():
    sentence = r"^t\.toml: train\.optimizer: 'muon' is for the matrices of linear maps, and the towers train none; .*"
    vectors = '{ name = "free_vectors" }'
    text = study_text(data='name = "sphere"\npairs = 24', image=vectors, text=vectors, grid="noise = [0.0]")
    with pytest.raises(InputError, match=sentence):
        parse_study(text.replace("warmup = 2", 'warmup = 2\noptimizer = "muon"'), "t.toml", "t")
    arm = '[arms.clip]\nloss = "clip"\ntrain = { optimizer = "muon" }\n'
    with pytest.raises(InputError, match=sentence.replace("train", "arms\\.clip\\.train", 1)):
        parse_study(text + arm, "t.toml", "t")
    axis = text.replace("noise = [0.0]", 'noise = [0.0]\n"train.optimizer" = ["adamw", "muon"]')
    with pytest.raises(InputError, match=r'grid\."train\.optimizer"\[1\].*linear maps'):
        parse_study(axis, "t.toml", "t")


@pytest.fixture
def four_buffers():
    """The name of an optimizer with four buffers, registered for one test."""

    @optimizer(buffers=("a", "b", "c", "d"), decay="decoupled", describe=lambda: "Four")
    def four(grad, buffers, count):
        return -grad

    yield "four"
    optimizer._variants.pop("four")


def test_a_plan_counts_the_buffers_of_an_optimizer_beyond_two(four_buffers):
    needs = {}
    for name in ("adamw", "lion", four_buffers):
        study = parse_study(case(name), "t.toml", "t")
        needs[name] = bytes_per_replica(study, "siglip", 8, study.pairs())
    assert needs["lion"] == needs["adamw"]
    width = model_spec(study, "siglip", 8, study.pairs()).layout.width
    assert needs["four"] == needs["adamw"] + 2 * width * 4


def schedule_free_steps(train: Train, rates: Tensor, start: Tensor, gradients: list[Tensor], multiplier: float):
    """Return y and x after each step of Algorithm 1, one replica and parameter after the other, in plain loops."""
    beta1, beta2 = optimizer_of(train)[1]["betas"]
    eps = optimizer_of(train)[1]["eps"]
    ys, xs = [], []
    x, z, second, total = start.clone(), start.clone(), torch.zeros_like(start), 0.0
    for count, grad in enumerate(gradients, 1):
        y = (1 - beta1) * z + beta1 * x
        second = beta2 * second + (1 - beta2) * grad**2
        rate = rates[count - 1] * math.sqrt(1 - beta2**count)
        for part in LAYOUT:
            own = slice(part.start, part.start + part.size)
            factor = multiplier if part.name.startswith("loss.") else 1.0
            z[own] -= factor * rate * (grad[own] / (second[own].sqrt() + eps) + part.decay * y[own])
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        ys.append((1 - beta1) * z + beta1 * x)
        xs.append(x)
    return ys, xs


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.0)])
def test_schedule_free_is_the_textbook_loop_under_a_warmup_and_a_multiplier_of_scalars(betas):
    generator = torch.Generator().manual_seed(0)
    train = Train(steps=12, optimizer="schedule_free", betas=betas, weight_decay=DECAY)
    layout = tuple(replace(part, lr_multiplier=7.0) if part.name.startswith("loss.") else part for part in LAYOUT)
    start, gradients = torch.zeros(2, WIDTH, dtype=torch.float64), []
    start[:, :SIZE] = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
    rates = torch.tensor([[0.003], [0.6]], dtype=torch.float64) * torch.tensor([0.25, 0.5, 0.75, *[1.0] * 9])
    theta, state = start.clone(), initial_state(train, start, layout)
    recipes = [Recipe.of_all(train, [(part.size, part.decay, part.lr_multiplier) for part in layout], start, layout)]
    assert torch.equal(evaluation_point(theta, state, train), theta)
    seen = []
    for count in range(1, 13):
        gradient = torch.zeros_like(start)
        gradient[:, :SIZE] = torch.randn(2, SIZE, generator=generator, dtype=torch.float64) / (count == 8 or 30)
        gradients.append(gradient)
        apply_update_(theta, gradient.clone(), state, rates[:, count - 1].contiguous(), recipes)
        seen.append((theta.clone(), evaluation_point(theta, state, train)))
    for replica in range(2):
        of_replica = [gradient[replica] for gradient in gradients]
        ys, xs = schedule_free_steps(train, rates[replica].tolist(), start[replica], of_replica, 7.0)
        for (ours, averaged), y, x in zip(seen, ys, xs, strict=True):
            torch.testing.assert_close(ours[replica], y, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(averaged[replica], x, rtol=1e-11, atol=1e-11)
        assert not torch.equal(*(point[replica] for point in seen[-1]))


def test_probes_saved_parameters_replays_and_children_of_forks_are_at_the_averaged_parameters(tmp_path):
    text, plain_text = (case(name) + "[probes.geometry]\n[probes.retrieval]\n" for name in ("schedule_free", "adamw"))
    study, plain_study = study_of(text), study_of(plain_text)
    trainer, plain = trainer_of(study, runs_of(study), text), trainer_of(plain_study, runs_of(plain_study), plain_text)
    for _ in range(4):
        trainer.step()
    averaged = trainer.population.evaluated
    assert (averaged != trainer.population.theta).any(1).all()
    plain.population.theta.copy_(averaged)
    plain.population.step = trainer.population.step
    for name in study.probes:
        ours, theirs = trainer.read(name).values, plain.read(name).values
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], theirs[key], rtol=0, atol=0, equal_nan=True) for key in ours)
    # At the last step a child of a fork has no step to take.
    assert all(torch.equal(child, averaged) for child in trainer.children(range(4)))
    group, kept = Group("g", runs_of(study)), tmp_path / "params.safetensors"
    train_group(study, group, pairs_of(text), tmp_path / "g.parquet", CPU, lambda step: None, kept)
    for index, trained in enumerate(group.runs):
        saved = read_parameters(kept, trained.id)
        expected = trainer.population.spec.layout.unflatten(averaged[index])
        for params in (saved, replay(study, group, trained).params, replay(study, group, trained, saved=saved).params):
            assert params.keys() == expected.keys()
            assert all(torch.equal(params[name], value) for name, value in expected.items())


# --- what every optimizer does ------------------------------------------------------------------------------------


def case(name: str) -> str:
    """Return a study trained by the optimizer called *name*, with weight decay and a multiplier on scalars."""
    return study_text(
        name="siglip", more=f'optimizer = "{name}"\nweight_decay = 0.1\nscalar_lr_multiplier = 3.0', seeds=4
    )


def trainer_of(study: Study, runs, text: str) -> Trainer:
    return Trainer(study, Group("g", tuple(runs)), pairs_of(text), CPU)


@pytest.mark.parametrize("name", sorted(optimizer))
def test_a_population_is_its_members_trained_alone_bit_for_bit(name):
    text = case(name)
    study = study_of(text)
    together = trainer_of(study, runs_of(study), text)
    alone = [trainer_of(study, [run], text) for run in runs_of(study)]
    before = together.population.theta.clone()
    for _ in range(4):
        together.step()
        for trainer in alone:
            trainer.step()
    for index, trainer in enumerate(alone):
        assert torch.equal(together.population.theta[index], trainer.population.theta[0])
        assert torch.equal(trainer.population.theta[0], trainer.population.theta[1])
    assert (together.population.theta != before).any(1).all()
    assert together.population.theta.isfinite().all()


@pytest.mark.parametrize("name", sorted(optimizer))
def test_a_replica_that_turns_nan_leaves_the_others_alone(name):
    text = case(name)
    study = study_of(text)
    one, two = (trainer_of(study, runs_of(study), text) for _ in range(2))
    for _ in range(2):
        one.step(), two.step()
    two.population.theta[1] = torch.nan
    for _ in range(2):
        one.step()
        measured = two.step()
    assert measured["loss"].isnan().tolist() == [False, True, False, False]
    others = torch.tensor([0, 2, 3])
    assert torch.equal(one.population.theta[others], two.population.theta[others])


@pytest.mark.parametrize("name", sorted(optimizer))
def test_probes_read_under_every_optimizer_what_its_traits_allow(name):
    text = (
        case(name)
        + "[probes.curvature]\nbatches = 1\nsteps = 3\nedge_steps = 3\n[probes.gradient_noise]\nbatches = 2\n"
    )
    study = study_of(text)
    trainer = trainer_of(study, runs_of(study), text)
    for _ in range(3):
        trainer.step()
    curvature, noise = trainer.read("curvature").values, trainer.read("gradient_noise").values
    traits = optimizer[name].traits
    for value in (curvature["preconditioned_sharpness"], curvature["preconditioned_sharpness_residual"]):
        assert value.isnan().all() == (traits.preconditioner is None)
    assert curvature["sharpness_ratio"].isnan().all() == (traits.stability_threshold is None)
    diagonal = preconditioner(trainer.population.optimizer, study.train)
    varies = diagonal is not None and bool((diagonal != diagonal[0, 0]).any())
    assert noise["gradient_noise_trace_towers"].isfinite().all()
    assert noise["gradient_noise_trace_towers_preconditioned"].isfinite().all() == varies


@pytest.mark.parametrize("name", sorted(optimizer))
def test_every_optimizer_has_words_with_its_options(name):
    variant, options = optimizer_of(Train(steps=1, optimizer=name))
    assert variant.traits.describe(**options)
    assert variant.summary.endswith(".")
    assert all(parameter.default is not parameter.empty for parameter in options_of(variant).values())


@pytest.mark.parametrize("name", sorted(optimizer))
def test_every_optimizer_has_a_case_on_every_device(name):
    assert f'optimizer = "{name}"' in TRAINING[f"optimizer {name}"]


# --- options and their defaults -----------------------------------------------------------------------------------


def with_train(more: str, grid: str = "noise = [0.5]") -> Study:
    return parse_study(study_text(more=more, grid=grid), "t.toml", "t")


def test_an_option_left_out_is_the_optimizer_s_own_and_one_that_is_set_counts():
    assert optimizer_of(with_train('optimizer = "lion"').train)[1] == {"betas": (0.9, 0.99)}
    explicit = with_train('optimizer = "lion"\nbetas = [0.9, 0.999]').train
    assert optimizer_of(explicit)[1] == {"betas": (0.9, 0.999)}
    assert optimizer_of(with_train("").train)[1] == {"betas": (0.9, 0.999), "eps": 1e-8}


def ids(study: Study) -> list[str]:
    return [run.id for run in runs_of(study)]


def test_spelling_out_an_optimizer_s_own_default_is_the_same_study_and_the_same_runs():
    for own, spelled in [
        ("", "betas = [0.9, 0.999]\neps = 1e-8\nmomentum = 0.0"),
        ('optimizer = "lion"', 'optimizer = "lion"\nbetas = [0.9, 0.99]'),
        ('optimizer = "sgd"', 'optimizer = "sgd"\nmomentum = 0.0\nbetas = [0.9, 0.999]'),
    ]:
        assert with_train(own).hash == with_train(spelled).hash
        assert ids(with_train(own)) == ids(with_train(spelled))
    lion, of_adam = (with_train(f'optimizer = "lion"\n{more}') for more in ("", "betas = [0.9, 0.999]"))
    assert lion.hash != of_adam.hash
    assert not {*ids(lion)} & {*ids(of_adam)}


def test_a_default_of_one_optimizer_spelled_out_is_another_study_where_an_arm_has_another():
    arm = '[arms.clip]\nloss = "clip"\ntrain = { optimizer = "lion" }\n'
    own, spelled = (parse_study(study_text(more=more) + arm, "t.toml", "t") for more in ("", "betas = [0.9, 0.999]"))
    assert optimizer_of(own.train_of("clip"))[1]["betas"] == (0.9, 0.99)
    assert optimizer_of(spelled.train_of("clip"))[1]["betas"] == (0.9, 0.999)
    assert own.hash != spelled.hash
    assert not {*ids(own)} & {*ids(spelled)}


def test_optimizers_are_an_axis_whose_levels_are_runs_of_studies_of_their_own():
    study = with_train("", 'noise = [0.5]\n"train.optimizer" = ["adamw", "lion"]')
    groups = groups_of(runs_of(study), lambda run: 32)
    assert len(groups) == 2
    for group in groups:
        (name,) = {value for run in group.runs for key, value in run.settings}
        alone = with_train(f'optimizer = "{name}"')
        assert {run.id for run in group.runs} == {*ids(alone)}
        ours = Trainer(trained_study_of(study, group), group, study.pairs(), CPU)
        theirs = Trainer(alone, Group("g", runs_of(alone)), alone.pairs(), CPU)
        for _ in range(3):
            ours.step(), theirs.step()
        assert torch.equal(ours.population.theta, theirs.population.theta)


def test_nesterov_s_momentum_is_an_axis_whose_levels_share_a_population():
    study = with_train('optimizer = "sgd"\nmomentum = 0.9', 'noise = [0.5]\n"train.nesterov" = [false, true]')
    (group,) = groups_of(runs_of(study), lambda run: 32)
    assert {value for run in group.runs for _, value in run.settings} == {False, True}
    trainer = Trainer(trained_study_of(study, group), group, study.pairs(), CPU)
    for _ in range(3):
        trainer.step()
    assert len({tuple(row.tolist()) for row in trainer.population.theta}) == len(group.runs)


# --- in words -----------------------------------------------------------------------------------------------------


def test_a_report_names_the_optimizer_and_says_that_its_sharpness_has_no_threshold(brief_text, tmp_path):
    text = brief_text.replace('bias = "-log B"', 'bias = "-log B"\ntrain = { optimizer = "lion" }')
    probed = "\n[probes.curvature]\nbatches = 1\nsteps = 3\nedge_steps = 2\n"
    results = load_results(run(parse_study(text + probed, "t.toml", "t"), "cpu", out=tmp_path / "run"))
    findings = analyze(results, checks=False)
    assert "siglip-log-b trains with its own optimizer = lion" in " ".join(
        texts_of("method", results, findings).values()
    )
    limits = texts_of("limitations", results, findings)
    assert "is not known for lion: runs" in limits["Sharpness without a threshold"]
    rows = results.steps.merge(results.runs[["run", "arm"]], on="run").dropna(subset="hessian_max_eigenvalue_towers")
    assert rows.groupby("arm")["sharpness_ratio"].count()["siglip-log-b"] == 0
    assert rows.groupby("arm")["sharpness_ratio"].count()["clip"] > 0


# --- sums over one parameter --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 5, 16, 1003, 40_001])
def test_the_sum_over_a_replica_s_parameter_does_not_depend_on_the_others_or_on_its_place(size, threads):
    flat = torch.randn(5, size + 21, generator=torch.Generator().manual_seed(1))
    torch.set_num_threads(threads)
    try:
        together = sum_last(flat[:, 7 : 7 + size])
        for index, row in enumerate(flat):
            assert torch.equal(sum_last(row[None, 7 : 7 + size].clone())[0], together[index])
    finally:
        torch.set_num_threads(1)
