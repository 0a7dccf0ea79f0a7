"""The method of a study: the steps by which it reached its verdicts, and no others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from stability.analysis import Finding, Findings, Results, look_sentence
from stability.analysis.pairing import reading_of
from stability.calibrate.record import published, summary
from stability.contrasts import contrast
from stability.replication_agreement import RULE
from stability.report.blocks import Formula
from stability.report.definitions import Paragraphs, losses, measures
from stability.stats.collapse import LOSS_LIMIT, RECALL_LIMIT
from stability.stats.wording import confidence_in_percent, number
from stability.study import Claim, Study, Train, optimizer_of, scalar_starts, search_of, settings_of
from stability.vocabulary import NOT_TESTABLE, REDUCTIONS, TRANSFORMS, axes_in, axis_of

INTERVAL = Formula(
    "d̄ ± t(1 − α/2k, n − 1) · s/√n, for k claims and α = .05",
    r'macron(d) ± t_(1 − α\/2k, thin n − 1) s / sqrt(n), quad k "claims," quad α = .05',
)


def paragraphs(results: Results, findings: Findings) -> Paragraphs:
    """Yield the paragraphs of the method."""
    yield from _pairing(results)
    yield from _tuning(results)
    yield from losses(results)
    yield from _inference(results, findings)
    yield from _trust(findings)
    yield from measures(results, findings)


def _pairing(results: Results) -> Paragraphs:
    train = results.study.train
    clipping = "Gradients are not clipped."
    if train.clip_quantile is not None:
        clipping = f"Gradients are clipped at the {train.clip_quantile:g} quantile of the run's own norms."
    elif train.clip_norm is not None:
        clipping = f"Gradients are clipped at a norm of {train.clip_norm:g}."
    fresh = " but those that start from others" if any(arm.start for arm in results.study.arms.values()) else ""
    schedule = "constant" if train.lr_schedule == "constant" else "following a cosine"
    length = f"{train.steps:,} steps,"
    if train.budget == "samples":
        length = (
            f"{train.steps:,} steps at batch size {min(results.study.grid.batch_size)} and proportionally fewer at "
        )
        length += "larger ones, so that all see equally many samples,"
    yield (
        "Runs and pairing",
        f"Every combination of the grid is one run. At one seed all arms{fresh} start from the same tower weights and "
        "see the same batches and the same noise, so that arms can be compared within the seed."
        f"{_own_streams(results)} Training is {_optimizer(train)} for {length} the learning rate rising over the first "
        f"{train.warmup:,}, then {schedule}; the loss's own scalars train at {train.scalar_lr_multiplier:g} times that "
        f"rate. {clipping}{_parts(results)}{_recipes(results)}",
    )
    yield from _formats(results)
    if results.study.model.extra_modalities:
        yield (
            "More than two modalities",
            "Every modality has a tower of its own. The training loss is the mean of the two-modality loss over all "
            "pairs of modalities, with one set of scalars. Corruptions act on image and text alone; retrieval is "
            "between these two, margins are over all pairs of modalities.",
        )
    yield from _shards(results)
    yield from _shift(results)
    if starts := _starts(results.study):
        yield ("Runs that start from others", starts)
    yield (
        "Divergence",
        "A run has diverged if its loss stops being finite, or if its smoothed loss ends at or above chance: the loss "
        "of embeddings that say nothing. A diverged run is not treated as missing: its bounded "
        "measures are set to chance level, and its time-to-threshold to the full step budget. A run has collapsed if "
        f"it diverged or, having had the time to learn, if its late recall is below {RECALL_LIMIT:g} times chance or "
        f"its smoothed loss ends above {LOSS_LIMIT:.0%} of the way from the best loss of its arm and cell, at any rate "
        "and seed, to chance. A run whose loss still falls has not had that time.",
    )


def _formats(results: Results) -> Paragraphs:
    """Yield a paragraph on 16-bit number formats, if there are any."""
    study = results.study
    computed = results.manifest.get("arithmetic", {}).get("products", {})
    if not computed:
        return
    trains = [study.train, *map(study.train_of, study.grid.arms)]
    same = any(train.logits == "same" for train in trains) or "same" in study.grid.settings.get("train.logits", ())
    text = (
        f"Products of matrices and convolutions of the towers are computed in {_listed(computed)}: "
        f"{'; '.join(f'{name} {how}' for name, how in computed.items())}. Parameters, moments and updates are float32"
        + (". " if same else ", and so are similarities and the loss. ")
    )
    if same:
        text += (
            "Where logits = same, similarities have the format of the towers, and the loss rounds as under "
            "torch.autocast; elsewhere both are float32. "
        )
    if "float16" in computed:
        text += (
            f"In float16 the loss of each run is multiplied by a scale of its own. It starts at "
            f"{study.train.initial_loss_scale:,.0f}, is halved when a gradient overflows, in which case the run skips "
            f"the step, and is doubled after {study.train.loss_scale_growth_interval:,} steps without overflow; a run "
            "that overflows at a scale of 1 has diverged. "
        )
    yield "Number formats", f"{text}Probes compute in float32, at the float32 parameters."


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)


def _shards(results: Results) -> Paragraphs:
    """Yield the paragraph on parts of batches that see their own negatives only, if there are any."""
    study = results.study
    counts = {study.train_of(arm).shards for arm in study.grid.arms} | {*study.grid.settings.get("train.shards", ())}
    if counts == {1}:
        return
    yield (
        "Local negatives",
        f"Batches have {', '.join(map(str, sorted(counts)))} shards. Each shard of consecutive pairs sees its own "
        "negatives only; the loss is the mean over the shards. Chance levels of the training loss, initial values of "
        "−log B and false negatives are those of a shard; probes differentiate the same mean.",
    )


def _shift(results: Results) -> Paragraphs:
    """Yield the paragraph on the shift of the data, if there is one."""
    study, shift = results.study, results.study.data.shift
    varied = [key.removeprefix("data.shift.") for key in study.grid.settings if key.startswith("data.shift.")]
    if shift is None and not varied:
        return
    when, changes = "From a step on that is an axis of the grid", ["what the axes of the grid say"]
    if shift:
        per_size = " at the smallest batch size, and after equally many samples at larger ones,"
        samples = study.train.budget == "samples" and len(study.grid.batch_size) > 1
        when = f"From step {shift.step:,} on{per_size if samples else ''}"
        changes = [f"a share of {shift.noise:g} of the pairs is corrupted"] if shift.noise is not None else []
        changes += [f"the corruption is {shift.corruption}"] if shift.corruption is not None else []
        changes += [f"{key} is {_value(value)}" for key, value in shift.options.items()]
    options = (shift.options if shift else {}).keys() | {*varied} - {"step", "noise", "corruption"}
    held_out = (
        "Held-out pairs are those of the new data from that step on, so that measures say how well a run does on them."
        if options
        else "Held-out pairs stay as they are."
    )
    tuned = " Rates were tuned on the data before the shift." if results.tuning else ""
    yield (
        "A shift of the data",
        f"{when} training batches come from changed data, the same for all arms: {'; '.join(changes)}. The pairs of a "
        f"seed are corrupted anew by its own random streams: if noise grows, pairs that were corrupted stay so. "
        f"{held_out} Probes that draw batches draw them from the current data, and every scheduled probe also measures "
        f"at the step of the shift, on the new data and before the first update with them.{tuned}",
    )


def _starts(study: Study) -> str:
    """Return in words what arms start from that do not start from fresh weights; "" if all do."""
    sentences = []
    for name, arm in study.arms.items():
        if (start := arm.start) is None:
            continue
        if start.arm:
            whence = (
                f"those of {start.arm} at the same seed, in the same cell and before their update {start.step:,}, and "
                "see the batches that these see from there on"
            )
        else:
            whence = f"the parameters of a file ({start.parameters}), the same at every seed"
        scalars = " and ".join(
            f"{SCALAR_NAMES[key]} {START_WORDS.get(value, f'at {value}')}"
            for key, value in scalar_starts(study, name, start).items()
        )
        kept = "is kept" if start.optimizer_state == "kept" else "starts anew"
        sentences.append(
            f"The runs of {name} start from {whence}. They take over the towers"
            f"{f', with {scalars}' if scalars else ''}; the state of the optimizer {kept}. "
            "The learning rate follows the schedule of the study"
            + (f" times {start.lr_multiplier:g}" if start.lr_multiplier != 1 else "")
            + (f", over a warm-up of {start.warmup:,} steps of its own" if start.warmup else "")
            + "."
        )
    if sentences:
        sentences.append("Steps count from the start of training, with those of the parents.")
    return " ".join(sentences)


SCALAR_NAMES = {"log_scale": "log t", "bias": "the bias"}
START_WORDS: dict[Any, str] = {
    "kept": "as it was there",
    "initial": "at the arm's own initial value",
    "-log B": "at −log B",
    "fitted": "at the value that minimizes the loss on the first batch",
}


def _optimizer(train: Train) -> str:
    variant, options = optimizer_of(train)
    return f"{variant.traits.describe(**options)}, weight decay {train.weight_decay:g} on weight matrices only"


def _parts(results: Results) -> str:
    """Return sentences on the axes of training pairs, rate multipliers and other settings, if the grid has them."""
    grid, text = results.study.grid, ""
    if grid.train_pairs:
        tuned = f" Rates were tuned on {max(grid.train_pairs):,}." if results.tuning else ""
        text += (
            f" Runs have {', '.join(f'{count:,}' for count in sorted(grid.train_pairs))} training pairs. For each seed "
            "all arms use the same pairs; smaller training sets are subsets of larger ones, and noise is applied only "
            f"within the set.{tuned}"
        )
    if grid.lr_multipliers:
        base = "the rate that tuning chose for the arm" if results.tuning else f"the rate {grid.lr[0]:g}"
        text += f" Every arm was trained at {', '.join(f'{factor:g}' for factor in grid.lr_multipliers)} times {base}."
    if grid.settings:
        levels = "; ".join(f"{key}: {', '.join(map(_value, values))}" for key, values in grid.settings.items())
        text += f" Runs also differ in {levels}. What is said here of these keys holds at the study's own value."
        text += " Rates were tuned at that value, for all levels." * bool(results.tuning)
    return text


def _recipes(results: Results) -> str:
    """Return sentences on the arms whose training settings differ from those of the study."""
    overrides = {name: arm.train.overrides for name, arm in results.study.arms.items() if arm.train}
    return "".join(
        f" The arm {name} trains with its own {', '.join(f'{key} = {_value(value)}' for key, value in keys.items())}."
        for name, keys in overrides.items()
        if keys
    )


def _value(value: Any) -> str:
    return f"({', '.join(f'{part:g}' for part in value)})" if isinstance(value, tuple) else f"{value}"


def _tuning(results: Results) -> Paragraphs:
    study, tuning = results.study, results.tuning
    if tuning is None or study.tune is None:
        return
    plan, settings = search_of(study), {arm: settings_of(study, arm) for arm in study.grid.arms}
    count = len(settings[study.grid.arms[0]])
    rates = {len({setting.lr for setting in tried}) for tried in settings.values()}
    filled = (
        " An arm with fewer initial values or options to search tries more rates between the same two ends instead, so "
        "that the counts are equal."
        if len(rates) > 1
        else ""
    )
    untuned = (
        f" The test was run a second time at the rate {study.grid.lr[0]:g} and every loss's own defaults; that line of "
        "each claim is secondary and decides nothing."
        if study.tune.untuned
        else ""
    )
    yield (
        "Tuning",
        f"For each loss and batch size, {count} settings were tried, the same number for every arm, each on "
        f"{plan.grid.seeds} tuning {'seed' if plan.grid.seeds == 1 else 'seeds'} that no test run has, for "
        f"{plan.train.steps:,} steps at noise {plan.grid.noise[0]:g}.{filled} A setting scores the mean over its seeds "
        f"of {tuning.measure.label}, averaged over the last fifth of the steps, on the scale on which it is compared. "
        "A diverged run is the worst there is: settings with fewer of them come first. Ties go to the lower rate, then "
        f"to the setting listed first. The test then trains each arm and batch size with what was chosen.{untuned}",
    )


def _own_streams(results: Results) -> str:
    """Return which arms use their own random streams; in a study that compares losses, none does."""
    study = results.study
    arms = [name for name in study.grid.arms if study.arm(name).rng_stream]
    words = "uses its own" if len(arms) == 1 else "use their own"
    return f" Exception: {' and '.join(arms)} deliberately {words} random streams." if arms else ""


def _inference(results: Results, findings: Findings) -> Paragraphs:
    if not findings.claims:
        return
    level = confidence_in_percent(findings.claims[0].confidence)
    count = len(findings.claims)
    looks = f"{len(results.study.looks)} looks and " if results.study.looks else ""
    yield (
        "One number a seed",
        "Each run is first reduced to one number for a claim, the numbers of the cells of a seed are averaged on the "
        "scale of the claim, and the two arms are subtracted within the seed. A thousand evaluations of a run are "
        f"still one run: n counts seeds. The interval is Student's, at a confidence of {level}: 95% shared among "
        f"{looks}{count} {'claim' if count == 1 else 'claims'} (Bonferroni), so interval and verdict cannot disagree. "
        "From the mean and the standard deviation s of the n differences:",
        INTERVAL,
    )
    if any(results.runs[axis].nunique() > 1 for axis in axes_in(results.runs.columns)):
        yield (
            "Cells",
            "Where a claim is a mean over several cells of the grid, its effect is also found in each. Equality must "
            "hold in every cell, each tested at the claim's own level (an intersection-union test, which needs no "
            "correction; Berger 1982). A direction must not be reversed: a claim is mixed if one cell's interval, at "
            "the claim's level shared among its cells (Bonferroni), lies on the other side of no difference than "
            "another's or than the mean. We call the effect “heterogeneous” if two of these intervals do not overlap "
            "and the effects differ by more than the margin.",
        )
    for claim, definition in zip(findings.claims, results.study.claims, strict=True):
        expected = "equal" if claim.expect == "equal" else f"{claim.expect} for {claim.compare[0]}"
        measured = results.measures[claim.measure].label
        if claim.against_measure:
            expected = claim.expect
            measured += (
                f", against {results.measures[claim.against_measure].label} of the same runs of {claim.compare[0]}: "
                "the two numbers of a run are subtracted, not those of two arms"
            )
        yield (
            f"The claim {claim.id}",
            f"Measure: {measured}{_reading(results, definition)}; "
            f"contrast {claim.contrast}{_along(definition)}, expected {expected}, margin {claim.margin:g}. "
            f"{_test(claim)}",
        )
    if results.study.looks:
        yield (
            "Registered looks",
            "The claims are tested when so many seeds are finished, as registered before the first step: "
            f"{', '.join(map(str, results.study.looks))}; the study stops at the first look that settles its primary "
            f"claim. Each look has an equal share of the alpha of .05. {look_sentence(findings.looks)}",
        )
    yield from _rankings(findings)
    if findings.replications:
        yield ("Replications", RULE)
    yield (
        "Verdicts",
        "Asked in this order. Not testable: too few pairs, more than a tenth of them without a usable value, or a "
        "measure too close to chance. Equivalent: the interval of two one-sided tests lies inside the margin declared "
        "before the runs, in every cell. Mixed: cells say the opposite of each other or of their mean. Supported or "
        "contradicted: the interval excludes no difference. Otherwise inconclusive, with "
        "the number of seeds that would settle it, planned from the margin and an upper bound of the spread, never "
        "from the effect seen.",
    )


def _rankings(findings: Findings) -> Paragraphs:
    for ranked in findings.rankings:
        pairs, n = len(ranked.ranking.pairs), ranked.ranking.n
        yield (
            f"The ranking by {ranked.label}",
            f"Each run is reduced to one number ({ranked.reduction}), cells are averaged on the {ranked.transform} "
            f"scale within the seed, and all {pairs} pairs of arms are compared over {n} seeds by paired t intervals "
            f"that hold together at {confidence_in_percent(ranked.ranking.confidence)} (Bonferroni). Two arms share a "
            "letter exactly if their interval includes no difference (Piepho 2004). A ranking decides no claim.",
        )


def _trust(findings: Findings) -> Paragraphs:
    if any(claim.sensitivity.checks for claim in findings.claims):
        yield (
            "Sensitivity",
            "Every tested claim is tested again: by flipping the signs of the seeds' differences (Hartigan's interval "
            "of subset means), by Wilcoxon's signed ranks (Hodges–Lehmann estimate), both of which assume symmetry and "
            "no shape; by a mixed model of all numbers of a run's cells, with variance components for the seed and for "
            "the arm within it (REML, n − 1 degrees of freedom; if a variance component is estimated as 0, the "
            "interval is too narrow), where a run has several; and by the primary test without each seed in turn.",
        )
    record = published()
    if findings.claims and record and (rates := summary(record, {claim.contrast for claim in findings.claims})):
        yield (
            "Error rates of these verdicts",
            f"Measured for the contrasts of this study. {rates} All settings are in docs/calibration.md of the source; "
            "the command stability calibrate measures them again.",
        )


def _reading(results: Results, claim: Claim) -> str:
    """Return in words how a claim reduces a run to one number, and on which scale."""
    reduction, scale = reading_of(claim, results.measures[claim.measure])
    reduction = "" if results.measures[claim.measure].after_event else reduction
    on = contrast[claim.contrast].traits.on
    parts = [
        REDUCTIONS[reduction].text if reduction in REDUCTIONS else "",
        TRANSFORMS[scale].text if on == "transform" else "",
    ]
    return "".join(f", {words}" for words in parts if words)


def _along(claim: Claim) -> str:
    over = f" over {axis_of(claim.axis).label}" if claim.axis else ""
    return over if claim.threshold is None else f"{over} at {claim.threshold:g}"


def _test(claim: Finding) -> str:
    """Return a sentence on the test of a claim. A claim that is not testable has no p-value, even if numbers exist."""
    if claim.verdict == NOT_TESTABLE:
        return "Not testable; no p-value."
    return f"Test: {claim.method}. It assumes that {claim.assumptions}.{_sign_flip(claim)}"


def _sign_flip(claim: Finding) -> str:
    """Return a sentence on the sign-flip test, which makes no distributional assumption; "" if there is none."""
    if not math.isfinite(claim.p_sign_flip):
        return ""
    return (
        f" Its p-value is {number(claim.p_value)}, and {number(claim.p_sign_flip)} by exact sign flips of the seeds' "
        "differences, which assume only that either sign is as likely when nothing differs."
    )
