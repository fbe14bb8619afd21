from __future__ import annotations

import pytest

from agentmesh.agents.review.assemble import assemble
from agentmesh.agents.review.model import FileReview, Severity
from tests.review.builders import block, diagnostic, sample_review


def test_the_results_of_all_tools_end_up_in_one_review() -> None:
    review = sample_review()

    assert [(each.tool, each.rule, each.line) for each in review.findings] == [
        ("ast", "missing-docstrings", 1),
        ("ruff", "F401", 1),
        ("ast", "risky-call", 5),
        ("ruff", "S307", 5),
    ]
    assert [(each.qualified_name, each.complexity) for each in review.functions] == [("run", 1)]
    assert (review.metrics.lines, review.metrics.code_lines, review.metrics.missing_docstrings) == (5, 3, 1)
    assert all(each.fingerprint for each in review.findings)


def test_a_review_travels_as_json() -> None:
    review = sample_review()

    assert FileReview.model_validate_json(review.model_dump_json()) == review


def test_a_function_above_the_limit_is_a_finding_and_one_at_the_limit_is_not() -> None:
    review = assemble("a.py", "", radon=[block("at", 1, 5, 10), block("above", 7, 30, 11, class_name="C")])

    (found,) = review.findings
    assert found.message == "`C.above` has a cyclomatic complexity of 11 (rank C)"
    assert (found.line, found.symbol, found.value) == (7, "C.above", 11)


def test_ruffs_measure_of_complexity_is_read_from_its_words() -> None:
    (found,) = assemble("a.py", "", ruff=[diagnostic("C901", 3, message="`f` is too complex (23 > 10)")]).findings

    assert found.value == 23


@pytest.mark.parametrize("error", ["invalid syntax", {"message": "invalid syntax", "line": 3, "column": None}])
def test_a_file_that_cannot_be_parsed_is_a_finding(error: object) -> None:
    review = assemble("a.py", "def f(:\n", metrics={"lines": 1, "syntax_error": error})

    (found,) = review.findings
    assert (found.rule, found.message) == ("syntax-error", "cannot be parsed: invalid syntax")
    assert found.severity is Severity.ERROR


def test_a_file_that_cannot_be_read_is_a_finding() -> None:
    (found,) = assemble("a.py", None, failures={"walk": "not UTF-8"}).findings

    assert (found.rule, found.message) == ("unreadable", "could not be read: not UTF-8")


def test_a_tool_that_did_not_finish_is_a_finding() -> None:
    review = assemble("a.py", "x = 1\n", failures={"radon": "ended after 10 s"})

    (found,) = review.findings
    assert (found.tool, found.rule, found.message) == ("radon", "tool-failed", "radon did not finish: ended after 10 s")


def test_excerpts_hold_the_lines_around_the_finding() -> None:
    source = "".join(f"line {number}\n" for number in range(1, 10))
    review = assemble("a.py", source, ruff=[diagnostic("F821", 5), diagnostic("F821", 1)])

    kept = {excerpt.first_line: excerpt.lines for excerpt in review.excerpts.values()}
    assert kept == {3: tuple(f"line {n}" for n in range(3, 8)), 1: ("line 1", "line 2", "line 3")}


def test_a_minified_line_is_cut_to_a_width_that_fits_a_page() -> None:
    review = assemble("a.py", "x" * 100_000, ruff=[diagnostic("E501", 1)])

    assert [len(text) for excerpt in review.excerpts.values() for text in excerpt.lines] == [160]
