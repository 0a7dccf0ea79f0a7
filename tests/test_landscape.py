"""Slices and directions against closed forms in float64, the plain loop, and the dense Hessian."""

from __future__ import annotations

import base64
import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, hessian
from torch.testing import assert_close

from stability import curvature, landscape
from stability.curvature.products import flatten, unflatten
from stability.landscape.evaluation import points_at_once
from stability.landscape.figures import as_html
from stability.landscape.filters import as_filters
from stability.registry import InputError

generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


SHAPES = {"dense": (4, 3), "kernel": (3, 2, 2, 2), "table": (5, 1), "bias": (4,), "log_scale": (), "b": ()}
PARAMS = {name: normal(*shape) for name, shape in SHAPES.items()}
SIZE = sum(value.numel() for value in PARAMS.values())
ROOT = normal(SIZE, SIZE)
MATRIX, LINEAR = ROOT + ROOT.T, normal(SIZE)


def quadratic(params):
    flat = flatten(params, 0)
    return flat @ MATRIX @ flat / 2 + LINEAR @ flat + 3


def some_direction() -> dict[str, torch.Tensor]:
    return {name: normal(*shape) for name, shape in SHAPES.items()}


def parabola(direction, steps):
    theta, d = flatten(PARAMS, 0), flatten(direction, 0)
    slope, curve = (MATRIX @ theta + LINEAR) @ d, d @ MATRIX @ d
    return quadratic(PARAMS) + slope * steps + curve * steps**2 / 2, slope, curve


