"""Recognise a finding again in a later run, although its line number changed.

A fingerprint covers the path, the rule and the text of the offending line (or the qualified name, for findings about a
function), and counts equal ones from the top of the file. Inserting or removing lines elsewhere changes nothing;
re-indenting changes nothing; editing the offending line makes a new finding, which is what a reviewer expects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from agentmesh.agents.review.model import Finding


def with_fingerprints(findings: Iterable[Finding], lines: Sequence[str]) -> list[Finding]:
    """Give each finding of one file its fingerprint.

    Args:
        findings: All findings of the file; their order does not matter.
        lines: The source, line by line; empty if it could not be read.

    Returns:
        The findings by line, column, tool and rule.
    """
    seen: Counter[str] = Counter()
    marked = []
    for finding in sorted(findings, key=position):
        anchor = _anchor(finding, lines)
        seen[anchor] += 1
        digest = hashlib.sha256(f"{anchor}\0{seen[anchor]}".encode()).hexdigest()[:16]
        marked.append(finding.model_copy(update={"fingerprint": digest}))
    return marked


def position(finding: Finding) -> tuple[str, int, int, str, str, str]:
    """Sort key: where it is, then who says what."""
    return finding.path, finding.line, finding.column, finding.tool, finding.rule, finding.message


def _anchor(finding: Finding, lines: Sequence[str]) -> str:
    place = finding.symbol
    if not place and finding.line <= len(lines):
        place = " ".join(lines[finding.line - 1].split())
    return f"{finding.path}\0{finding.tool}\0{finding.rule}\0{place}"
