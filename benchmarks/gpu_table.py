"""Rows of the GPU benchmark: one figure each, kept in a file a stage, shown as one table, merged into the README."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stability.store import write_atomically

HEADS = ("stage", "case", "figure", "value", "unit", "ratio", "goal")
BEGIN, END = "<!-- gpu -->", "<!-- /gpu -->"
HEADING = "## On a GPU"
COMMAND = """```console
$ python benchmarks/gpu.py --minutes 8 --out DIR
$ python benchmarks/gpu.py --merge DIR
```"""


@dataclass(frozen=True)
class Row:
    """One figure of one case: *value* is a number or one sentence, *ratio* a peer's time over that of this row."""

    stage: str
    case: str
    figure: str
    value: float | int | str
    unit: str = ""
    ratio: float | None = None
    goal: str = ""

    def cells(self) -> list[str]:
        """Return the row's text, a cell a head."""
        value = self.value if isinstance(self.value, str) else number(self.value)
        ratio = "" if self.ratio is None else number(self.ratio)
        words = (self.stage, self.case, self.figure, value, self.unit, ratio, self.goal)
        return [word.replace("|", "/").replace("\n", " ") for word in words]


def number(value: float) -> str:
    """Return a number with four digits that count.

    >>> number(12345.6), number(0.000123456), number(7)
    ('12,346', '0.0001235', '7')
    """
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEADS, tuple("--:" if head in ("value", "ratio") else "---" for head in HEADS)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (*lines, *(row.cells() for row in rows)))


@dataclass
class StageFile:
    """The file of one stage: written anew after every row, so that a stage that is killed keeps what it has."""

    path: Path
    dry: bool
    rows: list[Row]
    ended: str = "running"

    def add(self, row: Row) -> None:
        """Keep a row, on disk too."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Write what is known so far."""
        content = {"dry": self.dry, "ended": self.ended, "rows": [asdict(row) for row in self.rows]}
        write_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())


def read_stage(path: Path, dry: bool) -> StageFile:
    """Return what a stage has written; nothing yet where there is no file."""
    if not path.is_file():
        return StageFile(path, dry, [])
    content = json.loads(path.read_text())
    return StageFile(path, content["dry"], [Row(**row) for row in content["rows"]], content["ended"])


def merge(stages: Sequence[StageFile], into: Path) -> str:
    """Write gpu.json and the section of README.md in the folder *into*, and return that section.

    What a dry run wrote is no measurement: the section then says that nothing is measured yet, and gpu.json is empty.
    """
    measured = [stage for stage in stages if not stage.dry]
    rows = [row for stage in measured for row in stage.rows]
    content: dict[str, Any] = {
        "measured": bool(rows),
        "ended": {stage.path.stem: stage.ended for stage in measured},
        "rows": [asdict(row) for row in rows],
    }
    write_atomically(into / "gpu.json", (json.dumps(content, indent=1) + "\n").encode())
    text = section(rows)
    readme = into / "README.md"
    before = readme.read_text() if readme.is_file() else "# Benchmarks\n"
    write_atomically(readme, with_section(before, text).encode())
    return text


def section(rows: Sequence[Row]) -> str:
    """Return the section of the README: a sentence on the machine, and the table of all other rows."""
    if not rows:
        return f"{HEADING}\n\n{COMMAND}\n\nNot measured yet: no GPU has run this."
    about = {row.figure: row.cells()[3] for row in rows if row.case == "machine"}
    machine = ", ".join(f"{name} {about[name]}" for name in ("device", "driver", "torch", "python") if name in about)
    told = [row for row in rows if row.case != "machine"]
    return (
        f"{HEADING}\n\n{COMMAND}\n\nOn {machine}. *Ratio* is the peer's time over ours (of a share: of the ceiling "
        f"measured in the same minute); rows in [gpu.json](gpu.json).\n\n{table(told)}"
    )


def with_section(before: str, text: str) -> str:
    """Return a README with the text between its markers, which stand at its end where they are missing.

    >>> with_section("# A\\n", "new")
    '# A\\n\\n<!-- gpu -->\\nnew\\n<!-- /gpu -->\\n'
    >>> with_section("# A\\n<!-- gpu -->\\nold\\n<!-- /gpu -->\\nB\\n", "new")
    '# A\\n<!-- gpu -->\\nnew\\n<!-- /gpu -->\\nB\\n'
    """
    marked = f"{BEGIN}\n{text}\n{END}"
    if BEGIN not in before or END not in before:
        return f"{before.rstrip()}\n\n{marked}\n"
    head, _, rest = before.partition(BEGIN)
    return head + marked + rest.partition(END)[2]
