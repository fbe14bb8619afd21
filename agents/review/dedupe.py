"""Report a problem once, although two tools saw it.

Only findings of *different* tools are merged, on the same line and about the same kind of problem (`rules.problem_of`);
in a file that cannot be parsed they may be on different lines, since parsers disagree about where an error is. Two
findings of one tool are never merged: it had a reason to say two things.

What is decided is only which findings belong together (`find_merges`): a few bytes each, while the findings of a large
project would not fit into one message. `apply_merges` then puts them together where they are needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from agentmesh.agents.review.fingerprint import position
from agentmesh.agents.review.model import Finding, Merge, Origin, ToolName
from agentmesh.agents.review.rules import UNPARSABLE, problem_of

_LEADS: dict[ToolName, int] = {"ruff": 0, "radon": 1, "ast": 2, "walk": 3}
"""Whose words are kept: the order is fixed so that a merged finding keeps its fingerprint from run to run."""


def find_merges(findings: Iterable[Finding]) -> list[Merge]:
    """Which findings say the same; those that stand alone are not mentioned.

    Args:
        findings: With fingerprints, in any order.
    """
    groups: defaultdict[tuple[str, int, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        problem = problem_of(finding)
        groups[finding.path, 0 if problem == UNPARSABLE else finding.line, problem].append(finding)
    return [merge for _, group in sorted(groups.items()) for merge in _merges_of(group)]


def apply_merges(findings: Iterable[Finding], merges: Iterable[Merge]) -> list[Finding]:
    """The findings without repetitions, by path, line and column.

    A merged finding has the highest severity and value of its parts, and names the other tools in `also`.
    """
    leaders = {absorbed: merge.kept for merge in merges for absorbed in merge.absorbed}
    others: defaultdict[str, list[Finding]] = defaultdict(list)
    kept = []
    for finding in sorted(findings, key=position):
        leader = leaders.get(finding.fingerprint)
        if leader is None:
            kept.append(finding)
        else:
            others[leader].append(finding)
    return [_absorb(finding, others.get(finding.fingerprint, [])) for finding in kept]


def dedupe(findings: Iterable[Finding]) -> list[Finding]:
    """`find_merges` and `apply_merges` in one step."""
    known = list(findings)
    return apply_merges(known, find_merges(known))


def _merges_of(group: list[Finding]) -> list[Merge]:
    leader = min((finding.tool for finding in group), key=_LEADS.__getitem__)
    kept = sorted((finding for finding in group if finding.tool == leader), key=position)
    partners: defaultdict[str, list[str]] = defaultdict(list)
    for other in sorted((finding for finding in group if finding.tool != leader), key=position):
        nearest = min(kept, key=lambda finding: _distance(finding, other))
        partners[nearest.fingerprint].append(other.fingerprint)
    return [Merge(kept=fingerprint, absorbed=tuple(absorbed)) for fingerprint, absorbed in partners.items()]


def _distance(one: Finding, other: Finding) -> tuple[int, int]:
    return abs(one.line - other.line), abs(one.column - other.column)


def _absorb(finding: Finding, others: list[Finding]) -> Finding:
    if not others:
        return finding
    everybody = [finding, *others]
    return finding.model_copy(
        update={
            "severity": min((one.severity for one in everybody), key=lambda severity: severity.order),
            "value": max(one.value for one in everybody),
            "symbol": next((one.symbol for one in everybody if one.symbol), ""),
            "also": tuple(Origin(tool=o.tool, rule=o.rule, message=o.message, column=o.column) for o in others),
        }
    )
