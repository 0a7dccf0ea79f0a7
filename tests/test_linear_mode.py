"""Linear-mode instability: closed forms on the line, a slow twin that trains the children, runs that do not notice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from stability.analysis import load_results
from stability.execute import run
from stability.grid import Group, runs_of
from stability.landscape import connectivity
from stability.losses import clip, loss
from stability.probes import HeldOut, Replica, probe
from stability.registry import InputError
from stability.report.tables import cell_table
from stability.results import summarize
from stability.study import Schedule, Study, load_study, optimizer_of, parse_study
from stability.train import Trainer
from stability.train.batches import BatchStream, batch_indices
from stability.train.data import independent_indices
from stability.train.forks import child_steps, fork_stream
from stability.train.model import build_towers
from stability.train.optimizer import lr_schedule_factor

CPU = torch.device("cpu")
MEASURES = ("linear_mode_barrier", "linear_mode_error_barrier", "linear_mode_children_error")


# --- closed forms on the line ----------------------------------------------------------------------------------------


def between(one, other, objective, image, text, x, chance=2.0, **options):
    """Return what the probe measures between two ends, embeddings of *x* being given by *image* and *text*."""
    none = torch.empty(0)
    replica = Replica(
        params={},
        objective=objective,
        embed_image=image,
        embed_text=text,
        embed_extra_modalities=None,
        held_out=HeldOut(x, x, torch.arange(len(x)), none, none),
        batches={"x": torch.stack([x, x])},
        preconditioner={},
        learning_rate=torch.tensor(0.1),
        constant_rate=True,
        chance=chance,
        children=(one, other),
    )
    return {name: float(value) for name, value in probe["linear_mode"](replica, **options).items()}


X = torch.tensor([-0.5, 1.0, -1.5, 2.0], dtype=torch.float64)


def hidden_pair(params, x):
    """Two hidden units: f(x) = relu(w_1 x) + relu(w_2 x), which is |x| for w = (1, -1) and for w = (-1, 1)."""
    return torch.relu(params["w"] * x[:, None]).sum(1)


def units(height):
    return F.normalize(torch.stack([height, torch.ones_like(height)], 1), dim=1)


def test_two_networks_that_differ_by_a_permutation_have_the_barrier_that_algebra_gives():
    """On the way f = |1 - 2a| |x|: squared error (1 - |1 - 2a|)^2 mean x^2, and in the middle all images are alike."""
    ends = ({"w": torch.tensor(w, dtype=torch.float64)} for w in ((1.0, -1.0), (-1.0, 1.0)))
    found = between(
        *ends,
        lambda params, batch: (hidden_pair(params, batch["x"]) - batch["x"].abs()).square().mean(),
        lambda params, x: units(hidden_pair(params, x)),
        lambda params, x: units(x.abs()),
        X,
        points=3,
    )
    assert found["linear_mode_barrier"] == pytest.approx(float(X.square().mean()) / 2, rel=1e-12)
    assert found["linear_mode_error_barrier"] == pytest.approx(1 - 1 / len(X), rel=1e-12)
    assert found["linear_mode_children_error"] == 0.0


def test_where_the_loss_is_convex_there_is_no_barrier_whatever_the_ends():
    def mean_square(params, batch):
        return (params["w"] * batch["x"] - 1).square().mean()

    ends = ({"w": torch.tensor(w, dtype=torch.float64)} for w in (-0.5, 3.0))
    found = between(*ends, mean_square, lambda params, x: units(x), lambda params, x: units(x), X)
    assert found["linear_mode_barrier"] == 0.0
    assert found["linear_mode_error_barrier"] == 0.0


def test_it_is_the_barrier_and_the_instability_that_connectivity_finds():
    generator = torch.Generator().manual_seed(1)
    one, other = ({"w": torch.randn(5, generator=generator, dtype=torch.float64)} for _ in range(2))

    def image(params, x):
        return units(torch.sin(3 * params["w"] * x[:, None]).sum(1))

    def objective(params, batch):
        return (image(params, batch["x"]) - units(batch["x"])).square().sum()

    def error(params):
        similarity = image(params, X) @ units(X).T
        hits = [(similarity.argmax(dim) == torch.arange(len(X))).double().mean() for dim in (0, 1)]
        return 1 - sum(hits) / 2

    found = between(one, other, objective, image, lambda params, x: units(x), X, chance=1.7, points=9)
    way = connectivity(lambda params: objective(params, {"x": X}), one, other, 9)
    assert found["linear_mode_barrier"] == pytest.approx(way.barrier / 1.7, rel=1e-10)
    assert way.barrier > 0.1
    assert found["linear_mode_error_barrier"] == pytest.approx(connectivity(error, one, other, 9).instability)


def test_a_child_that_is_not_finite_has_no_barrier():
    ends = ({"w": torch.tensor(w, dtype=torch.float64)} for w in (1.0, math.nan))
    found = between(
        *ends,
        lambda params, batch: (params["w"] * batch["x"]).square().mean(),
        lambda params, x: units(params["w"] * x),
        lambda params, x: units(x),
        X,
    )
    assert all(math.isnan(found[name]) for name in MEASURES)


# --- the children ----------------------------------------------------------------------------------------------------


def forking(tiny: Study, fork: int | list[int], **given) -> Study:
    """Return the tiny study with this probe alone."""
    return tiny.model_copy(update={"probes": {"linear_mode": Schedule.model_validate({"fork": fork, **given})}})


def trainer_at(study: Study, step: int, runs) -> Trainer:
    trainer = Trainer(study, Group("g", tuple(runs)), study.pairs(), CPU)
    for _ in range(step):
        trainer.step()
    return trainer


def of_arm(study: Study, arm: str, batch_size: int = 8):
    return [run for run in runs_of(study) if (run.arm, run.batch_size) == (arm, batch_size)]


class Single:
    """One run as a plain loop: torch's modules and AdamW."""

    def __init__(self, study, pairs, run):
        self.study, self.pairs, self.run = study, pairs, run
        self.image, self.text = build_towers(study, pairs, run.seed).values()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        named = [*self.image.named_parameters(), *self.text.named_parameters()]
        train = study.train
        groups = [
            {"params": [value for _, value in named if value.dim() > 1], "weight_decay": train.weight_decay},
            {"params": [value for _, value in named if value.dim() <= 1], "weight_decay": 0.0},
            {"params": [self.log_scale], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, **optimizer_of(train)[1])

    def embeddings(self, index):
        images, texts = self.image(self.pairs.image[index]), self.text(self.pairs.text[index])
        return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)

    def loss(self, index):
        return clip(*self.embeddings(self.pairs.train[index]), log_scale=self.log_scale)

    def train(self, steps, draws):
        for step in steps:
            rate = self.run.lr * lr_schedule_factor(self.study.train, step)
            for group, factor in zip(
                self.optimizer.param_groups, (1, 1, self.study.train.scalar_lr_multiplier), strict=True
            ):
                group["lr"] = rate * factor
            self.optimizer.zero_grad()
            self.loss(next(draws)).backward()
            self.optimizer.step()
        return self

    def parameters(self):
        return [*self.image.parameters(), *self.text.parameters(), self.log_scale]

    @torch.no_grad()
    def between(self, ends, a):
        for own, one, other in zip(self.parameters(), *ends, strict=True):
            own.copy_((1 - a) * one + a * other)
        return self

    @torch.no_grad()
    def error(self):
        image, text = self.embeddings(self.pairs.held_out)
        similarity, caption = image @ text.T, self.pairs.caption[self.pairs.held_out]
        hits = [(caption[way.argmax(1)] == caption).double().mean() for way in (similarity, similarity.T)]
        return 1 - float(sum(hits)) / 2


