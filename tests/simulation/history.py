"""What happened in one simulation, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    time: float
    kind: str
    details: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.details[key]

    def __str__(self) -> str:
        shown = " ".join(f"{key}={_short(value)}" for key, value in self.details.items())
        return f"{self.time:9.4f}  {self.kind:10} {shown}"


class History:
    """Everything that the broker, the handlers, the clients and the chaos told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, time: float, kind: str, details: dict[str, Any]) -> None:
        self.events.append(Event(time, kind, details))

    def of(self, *kinds: str) -> Iterator[Event]:
        return (event for event in self.events if event.kind in kinds)

    def digest(self) -> str:
        """Equal for equal histories."""
        known = hashlib.sha256()
        for event in self.events:
            known.update(f"{event.time!r} {event.kind} {event.details!r}\n".encode())
        return known.hexdigest()

    def __str__(self) -> str:
        return "\n".join(map(str, self.events))


def _short(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."
