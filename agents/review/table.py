"""The review in a terminal: one summary line and the table of what to fix first."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agentmesh.agents.review.model import RankedFinding, Report, Severity

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "blue"}


def render_table(report: Report) -> RenderableType:
    """What a person wants to see first, for `rich.console.Console.print`."""
    if not report.first:
        return Group(_summary(report), Text("Nothing to fix.", style="green"))
    table = Table(title="Fix these ten first" if len(report.first) == 10 else "Fix these first", title_justify="left")
    table.add_column("#", justify="right", style="dim")
    table.add_column("Where", overflow="fold", ratio=3)
    table.add_column("Rule", no_wrap=True)
    table.add_column("What and why", overflow="fold", ratio=6)
    for ranked in report.first:
        table.add_row(*_cells(ranked))
    return Group(_summary(report), table)


def _summary(report: Report) -> Text:
    text = Text(f"{len(report.findings):,} findings in {len(report.files):,} files: ")
    parts = [Text(f"{report.count(severity):,} {severity.value}s", style=_COLOURS[severity]) for severity in Severity]
    text.append_text(Text(", ").join(parts))
    if report.history:
        history = report.history
        text.append(f" · {len(history.new):,} new, {len(history.fixed):,} fixed since {history.earlier_at:%d %b %H:%M}")
    return text


def _cells(ranked: RankedFinding) -> tuple[Text, ...]:
    finding = ranked.finding
    what = Text(_printable(finding.message), style="bold")
    what.append(f"\n{_printable(ranked.reason)}", style="not bold")
    if ranked.similar:
        what.append(f" ({ranked.similar:,} more like it)", style="dim not bold")
    return (
        Text(str(ranked.place)),
        Text(_printable(f"{finding.path}:{finding.line}")),
        Text(finding.rule, style=_COLOURS[finding.severity]),
        what,
    )


def _printable(text: str) -> str:
    """Without control characters: a file name or message must not drive the terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
