"""End-to-end A/A tests: one loss under two names, trained for real and analyzed study by study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from stability.analysis import Results, analyze, load_results
from stability.calibrate.rates import NOMINAL, upper_band
from stability.execute import Callbacks, run
from stability.registry import InputError
from stability.study import Study, parse_study

SEEDS = 5
"""Seeds of each small study."""

RIGHT = ("equivalent", "inconclusive")
"""The correct verdicts for two arms of one loss."""

TWINS = """
title = "Twins"
question = "Is a loss more stable than itself?"

[data]
name = "latent"
pairs = 640

[model]
image = {{ name = "mlp", width = 16, depth = 1 }}
text = "linear"
embed_dim = 8

[train]
steps = 60
warmup = 5
scalar_lr_multiplier = 10.0

[arms.one]
loss = "{loss}"

[arms.other]
loss = "{loss}"
rng_stream = "other"

[grid]
arms = ["one", "other"]
batch_size = [32]
noise = [0.0, 0.4]
lr = [0.01]
seeds = {seeds}

[probes.retrieval]
every = 5

[[claims]]
id = "level"
primary = true
text = "One recalls more than the other"
measure = "recall_at_1"
contrast = "difference"
compare = ["one", "other"]
expect = "higher"
margin = 0.02

[[claims]]
id = "slope"
text = "One's recall falls more slowly with noise than the other's"
measure = "recall_at_1"
contrast = "slope"
axis = "noise"
compare = ["one", "other"]
expect = "higher"
margin = 0.02

[[claims]]
id = "spread"
text = "One's recall varies less from seed to seed than the other's"
measure = "recall_at_1"
contrast = "spread"
compare = ["one", "other"]
expect = "lower"
margin = 0.02

[[claims]]
id = "sooner"
text = "One reaches a recall of .1 sooner than the other"
measure = "recall_at_1"
contrast = "time_to_threshold"
threshold = 0.1
compare = ["one", "other"]
expect = "lower"
margin = 0.02

[[claims]]
id = "loss"
text = "One's loss is lower than the other's"
measure = "loss"
contrast = "ratio"
compare = ["one", "other"]
expect = "lower"
margin = 0.02
"""
"""Two arms of one loss that share only the data; weights, batches and mismatches are independent.

Margins are so small that hardly any study is equivalent: that verdict takes precedence and would hide wrong directions.
"""

LOSSES = ("clip", "siglip")


@dataclass(frozen=True)
class Twins:
    """The verdicts on small studies of one loss against itself.

    Attributes:
        loss: Name of the loss.
        studies: Number of studies.
        seeds: Seeds per study.
        steps: Training steps.
        verdicts: Counts of verdicts by claim, each claim tested alone at 95%.
        together: Number of studies in which any claim was given a direction at the shared confidence of all claims.
    """

    loss: str
    studies: int
    seeds: int
    steps: int
    verdicts: Mapping[str, Mapping[str, int]]
    together: int

    @property
    def allowed(self) -> int:
        """Return the binomial 99% quantile of the wrong verdicts of a claim at an error rate of 5%."""
        return round(upper_band(self.studies, NOMINAL, 0.99) * self.studies)

    def wrong(self, claim: str) -> int:
        """Return how many studies gave a claim a verdict not in `RIGHT`."""
        return sum(count for verdict, count in self.verdicts[claim].items() if verdict not in RIGHT)


def twin_study(loss: str = "siglip", studies: int = 200) -> Study:
    """Return the study that trains all small studies as one: `SEEDS` seeds for each."""
    if studies < 1:
        raise InputError(f"--studies: got {studies}; allowed: 1 or more")
    return parse_study(TWINS.format(loss=loss, seeds=SEEDS * studies), "twins.toml", "twins")


def end_to_end(
    out: Path,
    loss: str = "siglip",
    studies: int = 200,
    executor: Executor | None = None,
    watch: Callbacks | None = None,
) -> Twins:
    """Return the verdicts on small studies of *loss* against itself, trained in *out* and analyzed like any other.

    Args:
        out: Run directory of all small studies together.
        loss: Name of the loss that is compared with itself.
        studies: Number of small studies.
        executor: Trains the groups; None trains them in this process.
        watch: Called as the training proceeds.
    """
    pooled = load_results(run(twin_study(loss, studies), "cpu", executor, out, watch or Callbacks()))
    verdicts: dict[str, Counter[str]] = {claim.id: Counter() for claim in pooled.study.claims}
    any_direction = 0
    for small in parts(pooled):
        any_direction += any(
            finding.verdict in ("supported", "contradicted") for finding in analyze(small, checks=False).claims
        )
        for claim in pooled.study.claims:
            single_claim = small.study.model_copy(update={"claims": (claim.model_copy(update={"primary": True}),)})
            verdicts[claim.id][analyze(replace(small, study=single_claim), checks=False).verdict] += 1
    counted = {claim: dict(sorted(counts.items())) for claim, counts in verdicts.items()}
    return Twins(loss, studies, SEEDS, pooled.study.train.steps, counted, any_direction)


def parts(pooled: Results) -> Iterator[Results]:
    """Yield the results of the small studies in a pooled one, `SEEDS` consecutive seeds each."""
    grid = pooled.study.grid.model_copy(update={"seeds": SEEDS})
    study = pooled.study.model_copy(update={"grid": grid})
    steps = dict(iter(pooled.steps.groupby(pooled.steps["run"].map(pooled.runs.set_index("run")["seed"]) // SEEDS)))
    for index, runs in pooled.runs.groupby(pooled.runs["seed"] // SEEDS):
        small = runs.assign(seed=runs["seed"] % SEEDS).reset_index(drop=True)
        yield Results(study, pooled.manifest, small, steps[index].reset_index(drop=True), pooled.measures)
