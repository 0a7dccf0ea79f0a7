"""The training data of a population: each replica's corrupted training pairs and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stability.corruptions import Values, corrupt
from stability.datasets import Pairs, rows
from stability.devices import to_device
from stability.grid import Run
from stability.probes import Batch
from stability.streams import stream


def independent_indices(seed: int | str, use: str, count: int, available: int, batch_size: int) -> Tensor:
    """Return the indices (count, B) of independent batches, each drawn without replacement.

    Args:
        seed: seed of the stream.
        use: name of the stream.
        count: number of batches.
        available: number of pairs.
        batch_size: B.
    """
    generator = stream(seed, use)
    return torch.stack([torch.randperm(available, generator=generator)[:batch_size] for _ in range(count)])


def subset_indices(seed: int | str, available: int, count: int) -> Tensor:
    """Return the sorted indices (count,) of the training pairs of a seed; smaller sets are subsets of larger ones.

    The stream depends only on the seed, so all losses and noise levels use the same pairs.
    """
    return torch.randperm(available, generator=stream(seed, "train_pairs"))[:count].sort().values


@dataclass(frozen=True)
class PopulationData:
    """The training pairs of R replicas.

    Attributes:
        runs: the run of each replica.
        image: (R, n, ...), or (n, ...) if *shared_image*.
        text: (R, n, ...), or (n, ...) if *shared_text*.
        extra_modalities: further samples by name, (n, ...), or (R, n, ...) if *part*. They are never corrupted: a
            mismatch moves the text, and they stay with the image.
        caption: caption ids (n,), or (R, n) if *part*.
        images: the range of image values, from which noise is drawn.
        texts: the range of text values, from which noise is drawn.
        shared_image: whether all replicas share the images.
        shared_text: whether all replicas share the texts.
        fresh: whether `batch` corrupts pairs anew each time; otherwise they are already corrupted.
        device: where batches are needed.
        on_host: whether the pairs are on the CPU, where batches are gathered, corrupted, and copied while the device
            computes. True for fresh corruption, whose random numbers are drawn on the CPU, and for data too large for
            the device's memory.
        part: whether each replica trains on a subset of the pairs.
    """

    runs: Sequence[Run]
    image: Tensor
    text: Tensor
    extra_modalities: Mapping[str, Tensor]
    caption: Tensor
    images: Values
    texts: Values
    shared_image: bool
    shared_text: bool
    fresh: bool
    device: torch.device
    on_host: bool
    part: bool = False

    @property
    def available(self) -> int:
        """Number of training pairs of one replica."""
        return self.caption.shape[-1]

    @property
    def batch_size(self) -> int:
        """The batch size that all replicas share."""
        return self.runs[0].batch_size

    def select(self, replicas: list[int]) -> PopulationData:
        """Return the data of some of the replicas, by their indices."""
        rows = to_device(torch.tensor(replicas), self.image.device)
        return replace(
            self,
            runs=[self.runs[replica] for replica in replicas],
            image=self.image if self.shared_image else self.image.index_select(0, rows),
            text=self.text if self.shared_text else self.text.index_select(0, rows),
            extra_modalities={
                name: x.index_select(0, rows) if self.part else x for name, x in self.extra_modalities.items()
            },
            caption=self.caption[replicas] if self.part else self.caption,
        )

    def generators(self, use: str) -> tuple[torch.Generator, ...]:
        """Return each replica's random stream of fresh corruption for one *use*."""
        return tuple(stream(run.rng_seed, f"corruption/{run.corruption}/{use}") for run in self.runs)

    def samples_of(self, modality: str) -> tuple[Tensor, bool]:
        """Return the samples of one modality, and whether all replicas share them."""
        samples = {"image": (self.image, self.shared_image), "text": (self.text, self.shared_text)}
        return samples[modality] if modality in samples else (self.extra_modalities[modality], not self.part)

    def batch(self, index: Tensor, generators: Sequence[torch.Generator], without: Collection[str] = ()) -> Batch:
        """Return the pairs at an index, on the device: the samples of each modality, and the index itself.

        Args:
            index: (R, ..., B), on any device; on the CPU if the pairs are *on_host*.
            generators: each replica's stream of fresh corruption.
            without: modalities to leave out; none under fresh corruption.
        """
        if not self.on_host:
            index = to_device(index, self.device)
        batch = {
            name: _gather(*self.samples_of(name), index)
            for name in ("image", "text", *self.extra_modalities)
            if name not in without
        }
        if self.fresh:
            batch["image"], batch["text"] = self._corrupt(batch["image"], batch["text"], index, generators)
        return {name: to_device(values, self.device) for name, values in {**batch, "index": index}.items()}

    def _corrupt(
        self, image: Tensor, text: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        lead = index.shape[:-1]
        flat = [values.flatten(0, len(lead) - 1) for values in (image, text, index)]
        owners = torch.arange(len(index)).repeat_interleave(lead.numel() // len(index)).tolist()
        noisy = [
            corrupt(
                self.runs[owner].corruption,
                one_image,
                one_text,
                images=self.images,
                texts=self.texts,
                caption=(self.caption[owner] if self.part else self.caption)[rows],
                level=self.runs[owner].noise,
                generator=generators[owner],
            )
            for owner, one_image, one_text, rows in zip(owners, *flat, strict=True)
        ]
        return tuple(torch.stack(part).unflatten(0, lead) for part in zip(*noisy, strict=True))


def _gather(values: Tensor, shared: bool, index: Tensor) -> Tensor:
    """Return the samples at *index* (R, ..., B) of values (n, ...), or (R, n, ...) if replicas do not share them."""
    if not shared:
        first = torch.arange(len(index), device=index.device) * values.shape[1]
        index = index + first.view(-1, *(1,) * (index.dim() - 1))
        values = values.flatten(0, 1)
    # `index_select` copies whole samples, several times faster than indexing, which copies number by number.
    return values.index_select(0, index.flatten()).unflatten(0, index.shape)


HOST_SHARE = 0.25
"""Maximal share of a GPU's memory for training pairs; larger data stay on the host."""


def exceeds_share(device: torch.device, tensors: Sequence[Tensor]) -> bool:
    """Return whether the data would take more than `HOST_SHARE` of a GPU's memory; False on other devices."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) > HOST_SHARE * total


def population_data(runs: Sequence[Run], pairs: Pairs, kind: str, device: torch.device) -> PopulationData:
    """Return the training data of these runs on *device*; *kind* is the study's ``data.corruption``: fixed or fresh.

    Args:
        runs: the run of each replica, of one batch size.
        pairs: the study's data.
        kind: the study's ``data.corruption``: fixed or fresh.
        device: where training takes place.
    """
    image, text, caption = (rows(part, pairs.train) for part in (pairs.image, pairs.text, pairs.caption))
    clean = [(image, text, caption)] * len(runs)
    part = bool(runs[0].train_pairs)
    kept = [subset_indices(run.rng_seed, len(pairs.train), run.train_pairs) for run in runs] if part else []
    if part:
        clean = [(image[index], text[index], caption[index]) for index in kept]
        caption = torch.stack([subset for *_, subset in clean])
    images = Values.of(image, pairs.image_vocabulary, blank=False)
    texts = Values.of(text, len(pairs.vocabulary), blank=pairs.vocabulary[:1] == ("",))
    extra_modalities = {
        f"modality-{number}": rows(samples, pairs.train)
        for number, samples in enumerate(pairs.extra_modalities, start=3)
    }
    noisy = [(run_image, run_text) for run_image, run_text, _ in clean]
    if kind == "fixed":
        noisy = [
            corrupt(
                run.corruption,
                run_image,
                run_text,
                images=images,
                texts=texts,
                caption=run_caption,
                level=run.noise,
                generator=stream(run.rng_seed, f"corruption/{run.corruption}"),
            )
            # At level 0 nothing is corrupted: keep the shared tensor, which may be memory-mapped from disk.
            if run.noise
            else (run_image, run_text)
            for run, (run_image, run_text, run_caption) in zip(runs, clean, strict=True)
        ]
    shared_image = all(pair[0] is image for pair in noisy)
    shared_text = all(pair[1] is text for pair in noisy)
    images_read = image if shared_image else torch.stack([pair[0] for pair in noisy])
    texts_read = text if shared_text else torch.stack([pair[1] for pair in noisy])
    if part:
        extra_modalities = {
            name: torch.stack([samples[index] for index in kept]) for name, samples in extra_modalities.items()
        }
    on_host = kind == "fresh" or exceeds_share(device, [images_read, texts_read, *extra_modalities.values()])
    where = torch.device("cpu") if on_host else device
    return PopulationData(
        runs=runs,
        image=images_read.to(where),
        text=texts_read.to(where),
        extra_modalities={name: samples.to(where) for name, samples in extra_modalities.items()},
        caption=caption,
        images=images,
        texts=texts,
        shared_image=shared_image,
        shared_text=shared_text,
        fresh=kind == "fresh",
        device=device,
        on_host=on_host,
        part=part,
    )


def held_out_data(
    data: PopulationData, image: Tensor, text: Tensor, extra_modalities: Sequence[Tensor], caption: Tensor, use: str
) -> PopulationData:
    """Return held-out pairs for the runs of *data*, corrupted like their training pairs.

    With *fresh* corruption each batch is corrupted; with *fixed* corruption the pairs are corrupted once, by each run's
    stream for this *use*.

    Args:
        data: the training data.
        image: held-out images (m, ...).
        text: held-out texts (m, ...).
        extra_modalities: held-out samples of each further modality.
        caption: ids (m,) of the captions.
        use: name of the random stream.
    """
    clean = replace(
        data,
        image=image,
        text=text,
        extra_modalities={f"modality-{number}": samples for number, samples in enumerate(extra_modalities, start=3)},
        caption=caption.cpu(),
        shared_image=True,
        shared_text=True,
        on_host=False,
        part=False,
    )
    noise = any(run.noise for run in data.runs)
    if not (data.fresh or noise):
        return clean
    on_host = replace(
        clean,
        image=image.cpu(),
        text=text.cpu(),
        extra_modalities={name: samples.cpu() for name, samples in clean.extra_modalities.items()},
        on_host=True,
    )
    if data.fresh:
        return on_host
    everything = torch.arange(len(image)).expand(len(data.runs), 1, -1)
    noisy = replace(on_host, fresh=True).batch(everything, data.generators(use))
    return replace(clean, image=noisy["image"][:, 0], text=noisy["text"][:, 0], shared_image=False, shared_text=False)


def uniform_numbers(runs: Sequence[Run], generators: Mapping[int | str, torch.Generator], lead: torch.Size) -> Tensor:
    """Return random numbers in [0, 1) for losses, (R, *lead, B, B): the same for replicas with the same seed."""
    size = runs[0].batch_size
    by_seed = {seed: torch.rand(*lead, size, size, generator=generator) for seed, generator in generators.items()}
    return torch.stack([by_seed[run.rng_seed] for run in runs])


def text_fingerprints(text: Tensor, multipliers: Tensor) -> Tensor:
    """Return a 64-bit hash (..., B) of each text (..., B, T): equal texts have equal hashes.

    *multipliers* (T,) are random odd 64-bit integers; arithmetic wraps around. Floats are hashed by their bits.
    """
    bits = text if text.dtype == torch.int64 else text.contiguous().view(torch.int32).long()
    return ((bits + 1) * multipliers).sum(-1)


def false_negative_fraction(fingerprint: Tensor, shards: int = 1) -> Tensor:
    """Return the fraction of off-diagonal pairs of a batch (..., B) with equal fingerprints: its false negatives.

    With several *shards*, only pairs within a shard are negatives.

    >>> fingerprint = torch.tensor([5, 7, 5, 5])
    >>> false_negative_fraction(fingerprint), false_negative_fraction(fingerprint, shards=2)
    (tensor(0.5000), tensor(0.5000))
    """
    if shards > 1:
        parts = [false_negative_fraction(part) for part in fingerprint.chunk(shards, -1)]
        return sum(parts[1:], parts[0]) / shards
    size = fingerprint.shape[-1]
    # Equal elements are adjacent after sorting, so no B x B comparison is needed.
    ordered = fingerprint.sort(-1).values
    last, first = (torch.searchsorted(ordered, ordered, right=right) for right in (True, False))
    same = (last - first).sum(-1) - size
    return same / (size * (size - 1))
