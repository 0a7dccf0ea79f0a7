"""An encoder of one's own: one file, named on the command line, tried before it is trained, part of the run's id."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from stability.analysis import load_results
from stability.encoders import Modality, encoder
from stability.encoders.validation import check_tower
from stability.execute import executor_of, run
from stability.grid import runs_of
from stability.plugins import load_encoders, load_plugin, read_plugin, refuse_unused
from stability.registry import InputError
from stability.study import parse_study
from stability.train.model import model_spec

TOWER = '''"""A tower with its first layer locked."""

from torch import nn

import stability as st


@st.encoder(modality="image")
def half_locked(modality, embed_dim, *, width=8):
    """Build a perceptron whose first layer stays as it starts."""
    size = modality.shape[0] * modality.shape[1] * modality.shape[2]
    first = nn.Linear(size, width).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), first, nn.GELU(), nn.Linear(width, embed_dim))
'''
USES = 'image = { name = "half_locked", width = 4 }'


@pytest.fixture
def catalogue(monkeypatch):
    """Encoders registered in a test are forgotten after it."""
    monkeypatch.setattr(encoder, "_variants", dict(encoder._variants))


@pytest.fixture
def file(tmp_path):
    def write(source: str = TOWER, name: str = "my_tower.py") -> str:
        (tmp_path / name).write_text(source)
        return str(tmp_path / name)

    return write


@pytest.fixture
def text(tiny_text):
    """The tiny study with its image tower replaced by the user's."""
    return tiny_text.replace('image = { name = "mlp", width = 8, depth = 1 }', USES)


def parsed(text: str):
    return parse_study(text, "tiny.toml", "tiny", "smoke")


def test_a_study_that_names_it_is_valid_only_with_its_file_and_the_source_is_part_of_runs(
    catalogue, file, text, monkeypatch
):
    with pytest.raises(InputError, match=r"model\.image: unknown encoder 'half_locked'.*is named by --encoder"):
        parsed(text)
    load_encoders([file()])
    before = parsed(text)
    ids = {run.id for run in runs_of(before)}
    hash_before = before.hash
    assert before.encoder_sources.keys() == {"half_locked"}
    # Another process, another day: the name is free again, and the file was edited.
    monkeypatch.delitem(encoder._variants, "half_locked")
    load_encoders([file(TOWER + "# edited\n")])
    after = parsed(text)
    assert not ids & {run.id for run in runs_of(after)}
    assert after.hash != hash_before


def test_a_study_without_encoders_of_one_s_own_keeps_its_identity_when_some_are_loaded(catalogue, file, tiny_text):
    before = parsed(tiny_text)
    identity = before.hash, [run.id for run in runs_of(before)]
    plugins = load_encoders([file()])
    after = parsed(tiny_text)
    assert (after.hash, [run.id for run in runs_of(after)]) == identity
    with pytest.raises(InputError, match="the study has no tower 'half_locked'; write image = "):
        refuse_unused(plugins, {"encoder": after.encoder_sources})


def test_part_of_a_tower_can_be_locked(catalogue, file, text):
    load_encoders([file()])
    study = parsed(text)
    spec = model_spec(study, "clip", 8, study.pairs())
    assert {name for name in spec.frozen if name.startswith("image.")} == {"image.1.weight", "image.1.bias"}
    assert {name for name in spec.layout.shapes if name.startswith("image.3")} == {"image.3.weight", "image.3.bias"}


