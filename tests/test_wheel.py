"""The built wheel, without the source tree: studies and templates are in it, and it answers a study."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


def test_studies_templates_and_types_are_in_the_wheel_and_tests_are_not(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"stability/studies/quickstart.toml", "stability/py.typed", "stability/report/templates/page.html"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_the_installed_wheel_runs_a_study_it_ships(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    # The dependencies come from this environment; only the package itself is the wheel's.
    packages = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    own = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    (own / "dependencies.pth").write_text(f"{packages}\n")
    asked = subprocess.run(
        [python, "-c", "import stability; print(stability.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.startswith(str(own))
    command = [tmp_path / "venv/bin/stability", "run", "quickstart", "--scale", "smoke"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    findings = json.loads((tmp_path / "runs/quickstart-smoke/report/findings.json").read_text())
    assert findings["study"] == "quickstart"
