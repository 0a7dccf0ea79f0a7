"""Data several times as large as the memory they may take: prepared, mapped, trained on, run through a locked tower.

Without noise in what is large, since a side that is struck is held in memory, once for each run of a group; with few
held-out pairs, since retrieval compares each with each.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

BUDGET = 100e6
"""Bytes of memory of its own (not of mapped files) by which a process may grow."""

STUDY = """
title = "Larger than memory"
question = "How much is held?"
source = "the test suite"
[data]
{data}
held_out = {held_out}
[model]
image = {{ name = "linear", frozen = {locked} }}
text = {text}
embed_dim = 4
[train]
steps = 20
[grid]
arms = ["clip", "siglip"]
batch_size = [16]
noise = {noise}
lr = [1e-3]
seeds = 2
[probes.retrieval]
every = 20
[[claims]]
id = "recall"
primary = true
text = "a sentence"
measure = "recall_at_1"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.1
"""

TRAINED = """
import json, sys, threading, time
import torch
from stability.grid import groups_of, runs_of
from stability.study import parse_study
from stability.train import Trainer

torch.set_num_threads(1)
sizes, done = [], threading.Event()

def own():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.002):
        sizes.append(own())

before = own()
watcher = threading.Thread(target=watch)
watcher.start()
try:
    study = parse_study(sys.stdin.read(), "large.toml", "large", None)
    (group, *_) = groups_of(runs_of(study), lambda run: 4)
    pairs = study.pairs()
    trainer = Trainer(study, group, pairs, torch.device("cpu"))
    losses = [float(trainer.step()["loss"][0]) for _ in range(20)]
    trainer.read("retrieval")
finally:
    done.set()
    watcher.join()
data = pairs.image.numel() * 4 + pairs.text.numel() * pairs.text.element_size()
told = {"data": data, "grown": max(sizes) - before, "losses": losses, "features": len(trainer.population.features)}
print(json.dumps(told))
"""


def images(where: Path) -> str:
    """Write a shard of small pictures, which 64 x 64 make large, and return the study's data."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("webdataset")
    numbers = np.random.default_rng(0)
    with tarfile.open(where / "pairs.tar", "w") as shard:
        for sample in range(6500):
            file = io.BytesIO()
            image.fromarray(numbers.integers(0, 255, (4, 4, 3), np.uint8)).save(file, "png")
            for ending, content in (("png", file.getvalue()), ("txt", f"number {sample}".encode())):
                member = tarfile.TarInfo(f"{sample:05}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    path = json.dumps(str(where / "pairs.tar"))
    return f'name = "webdataset"\npath = {path}\nimage_size = 64\nmax_tokens = 8\ntokenizer = "bytes"'


def vectors(where: Path) -> str:
    """Write two tables of embeddings, and return the study's data."""
    folder = where / "vectors"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for name in ("audio", "text"):
        np.save(folder / f"{name}.npy", numbers.standard_normal((80_000, 500), np.float32))
    return f'name = "embeddings"\npath = {json.dumps(str(folder))}'


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells a process's own memory")
@pytest.mark.parametrize("frozen", ["false", "true"])
@pytest.mark.parametrize("made", [images, vectors])
def test_data_three_times_the_memory_they_may_take_are_prepared_and_trained_on(made, frozen, tmp_path):
    text = '{ name = "linear" }' if made is vectors else '{ name = "token_transformer", width = 4, heads = 1 }'
    noise, held_out = ([0.0], 0.005) if made is vectors else ([0.0, 0.4], 0.05)
    study = STUDY.format(data=made(tmp_path), frozen=frozen, text=text, noise=noise, held_out=held_out).replace(
        "[model]", f"cache = {json.dumps(str(tmp_path / 'cache'))}\n[model]"
    )
    found = subprocess.run([sys.executable, "-c", TRAINED], input=study, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["data"] > 3 * BUDGET
    assert told["grown"] < BUDGET, told
    assert np.isfinite(told["losses"]).all()
    assert told["features"] == (frozen == "true")
