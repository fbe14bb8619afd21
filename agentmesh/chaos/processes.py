"""What the operating system knows about processes: who lives, whose child it is, how much memory it holds."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended but was not waited for yet (a zombie) does not."""
    state = _stat(pid)
    return state is not None and state[0] not in "ZX"


def children(pid: int) -> list[int]:
    """Pids of the direct children that are alive."""
    pids = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    stats = ((child, _stat(child)) for child in pids)
    return [child for child, stat in stats if stat and stat[0] not in "ZX" and int(stat[1]) == pid]


def kill_pid(pid: int) -> None:
    """SIGKILL; does nothing when there is no such process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def pause_pid(pid: int) -> None:
    """SIGSTOP; returns when all threads of the process stand still, which takes the kernel a moment."""
    os.kill(pid, signal.SIGSTOP)
    while any(
        path.read_text().rpartition(")")[2].split()[0] != "T" for path in Path(f"/proc/{pid}/task").glob("*/stat")
    ):
        time.sleep(0.001)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on: the name before it may contain anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def resident_bytes(pid: int) -> int:
    """Memory the process holds now; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def started_ticks(pid: int) -> str:
    """When the process started, in ticks since boot: tells a process from a later one with the same pid."""
    state = _stat(pid)
    return state[19] if state else ""
