"""Tools with good and bad manners."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from agentmesh.errors import MissingExtraError
from agentmesh.tooling import Setting, tool

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


class Point(BaseModel):
    x: int
    y: int = 0


@tool
def add(a: int, b: int = 2) -> int:
    """Add two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b


@tool
def mirror(point: Point, path: Path = Path()) -> Point:
    """Swap the coordinates of a point."""
    return Point(x=point.y, y=point.x)


@tool
async def slow_add(a: int, b: int) -> int:
    """Add two numbers on the event loop."""
    await asyncio.sleep(0)
    return a + b


@tool(isolation="subprocess")
async def async_in_a_process(a: int) -> int:
    await asyncio.sleep(0)
    return a + 1


@tool(isolation="thread")
def thread_name() -> str:
    return threading.current_thread().name


@tool
def raises(kind: str) -> int:
    """Fail in the way asked for."""
    match kind:
        case "exit":
            sys.exit(3)
        case "hard-exit":
            os._exit(4)
        case "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "cancelled":
            raise asyncio.CancelledError
        case "ours":
            raise MissingExtraError("ruff", "review")
        case "wrong-result":
            return "text"  # type: ignore[return-value]
    raise ValueError(kind)


@tool
def touch(path: Path, count: int) -> int:
    """Leave a trace of having run."""
    path.write_text(str(count))
    return count


@tool(timeout=0.5)
def sleeps(marker: Path) -> int:
    """Sleep for ever; `marker` says the pid and that of a process started by it."""
    return _sleep_with_children(marker)


@tool
def sleeps_long(marker: Path) -> int:
    """Like `sleeps`, without a short time limit."""
    return _sleep_with_children(marker)


def _sleep_with_children(marker: Path) -> int:
    near = subprocess.Popen(SLEEPER)
    far = subprocess.Popen(SLEEPER, start_new_session=True)
    _write(marker, [os.getpid(), near.pid, far.pid])
    time.sleep(600)
    return 0


@tool
def leaves_daemon(marker: Path) -> int:
    """Start a daemon the old way: fork twice, in a session of its own, with an empty environment."""
    intermediate = os.fork()
    if intermediate == 0:
        os.setsid()
        daemon = os.fork()
        if daemon == 0:
            os.execve(SLEEPER[0], SLEEPER, {})
        _write(marker, [daemon])
        os._exit(0)
    os.waitpid(intermediate, 0)
    return 1


@tool
def leaves_daemon_and_dies(marker: Path) -> int:
    daemon = subprocess.Popen(SLEEPER, start_new_session=True, env={})
    _write(marker, [daemon.pid])
    os._exit(1)


@tool
def kills_parent(marker: Path) -> int:
    daemon = subprocess.Popen(SLEEPER, start_new_session=True)
    _write(marker, [os.getpid(), daemon.pid])
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
    return 0


@tool
def kills_group() -> int:
    os.killpg(0, signal.SIGKILL)
    return 0


@tool(memory_bytes=256 << 20)
def eats_memory() -> int:
    return len(bytearray(1 << 30))


@tool(cpu_seconds=0.2, timeout=20.0)
def burns() -> int:
    while True:
        pass


@tool(file_bytes=1 << 20)
def writes_much() -> int:
    return Path("big").write_bytes(bytes(8 << 20))


@tool(open_files=32)
def opens_much() -> int:
    return len([tempfile.TemporaryFile() for _ in range(100)])


@tool
def floods() -> int:
    line = "A" * 8000
    while True:
        print(line)


@tool(output_bytes=1000)
def big_result(size: int) -> str:
    return "x" * size


@tool
def says(text: str) -> int:
    print(text)
    print(text.upper(), file=sys.stderr)
    return 0


@tool
def surroundings() -> dict[str, Any]:
    """What a tool sees."""
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": os.listdir(),
        "pid": os.getpid(),
        "group": os.getpgrp(),
        "input": sys.stdin.read(),
    }


@tool
def litters() -> str:
    for number in range(10):
        Path(f"{number}").mkdir()
        Path(f"{number}/file").write_text("x")
    return os.getcwd()


@tool
def leaves_thread() -> int:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return os.getpid()


@tool
def under_root(*, root: Annotated[Path, Setting()] = Path(), limit: Annotated[int, Setting] = 3) -> str:
    """Takes no arguments, only settings."""
    return f"{root} {limit}"


def _write(marker: Path, pids: list[int]) -> None:
    part = marker.with_suffix(".part")
    part.write_text(" ".join(map(str, pids)))
    part.rename(marker)
