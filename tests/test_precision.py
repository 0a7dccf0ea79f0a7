"""Training with 16-bit numbers: what is rounded, a population equal to its members trained alone, loss scales."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from device_cases import LATENT, MLP, SHAPES, pairs_of, study_of, study_text
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from stability.analysis import load_results
from stability.encoders import Modality, encoder
from stability.execute import run
from stability.grid import Group, runs_of
from stability.losses import loss
from stability.losses.calls import call, inputs_of
from stability.losses.logits import scaled_similarities
from stability.optimizers import optimizer
from stability.precision import DTYPES, Precision, _Rounding, autocast, check_products, is_reduced
from stability.registry import InputError
from stability.study import Train, parse_study
from stability.train import Trainer
from stability.train.loss_scale import LossScale
from stability.train.optimizer import initial_state, preconditioner

CPU = torch.device("cpu")
REDUCED = ("bfloat16", "float16")
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Largest relative error of rounding to the nearest number, half the spacing of the numbers at 1."""


def rounded(x: Tensor, name: str) -> Tensor:
    return x.to(DTYPES[name]).float()


def trainer_of(text: str, replicas: slice = slice(None)) -> Trainer:
    study = study_of(text)
    return Trainer(study, Group("g", runs_of(study)[replicas]), pairs_of(text), CPU)


def text_of(precision: str, logits: str = "float32", more: str = "", **options) -> str:
    return study_text(more=f'precision = "{precision}"\nlogits = "{logits}"\n{more}', **options)


PRODUCTS = {
    "matmul": (lambda a, b: a @ b.T, lambda a, b: a.double() @ b.double().T),
    "bmm": (lambda a, b: torch.bmm(a[None], b.T[None])[0], lambda a, b: a.double() @ b.double().T),
    "baddbmm": (
        lambda a, b: torch.baddbmm(a.new_empty(1, 1, 1), a[None], b.T[None], beta=0, alpha=0.5)[0],
        lambda a, b: 0.5 * (a.double() @ b.double().T),
    ),
    "linear": (F.linear, lambda a, b: a.double() @ b.double().T),
    "einsum": (lambda a, b: torch.einsum("id,jd->ij", a, b), lambda a, b: a.double() @ b.double().T),
    "conv1d": (
        lambda a, b: F.conv1d(a[:, :, None], b[:, :, None])[..., 0],
        lambda a, b: a.double() @ b.double().T,
    ),
}


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_round_their_operands_and_their_result_to_the_nearest(precision, name):
    product, exact = PRODUCTS[name]
    a, b = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    with autocast(DTYPES[precision], CPU):
        ours = product(a, b)
    sums = exact(rounded(a, precision), rounded(b, precision))
    # Sums in float32 may round otherwise than in float64 only next to the middle between two numbers.
    assert ours.dtype == torch.float32
    assert torch.equal(rounded(ours, precision), ours)
    assert ((ours - sums).abs() <= (1 + 2**-10) * UNIT[precision] * sums.abs()).all()
    assert not torch.equal(ours, product(a, b))


@pytest.mark.parametrize("precision", REDUCED)
def test_gradients_of_products_are_rounded_too(precision):
    generator = torch.Generator().manual_seed(2)
    a, b, grad = (torch.randn(5, 5, generator=generator) for _ in range(3))
    a.requires_grad_()
    with autocast(DTYPES[precision], CPU):
        (ours,) = torch.autograd.grad(a @ b, a, grad)
    expected = rounded(rounded(grad, precision) @ rounded(b, precision).T, precision)
    assert torch.equal(ours, expected)


def test_only_products_are_rounded_and_only_within():
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    functions = [torch.exp, torch.tanh, F.gelu, lambda x: x + x / 3, lambda x: F.layer_norm(x, (4,)), torch.sum]
    before = [function(x) for function in functions]
    assert not is_reduced(CPU)
    with autocast(torch.bfloat16, CPU):
        assert is_reduced(CPU)
        assert all(torch.equal(function(x), value) for function, value in zip(functions, before, strict=True))
    assert not is_reduced(CPU)
    with autocast(torch.float32, CPU):
        assert not is_reduced(CPU)
        assert torch.equal(x @ x, torch.matmul(x, x))


def test_instructions_of_the_cpu_give_what_rounding_gives():
    # Torch multiplies bfloat16 on any CPU, with or without instructions for it.
    a, b = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(4))
    with autocast(torch.bfloat16, CPU):
        by_rounding = a @ b.T
    natively = _Rounding(torch.bfloat16, carried=False)
    natively.native = True
    with natively:
        result = a @ b.T
    assert result.dtype == torch.float32
    assert ((result - by_rounding).abs() <= 2 * UNIT["bfloat16"] * by_rounding.abs() + 2**-20).all()


