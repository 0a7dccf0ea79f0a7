"""For the reference: doctests become blocks of code, where Markdown would take ``>>>`` for a quotation."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n(?!\n).+)*", flags=re.MULTILINE)
"""From a prompt to the next empty line."""


def fenced(docstring: str) -> str:
    r"""Return a docstring whose doctests are fenced.

    >>> print(fenced("Return one.\n\n>>> 1\n1\n\nMore.").replace("`", "'"))
    Return one.
    <BLANKLINE>
    '''pycon
    >>> 1
    1
    '''
    <BLANKLINE>
    More.
    """
    return DOCTEST.sub(lambda found: f"```pycon\n{found.group()}\n```", docstring)


class Fences(griffe.Extension):
    """Fences the doctests of every object that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
