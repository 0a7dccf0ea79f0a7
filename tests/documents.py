"""Documents under test: their code blocks written, run and read in the order of reading, in a folder of their own."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import CATALOGUES, call

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOT_RUN = " (not run)"

Start = Callable[[list[str], Path], None]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title (a file's name) and its text."""

    language: str
    title: str
    code: str


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a Markdown text."""
    for language, title, code in re.findall(
        r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', text, flags=re.DOTALL | re.MULTILINE
    ):
        yield Block(language, title, code)


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a console block, in words."""
    for line in block.code.splitlines():
        if line.startswith("$ "):
            yield shlex.split(line.removeprefix("$ "))


def follow(page: Path, folder: Path, start: Start) -> int:
    """Do what a page says, in *folder*, each command by *start*, and return how many commands and blocks ran.

    A block with a title is a file to write; one whose title says that it is not run only has to compile.
    """
    done = 0
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.title.endswith(NOT_RUN):
            compile(block.code, block.title, "exec")
        elif block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.code)
        elif block.language == "console":
            for words in commands(block):
                start(words, folder)
                done += 1
        elif block.language == "python":
            (folder / "block.py").write_text(block.code)
            start(["python", "block.py"], folder)
            done += 1
    return done


def start_here(words: list[str], folder: Path) -> None:
    """Run a command in this process, whose folder is *folder*, as if it were one of its own: nothing is left of it."""
    program, *rest = words
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        if program == "python":
            patch.setattr(sys, "argv", words)
            for registry in CATALOGUES:
                patch.setattr(registry, "_variants", dict(registry._variants))
            runpy.run_path(rest[0], run_name="__main__")
        else:
            assert program == "stability", words
            called = call(*rest)
            assert called.code == 0, (words, called.err)
            sys.stdout.write(called.out)
    for name in [name for name in sys.modules if (folder / f"{name}.py").is_file()]:
        del sys.modules[name]


def start_from(environment: Path) -> Start:
    """Return what runs a command in a process of its own, by the programs of a virtual environment."""

    def start(words: list[str], folder: Path) -> None:
        ran = subprocess.run(
            [environment / "bin" / words[0], *words[1:]], cwd=folder, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, (words, ran.stderr)

    return start