@pytest.mark.parametrize("fork", [0, 3])
def test_the_children_are_those_of_a_plain_loop_and_so_is_what_lies_between_them(tiny, fork):
    study = forking(tiny, fork, points=5, batches=2)
    runs = [run for run in of_arm(study, "clip") if run.noise == 0.0][:2]
    pairs = study.pairs()
    trainer = trainer_at(study, fork, runs)
    ends, found = trainer.children([0, 1]), trainer.read("linear_mode").values
    for place, chosen in enumerate(runs):
        children = []
        for child in range(2):
            single = Single(study, pairs, chosen)
            single.train(range(fork), batch_indices(chosen.seed, len(pairs.train), 8))
            single.train(range(fork, 8), batch_indices(chosen.seed, len(pairs.train), 8, fork_stream(fork, child)))
            children.append([value.detach().clone() for value in single.parameters()])
            named = trainer.population.spec.layout.unflatten(ends[child][place])
            for (name, ours), theirs in zip(named.items(), children[-1], strict=True):
                # No loss hangs on the bias of the keys: Adam makes steps of what rounding leaves of its gradient.
                if not name.endswith("query_key_value.bias"):
                    assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)
        index = independent_indices(chosen.seed, "probe/linear_mode", 2, len(pairs.train), 8)
        losses, errors = [], []
        for a in (0.0, 0.25, 0.5, 0.75, 1.0):
            single.between(children, a)
            losses.append(float(sum(single.loss(each).detach() for each in index)) / 2)
            errors.append(single.error())
        rises = [value - (1 - a / 4) * losses[0] - a / 4 * losses[-1] for a, value in enumerate(losses)]
        assert found["linear_mode_barrier"][place].item() == pytest.approx(max(rises) / math.log(8), abs=1e-5)
        # One held-out pair more or less is what rounding may move.
        one = 1.01 / len(pairs.held_out)
        instability = max(errors) - (errors[0] + errors[-1]) / 2
        assert found["linear_mode_error_barrier"][place].item() == pytest.approx(instability, abs=one)
        assert found["linear_mode_children_error"][place].item() == pytest.approx((errors[0] + errors[-1]) / 2, abs=one)


