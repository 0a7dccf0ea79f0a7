"""Features of frozen towers, computed once over the training pairs so that every step reads rows of a table.

Zhai et al. (2022), LiT, arXiv:2111.07991: a frozen tower maps a sample to the same features at every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stability.datasets import Pairs
from stability.datasets.cache import prepared
from stability.devices import to_device
from stability.precision import autocast
from stability.probes import Params
from stability.study import Study
from stability.train.data import PopulationData
from stability.train.frozen import FrozenSplit
from stability.train.model import ModelSpec, subtree

CHUNK = 256
"""Number of samples in one forward pass of a tower."""

IN_MEMORY = 2**26
"""Maximal bytes of one replica's features kept in memory; larger tables are memory-mapped from a file."""


@dataclass(frozen=True)
class Features:
    """The outputs of a frozen tower for all training pairs. Replicas with equal weights and samples share an entry.

    Attributes:
        table: the S distinct sets of features, (S, n, ...).
        owner: which of them each replica reads, (R,).
    """

    table: Tensor
    owner: Tensor

    def select(self, replicas: Tensor) -> Features:
        """Return the features of some replicas, by their indices."""
        return Features(self.table, self.owner[replicas.to(self.owner.device)])

    @property
    def on_host(self) -> bool:
        """Whether the table is on the CPU: always when training on the CPU, and when it is memory-mapped."""
        return self.table.device.type == "cpu"

    def rows(self, index: Tensor) -> Tensor:
        """Return the features (R, ..., B, *shape) of pairs; *index* (R, ..., B) is on the table's device."""
        first = self.owner * self.table.shape[1]
        rows = index + first.view(-1, *(1,) * (index.dim() - 1))
        return self.table.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


def bytes_kept(split: FrozenSplit, available: int) -> int:
    """Return the bytes of memory for one replica's features of *available* pairs: 0 if they are memory-mapped."""
    needed = split.bytes * available
    return needed if needed <= IN_MEMORY else 0


def kept_features(
    study: Study, spec: ModelSpec, theta: Tensor, data: PopulationData, pairs: Pairs
) -> dict[str, Features]:
    """Return the features of each modality whose tower can be split, for replicas with the parameters *theta* (R, P).

    Empty if pairs are corrupted anew at every step (``data.corruption = "fresh"``), since then samples change.

    Args:
        study: the study.
        spec: what all replicas share.
        theta: parameters (R, P).
        data: the training data.
        pairs: the study's data.
    """
    params = spec.layout.unflatten(theta)
    cache = str(study.data.options.get("cache", ""))
    kept = {}
    for modality, split in spec.splits.items() if not data.fresh else ():
        samples, shared = data.samples_of(modality)
        samples_digest = f"{pairs.fingerprint} {modality}" if pairs.fingerprint else ""
        tower_params = subtree(f"{modality}.", params)
        with autocast(spec.precision.towers, theta.device):
            kept[modality] = features_of(
                split, tower_params, samples, shared=shared, cache=cache, samples_digest=samples_digest
            )
    return kept


def features_of(
    split: FrozenSplit, params: Params, samples: Tensor, *, shared: bool, cache: str = "", samples_digest: str = ""
) -> Features:
    """Return the features of the training samples.

    A row of the table depends only on one replica's weights and samples, not on the other replicas. It equals the
    values of a step without a table up to rounding, since there all replicas are multiplied at once.

    Args:
        split: the split tower.
        params: the tower's parameters (R, ...), by their names in the tower.
        samples: the training samples, (n, ...) if *shared*, else (R, n, ...).
        shared: whether all replicas share the samples.
        cache: folder of tables larger than `IN_MEMORY`, stored with a checksum like prepared data; all groups with
            the same weights and samples read the same table.
        samples_digest: a digest of shared samples, if known; it saves reading all of them.

    Raises:
        InputError: if the cache cannot be written.
    """
    replicas = len(params[split.names[0]])
    weights = [{name: params[name][replica] for name in split.names} for replica in range(replicas)]
    sources = [samples] * replicas if shared else list(samples)
    keys = [
        (digest(tensors.values()), "" if shared else digest([source]))
        for tensors, source in zip(weights, sources, strict=True)
    ]
    number = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    owner = torch.tensor([number[key] for key in keys])
    distinct = [(weights[replica], sources[replica]) for replica in map(keys.index, number)]
    shape = (len(distinct), len(sources[0]), *split.shape)
    device = params[split.names[0]].device

    def fill(table: Tensor) -> None:
        for row, (tensors, source) in enumerate(distinct):
            for start in range(0, len(source), CHUNK):
                chunk = to_device(source[start : start + CHUNK], device)
                table[row, start : start + CHUNK] = split.features(tensors, chunk)

    if bytes_kept(split, len(sources[0])):
        table = torch.empty(shape, dtype=torch.float32, device=device)
        fill(table)
        return Features(table, owner.to(device))

    def build(folder: Path) -> dict[str, object]:
        mapped = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=np.float32, shape=shape)
        fill(torch.from_numpy(mapped))
        mapped.flush()
        return {}

    if shared:
        samples_digest = samples_digest or digest([samples])
    # Weights alone do not identify the function, so its outputs on the first chunk are hashed as well.
    outputs = digest(split.features(tensors, to_device(source[:CHUNK], device)) for tensors, source in distinct)
    key = {"kind": "features", "keys": list(number), "samples": samples_digest, "shape": shape, "tried": outputs}
    return Features(prepared(key, cache, build).array("features"), owner)


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a hash of the bits of tensors, as 32 hexadecimal digits."""
    result = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()
