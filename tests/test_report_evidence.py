import json

import pytest

from stability.registry import InputError
from stability.report import publish
from stability.report.evidence import answer, coverage, entries, steadier
from stability.study import shipped_studies

CLAIM = {
    "id": "c",
    "primary": True,
    "text": "SigLIP <b>is</b> steadier",
    "source": "a page: 'steadier'",
    "measure": "gradient_noise_fraction",
    "contrast": "difference",
    "compare": ["siglip", "clip"],
    "verdict": "supported",
    "sentence": "Supported: it is lower.",
    "method": "paired t",
    "assumptions": "none",
    "effect": 0.8,
    "interval": [0.7, 0.9],
    "margin": 0.1,
    "ratio": True,
    "n_pairs": 8,
    "p_value": 0.001,
    "p_adjusted": 0.001,
    "seeds_to_settle": None,
}


def published(reports, name, study_text="", looks=None, finished=4, replications=(), agreement=None, **claim):
    folder = reports / name
    folder.mkdir(parents=True)
    origin = {"planned": 4, "finished": finished, "failed": 0, "seeds": 2, "device": {"model": "chip"}}
    found = {"study": name, "scale": "small", "provenance": origin, "claims": [CLAIM | claim], "looks": looks or {}}
    found |= {"replications": list(replications), "agreement": agreement or {}}
    (folder / "findings.json").write_text(json.dumps(found))
    (folder / "report.json").write_text(json.dumps({"study_text": study_text}))


def leanings(reports):
    return {entry["study"]: entry["leaning"] for entry in entries(reports)}


@pytest.mark.parametrize(
    ("measure", "contrast", "effect", "ratio", "expected"),
    [
        ("gradient_noise_fraction", "difference", 0.8, True, "siglip"),
        ("gradient_noise_fraction_scalars", "ratio", 1.2, True, "clip"),
        ("recall_at_1", "slope", 0.2, False, "siglip"),
        ("recall_at_1", "difference", -0.2, False, "clip"),
        ("recall_at_1", "spread", 0.5, True, "siglip"),
        ("recall_at_1", "time_to_threshold", 1.7, True, "clip"),
        ("loss", "divergence", -0.2, False, "siglip"),
        ("loss_spike_rate", "difference", 3.0, False, "clip"),
        ("zero_shot_accuracy", "difference", 0.1, False, "siglip"),
        ("zero_shot_accuracy", "difference", 0.0, False, ""),
        ("zero_shot_accuracy", "difference", None, False, ""),
        ("hard_negative_accuracy", "difference", 0.1, False, "siglip"),
        ("modality_gap", "difference", 0.1, False, None),
        ("step_milliseconds", "difference", 0.9, True, None),
        ("loss", "difference", -0.1, False, None),
    ],
)
def test_which_loss_is_steadier_follows_from_measure_contrast_and_sign(measure, contrast, effect, ratio, expected):
    claim = CLAIM | {"measure": measure, "contrast": contrast, "effect": effect, "ratio": ratio}
    assert steadier(claim, {}) == expected
    turned = {"siglip": "clip", "clip": "siglip"}.get(expected, expected)
    assert steadier(claim | {"compare": ["clip", "siglip"]}, {}) == turned


@pytest.mark.parametrize(
    ("how", "axis", "expected"),
    [
        ("lr_sensitivity", "lr", "siglip"),
        ("slope", "noise", "clip"),
        ("slope", "train_pairs", None),
        ("interaction", "batch_size", None),
    ],
)
def test_what_a_claim_goes_over_decides_whether_it_speaks_of_stability(how, axis, expected):
    claim = CLAIM | {"measure": "recall_at_1", "contrast": how, "effect": -0.1, "ratio": False}
    assert steadier(claim, {}, axis) == expected


def test_an_arm_counts_as_its_loss_and_other_losses_are_off_the_subject():
    claim = CLAIM | {"compare": ["cool", "clip"]}
    assert steadier(claim, {"cool": "siglip"}) == "siglip"
    assert steadier(claim, {"cool": "tsallis"}) is None
    assert steadier(CLAIM | {"compare": ["siglip", "siglip-log-b"]}, {"siglip-log-b": "siglip"}) is None


