"""Milliseconds per replica and step with locked towers: their features read from a table, and computed at every step.

python benchmarks/features.py

Both are the same population of the same study, with and without its tables, stepped in turns; the best round counts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from stability.execute.machine import device_model, reproducible_arithmetic
from stability.grid import groups_of, runs_of
from stability.study import Study, parse_study
from stability.train import Trainer

REPLICAS, BATCH, ROUNDS, STEPS = 8, 64, 5, 10

STUDY = """
title = "Locked towers"
question = "What does a step cost?"
source = "benchmarks/features.py"
[data]
name = "shapes"
[model]
image = {{ {image}, frozen = true }}
text = {{ name = "token_transformer", frozen = {text_locked} }}
[train]
steps = 1000
[grid]
arms = ["clip", "siglip"]
batch_size = [{batch}]
noise = [0.0, 0.4]
lr = [1e-3]
seeds = {seeds}
[probes.retrieval]
every = 100
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

TOWERS = {
    "conv": 'name = "conv"',
    "patch_transformer": 'name = "patch_transformer"',
    "patch_transformer, width 64, depth 4": 'name = "patch_transformer", width = 64, depth = 4',
}


def study_of(image: str, text_locked: bool) -> Study:
    text = STUDY.format(image=image, text_locked=str(text_locked).lower(), batch=BATCH, seeds=REPLICAS // 2)
    return parse_study(text, "locked.toml", "frozen", None)


def milliseconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - start) / STEPS / REPLICAS * 1e3


def main() -> None:
    torch.set_num_threads(1)
    print(f"{device_model(torch.device('cpu'))}, one thread, {REPLICAS} replicas, batch {BATCH}, {torch.__version__}")
    print("| locked | ready, s | computed, ms | read, ms | ratio |\n|---|--:|--:|--:|--:|")
    for name, image in TOWERS.items():
        for both in (False, True):
            study = study_of(image, both)
            group = groups_of(runs_of(study), lambda run: REPLICAS)[0]
            pairs = study.pairs()
            with reproducible_arithmetic():
                kept = Trainer(study, group, pairs, torch.device("cpu"))
                computed = Trainer(study, group, pairs, torch.device("cpu"))
                computed.population = dataclasses.replace(computed.population, features={})
                start = time.perf_counter()
                Trainer(study, group, pairs, torch.device("cpu"))
                ready = time.perf_counter() - start
                rounds = [(milliseconds(computed.step), milliseconds(kept.step)) for _ in range(ROUNDS)]
            slow, fast = (min(each) for each in zip(*rounds, strict=True))
            what = f"{name}{' and text' if both else ''}"
            print(f"| {what} | {ready:.1f} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} |", flush=True)


if __name__ == "__main__":
    main()
