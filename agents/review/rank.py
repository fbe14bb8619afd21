"""Decide what to fix first, in a way that can be explained.

The score of a finding is the weight of its rule (0 to 100, `rules.py`), changed by what is known about the place:

* complexity: from 20 at the limit, 1.5 more for each further path, at most 85
* times 0.3 in tests: a problem there does not reach users (unless the file cannot be parsed)
* times 1.15 inside a function with a complexity above 20: nobody will see the problem by reading
* times 1.1 if the tool can fix it by itself: cheap to get rid of
* times 1.05 if another tool says the same
* times 0.4 if the tool itself says that it seems safe

The first ten are then taken from the top, but one of each rule and no more than three of one file, so that the list
says ten different things; if that leaves places empty, the best of the rest fill them, without saying a trifle twice.
Equal scores are ordered by path, line and column: the same findings always give the same list.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentmesh.agents.review.fingerprint import position
from agentmesh.agents.review.model import Excerpt, FileReview, Finding, FunctionBlock, RankedFinding
from agentmesh.agents.review.rules import (
    COMPLEXITY,
    COMPLEXITY_LIMIT,
    UNPARSABLE,
    is_test_path,
    problem_of,
    rule_info,
)

FIRST = 10
MAX_PER_RULE = 1
MAX_PER_FILE = 3
WORTH_REPEATING = 12.0
"""Score from which a rule may take a second place."""
SEEMS_SAFE = "seems safe"
"""Ruff's words for a dangerous call whose arguments are constants."""
TANGLED = 20
"""Complexity above which a function hides its problems."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A finding with its score and the function around it."""

    finding: Finding
    score: float
    inside: FunctionBlock | None


def score_file(findings: Iterable[Finding], functions: Iterable[FunctionBlock]) -> list[Scored]:
    """Score the findings of one file, highest first.

    Args:
        findings: Findings of one path, already merged.
        functions: Radon's blocks of the same path.
    """
    locate = _Locator(functions)
    scored = []
    for finding in findings:
        inside = locate(finding.line)
        scored.append(Scored(finding, round(_score(finding, inside), 1), inside))
    return sorted(scored, key=_order)


def choose(scored: Sequence[Scored], count: int = FIRST) -> list[Scored]:
    """The ones to fix first: the highest scores, spread over rules and files."""
    chosen: list[Scored] = []
    passed_over: list[Scored] = []
    rules: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for candidate in sorted(scored, key=_order):
        if len(chosen) == count:
            break
        rule, path = _family(candidate.finding), candidate.finding.path
        if rules[rule] == MAX_PER_RULE or files[path] == MAX_PER_FILE:
            passed_over.append(candidate)
            continue
        rules[rule] += 1
        files[path] += 1
        chosen.append(candidate)
    for candidate in passed_over:
        if len(chosen) == count:
            break
        rule = _family(candidate.finding)
        if not rules[rule] or candidate.score >= WORTH_REPEATING:
            rules[rule] += 1
            chosen.append(candidate)
    return sorted(chosen, key=_order)


def may_be_chosen(scored: Sequence[Scored], count: int = FIRST) -> list[Scored]:
    """Those of one file that `choose` can pick whatever the other files hold.

    The reviewer of a file keeps source excerpts for these; nobody has to read the file again for the report.
    """
    rules: Counter[str] = Counter()
    kept = []
    for index, candidate in enumerate(scored):
        rule = _family(candidate.finding)
        rules[rule] += 1
        if index < count or rules[rule] <= MAX_PER_RULE:
            kept.append(candidate)
    return kept


def rank(findings: Sequence[Finding], reviews: Iterable[FileReview], count: int = FIRST) -> list[RankedFinding]:
    """Choose and explain what to fix first.

    Args:
        findings: All findings, already merged.
        reviews: The files they are in; findings of unknown files are ranked without context.
        count: How many to choose at most.
    """
    by_path: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_path[finding.path].append(finding)
    known = {review.path: review for review in reviews}
    scored: list[Scored] = []
    excerpts: dict[str, Excerpt] = {}
    for path, group in by_path.items():
        review = known.get(path)
        scored.extend(score_file(group, review.functions if review else ()))
        if review:
            excerpts.update(review.excerpts)
    return _explain_all(choose(scored, count), findings, excerpts)


def _explain_all(
    chosen: Iterable[Scored], findings: Iterable[Finding], excerpts: Mapping[str, Excerpt]
) -> list[RankedFinding]:
    places: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for finding in findings:
        places[_family(finding)][finding.path] += 1
    ranked = []
    for place, entry in enumerate(chosen, start=1):
        same = places[_family(entry.finding)]
        alone_here = same[entry.finding.path] == 1
        ranked.append(
            RankedFinding(
                place=place,
                score=entry.score,
                reason=_reason(entry),
                finding=entry.finding,
                excerpt=excerpts.get(entry.finding.fingerprint),
                similar=same.total() - 1,
                similar_files=len(same) - alone_here,
            )
        )
    return ranked


def _reason(entry: Scored) -> str:
    finding, sentences = entry.finding, [rule_info(entry.finding.rule).why]
    if problem_of(finding) == COMPLEXITY and entry.inside:
        length = entry.inside.end_line - entry.inside.line + 1
        sentences = [f"{finding.value} independent paths through {length} lines. {sentences[0]}"]
    elif _is_tangled(finding, entry.inside) and entry.inside:
        name, complexity = entry.inside.qualified_name, entry.inside.complexity
        sentences.append(f"It hides in `{name}`, which has {complexity} paths.")
    if is_test_path(finding.path):
        sentences.append("In a test, so it does not reach users.")
    if finding.fixable:
        sentences.append(f"{finding.tool} offers an automatic fix.")
    if finding.also:
        tools = " and ".join(sorted({origin.tool for origin in finding.also}))
        sentences.append(f"{tools} reports it too.")
    return " ".join(sentences)


def _score(finding: Finding, inside: FunctionBlock | None) -> float:
    problem = problem_of(finding)
    score = rule_info(finding.rule).weight
    if problem == COMPLEXITY:
        score = min(score + 1.5 * max(finding.value - COMPLEXITY_LIMIT, 0), 85.0)
    if is_test_path(finding.path) and problem != UNPARSABLE:
        score *= 0.3
    if _is_tangled(finding, inside):
        score *= 1.15
    if finding.fixable:
        score *= 1.1
    if finding.also:
        score *= 1.05
    if SEEMS_SAFE in finding.message:
        score *= 0.4
    return min(score, 100.0)


def _is_tangled(finding: Finding, inside: FunctionBlock | None) -> bool:
    return inside is not None and inside.complexity > TANGLED and problem_of(finding) != COMPLEXITY


def _family(finding: Finding) -> str:
    problem = problem_of(finding)
    return problem if problem in (COMPLEXITY, UNPARSABLE) else finding.rule


def _order(entry: Scored) -> tuple[float, tuple[str, int, int, str, str, str]]:
    return -entry.score, position(entry.finding)


class _Locator:
    """Finds the innermost function around a line."""

    def __init__(self, functions: Iterable[FunctionBlock]) -> None:
        self._blocks = sorted(
            (block for block in functions if block.kind != "class"), key=lambda block: (block.line, -block.end_line)
        )
        self._starts = [block.line for block in self._blocks]

    def __call__(self, line: int) -> FunctionBlock | None:
        for index in range(bisect_right(self._starts, line) - 1, -1, -1):
            if self._blocks[index].end_line >= line:
                return self._blocks[index]
        return None
