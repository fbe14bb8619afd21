"""Every row of docs/seeds.md has a test that carries its id, and no test carries an id that is no row.

`python -m tests.project.test_seeds` lists the rows without one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "seeds.md"
ROW = re.compile(r"^\| ([ABD]\d+) \|", re.MULTILINE)


def rows() -> list[str]:
    """Ids of the page, in its order."""
    return ROW.findall(PAGE.read_text())


@cache
def shown() -> dict[str, list[str]]:
    """The tests that carry each id."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for test, seed in _marks(ast.parse(path.read_text())):
            found.setdefault(seed, []).append(f"{path.relative_to(ROOT)}::{test}")
    return found


def _marks(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for mark in node.decorator_list:
                yield from ((node.name, seed) for seed in _ids(mark))
        elif isinstance(node, ast.Assign) and any(ast.unparse(target) == "pytestmark" for target in node.targets):
            yield from (("(module)", seed) for mark in ast.walk(node.value) for seed in _ids(mark))


def _ids(mark: ast.AST) -> Iterator[str]:
    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.seed":
        yield from (str(ast.literal_eval(argument)) for argument in mark.args)


def test_the_page_has_each_row_once_and_in_order() -> None:
    wanted = [f"A{n}" for n in range(1, 38)]
    wanted += [f"B{n}" for n in (*range(22, 26), *range(31, 36), *range(40, 53))]
    wanted += [f"D{n}" for n in range(1, 31)]
    assert rows() == wanted


@pytest.mark.parametrize("row", rows())
def test_a_test_carries_the_row(row: str) -> None:
    assert row in shown(), f"mark the test that shows it: @pytest.mark.seed({row!r})"


def test_no_test_shows_a_row_that_is_none() -> None:
    elsewhere = {f"B{n}" for n in range(1, 54)} | {f"C{n}" for n in range(1, 10)}  # rows that other pages are about
    assert set(shown()) <= set(rows()) | elsewhere


def main() -> int:
    """1 if a row has no test."""
    tests = shown()
    missing = [row for row in rows() if row not in tests]
    if "-v" in sys.argv:
        for row in rows():
            print(row, *tests.get(row, ["-"]), sep="\n  ")
    print(f"{len(rows()) - len(missing)} of {len(rows())} rows have a test; without one: {' '.join(missing) or 'none'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
