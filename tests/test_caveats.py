"""What the cells of a claim say against its mean, and equalities that had nothing to judge."""

from dataclasses import replace

import numpy as np
import pytest
from closed_form_results import STUDY, curves
from numpy.testing import assert_allclose

from stability import stats
from stability.analysis import analyze
from stability.analysis.cells import cells_in_words, heterogeneity_of
from stability.report.caveats import caveats_of, coarse
from stability.report.data import ReportData
from stability.report.model import answers
from stability.report.tables import signs
from stability.stats.wording import percent
from stability.study import parse_study
from tests.report_blocks import texts_of

LEVEL = """
[[claims]]
id = "level"
text = "SigLIP's gradients are less noisy"
measure = "gradient_noise_fraction"
contrast = "ratio"
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.1
"""
SPIKES = """
[[claims]]
id = "spikes"
text = "SigLIP spikes less"
measure = "spike_rate_loss"
contrast = "difference"
transform = "linear"
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.5
"""


def study_of(claims):
    text = STUDY.format(title="Doubts", probes="[probes.gradient_noise]\nevery = 20\nbatches = 4")
    return parse_study(text + claims, "t.toml", "t")


def made_of(study, factor):
    """Return results in which siglip's noise fraction is *factor* of (batch size, noise) times clip's, nearly."""
    made = curves(study)
    trace, second = study.measures["gradient_noise_fraction"].pooled
    runs = made.runs.set_index("run")
    rng = np.random.default_rng(5)
    value = {
        run: 0.1 * rng.lognormal(0, 0.01) * (factor(row.batch_size, row.noise) if row.arm == "siglip" else 1)
        for run, row in runs.iterrows()
    }
    return replace(made, steps=made.steps.assign(**{second: 1.0, trace: made.steps["run"].map(value)}))


def test_the_effect_in_a_cell_is_the_paired_ratio_of_its_runs_at_a_confidence_shared_by_the_cells():
    study = study_of(LEVEL)
    made = made_of(study, lambda size, noise: 1 + 0.1 * (noise > 0) + 0.02 * (size == 16))
    found = analyze(made, checks=False).claims[2].cells
    assert [cell.name for cell in found] == [
        f"batch size {size}, noise {noise}" for size in (8, 16) for noise in ("0", "0.4")
    ]
    runs = made.runs[(made.runs["batch_size"] == 16) & (made.runs["noise"] == 0.4)].sort_values("seed")
    late = made.steps.groupby("run")[study.measures["gradient_noise_fraction"].pooled[0]].last()
    own, other = (late[runs.loc[runs["arm"] == arm, "run"]].to_numpy() for arm in ("siglip", "clip"))
    by_hand = stats.log_ratio(own, other, confidence=1 - 0.05 / 3)  # three claims
    together = stats.log_ratio(own, other, confidence=1 - 0.05 / 3 / 4)
    assert_allclose([found[3].effect, *found[3].interval], [by_hand.effect, *together.interval])
    assert_allclose(found[3].equivalence_interval, by_hand.equivalence_interval)
    assert found[3].levels == (("batch size", "batch size 16"), ("noise", "noise 0.4"))


@pytest.mark.parametrize(
    ("factor", "how"),
    [
        (lambda size, noise: 1.3 if noise else 0.8, "turns"),
        (lambda size, noise: 1.5 if noise else 1.2, "differs"),
        (lambda size, noise: 1.24 if noise else 1.2, None),  # apart, but by less than the margin
        (lambda size, noise: 1.2, None),
    ],
)
def test_cells_are_apart_where_the_effect_turns_or_differs_by_more_than_the_margin(factor, how):
    study = study_of(LEVEL)
    made = made_of(study, factor)
    findings = analyze(made, checks=False)
    found = caveats_of(made, findings).heterogeneity.get("level")
    assert (found and found.how) == how
    answer = answers(ReportData(made, findings))[2]
    said = texts_of("limitations", made, findings)
    assert answer["turns"] == (how == "turns")
    assert bool(answer["uneven"]) == (how == "turns")  # that it only differs is said of the primary claim
    primary = replace(findings, claims=tuple(replace(c, primary=True) for c in findings.claims))
    assert bool(answers(ReportData(made, primary))[2]["uneven"]) == (how is not None)
    assert ("Opposite signs between cells" in said) == (how == "turns")
    assert ("Heterogeneous effect between cells" in said) == (how == "differs")
    if how:
        assert signs(found.sentence) in next(
            text for text in said.values() if "SigLIP's gradients" in text and "%" in text
        )


def test_of_many_cells_the_two_furthest_apart_are_named_and_the_others_counted():
    cells = [stats.CellEffect(f"noise {n}", (), 1 + n / 10, (0.98 + n / 10, 1.02 + n / 10)) for n in range(6)]
    found = heterogeneity_of(cells, True, 0.2)
    assert found.how == "differs"
    assert found.sentence == (
        "from 0% (0.98 to 1.02) at noise 0 to +50% (1.48 to 1.52) at noise 5; of 6 cells, 5 above 1"
    )
    assert cells_in_words(cells, True) == found.sentence
    assert heterogeneity_of(cells[:1], True, 0.2) is None
    assert heterogeneity_of([], True, 0.2) is None


@pytest.mark.parametrize(
    ("rates", "title"),
    [
        ((0.0, 0.0), "Nothing happened"),
        ((0.1, 0.3), "A margin wider than what it judges"),
        ((2.0, 2.0), None),
    ],
)
def test_equal_sides_that_are_smaller_than_the_margin_are_a_limitation(rates, title):
    study = study_of(SPIKES.replace("spike_rate_loss", "recall_at_1"))
    made = curves(study)
    rate = dict(zip(("siglip", "clip"), rates, strict=True))
    arm = made.runs.set_index("run")["arm"]
    steps = made.steps.assign(recall_at_1=made.steps["run"].map(arm).map(rate).fillna(0.5))
    made = replace(made, steps=steps)
    findings = analyze(made, checks=False)
    assert findings.claims[2].verdict == "equivalent"
    found = caveats_of(made, findings).idle.get("spikes")
    assert (found and found[0]) == title
    assert answers(ReportData(made, findings))[2]["idle"] == (found and found[1])
    limits = texts_of("limitations", made, findings)
    assert [name for name, text in limits.items() if "SigLIP spikes less" in text] == [title] * bool(title)


def test_steps_that_are_counted_in_strides_longer_than_the_margin_are_a_limitation():
    study = study_of(LEVEL)  # its second claim counts steps; recall is measured every 10 of them
    made = curves(study)
    findings = analyze(made, checks=False)
    said = dict(coarse(made, findings))["Coarse time resolution"]
    assert "every 10 steps" in said
    assert f"margin of {percent(0.1)}." in said
    wide = [claim.model_copy(update={"margin": 1.5}) for claim in study.claims]
    assert not dict(coarse(replace(made, study=study.model_copy(update={"claims": tuple(wide)})), findings))


def test_the_method_says_what_a_claim_takes_of_a_run_and_along_what():
    study = study_of(LEVEL)
    made = curves(study)
    told = texts_of("method", made, analyze(made, checks=False))
    late = "the mean over the last fifth of a run's steps"
    assert (
        f"Measure: Recall@1, {late}, as a logarithm above chance; contrast slope over noise" in told["The claim slope"]
    )
    assert "contrast time_to_threshold at 0.2" in told["The claim speed"]
    assert f"(towers), {late}; contrast ratio, expected" in told["The claim level"]
    assert "intersection-union test" in told["Cells"]
