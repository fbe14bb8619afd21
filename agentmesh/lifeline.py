"""No orphan survives its parent, not even one whose parent was killed with SIGKILL.

The parent holds the write end of a pipe for as long as it lives; every child inherits the read end. However the parent
ends, the kernel closes the pipe and the children see it:

    # parent
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "worker", **spawn_kwargs())

    # child, before anything else
    die_with_parent()

On Linux the parent-death signal is set as well: it reaches a child that is too busy to run a thread.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypedDict

_VARIABLE = "AGENTMESH_LIFELINE"  # "<fd>" or "<fd>:pdeathsig", from parent to child; not a setting
_PR_SET_PDEATHSIG = 1

_pipe: tuple[int, int] | None = None
_pipe_lock = threading.Lock()


class SpawnKwargs(TypedDict):
    """Arguments for `subprocess.Popen` and `asyncio.create_subprocess_exec`."""

    pass_fds: tuple[int, ...]
    env: dict[str, str]
    start_new_session: bool


def spawn_kwargs(env: Mapping[str, str] | None = None) -> SpawnKwargs:
    """How to start a child that calls `die_with_parent`.

    The child gets a session of its own, so that Ctrl-C in the terminal reaches only the parent, which then stops its
    children in order. Call this in the thread that starts the child.

    Args:
        env: Variables added to those of this process.
    """
    read_end = _lifeline()
    # The parent-death signal comes when the *thread* that forked ends. Only the main thread is sure to live as long
    # as the process; children of any other thread rely on the pipe alone.
    mark = f"{read_end}:pdeathsig" if threading.current_thread() is threading.main_thread() else f"{read_end}"
    return SpawnKwargs(
        pass_fds=(read_end,),
        env={**os.environ, **(env or {}), _VARIABLE: mark},
        start_new_session=True,
    )


def die_with_parent(grace: float = 3.0) -> bool:
    """Tie this process to the one that started it; call it first thing in a child.

    When the parent is gone this process gets SIGTERM, so the usual orderly stop runs; what is left of it and of its
    process group `grace` seconds later is killed. If the parent is gone already, this does not return.

    Returns:
        False if this process was not started with `spawn_kwargs` (by hand, say): it then lives on its own.
    """
    mark = os.environ.pop(_VARIABLE, "")  # popped: the children of this process have another parent
    if not mark:
        return False
    fd_text, _, pdeathsig = mark.partition(":")
    fd = int(fd_text)
    os.set_inheritable(fd, False)
    if pdeathsig and sys.platform == "linux":
        _set_parent_death_signal(signal.SIGTERM)
    if select.select([fd], [], [], 0)[0]:  # readable means end of file: nobody ever writes
        os._exit(128 + signal.SIGTERM)
    threading.Thread(target=_watch, args=(fd, grace), name="agentmesh-lifeline", daemon=True).start()
    return True


def child_preexec(death_signal: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn` that gives a child which is not ours to change the parent-death signal; None except on Linux.

    Start that child in a thread that outlives it: the signal comes when the forking thread ends.
    """
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    prctl = _prctl()  # loaded here: after the fork only async-signal-safe work is sure not to hang

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(128 + death_signal)

    return in_child


def _lifeline() -> int:
    """The read end of this process's pipe, made on first use."""
    global _pipe
    with _pipe_lock:
        if _pipe is None:
            _pipe = os.pipe()
        return _pipe[0]


def _forget_lifeline() -> None:
    """A forked child must not hold its parent's write end, or it would keep its siblings alive."""
    global _pipe, _pipe_lock
    _pipe_lock = threading.Lock()
    if _pipe is not None:
        for fd in _pipe:
            os.close(fd)
        _pipe = None


os.register_at_fork(after_in_child=_forget_lifeline)


def _watch(fd: int, grace: float) -> None:
    while os.read(fd, 1):
        pass
    # Nothing is logged here: standard error may be a pipe to the parent that is gone, and block.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _set_parent_death_signal(number: signal.Signals) -> None:
    _prctl()(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _prctl() -> Callable[[int, int, int, int, int], int]:
    prctl: Callable[[int, int, int, int, int], int] = ctypes.CDLL(None, use_errno=True).prctl
    return prctl