@pytest.mark.parametrize("precision", REDUCED)
def test_the_error_of_a_perceptron_is_within_the_bound_of_its_format(precision):
    """The bound is carried from layer to layer: |W| (e + u |h|)(1 + u) + u |W| |h|, and u times the result."""
    unit = UNIT[precision]
    torch.manual_seed(0)
    tower = encoder["mlp"](Modality((6,), 0), 8, width=32, depth=3)
    x = torch.randn(64, 6)
    with torch.no_grad(), autocast(DTYPES[precision], CPU):
        ours = tower(x)
    exact = {name: value.double() for name, value in tower.state_dict().items()}
    h, error = x.double(), torch.zeros_like(x, dtype=torch.float64)
    for layer in tower.modules():
        if isinstance(layer, nn.Linear):
            name = next(name for name, module in tower.named_modules() if module is layer)
            weight, bias = exact[f"{name}.weight"], exact[f"{name}.bias"]
            size = (h.abs() + error) @ weight.abs().T
            error = (error + unit * (h.abs() + error)) @ weight.abs().T * (1 + unit) + unit * size
            h = h @ weight.T
            error = error + unit * (h.abs() + error) + 1e-6
            h = h + bias
        elif isinstance(layer, nn.GELU):
            # The derivative of GELU is at most 1.13.
            h, error = F.gelu(h), 1.13 * error
        elif not isinstance(layer, nn.Sequential | nn.Flatten) and layer is not tower:
            raise AssertionError(f"the bound knows no {type(layer).__name__}")
    difference = (ours.double() - h).abs()
    assert (difference <= error).all()
    # The format is felt: float32 would err by some 1e-7.
    assert difference.max() > unit * h.abs().max() / 4


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("side", ["image", "text"])
def test_the_error_of_every_tower_is_of_the_size_of_its_format(precision, side):
    for name in sorted(encoder):
        if encoder[name].traits.modality not in (side, "any" if side == "image" else side) or name == "free_vectors":
            continue
        torch.manual_seed(0)
        pairs = pairs_of(study_text())
        samples = pairs.modalities[side][:32]
        vocabulary = len(pairs.vocabulary) if side == "text" else 0
        tower = encoder[name](Modality(tuple(samples.shape[1:]), vocabulary), 8)
        with torch.no_grad():
            exact = F.normalize(tower.double()(samples.double() if samples.is_floating_point() else samples), dim=-1)
            with autocast(DTYPES[precision], CPU):
                ours = F.normalize(tower.float()(samples), dim=-1)
        error = (ours - exact).norm(dim=-1)
        products = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in tower.modules())
        assert error.max() < 4 * products * UNIT[precision], name
        assert error.max() > UNIT[precision] / 8, name


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_bfloat16_logits_between_64_and_128_are_half_a_unit_apart(name):
    angles = torch.linspace(0.85, 0.75, 64)
    image, text = torch.tensor([[1.0, 0.0]]).expand(64, 2), torch.stack([angles.cos(), angles.sin()], -1)
    log_scale = torch.tensor(math.log(100.0))
    with autocast(torch.bfloat16, CPU, carried=True):
        logits = scaled_similarities(image, text, log_scale)
    values = logits[0].double().unique()
    assert logits.dtype == torch.bfloat16
    assert values.min() > 64
    assert values.max() < 128
    assert set(values.diff().tolist()) == {0.5}
    # So that losses of embeddings that differ by less are equal.
    scalars = {"log_scale": log_scale} | ({"bias": torch.tensor(-10.0)} if name == "siglip" else {})

    def values_of(shift: float) -> Tensor:
        turned = torch.stack([(angles + shift).cos(), (angles + shift).sin()], -1)
        with autocast(torch.bfloat16, CPU, carried=True):
            return loss[name](image, turned, **scalars)

    assert values_of(0.0) == values_of(1e-5)
    turned = torch.stack([(angles + 1e-5).cos(), (angles + 1e-5).sin()], -1)
    assert loss[name](image, text, **scalars) != loss[name](image, turned, **scalars)


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("name", sorted(loss))
def test_every_loss_can_be_computed_from_16_bit_logits(precision, name):
    variant = loss[name]
    inputs = inputs_of(variant, 16, dtype=torch.float32)
    exact = call(variant, inputs)[0].double()
    with autocast(DTYPES[precision], CPU, carried=True):
        ours = call(variant, inputs)[0].double()
    if (name, precision) == ("siglip_as_published", "float16"):
        # Its 1e-8 is 0 in float16: a pair whose probability rounds to 0 costs an infinity.
        assert ours == math.inf
        return
    assert torch.isfinite(ours)
    assert abs(ours - exact) < 30 * UNIT[precision] * (1 + abs(exact)), (ours, exact)


