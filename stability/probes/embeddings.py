"""Geometry of the embeddings: margins between matches and mismatches, modality gap, alignment, uniformity, rank."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from stability.probes.registry import Measure, Replica, probe

RANK = "Exponential of the entropy of the normalized singular values of the"


def margin_and_relative_bias(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return (m, b_rel) = ((p - n) / 2, (p + n) / 2) of the worst positive p and the worst negative n.

    A configuration is an (m, b_rel)-constellation if every positive similarity is at least b_rel + m and every
    negative at most b_rel - m; m may be negative. Bangachev et al. (2025), arXiv:2509.18552, Def. 2 (whose tables
    print 2m).
    """
    return (positive - negative) / 2, (positive + negative) / 2


def effective_rank(rows: Tensor) -> Tensor:
    """Return exp(H(p)) of the singular values s of *rows* (N, D), p = s / sum s, in nats: from 1 to min(N, D).

    The number of dimensions that the embeddings use; the matrix is not centered. NaN if a row is not
    finite. Roy and Vetterli (2007), "The effective rank", EUSIPCO, Def. 1; on embeddings, Garrido et al. (2023),
    arXiv:2210.02885.

    >>> effective_rank(torch.eye(5)).round(decimals=3), effective_rank(torch.ones(7, 3)).round(decimals=3)
    (tensor(5.), tensor(1.))
    """
    finite = rows.isfinite().all()
    # LAPACK rejects a batch with a NaN in any replica. In float64 the roots of the (D, D) product's eigenvalues are
    # exact to 1e-8, and many times cheaper than an SVD of the rows.
    rows64 = torch.where(finite, rows, 0.0).double()
    # On the CPU: a GPU processes the matrices in sequence, each more slowly, and it needs a device sync in any case.
    values = torch.linalg.eigvalsh((rows64.mT @ rows64).cpu()).to(rows.device).clamp(min=0).sqrt()
    rank = torch.special.entr(values / values.sum()).sum().exp()
    return torch.where(finite, rank, torch.nan).to(rows.dtype)


def shift_variance(image: Tensor, text: Tensor) -> Tensor:
    """Return mean |x_i|^2 - |mean x|^2 of the shifts x_i = image_i - text_i, (N, D) each: 0 if all are equal.

    This is the part of the distance between image and text of a pair that no common translation explains: xi of
    Bangachev et al. (2025), arXiv:2509.18552, Sec. 3.
    """
    shift = image - text
    return (shift - shift.mean(0)).square().sum(-1).mean()


@probe(
    measures=(
        Measure(
            "margin",
            "Margin m",
            "Half the distance from the worst positive to the worst negative.",
            better="higher",
        ),
        Measure(
            "separation",
            "Separation 2m",
            "Distance from the worst positive to the worst negative, twice the margin.",
            better="higher",
        ),
        Measure(
            "margin_trimmed",
            "Trimmed margin",
            "The same with the 5% quantile of positives and 95% of negatives.",
        ),
        Measure(
            "relative_bias",
            "Optimal relative bias",
            "Similarity half way between the worst positive and negative: the threshold that leaves both the margin.",
        ),
        Measure("relative_bias_trimmed", "Trimmed relative bias", "The same between the 5% and 95% quantiles."),
        Measure(
            "modality_gap",
            "Modality gap",
            "Distance between the mean image and the mean text embedding.",
            transform="log",
        ),
        Measure(
            "modality_shift_variance",
            "Variance of the modality shift",
            "mean |x|^2 - |mean x|^2 of the shift x from a text to its image: what no common translation explains.",
            transform="log",
        ),
        Measure("effective_rank_image", "Effective rank, images", f"{RANK} image embeddings.", "dimensions"),
        Measure("effective_rank_text", "Effective rank, texts", f"{RANK} text embeddings.", "dimensions"),
        Measure("alignment", "Alignment", "Mean squared distance of the two embeddings of a pair.", transform="log"),
        Measure("uniformity", "Uniformity", "log mean exp(-2 |x - y|^2) over pairs, mean of both modalities."),
    ),
    holds=("similarities",),
)
def geometry(replica: Replica) -> dict[str, Tensor]:
    """Measure margin, relative bias, modality gap, effective rank, alignment and uniformity on held-out pairs.

    Pairs with equal captions count as positive in the margins. With more than two modalities, margins are over all
    pairs of modalities and the other measures are of image and text. The relative bias is on the similarity scale: a
    logit t (s - b_rel). Bangachev et al. (2025), arXiv:2509.18552, Def. 2 (margin, bias)
    and Sec. 3 (variance of the shift); Liang et al. (2022), arXiv:2203.02053 (gap); Roy and Vetterli (2007) (rank);
    Wang and Isola (2020), arXiv:2005.10242 (alignment, alpha = 2; uniformity, t = 2).
    """
    image = replica.embed_image(replica.params, replica.held_out.image)
    text = replica.embed_text(replica.params, replica.held_out.text)
    towers = (image, text, *replica.embed_extra_modalities(replica.params, replica.held_out.extra_modalities))
    similarity = torch.stack([one @ other.T for one, other in combinations(towers, 2)])
    # The indices are the same in every replica, so they can be used under vmap.
    positive, negative = (
        similarity.flatten(1)[:, indices].flatten()
        for indices in (replica.held_out.matches, replica.held_out.mismatches)
    )
    margin, relative_bias = margin_and_relative_bias(positive.min(), negative.max())
    trimmed, relative_bias_trimmed = margin_and_relative_bias(quantile(positive, 0.05), quantile(negative, 0.95))

    def uniformity(x: Tensor) -> Tensor:
        rows = _off_diagonal(-2 * (2 - 2 * x @ x.T))
        return torch.logsumexp(rows, 0) - torch.log(torch.full((), len(rows), device=x.device))

    return {
        "margin": margin,
        "separation": 2 * margin,
        "margin_trimmed": trimmed,
        "relative_bias": relative_bias,
        "relative_bias_trimmed": relative_bias_trimmed,
        "modality_gap": (image.mean(0) - text.mean(0)).norm(),
        "modality_shift_variance": shift_variance(image, text),
        "effective_rank_image": effective_rank(image),
        "effective_rank_text": effective_rank(text),
        "alignment": (image - text).square().sum(-1).mean(),
        "uniformity": (uniformity(image) + uniformity(text)) / 2,
    }


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Return the entries of a square matrix (N, N) off its diagonal, row by row.

    >>> _off_diagonal(torch.arange(9).view(3, 3))
    tensor([1, 2, 3, 5, 6, 7])
    """
    size = len(matrix)
    # After dropping the first entry, the diagonal entries are the last of each group of N + 1.
    return matrix.flatten()[1:].unflatten(0, (size - 1, size + 1))[:, :-1].flatten()


def quantile(values: Tensor, share: float) -> Tensor:
    """Return the smallest of (N,) *values* that at least a *share* of them do not exceed; N may be large.

    >>> quantile(torch.arange(20.0), 0.05), quantile(torch.arange(20.0), 0.95)
    (tensor(0.), tensor(18.))
    """
    rank = max(1, -int(-share * len(values) // 1))
    return values.sort().values[rank - 1]
