"""Delayed and repeating tasks: the broker keeps the definitions and fires them, whoever else is down.

A schedule is one message on `ai.agent.sched.T.<schedule_id>`. When it is due the broker stores a copy on
`ai.agent.due.T`, from where the mover (`mover`) takes it into the queue of its agent. A paused schedule is the same
message without the headers that make it fire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from agentmesh.errors import (
    DuplicateScheduleError,
    InvalidMessageError,
    InvalidScheduleError,
    JetStreamError,
    NoSuchScheduleError,
    PayloadTooLargeError,
    SequenceConflictError,
)
from agentmesh.ids import new_id
from agentmesh.registry import near_misses
from agentmesh.subjects import Subjects, token
from agentmesh.tasks import slot
from agentmesh.tasks.layout import MAX_BODY, SCHED, SCHEDULES, ensure
from agentmesh.tasks.wire import ResultBody, ScheduleBody, TaskBody, decode_schedule, encode
from agentmesh.transport import PubAck, StoredMessage, Transport
from agentmesh.when import When, check_deadline, check_id

_PAGE = 500
_HEADERS = 512
"""Bytes kept free for the headers of a schedule."""
_PATTERN_INVALID, _TIME_ZONE_INVALID = 10189, 10223
_TRIES = 10
"""How often a change is made again that somebody else's change came before."""


@dataclass(frozen=True)
class ScheduleInfo:
    """A schedule as it was when it was read."""

    id: str
    when: When
    paused: bool
    task_type: str
    parameters: Any
    """As plain data."""
    agent_id: str
    """Empty: one that takes the type is found when it is due."""
    priority: str
    deadline: float | None
    """Seconds after each firing at which the task expires."""
    stored_at: datetime
    """When it was made, or changed last; intervals are counted from here."""
    created_by: str
    origin: str
    """Who keeps it up to date, such as `up hello`: a change made elsewhere lasts until that looks again."""

    @property
    def repeats(self) -> bool:
        return self.when.repeats

    def next_runs(self, count: int = 5) -> list[datetime]:
        """When it fires next, aware, UTC; none while it is paused. See `When.next_runs`.

        Raises:
            MissingExtraError: It is a cron expression, and `cronsim` is not installed.
        """
        return [] if self.paused else self.when.next_runs(count, self.stored_at)


class Schedule:
    """A handle on a schedule. Its id is all that is needed: `mesh.schedules` does the same by id, in any process."""

    def __init__(self, schedules: Schedules, info: ScheduleInfo) -> None:
        self.id = info.id
        self.info = info
        """What it was when this handle was made or used last."""
        self._schedules = schedules

    def __repr__(self) -> str:
        return f"Schedule({self.id!r}, {str(self.info.when)!r}{', paused' if self.info.paused else ''})"

    async def pause(self) -> None:
        """See `Schedules.pause`."""
        self.info = (await self._schedules.pause(self.id)).info

    async def resume(self) -> None:
        """See `Schedules.resume`."""
        self.info = (await self._schedules.resume(self.id)).info

    async def remove(self) -> None:
        """See `Schedules.remove`."""
        await self._schedules.remove(self.id)

    def next_runs(self, count: int = 5) -> list[datetime]:
        """See `ScheduleInfo.next_runs`."""
        return self.info.next_runs(count)