CASES = [
    *(("bfloat16", "same", name, "mlp") for name in sorted(loss)),
    *(("float16", "same", name, "mlp") for name in ("clip", "siglip")),
    *((precision, "float32", "siglip", tower) for precision in REDUCED for tower in ("conv", "transformer")),
]


@pytest.mark.parametrize(("precision", "logits", "name", "tower"), CASES)
def test_a_population_in_16_bits_is_its_members_trained_alone(precision, logits, name, tower):
    towers = {"mlp": {"text": MLP, "data": LATENT}, "conv": {"image": '{ name = "conv", width = 8 }'}}.get(tower, {})
    assert_as_if_alone(text_of(precision, logits, name=name, **towers))


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("name", sorted(optimizer))
def test_every_optimizer_trains_members_as_if_alone(precision, name):
    # A first scale at which the first steps overflow, in some replicas more often than in others.
    more = f'optimizer = "{name}"\ninitial_loss_scale = 1e8'
    assert_as_if_alone(text_of(precision, more=more, data=LATENT, text=MLP))


@pytest.mark.parametrize("name", ["nt_logistic", "siglip_masked"])
def test_rows_that_end_within_a_cache_line_do_not_let_bits_depend_on_the_position(name):
    text = text_of("float32", name=name, data=LATENT, text=MLP, seeds=5).replace("steps = 4", "steps = 40")
    assert_as_if_alone(text, steps=40, replicas=5)


def assert_as_if_alone(text: str, steps: int = 4, replicas: int = 3) -> None:
    together = trainer_of(text)
    measured = [together.step() for _ in range(steps)]
    for replica in range(replicas):
        alone = trainer_of(text, slice(replica, replica + 1))
        for step in measured:
            for key, value in alone.step().items():
                assert torch.equal(value[0].nan_to_num(-7.0), step[key][replica].nan_to_num(-7.0)), key
        assert torch.equal(alone.population.theta[0], together.population.theta[replica])


def test_float16_trains_as_torch_s_scaler_does():
    """A plain loop with AdamW and `torch.amp.GradScaler`, through skipped steps and growth, one run at a time."""
    text = text_of(
        "float16",
        more="initial_loss_scale = 4194304.0\nloss_scale_growth_interval = 3\nsteps = 24",
        data=LATENT,
        text=MLP,
    )
    trainer = trainer_of(text.replace("steps = 4\n", ""), slice(0, 2))
    population = trainer.population
    spec, theta = population.spec, population.theta.clone()
    for replica in range(2):
        params = {
            name: nn.Parameter(value[replica].clone(), requires_grad=name not in spec.frozen)
            for name, value in spec.layout.unflatten(theta).items()
        }
        trained = [value for name, value in params.items() if name not in spec.frozen]
        theirs = torch.optim.AdamW(trained, lr=0.01, betas=(0.9, 0.999), weight_decay=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=4194304.0, growth_interval=3)
        ours = trainer_of(text.replace("steps = 4\n", ""), slice(0, 2))
        skips = 0
        for step in range(24):
            inputs = ours.inputs()
            rows = ours.population.data.batch(inputs["index"], ())
            for group in theirs.param_groups:
                group["lr"] = float(inputs["rate"][replica])
            before = scaler.get_scale()
            with autocast(torch.float16, CPU):
                embeddings = [
                    functional_call(tower, {k.split(".", 1)[1]: v for k, v in params.items() if k.startswith(name)},
                                    rows[name][replica])
                    for name, tower in spec.towers.items()
                ]  # fmt: skip
            value = loss["clip"](*(F.normalize(x, dim=-1) for x in embeddings), log_scale=params["loss.log_scale"])
            theirs.zero_grad()
            scaler.scale(value).backward()
            scaler.step(theirs)
            scaler.update()
            measured = dict(zip(ours.measures, _advanced(ours, inputs), strict=True))
            assert float(measured["loss_scale"][replica]) == before, step
            skipped = bool(measured["skipped_step_fraction"][replica])
            assert skipped == (scaler.get_scale() < before), step
            assert bool(measured["overflow"][replica] > 0) == skipped
            assert math.isnan(measured["gradient_norm"][replica]) == skipped
            skips += skipped
            torch.testing.assert_close(measured["loss"][replica], value.detach(), rtol=2e-3, atol=1e-4)
        assert 2 <= skips <= 12
        for name, value in ours.population.spec.layout.unflatten(ours.population.theta).items():
            # A sum rounded otherwise in float16 may move a nearly zero gradient, and Adam divides by its size.
            difference = (value[replica] - params[name].detach()).abs()
            assert difference.median() < 1e-4, name
            assert difference.max() < 0.05, name


