"""Every cell counts: verdicts over several cells of the grid, their words and their error rates under known truth."""

import numpy as np
import pytest

from stability import contrasts, stats
from stability.calibrate.cell_verdicts import verdict_shares
from stability.calibrate.rates import upper_band
from stability.stats import CellEffect
from stability.stats.cells import disagreement

NOISE = np.array([-1.2, 0.3, 0.8, -0.5, 0.1, 1.1, -0.9, 0.4, -0.3, 0.2])
STANDARD = (NOISE - NOISE.mean()) / NOISE.std(ddof=1)


def judged(effects, margin, expect="higher", sd=1.0, sds=None):
    """Return the verdict on cells with exactly these effects and standard deviations, with noise of one shape."""
    sds = [sd] * len(effects) if sds is None else sds
    differences = np.stack([effect + spread * STANDARD for effect, spread in zip(effects, sds, strict=True)], axis=1)
    arms = (differences[:, None, :], np.zeros_like(differences)[:, None, :])
    levels = [(("noise", f"noise {index}"), ("batch size", "batch size 8")) for index in range(len(effects))]
    supplied = {"confidence": 0.95, "names": ("siglip", "clip"), "measure": "recall"}
    comparison = contrasts.compare("difference", *arms, supplied=supplied)
    cells = contrasts.in_each_cell("difference", *arms, supplied=supplied, cells=levels)
    return stats.verdict(comparison, expect=expect, margin=margin, cells=cells), comparison, cells


@pytest.mark.parametrize(
    ("effects", "sds", "margin", "expect", "word"),
    [
        ((0.1, -0.1), (1, 1), 2.0, "higher", "equivalent"),
        ((0.1, -0.1), (1, 1), 2.0, "equal", "supported"),
        ((1.6, -1.6), (1, 1), 2.0, "higher", "mixed"),  # equal in the mean by cancellation
        ((1.6, -1.6), (1, 1), 2.0, "equal", "mixed"),
        ((3.0, 2.0), (1, 1), 0.5, "higher", "supported"),
        ((3.0, 2.0), (1, 1), 0.5, "lower", "contradicted"),
        ((3.0, 0.1), (1, 1), 0.5, "higher", "supported"),  # a cell that is merely open decides nothing
        ((9.0, -2.0), (1, 1), 0.5, "higher", "mixed"),  # and one that says the opposite does
        ((9.0, -2.0), (1, 1), 0.5, "lower", "mixed"),
        ((-9.0, 2.0), (1, 1), 0.5, "lower", "mixed"),
        ((0.0, 0.0), (0.1, 9), 5.0, "higher", "inconclusive"),  # the mean is equal, a cell may not be
        ((0.2, 0.2), (0.1, 9), 5.0, "equal", "inconclusive"),
        ((3.0, 0.0), (1, 1), 2.5, "equal", "inconclusive"),
        ((6.0, 0.0, 0.0, 0.0), (1, 1, 1, 1), 3.0, "equal", "mixed"),  # equal in the mean, beyond the margin in a cell
        ((0.1, 0.1), (3, 3), 0.2, "higher", "inconclusive"),
    ],
)
def test_the_rule(effects, sds, margin, expect, word):
    found, _, _ = judged(effects, margin, expect, sds=sds)
    assert found.verdict == word
    assert bool(found.depends_on) == (word == "mixed")


def test_the_sentence_of_a_mixed_claim_names_axis_and_cells_beside_the_mean():
    found, comparison, _ = judged((2.0, -1.6, 1.0), 0.5)
    assert found.depends_on == "noise"
    assert found.sentence.startswith("Mixed: it depends on the noise: +2 (")
    assert "at noise 0, batch size 8 and -1.6 (" in found.sentence
    assert found.sentence.endswith(f"in the mean over 3 cells {comparison.sentence}")


def test_other_sentences_say_in_how_many_cells_they_hold():
    assert "; 1 of 2 cells show it alone." in judged((3.0, 0.1), 0.5)[0].sentence
    assert "in each of 2 cells." in judged((0.1, -0.1), 2.0)[0].sentence
    found, _, _ = judged((0.0, 0.0), 5.0, sds=(0.1, 9))
    assert "smaller than the margin of 5 in the mean, which is not shown for 1 of 2 cells" in found.sentence
    assert "at noise 1" in found.sentence
    assert found.seeds_to_settle > 10


def test_one_cell_is_judged_as_before():
    for effect in (0.1, 2.0, -2.0):
        for margin in (0.2, 5.0):
            with_cells, comparison, _ = judged((effect,), margin)
            assert with_cells == stats.verdict(comparison, margin=margin)


