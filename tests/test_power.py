"""Seeds that a claim needs: equal to the closed form, from a pilot or an assumed spread."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace

import pytest
from scipy.special import chdtri

from stability import analysis, cli, stats
from stability.registry import InputError
from stability.report.figures.power import write_power
from stability.sample_size import pilot_of, power_curves, seeds_by_claim
from stability.study import parse_study


def test_the_seeds_are_those_of_the_closed_form_at_the_pilots_spread_and_its_bound(tiny, tiny_run):
    confidence = 1 - 0.05 / 3
    found = pilot_of(tiny, tiny_run)
    # In eight steps most runs stay at chance, which is no pilot; their numbers do for this.
    pilot = replace(found, runs=found.runs.assign(status="finished"))
    needs = {need.id: need for need in seeds_by_claim(tiny, pilot)}
    assert list(needs) == ["noise", "slope", "sooner"]
    widths = {"noise": math.log(1.1), "slope": 0.25, "sooner": math.log(1.1)}
    for claim in tiny.claims:
        need, found = needs[claim.id], analysis.compared(pilot, claim, confidence)
        assert need.width == pytest.approx(widths[claim.id])
        if need.why:
            assert not found.testable or found.sd in (0.0, math.inf) or found.sd > 10 * need.width
            continue
        bound = found.sd * math.sqrt((found.n - 1) / chdtri(found.n - 1, 0.8))
        assert (need.pilot, need.sd, need.bound) == (3, found.sd, pytest.approx(bound))
        for seeds, sd in ((need.likely, found.sd), (need.safe, bound)):
            by_hand = stats.seeds_needed(need.width, sd, confidence=confidence)
            assert seeds == max(by_hand, stats.seeds_for_equivalence(need.width, sd, confidence=confidence))
            assert stats.power(seeds, need.width, sd, confidence=confidence) >= 0.8
    assert any(need.safe for need in needs.values())


def test_power_is_a_number_however_many_seeds():
    powers = [stats.power(n, 0.0953, 0.0924, confidence=0.9875) for n in range(2, 400)]
    assert powers == sorted(powers)
    assert powers[-1] == 1


def test_without_a_pilot_the_spread_is_assumed_and_said(tiny):
    for need in seeds_by_claim(tiny, assumed=2.0):
        assert (need.pilot, need.sd) == (0, pytest.approx(2 * need.width))
        assert need.likely == need.safe == stats.seeds_for_equivalence(1.0, 2.0, confidence=1 - 0.05 / 3)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="--sd: got"):
            seeds_by_claim(tiny, assumed=wrong)


def test_a_claim_on_divergence_says_why_it_is_not_computed(tiny_text):
    study = parse_study(tiny_text.replace('contrast = "difference"', 'contrast = "divergence"'), "t.toml", "t")
    need = seeds_by_claim(study)[0]
    assert (need.likely, need.safe) == (None, None)
    assert need.why.startswith("power for divergence tests depends on the discordant rate")


def test_the_curves_rise_and_cross_the_target_where_the_table_says(tiny, tmp_path):
    needs = seeds_by_claim(tiny)
    curves = power_curves(needs)
    for need in needs:
        line = curves[curves["id"] == need.id]
        assert line["likely"].is_monotonic_increasing
        assert (line[line["seeds"] >= need.safe]["likely"] >= 0.8).all()
    paths = write_power(tmp_path / "new", curves, needs)
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    before = paths["svg"].read_bytes()
    write_power(tmp_path / "new", curves, needs)
    assert paths["svg"].read_bytes() == before


def test_a_run_of_another_study_is_no_pilot(tiny, tiny_run, tiny_text):
    with pytest.raises(InputError, match="holds study 'tiny', not 'other'"):
        pilot_of(parse_study(tiny_text, "t.toml", "other"), tiny_run)
    changed = parse_study(tiny_text.replace("margin = 0.25", "margin = 0.5"), "t.toml", "tiny")
    with pytest.raises(InputError, match="was run with other claims than 'slope'"):
        pilot_of(changed, tiny_run)


def test_the_verb_prints_a_row_a_claim_and_writes_the_figure(tiny_text, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(tiny_text)
    shutil.copytree(tiny_run, tmp_path / "pilot")
    for words in (["pilot"], ["--sd", "2", "--out", "there"]):
        monkeypatch.setattr(sys, "argv", ["stability", "power", "tiny.toml", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        out = capsys.readouterr().out
        assert all(any(line.startswith(name) for line in out.splitlines()) for name in ("noise", "slope", "sooner"))
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"power.svg", "power.png"}