def test_one_of_several_is_meant_by_name_and_a_file_may_hold_losses_too(catalogue, file):
    two = TOWER + '\n\n@st.encoder\ndef other(modality, embed_dim):\n    """Build another."""\n'
    assert load_plugin(read_plugin(file(two) + ":other", "encoder")).name == "other"
    plugins = load_encoders([file(two) + ":other"])
    refuse_unused(plugins, {"encoder": ["other"]})
    with pytest.raises(InputError, match="no tower 'other'"):
        refuse_unused(plugins, {"encoder": ["half_locked"]})
    with pytest.raises(InputError, match="defines no encoder 'others'; did you mean 'other'"):
        load_encoders([file(two) + ":others"])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1\n", r"my_tower\.py: defines no encoder; decorate a function with @stability\.encoder"),
        (TOWER.replace("width=8", "width"), r"encoder 'half_locked': option 'width' has no default"),
        (TOWER.replace('"image"', '"images"'), r"encoder 'half_locked': modality='images'; allowed: image, text"),
        (TOWER.replace("half_locked", "mlp"), r"encoder 'mlp' exists already; give yours another name"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(catalogue, file, source, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        load_encoders([file(source)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("nn.GELU()", "nn.BatchNorm1d(width)", r"layer '2' is a BatchNorm, which couples the samples of a batch"),
        ("nn.GELU()", "nn.Dropout(0.5)", r"layer '2' is a Dropout, which draws random numbers beside the run's own"),
        ("embed_dim))", "embed_dim + 1))", r"it maps 3 samples to \(3, 5\) of torch.float32; allowed: .*\(3, 4\)"),
        ("    return nn.Sequential(", "    return list((", "a value of type list; allowed: a torch.nn.Module"),
        ("    size =", "    size = 1 / 0 #", "cannot be built: ZeroDivisionError: division by zero"),
        ("modality.shape[0] *", "2 *", "it cannot be called: RuntimeError"),
    ],
)
def test_a_tower_that_cannot_be_trained_is_refused_before_the_run(catalogue, file, text, old, new, sentence):
    source = TOWER.replace(old, new)
    load_encoders([file(source + ")" * (source.count("(") - source.count(")")))])
    with pytest.raises(InputError, match=rf"tiny\.toml: model\.image: encoder 'half_locked'.*{sentence}") as caught:
        parsed(text)
    assert "\n" not in str(caught.value)


class Centred(nn.Linear):
    """Takes the mean of the batch away: a coupling that no layer's name tells."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


class Branching(nn.Linear):
    """Asks for the value of a tensor, which has none under vmap."""

    def forward(self, x):
        return super().forward(x) if self.weight.sum() > 0 else super().forward(-x)


class After(nn.Linear):
    """Does something to the embeddings of a linear map."""

    def __init__(self, change):
        super().__init__(5, 4)
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


class InPlace(nn.Linear):
    """Works on the batch itself."""

    def forward(self, x):
        return super().forward(x.mul_(2))


class Masked(nn.Linear):
    """Asks for more than a batch."""

    def forward(self, x, mask):
        return super().forward(x * mask)


@pytest.mark.parametrize(
    ("tower", "sentence"),
    [
        (Centred(5, 4), "embeddings depend on the other samples in the batch"),
        (Branching(5, 4), "does not run under torch.func.vmap over its weights"),
        (nn.Flatten(), "it has no parameters"),
        (nn.LazyLinear(4), "parameter 'weight' has no shape yet"),
        (nn.Linear(5, 4).double(), r"parameter 'weight' holds torch\.float64; allowed: torch\.float32"),
        (nn.Linear(5, 4, dtype=torch.complex64), r"parameter 'weight' holds torch\.complex64"),
        (After(lambda y: None), r"it maps 3 samples to NoneType; allowed: reals of shape \(3, 4\)"),
        (After(lambda y: {"embedding": y}), "it maps 3 samples to dict"),
        (After(torch.fft.fft), r"it maps 3 samples to \(3, 4\) of torch\.complex64"),
        (After(lambda y: y / 0), "numbers that are not finite"),
        (After(lambda y: y * math.nan), "numbers that are not finite"),
        (After(lambda y: y * 0), "to zeros, which have no direction"),
        (After(functional.dropout), "called again it gives other values; a tower may draw no random numbers"),
        (After(torch.Tensor.detach), "no gradient reaches its parameters"),
        (After(lambda y: y * (1 if y.sum().item() < math.inf else 2)), r"it does not run under torch\.func\.vmap"),
        (InPlace(5, 4), "it changes its input in place"),
        (Masked(5, 4), r"it cannot be called: TypeError: .*missing 1 required positional argument: 'mask'"),
    ],
)
def test_what_shows_only_when_it_is_called_is_refused_too(tower, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        check_tower(tower, Modality((5,)), 4)
    assert "\n" not in str(caught.value)


def test_buffers_of_whole_numbers_and_a_counter_are_no_harm():
    tower = After(lambda y: y[:, tower.order] if tower.seen.add_(1) else y)
    tower.register_buffer("order", torch.tensor([2, 0, 1, 3]))
    tower.register_buffer("seen", torch.tensor(0))
    check_tower(tower, Modality((5,)), 4)


def test_a_locked_tower_needs_no_gradient():
    check_tower(After(torch.Tensor.detach).requires_grad_(False), Modality((5,)), 4)


@pytest.mark.parametrize("name", sorted(encoder))
def test_every_tower_of_the_catalogue_is_sound(name):
    modality = {"free_vectors": Modality((1,), 7), "token_transformer": Modality((6,), 7)}.get(name)
    modality = modality or Modality((1, 8, 8))
    torch.manual_seed(0)
    check_tower(encoder[name](modality, 4), modality, 4)


def test_trained_statistics_in_eval_couple_nothing():
    check_tower(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval(), Modality((5,)), 4)
    with pytest.raises(InputError, match="BatchNorm"):
        check_tower(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), Modality((5,)), 4)


def test_a_worker_gets_the_source_and_a_later_reading_asks_for_the_file_again(
    catalogue, file, tmp_path, text, monkeypatch
):
    plugins = load_encoders([file()])
    end = text.index("[probes.gradient_noise]")
    study = parsed(text[:end] + "[scales.smoke]\ngrid.seeds = 2\ntrain.steps = 4\n")
    with executor_of("processes:1", "cpu", plugins) as executor:
        run_dir = run(study, "cpu", executor, tmp_path / "run")
    statuses = {group["status"] for group in json.loads((run_dir / "manifest.json").read_text())["groups"]}
    assert statuses == {"finished"}
    monkeypatch.delitem(encoder._variants, "half_locked")
    with pytest.raises(InputError, match=r"unknown encoder 'half_locked'.*is named by --encoder"):
        load_results(run_dir)
    load_encoders([file()])
    assert load_results(run_dir).study.hash == study.hash