def test_a_fork_after_the_last_step_has_exactly_no_barrier(tiny):
    study = forking(tiny, 8)
    values = trainer_at(study, 8, of_arm(study, "siglip-log-b")[:3]).read("linear_mode").values
    assert values["linear_mode_barrier"].tolist() == [0.0] * 3
    assert values["linear_mode_error_barrier"].tolist() == [0.0] * 3


def test_children_part_from_each_other_at_the_fork_and_not_before(tiny):
    trainer = trainer_at(forking(tiny, 7), 7, of_arm(tiny, "clip")[:2])
    here, (one, other) = trainer.population.theta.detach().clone(), trainer.children([0, 1])
    trainer.step()
    # After one step Adam has moved no parameter by more than a few rates.
    rate = trainer.population.runs[0].lr * trainer.study.train.scalar_lr_multiplier
    assert ((one - here).abs() < 10 * rate).all()
    for left, right in ((one, other), (one, trainer.population.theta), (other, trainer.population.theta)):
        assert not torch.equal(left, right)


@pytest.mark.parametrize("corruption", ["fixed", "fresh"])
@pytest.mark.parametrize("name", ["clip", "siglip_masked", "global_contrastive"])
def test_a_run_does_not_notice_its_children_whatever_its_loss_keeps_or_draws(tiny_text, name, corruption):
    text = tiny_text.split("[[claims]]")[0].replace('["clip", "siglip-log-b"]', f'["{name}"]')
    text = text.replace('[arms.siglip-log-b]\nloss = "siglip"\nbias = "-log B"\n', "")
    text = text.replace('name = "digits"', f'name = "digits"\ncorruption = "{corruption}"')
    study = parse_study(text.replace("betas", "clip_quantile = 0.5\nbetas"), "t", "t")
    alone, forked = (trainer_at(study, 2, of_arm(study, name)[-3:]) for _ in range(2))
    children = forked.children([0, 2])
    assert torch.isfinite(children[0][[0, 2]]).all()
    assert children[0][1].isnan().all()
    for _ in range(4):
        first, second = alone.step(), forked.step()
        assert all(torch.equal(values.nan_to_num(), second[key].nan_to_num()) for key, values in first.items())
    assert torch.equal(alone.population.theta, forked.population.theta)


