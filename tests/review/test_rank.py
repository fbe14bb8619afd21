from __future__ import annotations

import random
from typing import Any

from agentmesh.agents.review.model import Excerpt, FileReview
from agentmesh.agents.review.rank import choose, may_be_chosen, rank, score_file
from agentmesh.agents.review.rules import category, rule_info
from tests.review.builders import finding, function


def _score(rule: str, path: str = "a.py", complexity: int = 1, **fields: Any) -> float:
    return score_file([finding(rule, path, **fields)], [function(complexity=complexity)])[0].score


def test_what_breaks_the_program_comes_before_what_is_only_ugly() -> None:
    rules = ["SIM108", "E702", "B904", "F841", "B006", "F821", "invalid-syntax"]
    scored = score_file([finding(rule) for rule in rules], [])

    assert [entry.finding.rule for entry in scored] == list(reversed(rules))


def test_a_problem_in_a_test_matters_less_unless_the_test_cannot_be_parsed() -> None:
    assert _score("S307", "tests/test_a.py") < _score("S307", "a.py") / 2
    assert _score("invalid-syntax", "tests/test_a.py") == _score("invalid-syntax", "a.py")


def test_a_problem_inside_a_tangled_function_matters_more() -> None:
    assert _score("B006", complexity=30) > _score("B006", complexity=5)


def test_more_paths_matter_more_up_to_a_limit() -> None:
    scores = [_score("C901", value=value) for value in (11, 25, 60, 600)]

    assert scores == sorted(scores)
    assert scores[-1] == 85.0


def test_a_call_that_the_tool_calls_safe_matters_less() -> None:
    assert _score("S602", message="`subprocess` call with `shell=True` seems safe") < _score("S602") / 2


def test_the_first_ten_say_ten_different_things() -> None:
    many = [finding("F821", f"{name}.py") for name in "abcdefghijklmn"]
    others = [finding(rule) for rule in ("S307", "B012")]

    ranked = rank([*many, *others], [])

    assert {"F821", "S307", "B012"} == {each.finding.rule for each in ranked}
    assert len(ranked) == 10  # filled up with the best of the rest


def test_a_trifle_is_said_once_even_if_places_stay_empty() -> None:
    found = [finding("SIM108", f"{name}.py") for name in "abcdefghijkl"]

    ranked = rank([*found, finding("F821")], [])

    assert [each.finding.rule for each in ranked] == ["F821", "SIM108"]
    assert ranked[1].similar == 11


def test_no_file_takes_the_whole_list_while_others_have_problems() -> None:
    rules = ["F821", "S602", "B012", "F507", "S307", "B006"]
    ranked = rank([finding(rule, "bad.py") for rule in rules] + [finding("E722", f"{n}.py") for n in "cdefghi"], [], 6)

    assert sum(each.finding.path == "bad.py" for each in ranked) == 5  # three, and two to fill the places left
    assert ranked[-1].finding.rule == "E722"


def test_the_same_findings_always_give_the_same_list() -> None:
    found = [finding(rule, path, line) for rule in ("F821", "S307", "B006") for path in "abc" for line in (3, 1, 2)]
    expected = rank(found, [])

    for seed in range(5):
        random.Random(seed).shuffle(found)
        assert rank(found, []) == expected


def test_a_card_says_why_where_and_how_many_more() -> None:
    excerpt = Excerpt(first_line=1, lines=("def f():",))
    review = FileReview(
        path="a.py",
        functions=(function("load", 1, 90, complexity=31),),
        excerpts={"x": excerpt},
    )
    found = [
        finding("S301", line=7, fingerprint="x", fixable=True),
        finding("S301", line=9),
        finding("S301", path="b.py"),
    ]

    first = rank(found, [review])[0]

    assert first.finding.line == 7
    assert first.reason == (
        "Unpickling data from outside runs code chosen by whoever wrote the data. "
        "It hides in `load`, which has 31 paths. ruff offers an automatic fix."
    )
    assert (first.place, first.similar, first.similar_files, first.excerpt) == (1, 2, 2, excerpt)


def test_complexity_is_explained_with_the_numbers_of_the_function() -> None:
    review = FileReview(path="a.py", functions=(function("big", 3, 102, complexity=40),))

    (first,) = rank([finding("complexity", line=3, tool="radon", value=40)], [review])

    assert first.reason.startswith("40 independent paths through 100 lines.")


def test_a_file_keeps_excerpts_for_everything_that_can_be_chosen() -> None:
    generator = random.Random(7)
    rules = ["F821", "S307", "B006", "E722", "E702", "B904", "C901"]
    for _ in range(50):
        found = [
            finding(generator.choice(rules), generator.choice("abc"), line, fingerprint=str(line))
            for line in range(1, 61)
        ]
        by_file = {path: [each for each in found if each.path == path] for path in "abc"}
        kept = {e.finding.fingerprint for group in by_file.values() for e in may_be_chosen(score_file(group, []))}

        everything = [entry for group in by_file.values() for entry in score_file(group, [])]
        assert {entry.finding.fingerprint for entry in choose(everything)} <= kept


def test_a_rule_nobody_knows_gets_the_judgement_of_its_family() -> None:
    assert rule_info("B999") == rule_info("B9")
    assert rule_info("S777") == rule_info("S")
    assert rule_info("SIM999") == rule_info("SIM")
    assert rule_info("XYZ1").why == "Worth a look."
    assert [category(rule) for rule in ("F821", "SIM1", "S1", "C901", "XYZ")] == [
        "Names and logic",
        "Simpler code",
        "Security",
        "Complexity",
        "Other",
    ]
