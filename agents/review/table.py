"""The review in a terminal: one summary line and the table of what to fix first."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agentmesh.agents.review.missing import install_command, lacks
from agentmesh.agents.review.model import RankedFinding, Severity, Summary

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "blue"}


def render_table(summary: Summary) -> RenderableType:
    """What a person wants to see first, for `rich.console.Console.print`."""
    head = (_counts(summary), *_missing(summary))
    if not summary.first:
        return Group(*head, Text("Nothing to fix.", style="green"))
    table = Table(title="Fix these ten first" if len(summary.first) == 10 else "Fix these first", title_justify="left")
    table.add_column("#", justify="right", style="dim")
    table.add_column("Where", overflow="fold", ratio=3)
    table.add_column("Rule", no_wrap=True)
    table.add_column("What and why", overflow="fold", ratio=6)
    for ranked in summary.first:
        table.add_row(*_cells(ranked))
    return Group(*head, table)


def _counts(summary: Summary) -> Text:
    text = Text(f"{_plural(summary.findings, 'finding')} in {_plural(summary.files, 'file')}: ")
    counts = summary.by_severity.items()
    parts = [Text(_plural(count, severity.value), style=_COLOURS[severity]) for severity, count in counts]
    text.append_text(Text(", ").join(parts))
    if summary.earlier_at:
        text.append(f" · {summary.new:,} new, {summary.fixed:,} fixed since {summary.earlier_at:%d %b %H:%M} UTC")
    return text


def _missing(summary: Summary) -> list[Text]:
    if not summary.missing:
        return []
    text = Text(lacks(summary.missing), style="yellow")
    return [text, Text(f"For the whole of it: {install_command(summary.missing)}")]


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


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
