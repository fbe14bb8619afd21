"""Small reviews to test with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agentmesh.agents.review.assemble import assemble
from agentmesh.agents.review.dedupe import dedupe
from agentmesh.agents.review.model import FileReview, Finding, FunctionBlock, History, Report
from agentmesh.agents.review.rank import rank

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def finding(rule: str = "F841", path: str = "a.py", line: int = 1, **fields: Any) -> Finding:
    values: dict[str, Any] = {"tool": "ruff", "message": f"{rule} happened", "end_line": line, "column": 1} | fields
    values.setdefault("fingerprint", f"{values['tool']} {rule} {path} {line} {values['column']}")
    return Finding(rule=rule, path=path, line=line, **values)


def diagnostic(code: str, row: int, column: int = 1, message: str = "", **fields: Any) -> dict[str, Any]:
    """One entry as `ruff_check` returns it."""
    place = {"row": row, "column": column, "end_row": row, "end_column": column + 1}
    return {"code": code, "message": message or f"{code} happened", **place, **fields}


def block(name: str, line: int, end_line: int, complexity: int, class_name: str = "") -> dict[str, Any]:
    """One entry as `radon_complexity` returns it."""
    kind = "method" if class_name else "function"
    sizes = {"line": line, "endline": end_line, "complexity": complexity, "rank": "C"}
    return {"name": name, "type": kind, "classname": class_name or None, **sizes}


def function(name: str = "f", line: int = 1, end_line: int = 10, complexity: int = 3) -> FunctionBlock:
    return FunctionBlock(name=name, kind="function", line=line, end_line=end_line, complexity=complexity, rank="A")


def report(*reviews: FileReview, history: History | None = None, project: str = "sample") -> Report:
    findings = dedupe(each for review in reviews for each in review.findings)
    return Report(
        project=project,
        created_at=NOW,
        tools={"agentmesh": "0.1.0", "ruff": "0.17.5"},
        files=reviews,
        findings=tuple(findings),
        first=tuple(rank(findings, reviews)),
        history=history,
    )


def sample_review(path: str = "pkg/a.py") -> FileReview:
    source = "import os\n\n\ndef run(text):\n    return eval(text)\n"
    return assemble(
        path,
        source,
        ruff=[
            diagnostic("F401", 1, 8, "`os` imported but unused", url="https://docs.astral.sh/ruff/rules/unused-import"),
            diagnostic("S307", 5, 12, "Use of possibly insecure function"),
        ],
        radon=[block("run", 4, 5, 1)],
        metrics={
            "lines": 5,
            "code_lines": 3,
            "functions": 1,
            "classes": 0,
            "max_nesting": 1,
            "missing_docstrings": [{"name": "run", "line": 4}],
            "risky_calls": [{"name": "eval", "line": 5, "column": 12}],
        },
    )
