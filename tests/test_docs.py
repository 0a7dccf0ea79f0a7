"""The documentation stays true: blocks run, names exist, links lead somewhere, pages are built without a warning."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer
import yaml
from documents import NOT_RUN, PAGES, ROOT, Block, blocks, commands, follow, start_here

from stability import cli
from stability.contrasts import contrast
from stability.probes import STEP_MEASURES, probe
from stability.vocabulary import CLAIM_AXES

DOCS = ROOT / "docs"
# These two are walked by test_walkthroughs.py, with a look at what comes out.
WALKED = {*(DOCS / "walkthroughs").iterdir(), DOCS / "extending.md"}
# Programs write these pages, and their commands take hours.
WRITTEN = {"calibration", "faults"}
QUICK = ["estimators"]
LONG = ["statistics", "index", "measures", "report", "cluster"]


def runs(block: Block) -> bool:
    return block.language in ("python", "console") and not block.title.endswith(NOT_RUN)


def test_every_page_with_commands_or_blocks_is_run_by_some_test():
    told = {page.stem for page in PAGES if page not in WALKED and any(map(runs, blocks(page.read_text())))}
    assert told - WRITTEN == {*QUICK, *LONG}


@pytest.mark.parametrize("page", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_what_a_page_says_can_be_done(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert follow(DOCS / f"{page}.md", tmp_path, start_here)


def test_every_command_of_every_page_names_a_verb_and_its_options():
    verbs = typer.main.get_command(cli.app).commands
    seen = set()
    for page in PAGES:
        for block in blocks(page.read_text()):
            for program, verb, *words in commands(block) if block.language == "console" else ():
                if program == "stability":
                    options = {option for parameter in verbs[verb].params for option in parameter.opts}
                    assert {word for word in words if word.startswith("--")} <= options, (page, verb)
                    seen.add(verb)
    assert seen >= {"init", "plan", "run", "report", "compare", "check", "export", "power", "calibrate"}


def test_measures_and_contrasts_that_the_guide_recommends_exist():
    table = re.findall(
        r"^\| .*\?.* \| (.*) \| (.*) \| (.*) \|$", (DOCS / "measures.md").read_text(), flags=re.MULTILINE
    )
    assert len(table) == 17
    measures = {measure.name for measure in STEP_MEASURES}
    for variant in probe.values():
        measures |= {measure.name for measure in variant.traits.measures}
    for probes, named, contrasts in table:
        assert {*re.findall("`([a-z_]+)`", probes)} <= {*probe}
        assert {*re.findall("`([a-z_0-9]+)`", named)} <= measures
        assert {*re.findall("`([a-z_]+)`", contrasts)} <= {*contrast, *CLAIM_AXES}


def test_every_page_is_in_the_navigation():
    def files(entry):
        if isinstance(entry, str):
            return {entry}
        return set().union(*(files(part) for part in (entry.values() if isinstance(entry, dict) else entry)))

    listed = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = {str(page.relative_to(DOCS)) for page in PAGES}
    assert listed <= there
    assert there - listed <= {f"{name}.md" for name in WRITTEN}


def test_every_link_between_pages_leads_to_a_file():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site/reference/losses.html").read_text()
    assert 'id="stability.losses.clip"' in page
    # Docstrings are shown to the last character: neither tags nor quotations.
    assert "t * &lt;image, text&gt; + b" in page
    assert "<blockquote>" not in page
    # Nothing is asked of another machine when a page is opened.
    for html in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css)[^"]*)"', html.read_text()), html
