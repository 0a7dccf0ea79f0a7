"""The README stays true: its commands run, its code blocks run, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import call

from stability import cli
from stability.study.loader import shipped_studies

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


FILES = {block.split("\n", 1)[0].removeprefix("# "): block for block in blocks("python") if block.startswith("# ")}
COMMANDS = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines() if line.strip()]


def test_the_first_screen_is_one_sentence_one_command_and_one_picture():
    first = README.split("\n## ")[0]
    assert len(first.split()) <= 150
    assert first.count("```console") == 1
    assert len(re.findall(r"!\[", first)) == 1


def test_the_readme_names_every_verb():
    named = {command.split()[1] for command in COMMANDS if command.startswith("stability")}
    assert named == {command.name or command.callback.__name__ for command in cli.app.registered_commands}


def test_a_loss_of_one_s_own_takes_twelve_lines():
    assert len([line for line in FILES["my_loss.py"].splitlines()[1:] if line.strip()]) <= 12


SMALL = {
    "grid.seeds = 3": "grid.seeds = 2",
    "grid.batch_size = [16, 32]": "grid.batch_size = [16]",
    "steps = 20": "steps = 10",
}
"""What is less in the smoke scale of the quickstart here; `make test-slow` trains all of it, for the pages of docs."""


@pytest.fixture
def reader(tmp_path, monkeypatch, one_core):
    """A folder with the README's files, data of the reader's own, and a quickstart whose smoke scale is smaller."""
    numbers = np.random.default_rng(0)
    np.savez(tmp_path / "vectors.npz", audio=numbers.normal(size=(200, 6)), text=numbers.normal(size=(200, 4)))
    for name, block in FILES.items():
        (tmp_path / name).write_text(block)
    text = shipped_studies()["quickstart"].read_text()
    for before, after in SMALL.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "quickstart.toml").write_text(text)
    monkeypatch.chdir(tmp_path)


def commands(pattern: str) -> list[str]:
    """Return the commands that match a pattern, in the order of reading."""
    return [command for command in COMMANDS if re.search(pattern, command)]


OWN_RUN = r"runs/quickstart-smoke( |$)|^stability run"
CHAPTERS = {"plan": r"^stability (list|plan q|calibrate)", "loss": r"my_loss\.py", "data": r" mine( |$)"}
"""The commands that depend on each other, besides those of the quickstart's run, by a pattern."""


def run_all(lines: list[str]) -> None:
    for line in lines:
        program, *words = shlex.split(line)
        called = call(*words)
        assert (program, called.code) == ("stability", 0), f"{line}: {called.err}"


def test_every_command_belongs_to_one_chapter():
    for command in COMMANDS:
        assert sum(bool(re.search(pattern, command)) for pattern in (OWN_RUN, "^make", *CHAPTERS.values())) == 1, (
            command
        )


def test_the_commands_of_make_are_targets():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {command.split()[1] for command in commands("^make")} <= {*targets}


def test_every_command_and_block_about_the_quickstart_s_run(reader, capsys):
    run_all(commands(OWN_RUN))
    for block in BLOCKS:
        if "runs/quickstart-smoke" in block:
            execute(block)
    assert capsys.readouterr().out


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_command_of_a_chapter_in_the_order_of_reading(chapter, reader):
    run_all(commands(CHAPTERS[chapter]))


BLOCKS = [block for block in blocks("python") if block not in FILES.values()]


def execute(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_every_other_code_block(reader, capsys):
    for block in BLOCKS:
        if "runs/quickstart-smoke" not in block:
            execute(block)
    assert capsys.readouterr().out


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
