"""What several test files share: a study that trains in a second, and one finished run of it.

What only some of them need is imported where it is used, so that the others run without it (reports need typst).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stability.results import Results
from stability.study import Study, parse_study

TINY = """
title = "Tiny"
question = "Is the tiny study quick?"
source = "the test suite"

[data]
name = "digits"

[model]
image = { name = "mlp", width = 8, depth = 1 }
text = { name = "token_transformer", width = 4, heads = 1 }
embed_dim = 4

[train]
steps = 8
warmup = 2
betas = [0.9, 0.95]
weight_decay = 0.01
scalar_lr_multiplier = 10.0

[arms.siglip-log-b]
loss = "siglip"
bias = "-log B"

[grid]
arms = ["clip", "siglip-log-b"]
batch_size = [8, 16]
noise = [0.0, 0.4]
lr = [0.01]
seeds = 3

[probes.retrieval]
every = 4

[probes.gradient_noise]
every = 4
batches = 3

[probes.curvature]
batches = 2
steps = 4
seeds = 1
noise = [0.0]

[probes.matched_gradient_noise]
batches = 2

[probes.geometry]

[probes.separability]

[probes.cross_check]
seeds = 1
noise = [0.0]
batch_size = [8]
trace_probes = 4

[[claims]]
id = "noise"
primary = true
text = "SigLIP's gradients are less noisy than CLIP's"
measure = "gradient_noise_fraction"
contrast = "difference"
compare = ["siglip-log-b", "clip"]
expect = "lower"
margin = 0.1

[[claims]]
id = "slope"
text = "SigLIP's recall falls more slowly with noise"
measure = "recall_at_1"
contrast = "slope"
axis = "noise"
compare = ["siglip-log-b", "clip"]
expect = "higher"
margin = 0.25

[[claims]]
id = "sooner"
text = "SigLIP reaches a recall of .03 sooner"
measure = "recall_at_1"
contrast = "time_to_threshold"
threshold = 0.03
compare = ["siglip-log-b", "clip"]
expect = "lower"
margin = 0.1

[scales.smoke]
grid.seeds = 2
train.steps = 4
"""

BRIEF_PROBE = """
[probes.retrieval]
every = 4

[[claims]]
id = "recall"
primary = true
text = "SigLIP recalls more"
measure = "recall_at_1"
contrast = "difference"
compare = ["siglip-log-b", "clip"]
expect = "higher"
margin = 0.25
"""

BRIEF = TINY[: TINY.index("[probes.retrieval]")] + BRIEF_PROBE + TINY[TINY.index("[scales.smoke]") :]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Threads that wait for each other make a busy machine many times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_text() -> str:
    return TINY


@pytest.fixture(scope="session")
def tiny() -> Study:
    return parse_study(TINY, "tiny.toml", "tiny")


@pytest.fixture(scope="session")
def tiny_run(tiny: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny study; treat it as read-only."""
    from stability.execute import run

    return run(tiny, "cpu", out=tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def brief_text() -> str:
    """The tiny study with the cheapest probe and one claim, for tests in which the measures do not matter."""
    return BRIEF


@pytest.fixture(scope="session")
def brief() -> Study:
    return parse_study(BRIEF, "brief.toml", "brief")


@pytest.fixture(scope="session")
def brief_run(brief: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the brief study; treat it as read-only."""
    from stability.execute import run

    return run(brief, "cpu", out=tmp_path_factory.mktemp("runs") / "brief")


@pytest.fixture
def one_core() -> Iterator[None]:
    """One core for the test, so that ``--on local`` trains in this process instead of starting workers."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    # Sessions of tests that run side by side do not all take the same one.
    os.sched_setaffinity(0, {sorted(cores)[os.getpid() % len(cores)]})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture(scope="session")
def closed_form() -> Results:
    """Results of a study with everything that a report shows, by formula instead of training."""
    from closed_form_results import results_of

    return results_of()


@pytest.fixture(scope="session")
def closed_form_report(closed_form: Results, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of its report, all formats; treat them as read-only."""
    from stability.analysis import analyze
    from stability.report import render

    return render(closed_form, analyze(closed_form), tmp_path_factory.mktemp("closed-form") / "report")
