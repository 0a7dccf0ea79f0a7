"""An optimizer of one's own: one file, named on the command line, checked by its properties, part of the run's id."""

from __future__ import annotations

import json
import math

import pytest
import torch
from command_line import call
from device_cases import study_text

from stability.analysis import load_results
from stability.check import check
from stability.execute import executor_of, run
from stability.grid import Group, groups_of, runs_of
from stability.grid import study_of as trained_study_of
from stability.losses import loss
from stability.optimizers import optimizer
from stability.optimizers.registry import OptimizerTraits
from stability.optimizers.validation import validate_optimizer
from stability.plugins import load_optimizers, load_plugin, read_plugin, refuse_unused
from stability.registry import InputError, Registry, Variant
from stability.study import optimizer_of, parse_study
from stability.train import Trainer

SIGNS = '''"""Sign descent with momentum."""

import stability as st


@st.optimizer(
    buffers=("mean",),
    decay="decoupled",
    describe=lambda *, beta: f"sign descent with momentum {beta:g}",
    bounded_step=True,
)
def signs(grad, buffers, count, *, beta=0.9):
    """Return the sign of the running mean of the gradient, downhill."""
    mean = buffers["mean"]
    mean.mul_(beta).add_(grad, alpha=1 - beta)
    return mean.sign().neg_()
'''
LOSS = '''

@st.loss
def squared(image, text):
    """Return the squared distance of matches less that of all pairs."""
    return (image - text).square().sum(-1).mean() - (image[:, None] - text).square().sum(-1).mean()
'''


@pytest.fixture
def catalogue(monkeypatch):
    """What is registered in a test is forgotten after it."""
    for registry in (optimizer, loss):
        monkeypatch.setattr(registry, "_variants", dict(registry._variants))


@pytest.fixture
def file(tmp_path):
    def write(source: str = SIGNS, name: str = "my_optimizer.py") -> str:
        (tmp_path / name).write_text(source)
        return str(tmp_path / name)

    return write


def parsed(more: str = 'optimizer = "signs"', grid: str = "noise = [0.5]", arms: str = ""):
    return parse_study(study_text(more=more, grid=grid) + arms, "t.toml", "t")


def ids(study) -> set[str]:
    return {run.id for run in runs_of(study)}


# --- a study that names it ----------------------------------------------------------------------------------------


def test_a_study_that_names_it_is_valid_only_with_its_file_and_the_source_is_part_of_runs(catalogue, file, monkeypatch):
    plain = parsed("")
    identity = plain.hash, ids(plain)
    sentence = r"train\.optimizer: unknown optimizer 'signs'.*; the file of one of your own is named by --optimizer$"
    with pytest.raises(InputError, match=sentence):
        parsed()
    load_optimizers([file()])
    assert (parsed("").hash, ids(parsed(""))) == identity
    before = parsed()
    assert before.optimizer_sources.keys() == {"signs"}
    hash_before, ids_before = before.hash, ids(before)
    # Another process, another day: the name is free again, and the file was edited.
    monkeypatch.delitem(optimizer._variants, "signs")
    load_optimizers([file(SIGNS + "# edited\n")])
    after = parsed()
    assert after.hash != hash_before
    assert not ids(after) & ids_before


def test_an_arm_or_an_axis_names_it_too(catalogue, file):
    plugins = load_optimizers([file()])
    arm = parsed("", arms='[arms.clip]\nloss = "clip"\ntrain = { optimizer = "signs", beta = 0.5 }\n')
    assert optimizer_of(arm.train_of("clip"))[1] == {"beta": 0.5}
    axis = parsed("", 'noise = [0.5]\n"train.optimizer" = ["adamw", "signs"]')
    for study in (arm, axis):
        assert study.optimizer_sources.keys() == {"signs"}
        refuse_unused(plugins, {"optimizer": study.optimizer_sources})
    # The runs of other optimizers are those of a study that knows nothing of this one.
    assert ids(parsed("")) < ids(axis)
    assert ids(parsed()) < ids(axis)
    with pytest.raises(
        InputError, match=r"^--optimizer .*my_optimizer\.py: the study trains with no optimizer 'signs'"
    ):
        refuse_unused(plugins, {"optimizer": parsed("").optimizer_sources})


