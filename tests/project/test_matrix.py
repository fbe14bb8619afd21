"""Every row of the test matrix has a test that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(r"^\| ([A-Z]\d+) \|", (ROOT / "docs" / "test-matrix.md").read_text(), re.MULTILINE)


def _shown() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"def (test_\w+)", path.read_text()):
            found.update(part.upper() for part in re.findall(r"(?:(?<=_))[a-z]\d+(?=_)", name))
    return found


@pytest.mark.parametrize("row", ROWS)
def test_a_test_names_the_row(row: str) -> None:
    assert row in _shown()
