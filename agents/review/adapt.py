"""Turn what the tools return into findings: the only module that knows the shapes of their results.

* `ruff_check(path)` -> `[{code, message, row, column, end_row, end_column, url?, fixable?}, …]`
* `radon_complexity(path)` -> `[{name, type, classname?, line, endline, complexity, rank}, …]`
* `python_metrics(path)` -> `{lines, code_lines, functions, classes, max_nesting, missing_docstrings, risky_calls,
  syntax_error?}`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from agentmesh.agents.review.model import FileMetrics, Finding, FunctionBlock, ToolName
from agentmesh.agents.review.rules import (
    COMPLEXITY,
    COMPLEXITY_LIMIT,
    MISSING_DOCSTRINGS,
    RISKY_CALL,
    SYNTAX_ERROR,
    TOOL_FAILED,
    UNREADABLE,
    rule_info,
)

RUFF_RULES = (
    *("E4", "E7", "E9", "F", "B", "C90", "SIM", "PERF"),
    *("S102", "S103", "S104", "S105", "S106", "S107", "S108", "S11", "S2", "S3", "S5", "S6", "S7"),
)
"""What ruff is asked to look for. Not the length of lines (E501), which every project decides for itself, and not
assertions (S101): every test has some, and thousands of notes would hide the rest."""

_KINDS: dict[str, Literal["function", "method", "class"]] = {
    "function": "function",
    "method": "method",
    "class": "class",
    "F": "function",
    "M": "method",
    "C": "class",
}
_COMPLEXITY_IN_MESSAGE = re.compile(r"\((\d+) > \d+\)")
_NAMES_SHOWN = 5


def ruff_findings(path: str, results: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """One finding for each diagnostic of ruff, nothing left out."""
    return [_ruff_finding(path, result) for result in results]


def function_blocks(results: Iterable[Mapping[str, Any]]) -> list[FunctionBlock]:
    """Every function, method and class that radon measured, in its order."""
    return [
        FunctionBlock(
            name=result["name"],
            kind=_KINDS[result["type"]],
            class_name=result.get("classname") or "",
            line=result["line"],
            end_line=result["endline"],
            complexity=result["complexity"],
            rank=result["rank"],
        )
        for result in results
    ]


def complexity_findings(path: str, blocks: Iterable[FunctionBlock]) -> list[Finding]:
    """A finding for each function above `COMPLEXITY_LIMIT`; classes are only the sum of their methods."""
    return [
        Finding(
            tool="radon",
            rule=COMPLEXITY,
            path=path,
            line=block.line,
            end_line=block.line,
            message=f"`{block.qualified_name}` has a cyclomatic complexity of {block.complexity} (rank {block.rank})",
            severity=rule_info(COMPLEXITY).severity,
            symbol=block.qualified_name,
            value=block.complexity,
        )
        for block in blocks
        if block.kind != "class" and block.complexity > COMPLEXITY_LIMIT
    ]


def file_metrics(result: Mapping[str, Any]) -> FileMetrics:
    """The sizes that `python_metrics` counted."""
    return FileMetrics(
        lines=result.get("lines", 0),
        code_lines=result.get("code_lines", 0),
        functions=_count(result.get("functions")),
        classes=_count(result.get("classes")),
        max_nesting=result.get("max_nesting", 0),
        missing_docstrings=len(result.get("missing_docstrings") or ()),
    )


def metrics_findings(path: str, result: Mapping[str, Any]) -> list[Finding]:
    """What `python_metrics` found beyond numbers: a syntax error, risky calls, undocumented public names."""
    found = [
        Finding(
            tool="ast",
            rule=RISKY_CALL,
            path=path,
            line=call["line"],
            column=call.get("column", 1),
            end_line=call["line"],
            end_column=call.get("column", 1),
            message=_risky_message(call),
            severity=rule_info(RISKY_CALL).severity,
            symbol=call["name"],
        )
        for call in result.get("risky_calls") or ()
    ]
    error = result.get("syntax_error")
    if error:
        found.append(_syntax_error(path, error))
    undocumented = [_name(entry) for entry in result.get("missing_docstrings") or ()]
    if undocumented:
        found.append(_undocumented(path, undocumented))
    return found


def failure_finding(path: str, tool: ToolName, reason: str) -> Finding:
    """A tool that did not finish on this file is itself something to know about."""
    return Finding(
        tool=tool,
        rule=TOOL_FAILED,
        path=path,
        message=f"{tool} did not finish: {reason}",
        severity=rule_info(TOOL_FAILED).severity,
    )


def unreadable_finding(path: str, reason: str) -> Finding:
    """A file that nobody could read as text."""
    return Finding(
        tool="ast",
        rule=UNREADABLE,
        path=path,
        message=f"could not be read: {reason}",
        severity=rule_info(UNREADABLE).severity,
    )


def _ruff_finding(path: str, result: Mapping[str, Any]) -> Finding:
    rule = result["code"] or "invalid-syntax"
    measured = _COMPLEXITY_IN_MESSAGE.search(result["message"]) if rule == "C901" else None
    return Finding(
        tool="ruff",
        rule=rule,
        path=path,
        line=result["row"],
        column=result["column"],
        end_line=result["end_row"],
        end_column=result["end_column"],
        message=result["message"],
        severity=rule_info(rule).severity,
        value=int(measured[1]) if measured else 0,
        fixable=bool(result.get("fixable")),
        url=result.get("url") or "",
    )


def _syntax_error(path: str, error: Mapping[str, Any] | str) -> Finding:
    details: Mapping[str, Any] = {"message": error} if isinstance(error, str) else error
    line, column = max(details.get("line") or 1, 1), max(details.get("column") or 1, 1)
    return Finding(
        tool="ast",
        rule=SYNTAX_ERROR,
        path=path,
        line=line,
        column=column,
        end_line=line,
        end_column=column,
        message=f"cannot be parsed: {details['message']}",
        severity=rule_info(SYNTAX_ERROR).severity,
    )


def _risky_message(call: Mapping[str, Any]) -> str:
    reason = call.get("reason") or "dangerous with input that comes from somebody else"
    return f"call of `{call['name']}`: {reason}"


def _undocumented(path: str, names: list[str]) -> Finding:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return Finding(
        tool="ast",
        rule=MISSING_DOCSTRINGS,
        path=path,
        message=f"no docstring: {shown}{more}",
        severity=rule_info(MISSING_DOCSTRINGS).severity,
        symbol="docstrings",
        value=len(names),
    )


def _name(entry: Mapping[str, Any] | str) -> str:
    return entry if isinstance(entry, str) else str(entry["name"])


def _count(value: Any) -> int:
    return value if isinstance(value, int) else len(value or ())
