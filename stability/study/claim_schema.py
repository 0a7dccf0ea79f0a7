"""The tables of a study that say what its runs decide: claims, controls, rankings and figures of papers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from stability.study.schema import Frozen, Name, Text
from stability.vocabulary import ReductionName, TransformName


class Claim(Frozen):
    """One falsifiable statement with everything that decides it, written before any run.

    Attributes:
        id: Unique identifier.
        text: The statement.
        source: Where it comes from.
        primary: Whether it decides the study's verdict.
        measure: Name of the measure.
        contrast: Name of the contrast.
        compare: The two arms.
        expect: Expected direction.
        margin: Smallest effect that matters.
        axis: Axis of a contrast over levels.
        reduction: Overrides the contrast's reduction.
        transform: Overrides the measure's transform. "relative_to_chance" is the training loss divided by its chance
            level, at most 1 (the value of a diverged run), and is free of the loss's scale.
        threshold: Threshold of a time to threshold.
        against_measure: Second measure: one arm (listed twice in *compare*) is compared between the two measures,
            paired by run.
    """

    id: Name
    text: Text
    source: str = ""
    primary: bool = False
    measure: Name
    contrast: Name
    compare: tuple[Name, Name]
    expect: Literal["higher", "lower", "equal"]
    margin: Annotated[float, Field(gt=0)]
    axis: str = ""
    reduction: ReductionName | None = None
    transform: TransformName | None = None
    threshold: float | None = None
    against_measure: str = ""

    @property
    def measures(self) -> tuple[str, str]:
        """Return the measures of both sides; they differ only if `against_measure` is set."""
        return self.measure, self.against_measure or self.measure


def _all_or_names(value: Any) -> str | tuple[Any, ...]:
    """Return "all" or a list of names as a tuple, or refuse the value."""
    if value == "all":
        return "all"
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) and name for name in value):
        raise PydanticCustomError("all_or_names", "'all', or a list of names")
    return tuple(value)


class Control(Frozen):
    """A difference that is planted, so that a measure that does not move is known to be insensitive.

    Attributes:
        id: Unique identifier.
        arm: The arm with the planted difference.
        against: The arm that it is compared with.
        measures: The claims' measures that it must move; "all": those of every claim that compares two arms.
        expect: The planted direction of the effect, or "different" if either will do.
    """

    id: Name
    arm: Name
    against: Name
    measures: Annotated[Literal["all"] | tuple[Name, ...], BeforeValidator(_all_or_names)] = "all"
    expect: Literal["higher", "lower", "different"] = "different"

    def applies_to(self, claim: Claim) -> bool:
        """Return whether the claim's measure must move; a claim on two measures of one arm has no control."""
        return not claim.against_measure and (self.measures == "all" or claim.measure in self.measures)


class Ranking(Frozen):
    """A ranking of losses by one measure with all pairs compared simultaneously; it gives no verdict.

    Attributes:
        measure: Name of the measure.
        losses: Arms of the grid.
        reduction: As in a claim.
        transform: As in a claim.
    """

    measure: Name
    losses: Literal["all"] | tuple[Name, ...] = "all"
    reduction: ReductionName | None = None
    transform: TransformName | None = None


class Published(Frozen):
    """Figures that a paper reports, shown next to ours in the report; they give no verdict.

    Attributes:
        text: What the figures show.
        source: The paper.
        transfers: What is expected to agree here, and what is not.
        measure: Our measure.
        values: The published figures by arm. With *axis* and *compare* they are differences, first arm minus second, by
            value of that axis, which need not be a value of our grid.
        statistic: Statistic over the seeds: mean or standard deviation.
        reduction: As in a claim.
        factor: Converts our measure to the published unit.
        unit: The published unit.
        compare: The two arms of a difference.
        axis: The axis of a difference.
    """

    text: Text
    source: Text
    transfers: Text
    measure: Name
    values: dict[str, float]
    statistic: Literal["mean", "sd"] = "mean"
    reduction: ReductionName = "tail_mean"
    factor: float = 1.0
    unit: str = ""
    compare: tuple[Name, Name] | None = None
    axis: str = ""
