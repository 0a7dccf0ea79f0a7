"""Arguments and fields are documented one a line wherever there are several."""

from __future__ import annotations

import ast
from pathlib import Path

import stability

PACKAGE = Path(stability.__file__).parent
MOST = 3
"""Number of arguments or fields that one sentence can introduce."""


def undocumented(source: str) -> list[str]:
    """Return the public functions and classes of a module with several arguments or fields and no list of them."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef):
            fields, heading = [each for each in node.body if isinstance(each, ast.AnnAssign)], "Attributes:"
        else:
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            fields, heading = [each for each in arguments if each.arg not in ("self", "cls")], "Args:"
        if text and len(fields) > MOST and heading not in text:
            names.append(node.name)
    return names


def test_several_arguments_and_fields_are_listed():
    # The options of the command line's verbs have help texts instead.
    modules = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "cli"]
    assert len(modules) > 150
    lacking = {str(path.relative_to(PACKAGE)): undocumented(path.read_text(encoding="utf-8")) for path in modules}
    assert {path: names for path, names in lacking.items() if names} == {}


def test_what_lacks_a_list_is_seen():
    fields = "".join(f"    {name}: int\n" for name in "abcd")
    source = f'def f(a, b, c, d):\n    """Return d."""\n\n\nclass C:\n    """A value."""\n\n{fields}'
    assert undocumented(source) == ["f", "C"]
    assert undocumented(source.replace("Return d.", "Return d.\n\n    Args:\n        a: the first.\n    ")) == ["C"]
