"""When a schedule fires: what may be asked for, as the broker wants to hear it, and when that will be.

The broker does the scheduling and has the last word on cron expressions and time zones. Here only that is refused
which could not be a value at all, or would mean something else to the broker than to whoever wrote it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from agentmesh.errors import InvalidScheduleError, MissingExtraError
from agentmesh.ids import now

SHORTEST = 1.0
"""Seconds between two firings, at least."""

FARTHEST = 10 * 366 * 86_400.0
"""Seconds that a delay or an interval may have; the broker counts nanoseconds, and its count ends one day."""

NAMED = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
"""Cron expressions with a name."""

LONGEST_ID = 44
"""Characters in the id of a repeating schedule: the time of the firing is added to make the ids of its tasks."""

_EVERY = re.compile(r"@every ([1-9][0-9]{0,8})s")
_CRON_FIELDS = re.compile(r"[0-9A-Za-z*/,?-]+(?: [0-9A-Za-z*/,?-]+)*")
_TIME_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+/-]{0,63}")


@dataclass(frozen=True)
class When:
    """A moment, an interval or a cron expression, checked."""

    pattern: str
    """The broker's form: `@at 2026-11-21T09:00:00Z`, `@every 60s`, or six cron fields, seconds first."""
    time_zone: str = ""
    """Of a cron expression; empty: UTC."""

    @property
    def at(self) -> datetime | None:
        """The moment, if it is one that can be read."""
        if not self.pattern.startswith("@at "):
            return None
        try:
            moment = datetime.fromisoformat(self.pattern.removeprefix("@at "))
        except ValueError:
            return None
        return moment if moment.tzinfo is not None else None

    @property
    def every(self) -> int | None:
        """The interval in seconds, if it is one of ours; the broker knows more ways to write it."""
        found = _EVERY.fullmatch(self.pattern)
        return int(found[1]) if found is not None else None

    @property
    def repeats(self) -> bool:
        return not self.pattern.startswith("@at ")

    def __str__(self) -> str:
        return f"{self.pattern} ({self.time_zone})" if self.time_zone else self.pattern

    def headers(self, target: str) -> dict[str, str]:
        """What makes a message a schedule that fires on the subject `target`."""
        headers = {"Nats-Schedule": self.pattern, "Nats-Schedule-Target": target}
        return {**headers, "Nats-Schedule-Time-Zone": self.time_zone} if self.time_zone else headers

    def next_runs(self, count: int, since: datetime) -> list[datetime]:
        """The next `count` firings, aware, UTC; fewer if there are no more, or they cannot be told.

        For cron they are calculated here, by `cronsim`; in the night in which clocks change the broker may see it
        differently. After an outage of the broker an interval begins anew.

        Args:
            count: How many.
            since: When the schedule was stored, from which intervals are counted.

        Raises:
            MissingExtraError: It is a cron expression, and `cronsim` is not installed.
        """
        if (moment := self.at) is not None:
            return [moment][:count]
        if (every := self.every) is not None:
            # The broker rounds to whole seconds, then adds the interval to the last firing.
            start = (since + timedelta(seconds=0.5)).replace(microsecond=0)
            first = max(1, (now() - start) // timedelta(seconds=every) + 1)
            return [start + timedelta(seconds=every * number) for number in range(first, first + count)]
        if self.pattern.startswith("@") and self.pattern not in NAMED:
            return []
        return self._cron_runs(count)

    def _cron_runs(self, count: int) -> list[datetime]:
        try:
            from cronsim import CronSim, CronSimError
        except ImportError:
            raise MissingExtraError("cronsim", "cron") from None
        try:
            zone = ZoneInfo(self.time_zone or "UTC")
            runs = CronSim(_SPELLED_OUT.get(self.pattern, self.pattern), now().astimezone(zone))
            return [run.astimezone(UTC) for run in islice(runs, count)]
        except (CronSimError, ValueError, OSError, KeyError):  # what only the broker understands, or a zone only it has
            return []


_SPELLED_OUT = {
    "@hourly": "0 0 * * * *",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@weekly": "0 0 0 * * 0",
    "@monthly": "0 0 0 1 * *",
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
}


def once(delay: float | None = None, at: datetime | None = None) -> When:
    """A moment: in `delay` seconds, or `at` a time, which must be aware.

    Raises:
        InvalidScheduleError: Both or neither, in the past, without a time zone, or more than ten years away.
    """
    if (delay is None) == (at is None):
        raise InvalidScheduleError("when", f"delay={delay}, at={at}", "give either delay or at")
    if delay is not None:
        if not 0 <= delay <= FARTHEST:  # not a number is neither
            raise InvalidScheduleError("delay", f"{delay:g}", "expected 0 or more seconds, up to ten years")
        return _moment(now() + timedelta(seconds=delay))
    assert at is not None
    if at.tzinfo is None:
        raise InvalidScheduleError("at", at.isoformat(), "has no time zone; use datetime.now(UTC) and the like")
    if at <= now():
        raise InvalidScheduleError("at", at.isoformat(), "is in the past")
    if (at - now()).total_seconds() > FARTHEST:
        raise InvalidScheduleError("at", at.isoformat(), "is more than ten years away")
    return _moment(at)


def check_deadline(deadline: float | None) -> None:
    """Whether firings can have such a deadline.

    Raises:
        InvalidScheduleError: They cannot.
    """
    if deadline is not None and not 0 < deadline <= FARTHEST:
        raise InvalidScheduleError("deadline", f"{deadline:g}", "expected more than 0 seconds, up to ten years")


def check_id(schedule_id: str) -> str:
    """The id of a repeating schedule, if it is short enough.

    Raises:
        InvalidScheduleError: It is not.
    """
    if len(schedule_id) > LONGEST_ID:
        raise InvalidScheduleError("schedule_id", schedule_id, f"expected up to {LONGEST_ID} characters")
    return schedule_id


def _moment(at: datetime) -> When:
    return When(f"@at {at.astimezone(UTC).isoformat().replace('+00:00', 'Z')}")


def repeating(every: float | None = None, cron: str | None = None, tz: str | None = None) -> When:
    """An interval of `every` whole seconds, or a `cron` expression in the time zone `tz`.

    Raises:
        InvalidScheduleError: Both or neither, or one of them cannot be. That a field is out of its range, or a time
            zone unknown, only the broker says.
    """
    if (every is None) == (cron is None):
        raise InvalidScheduleError("when", f"every={every}, cron={cron}", "give either every or cron")
    if every is not None:
        if tz is not None:
            raise InvalidScheduleError("tz", tz, "an interval has no time zone; it belongs to cron")
        return _interval(every)
    assert cron is not None
    if tz is not None and _TIME_ZONE.fullmatch(tz) is None:
        raise InvalidScheduleError("tz", tz, "expected a name such as Europe/Berlin or UTC")
    return When(_cron(cron), tz or "")


def _interval(every: float) -> When:
    if not SHORTEST <= every <= FARTHEST:
        raise InvalidScheduleError("every", f"{every:g}", "expected 1 or more seconds, up to ten years")
    if every != int(every):
        raise InvalidScheduleError("every", f"{every:g}", "expected whole seconds")
    return When(f"@every {int(every)}s")


def _cron(text: str) -> str:
    if text in NAMED:
        return text
    fields = text.split()
    if len(fields) == 5:
        raise InvalidScheduleError("cron", text, f"has five fields, and seconds come first: '0 {text}'")
    if len(fields) != 6 or _CRON_FIELDS.fullmatch(" ".join(fields)) is None:
        known = ", ".join(NAMED)
        raise InvalidScheduleError(
            "cron", text, f"expected six fields (second minute hour day month weekday), or one of {known}"
        )
    return " ".join(fields)