def _advanced(trainer: Trainer, inputs) -> Tensor:
    from stability.train.trainer import train_step

    measures = train_step(trainer.population, inputs)
    trainer.population.step += 1
    trainer.population.optimizer.steps = trainer.population.step
    return measures


def test_a_skipped_step_leaves_parameters_and_state_as_if_there_were_none():
    trainer = trainer_of(text_of("float16", more="initial_loss_scale = 256.0"))
    trainer.step()
    population = trainer.population
    state = population.optimizer
    before = population.theta.clone(), {key: value.clone() for key, value in state.buffers.items()}
    # The second replica's scaled gradient overflows: its scale is beyond what float32 holds.
    population.loss_scale.scale[1] = 2.0**127
    step = trainer.step()
    assert step["skipped_step_fraction"].tolist() == [0, 1, 0]
    assert torch.equal(population.theta[1], before[0][1])
    assert not torch.equal(population.theta[0], before[0][0])
    assert all(torch.equal(value[1], before[1][key][1]) for key, value in state.buffers.items())
    assert state.count[:, 0].tolist() == [2, 1, 2]
    diagonal = preconditioner(state, trainer.study.train)
    expected = state.buffers["second"][1].div(1 - 0.999**1).sqrt() + 1e-8
    torch.testing.assert_close(diagonal[1], expected)
    assert step["update_norm"][1] == 0
    assert population.alive.all()
    fresh = trainer_of(text_of("float16", more="initial_loss_scale = 256.0"))
    fresh.step()
    fresh.step()
    others = [0, 2]
    assert torch.equal(fresh.population.theta[others], population.theta[others])


