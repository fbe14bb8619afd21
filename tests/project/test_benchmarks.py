"""The benchmarks run. What they say is in docs/benchmarks.md; no figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CASES = {
    "seeds": ["agent messaging, P95", "gateway, requests", "HTTP to an agent", "codec"],
    "streams": ["publish, one reader", "first token", "seek", "fan-out"],
}


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.seed("B44", "B45", "C6")
@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_measures_both_sides_of_every_case(name: str, tmp_path: Path) -> None:
    printed = run(name, "--json", str(tmp_path / "figures.json"))
    cases = json.loads((tmp_path / "figures.json").read_text())["cases"]
    for start in CASES[name]:
        assert f"| {start}" in printed
        (measured, *_) = [case for case in cases if case["case"].startswith(start)]
        assert measured["raw"][0] > 0
        assert measured["mesh"][0] > 0


def test_a_benchmark_can_be_told_which_cases(tmp_path: Path) -> None:
    printed = run("seeds", "codec", "validation")
    assert printed.count("| codec, P95") == 2, "in the table of pairs, and in that of promises"
    assert "agent messaging" not in printed
