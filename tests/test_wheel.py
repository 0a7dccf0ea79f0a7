"""The built wheel, without the source tree: studies and templates are in it, and it answers a study."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from documents import ROOT, follow, start_from

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


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A fresh environment with the wheel in it; the dependencies come from this one, the package from nowhere else."""
    where = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(where, with_pip=True)
    python = where / "bin/python"
    packages = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    own = next((where / "lib").glob("python*/site-packages"))
    (own / "dependencies.pth").write_text(f"{packages}\n")
    return where


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """An empty folder that is no part of the source tree, from which nothing leads back to it."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("STABILITY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_installed_wheel_runs_a_study_it_ships(environment, outside):
    asked = subprocess.run(
        [environment / "bin/python", "-c", "import stability; print(stability.__file__)"],
        cwd=outside,
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.startswith(str(environment))
    command = [environment / "bin/stability", "run", "quickstart", "--scale", "smoke"]
    subprocess.run(command, cwd=outside, check=True, capture_output=True)
    findings = json.loads((outside / "runs/quickstart-smoke/report/findings.json").read_text())
    assert findings["study"] == "quickstart"


@pytest.mark.parametrize("page", sorted(path.stem for path in (ROOT / "docs/walkthroughs").glob("*.md")))
def test_the_installed_wheel_passes_the_walkthroughs(page, environment, outside):
    assert follow(ROOT / f"docs/walkthroughs/{page}.md", outside, start_from(environment)) > 3
    assert list(outside.glob("runs/*/report/report.pdf"))