def test_p_values_are_adjusted_over_primary_claims_by_benjamini_and_hochberg(tmp_path):
    for name, p in (("a", 0.01), ("b", 0.03), ("c", 0.04), ("d", 0.9)):
        published(tmp_path, name, p_value=p)
    published(tmp_path, "e", p_value=None, verdict="not-testable")
    # Of 5 claims (the one that could not be tested counts as 1): p_(i) 5 / i, made monotone from the right.
    assert [entry["p_adjusted"] for entry in entries(tmp_path)] == ["0.05", "0.0667", "0.0667", "1", None]
    assert leanings(tmp_path) == {"a": "siglip", "b": "open", "c": "open", "d": "open", "e": "open"}


def test_registered_looks_multiply_the_p_value(tmp_path):
    published(tmp_path, "a", p_value=0.02, looks={"seeds": [4, 8, 16]})
    assert entries(tmp_path)[0]["p_adjusted"] == "0.06"


def test_verdicts_lean_as_the_rule_says(tmp_path):
    published(tmp_path, "lower")
    published(tmp_path, "higher", verdict="contradicted", effect=1.4)
    published(tmp_path, "same", verdict="equivalent", p_value=0.8, assay_sensitivity="shown")
    published(tmp_path, "alike", verdict="supported", expect="equal", assay_sensitivity="shown")
    published(tmp_path, "unshown", verdict="equivalent", assay_sensitivity="not shown")
    published(tmp_path, "old", verdict="equivalent")
    published(tmp_path, "depends", verdict="mixed", depends_on="noise")
    published(tmp_path, "unclear", verdict="inconclusive")
    published(tmp_path, "running", finished=3)
    published(tmp_path, "other", compare=["tsallis", "clip"])
    published(tmp_path, "arm", '[arms.cool]\nloss = "siglip"\n', compare=["cool", "clip"])
    expected = {"lower": "siglip", "higher": "clip", "same": "equal", "unclear": "open", "running": "open"}
    expected |= {"alike": "equal", "unshown": "unshown", "old": "unshown", "depends": "mixed"}
    assert leanings(tmp_path) == expected | {"other": "", "arm": "siglip"}
    said = answer(entries(tmp_path))
    assert "1 depends on a setting (depends on the noise)" in said
    assert "2 are equal with no sensitivity shown (old, unshown)" in said


@pytest.mark.parametrize(
    ("words", "head"),
    [
        ((), "Not asked yet"),
        (("", ""), "Not asked yet"),
        (("siglip",), "Yes."),
        (("siglip", "open"), "As far as it is decided, yes."),
        (("clip", "clip"), "No, CLIP is the steadier one."),
        (("clip", "equal"), "As far as it is decided, no, CLIP is the steadier one."),
        (("clip", "siglip", "open"), "It depends on what is asked."),
        (("siglip", "turned"), "It depends on the data."),
        (("siglip", "clip", "turned"), "It depends on what is asked and on the data."),
        (("equal", "unshown"), "No difference that matters is shown."),
        (("siglip", "unshown"), "As far as it is decided, yes."),
        (("unshown",), "Not decided."),
        (("siglip", "mixed"), "It depends on the setting."),
        (("clip", "siglip", "mixed"), "It depends on what is asked and on the setting."),
        (("mixed", "turned"), "It depends on the setting and on the data."),
        (("equal",), "No: they are equal within the margins."),
        (("equal", "open"), "No difference that matters is shown."),
        (("open",), "Not decided."),
    ],
)
def test_the_answer_is_drawn_from_the_leanings(words, head):
    found = [{"leaning": word, "study": f"study-{place}"} for place, word in enumerate(words)]
    said = answer(found)
    assert said.startswith(head)
    for entry in found:
        assert (entry["study"] in said) == bool(entry["leaning"])


