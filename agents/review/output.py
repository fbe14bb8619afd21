"""Write a report to disk: a page for people, SARIF for tools, JSON for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from agentmesh.agents.review.html import render_html
from agentmesh.agents.review.model import Report
from agentmesh.agents.review.sarif import render_sarif

HTML_NAME = "review.html"
SARIF_NAME = "review.sarif"
JSON_NAME = "report.json"


def write_report(report: Report, directory: Path) -> dict[str, Path]:
    """Write all three files; a reader never sees half of one.

    Args:
        report: The finished report.
        directory: Made if it does not exist.

    Returns:
        Where they are, under `html`, `sarif` and `json`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        HTML_NAME: render_html(report),
        SARIF_NAME: json.dumps(render_sarif(report), indent=1),
        JSON_NAME: report.model_dump_json(exclude={"files": {"__all__": {"packed"}}}),
    }
    for name, text in contents.items():
        _replace(directory / name, text)
    return {"html": directory / HTML_NAME, "sarif": directory / SARIF_NAME, "json": directory / JSON_NAME}


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
