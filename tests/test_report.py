import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from closed_form_results import manifest_of, results_of
from pypdf import PdfReader

from stability.analysis import analyze, findings_text
from stability.registry import InputError
from stability.report import publish, render, write_report
from stability.report.blocks import of_kind
from stability.report.html import as_csv
from stability.report.model import answer_of
from stability.report.tables import plain_table
from tests.report_blocks import section_in, tables_in, texts_in, texts_of


@pytest.fixture(scope="session")
def results(closed_form):
    return closed_form


@pytest.fixture(scope="session")
def findings(results):
    return analyze(results)


@pytest.fixture(scope="session")
def written(closed_form_report):
    return closed_form_report


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """The page alone of a study that measured nothing beside retrieval."""
    found = results_of(probes="")
    return render(found, analyze(found), tmp_path_factory.mktemp("bare"), formats=("html",))


@pytest.fixture(scope="session")
def report(written):
    return json.loads(written["json"].read_text(), parse_constant=pytest.fail)


class Page(HTMLParser):
    """Every element of a page with its attributes, and the text of each script element."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.text, self._script = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._script = dict(attrs) if tag == "script" else None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts.append((self._script, data))
        else:
            self.text.append(data)

    def handle_endtag(self, tag):
        self._script = None


@pytest.fixture(scope="session")
def page(written):
    return Page(written["html"].read_text())


@pytest.fixture(scope="session")
def paper(written):
    return PdfReader(written["pdf"])


def squeezed(text):
    return re.sub(r"[\s\u00a0]+", "", text)


def test_no_request_leaves_the_page(page):
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "audio", "video", "base"}
        assert "src" not in attributes
        target = attributes.get("href", attributes.get("xlink:href", "#"))
        assert target.startswith(("#", "data:text/csv", "data:application/gzip")) or target == "report.pdf"
        assert not re.search(r"url\((?!#)", attributes.get("style", ""))
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")


def test_every_link_of_the_contents_has_its_target_and_no_id_occurs_twice(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_every_svg_is_an_image_with_a_label(page, report):
    svgs = [attributes for tag, attributes in page.elements if tag == "svg"]
    alts = [figure["alt"] for section in report["sections"] for figure in of_kind("figure", section["blocks"])]
    assert [attributes["aria-label"] for attributes in svgs] == alts
    assert all(attributes["role"] == "img" for attributes in svgs)
    assert alts


def test_hostile_words_stay_words_on_the_page(page, report):
    assert len(page.scripts) == 2
    assert not any(tag in {"b", "i"} for tag, _ in page.elements)
    text = "".join(page.text)
    for words in (
        report["title"],
        report["question"],
        report["answers"][0]["text"],
        "<i>chip</i>",
        report["study_text"],
    ):
        assert squeezed(words) in squeezed(text)


def test_hostile_words_stay_words_on_paper(paper, report):
    text = squeezed("".join(sheet.extract_text() for sheet in paper.pages))
    for words in (report["title"], report["question"], "<script>alert('slope')</script>", "#panic()"):
        assert squeezed(words).replace("'", "") in text.replace("'", "").replace("’", "")
    assert paper.metadata.title == report["title"]


def test_the_paper_is_tagged_has_a_language_and_its_fonts(paper):
    root = paper.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert root["/Lang"]
    for sheet in paper.pages:
        for font in sheet["/Resources"].get("/Font", {}).values():
            descendant = font.get_object()["/DescendantFonts"][0].get_object()
            assert {"/FontFile", "/FontFile2", "/FontFile3"} & set(descendant["/FontDescriptor"])


def test_page_and_paper_say_every_verdict_sentence(page, paper, findings):
    on_page = squeezed("".join(page.text))
    on_paper = squeezed("".join(sheet.extract_text() for sheet in paper.pages)).replace("’", "'")
    for finding in findings.claims:
        told = squeezed(finding.sentence.split(": ", 1)[1])
        assert told in on_page
        assert told in on_paper


def test_the_primary_claim_comes_first(report, findings):
    turned = replace(findings, claims=findings.claims[::-1])
    assert not turned.claims[0].primary
    assert report["answers"][0]["primary"]


def test_nothing_reads_nan_and_missing_values_are_null(written, report):
    for kind in ("json", "html", "findings"):
        visible = re.sub(r"<(script|svg)[\s>].*?</\1>", "", written[kind].read_text(), flags=re.S)
        assert not re.search(r"(?<![A-Za-z])(nan|NaN|inf|Infinity|None)(?![A-Za-z])", visible)
    assert plain_table(pd.DataFrame({"x": [1.0, np.nan, np.inf]})) == {
        "columns": ["x"],
        "rows": [[1.0], [None], [None]],
    }


def test_the_findings_lie_beside_the_page_and_in_it_unchanged(written, page, findings):
    assert written["findings"].read_text() == findings_text(findings)
    embedded = next(text for attributes, text in page.scripts if attributes.get("id") == "findings")
    assert json.loads(embedded) == findings.to_json()
    assert "<" not in embedded


def test_equal_results_give_equal_bytes(results, findings, written, tmp_path):
    again = render(results, findings, tmp_path)
    for kind, path in written.items():
        assert again[kind].read_bytes() == path.read_bytes(), kind


def test_a_section_whose_probe_is_missing_is_left_out(bare):
    shown = json.loads(bare["json"].read_text())
    names = [section["id"] for section in shown["sections"]]
    assert "noise" in names
    assert not {"gradients", "geometry", "curvature", "crosscheck"} & set(names)
    assert "Gradient noise" not in texts_in(shown, "method")


def test_only_the_formats_asked_for_are_written(bare, results, findings, tmp_path):
    names = ["answer.svg", "findings.json", "index.html", "report.json"]
    assert sorted(path.name for path in bare["html"].parent.iterdir()) == names
    assert set(bare) == {"json", "findings", "html", "picture"}
    assert 'href="report.pdf"' not in bare["html"].read_text()
    with pytest.raises(InputError, match=r"unknown format 'docx' \(known: html, pdf\)"):
        render(results, findings, tmp_path, formats=("docx",))


def test_without_typst_a_report_is_written_that_says_how_to_get_the_pdf(results, findings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "typst", None)  # importing it raises ModuleNotFoundError
    (tmp_path / "report.pdf").write_bytes(b"%PDF of an older report")
    paths = render(results, findings, tmp_path)
    assert set(paths) == {"json", "findings", "html", "picture"}
    assert not (tmp_path / "report.pdf").exists()
    text = paths["html"].read_text()
    assert "the package &#39;typst&#39; is not installed; `pip install typst` brings it" in text
    assert 'href="report.pdf"' not in text
    with pytest.raises(InputError, match="formats: no PDF: the package 'typst' is not installed"):
        render(results, findings, tmp_path, formats=("html", "pdf"))


def test_without_typst_publishing_says_how_to_get_the_pdf(written, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "typst", None)
    (tmp_path / "run" / "report").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest_of("test")))
    for kind in ("html", "findings", "json"):
        (tmp_path / "run" / "report" / written[kind].name).write_bytes(written[kind].read_bytes())
    with pytest.raises(InputError, match=r"report\.pdf is missing; no PDF: .*`pip install typst`"):
        publish([tmp_path / "run"], tmp_path / "reports")


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run lies here"):
        write_report(tmp_path)


def test_cells_show_the_mean_and_spread_over_seeds(report, results):
    (table,) = tables_in(report, "cells")
    column = [head["label"] for head in table["columns"]].index("Recall@1")
    row = table["rows"][0]
    runs = results.runs[(results.runs["arm"] == "clip") & (results.runs["batch_size"] == 8)]
    last = results.steps[results.steps["step"] == 40].set_index("run")["recall_at_1"]
    known = last[runs.loc[runs["noise"] == 0, "run"]]
    mean, spread = map(float, row[column]["text"].replace("\u00a0", "").split("±"))
    assert mean == pytest.approx(known.mean(), rel=0.02)
    assert spread == pytest.approx(known.std(), rel=0.05)
    assert len(table["rows"]) == 3 * 2 * 2


def test_an_unbounded_interval_and_a_claim_without_effect_are_said_in_words(findings):
    claim = findings.to_json()["claims"][0]
    assert answer_of(claim | {"ratio": True, "interval": [0.0, None]})["interval"] == "unbounded"
    assert answer_of(claim | {"interval": [-0.5, 0.25]})["interval"] == "−0.5 to 0.25"
    silent = answer_of(claim | {"verdict": "not-testable", "effect": None})
    assert (silent["effect"], silent["word"], silent["shape"]) == (None, "not testable", "–")


def test_the_method_of_a_claim_that_could_not_be_tested_tells_no_p_value(results, findings):
    first, *others = findings.claims
    for verdict, said in (("supported", True), ("not-testable", False)):
        claim = replace(
            first, verdict=verdict, p_value=1.0, p_sign_flip=1.0, method="exact sign interval of the median"
        )
        text = texts_of("method", results, replace(findings, claims=(claim, *others)))[f"The claim {first.id}"]
        assert ("sign flips" in text, "Test: exact sign interval" in text) == (said, said)
        assert ("Not testable; no p-value." in text) != said


def test_limitations_name_what_the_data_show(results, findings):
    runs = results.runs.copy()
    runs.loc[runs.index[:2], "status"] = ["diverged", "planned"]
    steps = results.steps.assign(recall_at_1=results.steps["recall_at_1"].clip(upper=0.015))
    said = texts_of("limitations", replace(results, runs=runs, steps=steps), findings)
    assert said["Runs not finished"].startswith("1 of 72 runs")
    assert "clip at batch 8: 1 of 12" in said["Diverged runs"]
    assert "clip at batch 8 (0.015)" in said["Recall@1 near chance"]
    assert "at batch 16, 1% of the pairs (0.15 per image)" in said["False negatives in the batch"]
    assert "here 0.041" in said["How far the bias of siglip could move"]
    plain = texts_of("limitations", results, findings)
    assert not {"Runs not finished", "Diverged runs", "Recall@1 near chance"} & {*plain}


def test_a_table_as_csv_quotes_what_needs_it():
    assert as_csv({"columns": ["arm", "x"], "rows": [['a,"b"', None], ["c", 0.5]]}) == 'arm,x\n"a,""b""",\nc,0.5\n'