def test_cells_are_tested_at_the_claims_level_and_disagree_at_one_that_they_share():
    _, _, cells = judged((1.0, -1.0, 0.5), 0.5)
    by_hand = [stats.paired_difference(1.0 + STANDARD, np.zeros(10), confidence=c) for c in (0.95, 1 - 0.05 / 3)]
    assert cells[0].equivalence_interval == by_hand[0].equivalence_interval
    assert cells[0].interval == by_hand[1].interval


def test_the_two_cells_that_are_named_differ_in_one_axis_where_they_can():
    def cell(size, noise, effect):
        levels = (("batch size", f"batch size {size}"), ("noise", f"noise {noise}"))
        return CellEffect(f"{size} {noise}", levels, effect, (effect - 0.1, effect + 0.1))

    cells = [cell(8, 0, 1.0), cell(8, 0.4, -1.0), cell(16, 0, 2.0), cell(16, 0.4, 0.0)]
    found = disagreement((0.3, 0.7), cells, (-0.5, 0.5), 0.0, equal=False)
    assert (found.axes, found.first, found.second) == ("noise", cells[0], cells[1])
    assert disagreement((0.3, 0.7), cells[:1] + cells[2:], (-0.5, 0.5), 0.0, equal=False) is None


def test_a_cell_that_could_not_be_tested_is_neither_equal_nor_opposite():
    cells = [CellEffect("a", (("noise", "a"),), 0.0, (-0.1, 0.1), (-0.1, 0.1), 1.0)]
    cells += [CellEffect("b", (("noise", "b"),), float("nan"), problem="no run reached it")]
    mean = stats.paired_difference(0.1 * STANDARD, np.zeros(10))
    found = stats.verdict(mean, margin=1.0, cells=cells)
    assert found.verdict == "inconclusive"
    assert "not tested at b (no run reached it)" in found.sentence


# --- error rates under known truth -----------------------------------------------------------------------------------


@pytest.mark.parametrize("effects", [(1.5, -1.5), (1.5, 1.5, -1.5, -1.5)])
def test_planted_mixed_cells_are_called_mixed(effects):
    assert verdict_shares(effects, seeds=12, margin=0.5, trials=200)["mixed"] >= 0.9


@pytest.mark.parametrize(("effects", "correlation"), [((0, 0), 0.5), ((0, 0, 0, 0), 0.0), ((1, 1, 1, 0), 0.0)])
@pytest.mark.parametrize(("noise", "limit"), [("normal", 0.05), ("t4", 0.05), ("skewed", upper_band(200))])
def test_claims_without_opposite_cells_are_not_called_mixed_and_without_effect_not_supported(
    effects, correlation, noise, limit
):
    trials = 200
    found = verdict_shares(effects, seeds=8, margin=0.5, trials=trials, noise=noise, correlation=correlation)
    assert found.get("mixed", 0) <= limit
    if not any(effects):
        wrong = found.get("supported", 0) + found.get("contradicted", 0) + found.get("mixed", 0)
        assert wrong <= upper_band(trials)


def test_cells_beyond_the_margin_that_cancel_are_not_called_equivalent():
    # Each cell lies on the margin, where a test of equivalence errs most: one of them alone would pass in 5%.
    found = verdict_shares((1.0, -1.0), seeds=10, margin=1.0, trials=200, correlation=0.0)
    assert found.get("equivalent", 0) <= 0.05


@pytest.mark.parametrize("cells", [1, 2, 4])
def test_equivalence_in_every_cell_has_the_power_of_the_formula(cells):
    trials, n, margin = 200, 16, 1.0
    found = verdict_shares((0.0,) * cells, seeds=n, margin=margin, trials=trials, correlation=0.0)
    promised = stats.equivalence_power(n, margin, cells=cells)
    assert abs(found["equivalent"] - promised) < 4 * (promised * (1 - promised) / trials) ** 0.5


def test_seeds_that_would_settle_a_claim_show_equality_in_every_cell():
    needed = [stats.seeds_to_settle(1.0, 20, margin=1.0, cell_sds=[1.0] * cells) for cells in (0, 1, 2, 4)]
    assert needed[0] == needed[1] < needed[2] < needed[3]
    for cells in (2, 4):
        n = stats.seeds_for_equivalence(1.0, cells=cells)
        assert stats.equivalence_power(n, 1.0, cells=cells) >= 0.8 > stats.equivalence_power(n - 1, 1.0, cells=cells)
