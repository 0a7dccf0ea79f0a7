"""The GPU benchmark on a CPU at toy sizes: every stage ends in rows, whatever happens, and rows reach the README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("environment", "study", "training", "curvature", "losses", "precision")
HEADS = ["stage", "case", "figure", "value", "unit", "ratio", "goal"]


def benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark's command, which must end well."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the rows of the Markdown table in a text, by head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == HEADS
    assert set("".join(cells[1])) == set("-:")
    assert all(len(row) == len(HEADS) for row in cells)
    return [dict(zip(HEADS, row, strict=True)) for row in cells[2:]]


@pytest.mark.slow
def test_a_dry_run_takes_every_stage_to_its_end(tmp_path):
    out = tmp_path / "out"
    rows = rows_of(benchmark("--dry", "--out", str(out)).stdout)
    for stage in STAGES:
        content = json.loads((out / f"{stage}.json").read_text())
        assert content["ended"] == "finished", (out / f"{stage}.log").read_text()
        assert len([row for row in rows if row["stage"] == stage]) == len(content["rows"]) > 2
    by_figure = {(row["case"], row["figure"]): row for row in rows}
    assert float(by_figure["perceptron, B = 8, 3 replicas", "ours, eager"]["ratio"]) > 0
    assert not [row for row in rows if "VOID" in row["figure"] or row["value"].startswith(("failed", "does not run"))]
    text = benchmark("--merge", str(out), "--into", str(tmp_path)).stdout
    assert "Not measured yet" in text
    assert json.loads((tmp_path / "gpu.json").read_text()) == {"measured": False, "ended": {}, "rows": []}


def test_a_stage_writes_rows_and_what_comes_after_the_minutes_is_named(tmp_path):
    rows = rows_of(benchmark("--dry", "--stages", "losses", "--out", str(tmp_path)).stdout)
    assert {row["figure"] for row in rows} >= {"plain formula", "ours", "ours: peak"}
    assert all(float(row["value"].replace(",", "")) >= 0 for row in rows)
    late = rows_of(benchmark("--dry", "--minutes", "0", "--stages", "d,f", "--out", str(tmp_path)).stdout)
    assert [(row["stage"], row["value"]) for row in late] == [
        ("curvature", "left out: 0 minutes were over"),
        ("precision", "left out: 0 minutes were over"),
    ]


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark's modules, which lie beside no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def test_a_stage_that_fails_or_reaches_its_limit_keeps_its_rows_and_says_so(gpu, tmp_path, monkeypatch):
    options = gpu.Options(tmp_path, False, "quickstart")
    here = tmp_path / "stages"
    here.mkdir()
    monkeypatch.setattr(gpu, "HERE", here)
    kept = {"stage": "losses", "case": "a", "figure": "b", "value": 1.5, "unit": "ms", "ratio": None, "goal": ""}
    content = json.dumps({"dry": False, "ended": "running", "rows": [kept]})
    write = f"from pathlib import Path\nPath({str(tmp_path / 'losses.json')!r}).write_text({content!r})\n"
    script = here / "gpu_stages.py"
    ends = {
        "raise ValueError('no memory')": "failed: ValueError: no memory",
        "while True: pass": "stopped at its limit",
    }
    for end, said in ends.items():
        script.write_text(write + end)
        begun = time.monotonic()
        stage = gpu.run_stage("losses", 4.0, options)
        assert time.monotonic() - begun < 15
        assert stage.rows[0].value == 1.5
        assert str(stage.rows[-1].value).startswith(said)
        assert json.loads((tmp_path / "losses.json").read_text())["ended"].startswith(said)
    script.write_text("import no_such_module_at_all")
    assert gpu.run_stage("losses", 20.0, options).rows[0].value.endswith("No module named 'no_such_module_at_all'")


def test_rows_of_a_gpu_replace_the_section_between_the_markers(gpu, tmp_path):
    from gpu_table import Row, StageFile, merge

    readme = tmp_path / "README.md"
    readme.write_text("# Benchmarks\n\n<!-- gpu -->\nold\n<!-- /gpu -->\n\n## Losses\n")
    machine = Row("environment", "machine", "device", "NVIDIA | H100")
    fast = Row(
        "training", "perceptron, B = 128, 1,024 replicas", "ours, CUDA graph", 0.00123456, "ms", 250.04, ">= 200"
    )
    stage = StageFile(tmp_path / "training.json", False, [machine, fast], "finished")
    for _ in range(2):  # merged again, it stays the same
        merge([stage], tmp_path)
        text = readme.read_text()
        assert text.startswith("# Benchmarks\n\n<!-- gpu -->\n## On a GPU\n")
        assert text.endswith("<!-- /gpu -->\n\n## Losses\n")
        assert "old" not in text
        assert "On device NVIDIA / H100." in text
        (row,) = rows_of(text)
        assert (row["value"], row["ratio"], row["goal"]) == ("0.001235", "250", ">= 200")
    assert [row["value"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]] == [
        machine.value,
        fast.value,
    ]


def test_the_readme_says_what_the_file_beside_it_holds():
    from_file = json.loads((ROOT / "benchmarks" / "gpu.json").read_text())
    text = (ROOT / "benchmarks" / "README.md").read_text()
    section = text.partition("<!-- gpu -->")[2].partition("<!-- /gpu -->")[0]
    assert section
    assert from_file["measured"] == ("Not measured yet" not in section)
