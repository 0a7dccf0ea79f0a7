"""Validation of what a study decides: claims, rankings and published figures that its runs and probes can serve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from stability.contrasts import contrast
from stability.losses import loss, scalars_of
from stability.probes import Measure, measures_of, probe
from stability.registry import InputError, Variant, nearest, shortened
from stability.study.claim_schema import Claim, Control, Published, Ranking
from stability.study.schema import (
    LATE,
)
from stability.study.study import Study
from stability.study.tuning_grid import Locate
from stability.vocabulary import AXES, CLAIM_AXES, axis_of


def check_claim(study: Study, claim: Claim, locate: Locate) -> None:
    """Raise `InputError` unless the runs and probes of the study can decide the claim."""
    measures = {name: measure for name, measure in study.measures.items() if not measure.listed}
    named = {"measure": claim.measure} | ({"against_measure": claim.against_measure} if claim.against_measure else {})
    for key, name in named.items():
        if name not in measures:
            _check_event_exists(study, name, locate(key))
            raise InputError(f"{locate(key)}: no probe of this study makes {name!r}{nearest(name, measures)}")
    variant = contrast.get_or_explain(claim.contrast, locate("contrast"))
    if claim.against_measure:
        _check_against(claim, variant, measures, locate)
    elif claim.compare[0] == claim.compare[1]:
        raise InputError(
            f"{locate('compare')}: got {claim.compare[0]!r} twice; allowed: two arms that differ, or one arm and two "
            "measures (against_measure)"
        )
    for key, name in named.items():
        _check_scale(claim.transform, name, measures, locate)
        if claim.reduction and measures[name].per_run:
            raise InputError(f"{locate('reduction')}: {name!r} is one number a run and takes no reduction")
        _check_coverage(study, name, key, locate)
        _check_first(study, name, claim.reduction, locate)
        _check_window(study, name, claim.reduction or variant.traits.reduction, locate)
        if not measures[name].per_run:
            _check_late_starts(study, claim.compare, claim.reduction or variant.traits.reduction, locate)
        if not variant.traits.on_events:
            scale = claim.transform if variant.traits.on == "transform" else None
            _check_between_losses(study, claim.compare, measures[name], scale, locate(key))
    _check_sides(study, claim, [measures[name] for name in named.values()], locate)
    _check_direction(claim, variant, named, measures, locate)
    _check_needs(study, claim, variant, locate)


def _check_direction(
    claim: Claim, variant: Variant, named: Mapping[str, str], measures: Mapping[str, Measure], locate: Locate
) -> None:
    """Raise `InputError` if a claim needs a better direction, or a course over steps, that its measures lack."""
    needs_direction = "better" in variant.options or claim.reduction == "best" or variant.traits.on == "times"
    for key, name in named.items():
        if needs_direction and not measures[name].better:
            hint = nearest(name, [other for other, measure in measures.items() if measure.better])
            raise InputError(f"{locate(key)}: {name!r} has no better direction{hint}")
        if variant.traits.on == "times" and measures[name].per_run:
            raise InputError(f"{locate(key)}: {name!r} is one number a run and reaches no threshold at a step")


def _check_sides(study: Study, claim: Claim, measures: Iterable[Measure], locate: Locate) -> None:
    """Raise `InputError` unless both arms of a claim are in the grid and have its *measures*."""
    for side, name in enumerate(claim.compare):
        if name not in study.grid.arms:
            hint = nearest(name, study.grid.arms)
            raise InputError(f"{locate('compare', side)}: {name!r} is not in grid.arms{hint}")
        for measure in measures:
            if measure.after_event and name not in study.with_event:
                raise InputError(
                    f"{locate('compare', side)}: {name!r} has no event, so it has no {measure.name!r} (arms with one: "
                    f"{', '.join(study.with_event)})"
                )
        arm_loss = study.arm(name).loss
        if missing := {measure.scalar for measure in measures} - {"", *scalars_of(loss[arm_loss])}:
            where, needed = locate("compare", side), f"`{min(missing)}`, which measure {claim.measure!r} needs"
            raise InputError(f"{where}: loss {arm_loss!r} has no {needed}")


def _check_event_exists(study: Study, name: str, where: str) -> None:
    """Raise `InputError` for a measure after an event in a study whose arms have none."""
    offered = measures_of(study.probes, study.offers)
    if name in offered and offered[name].after_event:
        raise InputError(
            f"{where}: {name!r} is measured after an event, and this study has none (a start of an arm, or data.shift)"
        )


def check_ranking(study: Study, ranking: Ranking, locate: Locate) -> None:
    """Raise `InputError` unless the runs and probes of the study can serve the ranking."""
    measures = {name: measure for name, measure in study.measures.items() if measure.better and not measure.listed}
    if ranking.measure not in measures:
        where, hint = locate("measure"), nearest(ranking.measure, measures)
        raise InputError(f"{where}: got {ranking.measure!r}; allowed: a measure with a better direction{hint}")
    _check_scale(ranking.transform, ranking.measure, measures, locate)
    _check_coverage(study, ranking.measure, "measure", locate)
    _check_first(study, ranking.measure, ranking.reduction, locate)
    if measures[ranking.measure].per_run and ranking.reduction:
        raise InputError(f"{locate('reduction')}: {ranking.measure!r} is one number a run and takes no reduction")
    if not measures[ranking.measure].per_run:
        _check_late_starts(study, study.ranked(ranking), ranking.reduction or "tail_mean", locate)
    if study.rankings.count(ranking) > 1:
        raise InputError(f"{locate('measure')}: {ranking.measure!r} is ranked twice in the same way")
    arms = study.ranked(ranking)
    for index, name in enumerate(arms):
        if name not in study.grid.arms:
            raise InputError(f"{locate('losses', index)}: {name!r} is not in grid.arms{nearest(name, study.grid.arms)}")
    _check_between_losses(study, arms, measures[ranking.measure], ranking.transform, locate("measure"))
    if len({*arms}) < max(2, len(arms)):
        raise InputError(f"{locate('losses')}: got {list(arms)}; allowed: two arms or more, each once")


def _check_between_losses(study: Study, arms: Iterable[str], measure: Measure, scale: str | None, where: str) -> None:
    """Raise `InputError` for a comparison of different losses by a measure that has the scale of the loss."""
    names = {study.arm(arm).loss for arm in arms if arm in study.grid.arms}
    losses = sorted({loss[name].traits.reparametrizes or name for name in names})
    if len(losses) > 1 and measure.barred_between_losses and scale != "relative_to_chance":
        relative = '; transform = "relative_to_chance" does not' if measure.name == "loss" else ""
        raise InputError(
            f"{where}: {measure.name!r} cannot compare the losses {' and '.join(losses)}: it "
            f"{measure.barred_between_losses}{relative} (allowed: arms of one loss, or a measure that does not)"
        )


def _check_scale(scale: str | None, name: str, measures: Mapping[str, Measure], locate: Locate) -> None:
    if scale == "log_above_chance" and not measures[name].chance:
        bounded = ", ".join(key for key, measure in measures.items() if measure.chance)
        raise InputError(f"{locate('transform')}: {name!r} has no chance level (measures that have: {bounded})")
    if scale == "relative_to_chance" and name != "loss":
        raise InputError(f"{locate('transform')}: scale {scale!r} is only valid for measure 'loss'")


def _check_needs(study: Study, claim: Claim, variant: Variant, locate: Locate) -> None:
    for need in variant.traits.needs:
        if getattr(claim, need) in ("", None):
            raise InputError(f"{locate(need)}: required by contrast {claim.contrast!r}, but missing")
    for key in ("axis", "threshold"):
        if key not in variant.traits.needs and getattr(claim, key) not in ("", None):
            raise InputError(f"{locate(key)}: contrast {claim.contrast!r} takes no {key}")
    if claim.axis and claim.axis not in (axes := (*CLAIM_AXES, *study.grid.settings)):
        raise InputError(f"{locate('axis')}: unknown axis {claim.axis!r}{nearest(claim.axis, axes)}")
    allowed = variant.traits.axes
    if allowed and claim.axis not in allowed:
        raise InputError(
            f"{locate('axis')}: got {claim.axis!r}; allowed with contrast {claim.contrast!r}: {', '.join(allowed)}"
        )
    if claim.axis in study.grid.settings:
        _check_levels(study, claim, locate)
    if "axis" in variant.traits.needs:
        _check_count(study, claim, variant.traits.least_levels, locate)
    if "lr" in allowed and study.tune:
        raise InputError(
            f"{locate('contrast')}: {claim.contrast!r} compares rates, and with [tune] the grid has multiples of each "
            "arm's own rate; allowed: grid.lr with several rates, or grid.lr_multipliers of one rate without [tune]"
        )


def _check_count(study: Study, claim: Claim, least: int, locate: Locate) -> None:
    """Raise `InputError` unless the axis of a claim has enough different levels for its contrast."""
    key = "lr_multipliers" if study.grid.column(claim.axis) == "lr_multiplier" else claim.axis
    count = len(study.grid.values(claim.axis))
    if count < 2:
        raise InputError(f"{locate('axis')}: grid.{key} has one value; allowed: {_IN_WORDS[least]} or more")
    if count < least:
        raise InputError(
            f"{locate('axis')}: grid.{key} has {count} values; allowed with contrast {claim.contrast!r}: "
            f"{_IN_WORDS[least]} or more"
        )


_IN_WORDS = {2: "two", 3: "three"}


def _check_levels(study: Study, claim: Claim, locate: Locate) -> None:
    """Raise `InputError` unless the levels of a claim's setting axis are numbers that a slope can use."""
    axis = axis_of(claim.axis)
    for level in study.grid.values(claim.axis):
        is_number = isinstance(level, int | float) and not isinstance(level, bool)
        if not is_number or (axis.doubling and level <= 0):
            allowed = "levels above 0, since its slope is per doubling" if is_number else "an axis of numbers"
            raise InputError(f"{locate('axis')}: grid.{claim.axis} has the level {level!r}; allowed: {allowed}")


