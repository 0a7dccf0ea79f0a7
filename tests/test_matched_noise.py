"""Noise at matched parameters: SigLIP's b is fitted on pairs that neither training nor the measured batches have."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from stability.datasets import rows
from stability.grid import Group, runs_of
from stability.losses import siglip
from stability.registry import InputError
from stability.study import parse_study
from stability.train import Trainer
from stability.train.data import held_out_data, independent_indices
from stability.train.probe_runner import held_out_batches

CPU = torch.device("cpu")
SIZE, COUNT = 16, 4
STEP = 2


def parse(text):
    return parse_study(text, "tiny.toml", "tiny")


def trainer_of(text, arm="clip", noise=0.0):
    study = parse(
        text.replace(
            "[probes.matched_gradient_noise]\nbatches = 2", f"[probes.matched_gradient_noise]\nbatches = {COUNT}"
        )
    )
    runs = tuple(run for run in runs_of(study) if (run.arm, run.batch_size, run.noise) == (arm, SIZE, noise))[:2]
    trained = Trainer(study, Group("g", runs), study.pairs(), CPU)
    for _ in range(STEP):
        trained.step()
    return trained


@pytest.fixture(scope="module")
def trainer(tiny_text):
    return trainer_of(tiny_text)


def slope_in_b(trainer, place, image, text):
    """Return the derivative of SigLIP's mean loss in b over batches (K, B, ...), in float64, at the fitted b."""
    population = trainer.population
    params = {name: value[place].detach() for name, value in population.spec.layout.unflatten(population.theta).items()}
    embed = [(population.spec.embed_image, image), (population.spec.embed_text, text)]
    with torch.no_grad():
        x, y = (torch.stack([tower(params, one) for one in samples]).double() for tower, samples in embed)
    scale = params["loss.log_scale"].double()

    def mean(bias):
        return torch.stack([siglip(x[k], y[k], log_scale=scale, bias=bias) for k in range(len(x))]).mean()

    return torch.func.grad(mean)(trainer.read("matched_gradient_noise").values["matched_bias"][place].double())


@pytest.mark.parametrize("place", [0, 1])
def test_the_fitted_b_minimizes_the_mean_loss_over_held_out_batches_and_not_over_those_measured(trainer, place):
    pairs, run = trainer.study.pairs(), trainer.population.runs[place]
    use = f"probe/matched_gradient_noise/held-out/{STEP}"
    unseen = pairs.held_out[independent_indices(run.rng_seed, use, COUNT, len(pairs.held_out), SIZE)]
    seen = pairs.train[
        independent_indices(run.rng_seed, f"probe/matched_gradient_noise/{STEP}", COUNT, len(pairs.train), SIZE)
    ]
    assert not set(unseen.flatten().tolist()) & set(seen.flatten().tolist())
    assert abs(slope_in_b(trainer, place, pairs.image[unseen], pairs.text[unseen])) < 1e-6
    assert abs(slope_in_b(trainer, place, pairs.image[seen], pairs.text[seen])) > 1e-4


def test_held_out_pairs_move_the_fitted_b_and_no_noise_of_clip(tiny_text):
    one, other = trainer_of(tiny_text), trainer_of(tiny_text)
    held = other.population.held_out
    held.text.copy_(held.text.roll(1, 0))
    before, after = (trained.read("matched_gradient_noise").values for trained in (one, other))
    assert (before["matched_bias"] != after["matched_bias"]).all()
    assert (before["gradient_noise_trace_towers_as_siglip"] != after["gradient_noise_trace_towers_as_siglip"]).all()
    assert torch.equal(before["gradient_noise_trace_towers_as_clip"], after["gradient_noise_trace_towers_as_clip"])


def test_all_losses_fit_on_the_same_batches_at_one_seed(tiny_text, trainer):
    other = trainer_of(tiny_text, "siglip-log-b").population
    ours = trainer.population
    drawn = [held_out_batches(one, "matched_gradient_noise", COUNT, [*range(len(one.runs))]) for one in (ours, other)]
    assert torch.equal(drawn[0]["index"], drawn[1]["index"])
    assert torch.equal(drawn[0]["text"], drawn[1]["text"])
    assert not torch.equal(drawn[0]["index"][0], drawn[0]["index"][1])


@pytest.mark.parametrize("kind", ["fixed", "fresh"])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_held_out_pairs_are_corrupted_as_training_pairs_are(tiny_text, kind, noise):
    text = tiny_text.replace('name = "digits"', f'name = "digits"\ncorruption = "{kind}"')
    population = trainer_of(text, noise=noise).population
    held, size = population.held_out, len(population.held_out.text)
    unseen = held_out_data(population.data, held.image, held.text, held.extra_modalities, held.caption, "some use")
    everything = torch.arange(size).expand(2, 1, -1)
    batch = unseen.batch(everything, unseen.generators("a batch"))
    assert torch.equal(batch["image"][:, 0], rows(held.image, torch.arange(size)).expand(2, *held.image.shape))
    moved = (batch["text"][:, 0] != held.text).flatten(2).any(-1).float().mean(1)
    # A mismatch gives another caption's text, whatever the level says but for rounding.
    assert_close(moved, torch.full((2,), noise), atol=0.02, rtol=0)
    if noise:
        assert not torch.equal(batch["text"][0], batch["text"][1])


def test_a_study_without_enough_held_out_pairs_is_refused(tiny_text):
    with pytest.raises(
        InputError,
        match=r"probes\.matched_gradient_noise: needs batches of 400 held-out pairs, .* has 359 held-out pairs",
    ):
        parse(tiny_text.replace("batch_size = [8, 16]", "batch_size = [8, 400]", 1))
    fewer = tiny_text.replace("batch_size = [8, 16]", "batch_size = [8, 400]", 1)
    assert parse(fewer.replace("[probes.matched_gradient_noise]", "[probes.matched_gradient_noise]\nbatch_size = [8]"))
    free = tiny_text.split("[[claims]]")[0].replace('name = "digits"', 'name = "sphere"')
    free = free.replace("[probes.retrieval]\nevery = 4\n", "").replace("noise = [0.0, 0.4]", "noise = [0.0]")
    free = free.replace('{ name = "mlp", width = 8, depth = 1 }', '"free_vectors"')
    free = free.replace('{ name = "token_transformer", width = 4, heads = 1 }', '"free_vectors"')
    with pytest.raises(InputError, match="'sphere' has none apart from those trained on"):
        parse(free)
