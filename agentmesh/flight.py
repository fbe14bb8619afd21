"""The flight recorder: which messages a process was handling when it died.

A process that is killed can tell nobody what killed it. One that was started again after such a death therefore writes
down what it handles, in a file that outlives it; its supervisor reads the file after the next death. A process that has
not died yet writes nothing, so this costs a message nothing as long as all is well.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

SLOTS, SLOT_SIZE = 32, 4_096
"""Messages handled at the same time that are recorded, and bytes of each."""

_LENGTH = struct.Struct("<I")


class FlightRecorder:
    """Writes down what is being handled.

    Args:
        path: The file; what is there is overwritten.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SLOTS * SLOT_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SLOTS * SLOT_SIZE)
        self._free = list(range(SLOTS))

    def begin(self, message: Mapping[str, Any]) -> int:
        """Note that a message is being handled; what to pass to `end`. What does not fit is not noted."""
        data = msgspec.json.encode(message)
        if not self._free or len(data) > SLOT_SIZE - _LENGTH.size:
            return -1
        slot = self._free.pop()
        start = slot * SLOT_SIZE
        self._memory[start + _LENGTH.size : start + _LENGTH.size + len(data)] = data
        _LENGTH.pack_into(self._memory, start, len(data))  # last: what is half written does not count
        return slot

    def end(self, slot: int) -> None:
        """Note that it was handled."""
        if slot >= 0:
            _LENGTH.pack_into(self._memory, slot * SLOT_SIZE, 0)
            self._free.append(slot)


def read_flight(path: Path) -> list[dict[str, Any]]:
    """What was being handled when the process that wrote the file died; empty if it wrote none. The file is removed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    path.unlink(missing_ok=True)
    found = []
    for start in range(0, len(data) - SLOT_SIZE + 1, SLOT_SIZE):
        (length,) = _LENGTH.unpack_from(data, start)
        if length:
            found.append(msgspec.json.decode(data[start + _LENGTH.size : start + _LENGTH.size + length]))
    return found
