"""Conformance: every registered loss passes, under its options too; a loss with one flaw fails where it should."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from stability.check import CheckResult, check, validate_loss
from stability.losses import Scalar, clip, loss, siglip
from stability.losses.chance import best_constant, chance_level
from stability.losses.registry import LossTraits
from stability.registry import InputError, Registry, Variant

OPTIONS = [
    ("clip", {"label_smoothing": 0.1}),
    ("clip", {"max_scale": 5.0}),
    ("clip", {"z_loss": 0.1}),
    ("clip", {"z_loss": 0.1, "logit_cap": 5.0}),
    ("siglip", {"logit_cap": 5.0}),
    ("siglip", {"reduction": "mean_pairs"}),
    ("infoloob", {"hopfield": True}),
    ("hcl", {"beta": 0.0}),
    ("rince", {"q": 1.0}),
    ("focal_sigmoid", {"decay_steps": 10}),
    ("clip_masked", {"keep": "hard"}),
    ("clip_masked", {"keep": "easy", "ratio": 1.5}),
    ("siglip_masked", {"keep": "hard"}),
    ("siglip_masked", {"keep": "easy", "ratio": 1.5}),
    ("triplet", {"margin": 1.0}),
    ("global_contrastive", {"gamma": 0.2}),
    ("siglip_chunked", {"chunk": 2}),
    ("clip_chunked", {"chunk": 4}),
]
ALL = [(name, {}) for name in sorted(loss)] + OPTIONS


def variant_of(name: str, options: dict) -> Variant:
    return replace(loss[name], function=partial(loss[name].function, **options))


def failed(variant: Variant) -> dict[str, str]:
    return {outcome.property: outcome.reason for outcome in check(variant) if not outcome.passed}


@pytest.mark.parametrize(("name", "options"), ALL)
def test_every_loss_has_every_required_property(name, options):
    outcomes = check(variant_of(name, options))
    assert [outcome for outcome in outcomes if outcome.required and not outcome.passed] == []


@pytest.mark.parametrize("name", sorted(loss))
def test_every_loss_has_every_reported_property_but_one(name):
    # e^(q t) leaves float32 at t = 1000, and RINCE cannot be rescaled without changing what it weighs.
    assert set(failed(loss[name])) == ({"extreme scales"} if name == "rince" else set())


@pytest.mark.parametrize("size", [2, 6, 20])
@pytest.mark.parametrize("name", sorted(loss))
def test_every_declared_chance_level_is_the_best_that_one_similarity_reaches(name, size):
    assert math.isclose(loss[name].traits.chance(size), best_constant(loss[name], size), rel_tol=1e-4, abs_tol=1e-4)


@pytest.mark.parametrize("size", [2, 6, 20])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip", {"z_loss": 0.1}),
        ("clip", {"logit_cap": 0.5}),
        *(("clip", {"z_loss": weight, "logit_cap": cap}) for weight in (0.1, 2.0) for cap in (0.5, 2.0, 30.0)),
        *(("siglip", {"logit_cap": cap}) for cap in (0.5, 2.0, 30.0)),
        ("siglip", {"logit_cap": 2.0, "reduction": "mean_pairs"}),
    ],
)
def test_the_chance_level_under_a_z_loss_or_a_cap_is_the_best_that_one_logit_reaches(name, options, size):
    zeros = torch.zeros(size, 3, dtype=torch.float64)
    unit, scalars = zeros + F.normalize(torch.ones(3, dtype=torch.float64), dim=0), {}

    def at(logit: float) -> float:
        # A constant logit of any size: a similarity of 1 or -1, and its scale.
        log_scale = torch.tensor(abs(logit) + 1e-300, dtype=torch.float64).log()
        return float(loss[name](unit, unit if logit > 0 else -unit, log_scale=log_scale, **scalars, **options))

    if name == "siglip":
        scalars["bias"] = torch.zeros((), dtype=torch.float64)
    best = min(at(logit) for logit in torch.linspace(-12, 12, 2401, dtype=torch.float64).tolist())
    assert chance_level(loss[name], size, options) == pytest.approx(best, rel=1e-4, abs=1e-4)


def made(function, **traits) -> Variant:
    registry = Registry("loss", LossTraits)
    registry(**traits)(function)
    return next(iter(registry.values()))


def squared(image, text):
    """Return the mean squared distance of matches."""
    return (image - text).square().sum(-1).mean()


def contrasted(image, text):
    """Return the squared distance of matches less that of all pairs."""
    return squared(image, text) - (image[:, None] - text).square().sum(-1).mean()


def test_a_sound_loss_without_scalars_fails_nothing_and_need_not_declare_its_chance_level():
    assert not failed(made(contrasted))
    (reason,) = (outcome.reason for outcome in check(made(contrasted)) if outcome.property == "chance level")
    assert reason.startswith("none declared")
    assert reason.endswith("at B = 6 the best constant similarity reaches 0")


def shrinking(image, text, *, log_scale):
    """A loss that its own scalar can turn off: no embeddings do better than any others."""
    return log_scale.exp() * squared(image, text)


@pytest.mark.parametrize("loss_of_ones_own", [made(squared), made(shrinking, log_scale=Scalar(0.0))])
def test_a_loss_under_which_every_run_would_count_as_diverged_is_told_so(loss_of_ones_own):
    assert "every run would count as diverged" in failed(loss_of_ones_own)["chance level"]


def nan(image, text):
    return squared(image, text) * float("nan")


def infinite_slope(image, text):
    return squared(image, image).sqrt() + squared(image, text)


def positional(image, text):
    return (squared(image, text) * image[0]).sum()


def branching(image, text):
    return squared(image, text) if image.sum().item() > 0 else 2 * squared(image, text)


def editing(image, text):
    image *= 2
    return squared(image, text)


def detached(image, text):
    return squared(image, text.detach())


def lonely(image, text):
    return squared(image, text) / (len(image) - 2)


def shortened(image, text):
    return squared(image, text).float()


def constant(image, text):
    return torch.ones((), dtype=image.dtype)


def raising(image, text):
    raise KeyError("no such key")


FLAWED = [
    (nan, "finite", "the value is nan"),
    (infinite_slope, "finite", "the gradient of image is not finite"),
    (positional, "batch order", "in another order"),
    (branching, "vmap", "RuntimeError: vmap:"),
    (editing, "inputs kept", "it edits image in place"),
    (detached, "gradient", "along text the gradient says 0"),
    (lonely, "two pairs", "the value is inf"),
    (shortened, "gradient", "it returns float32 for embeddings of float64; make new tensors of the inputs' type"),
    (constant, "gradient", "the gradient is zero in all inputs"),
]


@pytest.mark.parametrize(("function", "which", "reason"), FLAWED, ids=[f[0].__name__ for f in FLAWED])
def test_a_flaw_fails_its_property_and_says_why(function, which, reason):
    assert reason in failed(made(function))[which]


def test_a_loss_that_raises_fails_everything_with_its_own_message():
    outcomes = check(made(raising))
    assert {outcome.reason for outcome in outcomes} == {"KeyError: 'no such key'"}
    assert not any(outcome.passed for outcome in outcomes)
    assert outcomes[0] == CheckResult("finite", True, False, "KeyError: 'no such key'")


def turned(image, text):
    return (image[:, 0] - text[:, 0]).square().mean()


def kinked(image, text):
    return (image - text).abs().sum(-1).mean()


def overflowing(image, text, *, log_scale):
    return (log_scale.exp() * image @ text.T).exp().sum().log()


def test_what_is_only_reported():
    failures = failed(made(turned))
    assert "after a turn of both" in failures["rotation"]
    reasons = {outcome.property: outcome.reason for outcome in check(made(kinked))}
    assert "all second derivatives are zero" in reasons["second derivatives"]
    assert "at t = 100 in float32" in failed(made(overflowing, log_scale=Scalar(0.0)))["extreme scales"]
    reasons = {outcome.property: outcome.reason for outcome in check(loss["clip"])}
    assert reasons["scale with B"].startswith("at B = 4, 16, 64, 256 and random embeddings: loss ")


def test_a_wrong_chance_level_is_told():
    wrong = replace(loss["clip"], traits=replace(loss["clip"].traits, chance=lambda batch_size: 1.0))
    assert failed(wrong)["chance level"] == "declared 1; at B = 6 the best constant similarity reaches 1.792"


def matrix(image, text):
    return image @ text.T


def number(image, text):
    return 1.0


def forgetful(image, text, *, state):
    return squared(image, text)


def renaming(image, text, *, state):
    return squared(image, text), {"other": state["seen"]}


def greedy(image, text, *, weight):
    return weight * squared(image, text)


def short(image):
    return image.sum()


def seen(available):
    return {"seen": torch.zeros(available)}


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [
        (made(matrix), r"loss 'matrix': it returns a tensor of shape \(6, 6\); allowed: one number"),
        (made(number), "loss 'number': it returns a value of type float; allowed: a tensor"),
        (made(forgetful), "loss 'forgetful' asks for a state; declare"),
        (made(forgetful, state=seen), r"it has to return two things: \(loss, new_state\)"),
        (made(renaming, state=seen), r"its new state has \['other'\], its initial state \['seen'\]"),
        (made(greedy), "loss 'greedy': 'weight' has no default; declare it as a Scalar"),
        (made(raising), "loss 'raising' can't be called: KeyError: 'no such key'"),
        (made(short), "loss 'short' can't be called: TypeError: short()"),
    ],
)
def test_a_loss_that_cannot_be_called_or_is_no_number_is_refused_in_one_sentence(variant, sentence):
    with pytest.raises(InputError, match=sentence):
        validate_loss(variant)


def test_sound_losses_are_admitted():
    for variant in (*loss.values(), made(squared)):
        validate_loss(variant)


def test_losses_are_plain_functions():
    assert loss["clip"].function is clip
    assert loss["siglip"].function is siglip


def test_chance_is_that_of_the_arm_and_not_of_its_loss_s_defaults():
    log_b = math.log(16)
    per_image = log_b + 15 * math.log(16 / 15)
    assert chance_level(loss["siglip"], 16, {"reduction": "mean_pairs", "bias": -5.0}) == pytest.approx(per_image / 16)
    assert chance_level(loss["clip"], 16, {"label_smoothing": 0.1}) == pytest.approx(log_b)
    # A scale held at 1 and no bias: the best constant logit is -1, that of opposite vectors.
    held = {"log_scale": {"initial": 0.0, "trained": False}, "bias": {"initial": 0.0, "trained": False}}
    opposite = math.log1p(math.e) + 15 * math.log1p(math.exp(-1))
    assert chance_level(loss["siglip"], 16, held) == pytest.approx(opposite)
    # The same two, trained: any constant logit is in reach, whatever they start from.
    assert chance_level(loss["siglip"], 16, {"log_scale": 0.0, "bias": 0.0}) == pytest.approx(per_image)
