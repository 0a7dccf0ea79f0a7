"""Landscape grids in a report: slices and planes of runs that were looked at, known beforehand."""

import numpy as np
import pandas as pd
import pytest
from closed_form_results import results_of

from stability.analysis import analyze
from stability.registry import InputError
from stability.report import render
from stability.report.figures.slices import landscapes, line
from stability.results import chance_losses


@pytest.fixture(scope="module")
def results():
    return results_of()


def grids(results, folder, width=1.0):
    """Write bowls 3 + steep (first^2 + second^2): steep is 1 or 2 by the arm, times chance, and rises by 1 a seed."""
    folder.mkdir()
    cells = results.runs[(results.runs["batch_size"] == 8) & (results.runs["noise"] == 0) & (results.runs["seed"] < 2)]
    first, second = (part.flatten() for part in np.meshgrid(*[np.linspace(-width, width, 21)] * 2, indexing="ij"))
    for _, row in cells[cells["arm"] != "siglip-log-b"].iterrows():
        steep = ((1 if row["arm"] == "clip" else 2) + row["seed"]) * chance_losses(results)[row["run"]]
        value = 3 + steep * (first**2 + second**2)
        pd.DataFrame({"first": first, "second": second, "value": value}).to_parquet(
            folder / f"{row['run']}-filter.parquet"
        )


def test_slices_are_medians_and_quarters_of_the_rise_as_a_share_of_chance(results, tmp_path):
    grids(results, tmp_path / "landscape")
    slices, planes = landscapes(results, tmp_path / "landscape")
    ends = slices.table.groupby("arm").tail(1).set_index("arm")
    assert ends["first"].tolist() == [1.0, 1.0]
    assert ends.loc["clip", ["quarter", "median", "three_quarters"]].tolist() == [1.25, 1.5, 1.75]
    assert ends.loc["siglip", ["quarter", "median", "three_quarters"]].tolist() == [2.25, 2.5, 2.75]
    assert "clip 1.5, siglip 2.5" in slices.alt
    assert "4 runs" in slices.caption
    assert planes.table["value"].max() == pytest.approx(6.0)
    assert "siglip, B = 8, seed 1: up to 6" in planes.alt


def test_a_slice_of_a_narrow_grid_ends_where_the_grid_ends_and_skips_what_is_not_finite():
    first, second = (part.flatten() for part in np.meshgrid([-0.5, 0.0, 0.5], [-1.0, 0.0, 1.0], indexing="ij"))
    plane = pd.DataFrame({"first": first, "second": second, "value": first + 10 * second})
    cell = {"arm": "clip", "batch_size": 8, "train_pairs": 0, "corruption": "mismatch", "noise": 0.0, "lr": 1e-3}
    plane = plane.assign(**cell, lr_multiplier=1.0, seed=0, run="r")
    assert np.allclose(line(plane)["step"], line(plane)["value"])
    assert line(plane)["step"].abs().max() == 0.5
    plane.loc[(plane["first"] == 0.5) & (plane["second"] == 0), "value"] = np.inf
    assert line(plane)["step"].max() == 0.0


def test_a_report_shows_the_grids_that_lie_beside_it_and_stays_as_it_was_without(results, tmp_path):
    findings = analyze(results, checks=False)
    without = render(results, findings, tmp_path / "a", ["html"], tmp_path / "landscape")["html"].read_text()
    assert "figure-landscape" not in without
    grids(results, tmp_path / "landscape")
    page = render(results, findings, tmp_path / "a", ["html"], tmp_path / "landscape")["html"].read_text()
    assert page.count('<figure id="figure-landscape-') == 2


def test_a_grid_that_is_none_is_named(results, tmp_path):
    (tmp_path / f"{results.runs['run'][0]}-filter.parquet").write_text("no")
    with pytest.raises(InputError, match="not a grid of `stability landscape`"):
        list(landscapes(results, tmp_path))