def test_what_lies_between_children_depends_neither_on_company_nor_on_who_else_is_read(tiny):
    study = forking(tiny, 2, points=3)
    runs = of_arm(study, "siglip-log-b")
    many = trainer_at(study, 2, runs).read("linear_mode")
    few = trainer_at(study, 2, (runs[1], runs[4])).read("linear_mode")
    picky = forking(tiny, 2, points=3, seeds=1, noise=(0.4,))
    one = trainer_at(picky, 2, runs).read("linear_mode")
    assert (len(many.replicas), len(one.replicas)) == (6, 1)
    for name in MEASURES:
        assert torch.equal(many.values[name][[1, 4]], few.values[name])
        assert torch.equal(many.values[name][one.replicas], one.values[name])


def test_all_losses_read_the_children_s_data_in_the_same_order(tiny):
    orders = []
    for arm in ("clip", "siglip-log-b"):
        trainer = trainer_at(tiny, 2, of_arm(tiny, arm)[:2])
        feed, seeds = trainer.population.data, [run.rng_seed for run in trainer.population.runs]
        batches = BatchStream(seeds, feed.available, feed.batch_size, trainer.device, fork_stream(2, 0))
        batches.advance()
        orders.append(batches.index()[0])
    assert torch.equal(*orders)
    assert not torch.equal(orders[0], next(batch_indices(0, len(tiny.pairs().train), 8, fork_stream(2, 1))))


@pytest.mark.parametrize("finite", [True, False])
def test_a_child_that_dies_leaves_no_number_although_its_parameters_stay_as_they_were(tiny, finite):
    study = forking(tiny, 2)
    trainer = trainer_at(study, 2, of_arm(study, "clip")[:3])
    if finite:
        trainer.population.alive[1] = False
    else:
        with torch.no_grad():
            trainer.population.theta[1, 0] = torch.nan
    values = trainer.read("linear_mode").values
    for name in MEASURES:
        assert values[name].isnan().tolist() == [False, True, False]


# --- in a study ------------------------------------------------------------------------------------------------------


def text_of(tiny_text: str, probe_table: str, claim: str = 'reduction = "mean_after_warmup"') -> str:
    head = tiny_text.split("[probes.retrieval]")[0].replace("[8, 16]", "[8]")
    claim = tiny_text[tiny_text.index("[[claims]]") : tiny_text.index('[[claims]]\nid = "slope"')].replace(
        'measure = "gradient_noise_fraction"', f'measure = "linear_mode_barrier"\n{claim}'
    )
    return f"{head}[probes.linear_mode]\n{probe_table}\n\n{claim}\n[scales.smoke]\ngrid.seeds = 2\n"


def test_a_study_measures_at_its_forks_and_nowhere_else_and_decides_a_claim(tiny_text, tmp_path):
    study = parse_study(text_of(tiny_text, "fork = [0, 4, 8]\npoints = 3\nbatches = 1"), "t", "t", "smoke")
    results = load_results(run(study, "cpu", out=tmp_path / "run"))
    rows = results.steps[["run", "step", *MEASURES]].dropna()
    assert sorted(rows["step"].unique()) == [0, 4, 8]
    assert len(rows) == 3 * len(results.runs)
    by_step = rows.groupby("step")["linear_mode_barrier"].max()
    assert by_step[8] == 0.0
    assert (rows["linear_mode_barrier"] >= 0).all()
    # One cell a loss and batch size, each with the area that the claim reads: no fork need lie late in a run.
    cells = cell_table(results)
    column = next(k for k, head in enumerate(cells["columns"]) if head["label"] == "Barrier between children")
    assert cells["columns"][column]["note"].endswith("mean_after_warmup")
    areas = summarize(results, "linear_mode_barrier", "mean_after_warmup").reindex(results.runs["run"]).to_numpy()
    shown = [float(row[column]["text"].replace("\u00a0", "").split("±")[0]) for row in cells["rows"]]
    assert np.mean(shown) == pytest.approx(areas.mean(), rel=0.05, abs=1e-3)


