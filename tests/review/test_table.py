from __future__ import annotations

import io

from rich.console import Console

from agentmesh.agents.review.assemble import assemble
from agentmesh.agents.review.model import Report
from agentmesh.agents.review.table import render_table
from tests.review.builders import diagnostic, report, sample_review


def _printed(review: Report, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render_table(review.summary()))
    return out.getvalue()


def test_the_table_says_where_and_why() -> None:
    printed = _printed(report(sample_review()))

    assert "3 findings in 1 file: 0 errors, 1 warning, 2 notes" in printed
    assert "pkg/a.py:5" in printed
    assert "`eval` runs whatever text it gets" in printed


def test_a_clean_project_is_said_to_be_clean() -> None:
    assert "Nothing to fix." in _printed(report())


def test_what_is_missing_comes_with_the_command_that_installs_it() -> None:
    review = report(assemble("a.py", "x\n", missing={"ruff", "radon"}))

    printed = " ".join(_printed(review.model_copy(update={"missing": ("radon", "ruff")})).split())

    assert "complexity map (radon is not installed), and without likely bugs, security and style (ruff" in printed
    assert "pip install radon ruff" in printed


def test_a_message_cannot_drive_the_terminal_or_the_markup() -> None:
    review = assemble("a.py", "x\n", ruff=[diagnostic("F841", 1, message="\x1b[2Jgone [red]bold[/red]")])

    printed = _printed(report(review))

    assert "\x1b" not in printed
    assert "[red]bold[/red]" in printed
