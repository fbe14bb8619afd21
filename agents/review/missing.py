"""What a review without some of its tools lacks, and how to get them."""

from __future__ import annotations

from collections.abc import Sequence

from agentmesh.agents.review.model import ToolName

_GIVES: dict[ToolName, str] = {
    "ruff": "likely bugs, security and style",
    "radon": "the complexity of functions and the complexity map",
}


def lacks(missing: Sequence[ToolName]) -> str:
    """One sentence: what is not in the report, and why."""
    parts = [f"{_GIVES[tool]} ({tool} is not installed)" for tool in missing if tool in _GIVES]
    return f"This review is without {', and without '.join(parts)}." if parts else ""


def install_command(missing: Sequence[ToolName]) -> str:
    """What to run where the tools run; works whatever way agentmesh itself was installed."""
    return f"pip install {' '.join(missing)}"
