"""Assay sensitivity: an equivalence counts only where the same analysis finds a difference that was planted."""

import json
from dataclasses import replace

import numpy as np
import pytest
from closed_form_results import STUDY, curves

from stability import load_results, run
from stability.analysis import analyze, findings_text
from stability.grid import runs_of
from stability.registry import InputError
from stability.report.data import ReportData
from stability.report.model import answers
from stability.study import load_study, parse_study
from tests.report_blocks import texts_of

LEVEL = """
[[claims]]
id = "level"
text = "SigLIP's gradients are less noisy"
measure = "gradient_noise_fraction"
contrast = "ratio"
compare = ["siglip", "clip"]
expect = "{expect}"
margin = 0.1
"""
CONTROL = """
[[controls]]
id = "bias"
arm = "siglip-log-b"
against = "siglip"
measures = ["gradient_noise_fraction"]
"""


def study_of(*parts, expect="lower"):
    text = STUDY.format(title="Controls", probes="[probes.gradient_noise]\nevery = 20\nbatches = 4")
    return parse_study(text + LEVEL.format(expect=expect) + "".join(parts), "t.toml", "t")


def made_of(study, factors, sd=0.01, seed=5):
    """Return results in which each arm's noise fraction is its factor, nearly."""
    made = curves(study)
    trace, second = study.measures["gradient_noise_fraction"].pooled
    rng = np.random.default_rng(seed)
    arms = made.runs.set_index("run")["arm"]
    value = {run_id: 0.1 * factors[arm] * rng.lognormal(0, sd) for run_id, arm in arms.items()}
    return replace(made, steps=made.steps.assign(**{second: 1.0, trace: made.steps["run"].map(value)}))


FOUND = {"clip": 1.0, "siglip": 1.0, "siglip-log-b": 1.5}
MISSED = {"clip": 1.0, "siglip": 1.0, "siglip-log-b": 1.02}


@pytest.mark.parametrize(
    ("factors", "keys", "expect", "verdict", "assay"),
    [
        (FOUND, "", "lower", "equivalent", "shown"),
        (FOUND, "", "equal", "supported", "shown"),
        (FOUND, 'expect = "higher"', "lower", "equivalent", "shown"),
        (FOUND, 'expect = "lower"', "lower", "not-testable", "insensitive"),
        (MISSED, "", "lower", "not-testable", "insensitive"),
        (MISSED, "", "equal", "not-testable", "insensitive"),
        (MISSED | {"clip": 2.0, "siglip": 1.0}, "", "lower", "supported", ""),  # a direction needs no control
    ],
)
def test_an_equivalence_needs_a_control_that_is_found(factors, keys, expect, verdict, assay):
    study = study_of(CONTROL + keys, expect=expect)
    made = made_of(study, factors)
    finding = analyze(made, checks=False).claims[2]
    assert (finding.verdict, finding.assay_sensitivity) == (verdict, assay)
    (control,) = finding.controls
    assert control.found == (assay == "shown")
    assert control.effect == pytest.approx(factors["siglip-log-b"] / factors["siglip"], rel=0.02)
    assert control.cells == 4
    if assay == "insensitive":
        assert finding.sentence.startswith("Not testable: insensitive: the control bias (siglip-log-b against siglip: ")
    assert not analyze(made, checks=False).claims[0].controls  # of another measure


def test_an_equivalence_without_a_control_keeps_its_word_and_says_so():
    study = study_of()
    made = made_of(study, FOUND)
    findings = analyze(made, checks=False)
    finding = findings.claims[2]
    assert (finding.verdict, finding.assay_sensitivity, finding.controls) == ("equivalent", "not shown", ())
    assert answers(ReportData(made, findings))[2]["assay"].startswith("Sensitivity not shown")
    written = json.loads(findings_text(findings))["claims"]
    assert written[2]["assay_sensitivity"] == "not shown"
    assert "controls" not in written[2]
    assert len(written[2]["cells"]) == 4


def test_the_report_has_a_table_of_controls_and_a_line_under_the_equivalence():
    study = study_of(CONTROL)
    made = made_of(study, FOUND)
    findings = analyze(made, checks=False)
    assert answers(ReportData(made, findings))[2]["assay"].startswith("Sensitivity shown: bias (siglip-log-b")
    assert "by 4 of 4 cells alone" in answers(ReportData(made, findings))[2]["assay"]
    assert texts_of("controls", made, findings) is not None
    assert json.loads(findings_text(findings))["claims"][2]["controls"][0]["found"] is True


