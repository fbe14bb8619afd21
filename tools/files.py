"""Reading files under a root: `read_file` and `list_files`.

The root is a setting: `read_file.configure(root="/srv/docs")`, `file_tools("/srv/docs")`, or
`python -m agentmesh.tools --set root=/srv/docs`. Without it, the folder in which the executor was started.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from agentmesh.errors import ToolArgumentsError
from agentmesh.tooling import Setting, Tool, tool
from agentmesh.tools.paths import inside, read_whole

RESULT_BYTES = 1_000_000
"""A little less than what a broker takes in one message by default."""


@tool(output_bytes=RESULT_BYTES, timeout=10.0)
def read_file(
    path: str,
    max_bytes: Annotated[int, Field(ge=1)] = RESULT_BYTES,
    *,
    root: Annotated[Path, Setting()] = Path(),
) -> str:
    """Read a text file in UTF-8, with its line ends as they are.

    Args:
        path: The file, relative to the root.
        max_bytes: A larger file is an error.
    """
    return read_whole("read_file", root, path, max_bytes).decode()


@tool(output_bytes=RESULT_BYTES, timeout=20.0)
def list_files(
    pattern: str = "**/*",
    limit: Annotated[int, Field(ge=1, le=5000)] = 1000,
    *,
    root: Annotated[Path, Setting()] = Path(),
) -> list[str]:
    """List files, sorted, as paths relative to the root.

    Args:
        pattern: Which ones, such as `**/*.py` or `docs/*.md`; links that lead out of the root are left out.
        limit: How many at most.
    """
    parts = Path(pattern).parts
    if not parts or ".." in parts or Path(pattern).is_absolute() or not pattern.isprintable():
        raise ToolArgumentsError("list_files", f"pattern: {pattern!r} is not a pattern below the root")
    top = inside("list_files", root, ".")
    try:
        found = (path.relative_to(top).as_posix() for path in top.glob(pattern) if _is_file_inside(path, top))
        return sorted(itertools.islice(found, limit))
    except ValueError as error:
        raise ToolArgumentsError("list_files", f"pattern: {error}") from None


def file_tools(root: str | Path = ".") -> list[Tool[..., Any]]:
    """`read_file` and `list_files` for one root."""
    return [read_file.configure(root=root), list_files.configure(root=root)]


def _is_file_inside(path: Path, top: Path) -> bool:
    return path.is_file() and Path(os.path.realpath(path)).is_relative_to(top)
