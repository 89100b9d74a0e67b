"""The benchmarks of prediction and distillation run to their last line; at a size that says nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.distillation import Outcome, verdicts

ROOT = Path(__file__).parents[2]


def lines_of(name, *options, folder=ROOT):
    asked = [sys.executable, str(ROOT / "benchmarks" / name), *map(str, options)]
    made = subprocess.run(asked, capture_output=True, text=True, timeout=900, cwd=folder, check=False)
    assert not made.returncode, made.stderr
    return made.stdout.splitlines()


def numbers(line):
    return [float(cell) for cell in line.strip("| ").split("|")[1:]]


def test_prediction_prints_its_tables(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    small = ("--edge", 64, "--rounds", 1, "--batches", 1, "--precisions", "fp32", "--views", "64,64f")
    lines = lines_of("predict.py", *small)
    rows = [numbers(line) for line in lines if line.startswith(("| batch 1, fp32", "| 64,64f"))]
    assert [len(row) for row in rows] == [3, 4]
    assert all(value >= 0 for row in rows for value in row)


@pytest.mark.ray
@pytest.mark.soak
def test_memory_is_that_of_the_drivers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (row,) = [numbers(line) for line in lines_of("predict.py", "--memory", 60) if line.startswith("| 60 |")]
    assert all(50 < value < 5000 for value in row)


@pytest.mark.ray
@pytest.mark.soak
def test_distillation_ends_with_a_verdict(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    small = {"seeds": 1, "labels": 0.5, "pictures": 24, "val": 8, "steps": 3, "student-steps": 4, "workers": 1}
    options = [part for name, value in small.items() for part in (f"--{name}", value)]
    lines = lines_of("distillation.py", *options, "--min-score", 0, "--out", tmp_path, folder=tmp_path)
    assert any(line.startswith("50 % of labels, 1 seeds: student - control") for line in lines)
    (outcome,) = json.loads((tmp_path / "distillation.json").read_text())
    assert outcome["gain"] == pytest.approx(outcome["student"] - outcome["control"])


def test_the_verdict_asks_for_every_seed_and_for_the_mean():
    def of(*gains):
        return verdicts([Outcome(0.1, seed, 20.0, 30.0, 30.0 + gain, None) for seed, gain in enumerate(gains)])

    assert of(2.0, 1.0, 0.5) == [
        "10 % of labels, 3 seeds: student - control is above 0 in each seed: yes (least +0.5); 1 or more on average: "
        "yes (mean +1.2)"
    ]
    assert "each seed: NO (least -0.5); 1 or more on average: yes" in of(-0.5, 9.0)[0]
    assert "each seed: yes (least +0.2); 1 or more on average: NO (mean +0.2)" in of(0.2, 0.2)[0]
