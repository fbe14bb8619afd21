"""What every process of a run saw, one JSON object a line, in files of their own.

A line is written at once and whole, so that a process killed in the next moment leaves it behind. Times are `mono`,
the machine's monotonic clock, which all processes share and which no jump of the time of day touches, and `at`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

STALL = 0.3
"""Seconds by which an event loop must be late for it to be recorded."""

Entry = dict[str, Any]
"""One line: `kind`, `mono`, `at`, `pid`, `role`, and what the kind has beside."""


class Recorder:
    """Writes the history of this process.

    Args:
        folder: Of the run.
        role: What this process is, such as `worker-1`.
    """

    def __init__(self, folder: Path | str, role: str) -> None:
        self.role = role
        path = Path(folder) / f"{role}-{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, kind: str, **fields: Any) -> None:
        """Add a line."""
        entry = {
            "kind": kind,
            "mono": round(time.monotonic(), 4),
            "at": round(time.time(), 4),
            "pid": os.getpid(),
            "role": self.role,
            **fields,
        }
        os.write(self._file, json.dumps(entry, default=str).encode() + b"\n")


class Tail:
    """Reads what was added to a folder of histories since the last look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}

    def more(self) -> list[Entry]:
        """What is new, oldest first; a line that is not complete is left for the next look, or for ever."""
        found: list[Entry] = []
        for path in self._folder.glob("*.jsonl"):
            with open(path, "rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            complete = data[: data.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(complete)
            found += [json.loads(line) for line in complete.splitlines()]
        return sorted(found, key=lambda entry: float(entry["mono"]))


async def watch_loop(record: Recorder) -> None:
    """Record when this process did not get to run, so that what follows from it is not held against the protocol."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.1)
        late = time.monotonic() - before - 0.1
        if late > STALL:
            record.write("stalled", seconds=round(late, 3))