def test_a_control_does_not_change_which_runs_there_are_and_is_part_of_the_study():
    plain, planted = study_of(), study_of(CONTROL)
    assert [one.id for one in runs_of(plain)] == [one.id for one in runs_of(planted)]
    assert plain.hash != planted.hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ('arm = "siglip-log-b"', 'arm = "siglip-log"'),
            "controls[0].arm: 'siglip-log' is not in grid.arms; did you mean 'siglip-log-b'?",
        ),
        (('against = "siglip"', 'against = "sigclip"'), "controls[0].against: 'sigclip' is not in grid.arms"),
        (('arm = "siglip-log-b"', 'arm = "siglip"'), "controls[0].arm: 'siglip' is `against` itself"),
        (('["gradient_noise_fraction"]', '["loss"]'), "controls[0].measures[0]: no claim that compares two arms uses"),
        (('["gradient_noise_fraction"]', "[]"), "controls[0].measures: got []; allowed: 'all', or a list of names"),
        (('id = "bias"', 'id = "bias"\nexpect = "equal"'), "controls[0].expect: got 'equal'; allowed: "),
        (('id = "bias"', 'id = "bias"\nmeasure = "loss"'), "controls[0].measure: unknown key"),
    ],
)
def test_a_control_that_plants_nothing_is_refused(change, words):
    with pytest.raises(InputError) as error:
        study_of(CONTROL.replace(*change))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_controls_have_ids_of_their_own_and_arms_that_are_trained_otherwise():
    with pytest.raises(InputError, match="is the id of two controls"):
        study_of(CONTROL, CONTROL)
    text = STUDY.format(title="x", probes="").replace('bias = "-log B"', 'rng_stream = "own"')
    with pytest.raises(InputError, match="is trained as 'siglip' is, so nothing is planted"):
        parse_study(text + CONTROL.replace('["gradient_noise_fraction"]', '"all"'), "t.toml", "t")


def test_an_insensitive_measure_is_never_called_equivalent_where_there_is_a_control():
    # The measure moves in no arm: whatever is equal here, a difference would have looked the same.
    study = study_of(CONTROL)
    words = []
    for seed in range(8):
        made = made_of(study, dict.fromkeys(FOUND, 1.0), sd=0.03, seed=seed)
        words.append(analyze(made, checks=False).claims[2].verdict)
    assert "equivalent" not in words
    assert words.count("not-testable") >= 6


# --- half the rate ---------------------------------------------------------------------------------------------------

HALF = """
title = "Half the rate"
question = "Is SigLIP's recall as good as CLIP's, where half the rate is seen?"

[data]
name = "latent"
pairs = 300

[model]
image = { name = "mlp", width = 8 }
text = { name = "mlp", width = 8 }
embed_dim = 4

[train]
steps = 12

[arms.clip-half-rate]
loss = "clip"
train = { lr_multiplier = 0.5 }

[grid]
arms = ["clip", "siglip", "clip-half-rate"]
batch_size = [16]
lr = [0.01]
seeds = 3

[probes.retrieval]
every = 4

[[claims]]
id = "recall"
primary = true
text = "SigLIP retrieves as well as CLIP"
measure = "recall_at_1"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "equal"
margin = 0.5
transform = "linear"

[[controls]]
id = "half-rate"
arm = "clip-half-rate"
against = "clip"
expect = "lower"
"""


def test_a_study_with_a_control_runs_and_half_the_rate_is_half_the_rate(tmp_path):
    halved = HALF.replace("lr = [0.01]", "lr = [0.005]").replace("train = { lr_multiplier = 0.5 }", 'rng_stream = ""')
    halved = halved.partition("[[controls]]")[0]
    (tmp_path / "half.toml").write_text(HALF)
    (tmp_path / "halved.toml").write_text(halved)
    ours = load_results(run(str(tmp_path / "half.toml"), device="cpu", out=tmp_path / "a"))
    other = load_results(run(str(tmp_path / "halved.toml"), device="cpu", out=tmp_path / "b"))

    def losses(results, arm):
        runs = results.runs[results.runs["arm"] == arm].sort_values("seed")["run"]
        return np.stack([results.steps.loc[results.steps["run"] == name, "loss"].to_numpy() for name in runs])

    np.testing.assert_array_equal(losses(ours, "clip-half-rate"), losses(other, "clip"))
    finding = analyze(ours).claims[0]
    assert finding.controls[0].id == "half-rate"
    assert finding.assay_sensitivity in ("insensitive", "")  # 12 steps plant nothing that a margin of .5 would show


def test_a_multiplied_rate_is_part_of_an_identity_only_if_it_is_set_and_is_not_searched(tmp_path):
    path = tmp_path / "half.toml"
    path.write_text(HALF)
    plain = HALF.replace("train = { lr_multiplier = 0.5 }", "").partition("[[controls]]")[0]
    ids = {each.arm: each.id for each in runs_of(load_study(path)) if each.seed == 0}
    (tmp_path / "plain.toml").write_text(plain)
    without = {each.arm: each.id for each in runs_of(load_study(tmp_path / "plain.toml")) if each.seed == 0}
    assert ids["clip"] == without["clip"]
    assert ids["clip-half-rate"] != without["clip-half-rate"]
    one = plain.replace("[arms.clip-half-rate]\n", "[arms.clip-half-rate]\ntrain = { lr_multiplier = 1.0 }\n")
    assert {each.arm: each.id for each in runs_of(parse_study(one, "t", "t")) if each.seed == 0} == without
    with pytest.raises(InputError, match=r"arms.clip-half-rate.train.lr_multiplier: got 0.5, which .tune. would undo"):
        parse_study(HALF + "\n[tune]\nlr = [0.01, 0.03]\nseeds = 1\n", "t", "t")