def test_published_reports_are_listed_with_their_primary_verdict(written, findings, tmp_path):
    run_dir = written["html"].parent.parent
    (run_dir / "manifest.json").write_text(json.dumps(manifest_of("test")))
    index = publish([run_dir], tmp_path / "reports")
    assert index == tmp_path / "reports" / "index.html"
    names = ("index.html", "report.pdf", "findings.json", "report.json")
    for name in names:
        assert (tmp_path / "reports" / "test" / name).read_bytes() == (run_dir / "report" / name).read_bytes()
    listed = Page(index.read_text())
    text = squeezed("".join(listed.text))
    assert squeezed(findings.claims[0].text) in text
    assert findings.claims[0].verdict.replace("-", "") in text.replace("-", "")
    assert ("a", {"href": "test/index.html"}) in listed.elements
    assert not listed.scripts
    assert publish([run_dir], tmp_path / "reports").read_bytes() == index.read_bytes()


def test_publishing_what_has_no_report_or_an_unsafe_name_is_refused(written, tmp_path):
    with pytest.raises(InputError, match="no run lies here"):
        publish([tmp_path], tmp_path / "reports")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "manifest.json").write_text(json.dumps(manifest_of("bare")))
    with pytest.raises(InputError, match=r"index\.html is missing; write it with `stability report"):
        publish([bare], tmp_path / "reports")
    run_dir = written["html"].parent.parent
    (run_dir / "manifest.json").write_text(json.dumps(manifest_of("../elsewhere")))
    with pytest.raises(InputError, match=r"'\.\./elsewhere' cannot name a directory"):
        publish([run_dir], tmp_path / "reports")


