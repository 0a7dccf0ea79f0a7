"""Filter-normalised sharpness: exact on a parabola, blind to the scales of the loss and of filters."""

from __future__ import annotations

import re

import pytest
import torch
from torch.testing import assert_close

from stability.analysis import read
from stability.execute import run
from stability.landscape import directions
from stability.probes import Replica, probe
from stability.probes.perturbations import filter_normalised
from stability.study import parse_study

WHOLE = re.compile(r"\[probes\.(matched-noise|geometry|separability|cross-check|curvature|gradient-noise)\]\n(\w.*\n)*")


def replica_of(params, objective, chance=2.0, fixed=frozenset()):
    width = len(next(iter(params.values())))
    x = torch.randn(width, 3, 5, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return Replica(
        params=params,
        objective=objective,
        embed_image=None,
        embed_text=None,
        embed_further=None,
        held_out=None,
        batches={"x": x},
        preconditioner={},
        learning_rate=torch.full((width,), 0.1),
        betas=(0.9, 0.999),
        constant_rate=True,
        chance=chance,
        fixed=fixed,
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
    from stability.streams import stream

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


def test_neither_the_scale_of_the_loss_nor_that_of_filters_counts():
    params = network()
    plain = flatness(replica_of(params, network_loss))["filter_sharpness"]
    louder = flatness(replica_of(params, lambda p, b: 64 * network_loss(p, b), chance=128.0))["filter_sharpness"]
    assert_close(louder, plain, rtol=1e-12, atol=0)
    scaled = params | {"image.first": 10 * params["image.first"], "image.second": params["image.second"] / 10}
    assert_close(flatness(replica_of(scaled, network_loss))["filter_sharpness"], plain, rtol=1e-10, atol=0)


def test_scalars_and_parameters_that_are_not_trained_stay():
    params = network()
    fixed = frozenset({"image.first", "image.second"})
    found = flatness(replica_of(params, network_loss, fixed=fixed))["filter_sharpness"]
    assert_close(found, torch.zeros(2, dtype=torch.float64), rtol=0, atol=0)


def test_a_direction_has_the_norms_of_those_that_landscapes_are_drawn_along():
    value = {"image.w": torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(3))}
    ours = filter_normalised(value["image.w"], torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(4)))
    (theirs,) = directions(value, count=1)
    norms = [part.flatten(1).norm(dim=1) for part in (ours, theirs["image.w"])]
    assert_close(norms[0], norms[1])
    vector = filter_normalised(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    assert_close(vector, torch.tensor([5.0, 0.0]))


@pytest.mark.parametrize("option", ["draws = 1", "batches = 0"])
def test_too_few_draws_or_batches_are_refused(tiny_text, option):
    from stability.registry import InputError

    with pytest.raises(InputError, match=r"probes\.flatness"):
        parse_study(tiny_text.replace("[probes.geometry]", f"[probes.flatness]\n{option}"), "t", "t")


def test_a_run_reads_it_and_a_single_run_equals_one_in_company(tiny_text, tmp_path):
    text = WHOLE.sub("", tiny_text).replace("gradient_noise_fraction", "filter_sharpness").replace("[8, 16]", "[8]")
    text = text.replace("[probes.retrieval]", "[probes.flatness]\nbatches = 2\ndraws = 2\n\n[probes.retrieval]")
    results = read(run(parse_study(text, "t", "t", "smoke"), "cpu", out=tmp_path / "run"))
    values = results.steps["filter_sharpness"].dropna()
    assert len(values) == len(results.runs)  # at the end, every run
    assert (values.abs() < 1).all()
    assert (values != 0).all()
