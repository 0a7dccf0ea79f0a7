"""Studies of every shape go from text to report: one odd setting each, the tiny study otherwise."""

from __future__ import annotations

import json

import pytest

from stability.execute import run
from stability.report import write_report
from stability.study import parse_study

pytestmark = pytest.mark.slow

IMAGE, TEXT = 'name = "mlp", width = 8, depth = 1', 'name = "token_transformer", width = 4, heads = 1'
DATA = 'name = "digits"'
VARIETIES = {
    "fresh noise": [(DATA, 'name = "digits"\ncorruption = "fresh"')],
    "cosine": [("warmup = 2", 'warmup = 2\nlr_schedule = "cosine"')],
    "clipped at a quantile": [("warmup = 2", "warmup = 2\nclip_quantile = 0.5")],
    "one seed": [("seeds = 3", "seeds = 1")],
    "two rates": [("lr = [0.01]", "lr = [0.01, 0.1]")],
    "a rate at which everything diverges": [("lr = [0.01]", "lr = [1e6]")],
}
WITHOUT_CLAIMS = {
    "as it is": [],
    "no noise": [("noise = [0.0, 0.4]", "noise = [0.0]")],
    "one batch size": [("batch_size = [8, 16]", "batch_size = [8]")],
    "scenes": [(DATA, 'name = "shapes"\npairs = 200'), (IMAGE, 'name = "conv"')],
    "a latent seen twice": [(DATA, 'name = "latent"\npairs = 200'), (TEXT, 'name = "mlp", width = 8')],
    "free vectors": [
        (DATA, 'name = "sphere"\npairs = 30'),
        (IMAGE, 'name = "free_vectors"'),
        (TEXT, 'name = "free_vectors"'),
        # Which fits a bias on pairs that were held out, and here there are none.
        ("[probes.matched_gradient_noise]\nbatches = 2\n", ""),
    ],
    "a locked tower": [(IMAGE, f"{IMAGE}, frozen = true")],
    "two corruptions": [("noise = [0.0, 0.4]", 'noise = [0.0, 0.4]\ncorruption = ["image_noise", "all_three"]')],
    "losses without scalars and with state": [
        ('["clip", "siglip-log-b"]', '["triplet", "siglip-log-b", "adaptive", "siglip_masked", "focal_sigmoid"]')
    ],
}


def reported(text: str, edits: list[tuple[str, str]], where) -> dict:
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    out = run(parse_study(text, "t.toml", "t"), "cpu", out=where / "r")
    manifest = json.loads((out / "manifest.json").read_text())
    assert {group["status"] for group in manifest["groups"]} == {"finished"}
    return json.loads(write_report(out)["findings"].read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("name", VARIETIES)
def test_a_study_with_claims_ends_in_a_verdict_for_each(tiny_text, tmp_path, name):
    claims = reported(tiny_text, VARIETIES[name], tmp_path)["claims"]
    assert len(claims) == 3
    assert all(claim["sentence"].endswith(".") for claim in claims)


@pytest.mark.parametrize("name", WITHOUT_CLAIMS)
def test_a_study_without_claims_ends_in_a_report(tiny_text, tmp_path, name):
    assert reported(tiny_text.split("[[claims]]")[0], WITHOUT_CLAIMS[name], tmp_path)["claims"] == []


def test_a_study_without_probes_ends_in_a_report(tiny_text, tmp_path):
    assert reported(tiny_text.split("[probes.retrieval]")[0], [], tmp_path)["verdict"] == "not-testable"
