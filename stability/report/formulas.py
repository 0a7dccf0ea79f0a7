"""Formulas in Typst's notation as MathML, for the part of the notation that reports use.

Symbols are written as characters (α, Σ, ∑, ±). A fraction, root or script drops the parentheses of what it applies to.
"""

from __future__ import annotations

import re
from collections import deque

from stability.registry import InputError

OPERATORS = ("log", "min")
"""Names that are set upright; any other as ``op("name")``."""

ACCENTS = {"macron": "¯", "hat": "^"}
SPACES = {"quad": "1.2em", "thin": ".2em"}
CLOSING = {"(": ")", "[": "]", "|": "|"}
TOKEN = re.compile(r'op\("\w+"(?:, limits: #true)?\)|"[^"]*"|\d*\.?\d+|[A-Za-z]+|\\/|\S')


def mathml(formula: str) -> str:
    """Return the content of a ``<math>`` element for a formula in Typst's notation.

    >>> mathml("(p − q) / 2")
    '<mfrac><mrow><mi>p</mi><mo>−</mo><mi>q</mi></mrow><mn>2</mn></mfrac>'
    >>> mathml("lambda_1")
    Traceback (most recent call last):
    stability.registry.InputError: formula: unknown name 'lambda' (known: cases, hat, log, macron, min, quad, sqrt, ...
    """
    return "".join(_row(deque(TOKEN.findall(formula)), ""))


def _row(tokens: deque[str], ends: str) -> list[str]:
    """Return the elements up to a token among *ends*."""
    row: list[tuple[str, str]] = []
    while tokens and tokens[0] not in ends.split():
        if tokens[0] == "/":
            tokens.popleft()
            (_, above), (_, below) = row.pop(), _scripted(tokens)
            row.append((f"<mfrac>{above}{below}</mfrac>",) * 2)
        else:
            space = '<mspace width=".3em"/>' if tokens[0].startswith('"') else ""
            row += [(space, space)] * bool(space) + [_scripted(tokens)]
    return [markup for markup, _ in row]


def _scripted(tokens: deque[str]) -> tuple[str, str]:
    """Return the next atom with its scripts, which stand below and above a sum with both and a word."""
    base, bare = _atom(tokens)
    scripts: dict[str, str] = {}
    while tokens and tokens[0] in ("_", "^"):
        position = tokens.popleft()
        scripts[position] = _atom(tokens)[1]
    if not scripts:
        return base, bare
    stacked = "mtext" in base or ("∑" in base and len(scripts) == 2)
    names = {"_": "under", "^": "over"} if stacked else {"_": "sub", "^": "sup"}
    tag = "m" + "".join(name for position, name in names.items() if position in scripts)
    markup = f"<{tag}>{base}{scripts.get('_', '')}{scripts.get('^', '')}</{tag}>"
    return markup, markup


def _atom(tokens: deque[str]) -> tuple[str, str]:
    """Return the next atom, and the same without parentheses that only group."""
    token = tokens.popleft()
    if token in CLOSING:
        inside = _row(tokens, CLOSING[token])
        tokens.popleft()
        markup = f"<mrow><mo>{token}</mo>{''.join(inside)}<mo>{CLOSING[token]}</mo></mrow>"
        grouped = inside[0] if len(inside) == 1 else f"<mrow>{''.join(inside)}</mrow>"
        return markup, grouped if token == "(" else markup
    if token in ACCENTS:
        markup = f"<mover>{_atom(tokens)[1]}<mo>{ACCENTS[token]}</mo></mover>"
    elif token == "sqrt":
        markup = f"<msqrt>{_atom(tokens)[1]}</msqrt>"
    elif token == "cases":
        markup = _cases(tokens)
    elif token in SPACES:
        markup = f'<mspace width="{SPACES[token]}"/>'
    elif '"' in token:
        name = token.split('"')[1]
        upright = token.startswith("op(") and "limits" not in token
        markup = f'<mi>{name}</mi><mspace width=".15em"/>' if upright else f"<mtext>{name}</mtext>"
    elif token in OPERATORS:
        markup = f'<mi>{token}</mi><mspace width=".15em"/>'
    elif token.isalpha() and len(token) > 1:
        names = sorted([*OPERATORS, *ACCENTS, *SPACES, "sqrt", "cases"])
        raise InputError(f"formula: unknown name {token!r} (known: {', '.join(names)})")
    else:
        tag = "mn" if token[-1].isdigit() else "mi" if token.isalpha() else "mo"
        upright_style = ' mathvariant="normal"' if token == "Σ" else ""
        markup = f"<{tag}{upright_style}>{token.lstrip(chr(92))}</{tag}>"
    return markup, markup


def _cases(tokens: deque[str]) -> str:
    rows = []
    while tokens.popleft() != ")":
        value = "".join(_row(tokens, "quad"))
        del tokens[0], tokens[0]
        rows.append(f"<mtr><mtd>{value}</mtd><mtd>{''.join(_row(tokens, ', )'))}</mtd></mtr>")
    return f'<mrow><mo>{{</mo><mtable columnalign="left">{"".join(rows)}</mtable></mrow>'