def test_its_options_are_keys_of_train_with_its_defaults_and_are_an_axis(catalogue, file):
    load_optimizers([file()])
    own = parsed()
    spelled = parsed('optimizer = "signs"\nbeta = 0.9')
    assert spelled.hash == own.hash
    assert ids(spelled) == ids(own)
    other = parsed('optimizer = "signs"\nbeta = 0.5')
    assert optimizer_of(other.train)[1] == {"beta": 0.5}
    assert not ids(other) & ids(own)
    axis = parsed('optimizer = "signs"', 'noise = [0.5]\n"train.beta" = [0.5, 0.9]')
    assert ids(axis) == ids(own) | ids(other)
    (group,) = groups_of(runs_of(axis), lambda run: 32)
    together = Trainer(trained_study_of(axis, group), group, axis.pairs(), torch.device("cpu"))
    alone = Trainer(other, Group("g", runs_of(other)), other.pairs(), torch.device("cpu"))
    for _ in range(3):
        together.step(), alone.step()
    rows = [index for index, run in enumerate(group.runs) if dict(run.train) == {"beta": 0.5}]
    assert torch.equal(together.population.theta[rows], alone.population.theta)
    assert not torch.equal(together.population.theta[: len(rows)], together.population.theta[len(rows) :])


@pytest.mark.parametrize(
    ("more", "arms", "sentence"),
    [
        ('optimizer = "signs"\nbetta = 0.5', "", r"t\.toml: train\.betta: unknown key; did you mean 'beta'\?"),
        ('optimizer = "signs"\nbeta = "much"', "", r"train\.beta: got 'much'; allowed: a number, as 0\.9"),
        ("beta = 0.5", "", r"train\.beta: no optimizer of this study takes it; allowed with 'signs' only"),
        (
            'optimizer = "signs"',
            '[arms.clip]\nloss = "clip"\ntrain = { optimizer = "lion", beta = 0.5 }\n',
            r"arms\.clip\.train\.beta: no optimizer of this arm takes it; allowed with 'signs' only",
        ),
        ('optimizer = "signs"\nmomentum = 0.5', "", r"train\.momentum: the optimizer 'signs' takes no momentum"),
        ('optimizer = "sings"', "", r"unknown optimizer 'sings'; did you mean 'signs'\?"),
    ],
)
def test_a_wrong_option_is_one_sentence(catalogue, file, more, arms, sentence):
    load_optimizers([file()])
    with pytest.raises(InputError, match=sentence) as caught:
        parsed(more, arms=arms)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("steps=3", "has an option 'steps', which is something else in"),
        ("options=3", "has an option 'options', which is something else in"),
        ("betas=0.9", r"has an option 'betas' with the default 0\.9; allowed: one like \(0\.9, 0\.999\)"),
        ("nesterov=1", "has an option 'nesterov' with the default 1; allowed: one like False"),
    ],
)
def test_an_option_that_train_holds_for_something_else_is_refused(catalogue, file, option, sentence):
    source = SIGNS.replace("beta=0.9", f"beta=0.9, {option}").replace("*, beta:", f"*, beta, {option.split('=')[0]}:")
    load_optimizers([file(source)])
    with pytest.raises(InputError, match=sentence):
        parsed()


def test_a_worker_gets_the_source_and_a_later_reading_asks_for_the_file_again(catalogue, file, tmp_path, monkeypatch):
    plugins = load_optimizers([file()])
    study = parse_study(study_text(more='optimizer = "signs"', seeds=2), "t.toml", "t")
    with executor_of("processes:1", "cpu", plugins) as executor:
        run_dir = run(study, "cpu", executor, tmp_path / "run")
    statuses = {group["status"] for group in json.loads((run_dir / "manifest.json").read_text())["groups"]}
    assert statuses == {"finished"}
    monkeypatch.delitem(optimizer._variants, "signs")
    with pytest.raises(InputError, match=r"unknown optimizer 'signs'.*is named by --optimizer"):
        load_results(run_dir)
    load_optimizers([file()])
    assert load_results(run_dir).study.hash == study.hash


