"""What a command found out, as lines with a sign and, where something is wrong, how to put it right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from agentmesh.cli import exits

if TYPE_CHECKING:
    from agentmesh.cli.base import Session

OK, NOTE, WARNING, WRONG = "ok", "note", "warning", "wrong"
_SIGNS = {OK: ("✓", "green"), NOTE: ("·", "dim"), WARNING: ("!", "yellow"), WRONG: ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: str
    what: str
    says: str
    fix: str = ""


def conclude(session: Session, findings: Sequence[Finding], *, strict: bool) -> None:
    """Print them, and end with 1 if something is wrong; if `strict`, warnings count as wrong.

    Raises:
        typer.Exit: Something is wrong.
    """
    report(session, findings)
    bad = {WRONG, WARNING} if strict else {WRONG}
    if any(finding.state in bad for finding in findings):
        raise typer.Exit(exits.FAILED)


def report(session: Session, findings: Sequence[Finding]) -> None:
    """One line each, the fix below it; with `--json` one document."""
    out = session.out
    if out.json:
        out.document([finding.__dict__ for finding in findings])
        return
    for finding in findings:
        sign, color = _SIGNS[finding.state]
        out.answer(f"  {out.style(sign, color)} {finding.what:<12} {finding.says}")
        if finding.fix:
            out.answer(f"    {'':12} {out.style('→ ' + finding.fix, 'cyan')}")
