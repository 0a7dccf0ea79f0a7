"""Features of locked towers: computed once over the training pairs, so that every step reads rows of a table.

Zhai et al. (2022), LiT, arXiv:2111.07991: a tower that is not trained gives a sample the same features at every step.
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
from stability.probes import Params
from stability.study import Study
from stability.train.cuts import FrozenSplit
from stability.train.feed import PopulationData
from stability.train.population import ModelSpec, within

CHUNK = 256
"""Samples that go through a tower at once."""

IN_MEMORY = 2**26
"""Bytes of features of one replica that are kept in memory; more are mapped from a file."""


@dataclass(frozen=True)
class Features:
    """What a locked tower says of all training pairs: *table* (S, n, ...), and which of the S each replica reads, (R,).

    Replicas with equal weights and equal samples share their features.
    """

    table: Tensor
    owner: Tensor

    def select(self, replicas: Tensor) -> Features:
        """Return the features of some replicas, by their indices."""
        return Features(self.table, self.owner[replicas.to(self.owner.device)])

    @property
    def on_host(self) -> bool:
        """Whether the table lies on the CPU: always where that trains, and where it is mapped from a file."""
        return self.table.device.type == "cpu"

    def rows(self, index: Tensor) -> Tensor:
        """Return the features (R, ..., B, *shape) of pairs; the *index* (R, ..., B) is on the table's device."""
        first = self.owner * self.table.shape[1]
        rows = index + first.view(-1, *(1,) * (index.dim() - 1))
        return self.table.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


def bytes_kept(cut: FrozenSplit, available: int) -> int:
    """Return the bytes of memory that the features of so many pairs take for one replica: none if they are mapped."""
    needed = cut.bytes * available
    return needed if needed <= IN_MEMORY else 0


def kept_features(
    study: Study, plan: ModelSpec, theta: Tensor, feed: PopulationData, pairs: Pairs
) -> dict[str, Features]:
    """Return the features of each modality whose tower can be cut, for replicas with the parameters *theta* (R, P).

    None where pairs are corrupted anew at every step (``data.corruption = "fresh"``): then no sample stays as it is.
    """
    params = plan.layout.unflatten(theta)
    cache = str(study.data.options.get("cache", ""))
    kept = {}
    for modality, cut in plan.cuts.items() if not feed.fresh else ():
        samples, shared = feed.side(modality)
        known = f"{pairs.fingerprint} {modality}" if pairs.fingerprint else ""
        own = within(f"{modality}.", params)
        kept[modality] = features_of(cut, own, samples, shared=shared, cache=cache, known=known)
    return kept


def features_of(
    cut: FrozenSplit, params: Params, samples: Tensor, *, shared: bool, cache: str = "", known: str = ""
) -> Features:
    """Return the features of the training samples: (n, ...) of all replicas (*shared*), or (R, n, ...), of each.

    *params* are the tower's, (R, ...), by its own names. A row of the table is a function of one replica's weights and
    samples alone, whoever trains beside it: the values of a step without a table up to rounding, since there all
    replicas are multiplied at once. Beyond `IN_MEMORY` the table lies in the folder *cache*, with a checksum, as
    prepared data do, and all groups with these weights and samples find it there; *known* is a digest of shared samples
    if there is one, which saves reading them all.

    Raises `InputError` if the cache cannot be written.
    """
    replicas = len(params[cut.names[0]])
    weights = [{name: params[name][place] for name in cut.names} for place in range(replicas)]
    sources = [samples] * replicas if shared else list(samples)
    keys = [
        (digest(own.values()), "" if shared else digest([source])) for own, source in zip(weights, sources, strict=True)
    ]
    number = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    owner = torch.tensor([number[key] for key in keys])
    distinct = [(weights[place], sources[place]) for place in map(keys.index, number)]
    shape = (len(distinct), len(sources[0]), *cut.shape)
    device = params[cut.names[0]].device

    def fill(table: Tensor) -> None:
        for row, (own, source) in enumerate(distinct):
            for start in range(0, len(source), CHUNK):
                chunk = to_device(source[start : start + CHUNK], device)
                table[row, start : start + CHUNK] = cut.features(own, chunk)

    if bytes_kept(cut, len(sources[0])):
        table = torch.empty(shape, dtype=torch.float32, device=device)
        fill(table)
        return Features(table, owner.to(device))

    def build(folder: Path) -> dict[str, object]:
        mapped = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=np.float32, shape=shape)
        fill(torch.from_numpy(mapped))
        mapped.flush()
        return {}

    if shared:
        known = known or digest([samples])
    # Weights do not tell what a tower computes with them; what it makes of the first samples does.
    tried = digest(cut.features(own, to_device(source[:CHUNK], device)) for own, source in distinct)
    key = {"kind": "features", "keys": list(number), "samples": known, "shape": shape, "tried": tried}
    return Features(prepared(key, cache, build).array("features"), owner)


def digest(tensors: Iterable[Tensor]) -> str:
    """Return 32 hexadecimal digits that tell tensors apart by their bits."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
