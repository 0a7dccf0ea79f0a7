"""Why runs failed, in the report: reasons once, tracebacks without the machine's folders, all of it escaped."""

import dataclasses

import pytest
from closed_form_results import results_of

from stability.analysis import analyze
from stability.report import render
from stability.report.failures import LONGEST_REASON, LONGEST_TRACEBACK, failures, reason_of, shortened

TRACE = """Traceback (most recent call last):
  File "/home/someone/lib/stability/train/chains.py", line 3, in step
    raise ValueError("<b>bad</b> & #panic()")
ValueError: <b>bad</b> & #panic()
"""


@pytest.fixture(scope="module")
def failed():
    """A study of which two groups failed for one reason and one for another."""
    results = results_of()
    runs = results.runs.copy()
    cells = [("clip", 8, TRACE), ("siglip", 8, TRACE), ("siglip", 16, "MemoryError")]
    groups = [{"git_commit": "c0ffee", "status": "finished", "runs": runs["run"].tolist()}]
    for arm, size, error in cells:
        lost = (runs["arm"] == arm) & (runs["batch_size"] == size) & (runs["seed"] == 0)
        runs.loc[lost, "status"] = "failed"
        groups.append({"git_commit": "c0ffee", "status": "failed", "error": error, "runs": runs["run"][lost].tolist()})
    steps = results.steps[~results.steps["run"].isin(runs["run"][runs["status"] == "failed"])]
    return dataclasses.replace(results, runs=runs, steps=steps, manifest={**results.manifest, "groups": groups})


def test_each_reason_is_told_once_with_its_runs_and_cells(failed):
    found = failures(failed)
    assert [(one["reason"], one["runs"], one["cells"]) for one in found] == [
        ("ValueError: <b>bad</b> & #panic()", 4, "clip at batch 8: 2, siglip at batch 8: 2"),
        ("MemoryError", 2, "siglip at batch 16: 2"),
    ]
    assert failures(results_of()) == []


def test_page_and_paper_say_why_runs_failed_and_nothing_of_it_is_markup(failed, tmp_path):
    paths = render(failed, analyze(failed, checks=False), tmp_path)
    page = paths["html"].read_text()
    assert "Why: ValueError: &lt;b&gt;bad&lt;/b&gt; &amp; #panic() (4 runs: clip at batch 8: 2" in page
    assert "File &#34;stability/train/chains.py&#34;, line 3" in page
    assert "<b>bad</b>" not in page
    assert "/home/someone" not in page + paths["json"].read_text()
    assert paths["pdf"].read_bytes()[:5] == b"%PDF-"


def test_the_reason_follows_the_last_frame_and_long_ones_are_cut():
    assert reason_of(TRACE) == "ValueError: <b>bad</b> & #panic()"
    chained = (
        TRACE
        + "\nDuring handling of the above exception, another exception occurred:\n\n"
        + TRACE.replace("ValueError: <b>bad</b> & #panic()\n", "RuntimeError: no\n  indented more\nmore\n")
    )
    assert reason_of(chained) == "RuntimeError: no"
    assert reason_of("") == "unknown"
    assert len(reason_of("x" * 1000)) < LONGEST_REASON + 3
    assert len(shortened("y\n" * LONGEST_TRACEBACK)) < LONGEST_TRACEBACK + 3
    assert shortened(r'File "C:\a\b\c\d.py", line 1') == r'File "b\c\d.py", line 1'
