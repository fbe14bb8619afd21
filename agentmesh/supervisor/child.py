"""The other end: what a supervised process does first, and how it speaks to its supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Literal

import msgspec

from agentmesh.lifeline import die_with_parent
from agentmesh.logs import JsonFormatter

MARK = "@agentmesh "
"""Begins a line that is meant for the supervisor: a JSON object follows."""

ORPHAN_GRACE = 3.0
"""Seconds a process whose supervisor died has for an orderly stop."""

LogFormat = Literal["text", "json"]


def announce(**fields: object) -> None:
    """Say something to the supervisor of this process: one marked line on standard output."""
    print(f"{MARK}{msgspec.json.encode(fields).decode()}", flush=True)


def begin() -> bytes:
    """Tie this process to its supervisor, and read what it is to do from standard input.

    Ctrl-C in the terminal is for the supervisor, which then stops its processes in order.
    """
    if die_with_parent(ORPHAN_GRACE):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return sys.stdin.buffer.read()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop if it is installed."""
    with contextlib.suppress(ImportError):
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
        return factory
    return None


def configure_logging(form: LogFormat, level: str, tenant: str = "") -> None:
    """Log to standard error, one line a record: for people, or as JSON that says the tenant and more; see `logs`."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter(tenant))
    else:
        line = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(line, datefmt="%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
