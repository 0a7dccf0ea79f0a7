"""Formulas in Typst's notation as MathML, for the part of the notation that reports use."""

from __future__ import annotations

import re
from collections import deque
from itertools import pairwise
from typing import NamedTuple

from stability.registry import InputError, nearest

SYMBOLS = {
    "alpha": "α",
    "beta": "β",
    "epsilon": "ε",
    "eta": "η",
    "lambda": "λ",
    "phi": "φ",
    "Sigma": "Σ",
    "sum": "∑",
    "plus.minus": "±",
    "!=": "≠",
    "-": "−",
    r"\/": "/",
}
"""Characters by their names in Typst."""

OPERATORS = ("log", "min")
"""Names that are set upright; any other as ``op("name")``."""

ACCENTS = {"macron": "¯", "hat": "^"}
SPACES = {"quad": "1.2em", "thin": ".2em"}
NAMES = {*SYMBOLS, *OPERATORS, *ACCENTS, *SPACES, "sqrt", "cases", "op"}
CLOSING = {"(": ")", "[": "]", "|": "|"}

TOKEN = re.compile(r'op\("\w+"(?:, limits: #true)?\)|"[^"]*"|\d*\.?\d+|[A-Za-z]+(?:\.[a-z]+)?|!=|\\/|\S')


class _Node(NamedTuple):
    """A piece of a formula: its MathML, the same without parentheses that only group, and what decides its spacing."""

    markup: str
    bare: str
    kind: str = ""


def mathml(formula: str) -> str:
    r"""Return the content of a ``<math>`` element for a formula in Typst's notation.

    >>> mathml("(p - q) / 2")
    '<mfrac><mrow><mi>p</mi><mo>−</mo><mi>q</mi></mrow><mn>2</mn></mfrac>'
    >>> mathml("lambdda_1")
    Traceback (most recent call last):
    stability.registry.InputError: formula 'lambdda_1': unknown name 'lambdda'; did you mean 'lambda'? (known: ...
    """
    tokens = deque(TOKEN.findall(formula))
    for token in tokens:
        if len(token) > 1 and token[0].isalpha() and not token.startswith("op(") and token not in NAMES:
            raise InputError(f"formula {formula!r}: unknown name {token!r}{nearest(token, NAMES)}")
    return "".join(_row(tokens, ""))


def _row(tokens: deque[str], ends: str) -> list[str]:
    """Return the elements up to a token among *ends*, with spaces around names and words."""
    nodes: list[_Node] = []
    while tokens and tokens[0] not in ends.split():
        if tokens[0] == "/":
            tokens.popleft()
            above, below = nodes.pop(), _scripted(tokens)
            nodes.append(_leaf(f"<mfrac>{above.bare}{below.bare}</mfrac>", "group"))
        else:
            nodes.append(_scripted(tokens))
    elements = [node.markup for node in nodes[:1]]
    for before, node in pairwise(nodes):
        space = ".3em" if node.kind == "text" else ".15em" if before.kind == "name" and node.kind != "group" else ""
        elements += [*([f'<mspace width="{space}"/>'] if space else []), node.markup]
    return elements


def _scripted(tokens: deque[str]) -> _Node:
    """Return the next atom with its subscript and superscript; those of a sum or limit stand below and above it."""
    base, scripts = _atom(tokens), {"_": "", "^": ""}
    while tokens and tokens[0] in scripts:
        place = tokens.popleft()
        scripts[place] = _atom(tokens).bare
    below, above = scripts.values()
    if not below and not above:
        return base
    stacked = base.kind == "limits" or (below and above and "∑" in base.markup)
    parts = ("under", "over") if stacked else ("sub", "sup")
    tag = f"m{parts[0] if below else ''}{parts[1] if above else ''}"
    return _leaf(f"<{tag}>{base.markup}{below}{above}</{tag}>", base.kind)


def _atom(tokens: deque[str]) -> _Node:
    token = tokens.popleft()
    if token in CLOSING:
        inside = _row(tokens, CLOSING[token])
        tokens.popleft()
        markup = f"<mrow><mo>{token}</mo>{''.join(inside)}<mo>{CLOSING[token]}</mo></mrow>"
        return _Node(markup, _grouped(inside), "group") if token == "(" else _leaf(markup, "group")
    if token in ACCENTS:
        return _leaf(f"<mover>{_atom(tokens).bare}<mo>{ACCENTS[token]}</mo></mover>")
    if token == "sqrt":
        return _leaf(f"<msqrt>{_atom(tokens).bare}</msqrt>")
    if token == "cases":
        return _cases(tokens)
    if token in SPACES:
        return _leaf(f'<mspace width="{SPACES[token]}"/>', "group")
    if token.startswith("op("):
        name = token.split('"')[1]
        return _leaf(f"<mtext>{name}</mtext>", "limits") if "limits" in token else _leaf(f"<mi>{name}</mi>", "name")
    if token in OPERATORS:
        return _leaf(f"<mi>{token}</mi>", "name")
    if token.startswith('"'):
        return _leaf(f"<mtext>{token[1:-1]}</mtext>", "text")
    return _character(SYMBOLS.get(token, token))


def _character(text: str) -> _Node:
    if text == "Σ":
        return _leaf('<mi mathvariant="normal">Σ</mi>')
    tag = "mi" if text.isalpha() else "mn" if text[-1].isdigit() else "mo"
    return _leaf(f"<{tag}>{text}</{tag}>")


def _cases(tokens: deque[str]) -> _Node:
    rows = []
    while tokens.popleft() != ")":
        value = [element for element in _row(tokens, "&") if not element.startswith("<mspace")]
        tokens.popleft()
        condition = _row(tokens, ", )")
        rows.append(f"<mtr><mtd>{''.join(value)}</mtd><mtd>{''.join(condition)}</mtd></mtr>")
    return _leaf(f'<mrow><mo>{{</mo><mtable columnalign="left">{"".join(rows)}</mtable></mrow>')


def _grouped(elements: list[str]) -> str:
    return elements[0] if len(elements) == 1 else f"<mrow>{''.join(elements)}</mrow>"


def _leaf(markup: str, kind: str = "") -> _Node:
    return _Node(markup, markup, kind)
