"""The paragraphs of the method that define its losses and measures, with their formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stability.analysis import Findings, Results
from stability.contrasts import contrast
from stability.losses import loss
from stability.report.blocks import Formula

Paragraphs = Iterator[tuple[str, str, *tuple[Formula, ...]]]
"""Paragraphs with a title, a text, and the formulas below it."""

LOSSES = {
    "clip": Formula(
        "L = −1/(2B) Σ_i [log softmax_j(t⟨x_i, y_j⟩)_i + log softmax_j(t⟨x_j, y_i⟩)_i]",
        "L = −1/(2 B) ∑_(i=1)^B [log e^(t ⟨ x_i, y_i ⟩) / (∑_j e^(t ⟨ x_i, y_j ⟩))"
        " + log e^(t ⟨ x_i, y_i ⟩) / (∑_j e^(t ⟨ x_j, y_i ⟩))]",
    ),
    "siglip": Formula(
        "L = 1/B Σ_i Σ_j log(1 + exp(−z_ij (t⟨x_i, y_j⟩ + b))), z_ij = 1 if i = j, else −1",
        "L = 1/B ∑_(i=1)^B ∑_(j=1)^B log(1 + e^(−z_(i j) (t ⟨ x_i, y_j ⟩ + b))),"
        " quad z_(i j) = cases(+1 quad &i = j, −1 quad &i ≠ j)",
    ),
}

NOISE = Formula(
    "φ = tr Σ/(tr Σ + |G|²), tr Σ = Σ_k |g_k − ḡ|²/(K − 1), |G|² = |ḡ|² − tr Σ/K",
    'φ = (op("tr") Σ) / (op("tr") Σ + |G|^2), quad op("tr") Σ = 1/(K − 1) ∑_(k=1)^K |g_k − macron(g)|^2,'
    ' quad |G|^2 = |macron(g)|^2 − (op("tr") Σ) / K',
)

CHANCE = Formula("f(x) = log((x − c)/(1 − c))", "f(x) = log (x − c) / (1 − c)")

TIME = Formula(
    "d_s = mean over cells of log min(T_a, N) − log min(T_b, N)",
    'd_s = op("mean", limits: #true)_"cells" [log min(T_s^a, N) − log min(T_s^b, N)]',
)

SHARPNESS = Formula(
    "λ_max(P^−½ H P^−½) / ((2 + 2β₁)/((1 − β₁)η)), P = √v̂ + ε",
    r'(λ_"max" (P^(−1\/2) H P^(−1\/2))) / ((2 + 2 β_1) \/ ((1 − β_1) η)), quad P = op("diag")(sqrt(hat(v)) + ε)',
)

MARGIN = Formula("m = (p − q)/2, b_rel = (p + q)/2", 'm = (p − q) / 2, quad b_"rel" = (p + q) / 2')


def losses(results: Results) -> Paragraphs:
    """Yield a paragraph for each loss, with the formula of the losses that are compared most."""
    study = results.study
    arms = {name: study.arm(name) for name in study.grid.arms}
    for name in dict.fromkeys(arm.loss for arm in arms.values()):
        using = [f"{label}{_options(arm.options)}" for label, arm in arms.items() if arm.loss == name]
        summary = loss[name].summary.replace(" - ", " − ").replace(" x ", " × ")
        text = f"{summary} Arms: {', '.join(using)}."
        if name in LOSSES:
            text += " With x and y the unit embeddings of a batch of B images and texts:"
        yield (f"The loss {name}", text, *([LOSSES[name]] if name in LOSSES else []))


def _options(options: dict[str, Any]) -> str:
    words = ", ".join(f"{key} = {value}" for key, value in options.items())
    return f" ({words})" if words else ""


def measures(results: Results, findings: Findings) -> Paragraphs:
    """Yield a paragraph for each kind of measure that the study took."""
    columns = set(results.steps.columns)
    scales = {
        claim.measure for claim in findings.claims if results.measures[claim.measure].transform == "log_above_chance"
    }
    if "gradient_noise_trace_towers" in columns:
        yield (
            "Gradient noise",
            "At a checkpoint, gradients g of K whole batches of the training size are drawn independently; a batch is "
            "never split, since a contrastive loss couples its samples. Trace and squared mean are averaged over a "
            "window of steps before they are divided, because |G|² alone may come out negative. Towers and the loss's "
            "scalars are measured separately.",
            NOISE,
        )
    if "matched_bias" in columns:
        yield (
            "Both losses at the same parameters",
            "The gradient noise of CLIP's loss and of SigLIP's is taken over the same batches at one checkpoint, "
            "whichever loss trained it, at the checkpoint's own t. Where it has no b, SigLIP's is the one that "
            "minimizes its mean loss over as many batches of held-out pairs: b is never fitted on a pair of the "
            "training set, of which the batches that are measured are drawn.",
        )
    if scales and any(contrast[claim.contrast].traits.on == "transform" for claim in findings.claims):
        yield (
            "Bounded measures",
            "A measure x between chance c and 1 is compared on a chance-corrected logarithmic scale, because otherwise "
            "an arm with low initial values would appear to lose less. Values below 1.1 × chance are set to 1.1 × "
            "chance.",
            CHANCE,
        )
    if any(claim.contrast == "time_to_threshold" for claim in findings.claims):
        yield (
            "Time to threshold",
            "T is the first evaluation at or beyond the threshold, N the steps of a run. A run that never gets there "
            "counts as one that took all N, which draws the ratio towards 1. Per seed s:",
            TIME,
        )
    if "hessian_max_eigenvalue" in columns:
        yield (
            "Curvature",
            "The Hessian H belongs to the mean training loss over fixed batches. Its ends and density come from "
            "Lanczos with full reorthogonalization, its trace from Hutchinson's estimate, all seeded. Sharpness is "
            "taken as the optimizer sees it, over the towers, in units of the edge of stability, for Adam at momentum "
            "β₁ and learning rate η (Cohen et al. 2022, arXiv:2207.14484):",
            SHARPNESS,
        )
    if "filter_sharpness" in columns:
        yield (
            "Flatness",
            "Every filter of the encoders (the weights behind one output) is moved at random by a given share of its "
            "own norm, in both directions; the mean rise of the loss over fixed batches, divided by the loss's chance "
            "level, changes neither with the loss's scale nor with the scale of a filter (Li et al. 2018, "
            "arXiv:1712.09913).",
        )
    if "margin" in columns:
        yield (
            "Margin and relative bias",
            "p is the smallest similarity of a matching held-out pair, q the largest of a mismatched one (trimmed: the "
            "5% and 95% quantiles). Pairs with equal captions match (Bangachev et al. 2025, arXiv:2509.18552).",
            MARGIN,
        )
