"""For the reference: docstrings are plain text, and Markdown would read some of it as markup.

Doctests become blocks of code (``>>>`` is a quotation in Markdown); angle brackets are kept (``<image, text>`` would
be a tag, and vanish).
"""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n(?!\n).+)*", flags=re.MULTILINE)
"""From a prompt to the next empty line."""

CODE = re.compile(r"(```.*?```|``.+?``|`[^`\n]+`)", flags=re.DOTALL)
"""Blocks and spans of code, in which nothing is markup."""


def as_markdown(docstring: str) -> str:
    r"""Return a docstring as Markdown that shows every one of its characters.

    >>> print(as_markdown("Return <a, b> and `<c>`.\n\n>>> 1\n1\n\nMore.").replace("```", "~~~"))
    Return &lt;a, b> and `<c>`.
    <BLANKLINE>
    ~~~pycon
    >>> 1
    1
    ~~~
    <BLANKLINE>
    More.
    """
    fenced = DOCTEST.sub(lambda found: f"```pycon\n{found.group()}\n```", docstring)
    parts = CODE.split(fenced)
    return "".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


class Fences(griffe.Extension):
    """Rewrites the docstring of every object that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
