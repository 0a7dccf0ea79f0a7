"""Sections of the report: one decorated function appears in both renderings, whatever blocks it yields."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape

import pandas as pd
import pytest
from pypdf import PdfReader

from stability.analysis import analyze, load_results
from stability.execute import run
from stability.registry import InputError
from stability.report import definitions, render
from stability.report import method as method_texts
from stability.report.blocks import Code, Fact, Facts, Formula, Lead, Paragraph, Part, Table, of_kind
from stability.report.figures import ReportFigure
from stability.report.formulas import mathml
from stability.report.sections import section, sections_of
from stability.report.sections.registry import ReportData
from stability.study import parse_study

HEADS = [{"label": "Arm", "note": None, "numeric": False}, {"label": "Sum", "note": "of all", "numeric": True}]
ROWS = [
    [
        {"text": "clip", "value": "clip", "note": "softmax <loss>", "tag": "first"},
        {"text": "held", "value": "supported", "verdict": "supported", "shape": "✔"},
    ],
    [{"text": "siglip", "value": "siglip"}, {"text": "–", "value": None}],
]


@pytest.fixture
def own_sections(monkeypatch):
    """Sections registered in the test are gone after it."""
    monkeypatch.setattr(section, "_variants", dict(section._variants))


def written_by(results, tmp_path, findings=None):
    """Return the page without markup and the paper of a report, both without white space, and report.json."""
    paths = render(results, findings or analyze(results, checks=False), tmp_path)
    page = paths["html"].read_text()
    shown = unescape(re.sub(r"<[^>]*>", "", re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S)))
    printed = "".join(sheet.extract_text() for sheet in PdfReader(paths["pdf"]).pages)
    return page, squeezed(shown), squeezed(printed), json.loads(paths["json"].read_text())


def squeezed(text):
    return re.sub(r"\s+", "", text)


def test_one_function_with_each_kind_of_block_is_a_section_of_both_renderings(closed_form, own_sections, tmp_path):
    @section(order=55, title="Own <sums>", lead="Why there are sums.", short="Sums")
    def own(data):
        first = next(iter(data.trajectories.values()))
        yield Lead(f"There are {len(data.results.runs)} runs.")
        yield Paragraph("A #panic() in a paragraph.", "small")
        yield ReportFigure("sums", "", "All sums", "The caption.", "alt", first.figure, pd.DataFrame({"x": [1.5]}))
        yield Table("Sums", HEADS, ROWS, caption="A caption.", size="small", wide="first", sortable=True)
        yield Facts([Fact("Device", "a chip", "chip --fast", "its name")])
        yield Formula("m = (p - q)/2", "m = (p − q) / 2")
        yield Part("A part", (Paragraph("In a part."), Code("x  =  1", long=True)))
        yield Part("More", (Paragraph("On the page alone."),), folded=True)

    page, shown, printed, report = written_by(closed_form, tmp_path)
    ids = [each["id"] for each in report["sections"]]
    assert ids[ids.index("learning") + 1] == "own"
    mine = report["sections"][ids.index("own")]
    assert [block["kind"] for block in mine["blocks"]] == [
        *("paragraph", "figure", "table", "facts", "formula", "part", "part"),
    ]
    assert '<li><a href="#own">Sums</a></li>' in page
    assert (
        '<h2><a href="#own">Own &lt;sums&gt;</a></h2>\n<p class="lead">Why there are sums. There are 72 runs.</p>'
        in page
    )
    assert "<mfrac><mrow><mi>p</mi><mo>−</mo><mi>q</mi></mrow><mn>2</mn></mfrac>" in page
    assert 'data-label="Sum" data-value="supported" class="number"><span class="badge supported">' in page
    assert '<th scope="row" class="claim" data-value="clip">clip <span class="tag">first</span><br>' in page
    assert (
        page.index('<figure id="figure-sums">')
        < page.index('aria-label="Sums"')
        < page.index('id="values"' if "values" in ids else 'id="noise"')
    )
    texts = (
        "Own <sums>",
        "A #panic() in a paragraph.",
        "The caption.",
        "A caption.",
        "softmax <loss>",
        "held",
        "siglip",
    )
    texts += ("Device", "chip --fast", "a chip", "Missing: its name.", "A part", "In a part.", "x = 1")
    for text in texts:
        assert squeezed(text) in shown, text
        assert squeezed(text) in printed, text
    assert squeezed("On the page alone.") in shown
    assert squeezed("On the page alone.") not in printed


EVERYTHING = """
[probes.activations]

[probes.flatness]
batches = 2
draws = 2

[tune]
lr = [0.003, 0.03]
seeds = 1

[[rankings]]
measure = "recall_at_1"

[[claims]]
id = "ranks"
text = "SigLIP's embeddings have more dimensions"
measure = "effective_rank_text"
contrast = "difference"
compare = ["siglip-log-b", "clip"]
expect = "lower"
margin = 0.1

[[controls]]
id = "bias"
arm = "siglip-log-b"
against = "clip"