def test_the_page_says_answer_rule_and_every_claim(tmp_path):
    published(tmp_path, "lower")
    text = publish([], tmp_path).read_text()
    for words in (
        "Yes. The one primary claim",
        "How this answer is made",
        "a page: &#39;steadier&#39;",
        "0.8×",
        "SigLIP",
    ):
        assert words in text
    assert "<b>is</b>" not in text


def test_the_page_counts_shipped_studies_without_a_report_and_links_html_and_pdf(tmp_path):
    published(tmp_path, "quickstart")
    published(tmp_path, "own")
    (tmp_path / "quickstart" / "report.pdf").write_bytes(b"%PDF")
    text, shipped = publish([], tmp_path).read_text(), shipped_studies()
    assert f"1 of {len(shipped)} shipped studies has a report. None yet: " in text
    assert coverage(entries(tmp_path), shipped)["missing"] == sorted(set(shipped) - {"quickstart"})
    assert 'href="quickstart/index.html"' in text
    assert 'href="quickstart/report.pdf"' in text
    assert 'href="own/report.pdf"' not in text


def test_a_tiny_p_value_is_told_as_tiny(tmp_path):
    published(tmp_path, "a", p_value=1e-12)
    assert entries(tmp_path)[0]["p_adjusted"] == "< 0.0001"


def test_broken_findings_are_named(tmp_path):
    published(tmp_path, "a")
    (tmp_path / "a" / "findings.json").write_text("{}")
    with pytest.raises(InputError, match=r"a/findings\.json: not the findings of a report"):
        entries(tmp_path)


def asked_again(verdict, other_data=True, missing=""):
    claims = [] if missing else [{"id": "c", "verdict": verdict}]
    return {"name": "digits", "other_data": other_data, "missing": missing, "claims": claims}


def test_the_ledger_says_which_decided_claims_hold_on_one_data_set_only(tmp_path):
    published(tmp_path, "both", replications=[asked_again("inconclusive"), asked_again("supported")])
    published(tmp_path, "one", replications=[asked_again("inconclusive"), asked_again("supported", other_data=False)])
    published(tmp_path, "none", replications=[asked_again("contradicted"), asked_again("supported", other_data=False)])
    published(tmp_path, "late", replications=[asked_again("", missing="not begun")])
    published(tmp_path, "open", verdict="inconclusive", replications=[asked_again("inconclusive")])
    found = entries(tmp_path)
    assert {entry["study"]: entry["replicated"] for entry in found} == {
        "both": "elsewhere",
        "one": "here alone",
        "none": "turned",
        "late": None,
        "open": "elsewhere",
    }
    assert leanings(tmp_path)["none"] == "turned"
    assert "1 comes out the other way on other data (none)" in answer(found)
    assert answer(found).endswith(
        " Of the decided, shown on more than one data set: both; on one data set only: one; "
        "not asked on other data: late."
    )


def test_the_ledger_names_decided_claims_that_their_own_reports_doubt(tmp_path):
    published(tmp_path, "sure", sensitivity={"agrees": True})
    published(tmp_path, "shaky", sensitivity={"agrees": False})
    published(tmp_path, "open", verdict="inconclusive", sensitivity={"agrees": False})
    published(tmp_path, "mean", verdict="equivalent", assay_sensitivity="shown")
    told = {"study_text": "", "answers": [{"id": "c", "turns": True, "idle": "Both sides are 0."}]}
    (tmp_path / "mean" / "report.json").write_text(json.dumps(told))
    assert answer(entries(tmp_path)).endswith(
        " Less sure: mean (its effect turns between the cells of the study, and both sides lie below its margin); "
        "shaky (its verdict changes by another method or without one seed)."
    )


def test_the_ledger_has_a_column_of_replications_where_there_are_any(tmp_path):
    published(tmp_path, "plain")
    assert "Replications" not in publish([], tmp_path).read_text()
    published(tmp_path, "again", agreement={"c": {"word": "held on 1 of 2", "clause": "Contradicted on <x>."}})
    page = publish([], tmp_path).read_text()
    assert '<td data-label="Replications">held on 1 of 2</td>' in page
    assert '<td data-label="Replications">–</td>' in page
    assert "Replications: Contradicted on &lt;x&gt;." in page
