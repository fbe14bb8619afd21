"""What the processes print: the last lines in memory for queries, everything in files of bounded size."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO

import msgspec

from agentmesh.ids import now
from agentmesh.up.rundir import not_writable

KEPT_LINES = 5_000
"""Lines of all processes together that can be asked for."""
MAX_FILE_BYTES = 8 * 1024 * 1024
KEPT_FILES = 3
"""Older files beside the current one: `node-1.log.1` is the youngest of them."""


_SUCCESSOR = re.compile(r"-r\d+$")  # a node that took over after a reload goes on in the file of the first one


class Line(msgspec.Struct):
    """One line of output."""

    number: int
    """Grows by one with each line of this run, so that a reader can ask for what came after."""
    at: datetime
    source: str
    text: str


class LogBook:
    """Collects the output of all processes.

    Args:
        folder: For the files, `<process>.log`.
        on_line: Called with the process and the text of each line.
    """

    def __init__(self, folder: Path, on_line: Callable[[str, str], None]) -> None:
        self._folder = folder
        self._on_line = on_line
        self._lines: deque[Line] = deque(maxlen=KEPT_LINES)
        self._files: dict[str, _RotatingFile] = {}
        self._number = 0

    def open(self) -> None:
        """Make the folder.

        Raises:
            ConfigError: It cannot be written to.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _RotatingFile(self._folder / "up.log").close()
        except OSError as error:
            raise not_writable(self._folder, error) from error

    def add(self, source: str, text: str) -> None:
        """Take one line of a process."""
        self._number += 1
        line = Line(self._number, now(), source, text)
        self._lines.append(line)
        name = _SUCCESSOR.sub("", source)
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = _RotatingFile(self._folder / f"{name}.log")
        file.write(f"{line.at:%Y-%m-%dT%H:%M:%S}Z {text}\n")
        self._on_line(source, text)

    def query(self, source: str = "", after: int = 0, limit: int = 200) -> list[Line]:
        """The youngest `limit` lines whose number is above `after`, oldest first.

        Args:
            source: Only of this process, or of those whose name begins with it and a hyphen; empty: of all.
            after: Number of the last line that is known already.
            limit: How many at most.
        """
        found = [
            line
            for line in self._lines
            if line.number > after and (not source or line.source == source or line.source.startswith(f"{source}-"))
        ]
        return found[-limit:] if limit > 0 else []

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class LogForwarder(logging.Handler):
    """Takes what this process logs itself into the book, as the process `up`."""

    def __init__(self, book: LogBook, formatter: logging.Formatter | None = None) -> None:
        super().__init__()
        self._book = book
        line = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
        self.setFormatter(formatter or logging.Formatter(line, datefmt="%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        for text in self.format(record).splitlines():
            self._book.add("up", text)


class _RotatingFile:
    """A log file that makes room for a new one when it is full. A full disk loses lines, never the mesh."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        self._size = self._file.tell()

    def write(self, text: str) -> None:
        data = text.encode(errors="replace")
        with contextlib.suppress(OSError):
            if self._size + len(data) > MAX_FILE_BYTES:
                self._rotate()
            self._file.write(data)
            self._size += len(data)

    def close(self) -> None:
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        self._size = 0