def test_the_sensitivity_of_every_tested_claim_is_in_both_renderings(report, findings, page, paper):
    checked = [claim for claim in findings.claims if claim.sensitivity.checks]
    parts = section_in(report, "sensitivity")["blocks"]
    assert [part["title"] for part in parts] == [claim.text for claim in checked] != []
    shown = squeezed("".join(page.text))
    # A paper breaks words at line ends.
    printed = squeezed("".join(sheet.extract_text() for sheet in paper.pages)).replace("-", "")
    for part in parts:
        sentence, table = part["blocks"]
        assert squeezed(sentence["text"]) in shown
        assert squeezed(sentence["text"]).replace("-", "") in printed
        assert table["rows"][0][0]["text"] == "As decided"
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_a_verdict_that_its_checks_do_not_share_is_a_limitation(results, findings):
    apart = replace(findings.claims[0].sensitivity, agrees=False, sentence="By ranks it is inconclusive.")
    claims = (replace(findings.claims[0], sensitivity=apart), *findings.claims[1:])
    limits = texts_of("limitations", results, replace(findings, claims=claims))
    assert any("By ranks it is inconclusive." in text for text in limits.values())


def test_the_method_quotes_the_error_rates_of_the_contrasts_that_the_study_uses(report):
    told = texts_in(report, "method")["Error rates of these verdicts"]
    assert "docs/calibration.md" in told
    assert "where 5% are promised" in told
    assert "spread" not in told
