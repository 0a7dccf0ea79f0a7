"""Results in closed form, for tests of reports: nothing is trained, so that every number is known beforehand."""

import numpy as np
import pandas as pd

from stability.grid import runs_of
from stability.results import Results
from stability.study import parse_study

STUDY = """
title = "{title}"
question = "Is it *steadier* than #panic()?"
source = "A paper & its authors"

[data]
name = "digits"

[model]
image = "mlp"
text = "token_transformer"
embed_dim = 8

[train]
steps = 40
warmup = 4

[arms.siglip-log-b]
loss = "siglip"
bias = "-log B"

[grid]
arms = ["clip", "siglip", "siglip-log-b"]
batch_size = [8, 16]
noise = [0.0, 0.4]
lr = [1e-3]
seeds = 6

[probes.retrieval]
every = 10
{probes}

[[claims]]
id = "slope"
primary = true
text = "<script>alert('slope')</script> falls #panic() more \\"slowly\\""
measure = "recall_at_1"
contrast = "slope"
axis = "noise"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.05

[[claims]]
id = "speed"
text = "It gets there sooner"
measure = "recall_at_1"
contrast = "time_to_threshold"
threshold = 0.2
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.1
"""
TITLE = "<b>Bold</b> & #strong[typst] $x$"
PROBES = "[probes.gradient_noise]\nevery = 20\n[probes.geometry]\nevery = 20"


def manifest_of(study):
    """Return as much of a manifest as its readers need, of a run without groups."""
    return {
        "schema": 1,
        "study": study,
        "scale": "small",
        "study_text": STUDY,
        "device": {"type": "cpu", "model": "chip"},
        "versions": {"python": "3"},
        "groups": [],
    }


def curves(study):
    """Closed-form results: recall saturates as 1 - exp(-step), loses a fixed share with noise, and varies by seed."""
    manifest = {
        "versions": {"python": "3", "torch": "2"},
        "device": {"type": "cpu", "model": "<i>chip</i>"},
        "groups": [{"git_commit": "c0ffee"}],
        "arithmetic": {},
    }
    total, measures = study.train.steps, study.measures
    frames, rows = [], []
    for run in runs_of(study):
        rng = np.random.default_rng([run.seed, run.batch_size])
        steps = np.arange(total + 1)
        fall, pace = (1.0, 6.0) if run.arm == "clip" else (0.5, 12.0)
        best = 0.8 * np.exp(-fall * run.noise + rng.normal(0, 0.03))
        frame = pd.DataFrame({"run": run.id, "step": steps})
        for name, measure in measures.items():
            if measure.pooled is None and not measure.listed:
                frame[name] = rng.uniform(0.4, 0.6, total + 1)
        probed = steps % 10 == 0
        frame["loss"] = np.where(steps < total, 1 + np.exp(-steps / pace), np.nan)
        frame["false_negative_fraction"] = 0.01
        frame["learning_rate"] = 1e-3
        frame["bias"] = np.nan if run.arm == "clip" else -10.0 + 0.0008 * steps
        frame["recall_at_1"] = np.where(probed, 0.01 + best * (1 - np.exp(-steps / pace)), np.nan)
        frame["recall_at_1_chance"] = np.where(probed, 0.01, np.nan)
        frames.append(frame)
        rows.append({"run": run.id, "arm": run.arm, "seed": run.seed, "batch_size": run.batch_size})
        rows[-1] |= {
            "corruption": run.corruption,
            "noise": run.noise,
            "lr": run.lr,
            "train_pairs": 0,
            "lr_multiplier": 1.0,
        }
        rows[-1] |= {"status": "finished", "diverged_at": np.nan, "collapsed": 0.0, "collapsed_at": np.nan}
    return Results(study, manifest, pd.DataFrame(rows), pd.concat(frames, ignore_index=True), measures)


def results_of(probes=PROBES, title=TITLE):
    return curves(parse_study(STUDY.format(title=title, probes=probes), "test.toml", "test", "small"))
