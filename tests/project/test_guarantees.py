"""Every sentence of docs/guarantees.md names the tests that show it, and they exist.

`python -m tests.project.test_guarantees` writes the links at the end of the page anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
MATRIX = ROOT / "docs" / "test-matrix.md"

_REFERENCE = re.compile(r"\[([A-Z]\d+|test_\w+)\](?!\()")
_LINKS = re.compile(r"^\[[^\]]+\]: .*$", re.MULTILINE)


def _text() -> str:
    return _LINKS.sub("", PAGE.read_text(encoding="utf-8"))


def claims() -> Iterator[str]:
    """Every list item and every row of a table, in one line each, without the figures."""
    promises, _, _ = _text().partition("\n## Figures")
    for block in re.split(r"\n\n|\n(?=\* )", promises):
        if block.startswith("* "):
            yield " ".join(block.split())
        elif block.startswith("|"):
            yield from block.splitlines()[2:]


def known_tests() -> dict[str, Path]:
    """Every test function, and the file it is in."""
    return {
        name: path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(r"^(?:    )?(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def links() -> str:
    """The definitions of all references of the page."""
    known = known_tests()
    wanted = sorted(set(_REFERENCE.findall(_text())), key=lambda name: (len(name) > 4, name[0], len(name), name))
    targets = {name: known[name].relative_to(ROOT) if name in known else None for name in wanted}
    return "\n".join(
        f"[{name}]: ../{target}" if (target := targets[name]) else f"[{name}]: test-matrix.md" for name in wanted
    )


@pytest.mark.parametrize("claim", list(claims()), ids=lambda claim: claim[:60])
def test_every_promise_names_a_test_that_shows_it(claim: str) -> None:
    references = _REFERENCE.findall(claim)
    assert references, f"no test is named: {claim}"
    known = known_tests()
    rows = set(re.findall(r"^\| ([A-Z]\d+) \|", MATRIX.read_text(encoding="utf-8"), re.MULTILINE))
    assert not [name for name in references if name not in known and name not in rows]


def test_the_page_promises_something() -> None:
    assert len(list(claims())) > 20


def test_the_links_of_the_page_lead_to_the_tests() -> None:
    written = "\n".join(_LINKS.findall(PAGE.read_text(encoding="utf-8")))
    assert written == links(), "run: python -m tests.project.test_guarantees"


if __name__ == "__main__":
    PAGE.write_text(f"{_text().rstrip()}\n\n{links()}\n", encoding="utf-8")
