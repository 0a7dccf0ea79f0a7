"""Filter-normalized sharpness: exact on a parabola, blind to the scales of the loss and of filters."""

from __future__ import annotations

import math
import re

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F
from torch.testing import assert_close

from stability.analysis import load_results
from stability.execute import run
from stability.landscape import directions
from stability.probes import HeldOut, Replica, probe
from stability.probes.flatness import filter_normalized
from stability.streams import stream
from stability.study import parse_study

WHOLE = re.compile(
    r"\[probes\.(matched_gradient_noise|geometry|separability|cross_check|curvature|gradient_noise)\]\n(\w.*\n)*"
)


SEEN = torch.randn(12, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def first_rows(params, x):
    """Return embeddings (B, 4) that lie near the samples, moved a little by whatever filters there are."""
    weights = next(value for name, value in params.items() if name.startswith("image."))
    return F.normalize(x + torch.relu(x @ weights.flatten(1)[:, :4].T) @ weights.flatten(1)[:, :4], dim=-1)


def replica_of(params, objective, chance=2.0, frozen=frozenset()):
    width = len(next(iter(params.values())))
    x = torch.randn(width, 3, 5, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return Replica(
        params=params,
        objective=objective,
        embed_image=lambda params, x: first_rows(params, x),
        embed_text=lambda params, x: F.normalize(x, dim=-1),
        embed_extra_modalities=None,
        held_out=HeldOut(SEEN, SEEN, torch.arange(len(SEEN)), torch.empty(0), torch.empty(0)),
        batches={"x": x},
        preconditioner={},
        learning_rate=torch.full((width,), 0.1),
        constant_rate=True,
        chance=chance,
        frozen=frozen,
    )


def flatness(replica, **options):
    return probe["flatness"](replica, batches=3, **({"draws": 3} | options))


def network(replicas=2):
    generator = torch.Generator().manual_seed(0)
    shapes = {"image.first": (6, 4), "image.second": (2, 6), "loss.log_scale": ()}
    return {
        name: torch.randn(replicas, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def network_loss(params, batch):
    hidden = torch.relu(batch["x"] @ params["image.first"].T)
    return (params["loss.log_scale"].exp() * hidden @ params["image.second"].T).square().mean()


def test_on_a_parabola_every_direction_rises_by_the_square_of_the_radius():
    weights = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    curvature = torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64)[:, None]

    def parabola(params, batch):
        return 0.5 * (curvature * params["image.w"].square()).sum() + 0 * batch["x"].sum()

    found = flatness(replica_of({"image.w": weights}, parabola, chance=4.0), radius=0.3)
    # |d_f| = |w_f|, so r^2/2 sum_f a_f |d_f|^2 = r^2 L, whatever the direction.
    levels = 0.5 * (curvature * weights.square()).sum((1, 2))
    assert_close(found["filter_sharpness"], 0.3**2 * levels / 4.0, rtol=1e-12, atol=0)
    assert found["filter_sharpness_stderr"].max() < 1e-12


def test_the_slope_at_a_point_that_is_no_minimum_cancels():
    def plane(params, batch):
        return params["image.w"].sum() + 0 * batch["x"].sum()

    found = flatness(replica_of({"image.w": torch.ones(2, 3, 4, dtype=torch.float64)}, plane))
    assert_close(found["filter_sharpness"], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_it_is_the_mean_over_directions_drawn_one_by_one_by_a_slow_twin():
    params = network()
    replica = replica_of(params, network_loss, chance=3.0)
    draws, radius = 4, 0.2
    found = flatness(replica, draws=draws, radius=radius)
    for place in range(2):
        own = {name: value[place] for name, value in params.items()}
        batches = replica.batches["x"][place]

        def mean_loss(point, batches=batches):
            return torch.stack([network_loss(point, {"x": x}) for x in batches]).mean()

        rises = []
        for draw in range(draws):
            sides = []
            for sign in (1.0, -1.0):
                point = dict(own)
                for name in ("image.first", "image.second"):
                    noise = torch.randn(own[name].shape, generator=stream(draw, f"flatness/{name}")).double()
                    rows = [d * w.norm() / d.norm() for d, w in zip(noise, own[name], strict=True)]
                    point[name] = own[name] + sign * radius * torch.stack(rows)
                sides.append(mean_loss(point))
            rises.append((sides[0] + sides[1]) / 2 - mean_loss(own))
        rises = torch.stack(rises) / 3.0
        assert_close(found["filter_sharpness"][place], rises.mean(), rtol=1e-10, atol=0)
        assert_close(found["filter_sharpness_stderr"][place], rises.std() / draws**0.5, rtol=1e-8, atol=0)


def test_the_sharpness_of_recall_is_the_mean_rise_of_the_error_along_the_same_directions():
    params = {name: value for name, value in network().items() if name != "loss.log_scale"}
    found = flatness(replica_of(params, lambda p, b: p["image.first"].square().sum()), draws=4, radius=0.8)

    def error(point):
        similarity = first_rows(point, SEEN) @ F.normalize(SEEN, dim=-1).T
        hits = [similarity.argmax(dim).eq(torch.arange(len(SEEN))).double().mean() for dim in (0, 1)]
        return 1 - (hits[0] + hits[1]) / 2

    for place in range(2):
        own = {name: value[place] for name, value in params.items()}
        rises = []
        for draw in range(4):
            noise = {n: torch.randn(v.shape, generator=stream(draw, f"flatness/{n}")).double() for n, v in own.items()}
            perturbed = {n: 0.8 * filter_normalized(v, noise[n]) for n, v in own.items()}
            sides = [error({n: v + sign * perturbed[n] for n, v in own.items()}) for sign in (1, -1)]
            rises.append((sides[0] + sides[1]) / 2 - error(own))
        assert_close(found["filter_sharpness_recall"][place], torch.stack(rises).mean(), rtol=1e-10, atol=1e-12)
    assert (found["filter_sharpness_recall"] != 0).all()


def sigmoid_loss(params, batch):
    logits = params["loss.log_scale"].exp() * first_rows(params, batch["x"]) @ F.normalize(batch["x"], dim=-1).T
    return F.softplus(-(2 * torch.eye(5) - 1) * (logits + params["loss.bias"])).sum() / 5


def with_scalars(log_scale, bias):
    params = {"image.first": network()["image.first"]}
    return params | {
        name: torch.full((2,), value, dtype=torch.float64)
        for name, value in (("loss.log_scale", log_scale), ("loss.bias", bias))
    }


def test_at_matched_t_it_does_not_matter_what_t_and_b_a_run_has_come_to():
    one, other = (flatness(replica_of(with_scalars(*at), sigmoid_loss)) for at in ((0.5, -3.0), (2.0, 1.0)))
    assert_close(one["filter_sharpness_same_scale"], other["filter_sharpness_same_scale"], rtol=1e-6, atol=1e-9)
    assert not torch.isclose(one["filter_sharpness"], other["filter_sharpness"], rtol=1e-2).any()


def test_at_matched_t_the_bias_is_the_best_one_unless_it_is_held():
    """The b of a run whose t is the matched one, and whose b is the best, is what it is measured at."""
    params = with_scalars(math.log(4.0), 0.0)
    best = []
    for place in range(2):
        own, batches = {n: v[place] for n, v in params.items()}, replica_of(params, sigmoid_loss).batches["x"][place]

        def mean(bias, own=own, batches=batches):
            return sum(float(sigmoid_loss(own | {"loss.bias": torch.tensor(bias)}, {"x": x})) for x in batches)

        best.append(minimize_scalar(mean, bounds=(-20, 20), method="bounded", options={"xatol": 1e-10}).x)
    at_best = params | {"loss.bias": torch.tensor(best, dtype=torch.float64)}
    found = flatness(replica_of(at_best, sigmoid_loss), scale=4.0)
    assert_close(found["filter_sharpness_same_scale"], found["filter_sharpness"], rtol=1e-5, atol=1e-8)
    held = flatness(replica_of(params, sigmoid_loss, frozen=frozenset({"loss.bias"})), scale=4.0)
    assert_close(held["filter_sharpness_same_scale"], held["filter_sharpness"], rtol=1e-12, atol=0)
    free = flatness(replica_of(params, sigmoid_loss), scale=4.0)
    assert not torch.isclose(free["filter_sharpness_same_scale"], held["filter_sharpness_same_scale"], rtol=1e-2).any()


def test_a_loss_without_t_has_no_sharpness_at_matched_t():
    params = {"image.first": network()["image.first"]}
    found = flatness(replica_of(params, lambda p, b: p["image.first"].square().sum()))
    assert found["filter_sharpness_same_scale"].isnan().all()
    assert found["filter_sharpness"].isfinite().all()


def test_neither_the_scale_of_the_loss_nor_that_of_filters_counts():
    params = network()
    plain = flatness(replica_of(params, network_loss))["filter_sharpness"]
    louder = flatness(replica_of(params, lambda p, b: 64 * network_loss(p, b), chance=128.0))["filter_sharpness"]
    assert_close(louder, plain, rtol=1e-12, atol=0)
    scaled = params | {"image.first": 10 * params["image.first"], "image.second": params["image.second"] / 10}
    assert_close(flatness(replica_of(scaled, network_loss))["filter_sharpness"], plain, rtol=1e-10, atol=0)


def test_scalars_and_parameters_that_are_not_trained_stay():
    params = network()
    frozen = frozenset({"image.first", "image.second"})
    found = flatness(replica_of(params, network_loss, frozen=frozen))["filter_sharpness"]
    assert_close(found, torch.zeros(2, dtype=torch.float64), rtol=0, atol=0)


def test_a_direction_has_the_norms_of_those_that_landscapes_are_drawn_along():
    value = {"image.w": torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(3))}
    ours = filter_normalized(value["image.w"], torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(4)))
    (theirs,) = directions(value, count=1)
    norms = [part.flatten(1).norm(dim=1) for part in (ours, theirs["image.w"])]
    assert_close(norms[0], norms[1])
    vector = filter_normalized(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    assert_close(vector, torch.tensor([5.0, 0.0]))


@pytest.mark.parametrize("option", ["draws = 1", "batches = 0"])
def test_too_few_draws_or_batches_are_refused(tiny_text, option):
    from stability.registry import InputError

    with pytest.raises(InputError, match=r"probes\.flatness"):
        parse_study(tiny_text.replace("[probes.geometry]", f"[probes.flatness]\n{option}"), "t", "t")


def test_a_run_reads_it_and_a_single_run_equals_one_in_company(tiny_text, tmp_path):
    text = WHOLE.sub("", tiny_text).replace("gradient_noise_fraction", "filter_sharpness").replace("[8, 16]", "[8]")
    text = text.replace("[probes.retrieval]", "[probes.flatness]\nbatches = 2\ndraws = 2\n\n[probes.retrieval]")
    results = load_results(run(parse_study(text, "t", "t", "smoke"), "cpu", out=tmp_path / "run"))
    values = results.steps["filter_sharpness"].dropna()
    assert len(values) == len(results.runs)  # at the end, every run
    assert (values.abs() < 1).all()
    assert (values != 0).all()
