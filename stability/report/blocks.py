"""The blocks that a section of a report consists of; both renderings have one template for each kind.

`as_json` gives a block its kind: the name of its class in lower case, and "figure" for a `ReportFigure`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stability.report.figures import ReportFigure
from stability.report.tables import Json, plain_table


@dataclass(frozen=True)
class Lead:
    """A sentence that the data add to the lead of their section, below the heading."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph.

    Attributes:
        text: The text.
        tone: "small" for a note, "disagrees" for a mark at the side on the page.
    """

    text: str
    tone: Literal["", "small", "disagrees"] = ""


@dataclass(frozen=True)
class Table:
    """A table; see `stability.report.tables` for its columns and cells.

    Attributes:
        name: What the table shows, for screen readers.
        columns: The heads: label, note or None, and whether the column is numeric.
        rows: The cells of each row: text and value. Optional keys of a cell are "note" (a second line), "tag" (a mark
            after the text), and "verdict" with "shape" (the text is shown as a badge).
        caption: A sentence above the table on the page, below it on paper.
        size: The size of the text.
        wide: The column that takes the remaining width on paper.
        sortable: Whether the page can sort and filter the rows.
    """

    name: str
    columns: Sequence[Json]
    rows: Sequence[Sequence[Json]]
    caption: str = ""
    size: Literal["small", "normal", "large"] = "normal"
    wide: Literal["", "first", "last"] = ""
    sortable: bool = False


@dataclass(frozen=True)
class Fact:
    """One entry of `Facts`.

    Attributes:
        label: What it is.
        text: Its value.
        code: A value in a fixed-width font, in a line before the text.
        missing: What is missing of it, in a line after the text.
    """

    label: str
    text: str = ""
    code: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Facts:
    """A list of labels with short values beside them."""

    items: Sequence[Fact]


@dataclass(frozen=True)
class Formula:
    """A formula on a line of its own.

    Attributes:
        alt: The formula in plain characters, for screen readers.
        math: The formula in Typst's notation, of which `stability.report.formulas` knows a part.
    """

    alt: str
    math: str


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font, with its own line ends; *long* is whether it may take pages and is set smaller."""

    text: str
    long: bool = False


@dataclass(frozen=True)
class Part:
    """A title with blocks below it, kept together on one page of the paper unless one of them is code.

    A *folded* part shows its blocks on the page when its reader opens it; the paper leaves it out.
    """

    title: str
    blocks: Sequence[Block]
    folded: bool = False


Block = ReportFigure | Paragraph | Table | Facts | Formula | Code | Part


def as_json(block: Block) -> Json:
    """Return a block as JSON data with its kind."""
    if isinstance(block, ReportFigure):
        texts = {name: getattr(block, name) for name in ("id", "title", "caption", "alt")}
        return {"kind": "figure", **texts, "table": plain_table(block.table)}
    content = {"kind": type(block).__name__.lower(), **vars(block)}
    if isinstance(block, Part):
        content["blocks"] = [as_json(inner) for inner in block.blocks]
    return content | ({"items": [vars(fact) for fact in block.items]} if isinstance(block, Facts) else {})


def figures_in(blocks: Sequence[Block]) -> Iterator[ReportFigure]:
    """Yield the figures among blocks and inside of their parts."""
    for block in blocks:
        if isinstance(block, ReportFigure | Part):
            yield from figures_in(block.blocks) if isinstance(block, Part) else (block,)


def of_kind(kind: str, blocks: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the blocks of a kind among blocks in JSON and inside of their parts."""
    for block in blocks:
        if block["kind"] == kind:
            yield block
        yield from of_kind(kind, block.get("blocks", ()))
