"""The README stays true: its commands run, its code blocks run, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from stability import cli
from stability.losses import loss

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    """One directory for all commands and blocks, in reading order, with nothing in it but data of the reader's own."""
    where = tmp_path_factory.mktemp("reader")
    numbers = np.random.default_rng(0)
    np.savez(where / "vectors.npz", audio=numbers.normal(size=(200, 6)), text=numbers.normal(size=(200, 4)))
    return where


def test_the_first_screen_is_one_sentence_one_command_and_one_picture():
    first = README.split("\n## ")[0]
    assert len(first.split()) <= 150
    assert first.count("```console") == 1
    assert len(re.findall(r"!\[", first)) == 1


def test_the_readme_names_every_verb():
    named = {command.split()[1] for command in COMMANDS if command.startswith("stability")}
    assert named == {command.name or command.callback.__name__ for command in cli.app.registered_commands}


FILES = {block.split("\n", 1)[0].removeprefix("# "): block for block in blocks("python") if block.startswith("# ")}


def test_a_loss_of_one_s_own_takes_twelve_lines():
    assert len([line for line in FILES["my_loss.py"].splitlines()[1:] if line.strip()]) <= 12


def test_every_command_runs_in_the_order_of_reading(somewhere, monkeypatch, capsys):
    monkeypatch.chdir(somewhere)
    monkeypatch.setattr(loss, "_variants", dict(loss._variants))
    for name, block in FILES.items():
        (somewhere / name).write_text(block)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program == "make":
            assert words[0] in targets
            continue
        monkeypatch.setattr(sys, "argv", [program, *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, f"{command}: {capsys.readouterr().err}"


def test_every_code_block_runs_after_the_commands(somewhere, monkeypatch, capsys):
    monkeypatch.chdir(somewhere)
    for block in (block for block in blocks("python") if block not in FILES.values()):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
