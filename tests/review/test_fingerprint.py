from __future__ import annotations

from agentmesh.agents.review.fingerprint import with_fingerprints
from tests.review.builders import finding

SOURCE = ["import os", "", "x = eval(a)", "y = 2", "x = eval(a)"]


def _prints(lines: list[str], *places: int) -> list[str]:
    found = [finding("S307", line=place) for place in places]
    return [each.fingerprint for each in with_fingerprints(found, lines)]


def test_a_fingerprint_survives_lines_inserted_above() -> None:
    before = _prints(SOURCE, 3)
    after = _prints(["# licence", "# more", *SOURCE], 5)

    assert before == after


def test_a_fingerprint_survives_a_new_indentation() -> None:
    assert _prints(SOURCE, 3) == _prints(["if a:", "    x  =  eval(a)"], 2)


def test_editing_the_line_makes_a_new_fingerprint() -> None:
    assert _prints(SOURCE, 3) != _prints(["x = eval(b)"], 1)


def test_the_same_line_twice_has_two_fingerprints_in_order_of_the_lines() -> None:
    both = _prints(SOURCE, 5, 3)

    assert len(set(both)) == 2
    assert both[0] == _prints(SOURCE, 3)[0]


def test_rule_path_and_tool_are_part_of_the_fingerprint() -> None:
    found = [finding("A"), finding("B"), finding("A", path="b.py"), finding("A", tool="ast")]

    assert len({each.fingerprint for each in with_fingerprints(found, ["x"])}) == 4


def test_a_finding_about_a_function_follows_its_name_not_its_first_line() -> None:
    before = with_fingerprints([finding("complexity", symbol="C.run", line=1)], ["def run(self):"])
    after = with_fingerprints([finding("complexity", symbol="C.run", line=2)], ["", "def run(self, more):"])

    assert before[0].fingerprint == after[0].fingerprint


def test_a_line_outside_of_the_source_still_gets_a_fingerprint() -> None:
    assert len(with_fingerprints([finding(line=99)], [])[0].fingerprint) == 16
