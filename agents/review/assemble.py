"""Put the results of the tools for one file together.

Nothing here raises because of the file: what could not be read, parsed or finished becomes a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentmesh.agents.review import adapt
from agentmesh.agents.review.dedupe import dedupe
from agentmesh.agents.review.fingerprint import with_fingerprints
from agentmesh.agents.review.model import Excerpt, FileReview, Finding, ToolName
from agentmesh.agents.review.rank import may_be_chosen, score_file

_CONTEXT = 2
_MAX_EXCERPT_WIDTH = 160


def assemble(
    path: str,
    source: str | None,
    *,
    ruff: Sequence[Mapping[str, Any]] = (),
    radon: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, Any] | None = None,
    failures: Mapping[ToolName, str] | None = None,
    missing: Iterable[ToolName] = (),
) -> FileReview:
    """One file's review.

    Args:
        path: Relative to the reviewed root, posix-style.
        source: Its text; None if it could not be read or decoded (say why in `failures["walk"]`).
        ruff: Result of `ruff_check`.
        radon: Result of `radon_complexity`.
        metrics: Result of `python_metrics`.
        failures: Why a tool gave no result, by tool.
        missing: Tools that are not installed; no fault of the file.
    """
    lines = source.splitlines() if source else []
    blocks = adapt.function_blocks(radon)
    findings = [
        *adapt.ruff_findings(path, ruff),
        *adapt.complexity_findings(path, blocks),
        *adapt.metrics_findings(path, metrics or {}),
        *_failures(path, failures or {}),
    ]
    marked = with_fingerprints(findings, lines)
    return FileReview(
        path=path,
        findings=tuple(marked),
        functions=tuple(blocks),
        metrics=adapt.file_metrics(metrics or {"lines": len(lines)}),
        excerpts={
            entry.finding.fingerprint: excerpt(lines, entry.finding.line)
            for entry in may_be_chosen(score_file(dedupe(marked), blocks))
            if lines
        },
        missing=tuple(sorted(missing)),
    )


def excerpt(lines: Sequence[str], line: int) -> Excerpt:
    """The source around a line, cut to a width that fits a page."""
    first = max(1, line - _CONTEXT)
    shown = lines[first - 1 : line + _CONTEXT]
    return Excerpt(first_line=first, lines=tuple(text[:_MAX_EXCERPT_WIDTH] for text in shown))


def _failures(path: str, failures: Mapping[ToolName, str]) -> list[Finding]:
    return [
        adapt.unreadable_finding(path, reason) if tool == "walk" else adapt.failure_finding(path, tool, reason)
        for tool, reason in sorted(failures.items())
    ]