@pytest.mark.parametrize(
    ("table", "claim", "words"),
    [
        ("fork = 9", "", r"probes\.linear_mode\.fork: got 9; allowed: 0 to 8, the steps of the study"),
        ("fork = [0, 9]", "", r"fork: got 9; allowed: 0 to 8"),
        ("fork = -1", "", r"fork: got -1; allowed: 0 or more"),
        ("fork = [1, -1]", "", r"fork: got \[1, -1\]; allowed: 0 or more"),
        ("fork = []", "", r"fork: got \[\]; allowed: a whole number, as 0, or a list of them"),
        ("fork = [4, 4]", "", r"fork: got \[4, 4\]; allowed: a step, or steps that differ"),
        ("fork = [1, true]", "", r"fork: got \[1, True\]; allowed: a whole number, as 0, or a list of them"),
        ("fork = 0.5", "", r"fork: got 0\.5; allowed: a whole number, as 0, or a list of them"),
        ("points = [3, 5]", "", r"points: got \[3, 5\]; allowed: a whole number, as \d+$"),
        ("points = 2", "", r"points: got 2; allowed: 3 or more"),
        ("every = 4", "", r"linear_mode\.every: 'linear_mode' measures where it forks the runs; give 'fork' instead"),
        ("at = [0.5]", "", r"linear_mode\.at: "),
        (
            "fork = 4",
            'reduction = "tail_mean"',
            r"'tail_mean' is the last 20% of a run, where probes\.linear_mode reads nothing",
        ),
        ("fork = 4", "", r"claims\[0\]\.reduction: 'tail_mean'"),
    ],
)
def test_forks_that_cannot_be_are_one_sentence(tiny_text, table, claim, words):
    with pytest.raises(InputError, match=words):
        parse_study(text_of(tiny_text, table, claim or ""), "t", "t")


def test_the_steps_of_the_children_are_counted_twice_from_every_fork_for_the_runs_that_are_read(tiny):
    runs = of_arm(tiny, "clip")
    assert child_steps(forking(tiny, 0), "linear_mode", runs) == 16
    assert child_steps(forking(tiny, [2, 8, 6]), "linear_mode", runs) == 2 * (6 + 0 + 2)
    assert child_steps(forking(tiny, 2, seeds=1), "linear_mode", runs) == 2 * 6 / 3
    assert child_steps(tiny, "retrieval", runs) == 0


@pytest.mark.parametrize("name", sorted(loss))
def test_every_loss_can_be_forked(tiny_text, name):
    text = text_of(tiny_text, "fork = 5\npoints = 3\nbatches = 1").split("[[claims]]")[0]
    for old, new in (
        ('["clip", "siglip-log-b"]', f'["{name}"]'),
        ('[arms.siglip-log-b]\nloss = "siglip"\nbias = "-log B"\n', ""),
        ('"digits"', '"latent"\npairs = 100'),
        ('"token_transformer", width = 4, heads = 1', '"mlp", width = 8, depth = 1'),
    ):
        text = text.replace(old, new)
    study = parse_study(text, "t", "t")
    values = trainer_at(study, 5, of_arm(study, name)[:2]).read("linear_mode").values
    # A loss whose chance level is 0 has no share of it.
    assert torch.isfinite(values["linear_mode_barrier"]).all() == (name != "global_contrastive")
    assert (values["linear_mode_error_barrier"] >= 0).all()


def test_a_study_without_forks_keeps_its_identity():
    """The hash of a study that does not name the probe does not depend on its being there."""
    assert "linear_mode" not in load_study("quickstart").canonical()["probes"]
