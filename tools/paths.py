"""Paths that callers name, kept under a root."""

from __future__ import annotations

import os
from pathlib import Path

from agentmesh.errors import ToolArgumentsError, ToolLimitError

MAX_PATH = 512
"""Characters of a path that a caller may name."""


def inside(tool: str, root: Path, path: str) -> Path:
    """The existing file or folder that `path` names, below `root` and without symbolic links.

    Args:
        tool: For the error.
        root: What is allowed.
        path: Relative to the root, or absolute.

    Raises:
        ToolArgumentsError: It is outside the root, also through a link, or there is no such file.
    """
    if not path or len(path) > MAX_PATH or not path.isprintable() or "\\" in path:
        raise ToolArgumentsError(tool, f"path: {path[:80]!r} is not a usable path")
    top = Path(os.path.realpath(root))
    real = Path(os.path.realpath(top / path))
    if not real.is_relative_to(top) or ".." in Path(path).parts:
        raise ToolArgumentsError(tool, f"path: {path!r} is outside the root")
    if not real.exists():
        raise ToolArgumentsError(tool, f"path: there is no {path!r} under the root")
    return real


def read_whole(tool: str, root: Path, path: str, max_bytes: int) -> bytes:
    """A regular file below `root`.

    Raises:
        ToolArgumentsError: See `inside`; or it is not a regular file, or not ours to read.
        ToolLimitError: It is larger than `max_bytes`.
    """
    real = inside(tool, root, path)
    if not real.is_file():
        raise ToolArgumentsError(tool, f"path: {path!r} is not a regular file")
    # Should it change in this moment: a link is not followed, and a pipe does not wait for a writer.
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ToolArgumentsError(tool, f"path: {path!r} cannot be read: {error.strerror}") from None
    with open(fd, "rb") as file:
        data = file.read(max_bytes + 1) or b""
    if len(data) > max_bytes:
        raise ToolLimitError(tool, f"{max_bytes} bytes of a file")
    return data
