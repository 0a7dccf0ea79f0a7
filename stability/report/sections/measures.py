"""The sections that consist of figures alone: rankings and what was measured."""

from __future__ import annotations

from stability.report.figures.convergence import convergence as time_to_threshold
from stability.report.figures.geometry import GEOMETRY, embedding_geometry
from stability.report.figures.levels import along_axes, claimed, decline, flatness, sharpness
from stability.report.figures.rankings import ranking_plots
from stability.report.figures.slices import landscapes
from stability.report.figures.spectra import spectral_densities
from stability.report.figures.trajectories import PLOTS
from stability.report.sections.registry import Blocks, ReportData, section


@section(
    order=30,
    title="Rankings",
    lead="All arms in order, each pair compared within the seeds. Intervals hold for all pairs together, so that the "
    "best of many is not taken for better than it is; arms that share a letter cannot be told apart.",
)
def ranking(data: ReportData) -> Blocks:
    """Yield a plot for each ranking."""
    yield from ranking_plots(data.findings, data.results.study.grid.arms)


@section(
    order=50,
    title="Learning",
    lead="Losses differ in scale, so how far one falls below its chance level says less than what the embeddings can "
    "do on pairs that training never saw.",
)
def learning(data: ReportData) -> Blocks:
    """Yield loss, retrieval and zero-shot accuracy over training, and measures of claims along an axis of the grid."""
    yield from data.over_training("loss", "recall", "zero-shot")
    yield from along_axes(data.results)


@section(
    order=60,
    title="What the claims compare",
    lead="Each run's value of what a claim is about, where no other figure shows it.",
)
def values(data: ReportData) -> Blocks:
    """Yield the values of each measure of a claim that no other section shows."""
    over_training = {plot.measure for plot in PLOTS if plot.id in data.trajectories}
    yield from claimed(data.results, {*over_training, *GEOMETRY, "filter_sharpness", "sharpness_ratio"})


@section(
    order=70,
    title="Robustness to corrupted pairs",
    lead="The same runs with a growing share of pairs corrupted on purpose. An arm that starts lower has less to lose, "
    "so slopes are compared on the chance-corrected logarithmic scale.",
)
def noise(data: ReportData) -> Blocks:
    """Yield retrieval against the noise level."""
    yield from decline(data.results)


@section(
    order=80,
    title="Time to threshold",
    lead="The share of seeds that have reached the claim's threshold, step by step. A run that never does stays out, "
    "and counts in the test as one that took the whole budget.",
)
def convergence(data: ReportData) -> Blocks:
    """Yield the share of seeds that reached each threshold of a claim."""
    yield from time_to_threshold(data.results)


@section(
    order=90,
    title="Gradient noise",
    lead="The share of a batch gradient's squared length that is noise: 0 if every batch says the same, 1 if batches "
    "agree on nothing. It does not change when a loss is multiplied by a constant.",
)
def gradients(data: ReportData) -> Blocks:
    """Yield the gradient noise of encoders and scalars over training."""
    return data.over_training("gradient-noise", "gradient-noise-scalars")


@section(
    order=100,
    title="Temperature and bias",
    lead="The loss's own trained scalars. Adam moves a scalar by at most about the sum of its learning rates.",
)
def scalars(data: ReportData) -> Blocks:
    """Yield temperature and bias over training."""
    return data.over_training("log-scale", "bias")


@section(
    order=110,
    title="Curvature",
    lead="Eigenvalues of the Hessian of the training loss. Raw eigenvalues change with the loss's scale; the sharpness "
    "that Adam sees, as a multiple of the edge of stability, does not.",
)
def curvature(data: ReportData) -> Blocks:
    """Yield sharpness and the spectra of the Hessian."""
    yield from data.over_training("sharpness")
    yield from spectral_densities(data.results)
    yield from sharpness(data.results)


@section(
    order=120,
    title="Loss landscape",
    lead="How the training loss rises around the end of training. Directions are random and every filter moves in "
    "proportion to its norm, so that a rise, as a share of the loss's chance level, can be compared between arms.",
)
def landscape(data: ReportData) -> Blocks:
    """Yield the flatness of every run, and the slices and planes that were computed."""
    yield from flatness(data.results)
    if data.grids:
        yield from landscapes(data.results, data.grids)


@section(
    order=130,
    title="Geometry of the embeddings",
    lead="How far apart matching and mismatched pairs lie on the unit sphere, and images from texts, on held-out data.",
)
def geometry(data: ReportData) -> Blocks:
    """Yield margin, relative bias and modality gap."""
    yield from embedding_geometry(data.results)
