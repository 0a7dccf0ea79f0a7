from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from stability.analysis import Results, analyse
from stability.grid import runs_of
from stability.study import parse_study

QUICKSTART = (Path(__file__).parents[1] / "studies" / "quickstart.toml").read_text()
LEVEL = {"clip": 0.6, "siglip": 0.35, "siglip-log-b": 0.45}


def made(text: str = QUICKSTART, diverge: int = 2) -> Results:
    """Results of a study as closed-form curves: recall a (1 - noise) s / (s + 60), log t and b straight lines."""
    study = parse_study(text, "made.toml", "quickstart", "small")
    rng = np.random.default_rng(0)
    rows, frames = [], []
    total = study.train.steps
    step = np.arange(total + 1)
    for place, run in enumerate(runs_of(study)):
        level = LEVEL[run.arm] * (run.batch_size / 128) ** 0.25 * (1 - run.noise) * math.exp(rng.normal(0, 0.06))
        recall = 0.0136 + level * step / (step + 60)
        loss = math.log(run.batch_size) * (1 - level * step / (step + 90) + rng.normal(0, 0.02, len(step)))
        diverged = run.arm == "siglip" and run.noise > 0 and place % 7 == 0 and diverge > 0
        diverge -= diverged
        at = 120 if diverged else math.nan
        loss[step == total] = math.nan
        if diverged:
            loss[step > at] = math.nan
        frame = pd.DataFrame({"run": run.id, "step": step, "loss": loss, "log_scale": 2.3 + level * step / total})
        frame["bias"] = math.nan if run.arm == "clip" else -10.0 + step / total
        frame["duplicate_share"] = 0.01
        every25, every50, every100 = step % 25 == 0, step % 50 == 0, step % 100 == 0
        frame["recall_at_1"] = np.where(every25, recall, math.nan)
        frame["recall_at_1_chance"] = np.where(every25, 0.0136, math.nan)
        frame["zero_shot_accuracy"] = np.where(every25, 0.1 + recall, math.nan)
        frame["zero_shot_accuracy_chance"] = np.where(every25, 0.1, math.nan)
        for block, noise in (("towers", 0.2 + 0.5 * step / total), ("scalars", 0.05 + 0.9 * step / total)):
            share = noise * LEVEL[run.arm] * np.exp(rng.normal(0, 0.1, len(step)))
            frame[f"gradient_noise_trace_{block}"] = np.where(every50, 3 * share, math.nan)
            frame[f"gradient_second_moment_{block}"] = np.where(every50, 3.0, math.nan)
        for name, value in (("margin_trimmed", -0.2), ("relative_bias_trimmed", 0.3), ("modality_gap", 0.9)):
            frame[name] = np.where(every100, value + level * step / total, math.nan)
        curved = (step == total) & (run.seed < 2) & (run.noise == 0)
        high = 100.0 * LEVEL[run.arm] * math.exp(rng.normal(0, 0.2))
        nodes = np.sort(np.concatenate([[-high / 20], np.geomspace(1e-3, high, 9), -np.geomspace(1e-3, high / 30, 6)]))
        weights = np.exp(-np.abs(np.arcsinh(nodes * 50)))
        frame["hessian_high"] = np.where(curved, high, math.nan)
        frame["hessian_low"] = np.where(curved, -high / 20, math.nan)
        frame["sharpness_ratio"] = np.where(curved, high / 120, math.nan)
        frame["hessian_nodes"] = [nodes if shown else None for shown in curved]
        frame["hessian_weights"] = [weights / weights.sum() if shown else None for shown in curved]
        frames.append(frame)
        cell = {key: getattr(run, key) for key in ("arm", "seed", "batch_size", "corruption", "noise", "lr")}
        rows.append({"run": run.id, **cell, "status": "diverged" if diverged else "finished", "diverged_at": at})
    manifest = {"versions": {"python": "3"}, "device": {"type": "cpu"}, "git_commit": "none", "threads": 1}
    return Results(study, manifest, pd.DataFrame(rows), pd.concat(frames, ignore_index=True), study.measures)