def tower(dtype=torch.float64):
    """A network, its parameters, and two batches for a mean squared error."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).to(dtype)
    params = {name: value.detach() for name, value in net.named_parameters()} | {
        "log_scale": torch.tensor(0.3).to(dtype)
    }
    batches = {"x": normal(2, 7, 5).to(dtype), "y": normal(2, 7, 2).to(dtype)}

    def objective(params, batch):
        inner = {name: value for name, value in params.items() if name != "log_scale"}
        return (params["log_scale"].exp() * functional_call(net, inner, batch["x"]) - batch["y"]).square().mean()

    return objective, params, batches


# --- slices ----------------------------------------------------------------------------------------------------------


def test_a_slice_of_a_quadratic_is_the_parabola_and_its_curvature_is_d_H_d():
    direction = some_direction()
    line = landscape.slice1d(quadratic, PARAMS, direction, (-0.7, 1.9), 14)
    expected, slope, curve = parabola(direction, line.coordinates)
    assert_close(line.values, expected, rtol=1e-12, atol=1e-12)
    assert_close(line.model(line.coordinates), expected, rtol=1e-12, atol=1e-12)
    assert_close(line.center, float(quadratic(PARAMS)), rtol=1e-13, atol=0)
    assert_close((line.slope, line.curvature), (float(slope), float(curve)), rtol=1e-12, atol=0)
    assert (line.coordinates[0], line.coordinates[-1], len(line.coordinates)) == (-0.7, 1.9, 14)


def test_a_plane_of_a_quadratic_holds_each_point_where_its_coordinates_say():
    axes = [some_direction(), some_direction()]
    plane = landscape.slice2d(quadratic, PARAMS, axes, ((-1.0, 0.5), (0.25, 2.0)), (4, 3))
    assert plane.values.shape == (4, 3)
    for i, a in enumerate(plane.first):
        for j, b in enumerate(plane.second):
            moved = {name: PARAMS[name] + a * axes[0][name] + b * axes[1][name] for name in PARAMS}
            assert_close(plane.values[i, j], quadratic(moved), rtol=1e-12, atol=1e-12)
    basis = torch.stack([flatten(axis, 0) for axis in axes])
    assert_close(plane.curvature, basis @ MATRIX @ basis.T, rtol=1e-12, atol=1e-12)
    assert_close(plane.slope, basis @ (MATRIX @ flatten(PARAMS, 0) + LINEAR), rtol=1e-12, atol=1e-12)
    table = plane.table()
    assert list(table) == ["first", "second", "value"]
    assert table["value"][5] == plane.values[1, 2]
    assert (table["first"][5], table["second"][5]) == (plane.first[1], plane.second[2])


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100])
def test_chunks_change_nothing(chunk_size):
    objective, params, batches = tower()
    axes = landscape.directions(params)
    whole = landscape.slice2d(objective, params, axes, points=5, batches=batches)
    parts = landscape.slice2d(objective, params, axes, points=5, batches=batches, chunk_size=chunk_size)
    assert_close(parts.values, whole.values, rtol=1e-12, atol=0)


def test_with_batches_a_slice_is_of_the_mean_over_them():
    objective, params, batches = tower()
    (direction,) = landscape.directions(params, count=1, scalars="filter")
    line = landscape.slice1d(objective, params, direction, points=7, batches=batches)
    singles = [
        landscape.slice1d(
            lambda p, k=k: objective(p, {"x": batches["x"][k], "y": batches["y"][k]}), params, direction, points=7
        )
        for k in range(2)
    ]
    assert_close(line.values, (singles[0].values + singles[1].values) / 2, rtol=1e-12, atol=0)
    assert_close(line.curvature, (singles[0].curvature + singles[1].curvature) / 2, rtol=1e-10, atol=1e-12)
    assert_close(line.slope, (singles[0].slope + singles[1].slope) / 2, rtol=1e-10, atol=1e-12)


def test_the_bound_on_memory_counts_parameters_and_activations():
    params = {"w": torch.zeros(1000)}
    light, heavy = (
        points_at_once(objective, params, ())
        for objective in (lambda p: p["w"].sum(), lambda p: (p["w"][:, None] * torch.ones(1000)).exp().sum())
    )
    assert light > 500 * heavy
    assert points_at_once(lambda p: p["w"].sum(), {"w": torch.zeros(2**26)}, ()) == 1


def test_the_caller_s_parameters_and_gradients_are_untouched():
    objective, params, batches = tower(torch.float32)
    params = {name: value.clone().requires_grad_() for name, value in params.items()}
    before = {name: value.detach().clone() for name, value in params.items()}
    axes = landscape.directions(params)
    kept = [{name: value.clone() for name, value in axis.items()} for axis in axes]
    landscape.slice2d(objective, params, axes, points=3, batches=batches)
    landscape.slice1d(objective, params, axes[0], points=3, batches=batches)
    landscape.connectivity(objective, params, axes[0], 3, batches=batches)
    landscape.directions(params, "eigen", objective=objective, batches=batches, steps=5)
    for name, value in params.items():
        assert torch.equal(value, before[name])
        assert value.grad is None
        assert all(torch.equal(axis[name], was[name]) for axis, was in zip(axes, kept, strict=True))


def test_points_that_are_not_numbers_stay_nan_and_are_named():
    params, direction = {"w": torch.tensor(1.0)}, {"w": torch.tensor(1.0)}
    line = landscape.slice1d(lambda p: p["w"].log(), params, direction, (-3.0, 1.0), 5)
    assert line.not_finite == [-3.0, -2.0, -1.0]
    assert line.values.isnan().tolist() == [True, True, False, False, False]  # log(0) is minus infinity
    assert line.values[3] == 0.0
    assert math.isclose(line.curvature, -1.0)
    both = {"w": torch.tensor(1.0), "v": torch.tensor(0.0)}
    axes = landscape.directions(both, "scalars")
    plane = landscape.slice2d(lambda p: p["w"].log() + p["v"], both, axes, ((-2.0, 0.0), (0.0, 1.0)), (2, 2))
    assert plane.not_finite == [(-2.0, 0.0), (-2.0, 1.0)]
    assert plane.values[1].tolist() == [0.0, 1.0]


def test_an_objective_that_ignores_its_parameters_is_flat():
    line = landscape.slice1d(lambda p: torch.tensor(2.0), {"w": torch.ones(2)}, {"w": torch.ones(2)}, points=3)
    assert (line.values.tolist(), line.slope, line.curvature) == ([2.0, 2.0, 2.0], 0.0, 0.0)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.integers(2, 40))
@settings(deadline=None, max_examples=30)
def test_any_span_starts_and_ends_where_it_says(low, width, points):
    line = landscape.slice1d(
        lambda p: p["w"],
        {"w": torch.tensor(0.0, dtype=torch.float64)},
        {"w": torch.tensor(1.0, dtype=torch.float64)},
        (low, low + width),
        points,
    )
    assert len(line.values) == points
    assert_close(line.values, line.coordinates, rtol=0, atol=0)
    assert_close((line.values[0].item(), line.values[-1].item()), (low, low + width), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: landscape.slice1d(quadratic, PARAMS, {"dense": normal(4, 3)}), "has nothing under 'kernel'"),
        (lambda: landscape.slice1d(quadratic, PARAMS, PARAMS | {"bias": normal(3)}), r"has shape \(3,\) under 'bias'"),
        (lambda: landscape.slice1d(quadratic, PARAMS, PARAMS, (1.0, 1.0)), r"span is \(1, 1\); allowed: two finite"),
        (lambda: landscape.slice1d(quadratic, PARAMS, PARAMS, (0.0, math.inf)), "allowed: two finite"),
        (lambda: landscape.slice1d(quadratic, PARAMS, PARAMS, (math.nan, 1.0)), "allowed: two finite"),
        (lambda: landscape.slice1d(quadratic, PARAMS, PARAMS, points=1), "points is 1"),
        (lambda: landscape.slice1d(quadratic, PARAMS, PARAMS, chunk_size=0), "chunk_size is 0"),
        (lambda: landscape.slice1d(lambda p: p["bias"], PARAMS, PARAMS), r"returned shape \(4,\); allowed: a scalar"),
        (lambda: landscape.slice2d(quadratic, PARAMS, [PARAMS]), "directions: got 1; allowed: 2"),
        (lambda: landscape.slice2d(quadratic, PARAMS, [PARAMS] * 2, points=(2, 2, 2)), "one for both axes, or 2"),
        (lambda: landscape.directions(PARAMS, "filtre"), "unknown direction 'filtre'; did you mean 'filter'"),
        (lambda: landscape.directions(PARAMS, sed=1), "no such option; did you mean 'seed'"),
        (lambda: landscape.directions(PARAMS, count=0), "count is 0"),
        (lambda: landscape.directions(PARAMS, scalars="free"), "scalars: unknown treatment 'free'"),
        (lambda: landscape.directions(PARAMS, "eigen"), "kind 'eigen' needs objective"),
        (lambda: landscape.directions(PARAMS, "pca", trajectory=[PARAMS, PARAMS]), "count is 2; allowed: 1 to 1"),
        (lambda: landscape.directions(PARAMS, "interpolation", end=PARAMS), "count is 2; allowed: 1"),
        (lambda: landscape.directions(PARAMS, "scalars", 3), r"count is 3; allowed: 1 to 2, .*log_scale, b"),
        (lambda: landscape.connectivity(quadratic, PARAMS, {"dense": normal(4, 3)}), "end: has nothing under 'kernel'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_plain_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence) as raised:
        call()
    assert "\n" not in str(raised.value)


# --- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_filter_of_a_direction_has_the_norm_of_the_parameters_own(count):
    for direction in landscape.directions(PARAMS, count=count, scalars="fixed", seed=3):
        for name in ("dense", "kernel", "table", "bias"):
            ours, theirs = (as_filters(value[name], count).norm(dim=1) for value in (direction, PARAMS))
            assert_close(ours, theirs, rtol=1e-13, atol=0)
        assert direction["log_scale"] == direction["b"] == 0


def test_filters_are_rows_kernels_or_whole_vectors():
    assert [len(as_filters(PARAMS[name], 1)) for name in SHAPES] == [4, 3, 5, 1, 1, 1]
    assert [len(as_filters(PARAMS[name], 2)) for name in SHAPES] == [4, 3, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["filter", "eigen", "pca", "scalars"])
def test_directions_of_every_kind_are_orthogonal(kind):
    options = {
        "filter": {"scalars": "filter"},
        "eigen": {"objective": quadratic, "steps": 80},
        "pca": {"trajectory": [some_direction() for _ in range(5)]},
        "scalars": {},
    }[kind]
    first, second = landscape.directions(PARAMS, kind, 2, **options)
    flat = [flatten(direction, 0) for direction in (first, second)]
    assert abs(flat[0] @ flat[1]) <= 1e-13 * flat[0].norm() * flat[1].norm()
    assert all(vector.norm() > 0 for vector in flat)
    if kind == "filter":
        for name in ("dense", "kernel", "bias"):
            inner = (as_filters(first[name], 2) * as_filters(second[name], 2)).sum(1)
            assert_close(inner, torch.zeros_like(inner), rtol=0, atol=1e-13)


def test_only_the_later_filter_directions_are_adjusted_and_scalars_move_along_the_first_alone():
    (alone,) = landscape.directions(PARAMS, count=1, seed=5, scalars="filter")
    first, second = landscape.directions(PARAMS, count=2, seed=5, scalars="filter")
    assert_close(first["dense"], alone["dense"])
    assert_close(first["log_scale"].abs(), PARAMS["log_scale"].abs())
    assert second["log_scale"] == 0


def test_fixed_vectors_blocks_and_zero_filters_do_not_move():
    params = PARAMS | {"bias": torch.zeros(4, dtype=torch.float64)}
    assert (landscape.directions(params)[0]["bias"] == 0).all()
    (fixed,) = landscape.directions(PARAMS, count=1, vectors="fixed")
    assert (fixed["bias"] == 0).all()
    assert (fixed["dense"] != 0).all()
    (blocked,) = landscape.directions(PARAMS, count=1, block={"kernel"})
    assert {name for name, value in blocked.items() if (value != 0).any()} == {"kernel"}


def test_a_seed_means_the_same_whatever_other_parameters_there_are():
    (ours,) = landscape.directions(PARAMS, count=1, seed=7)
    (theirs,) = landscape.directions({"kernel": PARAMS["kernel"]}, count=1, seed=7)
    (others,) = landscape.directions(PARAMS, count=1, seed=8)
    assert torch.equal(ours["kernel"], theirs["kernel"])
    assert not torch.equal(ours["kernel"], others["kernel"])


@pytest.mark.parametrize("end", ["high", "low"])
def test_eigenvectors_are_those_of_the_dense_hessian(end):
    objective, params, batches = tower()
    shapes = {name: value.shape for name, value in params.items()}

    def mean(flat):
        both = [objective(unflatten(flat, shapes), {key: value[k] for key, value in batches.items()}) for k in range(2)]
        return (both[0] + both[1]) / 2

    dense = hessian(mean)(flatten(params, 0))
    values, vectors = torch.linalg.eigh(dense)
    order = [-1, -2] if end == "high" else [0, 1]
    found = curvature.eigenvectors(objective, params, 2, end=end, batches=batches, steps=60)
    assert found.converged.all()
    assert_close(found.values, values[order], rtol=1e-9, atol=1e-9)
    for place, column in enumerate(order):
        flat = flatten({name: found.vectors[name][place] for name in params}, 0)
        assert_close((flat @ vectors[:, column]).abs(), torch.tensor(1.0).double(), rtol=1e-8, atol=0)
        assert flat[flat.abs().argmax()] > 0
    axes = landscape.directions(params, "eigen", objective=objective, batches=batches, steps=60, end=end)
    plane = landscape.slice2d(objective, params, axes, points=2, batches=batches)
    assert_close(plane.curvature, torch.diag(values[order]), rtol=1e-8, atol=1e-8)


def test_eigenvectors_of_a_block_leave_the_rest_fixed_and_an_unknown_end_is_named():
    (direction,) = landscape.directions(PARAMS, "eigen", 1, objective=quadratic, block={"dense"})
    top = torch.linalg.eigvalsh(MATRIX[:12, :12])[-1]
    assert_close(landscape.slice1d(quadratic, PARAMS, direction, points=2).curvature, float(top))
    assert {name for name, value in direction.items() if (value != 0).any()} == {"dense"}
    with pytest.raises(InputError, match="unknown end 'hihg'; did you mean 'high'"):
        curvature.eigenvectors(quadratic, PARAMS, end="hihg")


def test_a_trajectory_in_a_plane_is_found_by_its_principal_directions():
    u, v = (landscape.directions(PARAMS, "scalars")[k] for k in (0, 1))
    places = torch.tensor([[4.0, 0.5], [2.0, -0.5], [1.0, 0.25], [0.0, 0.0]], dtype=torch.float64)
    path = [{name: PARAMS[name] + a * u[name] + b * v[name] for name in PARAMS} for a, b in places]
    axes = landscape.directions(PARAMS, "pca", trajectory=path)
    assert_close(landscape.explained_shares(path, axes).sum(), torch.tensor(1.0).double())
    assert landscape.explained_shares(path, axes)[0] > 0.9
    found = landscape.coordinates(PARAMS, axes, path)
    assert_close(torch.cdist(found, found), torch.cdist(places, places))
    assert found[0, 0] > 0


def test_coordinates_are_multiples_of_each_axis():
    axes = landscape.directions(PARAMS, seed=2)
    point = {name: PARAMS[name] + 0.3 * axes[0][name] - 1.5 * axes[1][name] for name in PARAMS}
    assert_close(landscape.coordinates(PARAMS, axes, [point]), torch.tensor([[0.3, -1.5]]).double())


def test_the_plane_of_the_scalars_moves_them_alone():
    objective, params, batches = tower()
    (direction,) = landscape.directions(params, "scalars", 1)
    line = landscape.slice1d(objective, params, direction, (-1.0, 2.0), 4, batches=batches)
    for step, value in zip(line.coordinates, line.values, strict=True):
        moved = params | {"log_scale": params["log_scale"] + step}
        both = [objective(moved, {key: part[k] for key, part in batches.items()}) for k in range(2)]
        assert_close(value, (both[0] + both[1]) / 2, rtol=1e-12, atol=0)
    first, second = landscape.directions(PARAMS, "scalars", block=["b", "log_scale"])
    assert (first["log_scale"], first["b"], second["b"]) == (1, 0, 1)


# --- connectivity ----------------------------------------------------------------------------------------------------


def test_the_barrier_is_measured_from_the_straight_line_and_the_instability_from_the_mean_of_the_ends():
    """L(a) = a + 4 h a (1 - a): h above the chord in the middle; its top, at a = 1/2 + 1/(8 h), is above 1/2 + h."""
    h = 0.5

    def hill(params):
        a = params["w"]
        return a + 4 * h * a * (1 - a)

    zero, one = ({"w": torch.tensor(float(end), dtype=torch.float64)} for end in (0, 1))
    found = landscape.connectivity(hill, zero, one, 101)
    assert math.isclose(found.barrier, h, rel_tol=1e-12)
    a = 0.5 + 1 / (8 * h)
    assert math.isclose(found.instability, a + 4 * h * a * (1 - a) - 0.5, rel_tol=1e-12)
    assert not found.stable
    assert list(found.table()) == ["first", "value", "chord"]


@pytest.mark.parametrize(("height", "stable"), [(0.019, True), (0.021, False)])
def test_an_instability_under_two_percent_is_stable(height, stable):
    zero, one = ({"w": torch.tensor(float(end), dtype=torch.float64)} for end in (0, 1))
    found = landscape.connectivity(lambda p: 4 * height * p["w"] * (1 - p["w"]) + 0.1, zero, one)
    assert found.stable == stable
    assert math.isclose(found.instability, height, rel_tol=1e-9)


def test_a_valley_between_two_points_has_no_barrier_and_nan_on_the_way_is_neither_stable_nor_a_number():
    zero, one = ({"w": torch.tensor(float(end))} for end in (0, 1))
    assert landscape.connectivity(lambda p: (p["w"] - 0.5) ** 2, zero, one).barrier == 0.0
    broken = landscape.connectivity(lambda p: (0.25 - (p["w"] - 0.5) ** 2 - 0.2).sqrt(), zero, one, 5)
    assert broken.not_finite == [0.0, 0.25, 0.75, 1.0]
    assert math.isnan(broken.barrier)
    assert math.isnan(broken.instability)
    assert not broken.stable


# --- in a notebook ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a piece of HTML, which must close in the order in which they open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.words, self.images = [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def picture(image: dict[str, str]) -> ElementTree.Element:
    kind, _, data = image["src"].partition(";base64,")
    assert kind == "data:image/svg+xml"
    return ElementTree.fromstring(base64.b64decode(data))


def sliced(axes, function=lambda p: (p["x"] - 0.5) ** 2 + p["y"] ** 2):
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    directions = [{"x": one, "y": zero}, {"x": zero, "y": one}]
    point = {"x": zero, "y": zero}
    if axes == 1:
        return landscape.slice1d(function, point, directions[0], points=5)
    return landscape.slice2d(function, point, directions, points=5)


@pytest.mark.parametrize(("axes", "lowest"), [(1, "lowest 0 at 0.5"), (2, "lowest 0 at (0.5, 0)")])
def test_a_slice_shows_itself_in_a_notebook_as_one_self_contained_figure(axes, lowest):
    (image,) = Page(sliced(axes)._repr_html_()).images
    assert picture(image).tag.endswith("svg")
    words = Page(sliced(axes)._repr_html_()).words
    assert words == image["alt"]
    assert "0.25 at the center" in words
    assert lowest in words
    assert sliced(axes)._repr_html_() == sliced(axes)._repr_html_()


@pytest.mark.parametrize("axes", [1, 2])
def test_a_slice_says_how_many_points_are_not_finite_even_if_all_are(axes):
    def broken(p):
        return p["x"].sqrt() * (1 + p["y"] ** 2)

    assert f"{2 * 5 ** (axes - 1)} not finite" in Page(sliced(axes, broken)._repr_html_()).words
    nothing = Page(sliced(axes, lambda p: p["x"] * math.nan)._repr_html_())
    assert "nan at the center" in nothing.words
    assert "lowest" not in nothing.words


@pytest.mark.parametrize("axes", [1, 2])
def test_words_of_one_s_own_in_a_figure_are_shown_as_they_were_written(axes):
    odd = "<b>$x_1$</b> & more"
    figure = sliced(axes).figure(odd if axes == 1 else (odd, "y"), title="<i>")
    page = as_html(lambda: figure, odd, f'"{odd}')
    assert "<b>" not in page
    (image,) = Page(page).images
    assert image["alt"] == f'"{odd}'
    assert Page(page).words == odd
    assert picture(image).tag.endswith("svg")
    assert figure.axes[0].get_xlabel() == odd
