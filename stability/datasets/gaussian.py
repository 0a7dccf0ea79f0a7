"""The dataset 'latent': noisy linear views of one Gaussian latent, with known closed-form statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stability.datasets.frequencies import offered, with_frequencies
from stability.datasets.registry import Pairs, dataset, split
from stability.registry import InputError
from stability.streams import stream

REGION_AXES = 3
VARIANTS = 16


def canonical_correlation(latent_dim: int, view_dim: int, snr: float) -> float:
    """Return the canonical correlation of the two views of `latent`, the same in each of the latent_dim directions.

    rho = 1 / (1 + latent_dim / (view_dim snr)): a view with orthogonal columns observes each latent coordinate with
    noise of variance latent_dim / (view_dim snr). The mutual information of the views is
    -latent_dim / 2 log(1 - rho^2) nats.

    >>> canonical_correlation(8, 32, 4.0)
    0.9411764705882353
    """
    return 1 / (1 + latent_dim / (view_dim * snr))


def mixing(latent_dim: int, view_dim: int, generator: torch.Generator) -> Tensor:
    """Return a random W (view_dim, latent_dim) with W'W = (view_dim / latent_dim) I, so that E|W z|^2 = view_dim."""
    columns, _ = torch.linalg.qr(torch.randn(view_dim, latent_dim, generator=generator, dtype=torch.float64))
    return columns * math.sqrt(view_dim / latent_dim)


def view(latent: Tensor, weights: Tensor, snr: float, generator: torch.Generator) -> Tensor:
    """Return (..., view_dim) floats: W z plus white noise of variance 1 / snr, scaled to unit mean square.

    Args:
        latent: z, (..., latent_dim).
        weights: W, (view_dim, latent_dim).
        snr: ratio of the signal's variance to the noise's.
        generator: stream of the noise.
    """
    signal = latent @ weights.T
    noise = torch.randn(signal.shape, generator=generator, dtype=signal.dtype) / math.sqrt(snr)
    return ((signal + noise) / math.sqrt(1 + 1 / snr)).float()


def region(latent: Tensor) -> Tensor:
    """Return the region of each latent (..., latent_dim): the signs of its first three coordinates, as bits.

    >>> region(torch.tensor([[1.0, -1.0, 1.0, 9.0], [-1.0, 2.0, -1.0, 9.0]]))
    tensor([5, 2])
    """
    axes = min(REGION_AXES, latent.shape[-1])
    return ((latent[..., :axes] > 0) * 2 ** torch.arange(axes)).sum(-1)


@dataset(offers=lambda options: ("classes", *offered(options)), least={"zipf": 0.0})
def latent(
    *,
    pairs: int = 4096,
    latent_dim: int = 8,
    view_dim: int = 32,
    snr: float = 4.0,
    held_out: float = 0.2,
    modalities: int = 2,
    seed: int = 0,
    zipf: float = 0.0,
    class_mix: Sequence[float] | None = None,
) -> Pairs:
    """Return pairs of real vectors that are two noisy linear views of one Gaussian latent z ~ N(0, I).

    image = (W z + e) / sqrt(1 + 1/snr), and text likewise with its own W and e: (N, view_dim) floats of unit mean
    square, where E|W z|^2 / E|e|^2 = *snr* exactly and W has orthogonal columns (see `mixing`). The views' canonical
    correlations and mutual information are known (see `canonical_correlation`). All captions differ. Classes are the
    eight regions of latents with equal signs of three coordinates (see `region`); the 16 prompts of a class are text
    views of latents drawn in its region.

    Args:
        pairs: number of pairs N.
        latent_dim: dimension of z.
        view_dim: dimension of a view.
        snr: signal-to-noise ratio.
        held_out: share of held-out pairs.
        modalities: number of views of the same latents, each with its own W and e.
        seed: determines views and pairs.
        zipf: s; among training pairs, the frequency of region k = 1, 2... is in proportion to k^-s; 0: as drawn.
            Held-out pairs stay (`stability.datasets.frequencies`).
        class_mix: weights of the regions among training pairs instead.
    """
    where = "dataset 'latent'"
    if not 1 <= latent_dim <= view_dim:
        raise InputError(f"{where}: got latent_dim = {latent_dim}; allowed: 1 to view_dim = {view_dim}")
    if not 0 < snr < math.inf:
        raise InputError(f"{where}: got snr = {snr:g}; allowed: a finite number above 0")
    if modalities < 2:
        raise InputError(f"{where}: got modalities = {modalities}; allowed: 2 or more")
    train, kept = split(pairs, held_out, "latent", stream(seed, "latent/split"))
    of_image, of_text = (
        mixing(latent_dim, view_dim, stream(seed, f"latent/{side}/mixing")) for side in ("image", "text")
    )
    z = torch.randn(pairs, latent_dim, generator=stream(seed, "latent/points"), dtype=torch.float64)
    prompt_stream = stream(seed, "latent/prompts")
    classes = 2 ** min(REGION_AXES, latent_dim)
    points = torch.randn(classes, VARIANTS, latent_dim, generator=prompt_stream, dtype=torch.float64)
    axes = torch.arange(min(REGION_AXES, latent_dim))
    signs = (torch.arange(classes)[:, None] >> axes & 1) * 2 - 1
    points[..., axes] = points[..., axes].abs() * signs[:, None]
    label = region(z)
    train, rank = with_frequencies(train, label, zipf, class_mix, "latent", stream(seed, "latent/frequencies"))
    return Pairs(
        image=view(z, of_image, snr, stream(seed, "latent/image/noise")),
        text=view(z, of_text, snr, stream(seed, "latent/text/noise")),
        caption=torch.arange(pairs),
        label=label,
        train=train,
        held_out=kept,
        prompts=view(points, of_text, snr, prompt_stream),
        frequency_rank=rank,
        extra_modalities=tuple(
            view(
                z,
                mixing(latent_dim, view_dim, stream(seed, f"latent/modality-{number}/mixing")),
                snr,
                stream(seed, f"latent/modality-{number}/noise"),
            )
            for number in range(3, modalities + 1)
        ),
    )
