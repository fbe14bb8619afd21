"""Decision records carry measured numbers only, and say how, where and when they were measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "adr"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))
FIGURE = re.compile(r"^\|.*\d.*\|$", re.MULTILINE)


@pytest.mark.seed("A37")
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_decision_carries_measured_numbers_only(record: Path) -> None:
    text = record.read_text()
    title, parts = text.partition("\n")[0], re.split(r"^## ", text, flags=re.MULTILINE)
    (measured,) = [part for part in parts if part.startswith("Measured")]

    assert re.match(rf"# {int(record.stem[:4])}\. ", title)
    for wanted in ("**Context.**", "**Decision.**", "**Instead of**", "**Consequences.**"):
        assert wanted in parts[0], wanted
    assert FIGURE.search(measured), "no figures"
    for wanted in (r"\* \*\*How:\*\* .{20,}", r"\* \*\*Where:\*\* .{20,}", r"\* \*\*When:\*\* \d{4}-\d\d-\d\d"):
        assert re.search(wanted, measured), wanted
    assert FIGURE.search(parts[0]) is None, "figures belong into the section that says how they were measured"


@pytest.mark.seed("A37")
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_figures_that_a_decision_takes_from_the_benchmarks_are_there(record: Path) -> None:
    measured = record.read_text().partition("## Measured")[2]
    if "benchmarks.md" not in measured:
        return
    known = set(re.findall(r"[\d.,]*\d", (FOLDER.parent / "benchmarks.md").read_text()))
    for row in FIGURE.findall(measured):
        for figure in re.findall(r"(?<![\w-])[\d.,]*\d(?![\w])", row):
            assert figure in known, f"{figure} is not in docs/benchmarks.md"


def test_all_decisions_are_listed() -> None:
    listed = re.findall(r"\((\d{4}[\w-]+\.md)\)", (FOLDER / "README.md").read_text())
    assert listed == [record.name for record in RECORDS]
    assert len(RECORDS) >= 3
