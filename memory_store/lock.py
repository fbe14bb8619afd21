"""One process per memory file."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agentmesh.errors import StoreError, StoreLockedError


class FileLock:
    """Held from `acquire` to `release`, or to the end of the process, however it ends.

    A file of its own beside the database: SQLite's own locks on the database would be lost when any descriptor of it
    is closed. It is left in place, because removing it would let two processes lock two files of that name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._descriptor = -1

    def acquire(self) -> None:
        """Take it, or raise.

        Raises:
            StoreLockedError: Another store has the file open; says which process.
            StoreError: The folder cannot be written to.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot open {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "another process"
            os.close(descriptor)
            raise StoreLockedError(str(self._path), holder) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
