from __future__ import annotations

import random

from agentmesh.agents.review.dedupe import dedupe
from agentmesh.agents.review.model import Severity
from tests.review.builders import finding


def test_the_same_problem_from_two_tools_is_reported_once_and_names_both() -> None:
    ruff = finding("S307", line=5, column=12, message="possibly insecure")
    ast = finding("risky-call", line=5, column=9, tool="ast", message="call of `eval`", severity=Severity.ERROR)

    (merged,) = dedupe([ast, ruff])

    assert (merged.tool, merged.rule, merged.message) == ("ruff", "S307", "possibly insecure")
    assert merged.severity is Severity.ERROR
    assert [(origin.tool, origin.rule, origin.message) for origin in merged.also] == [
        ("ast", "risky-call", "call of `eval`")
    ]


def test_complexity_keeps_the_higher_measure() -> None:
    (merged,) = dedupe(
        [finding("C901", value=12), finding("complexity", tool="radon", value=14, symbol="f", fingerprint="radon")]
    )

    assert (merged.value, merged.symbol) == (14, "f")


def test_a_merged_finding_keeps_the_fingerprint_of_the_leading_tool() -> None:
    pair = [finding("C901", fingerprint="ruff"), finding("complexity", tool="radon", fingerprint="radon")]

    assert [each.fingerprint for each in dedupe(pair)] == ["ruff"]
    assert [each.fingerprint for each in dedupe(reversed(pair))] == ["ruff"]


def test_two_findings_of_one_tool_on_one_line_are_two_problems() -> None:
    assert len(dedupe([finding("F405", column=3), finding("F405", column=9)])) == 2


def test_each_of_two_calls_on_a_line_meets_its_own_partner() -> None:
    merged = dedupe(
        [
            finding("S307", column=5),
            finding("S307", column=20),
            finding("risky-call", tool="ast", column=20, message="second"),
            finding("risky-call", tool="ast", column=5, message="first"),
        ]
    )

    assert [[origin.message for origin in each.also] for each in merged] == [["first"], ["second"]]


def test_different_problems_on_a_line_and_equal_ones_on_different_lines_stay() -> None:
    found = [
        finding("S307", line=5),
        finding("complexity", line=5, tool="radon"),
        finding("risky-call", line=6, tool="ast"),
        finding("risky-call", line=5, path="b.py", tool="ast"),
    ]

    assert len(dedupe(found)) == 4


def test_a_file_that_cannot_be_parsed_is_one_problem_wherever_the_parsers_see_it() -> None:
    found = [
        finding("invalid-syntax", line=1),
        finding("invalid-syntax", line=9),
        finding("syntax-error", line=8, tool="ast"),
    ]

    assert [(each.line, len(each.also)) for each in dedupe(found)] == [(1, 0), (9, 1)]


def test_the_order_of_the_input_does_not_matter() -> None:
    found = [finding(rule, path, line, column=3) for rule in ("F1", "S307") for path in "ab" for line in (1, 2)]
    found += [
        finding("risky-call", "a", 1, tool="ast"),
        finding("C901", "b", 2),
        finding("complexity", "b", 2, tool="radon"),
    ]
    expected = dedupe(found)

    for seed in range(5):
        random.Random(seed).shuffle(found)
        assert dedupe(found) == expected
