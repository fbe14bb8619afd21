"""The `.proto` files as files: for other languages, and for `agentmesh proto`."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

FILES = ("common.proto", "ai_integration.proto")
"""In the order in which they need each other."""

FINGERPRINT = "bfbf5cb11bc4d770"
"""Of what the files say, comments aside. Sent as a header, it lets a mismatch be called by its name."""


def text(name: str) -> str:
    """What is in one of `FILES`."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def outline(name: str) -> tuple[str, list[str]]:
    """The package of one of `FILES`, and its messages."""
    source = text(name)
    package = re.search(r"^package ([\w.]+);", source, re.MULTILINE)
    assert package is not None, name
    return package.group(1), re.findall(r"^message (\w+)", source, re.MULTILINE)


def export(directory: Path) -> list[Path]:
    """Write `FILES` into a directory, which is made if need be; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / name for name in FILES]
    for path in written:
        path.write_text(text(path.name), encoding="utf-8")
    return written
