"""The table of verdicts in a terminal: at most 80 columns wide, plain ASCII for pipes and non-Unicode terminals."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stability.analysis import Findings, look_sentence
from stability.analysis.cells import cells_in_words
from stability.analysis.findings import assay_sentence
from stability.vocabulary import NOT_TESTABLE, VERDICTS

MAX_WIDTH = 80
"""Maximum width of the table in columns, even in a wider terminal: longer lines are harder to read."""

PLAIN = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": "x", "’": "'", "‘": "'", "“": '"', "”": '"', "→": "->", "\u00a0": " "}
)
"""ASCII for the typographic characters of our sentences; letters are unchanged."""


def print_verdicts(console: Console, findings: Findings) -> None:
    """Print each claim with its verdict and sentence, the primary one first.

    Rich prints no colors if NO_COLOR is set or the output is not a terminal.
    """
    ascii_only = is_plain(console)

    def plain(words: str) -> str:
        return words.translate(PLAIN) if ascii_only else words

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    for finding in sorted(findings.claims, key=lambda finding: not finding.primary):
        verdict = VERDICTS[finding.verdict]
        words = Text(plain(f"{finding.text}\n")).append(plain(finding.sentence), "dim")
        if finding.registration == "exploratory":
            words.append(plain(f"\nexploratory: {finding.registration_note}"), "dim")
        if cells := cells_in_words(finding.cells, finding.ratio) if finding.verdict != NOT_TESTABLE else "":
            words.append(plain(f"\ncells: {cells}"), "dim")
        if assay := assay_sentence(finding):
            words.append(plain(f"\n{assay}"), "dim")
        if findings.replications:
            words.append(plain(f"\nreplications: {findings.agreement(finding.id).clause}"), "dim")
        if untuned := next((other for other in findings.untuned if other.id == finding.id), None):
            words.append(f"\nwithout tuning: {untuned.verdict} (secondary, decides nothing)", "dim")
        table.add_row(
            Text(f"{verdict.ascii if ascii_only else verdict.mark} {finding.verdict}", verdict.color, no_wrap=True),
            words,
        )
    console.print(table, width=min(MAX_WIDTH, console.width))
    if not findings.registration["recorded"]:
        sentence = f"registration not recorded: {findings.registration['note']}"
        console.print(plain(sentence), style="dim", width=min(MAX_WIDTH, console.width))
    for one in findings.registration.get("withdrawn", ()):
        console.print(
            plain(f"withdrawn after the runs: {one['id']}, {one['was']}"), style="dim", soft_wrap=True, markup=False
        )
    if sentence := look_sentence(findings.looks):
        console.print(plain(sentence), soft_wrap=True)


def is_plain(console: Console) -> bool:
    """Return whether output must be ASCII: a pipe, a file, or a terminal without Unicode."""
    return not console.is_terminal or not console.encoding.lower().startswith("utf")
