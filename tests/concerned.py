"""Prints the files that pytest has to run for a change: those named, and the tests that import what they define."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def definitions(path: Path) -> set[str]:
    """Return the dotted names under which a test can import a module of the package or a public name of it."""
    parts = path.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    # A package may export the names of its modules.
    return {module, *(f"{'.'.join(parts[:-1])}.{name}" for name in names if not name.startswith("_"))}


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def concerned(changed: list[Path]) -> list[Path]:
    """Return *changed*, for their doctests and tests, and each test file that imports what they define."""
    defined = set().union(*(definitions(path) for path in changed if path.parts[0] == "stability"))
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    importing = [path.relative_to(ROOT) for path in tests if imports(path) & defined]
    return [*changed, *(path for path in importing if path not in changed)]


if __name__ == "__main__":
    sys.stdout.write(" ".join(map(str, concerned([Path(word) for word in sys.argv[1:]]))))
