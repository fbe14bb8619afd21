from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from agentmesh.agents.review.assemble import assemble
from agentmesh.agents.review.history import compare, snapshot
from agentmesh.agents.review.sarif import render_sarif
from tests.review.builders import NOW, diagnostic, finding, report, sample_review

_REGION = {
    "type": "object",
    "required": ["startLine"],
    "additionalProperties": False,
    "properties": {
        name: {"type": "integer", "minimum": 1} for name in ("startLine", "startColumn", "endLine", "endColumn")
    },
}
_MESSAGE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
_RESULT = {
    "type": "object",
    "required": ["message", "ruleId", "locations", "partialFingerprints"],
    "properties": {
        "ruleId": {"type": "string", "minLength": 1},
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": {"enum": ["none", "note", "warning", "error"]},
        "message": _MESSAGE,
        "baselineState": {"enum": ["new", "unchanged", "updated", "absent"]},
        "partialFingerprints": {"type": "object", "additionalProperties": {"type": "string"}},
        "locations": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "physicalLocation": {
                        "type": "object",
                        "required": ["artifactLocation", "region"],
                        "properties": {
                            "artifactLocation": {
                                "type": "object",
                                "required": ["uri", "uriBaseId"],
                                "properties": {"uri": {"type": "string", "pattern": "^(?!/)[A-Za-z0-9._~%/-]+$"}},
                            },
                            "region": _REGION,
                        },
                    }
                },
            },
        },
    },
}
_COMPONENT = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "rules": {
            "type": "array",
            "uniqueItems": True,
            "items": {
                "type": "object",
                "required": ["id"],
                "properties": {"helpUri": {"type": "string", "format": "uri"}, "shortDescription": _MESSAGE},
            },
        }
    },
}
SUBSET = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {"driver": _COMPONENT, "extensions": {"type": "array", "items": _COMPONENT}},
                    },
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {"type": "array", "items": _RESULT},
                },
            },
        },
    },
}
"""The parts of the SARIF 2.1.0 schema that a review uses, written down by hand."""


def _log(*paths: str, **fields: Any) -> dict[str, Any]:
    log = render_sarif(report(*(sample_review(path) for path in paths), **fields))
    jsonschema.validate(log, SUBSET)
    result: dict[str, Any] = json.loads(json.dumps(log))
    return result


def test_a_review_is_a_valid_sarif_log() -> None:
    (run,) = _log("a.py")["runs"]

    assert run["tool"]["driver"]["name"] == "agentmesh review"
    assert run["tool"]["extensions"] == [{"name": "ruff", "version": "0.17.5"}]
    assert len(run["results"]) == 3


def test_every_result_points_at_the_rule_it_names() -> None:
    (run,) = _log("a.py")["runs"]
    rules = run["tool"]["driver"]["rules"]

    assert [rules[result["ruleIndex"]]["id"] for result in run["results"]] == [r["ruleId"] for r in run["results"]]


@pytest.mark.parametrize("path", ["a b/ü#1?.py", "100%.py", "<x>.py"])
def test_paths_are_relative_and_percent_encoded(path: str) -> None:
    (run,) = _log(path)["runs"]
    locations = [result["locations"][0]["physicalLocation"]["artifactLocation"] for result in run["results"]]

    assert {location["uriBaseId"] for location in locations} == {"SRCROOT"}
    assert "uri" not in run["originalUriBaseIds"]["SRCROOT"]


def test_a_finding_at_one_point_has_no_end_before_its_start() -> None:
    review = assemble("a.py", "x\n", ruff=[diagnostic("E902", 4, 3) | {"end_row": 4, "end_column": 1}])
    (result,) = render_sarif(report(review))["runs"][0]["results"]

    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 4, "startColumn": 3}


def test_what_another_tool_also_said_is_kept() -> None:
    (run,) = _log("a.py")["runs"]
    tools = {result["ruleId"]: result["properties"]["tools"] for result in run["results"]}

    assert tools["S307"] == ["ruff", "ast"]


def test_new_unchanged_and_fixed_results_are_marked_for_hosts_that_compare_runs() -> None:
    review = sample_review()
    known, *_ = review.findings
    earlier = snapshot([known, finding("F811", "gone.py", 9, fingerprint="gone")], NOW)
    everything = report(review)
    history = compare(earlier, everything.findings)

    (run,) = _log("pkg/a.py", history=history)["runs"]

    states = {
        result["partialFingerprints"]["agentmeshFinding/v1"]: result["baselineState"] for result in run["results"]
    }
    assert states[known.fingerprint] == "unchanged"
    assert states["gone"] == "absent"
    assert sorted(states.values()) == ["absent", "new", "new", "unchanged"]
