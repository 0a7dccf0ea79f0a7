"""What the replicas of a population read: their corrupted training pairs and the batches drawn from them."""

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
    """Return (count, B) indices of batches drawn independently of each other, without repetition inside a batch."""
    generator = stream(seed, use)
    return torch.stack([torch.randperm(available, generator=generator)[:batch_size] for _ in range(count)])


def subset_indices(seed: int | str, available: int, count: int) -> Tensor:
    """Return (count,) sorted indices of the training pairs that a seed is left with; a smaller part lies in a larger.

    The stream depends on the seed alone, so all losses and noise levels have the same pairs.
    """
    return torch.randperm(available, generator=stream(seed, "train_pairs"))[:count].sort().values


@dataclass(frozen=True)
class PopulationData:
    """The training pairs of R replicas: image and text (R, n, ...), or (n, ...) where all replicas share them.

    Further modalities, by name, are never corrupted: they stay with the image where a mismatch moves the text. They are
    shared like *caption* (n,), unless each replica has a *part* of the pairs: then both have a replica axis.

    With *fixed* corruption the pairs are corrupted already; with *fresh* corruption `batch` does it, each time anew.

    The pairs lie on the *device*, unless they are *on_host*: then a batch is gathered, and corrupted, on the CPU, and
    moved while the device computes. That is so with fresh corruption, whose numbers are drawn on the CPU, and for data
    that would fill the device's memory.
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
        """Return the feed of some of the replicas, by their indices."""
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
        """Return each replica's random stream for the fresh corruption of one *use*."""
        return tuple(stream(run.rng_seed, f"corruption/{run.corruption}/{use}") for run in self.runs)

    def side(self, modality: str) -> tuple[Tensor, bool]:
        """Return the samples of one modality, and whether all replicas share them."""
        sides = {"image": (self.image, self.shared_image), "text": (self.text, self.shared_text)}
        return sides[modality] if modality in sides else (self.extra_modalities[modality], not self.part)

    def batch(self, index: Tensor, generators: Sequence[torch.Generator], without: Collection[str] = ()) -> Batch:
        """Return the pairs at *index* (R, ..., B): the samples of each modality, and the index itself, on the device.

        Modalities that are not needed, *without*, are left out; under fresh corruption all are needed. The index may
        lie on the CPU, and must where the pairs are *on_host*.
        """
        if not self.on_host:
            index = to_device(index, self.device)
        batch = {
            name: _gather(*self.side(name), index)
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
                caption=(self.caption[owner] if self.part else self.caption)[place],
                level=self.runs[owner].noise,
                generator=generators[owner],
            )
            for owner, one_image, one_text, place in zip(owners, *flat, strict=True)
        ]
        return tuple(torch.stack(part).unflatten(0, lead) for part in zip(*noisy, strict=True))


def _gather(values: Tensor, shared: bool, index: Tensor) -> Tensor:
    """Return the samples at *index* (R, ..., B) of values (n, ...), or (R, n, ...) where replicas do not share them."""
    if not shared:
        first = torch.arange(len(index), device=index.device) * values.shape[1]
        index = index + first.view(-1, *(1,) * (index.dim() - 1))
        values = values.flatten(0, 1)
    # Whole samples are copied: several times faster than indexing, which takes number by number.
    return values.index_select(0, index.flatten()).unflatten(0, index.shape)


HOST_SHARE = 0.25
"""Share of a GPU's memory that training pairs may take; where they would take more, they stay on the host."""


