"""Where tasks stand: decided ones from their slots, others from the queue and from the workers themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec

from agentmesh.errors import DeliveryError, InvalidMessageError, NoSuchTaskError
from agentmesh.subjects import Subjects
from agentmesh.tasks import history, slot
from agentmesh.tasks.layout import RESULTS, TASKS
from agentmesh.tasks.schedules import Schedules
from agentmesh.tasks.wire import Failure, ResultBody, ScheduleBody, decode_result, decode_task
from agentmesh.tasks.worker import WHERE, Running, WhereQuery
from agentmesh.transport import StoredMessage, Transport
from agentmesh.when import When

UNDECIDED = ("scheduled", "waiting", "running")

_PAGE = 500
_WHERE_TIMEOUT = 0.3
_WHERE_SILENCE = 0.1

_encode = msgspec.json.Encoder().encode
_read_running = msgspec.json.Decoder(list[Running]).decode


@dataclass(frozen=True)
class TaskStatus:
    """Where a task stands."""

    task_id: str
    state: str
    """`scheduled` (not due yet), `waiting`, `running`, `completed`, `failed`, `cancelled`, `expired` or `dead`."""
    task_type: str = ""
    agent_id: str = ""
    """Empty while it waits for the dispatcher."""
    priority: str = ""
    """Known while it is undecided."""
    attempt: int = 0
    """The running attempt, or the last one."""
    worker: str = ""
    """The node of that attempt."""
    seconds: float | None = None
    """How long the attempt has been running."""
    submitted_at: datetime | None = None
    decided_at: datetime | None = None
    due_at: datetime | None = None
    """When it will be put into its queue, while it is `scheduled`."""
    deadline: datetime | None = None
    reason: str = ""
    """Why it did not complete, or why its last attempt failed."""
    result: Any = None
    """As plain data, when it completed."""

    @property
    def is_decided(self) -> bool:
        return self.state not in UNDECIDED


class Statuses:
    """Looks at the tasks of a tenant."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._schedules = Schedules(transport, subjects)

    async def get(self, task_id: str, sequence: int = 0) -> TaskStatus:
        """One task.

        Args:
            task_id: Which.
            sequence: Where it waits in the TASKS stream, if that is known: saves reading the whole queue.

        Raises:
            NoSuchTaskError: No such task waits or was decided within the last 7 days.
        """
        decided = await slot.read(self._transport, self._subjects, task_id)
        if decided is not None:
            return _decided(decided)
        running = {entry.task_id: entry for entry in await self.where(task_id)}
        queued = await self._queued(task_id, sequence)
        if queued is None:
            if delayed := await self._schedules.delayed(task_id):
                return _scheduled(delayed[0])
            if due := [body for body in await self._schedules.due() if body.task_id == task_id]:
                return replace(_scheduled(due[0]), state="waiting", due_at=None)
            decided = await slot.read(self._transport, self._subjects, task_id)  # it was decided while we looked
            if decided is None:
                raise NoSuchTaskError(task_id)
            return _decided(decided)
        past = (await history.read(self._transport, self._subjects, task_id)).failures
        return _undecided(queued, running, past[-1] if past else None)

    async def ls(self, state: str = "", limit: int = 100) -> list[TaskStatus]:
        """Up to `limit` tasks in `state` (empty: any): undecided, oldest first, then decided, newest first."""
        found: list[TaskStatus] = []
        if state in ("", "waiting", "running"):
            found = [status for status in await self._all_undecided(limit) if state in ("", status.state)][:limit]
        if state in ("", "scheduled") and len(found) < limit:
            found += list(map(_scheduled, await self._schedules.delayed()))[: limit - len(found)]
        if state not in UNDECIDED and len(found) < limit:
            found += await self._newest_decided(state, limit - len(found))
        return found

    async def where(self, task_id: str = "") -> list[Running]:
        """Tasks whose handlers run now; all, or only that one. Workers that do not answer at once are left out."""
        subject = self._subjects.control(WHERE)
        question = _encode(WhereQuery(task_id))
        if task_id:
            try:
                replies = [await self._transport.request(subject, question, timeout=_WHERE_TIMEOUT)]
            except DeliveryError:
                return []
        else:
            replies = await self._transport.request_many(
                subject, question, timeout=3 * _WHERE_TIMEOUT, stall=_WHERE_SILENCE
            )
        return [entry for reply in replies for entry in _running(reply.data)]

    async def _queued(self, task_id: str, sequence: int) -> StoredMessage | None:
        if sequence:
            stored = await self._transport.get_message(TASKS, sequence)
            if stored is not None and _task_id(stored) == task_id:
                return stored
        async for stored in self._queue():
            if _task_id(stored) == task_id:
                return stored
        return None

    async def _queue(self) -> AsyncIterator[StoredMessage]:
        for pattern in self._subjects.all_tasks():
            start, full = 1, True
            while full:
                batch = await self._transport.messages(TASKS, pattern, start=start, limit=_PAGE)
                full = len(batch) == _PAGE
                for stored in batch:
                    start = stored.sequence + 1
                    yield stored

    async def _all_undecided(self, limit: int) -> list[TaskStatus]:
        running = {entry.task_id: entry for entry in await self.where()}
        found = []
        async for stored in self._queue():
            found.append(_undecided(stored, running))
            if len(found) >= limit:
                break
        return found

    async def _newest_decided(self, state: str, limit: int) -> list[TaskStatus]:
        """Pages of the RESULTS stream from its end backwards, until there are enough."""
        info = await self._transport.stream_info(RESULTS)
        found: list[TaskStatus] = []
        if info is None:
            return found
        pattern, end = self._subjects.all_results(), info.last_sequence
        while end >= max(1, info.first_sequence) and len(found) < limit:
            start = max(1, end - _PAGE + 1)
            page = await self._transport.messages(RESULTS, pattern, start=start, limit=end - start + 1)
            bodies = [
                decode_result(stored.data, stored.subject.rpartition(".")[2])
                for stored in page
                if stored.sequence <= end
            ]
            found += [_decided(body) for body in reversed(bodies) if not body.step and state in ("", body.status)]
            end = start - 1
        return found[:limit]


