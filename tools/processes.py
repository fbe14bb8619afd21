"""Finding and ending processes with everything they started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

MARK = "AGENTMESH_TOOL_POOL"
"""Variable in the environment of every process of a pool: how those are found whose parents are all gone."""


def kill_tree(pid: int) -> None:
    """SIGKILL a process and its descendants, also those in sessions of their own.

    They are stopped first, so that none can fork while the others are being counted. Descendants whose parent died
    are found if `pid` adopts orphans.
    """
    _signal(pid, signal.SIGSTOP)
    stopped: set[int] = set()
    while fresh := [found for found in descendants(pid) if found not in stopped]:
        for found in fresh:
            _signal(found, signal.SIGSTOP)
        stopped.update(fresh)
    for found in stopped:
        _signal(found, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
    _signal(pid, signal.SIGKILL)


def kill_marked(mark: str) -> None:
    """SIGKILL every process that was started with `mark` as its pool; Linux only."""
    wanted = f"{MARK}={mark}".encode()
    for pid in _pids():
        with contextlib.suppress(OSError):
            if pid != os.getpid() and wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                kill_tree(pid)


def descendants(pid: int) -> list[int]:
    """Living descendants; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for child, parent in _living():
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, ()))
    for child in found:  # grows while we walk it
        found.extend(children.get(child, ()))
    return found


def children_of(pid: int) -> list[int]:
    """Living direct children."""
    return [child for child, parent in _living() if parent == pid]


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process, instead of process 1; Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """SIGKILL for this process when `parent`, which just forked it, ends; Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)


def _load_prctl() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    return prctl


_libc_prctl = _load_prctl()  # before any fork: loading a library is not safe after it


def _prctl(option: int, value: int) -> None:
    if _libc_prctl is not None:
        _libc_prctl(option, int(value), 0, 0, 0)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _pids() -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _living() -> Iterator[tuple[int, int]]:
    """(pid, parent) of every process that is not a zombie."""
    for pid in _pids():
        with contextlib.suppress(OSError):
            # The name of the program, in brackets, may contain anything.
            state, parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                yield pid, int(parent)