def fills(device: torch.device, sides: Sequence[Tensor]) -> bool:
    """Return whether *sides* of the data would take more than their share of the memory of a GPU."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return sum(side.numel() * side.element_size() for side in sides) > HOST_SHARE * total


def population_data(runs: Sequence[Run], pairs: Pairs, kind: str, device: torch.device) -> PopulationData:
    """Return the feed of these runs for *device*; *kind* is the study's ``data.corruption``: fixed or fresh."""
    image, text, caption = (rows(part, pairs.train) for part in (pairs.image, pairs.text, pairs.caption))
    clean = [(image, text, caption)] * len(runs)
    part = bool(runs[0].train_pairs)
    kept = [subset_indices(run.rng_seed, len(pairs.train), run.train_pairs) for run in runs] if part else []
    if part:
        clean = [(image[places], text[places], caption[places]) for places in kept]
        caption = torch.stack([own for *_, own in clean])
    images = Values.of(image, pairs.image_vocabulary, blank=False)
    texts = Values.of(text, len(pairs.vocabulary), blank=pairs.vocabulary[:1] == ("",))
    extra_modalities = {
        f"modality-{place}": rows(samples, pairs.train) for place, samples in enumerate(pairs.extra_modalities, start=3)
    }
    noisy = [(own_image, own_text) for own_image, own_text, _ in clean]
    if kind == "fixed":
        noisy = [
            corrupt(
                run.corruption,
                own_image,
                own_text,
                images=images,
                texts=texts,
                caption=own_caption,
                level=run.noise,
                generator=stream(run.rng_seed, f"corruption/{run.corruption}"),
            )
            # At level 0 nothing is struck: the side stays the tensor that all share, maybe mapped from disk.
            if run.noise
            else (own_image, own_text)
            for run, (own_image, own_text, own_caption) in zip(runs, clean, strict=True)
        ]
    shared_image = all(pair[0] is image for pair in noisy)
    shared_text = all(pair[1] is text for pair in noisy)
    images_read = image if shared_image else torch.stack([pair[0] for pair in noisy])
    texts_read = text if shared_text else torch.stack([pair[1] for pair in noisy])
    if part:
        extra_modalities = {
            name: torch.stack([samples[places] for places in kept]) for name, samples in extra_modalities.items()
        }
    on_host = kind == "fresh" or fills(device, [images_read, texts_read, *extra_modalities.values()])
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
    feed: PopulationData, image: Tensor, text: Tensor, extra_modalities: Sequence[Tensor], caption: Tensor, use: str
) -> PopulationData:
    """Return the feed of held-out pairs for the runs of *feed*, corrupted as their training pairs are.

    With *fresh* corruption each batch is, with *fixed* the pairs are once, by each run's stream for this *use*.
    """
    clean = replace(
        feed,
        image=image,
        text=text,
        extra_modalities={f"modality-{number}": samples for number, samples in enumerate(extra_modalities, start=3)},
        caption=caption.cpu(),
        shared_image=True,
        shared_text=True,
        on_host=False,
        part=False,
    )
    noise = any(run.noise for run in feed.runs)
    if not (feed.fresh or noise):
        return clean
    on_host = replace(
        clean,
        image=image.cpu(),
        text=text.cpu(),
        extra_modalities={name: samples.cpu() for name, samples in clean.extra_modalities.items()},
        on_host=True,
    )
    if feed.fresh:
        return on_host
    everything = torch.arange(len(image)).expand(len(feed.runs), 1, -1)
    noisy = replace(on_host, fresh=True).batch(everything, feed.generators(use))
    return replace(clean, image=noisy["image"][:, 0], text=noisy["text"][:, 0], shared_image=False, shared_text=False)


def uniform_numbers(runs: Sequence[Run], generators: Mapping[int | str, torch.Generator], lead: torch.Size) -> Tensor:
    """Return numbers in [0, 1) for losses that draw, (R, *lead, B, B): the same for replicas of one seed."""
    size = runs[0].batch_size
    by_seed = {seed: torch.rand(*lead, size, size, generator=generator) for seed, generator in generators.items()}
    return torch.stack([by_seed[run.rng_seed] for run in runs])


def identity(text: Tensor, salt: Tensor) -> Tensor:
    """Return a 64-bit fingerprint (..., B) of each text (..., B, T): equal texts have equal fingerprints.

    *salt* (T,) are random odd 64-bit numbers; arithmetic wraps around. Reals are fingerprinted by their bits.
    """
    bits = text if text.dtype == torch.int64 else text.contiguous().view(torch.int32).long()
    return ((bits + 1) * salt).sum(-1)


def false_negative_fraction(fingerprint: Tensor) -> Tensor:
    """Return the share of off-diagonal pairs of a batch (..., B) whose fingerprints are equal: its false negatives.

    >>> false_negative_fraction(torch.tensor([5, 7, 5, 5]))
    tensor(0.5000)
    """
    size = fingerprint.shape[-1]
    # Sorted, an element's equals lie together: no B x B comparison.
    ordered = fingerprint.sort(-1).values
    last, first = (torch.searchsorted(ordered, ordered, right=right) for right in (True, False))
    same = (last - first).sum(-1) - size
    return same / (size * (size - 1))