def test_the_scale_is_halved_by_an_overflow_and_doubled_after_an_interval():
    scale = LossScale.of(Train(steps=1, initial_loss_scale=4.0, loss_scale_growth_interval=2), 3, CPU)
    overflows = [[0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]
    scales, skipped = [], []
    for row in overflows:
        skipped.append(scale.skipped_(~torch.tensor(row, dtype=torch.bool)).tolist())
        scales.append(scale.scale.tolist())
    assert scales == [[4, 4, 2], [8, 2, 1], [8, 2, 1], [16, 4, 1]]
    # At a scale of 1 there is nothing left to halve.
    assert skipped == [[False, False, True], [False, True, True], [False] * 3, [False] * 3]
    part = scale.select(torch.tensor([2, 0]))
    part.scale += 1
    assert scale.scale.tolist() == [16, 4, 1]


def test_a_run_that_overflows_for_good_has_diverged_with_its_step_and_others_finish(tmp_path):
    text = study_text(
        more='optimizer = "sgd"', grid='noise = [0.5]\n"train.precision" = ["float32", "float16"]', seeds=2
    )
    # A rate at which weights leave the range of float16 but not that of float32.
    text = text.replace("lr = [0.01]", "lr = [0.01, 1e9]").replace("steps = 4", "steps = 60")
    study = parse_study(text, "t.toml", "t")
    run(study, device="cpu", out=tmp_path)
    runs = load_results(tmp_path).runs.set_index(["train.precision", "lr"]).sort_index()
    assert set(runs.loc[("float16", 1e9), "status"]) == {"diverged"}
    steps = load_results(tmp_path).steps.merge(runs.reset_index(), on="run")
    for _, run_steps in steps[(steps["train.precision"] == "float16") & (steps["lr"] == 1e9)].groupby("run"):
        assert run_steps["loss"].isna().tolist() == (run_steps["step"] >= run_steps["diverged_at"]).tolist()
        # Sixteen halvings from 65,536 to 1, and one overflow more, after which nothing is logged.
        assert run_steps["skipped_step_fraction"].sum() == 16
        assert run_steps["loss_scale"].isna().any()
    assert set(runs.loc[("float16", 0.01), "status"]) == {"finished"}


def test_measures_of_scaling_are_those_of_float16_alone(tmp_path):
    study = parse_study(
        study_text(grid='noise = [0.5]\n"train.precision" = ["bfloat16", "float16"]', seeds=2), "t.toml", "t"
    )
    run(study, device="cpu", out=tmp_path)
    results = load_results(tmp_path)
    steps = results.steps.merge(results.runs[["run", "train.precision"]], on="run")
    of = dict(iter(steps.groupby("train.precision")))
    for name in ("loss_scale", "skipped_step_fraction", "overflow"):
        assert of["float16"][name].notna().all()
        assert of["bfloat16"][name].isna().all()
    assert results.manifest["arithmetic"]["products"].keys() == {"bfloat16", "float16"}
    assert "loss_scale" not in study_of(study_text()).measures


def test_levels_of_precision_are_groups_and_runs_of_their_own_and_float32_is_the_default():
    plain = {run.id for run in runs_of(study_of(study_text()))}
    study = study_of(study_text(grid='noise = [0.5]\n"train.precision" = ["float32", "bfloat16"]'))
    ids = {settings: {run.id for run in group} for settings, group in itertools.groupby(
        sorted(runs_of(study), key=lambda run: run.settings), key=lambda run: run.settings)}  # fmt: skip
    assert ids[("train.precision", "float32"),] == plain
    assert not ids[("train.precision", "bfloat16"),] & plain


def test_only_float16_counts_the_steps_of_each_replica():
    theta = torch.zeros(2, 16)
    assert initial_state(Train(steps=1), theta).count.shape == ()
    assert initial_state(Train(steps=1, precision="bfloat16"), theta).count.shape == ()
    assert initial_state(Train(steps=1, precision="float16"), theta).count.shape == (2, 1)
    assert Precision.of("float32", "same") == Precision()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('precision = "bf16"', "train.precision: got 'bf16'; allowed: 'float32', 'bfloat16' or 'float16'"),
        ('logits = "float16"', "train.logits: got 'float16'; allowed: 'float32' or 'same'"),
        ("initial_loss_scale = 0.5", "train.initial_loss_scale: got 0.5; allowed: greater than or equal to 1"),
        ("loss_scale_growth_interval = 0", "train.loss_scale_growth_interval: got 0"),
    ],
)
def test_a_format_that_there_is_not_is_refused_in_one_sentence(line, sentence):
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")) as error:
        parse_study(study_text(more=line), "t.toml", "t")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("module", [nn.MultiheadAttention(4, 2), nn.LSTM(4, 4), nn.GRUCell(4, 4)])
def test_a_tower_whose_products_cannot_be_rounded_is_refused(module):
    with pytest.raises(InputError, match=f"its {type(module).__name__} \\(1\\) cannot be computed"):
        check_products(nn.Sequential(nn.Linear(4, 4), module))
    check_products(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, 1, 1)))


def test_a_frozen_tower_computes_its_features_in_the_format_of_the_towers():
    locked = MLP.replace(" }", ", frozen = true }")
    kept = {
        name: trainer_of(text_of(name, image=locked, data=SHAPES, grid="noise = [0.0]")).population.features["image"]
        for name in ("float32", "bfloat16")
    }
    difference = (kept["float32"].table - kept["bfloat16"].table).abs().max()
    assert 0 < difference < 0.05


ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
FORMATS = [
    pytest.param(precision, logits, name, marks=ON_GPU)
    for precision in REDUCED
    for logits in ("float32", "same")
    for name in ("clip", "siglip")
]


@pytest.mark.parametrize(("precision", "logits", "name"), FORMATS)
def test_a_gpu_computes_by_autocast_what_a_cpu_rounds_and_replays_what_it_captured(precision, logits, name):
    text = text_of(precision, logits, name=name, more="initial_loss_scale = 256.0").replace("steps = 4", "steps = 20")
    study = study_of(text)
    group = Group("g", runs_of(study))
    on_cpu = Trainer(study, group, pairs_of(text), CPU).step()
    eager, captured = (
        Trainer(study, group, pairs_of(text), torch.device("cuda"), capture=capture) for capture in (False, True)
    )
    for step in range(20):
        ours, theirs = eager.step(), captured.step()
        for key in ours:
            torch.testing.assert_close(theirs[key], ours[key], rtol=0, atol=0, equal_nan=True)
        for key in ("loss", "gradient_norm") if step == 0 else ():
            torch.testing.assert_close(on_cpu[key], ours[key].cpu(), rtol=40 * UNIT[precision], atol=1e-4)
    assert captured.captured
