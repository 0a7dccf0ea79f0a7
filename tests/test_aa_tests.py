"""Small studies of one loss against itself: arms whose luck is apart, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from stability.analysis import analyze, load_results
from stability.calibrate.aa_tests import RIGHT, SEEDS, TWINS, end_to_end, parts, twin_study
from stability.execute import run
from stability.grid import run_table, runs_of
from stability.study import parse_study


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    where = tmp_path_factory.mktemp("twins")
    return end_to_end(where, "siglip", studies=2), load_results(where)


def final_losses(results, arm):
    runs = results.runs[results.runs["arm"] == arm]
    return results.steps.groupby("run")["loss"].last()[runs["run"]].to_numpy()


def test_arms_of_one_loss_with_streams_of_their_own_share_no_number(trained):
    one, other = (final_losses(trained[1], arm) for arm in ("one", "other"))
    assert not np.isclose(one, other, rtol=1e-6).any()


def test_without_a_stream_of_its_own_an_arm_of_one_loss_is_the_same_run(tmp_path):
    text = TWINS.format(loss="siglip", seeds=2).replace('rng_stream = "other"', "").replace("steps = 60", "steps = 6")
    results = load_results(run(parse_study(text, "t.toml", "t"), "cpu", out=tmp_path / "same"))
    assert_allclose(final_losses(results, "one"), final_losses(results, "other"), rtol=1e-6)


def test_a_stream_is_part_of_a_run_and_its_absence_is_not():
    plain = TWINS.format(loss="siglip", seeds=2)
    with_stream, without = (
        parse_study(text, "t.toml", "t") for text in (plain, plain.replace('rng_stream = "other"', 'rng_stream = ""'))
    )
    bare = parse_study(plain.replace('rng_stream = "other"', ""), "t.toml", "t")
    assert without.hash == bare.hash != with_stream.hash
    assert [each.id for each in runs_of(without)] == [each.id for each in runs_of(bare)]
    for apart, same in zip(runs_of(with_stream), runs_of(bare), strict=True):
        assert (apart.id == same.id) == (apart.arm == "one")
        assert apart.rng_seed == (apart.seed if apart.arm == "one" else f"{apart.seed}:other")
    assert all("rng_stream" not in row for row in run_table(runs_of(bare)))


def test_each_small_study_holds_its_own_seeds_and_is_judged_as_if_alone(trained):
    small = list(parts(trained[1]))
    assert len(small) == 2
    for results in small:
        assert sorted(set(results.runs["seed"])) == list(range(SEEDS))
        assert len(results.runs) == len(runs_of(results.study)) == 2 * 2 * SEEDS
        assert set(results.steps["run"]) == set(results.runs["run"])
    assert not set(small[0].runs["run"]) & set(small[1].runs["run"])
    assert all(finding.n_pairs == SEEDS for finding in analyze(small[1], checks=False).claims)


def test_every_study_gives_every_claim_one_verdict(trained):
    found = trained[0]
    assert set(found.verdicts) == {claim.id for claim in twin_study().claims}
    assert all(sum(counts.values()) == found.studies == 2 for counts in found.verdicts.values())


@pytest.mark.slow
def test_a_loss_seldom_beats_itself(tmp_path):
    found = end_to_end(tmp_path, "clip", studies=200)
    for claim, counts in found.verdicts.items():
        assert found.wrong(claim) <= found.allowed, (claim, counts)
        assert sum(counts.get(word, 0) for word in RIGHT) >= 182
    assert found.together <= found.allowed
