"""The calibration: its worlds keep their truth, its rates are what they say, and its files hold all of it."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import binomtest, multinomial

from stability import cli
from stability.calibrate import record
from stability.calibrate.aa_tests import Twins
from stability.calibrate.rates import (
    CORRELATIONS,
    SEEDS,
    Cell,
    Rates,
    Simulated,
    StudyRates,
    cells_of,
    compare,
    measure,
    measure_study,
    simulate,
)
from stability.calibrate.record import MARK, Calibration, from_json, markdown, summary, to_json, write
from stability.calibrate.scenarios import NoiseModel, mcnemar, shape, world
from stability.contrasts import contrast
from stability.registry import InputError

DOCS = Path(__file__).parent.parent / "docs"


def noise_model(noise="normal", seeds=10, correlation=0.5, seed=0):
    return NoiseModel(np.random.default_rng(seed), noise, seeds, correlation)


def test_every_contrast_of_the_catalogue_has_a_world():
    assert {variant.traits.contrast for variant in world.values()} == set(contrast)


@pytest.mark.parametrize("name", shape)
@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_noise_has_mean_0_variance_1_and_the_correlation_asked_for(name, correlation):
    a, b = (arm[:, 0, 0] for arm in noise_model(name, 200_000, correlation).arms())
    assert_allclose([a.mean(), b.mean()], 0, atol=0.01)
    # A rounding by half a standard deviation adds 1/48 to a variance.
    assert_allclose([a.var(), b.var()], 1 + (1 / 48 if name == "ties" else 0), atol=0.04)
    assert_allclose(np.corrcoef(a, b)[0, 1], correlation, atol=0.01)


@pytest.mark.parametrize("name", world)
def test_with_many_seeds_a_contrast_finds_the_effect_that_its_world_plants(name):
    traits = world[name].traits
    many = noise_model((traits.shapes or ("normal",))[0], seeds=600, correlation=0.5)
    found = compare(name, many, traits.effect)
    truth = traits.truth(many, traits.effect)
    if truth is None:
        assert found.interval[0] > 1  # slower, by an amount that censoring hides
    else:
        assert_allclose(found.effect, truth, rtol=0.15)
    none = compare(name, many, 0.0, confidence=0.9999)
    assert none.interval[0] <= none.no_difference == traits.truth(many, 0.0) <= none.interval[1]


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_the_power_of_mcnemar_is_the_chance_of_all_tables_that_it_rejects(correlation):
    high, low, seeds = 0.7, 0.1, 7
    only_a = correlation * (high - low) + (1 - correlation) * high * (1 - low)
    only_b = (1 - correlation) * low * (1 - high)
    chances = multinomial(seeds, [only_a, only_b, 1 - only_a - only_b])
    rejected = sum(
        chances.pmf([a, b, seeds - a - b])
        for a, b in itertools.product(range(seeds + 1), repeat=2)
        if 0 < a + b <= seeds and binomtest(a, a + b).pvalue <= 0.05
    )
    assert_allclose(mcnemar(seeds, correlation, 0.6), rejected)


def test_a_cell_of_normal_noise_errs_covers_and_finds_as_the_noncentral_t_promises():
    found = measure(Cell("level", "normal", 10, 0.5), trials=1500)
    assert not found.errs
    assert found.wrong > 0.02
    assert not found.misses
    assert abs(found.detected - found.oracle) < 4 * (0.25 / 1500) ** 0.5


def test_one_cell_of_outcomes_finds_what_exact_tests_find():
    found = measure(Cell("divergence_of_one_cell", "yes or no", 10, 0.0), trials=800)
    assert abs(found.detected - found.oracle) < 4 * (0.25 / 800) ** 0.5
    assert found.wrong <= 0.05


def test_three_seeds_have_no_spread_to_compare():
    found = measure(Cell("spread_of_one_cell", "normal", 3, 0.0), trials=5)
    assert (found.tested, found.wrong, found.covered, found.detected) == (0, 0, None, 0)


def test_neither_order_nor_workers_change_a_number_and_a_seed_does():
    told = []
    here = simulate(["divergence"], trials=5, seed=3, progress=lambda done, total: told.append((done, total)))
    with ThreadPoolExecutor(2) as pool:
        assert simulate(["divergence"], trials=5, seed=3, executor=pool) == here
    assert told[-1] == (24, 24)
    assert simulate(["divergence"], trials=5, seed=4).cells != here.cells
    assert here.cells[5] == measure(here.cells[5].cell, trials=5, seed=3)
    assert here.studies == ()


def test_all_contrasts_come_in_every_shape_number_of_seeds_and_correlation():
    cells = cells_of()
    noisy = [name for name, variant in world.items() if not variant.traits.shapes]
    places = (noisy, shape, SEEDS, CORRELATIONS)
    assert {Cell(*place) for place in itertools.product(*places)} <= set(cells)
    assert len(cells) == len(set(cells))


def test_five_claims_share_their_error():
    assert measure_study(("normal", 5), trials=150).wrong <= 0.12


RATES = Rates(Cell("level", "t4", 10, 0.9), 1000, 1.0, 0.05, 0.95, 0.8, None)
TWINS = Twins("clip", 200, 5, 60, {"level": {"inconclusive": 190, "supported": 10}}, 7)


def test_a_cell_is_marked_outside_the_band_and_below_the_coverage_demanded():
    assert not RATES.errs
    assert replace(RATES, wrong=0.074).errs
    assert not replace(RATES, wrong=0.073).errs
    assert replace(RATES, covered=0.929).misses
    assert not replace(RATES, cell=replace(RATES.cell, seeds=5), covered=0.9).misses
    assert not replace(RATES, covered=None).misses
    marked = markdown(Calibration(Simulated(0, (replace(RATES, wrong=0.08), RATES))))
    assert "1 of 2 settings" in marked
    assert "**8.0**" in marked


def test_twins_may_be_wrong_18_times_in_200():
    assert TWINS.allowed == 18
    assert TWINS.wrong("level") == 10


def test_numbers_survive_their_file():
    whole = Calibration(Simulated(3, (RATES, RATES), (StudyRates("t4", 5, 100, 0.04),)), (TWINS,))
    assert from_json(to_json(whole), "x.json") == whole
    assert from_json(to_json(Calibration()), "x.json") == Calibration()


def test_writing_keeps_the_prose_and_the_other_half(tmp_path):
    out = tmp_path / "new" / "calibration.md"
    write(out, Calibration(simulated=Simulated(0, (RATES,))))
    out.write_text("# Ours\n\nSome words.\n\n" + MARK + "old tables")
    write(out, Calibration(twins=(TWINS,)))
    text = out.read_text()
    assert text.startswith("# Ours\n\nSome words.\n\n" + MARK)
    assert "old tables" not in text
    assert "### clip against itself" in text
    assert "### difference: level" in text


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": 2}', '{"schema": 1, "twins": [{"loss": "clip"}]}', "[]"])
def test_a_file_that_is_no_calibration_is_named_and_kept(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=r"c\.json"):
        write(tmp_path / "c.md", Calibration(twins=(TWINS,)))
    assert (tmp_path / "c.json").read_text() == text


def test_a_summary_speaks_of_the_contrasts_asked_for():
    whole = Calibration(Simulated(0, (RATES, replace(RATES, cell=Cell("time", "t4", 10, 0.0), wrong=0.2))), (TWINS,))
    assert "20.0% at worst" in summary(whole)
    assert "5.0% at worst" in summary(whole, {"difference"})
    assert "against itself" in summary(whole, {"spread"})
    assert summary(Calibration()) == ""


def test_the_committed_tables_are_those_of_the_committed_numbers():
    known = record.published()
    assert known is not None
    assert (DOCS / "calibration.md").read_text().split(MARK)[1] == "\n\n" + markdown(known)
    assert {rates.cell for rates in known.simulated.cells} == set(cells_of())
    assert all(twins.studies >= 200 for twins in known.twins)
    assert all(twins.wrong(claim) <= twins.allowed for twins in known.twins for claim in twins.verdicts)


def test_a_committed_cell_comes_out_again():
    known = record.published().simulated
    committed = next(rates for rates in known.cells if rates.cell == Cell("level", "ties", 5, 0.5))
    again = measure(committed.cell, committed.trials, known.seed)
    assert_allclose(
        [again.wrong, again.covered, again.detected], [committed.wrong, committed.covered, committed.detected]
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--contrast", "slop"], "--contrast: unknown contrast 'slop'; did you mean 'slope'?"),
        (["--trials", "0"], "--trials: got 0; allowed: 1 or more"),
        (["--out", "table.txt"], "--out table.txt: allowed is a file that ends in .md"),
        (["--end-to-end", "--studies", "0"], "--studies: got 0; allowed: 1 or more"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stability", "calibrate", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"stability: {sentence}")
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_tables_that_it_writes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["stability", "calibrate", "--contrast", "divergence", "--trials", "3"])
    sys.argv += ["--out", str(tmp_path / "c.md")]
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "### divergence: divergence_of_six_cells" in capsys.readouterr().out
    assert from_json((tmp_path / "c.json").read_text(), "c") == Calibration(simulate(["divergence"], trials=3))
