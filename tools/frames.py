"""What the executor and its child processes say to each other: frames of 4 bytes length and a body."""

from __future__ import annotations

import os
import struct
from typing import Any

import msgspec

HEADER = struct.Struct(">I")

NULL = msgspec.Raw(b"null")


class ForkOrder(msgspec.Struct, tag="fork"):
    """To the keeper: fork a child; its pipes come with it."""

    number: int
    memory_bytes: int
    file_bytes: int
    open_files: int
    preload: list[str]


class KillOrder(msgspec.Struct, tag="kill"):
    """To the keeper: end a child with everything it started."""

    number: int


class Forked(msgspec.Struct, tag="forked"):
    """From the keeper: the child runs."""

    number: int
    pid: int


class Exited(msgspec.Struct, tag="exited"):
    """From the keeper: the child, and everything it started, has ended. Negative: the signal that ended it."""

    number: int
    code: int


class Ready(msgspec.Struct, tag="ready"):
    """From the keeper: it takes orders."""


Order = ForkOrder | KillOrder
Report = Forked | Exited | Ready


class CallFrame(msgspec.Struct):
    """To a child: run a tool."""

    tool: str
    """`module:name`, or empty: the tool follows as a pickle in a frame of its own."""
    name: str
    """What it is called, for errors."""
    settings: msgspec.Raw
    arguments: msgspec.Raw
    folder: str
    """Working directory: empty, and removed after the call."""
    cpu_seconds: float | None
    output_bytes: int
    memory_bytes: int
    file_bytes: int
    open_files: int


class DoneFrame(msgspec.Struct):
    """From a child: the call is over."""

    error: dict[str, Any] | None = None
    result: msgspec.Raw = NULL
    stale: bool = False
    """Processes or threads of the call still run, so this child takes no other call."""


def frame(body: bytes) -> bytes:
    return HEADER.pack(len(body)) + body


def read_frame(fd: int) -> bytes:
    """The next frame of a blocking pipe; empty at its end."""
    head = _read_exactly(fd, HEADER.size)
    return _read_exactly(fd, HEADER.unpack(head)[0]) if head else b""


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_exactly(fd: int, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(fd, min(count - len(parts), 1 << 20))
        if not part:
            return b""
        parts += part
    return bytes(parts)
