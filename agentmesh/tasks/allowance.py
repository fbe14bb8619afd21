"""What is kept of a limit, and what can be done with it. No clock of this process decides anything here.

A record holds who runs (`holders`) or who started within the last period (`starts`). Operations change it; `Records`
stores the change if nobody else was faster, and repeats it otherwise. So every operation can be applied to any record,
and again to the same one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping

import msgspec

_PARTS = 256
"""A period is counted in that many parts, so that a record stays small at any rate."""


class Holder(msgspec.Struct, omit_defaults=True):
    """A task that runs."""

    task_id: str
    worker: str = ""
    """The node."""
    ttl: float = 10.0
    """Seconds without a beat until it counts as gone."""
    beat: int = 0
    """Grows as long as its worker lives."""


class Record(msgspec.Struct, omit_defaults=True):
    """The use of one limit by one value of its key."""

    key: str = ""
    allowed: int = 0
    """As the last one said who changed it."""
    period: float = 0.0
    """0: it counts those that run."""
    holders: dict[str, Holder] = {}
    """By attempt."""
    starts: list[tuple[float, int]] = []
    """(time, tasks that started until then): broker time, ascending."""

    def started(self, now: float) -> int:
        """Starts that count at the broker's time `now`."""
        return sum(count for time, count in self.starts if time + self.period > now)


_decode = msgspec.json.Decoder(Record).decode
encode = msgspec.json.Encoder().encode


def decode(data: bytes | None) -> Record:
    """The record in `data`; an empty one if there is none, or none that can be read."""
    try:
        return Record() if data is None else _decode(data)
    except msgspec.MsgspecError:
        return Record()


class Operation(ABC):
    """Something to do with a record."""

    refused = False
    """What is known may be outdated: look again before that is the answer."""

    @abstractmethod
    def apply(self, record: Record, gone: Collection[str]) -> bool:
        """Change the record; whether there is anything to store. `gone`: holders whose workers are gone."""


class TakeSlot(Operation):
    """Become a holder, if there are fewer than `allowed`."""

    def __init__(self, attempt: str, holder: Holder, allowed: int, key: str) -> None:
        self.attempt, self.holder, self.allowed, self.key = attempt, holder, allowed, key

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        self.refused = False
        if self.attempt in record.holders:  # stored before, its confirmation got lost
            return False
        for attempt in gone:
            record.holders.pop(attempt, None)
        if len(record.holders) >= self.allowed:
            self.refused = True
            return False
        record.holders[self.attempt] = self.holder
        record.allowed, record.key = self.allowed, self.key
        return True


class Beat(Operation):
    """Give a sign of life. A holder that was thought gone is one again, also beyond what is allowed: it does run."""

    def __init__(self, holders: Mapping[str, Holder]) -> None:
        self.holders = holders

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        for attempt, holder in self.holders.items():
            known = record.holders.setdefault(attempt, msgspec.structs.replace(holder))
            known.beat += 1
        return bool(self.holders)


class FreeSlot(Operation):
    """Cease to be a holder."""

    def __init__(self, attempt: str) -> None:
        self.attempt = attempt
        self.made_room = False

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        if self.attempt not in record.holders:
            return False
        self.made_room = len(record.holders) >= record.allowed
        del record.holders[self.attempt]
        return True


class TakeStart(Operation):
    """Have one start counted, if fewer than `allowed` did within the last period.

    A start is counted for the latest moment at which it may happen, `counted_at`, and until its period has passed
    since then at the earliest. So within any period there are never more, whoever counts.

    Args:
        times: The broker's time now: at the earliest, and at the latest.
        slack: Seconds that may pass until the start.
        allowed: Starts in a period.
        period: Seconds.
        key: Of whom.
    """

    def __init__(
        self, times: Callable[[], tuple[float, float]], slack: float, allowed: int, period: float, key: str
    ) -> None:
        self.times, self.slack, self.allowed, self.period, self.key = times, slack, allowed, period, key
        self.wait = 0.0
        """When refused: seconds until one may start."""
        self.counted_at = 0.0

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        self.refused = False
        now, latest = self.times()
        record.allowed, record.period, record.key = self.allowed, self.period, self.key
        record.starts = [(time, count) for time, count in record.starts if time + self.period > now]
        used = sum(count for _, count in record.starts)
        if used >= self.allowed:
            self.refused = True
            self.wait = max(0.0, self._until_room(record, used) - now)
            return False
        self._count(record.starts, latest + self.slack)
        return True

    def _count(self, starts: list[tuple[float, int]], by: float) -> None:
        """Add it to the last part of a period, or begin a new one; a part counts as long as its last start does."""
        last, count = starts[-1] if starts else (0.0, 0)
        self.counted_at = max(last, by)
        part = self.period / _PARTS
        if count and (int(last / part) == int(self.counted_at / part)):
            starts[-1] = (self.counted_at, count + 1)
        else:
            starts.append((self.counted_at, 1))

    def _until_room(self, record: Record, used: int) -> float:
        for time, count in record.starts:
            used -= count
            if used < self.allowed:
                return time + self.period
        return 0.0


class GiveBackStart(Operation):
    """What was counted did not start after all."""

    def __init__(self, counted_at: float) -> None:
        self.counted_at = counted_at

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        for index, (time, count) in enumerate(record.starts):
            if time >= self.counted_at:  # others may have been counted in the same part since
                record.starts[index : index + 1] = [(time, count - 1)] if count > 1 else []
                return True
        return False
