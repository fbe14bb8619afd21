"""`ruff_check`: what ruff says about a Python file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from agentmesh.errors import MissingExtraError, ToolFailedError, ToolLimitError
from agentmesh.tooling import Setting, tool
from agentmesh.tools.command import capture
from agentmesh.tools.paths import inside

_RAW_BYTES = 64 << 20
"""Of ruff's own JSON, which also carries every fix."""

Rules = Annotated[str, Field(pattern=r"^[A-Z]{1,7}[0-9]{0,4}(,[A-Z]{1,7}[0-9]{0,4})*$")]


class RuffFinding(TypedDict):
    """One finding; lines and columns count from 1."""

    code: str
    """The rule; `invalid-syntax` for a file that ruff cannot parse."""
    message: str
    row: int
    column: int
    end_row: int
    end_column: int
    url: str
    """Of the rule's documentation; may be empty."""
    fixable: bool


@tool(timeout=60.0, output_bytes=1_000_000, memory_bytes=4 << 30)
def ruff_check(
    path: str,
    select: Rules | None = None,
    *,
    root: Annotated[Path, Setting()] = Path(),
) -> list[RuffFinding]:
    """Check a Python file or folder with ruff, without any configuration file.

    Args:
        path: What to check, relative to the root.
        select: Rules, such as `E,F,C90`; none: ruff's own choice.
    """
    target = inside("ruff_check", root, path)
    argv = [_program(), "check", "--isolated", "--no-cache", "--exit-zero", "--output-format=json", "--quiet"]
    if select:
        argv.append(f"--select={select}")
    # One thread: executors run several of these at the same time.
    code, out, err = capture([*argv, "--", str(target)], "/", _RAW_BYTES, {"RAYON_NUM_THREADS": "1"})
    if len(out) > _RAW_BYTES:
        raise ToolLimitError("ruff_check", f"{_RAW_BYTES} bytes of ruff's output")
    if code != 0:
        raise ToolFailedError("ruff_check", f"exit code {code}", err.decode(errors="replace").strip()[:1000])
    return [_finding(entry) for entry in json.loads(out)]


def _finding(entry: dict[str, Any]) -> RuffFinding:
    start, end = entry["location"], entry["end_location"]
    return RuffFinding(
        code=entry["code"] or "invalid-syntax",
        message=entry["message"],
        row=start["row"],
        column=start["column"],
        end_row=end["row"],
        end_column=end["column"],
        url=entry.get("url") or "",
        fixable=entry.get("fix") is not None,
    )


def _program() -> str:
    try:
        from ruff import find_ruff_bin  # type: ignore[import-untyped]
    except ImportError:
        found = shutil.which("ruff")
        if found is None:
            raise MissingExtraError("ruff", "review") from None
        return found
    return str(find_ruff_bin())