def check_ids(study: Study, locate: Locate) -> None:
    """Raise `InputError` unless ids of claims are unique and exactly one claim is primary."""
    ids = [claim.id for claim in study.claims]
    for index, name in enumerate(ids):
        if name in ids[:index]:
            raise InputError(f"{locate('claims', index, 'id')}: {name!r} is taken by an earlier claim; ids are unique")
    primary = sum(claim.primary for claim in study.claims)
    if study.claims and primary != 1:
        raise InputError(f"{locate('claims')}: {primary} claims are primary; allowed: exactly one")


SIDES: Mapping[str | int, str] = {0: "arm", 1: "against"}
"""The keys of a control, by the side of a comparison that they name."""


def check_control(study: Study, control: Control, locate: Locate) -> None:
    """Raise `InputError` unless the study has the control's two arms, which differ, and claims on its measures."""
    ids = [other.id for other in study.controls]
    if ids.count(control.id) > 1:
        raise InputError(f"{locate('id')}: {control.id!r} is the id of two controls; ids are unique")
    for key, name in (("arm", control.arm), ("against", control.against)):
        if name not in study.grid.arms:
            raise InputError(f"{locate(key)}: {name!r} is not in grid.arms{nearest(name, study.grid.arms)}")
    if _trained_alike(study, control.arm, control.against):
        same = "is `against` itself" if control.arm == control.against else f"is trained as {control.against!r} is"
        raise InputError(f"{locate('arm')}: {control.arm!r} {same}, so nothing is planted; allowed: arms that differ")
    claims = [claim for claim in study.claims if not claim.against_measure]
    used = {claim.measure for claim in claims}
    for index, name in enumerate(() if control.measures == "all" else control.measures):
        if name not in used:
            hint = nearest(name, used)
            raise InputError(f"{locate('measures', index)}: no claim that compares two arms uses {name!r}{hint}")
    if not used:
        raise InputError(f"{locate('measures')}: no claim compares two arms, so no measure has to move")
    for claim in claims:
        if control.applies_to(claim):
            planted = claim.model_copy(update={"compare": (control.arm, control.against)})
            _check_sides(study, planted, [study.measures[claim.measure]], lambda *keys: locate(SIDES[keys[-1]]))


