"""More than two modalities: one tower each, and a pair loss summed over the pairs of towers."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from conftest import TINY
from torch.testing import assert_close

from stability.datasets import dataset
from stability.datasets.gaussian import canonical_correlation
from stability.grid import Group, runs_of
from stability.losses import loss, siglip_relative_bias
from stability.registry import InputError
from stability.study import modalities, parse_study
from stability.train import Trainer
from stability.train.model import initial_parameters, model_spec

CONSTELLATION = """
title = "Constellation"
question = "Do four modalities separate?"
[data]
name = "sphere"
pairs = 12
modalities = 4
[model]
image = "free_vectors"
text = "free_vectors"
extra_modalities = "free_vectors"
embed_dim = 8
[train]
steps = 300
[arms.published]
loss = "siglip_relative_bias"
relative_bias = 0.0
[grid]
arms = ["published", "clip"]
batch_size = [12]
lr = [0.02]
seeds = 2
[probes.geometry]
"""


def study_of(text: str = CONSTELLATION):
    return parse_study(text, "study.toml", "study")


def test_further_views_share_the_latent_at_the_same_correlation():
    pairs = dataset["latent"](pairs=20_000, latent_dim=3, view_dim=12, snr=2.0, modalities=4)
    assert list(pairs.modalities) == ["image", "text", "modality-3", "modality-4"]
    white = [torch.linalg.qr(view.double() - view.double().mean(0))[0] for view in pairs.modalities.values()]
    for one, other in combinations(white, 2):
        found = torch.linalg.svdvals(one.T @ other)[:3]
        assert found.tolist() == pytest.approx([canonical_correlation(3, 12, 2.0)] * 3, abs=0.02)


def test_further_views_leave_image_and_text_as_they_are():
    two, three = dataset["latent"](pairs=50), dataset["latent"](pairs=50, modalities=3)
    assert torch.equal(two.image, three.image)
    assert torch.equal(two.text, three.text)


@pytest.mark.parametrize("name", sorted(name for name in loss if "state" not in loss[name].options))
def test_the_objective_is_the_mean_of_the_pair_losses(name):
    study = study_of(CONSTELLATION.replace('"clip"]', f'"{name}"]'))
    pairs = study.pairs()
    spec = model_spec(study, name, 12, pairs)
    params = spec.layout.unflatten(initial_parameters(study, spec, pairs, [0])[0].double())
    batch = {
        **{key: ids[:12] for key, ids in pairs.modalities.items()},
        "index": torch.arange(12),
        "step": torch.tensor(3),
        "uniform": torch.rand(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    }
    rows = [torch.nn.functional.normalize(params[f"{key}.vectors"], dim=-1) for key in modalities(pairs)]
    scalars = {key.removeprefix("loss."): value for key, value in params.items() if key.startswith("loss.")}
    asked = {key: batch[key] for key in spec.loss.reserved}
    slow = [spec.loss.function(one, other, **scalars, **asked) for one, other in combinations(rows, 2)]
    assert len(slow) == 6
    assert_close(spec.objective(params, batch), torch.stack(slow).mean())


def test_four_modalities_become_a_constellation_with_every_pair_apart():
    study = study_of()
    runs = tuple(run for run in runs_of(study) if run.arm == "published")
    trainer = Trainer(study, Group("four", runs), study.pairs(), torch.device("cpu"))
    for _ in range(300):
        measures = trainer.step()
    population = trainer.population
    reading = trainer.read("geometry").values
    assert (reading["margin"] > 0.1).all()
    params = population.spec.layout.unflatten(population.theta.detach())
    for replica in range(len(population.runs)):
        rows = [params[f"{key}.vectors"][replica] for key in population.spec.towers]
        positive = min((one * other).sum(-1).min() for one, other in combinations(rows, 2))
        off = ~torch.eye(12, dtype=torch.bool)
        negative = max((one @ other.T)[off].max() for one, other in combinations(rows, 2))
        assert reading["margin"][replica].item() == pytest.approx((positive - negative).item() / 2, abs=1e-6)
        slow = [
            siglip_relative_bias(
                one,
                other,
                log_scale=params["loss.log_scale"][replica],
                relative_bias=params["loss.relative_bias"][replica],
            )
            for one, other in combinations(rows, 2)
        ]
        assert torch.stack(slow).mean() < measures["loss"][replica]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'extra_modalities = "free_vectors"\n',
            "",
            "model.extra_modalities: required by the third modality of the data, but missing",
        ),
        ("modalities = 4\n", "", "model.extra_modalities: 'sphere' as given has two modalities; leave it out"),
        ("modalities = 4", "modalities = 1", "got modalities = 1; allowed: 2 or more"),
        ('extra_modalities = "free_vectors"', 'extra_modalities = "free-vector"', "did you mean 'free_vectors'?"),
        ('"clip"]', '"global_contrastive"]', "keeps running estimates of two modalities"),
    ],
)
def test_towers_and_modalities_that_do_not_fit_are_one_sentence(old, new, said):
    with pytest.raises(InputError) as error:
        study_of(CONSTELLATION.replace(old, new))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_two_modalities_keep_their_study_hash():
    tiny = parse_study(TINY, "tiny.toml", "tiny")
    assert "extra_modalities" not in tiny.canonical()["model"]