@pytest.mark.parametrize("verb", ["plan", "run", "power"])
def test_the_command_line_asks_for_the_file_and_takes_it(verb, file, tmp_path, monkeypatch, one_core):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(study_text(more='optimizer = "signs"'))
    refused = call(verb, "own.toml")
    assert (refused.code, "--optimizer" in refused.err) == (2, True), refused.err
    if verb == "plan":
        assert call(verb, "own.toml", "--optimizer", file()).code == 0
    unused = call(
        verb, "own.toml", "--optimizer", file(), "--optimizer", file(edited("def signs", "def other"), "o.py")
    )
    assert unused.code == 2
    assert "--optimizer" in unused.err
    assert "trains with no optimizer 'other'" in " ".join(unused.err.split())


# --- files that cannot be used ------------------------------------------------------------------------------------


def edited(old: str, new: str) -> str:
    assert old in SIGNS
    return SIGNS.replace(old, new)


BROKEN = {
    "no name": ("x = 1\n", r"defines no optimizer; decorate a function with @stability\.optimizer\(\.\.\.\)"),
    "syntax": ("def f(:\n", "line 1: invalid syntax"),
    "import": ("import nowhere_at_all\n", "line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "raising at import": (SIGNS + "1 / 0\n", "line 17: ZeroDivisionError: division by zero"),
    "exit": (SIGNS + "raise SystemExit(0)\n", "line 17: SystemExit: 0"),
    "name of another": (edited("def signs", "def adamw"), "optimizer 'adamw' exists already; give yours another name"),
    "unknown trait": (edited("bounded_step", "bounded"), "has no trait 'bounded'; did you mean 'bounded_step'"),
    "missing trait": (edited('    decay="decoupled",\n', ""), "optimizer 'signs' does not declare the trait 'decay'"),
    "decay": (edited('"decoupled"', '"decoupeld"'), "decay='decoupeld'; allowed: 'decoupled', 'in_grad', 'own'"),
    "buffers": (edited('("mean",)', '"mean"'), r"buffers='mean'; allowed: a tuple of names, as \('first',\)"),
    "same buffers": (edited('("mean",)', '("mean", "mean")'), "allowed: names that differ"),
    "widths": (edited('("mean",)', 'lambda layout: {"mean": 1.5}'), r"its buffers are \{'mean': 1\.5\}; allowed:"),
    "describe": (
        edited("lambda *, beta: f", "f").replace("{beta:g}", "0.9"),
        "describe='sign descent .*allowed: a fun",
    ),
    "words": (edited('f"sign descent with momentum {beta:g}"', "None"), "describe returns None; allowed: a text"),
    "words without options": (edited("lambda *, beta: ", "lambda: ").replace("{beta:g}", "0.9"), "can't be called: Ty"),
    "threshold": (edited("bounded_step=True", "stability_threshold=lambda *, beta: -1"), "returns -1; allowed: a pos"),
    "flag": (edited("bounded_step=True", "bounded_step=1"), "bounded_step=1; allowed: True or False"),
    "no default": (edited("beta=0.9", "beta"), "'beta' has no default; give it one, or use one of the reserved names"),
    "default": (edited("beta=0.9", "beta=None"), "option 'beta' has the default None; allowed: a number, a text"),
    "signature": (edited("grad, buffers, count,", "grad, buffers,"), "can't be called: TypeError: signs"),
    "unknown buffer": (edited('buffers["mean"]', 'buffers["men"]'), "can't be called: KeyError: 'men'"),
    "no direction": (
        edited("return mean.sign().neg_()", "pass"),
        "it returns a value of type NoneType; allowed: a ten",
    ),
    "shape": (
        edited("sign().neg_()", "sum(-1)"),
        r"direction of shape \(5,\) for gradients of shape \(5, 112\); allow",
    ),
    "dtype": (edited("sign().neg_()", "double()"), "it returns float64 for gradients of float32; make new tensors"),
    "NaN": (edited("neg_()", "mul(float('nan'))"), "its first direction is not finite"),
    "raising": (edited("    mean.mul_", '    raise OSError("no")\n    mean.mul_'), "can't be called: OSError: no"),
    "leaving": (edited("    mean.mul_", "    raise SystemExit(3)\n    mean.mul_"), "can't be called: SystemExit: 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_used_is_one_sentence(catalogue, file, case):
    source, sentence = BROKEN[case]
    with pytest.raises(InputError, match=rf"my_optimizer\.py: .*{sentence}") as caught:
        load_optimizers([file(source)])
    assert "\n" not in str(caught.value)


def test_a_name_that_the_file_does_not_have_gets_the_nearest(catalogue, file):
    with pytest.raises(InputError, match="defines no optimizer 'sign'; did you mean 'signs'"):
        load_plugin(read_plugin(file() + ":sign", "optimizer"))


# --- property by property -----------------------------------------------------------------------------------------


def test_check_knows_an_optimizer_by_file_and_by_name_and_both_kinds_of_one_file(file):
    sound = call("check", file())
    assert sound.code == 0, sound.err
    assert "weight decay" in sound.out
    assert call("check", "sgd").code == 0
    both = call("check", file(SIGNS + LOSS))
    assert both.code == 0, both.err
    assert "optimizer signs" in both.out
    assert "loss squared" in both.out
    wrong = call("check", file(edited("sign().neg_()", "neg().div_(mean.norm())")))
    assert wrong.code == 1, wrong.out
    assert "required properties fail: replicas" in wrong.err
    for source in ("x = 1\n", "def f(:\n"):
        refused = call("check", file(source))
        assert (refused.code, "Traceback" in refused.err) == (2, False)
    refused = call("check", file() + ":sign")
    assert "defines no loss or optimizer 'sign'; did you mean 'signs'?" in " ".join(refused.err.split())
    assert call("check", "lyon").code == 2


@pytest.mark.parametrize("name", sorted(optimizer))
def test_every_optimizer_has_every_property(name):
    validate_optimizer(optimizer[name])
    assert [result for result in check(optimizer[name]) if not result.passed] == []


def made(function, buffers=("mean",), decay="decoupled", **traits) -> Variant:
    registry = Registry("optimizer", OptimizerTraits)
    registry(buffers=buffers, decay=decay, **{"describe": lambda: "Words"} | traits)(function)
    return next(iter(registry.values()))


def failed(variant: Variant) -> dict[str, str]:
    return {result.property: result.reason for result in check(variant) if result.required and not result.passed}


def plain(grad, buffers, count):
    return buffers["mean"].lerp_(grad, 0.1).neg()


def test_a_sound_optimizer_fails_nothing():
    assert not failed(made(plain))


def constant(grad, buffers, count):
    buffers["mean"].add_(1.0)
    return buffers["mean"] * (grad * 0 + 1) * 0


def late(grad, buffers, count):
    return plain(grad, buffers, count) / (3 - count)


def converting(grad, buffers, count):
    return plain(grad, buffers, count).float()


def replacing(grad, buffers, count):
    buffers["mean"] = 0.9 * buffers["mean"] + grad
    return -buffers["mean"]


def adding(grad, buffers, count):
    buffers["more"] = grad.clone()
    return plain(grad, buffers, count)


def idle(grad, buffers, count):
    return -0.9 * buffers["mean"] - grad


def editing(grad, buffers, count):
    grad.mul_(0.5)
    return plain(grad, buffers, count)


def counting(grad, buffers, count):
    count.add_(1)
    return plain(grad, buffers, count)


def aliased(grad, buffers, count):
    return buffers["mean"].sub_(grad)


def random(grad, buffers, count):
    return plain(grad, buffers, count) * torch.rand(())


def averaging(grad, buffers, count):
    return plain(grad, buffers, count) - grad.mean(0)


def summing(grad, buffers, count):
    return plain(grad, buffers, count) / grad.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-8)


def dividing(grad, buffers, count):
    return plain(grad, buffers, count) / grad.abs().amax(1, keepdim=True)


def drifting(grad, buffers, count):
    return plain(grad, buffers, count) - 0.01


def decaying(grad, buffers, count, *, params, layout):
    direction = plain(grad, buffers, count)
    for segment in layout:
        segment.of(direction).sub_(segment.of(params), alpha=segment.decay)
    return direction


def reading(grad, buffers, count):
    return plain(grad, buffers, count) / count.item()


def listing(grad, buffers, count):
    return plain(grad, buffers, count) * (1 if grad.tolist() else 2)


def selecting(grad, buffers, count):
    kept = grad[grad > 0]
    return plain(grad, buffers, count) + 0 * kept.numel()


def branching(grad, buffers, count):
    return plain(grad, buffers, count) if count < 3 else 2 * plain(grad, buffers, count)


def ones(buffers, steps):
    return torch.ones_like(buffers["mean"])


FLAWED = [
    (made(constant), "float32", "they do not depend on the gradient"),
    (made(late), "float32", "the direction of step 3 is not finite"),
    (made(converting), "float64", "it returns float32 for gradients of float64"),
    (made(replacing), "buffers", "it replaces the buffer 'mean'; update it in place"),
    (made(adding), "buffers", "it adds the buffer 'more', which it does not declare"),
    (made(idle), "buffers", "the buffer 'mean' never changes"),
    (made(editing), "inputs kept", "it edits grad in place"),
    (made(counting), "inputs kept", "it edits count in place"),
    (made(aliased), "inputs kept", "the direction is the buffer 'mean' itself"),
    (made(random), "deterministic", "it may draw no random numbers"),
    (made(averaging), "replicas", "nothing may be reduced over replicas"),
    (made(averaging), "extreme replica", "a replica with a zero gradient changes the others"),
    (made(dividing), "extreme replica", "gets a direction that is not finite; guard the division"),
    (made(drifting), "at rest", "'text.frozen' is not trained, has no gradient and no decay, and moves"),
    (made(decaying), "weight decay", 'declared decay="decoupled", which the trainer adds, but it uses'),
    (made(plain, decay="own"), "weight decay", "but Segment.decay changes nothing; request params and layout"),
    (made(reading), "host reads", "the value of a tensor (.item(), float() or an if)"),
    (made(branching), "host reads", "the value of a tensor"),
    (made(listing), "host reads", "a whole tensor (.tolist())"),
    (made(selecting), "host reads", "numbers selected by a mask"),
    (made(plain, preconditioner=lambda buffers, steps: ones(buffers, steps)[0]), "preconditioner", "(112,); allowed"),
    (made(plain, preconditioner=lambda buffers, steps: buffers["mean"]), "preconditioner", "not positive and finite"),
    (made(plain, preconditioner=lambda buffers, steps: buffers["mean"].add_(9)), "preconditioner", "edits the buffers"),
]


@pytest.mark.parametrize(("variant", "which", "reason"), FLAWED, ids=[f"{case[0].name} {case[1]}" for case in FLAWED])
def test_a_flaw_fails_its_property_and_says_why(variant, which, reason):
    assert reason in failed(variant)[which]


def test_sums_over_parameters_that_depend_on_the_number_of_replicas_are_found():
    torch.set_num_threads(2)
    try:
        reasons = failed(made(summing))
    finally:
        torch.set_num_threads(1)
    assert not reasons or "stability.optimizers.reproducible" in reasons["replicas"]


def test_what_is_only_reported():
    reasons = {
        result.property: result for result in check(made(lambda grad, buffers, count: plain(grad, buffers, 1).neg()))
    }
    assert not reasons["descent"].passed
    bounded = {result.property: result for result in check(made(plain, bounded_step=True))}["bounded step"]
    assert not bounded.passed
    assert bounded.reason.startswith("declared bounded; under gradients that grow tenfold")


def test_an_optimizer_that_raises_fails_with_its_own_message():
    def raising(grad, buffers, count):
        raise KeyError("no such key")

    results = {result.property: result for result in check(made(raising))}
    assert results["float32"].reason == "KeyError: 'no such key'"
    assert results["words"].passed
    assert math.isfinite(len(results))
