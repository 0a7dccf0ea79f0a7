"""The registry of sections and their interface.

A section is a function ``(data: ReportData) -> Blocks``. Its name is the section's id and anchor. One that yields no
block is absent from the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stability.registry import Registry, Traits
from stability.report.blocks import Block, Lead, as_json, figures_in
from stability.report.data import ReportData
from stability.report.figures import ReportFigure
from stability.report.tables import Json

__all__ = ["Blocks", "ReportData", "Section", "section", "sections_of"]

Blocks = Iterator[Block | Lead]
"""What a section yields."""


@dataclass(frozen=True)
class SectionTraits(Traits):
    """What a section declares.

    Attributes:
        order: Its place: sections come in ascending order. Those of this package leave room between any two.
        title: Its heading.
        lead: The sentences below the heading; a `Lead` adds one.
        short: Its name in the contents; by default the title.
    """

    order: float
    title: str
    lead: str = ""
    short: str = ""


section = Registry("section", SectionTraits)
"""The decorator of sections, with the traits of `SectionTraits`."""


@dataclass(frozen=True)
class Section:
    """A section of one report.

    Attributes:
        id: Its id and anchor.
        traits: What it declares.
        lead: The declared lead with the sentences that the data add.
        blocks: Its blocks, at least one.
    """

    id: str
    traits: SectionTraits
    lead: str
    blocks: Sequence[Block]

    @property
    def figures(self) -> tuple[ReportFigure, ...]:
        """Return its figures."""
        return tuple(figures_in(self.blocks))

    def to_json(self) -> Json:
        """Return the section as JSON data."""
        texts = {"title": self.traits.title, "short": self.traits.short or self.traits.title, "lead": self.lead}
        return {"id": self.id, **texts, "blocks": [as_json(block) for block in self.blocks]}


def sections_of(data: ReportData) -> tuple[Section, ...]:
    """Return the sections of a report in reading order, without those that have no block."""
    sections = []
    for name, variant in section.items():
        traits, yielded = variant.traits, list(variant(data))
        leads = [item.text for item in yielded if isinstance(item, Lead)]
        if blocks := [item for item in yielded if not isinstance(item, Lead)]:
            sections.append(Section(name, traits, " ".join(filter(None, (traits.lead, *leads))), blocks))
    return tuple(sorted(sections, key=lambda section: section.traits.order))