def _trained_alike(study: Study, first: str, other: str) -> bool:
    """Return whether two arms differ at most in their random streams."""
    losses = [study.arm(name).model_copy(update={"rng_stream": "", "train": None}) for name in (first, other)]
    return losses[0] == losses[1] and study.train_of(first) == study.train_of(other)


# --- what probes measure ---------------------------------------------------------------------------------------------


def _check_coverage(study: Study, measure_name: str, key: str, locate: Locate) -> None:
    """Raise `InputError` if the probe that makes a claim's measure skips runs: a claim needs every seed and cell."""
    for name, schedule in study.probes.items():
        if measure_name not in {measure.name for measure in probe[name].traits.measures}:
            continue
        for axis in ("seeds", "noise", "batch_size", "train_pairs"):
            kept, grid = getattr(schedule, axis), getattr(study.grid, axis)
            if kept is not None and (kept < grid if axis == "seeds" else set(kept) != set(grid)):
                where = locate(key)
                raise InputError(
                    f"{where}: probes.{name}.{axis} leaves out runs that a claim on {measure_name!r} needs"
                )


def _check_first(study: Study, measure_name: str, reduction: str | None, locate: Locate) -> None:
    """Raise `InputError` if a probe does not measure before the first step, where the reduction "first" reads."""
    for name in study.probes if reduction == "first" else ():
        produced = {measure.name for measure in probe[name].traits.measures}
        if measure_name in produced and 0 not in study.due(name):
            where = locate("reduction")
            raise InputError(f"{where}: probes.{name} does not measure before the first step; at = [0.0] there does")


