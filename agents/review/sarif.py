"""The review as SARIF 2.1.0, for code hosts and editors.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from agentmesh.agents.review.model import Finding, FixedFinding, Report
from agentmesh.agents.review.rules import rule_info

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ROOT = "SRCROOT"


def render_sarif(report: Report) -> dict[str, Any]:
    """The SARIF log, ready for `json.dumps`.

    Paths are relative to the reviewed root (`SRCROOT`), so that the log means the same on every machine.
    """
    rules = _rules(report.findings)
    positions = {rule["id"]: index for index, rule in enumerate(rules)}
    new = set(report.history.new) if report.history else None
    results = [_result(finding, positions, new) for finding in report.findings]
    if report.history:
        results.extend(_absent(gone) for gone in report.history.fixed)
    driver = {"name": "agentmesh review", "semanticVersion": report.tools.get("agentmesh", "0.0.0"), "rules": rules}
    run = {
        "tool": {"driver": driver, "extensions": _extensions(report)},
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The reviewed directory."}}},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True, "endTimeUtc": f"{report.created_at:%Y-%m-%dT%H:%M:%SZ}"}],
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rules(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    examples = {finding.rule: finding for finding in findings}
    return [_rule(examples[rule]) for rule in sorted(examples)]


def _rule(example: Finding) -> dict[str, Any]:
    info = rule_info(example.rule)
    rule: dict[str, Any] = {
        "id": example.rule,
        "shortDescription": {"text": info.why},
        "defaultConfiguration": {"level": info.severity.value},
        "properties": {"tool": example.tool, "weight": info.weight},
    }
    if example.url:
        rule["helpUri"] = example.url
    return rule


def _extensions(report: Report) -> list[dict[str, str]]:
    others = sorted((name, version) for name, version in report.tools.items() if name != "agentmesh")
    return [{"name": name, "version": version} for name, version in others]


def _result(finding: Finding, positions: dict[str, int], new: set[str] | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": positions[finding.rule],
        "level": finding.severity.value,
        "message": {"text": finding.message},
        "locations": [_location(finding.path, _region(finding))],
        "partialFingerprints": {"agentmeshFinding/v1": finding.fingerprint},
        "properties": {"tools": [finding.tool, *(origin.tool for origin in finding.also)]},
    }
    if new is not None:
        result["baselineState"] = "new" if finding.fingerprint in new else "unchanged"
    return result


def _absent(gone: FixedFinding) -> dict[str, Any]:
    return {
        "ruleId": gone.rule,
        "level": "none",
        "message": {"text": "Fixed since the last review."},
        "locations": [_location(gone.path, {"startLine": gone.line})],
        "partialFingerprints": {"agentmeshFinding/v1": gone.fingerprint},
        "baselineState": "absent",
    }


def _location(path: str, region: dict[str, int]) -> dict[str, Any]:
    artifact = {"uri": quote(path, safe="/"), "uriBaseId": _ROOT}
    return {"physicalLocation": {"artifactLocation": artifact, "region": region}}


def _region(finding: Finding) -> dict[str, int]:
    region = {"startLine": finding.line, "startColumn": finding.column}
    if (finding.end_line, finding.end_column) > (finding.line, finding.column):
        region |= {"endLine": finding.end_line, "endColumn": finding.end_column}
    return region
