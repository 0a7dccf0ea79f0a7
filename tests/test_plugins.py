"""A stranger's loss: written from the README, checked, compared, and refused in one sentence where it is wrong."""

from __future__ import annotations

import json
import tomllib

import pytest
from command_line import call

from stability.grid import runs_of
from stability.losses import loss
from stability.plugins import load_plugin, read_plugin
from stability.registry import InputError
from stability.study import load_study, parse_study, with_loss
from stability.study.derive import toml

LOSS = '''"""A margin on the sigmoid loss."""

import math

import torch
from torch.nn.functional import softplus

import stability as st


@st.loss(log_scale=st.Scalar(math.log(10.0)), bias=st.Scalar("-log B"))
def margin_sigmoid(image, text, *, log_scale, bias, margin=0.1):
    """Judge every pair, asking matches to be better by a margin."""
    match = torch.eye(len(image), dtype=image.dtype, device=image.device)
    logits = log_scale.exp() * (image @ text.T - margin * match) + bias
    return softplus(-(2 * match - 1) * logits).sum() / len(image)
'''


@pytest.fixture
def catalogue(monkeypatch):
    """Losses registered in a test are forgotten after it."""
    monkeypatch.setattr(loss, "_variants", dict(loss._variants))


@pytest.fixture
def file(tmp_path):
    def write(source: str = LOSS, name: str = "my_loss.py") -> str:
        (tmp_path / name).write_text(source)
        return str(tmp_path / name)

    return write


def test_a_file_is_loaded_once_or_twice_and_its_source_is_part_of_a_run_s_identity(catalogue, file, tiny_text):
    variant = load_plugin(read_plugin(file()))
    assert variant.name == "margin_sigmoid"
    assert load_plugin(read_plugin(file())).source == variant.source

    def ids() -> set[str]:
        text = tiny_text.split("[[claims]]")[0].replace('["clip", ', '["margin_sigmoid", ')
        return {run.id for run in runs_of(parse_study(text, "t.toml", "t")) if run.arm == "margin_sigmoid"}

    before = ids()
    loss.annotate("margin_sigmoid", source="another")
    assert not ids() & before


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("def f(:\n", r"my_loss\.py: line 1: invalid syntax"),
        ("x = 1\n", r"my_loss\.py: defines no loss; decorate a function with @stability\.loss\(\.\.\.\)"),
        ("import math\n1 / 0\n", r"my_loss\.py: line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)\n", r"my_loss\.py: line 2: SystemExit: 0"),
        (
            LOSS.replace("    match =", "    raise SystemExit(3)\n    match ="),
            r"my_loss\.py: loss 'margin_sigmoid' can't be called: SystemExit: 3",
        ),
        ("x = 1\0", r"my_loss\.py: source code string cannot contain null bytes"),
        (
            "import nowhere_to_be_found\n",
            r"my_loss\.py: line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        (
            LOSS.replace("def margin_sigmoid", "def clip"),
            r"my_loss\.py: loss 'clip' exists already; give yours another name",
        ),
        (
            LOSS.replace(".sum() / len(image)", ""),
            r"my_loss\.py: loss 'margin_sigmoid': it returns a tensor of shape \(6, 6\).*",
        ),
        (
            LOSS.replace("    return ", "    return 1.0 or "),
            r"my_loss\.py: loss 'margin_sigmoid': it returns a value of type float.*",
        ),
        (LOSS.replace("margin=0.1", "margin"), r"my_loss\.py: loss 'margin_sigmoid': 'margin' has no default.*"),
        (LOSS.replace("(image, text,", "(image,"), r"my_loss\.py: loss 'margin_sigmoid' can't be called: .*"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(catalogue, file, source, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        load_plugin(read_plugin(file(source)))
    assert "\n" not in str(caught.value)


def test_a_name_that_the_file_does_not_have_gets_the_nearest(catalogue, file, tmp_path):
    with pytest.raises(InputError, match="defines no loss 'margin'; did you mean 'margin_sigmoid'"):
        load_plugin(read_plugin(file() + ":margin"))
    with pytest.raises(InputError, match=r"nowhere\.py: cannot be read: no such file or directory"):
        read_plugin(str(tmp_path / "nowhere.py"))


def test_a_study_with_another_loss_asks_every_claim_of_it_against_each(catalogue, file):
    load_plugin(read_plugin(file()))
    base = load_study("quickstart", "smoke")
    derived = parse_study(with_loss(base, "margin_sigmoid", ["clip", "siglip-log-b"]), "d.toml", "d", "smoke")
    assert derived.grid.arms == ("margin_sigmoid", "clip", "siglip-log-b")
    assert [claim.compare[1] for claim in derived.claims] == ["clip", "siglip-log-b"] * 3
    assert [claim.primary for claim in derived.claims] == [True] + [False] * 5
    assert derived.train == base.train
    assert [claim.text for claim in derived.claims][::2] == [
        "Gradient noise fraction (towers) is lower under margin_sigmoid than under clip",
        "Recall@1 has a higher slope over noise under margin_sigmoid than under clip",
        "Recall@1 reaches 0.2 sooner under margin_sigmoid than under clip",
    ]
    with pytest.raises(InputError, match="--against: unknown loss 'sigclip'; did you mean 'siglip'"):
        with_loss(base, "margin_sigmoid", ["sigclip"])


def test_plain_data_come_back_from_toml_as_they_were():
    plain = tomllib.loads(load_study("quickstart").text)
    assert tomllib.loads(toml(plain)) == plain
    odd = {"a b": 'quote " and \\ and é\n', "t": {"x.y": [1, 2.5, True, {"z": []}]}}
    assert tomllib.loads(toml(odd)) == odd


def test_check_passes_a_sound_loss_and_names_what_fails_in_an_unsound_one(file):
    sound = call("check", file())
    assert sound.code == 0, sound.err
    assert "FAIL" not in sound.out.split("reported")[0]
    wrong = LOSS.replace("    return ", "    image[0] = 0 * image[0]\n    return ").replace(
        "st.loss(", "st.loss(name='bad', "
    )
    unsound = call("check", file(wrong, "bad.py"))
    assert unsound.code == 1, unsound.out + unsound.err
    assert "required properties fail" in unsound.err
    assert call("check", "nowhere.py").code == 2


def test_a_loss_that_is_in_no_catalogue_goes_through_compare_to_a_report(file, tmp_path, brief_text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brief.toml").write_text(brief_text)
    words = ("compare", "--loss", file(), "--against", "clip", "--study", "brief.toml", "--scale", "smoke")
    # In a worker process, which has to load the file itself.
    ran = call(*words, "--device", "cpu", "--on", "processes:1")
    assert ran.code == 0, ran.err
    run_dir = tmp_path / "runs/brief-smoke-margin_sigmoid"
    findings = json.loads((run_dir / "report/findings.json").read_text())
    assert {tuple(claim["compare"]) for claim in findings["claims"]} == {("margin_sigmoid", "clip")}
    assert "margin_sigmoid" in (run_dir / "report/index.html").read_text()
    refused = call("report", str(run_dir))
    assert (refused.code, "--loss" in refused.err) == (2, True), refused.err
    assert call("report", str(run_dir), "--loss", file()).code == 0


def test_a_byte_order_mark_before_the_source_is_no_part_of_it(catalogue, tmp_path):
    (tmp_path / "my_loss.py").write_bytes(b"\xef\xbb\xbf" + LOSS.encode())
    assert load_plugin(read_plugin(str(tmp_path / "my_loss.py"))).name == "margin_sigmoid"