def _check_window(study: Study, measure_name: str, reduction: str, locate: Locate) -> None:
    """Raise `InputError` if the late window has no measurement, as can happen for a probe that forks runs."""
    for name in study.probes if reduction == "tail_mean" else ():
        produced = {measure.name: measure for measure in probe[name].traits.measures}
        if measure_name not in produced or produced[measure_name].per_run:
            continue
        if max(study.due(name)) < (1 - LATE) * study.train.steps:
            raise InputError(
                f"{locate('reduction')}: 'tail_mean' is the last {LATE:.0%} of a run, where probes.{name} reads "
                "nothing; allowed: final, mean_after_warmup"
            )


def _check_late_starts(study: Study, arms: Iterable[str], reduction: str, locate: Locate) -> None:
    """Raise `InputError` if an arm starts inside the late window, which would then not be that of the other arms."""
    for arm in arms if reduction == "tail_mean" else ():
        if arm not in study.grid.arms:
            continue
        for size in study.grid.batch_size:
            if study.first_step(arm, size) > (1 - LATE) * study.lengths(size)[0]:
                raise InputError(
                    f"{locate('reduction')}: 'tail_mean' is the last {LATE:.0%} of a run, and {arm!r} starts inside it "
                    f"at step {study.first_step(arm, size)}; allowed: final, mean_after_warmup"
                )


# --- two measures of the same runs -----------------------------------------------------------------------------------