[[published]]
text = "Recall in a paper"
source = "A paper, Table 1"
transfers = "The order may transfer."
measure = "recall_at_1"
values = { clip = 10.0, siglip-log-b = 12.0 }

[replications.other-seeds]
grid.first_seed = 100

[scales.smoke]"""


def test_every_section_is_in_both_renderings_of_a_study_that_has_everything(tiny_text, closed_form, tmp_path):
    text = tiny_text.replace("[8, 16]", '[8]\n"model.image.width" = [8, 16]').replace("[scales.smoke]", EVERYTHING)
    study = parse_study(text, "t.toml", "t", "smoke")
    results = load_results(run(study, "cpu", out=tmp_path / "run"))
    findings = analyze(results, checks=False)
    # A study this small has no testable claim, which alone has checks.
    checked = replace(findings.claims[0], sensitivity=analyze(closed_form).claims[0].sensitivity)
    findings = replace(findings, claims=(checked, *findings.claims[1:]))
    _, shown, printed, report = written_by(results, tmp_path / "report", findings)
    assert [each["id"] for each in report["sections"]] == sorted(section, key=lambda name: section[name].traits.order)
    for each in report["sections"]:
        for text in (each["title"], each["lead"]):
            assert squeezed(text) in shown, text
            assert squeezed(text) in printed, text


def test_a_section_that_yields_nothing_is_absent_and_order_decides_the_place(closed_form, own_sections):
    @section(order=0, title="First")
    def first(data):
        yield Paragraph("It is the first.")

    @section(order=-1, title="Nothing")
    def nothing(data):
        yield Lead("A lead alone is not a section.")

    names = [each.id for each in sections_of(ReportData(closed_form, analyze(closed_form, checks=False)))]
    assert names[:2] == ["first", "claims"]
    assert "nothing" not in names


def test_an_unknown_trait_of_a_section_is_refused_with_the_nearest(own_sections):
    with pytest.raises(InputError, match=r"section 'own' has no trait 'titel'; did you mean 'title'\?"):

        @section(order=1, titel="Own")
        def own(data): ...


def test_every_section_has_a_place_of_its_own_and_texts():
    orders = [variant.traits.order for variant in section.values()]
    assert len(set(orders)) == len(orders)
    assert all(variant.traits.title and variant.summary for variant in section.values())


def test_a_formula_is_the_same_on_the_page_and_on_paper():
    formulas = [
        each for each in (*vars(definitions).values(), *vars(method_texts).values()) if isinstance(each, Formula)
    ]
    formulas += definitions.LOSSES.values()
    assert len(formulas) == 8
    for formula in formulas:
        markup = mathml(formula.math)
        assert re.findall(r"<(\w+)[ >]", markup).count("mrow") == markup.count("</mrow>")
        letters = re.sub(r"\b(op|cases|quad|thin|macron|hat|sqrt|limits|true)\b|[^\w]|_", "", formula.math)
        assert re.sub(r"[^\w]|_", "", re.sub(r"<[^>]*>", "", markup)) == letters


@pytest.mark.parametrize(
    ("formula", "markup"),
    [
        ("∑_(i=1)^B x_i", "<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>B</mi></munderover>"),
        ("∑_j x", "<msub><mo>∑</mo><mi>j</mi></msub>"),
        ("T_s^a", "<msubsup><mi>T</mi><mi>s</mi><mi>a</mi></msubsup>"),
        ('op("mean", limits: #true)_"cells" x', "<munder><mtext>mean</mtext><mtext>cells</mtext></munder>"),
        ("|G|^2", "<msup><mrow><mo>|</mo><mi>G</mi><mo>|</mo></mrow><mn>2</mn></msup>"),
        ("sqrt(hat(v)) x", "<msqrt><mover><mi>v</mi><mo>^</mo></mover></msqrt>"),
        ("s / sqrt(n)", "<mfrac><mi>s</mi><msqrt><mi>n</mi></msqrt></mfrac>"),
        (r"1\/2k", "<mn>1</mn><mo>/</mo><mn>2</mn><mi>k</mi>"),
    ],
)
def test_a_part_of_typsts_notation_becomes_mathml(formula, markup):
    assert mathml(formula).startswith(markup)


def test_the_details_of_a_failure_are_folded_on_the_page(closed_form, tmp_path):
    runs = closed_form.runs.copy()
    runs.loc[0, "status"] = "failed"
    groups = [{"git_commit": "c0ffee", "error": "ValueError: no", "runs": [runs["run"][0]]}]
    failed = replace(closed_form, runs=runs, manifest={**closed_form.manifest, "groups": groups})
    page, shown, printed, report = written_by(failed, tmp_path)
    (folded,) = [part for part in of_kind("part", report["sections"][-2]["blocks"]) if part["folded"]]
    assert folded["title"] == "Traceback: ValueError: no"
    assert "<summary>Traceback: ValueError: no</summary>" in page
    assert squeezed("Runs failed") in shown
    assert squeezed("Runs failed") in printed
