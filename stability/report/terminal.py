"""The verdicts in a terminal: a table of at most 80 columns, in plain ASCII where it is piped or cannot be shown."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stability.analysis import Findings, look_sentence

MAX_REPLICAS = 80
"""Columns of the table, however wide the terminal: longer lines read worse."""

MARKS = {
    "supported": ("✔", "+", "green"),
    "contradicted": ("✘", "x", "red"),
    "equivalent": ("=", "=", "blue"),
    "inconclusive": ("?", "?", "yellow"),
    "not-testable": ("–", "-", "dim"),
}
"""Each verdict's mark, that mark in ASCII, and its color."""

PLAIN = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": "x", "’": "'", "‘": "'", "“": '"', "”": '"', "→": "->", "\u00a0": " "}
)
"""Typographic signs of our sentences in ASCII; letters are left as they are."""


def print_verdicts(console: Console, findings: Findings) -> None:
    """Print each claim with its verdict and sentence, the primary one first.

    Colors are rich's: none where NO_COLOR is set or the output is no terminal.
    """
    ascii_only = is_plain(console)

    def plain(words: str) -> str:
        return words.translate(PLAIN) if ascii_only else words

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    for finding in sorted(findings.claims, key=lambda finding: not finding.primary):
        mark, in_ascii, color = MARKS[finding.verdict]
        words = Text(plain(f"{finding.text}\n")).append(plain(finding.sentence), "dim")
        if findings.replications:
            words.append(plain(f"\nreplications: {findings.agreement(finding.id).clause}"), "dim")
        if untuned := next((each for each in findings.untuned if each.id == finding.id), None):
            words.append(f"\nwithout tuning: {untuned.verdict} (secondary, decides nothing)", "dim")
        table.add_row(Text(f"{in_ascii if ascii_only else mark} {finding.verdict}", color, no_wrap=True), words)
    console.print(table, width=min(MAX_REPLICAS, console.width))
    if said := look_sentence(findings.looks):
        console.print(plain(said), soft_wrap=True)


def is_plain(console: Console) -> bool:
    """Tell whether only ASCII may be printed: into a pipe or a file, or to a terminal without Unicode."""
    return not console.is_terminal or not console.encoding.lower().startswith("utf")
