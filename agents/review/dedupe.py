"""Report a problem once, although two tools saw it.

Only findings of *different* tools are merged, on the same line and about the same kind of problem (`rules.problem_of`).
Two findings of one tool are never merged: it had a reason to say two things.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from agentmesh.agents.review.fingerprint import position
from agentmesh.agents.review.model import Finding, Origin, ToolName
from agentmesh.agents.review.rules import problem_of

_LEADS: dict[ToolName, int] = {"ruff": 0, "radon": 1, "ast": 2, "walk": 3}
"""Whose words are kept: the order is fixed so that a merged finding keeps its fingerprint from run to run."""


def dedupe(findings: Iterable[Finding]) -> list[Finding]:
    """Merge what different tools said about the same problem.

    Returns:
        The findings by path, line and column. A merged one has the highest severity and value of its parts, and names
        the other tools in `also`.
    """
    groups: defaultdict[tuple[str, int, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.path, finding.line, problem_of(finding)].append(finding)
    merged = [finding for group in groups.values() for finding in _merge(group)]
    return sorted(merged, key=position)


def _merge(group: list[Finding]) -> list[Finding]:
    leader = min((finding.tool for finding in group), key=_LEADS.__getitem__)
    kept = sorted((finding for finding in group if finding.tool == leader), key=position)
    others = sorted((finding for finding in group if finding.tool != leader), key=position)
    if not others:
        return kept
    partners: defaultdict[int, list[Finding]] = defaultdict(list)
    for other in others:
        nearest = min(range(len(kept)), key=lambda index: abs(kept[index].column - other.column))
        partners[nearest].append(other)
    return [_absorb(finding, partners[index]) for index, finding in enumerate(kept)]


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
