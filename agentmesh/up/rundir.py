"""The run directory: one `agentmesh up` at a time, and where to find it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import time
from pathlib import Path

from agentmesh import runfile
from agentmesh.errors import AlreadyRunningError, ConfigError
from agentmesh.runfile import RunFile

LOCK = "up.lock"


class RunLock:
    """Held for as long as this process runs the mesh of a folder. The kernel lets go of it however the process ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fd = -1

    def acquire(self) -> None:
        """Take it, unless it is ours already, and remove what a killed mesh left behind.

        Raises:
            AlreadyRunningError: Another process holds it.
            ConfigError: The folder cannot be written to.
        """
        if self._fd >= 0:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise not_writable(self.folder, error) from error
        give_up = time.monotonic() + 0.2  # `holder` has it for a moment when it looks
        while not _try(fd, fcntl.LOCK_EX):
            if time.monotonic() > give_up:
                os.close(fd)
                raise AlreadyRunningError(str(self.folder), _written(self.folder))
            time.sleep(0.02)
        self._fd = fd
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        runfile.remove(self.folder)

    def release(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def first_free(folder: Path) -> RunLock:
    """The lock of the first folder `1`, `2`, … in `folder` that nobody else has, taken.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    for number in itertools.count(1):
        lock = RunLock(folder / str(number))
        if holder(lock.folder) is None:
            with contextlib.suppress(AlreadyRunningError):  # another one was faster
                lock.acquire()
                return lock
    raise AssertionError("unreachable")


def holder(folder: Path) -> int | None:
    """Pid of the process that runs the mesh of this folder (0: it is just starting); None if nobody does."""
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _try(fd, fcntl.LOCK_SH) else _written(folder)
    finally:
        os.close(fd)


def running(folder: Path) -> RunFile | None:
    """The mesh that runs in this folder and is ready."""
    found = runfile.read(folder)
    return found if found is not None and found.pid == holder(folder) else None


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((folder / LOCK).read_text())
    return 0


def not_writable(folder: Path, error: OSError) -> ConfigError:
    """The error for a run directory that cannot be used, with what to do about it."""
    hint = "a mesh keeps its lock and its logs there; run it from a project in a folder you may write to"
    return ConfigError(str(folder), f"cannot be written to ({error.strerror}): {hint}")