class Schedules:
    """The schedules of a tenant."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._made = False

    # ------------------------------------------------------------ making

    async def add(
        self, body: TaskBody, when: When, schedule_id: str, *, deadline: float | None, replace: bool, origin: str = ""
    ) -> Schedule:
        """Store a repeating schedule; once more with the same definition changes nothing.

        Args:
            body: The task; its id and its place in a call tree are left out, each firing gets an id of its own.
            when: When it fires.
            schedule_id: Its id; empty: a new one.
            deadline: Seconds after each firing.
            replace: Change a schedule of that id; a paused one stays paused.
            origin: Who keeps it up to date.

        Raises:
            DuplicateScheduleError: There is another one of that id, and `replace` is false or it is a delayed task.
            InvalidScheduleError: The broker takes no such expression or time zone, or the id is too long.
        """
        schedule_id = token("schedule id", schedule_id or new_id())
        check_id(schedule_id)
        check_deadline(deadline)
        wanted = ScheduleBody(
            agent_id=body.agent_id,
            task_type=body.task_type,
            parameters=body.parameters,
            priority=body.priority,
            timestamp=body.timestamp,
            schema_version=body.schema_version,
            tenant_id=body.tenant_id,
            source_agent_id=body.source_agent_id,
            schedule_id=schedule_id,
            when=when.pattern,
            time_zone=when.time_zone,
            deadline_after=deadline,
            origin=origin,
        )
        await ensure(self._transport, SCHEDULES)
        for attempt in range(_TRIES):
            found = await self._find(schedule_id)
            known = _readable(found)
            if known is not None and _same(known, wanted):
                assert found is not None
                return self._handle(known, found.time)
            if found is not None and (not replace or (known is not None and known.task_id)):
                raise DuplicateScheduleError(schedule_id)
            wanted.paused = known is not None and known.paused
            try:
                await self._store(wanted, found.sequence if found else 0)
            except SequenceConflictError:
                if attempt + 1 == _TRIES:
                    raise
                continue
            return await self.get(schedule_id)
        raise AssertionError("unreachable: the last try returned or raised")

    async def delay(self, body: TaskBody, when: When) -> PubAck | None:
        """Store a task that is due once, under its own id. One of that id stays as it is; then there is no answer.

        Raises:
            DuplicateScheduleError: Not stored: there is a repeating schedule of that id.
            PublishTimeoutError: Unknown, no confirmation within 30 s; do it again with the same id.
            PayloadTooLargeError: Not stored.
        """
        await ensure(self._transport, SCHEDULES)
        try:
            return await self._store(delayed(body, when), 0)
        except SequenceConflictError:
            found = await self._find(body.task_id)
            if found is not None and not _is_once(found):
                raise DuplicateScheduleError(body.task_id) from None
            return None

    async def _store(self, body: ScheduleBody, expect_last: int) -> PubAck:
        if body.agent_id is not None:
            self._subjects.tasks(body.agent_id, body.priority)  # wrong names are refused now, not when it is due
        data = encode(body)
        if len(data) > MAX_BODY - _HEADERS:
            raise PayloadTooLargeError(len(data), MAX_BODY - _HEADERS)
        try:
            return await self._transport.publish_durable(
                self._subjects.schedule(body.schedule_id),
                data,
                msg_id=new_id(),
                headers=headers(self._subjects, body),
                expect_last=expect_last,
            )
        except JetStreamError as error:
            if error.code == _PATTERN_INVALID:
                problem = "the broker takes no such expression, or it never comes true"
                raise InvalidScheduleError("cron", body.when, problem) from error
            if error.code == _TIME_ZONE_INVALID:
                problem = "the broker knows no such time zone (does its host have tzdata?)"
                raise InvalidScheduleError("tz", body.time_zone, problem) from error
            raise

    # ------------------------------------------------------------ looking

    async def get(self, schedule_id: str) -> Schedule:
        """One schedule.

        Raises:
            NoSuchScheduleError: There is none of that id.
        """
        found, body = await self._known(schedule_id)
        return self._handle(body, found.time)

    async def ls(self, kind: Literal["all", "repeating", "once"] = "all", limit: int = 1000) -> list[ScheduleInfo]:
        """Up to `limit` schedules, those made or changed first coming first; `once` are the delayed tasks."""
        infos: list[ScheduleInfo] = []
        async for body, stored in self._all(self._subjects.all_schedules()):
            info = _info(body, stored.time)
            if kind == "all" or info.repeats == (kind == "repeating"):
                infos.append(info)
                if len(infos) >= limit:
                    break
        return infos

    async def delayed(self, task_id: str = "") -> list[ScheduleBody]:
        """The tasks that are due once and are not yet; all, or only that one."""
        if not await self.exists():
            return []
        if task_id:
            body = _readable(await self._find(task_id))
            return [body] if body is not None and body.task_id else []
        return [body async for body, _ in self._all(self._subjects.all_schedules()) if body.task_id]

    async def due(self) -> list[ScheduleBody]:
        """The tasks that are due once, are due now, and have not been moved into their queues."""
        return [body async for body, _ in self._all(self._subjects.due()) if body.task_id]

    async def _all(self, pattern: str) -> AsyncIterator[tuple[ScheduleBody, StoredMessage]]:
        if not await self.exists():
            return
        start, full = 1, True
        while full:
            page = await self._transport.messages(SCHED, pattern, start=start, limit=_PAGE)
            full = len(page) == _PAGE
            for stored in page:
                start = stored.sequence + 1
                body = _readable(stored)
                if body is not None:
                    yield body, stored

    # ------------------------------------------------------------ changing

    async def pause(self, schedule_id: str) -> Schedule:
        """Keep it and fire nothing, until it is resumed; what it fired before is not taken back.

        Raises:
            NoSuchScheduleError: There is none of that id.
        """
        return await self._switch(schedule_id, paused=True)

    async def resume(self, schedule_id: str) -> Schedule:
        """Go on. What would have been due in between is left out; a delayed task that is overdue is due at once.

        Raises:
            NoSuchScheduleError: There is none of that id.
        """
        return await self._switch(schedule_id, paused=False)

    async def remove(self, schedule_id: str) -> None:
        """Forget it; what it fired before is not taken back. A delayed task is cancelled by this.

        Raises:
            NoSuchScheduleError: There is none of that id.
        """
        _, body = await self._known(schedule_id)
        if body.task_id:
            verdict = ResultBody(body.task_id, "cancelled", by=f"cancel:{new_id()}", reason="its schedule was removed")
            await slot.decide(self._transport, self._subjects, verdict)
        await self.drop(schedule_id)

    async def drop(self, schedule_id: str) -> None:
        """Remove what is there under that id, if anything is; decides nothing."""
        if await self.exists():
            await self._transport.purge(SCHED, self._subjects.schedule(schedule_id))

    async def drop_delayed(self, task_id: str) -> None:
        """Remove the delayed task of that id, if it is not due yet; decides nothing."""
        if await self.exists() and (found := await self._find(task_id)) is not None and _is_once(found):
            await self._transport.purge(SCHED, self._subjects.schedule(task_id))

    async def _switch(self, schedule_id: str, *, paused: bool) -> Schedule:
        for attempt in range(_TRIES):
            found, body = await self._known(schedule_id)
            if body.paused == paused:
                return self._handle(body, found.time)
            body.paused = paused
            try:
                await self._store(body, found.sequence)
            except SequenceConflictError:
                if attempt + 1 == _TRIES:
                    raise
        raise AssertionError("unreachable: the last try returned or raised")

    # ------------------------------------------------------------ parts

    async def exists(self) -> bool:
        """Whether anybody has ever scheduled anything. A stream that is not there must not be read: we would wait."""
        self._made = self._made or await self._transport.stream_info(SCHED) is not None
        return self._made

    async def _find(self, schedule_id: str) -> StoredMessage | None:
        return await self._transport.last_message(SCHED, self._subjects.schedule(schedule_id))

    async def _known(self, schedule_id: str) -> tuple[StoredMessage, ScheduleBody]:
        await ensure(self._transport, SCHEDULES)
        found = await self._find(schedule_id)
        body = _readable(found)
        if found is None or body is None:
            raise NoSuchScheduleError(schedule_id, near_misses(schedule_id, [info.id for info in await self.ls()]))
        return found, body

    def _handle(self, body: ScheduleBody, stored_at: datetime) -> Schedule:
        return Schedule(self, _info(body, stored_at))


def delayed(body: TaskBody, when: When) -> ScheduleBody:
    """The definition of a task that is due once."""
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    return ScheduleBody(**fields, schedule_id=body.task_id, when=when.pattern)


def headers(subjects: Subjects, body: ScheduleBody) -> dict[str, str]:
    """Those that make a definition fire, or keep a paused one from it; either replaces what was there."""
    if body.paused:
        return {"Nats-Rollup": "sub"}
    return When(body.when, body.time_zone).headers(subjects.due())


def _readable(stored: StoredMessage | None) -> ScheduleBody | None:
    """The definition, None if there is none, or something else in its place."""
    try:
        return decode_schedule(stored.data) if stored is not None else None
    except InvalidMessageError:
        return None


def _is_once(stored: StoredMessage) -> bool:
    """Whether it is a delayed task, and no repeating schedule."""
    body = _readable(stored)
    return body is not None and bool(body.task_id)


_IDENTITY = ("agent_id", "task_type", "priority", "when", "time_zone", "deadline_after", "origin", "task_id")


def _same(known: ScheduleBody, wanted: ScheduleBody) -> bool:
    """Whether both do the same; who made them, and whether one is paused, does not matter."""
    if any(getattr(known, name) != getattr(wanted, name) for name in _IDENTITY):
        return False
    return bool(msgspec.json.decode(known.parameters) == msgspec.json.decode(wanted.parameters))


def _info(body: ScheduleBody, stored_at: datetime) -> ScheduleInfo:
    return ScheduleInfo(
        body.schedule_id,
        When(body.when, body.time_zone),
        body.paused,
        body.task_type,
        msgspec.json.decode(body.parameters),
        body.agent_id or "",
        body.lane(),
        body.deadline_after,
        stored_at,
        body.source_agent_id,
        body.origin,
    )