def _check_against(claim: Claim, variant: Variant, measures: Mapping[str, Measure], locate: Locate) -> None:
    """Raise `InputError` unless the claim's two measures can be compared.

    They must be different measures of one arm in the same unit and on the same scale, and the contrast must compare
    values of runs.
    """
    where, first, second = locate("against_measure"), measures[claim.measure], measures[claim.against_measure]
    if claim.compare[0] != claim.compare[1]:
        raise InputError(
            f"{locate('compare')}: got {list(claim.compare)}; allowed with against_measure, which compares two "
            "measures of the same runs: one arm, twice"
        )
    if first.name == second.name:
        raise InputError(f"{where}: {second.name!r} is the claim's own measure; allowed: another one")
    if variant.traits.on not in ("transform", "raw"):
        raise InputError(f"{where}: contrast {claim.contrast!r} compares arms, not measures; leave it out")
    if first.unit != second.unit:
        units = " and ".join(measure.unit or "no unit" for measure in (first, second))
        raise InputError(f"{where}: {first.name!r} and {second.name!r} are in {units}; allowed: measures of one unit")
    if variant.traits.on == "transform" and not claim.transform and first.transform != second.transform:
        raise InputError(
            f"{where}: {first.name!r} is on the scale {first.transform} and {second.name!r} on {second.transform}; "
            "give the claim a transform for both"
        )
    if "better" in variant.options and first.better != second.better:
        raise InputError(f"{where}: {first.name!r} and {second.name!r} are not good in the same direction")


# --- published figures -----------------------------------------------------------------------------------------------


def check_published(study: Study, published: Published, locate: Locate) -> None:
    """Raise `InputError` unless the study has the measure and the arms or axis of the published figures."""
    measures = [name for name, measure in study.measures.items() if not measure.listed]
    if published.measure not in measures:
        where, hint = locate("measure"), nearest(published.measure, measures)
        raise InputError(f"{where}: got {published.measure!r}; allowed: a measure of this study{hint}")
    if not published.factor:
        raise InputError(f"{locate('factor')}: got 0; allowed: what turns our unit into the published one")
    _check_first(study, published.measure, published.reduction, locate)
    if bool(published.axis) != bool(published.compare):
        raise InputError(f"{locate('axis')}: axis and compare are given together, or neither")
    if published.axis and (published.axis not in CLAIM_AXES or published.statistic == "sd"):
        where = locate("axis")
        raise InputError(f'{where}: got {published.axis!r}; allowed: {", ".join(CLAIM_AXES)}, with statistic = "mean"')
    if published.axis and len(set(study.grid.values(published.axis))) < 2:
        raise InputError(f"{locate('axis')}: grid.{published.axis} has one value; a slope needs two or more")
    _check_values(study, published, locate)


def _check_values(study: Study, published: Published, locate: Locate) -> None:
    """Raise `InputError` unless the figures belong to two or more valid arms or levels."""
    if published.compare and published.compare[0] == published.compare[1]:
        where = locate("compare")
        raise InputError(f"{where}: got {published.compare[0]!r} twice; allowed: two arms that differ")
    named = {"compare": published.compare} if published.compare else {"values": tuple(published.values)}
    for key, arms in named.items():
        for arm in arms:
            if arm not in study.grid.arms:
                raise InputError(f"{locate(key)}: {arm!r} is not in grid.arms{nearest(arm, study.grid.arms)}")
    for level in published.values if published.axis else ():
        if not _is_level(level, above_zero=AXES[published.axis].doubling):
            raise InputError(f"{locate('values')}: got {level!r}; allowed: values of {published.axis}, as numbers")
    if len(published.values) < 2:
        where, kind = locate("values"), f"levels of {published.axis}" if published.axis else "arms"
        raise InputError(f"{where}: got {shortened(published.values)}; allowed: the figures of two or more {kind}")


def _is_level(text: str, above_zero: bool) -> bool:
    try:
        level = float(text)
    except ValueError:
        return False
    return math.isfinite(level) and (level > 0 if above_zero else level >= 0)