def _task_id(stored: StoredMessage) -> str:
    try:
        return decode_task(stored.data).task_id or f"door-{stored.sequence}"
    except InvalidMessageError:
        return f"bad-{stored.sequence}"


def _undecided(stored: StoredMessage, running: dict[str, Running], last: Failure | None = None) -> TaskStatus:
    task_id = _task_id(stored)
    at_work = running.get(task_id)
    state = "waiting" if at_work is None else "running"
    try:
        body = decode_task(stored.data)
    except InvalidMessageError as error:
        return TaskStatus(task_id, state, submitted_at=stored.time, reason=str(error))
    return TaskStatus(
        task_id,
        state,
        task_type=body.task_type,
        agent_id=body.agent_id or "",
        priority=body.lane(),
        attempt=at_work.attempt if at_work else last.attempt if last else 0,
        worker=at_work.worker if at_work else "",
        seconds=at_work.seconds if at_work else None,
        submitted_at=stored.time,
        deadline=body.deadline,
        reason=f"{last.error_type}: {last.message}" if last else "",
    )


def _scheduled(body: ScheduleBody) -> TaskStatus:
    return TaskStatus(
        body.task_id,
        "scheduled",
        task_type=body.task_type,
        agent_id=body.agent_id or "",
        priority=body.lane(),
        submitted_at=_time(body.timestamp),
        due_at=When(body.when).at,
        deadline=body.deadline,
        reason="paused" if body.paused else "",
    )


def _decided(body: ResultBody) -> TaskStatus:
    return TaskStatus(
        body.task_id,
        body.status,
        task_type=body.task_type,
        agent_id=body.agent_id,
        attempt=body.attempt,
        worker=body.worker,
        decided_at=_time(body.timestamp),
        reason=body.reason,
        result=msgspec.json.decode(body.result) if body.status == "completed" else None,
    )


def _time(stamp: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(stamp) if isinstance(stamp, str) else None
    except ValueError:
        return None


def _running(data: bytes) -> list[Running]:
    try:
        return _read_running(data)
    except msgspec.MsgspecError:
        return []  # somebody else's answer
