"""What the steps of a task have come to, for those who look: events on the task's stream, completed by the slots."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec

from agentmesh.errors import BrokerError
from agentmesh.ids import now
from agentmesh.streams import STREAM, StreamEvent, StreamWriter, decode_events
from agentmesh.subjects import Subjects
from agentmesh.tasks import slot
from agentmesh.tasks.wire import ResultBody
from agentmesh.transport import Transport

log = logging.getLogger("agentmesh.tasks")

STEP = "step"
"""Type of the events."""

_FLUSH = 1.0
"""Seconds that the end of a handler waits for the last events."""

_PERIOD = 0.1
"""Seconds in which what happens is put together into one message: a step may be over in less time than it takes to
store that it began."""

_PAGE = 500


class StepNote(msgspec.Struct, omit_defaults=True):
    """Content of an event: a step has begun, or has come to its end."""

    name: str
    kind: str = "step"
    state: str = "running"
    id: str = ""
    task_type: str = ""
    error: str = ""
    until: datetime | None = None
    total: int = 0
    failed: int = 0
    at: datetime | None = None


@dataclass(frozen=True)
class Step:
    """A step of a workflow."""

    name: str
    kind: str
    """`step`, `run`, `map`, `sleep`, `signal`, `race`, `saga` or `undo`."""
    state: str
    """`running`, or how it was decided."""
    id: str = ""
    """Of its slot; of the child task, for `run`."""
    task_type: str = ""
    """Of the child, or the children."""
    began_at: datetime | None = None
    ended_at: datetime | None = None
    error: str = ""
    until: datetime | None = None
    """When a sleep or the wait for a signal ends."""
    total: int = 0
    """Items of a `map`."""
    failed: int = 0
    """Those of them that did not complete."""
    attempt: int = 0
    """Attempt of the task in which it was begun."""


class Teller:
    """Writes what happens to the steps of a task to the task's stream, a few times a second and beside everything else.

    What gets lost when the process dies is told by the next run, which passes those steps.
    """

    def __init__(self, transport: Transport, subjects: Subjects, task_id: str, attempt: int) -> None:
        self._transport = transport
        self._subjects = subjects
        self._task_id = task_id
        self._writer = StreamWriter(transport, subjects, task_id, attempt=attempt)
        self._waiting: list[StepNote] = []
        self._timer: asyncio.TimerHandle | None = None
        self._known: set[str] | None = None
        """Steps whose end was told in earlier runs; None until that has been read."""

    def tell(self, name: str, kind: str, state: str, id: str, **more: Any) -> None:
        """Note it; it is stored in the background."""
        self._waiting.append(StepNote(name, kind, state, id, at=now(), **more))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PERIOD, self._write)

    async def passed(self, name: str, kind: str, body: ResultBody, **more: Any) -> None:
        """A step has an outcome from an earlier run; told if that run did not live to tell."""
        if self._known is None:
            try:
                told = await _told(self._transport, self._subjects, self._task_id)
            except BrokerError as error:
                log.debug("what was told of the steps is not known: %s", error)
                return
            self._known = {step.name for step in told.values() if step.state != "running"}
        if name not in self._known:
            self._known.add(name)
            self.tell(name, kind, body.status, body.task_id, error=body.reason, **more)

    def _write(self) -> None:
        self._timer = None
        notes, self._waiting = self._waiting, []
        try:
            for note in notes:
                self._writer.add(STEP, msgspec.Raw(msgspec.json.encode(note)))
        except BrokerError as error:
            log.debug("what happens to steps is not told: %s", error)

    async def flush(self) -> None:
        """Wait a moment for the last of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._write()
        try:
            async with asyncio.timeout(_FLUSH):
                await self._writer.flush()
        except (BrokerError, TimeoutError) as error:
            log.debug("the last steps are not told: %s", error)


_read_note = msgspec.json.Decoder(StepNote).decode


def step_of(event: StreamEvent) -> Step | None:
    """The step an event of a task's stream is about; None if it is about something else."""
    if event.type != STEP:
        return None
    try:
        note = _read_note(event.content)
        at = note.at or msgspec.convert(event.timestamp, datetime | None)
    except msgspec.MsgspecError:
        return None
    began, ended = (at, None) if note.state == "running" else (None, at)
    return Step(
        note.name,
        note.kind,
        note.state,
        id=note.id,
        task_type=note.task_type,
        began_at=began,
        ended_at=ended,
        error=note.error,
        until=note.until,
        total=note.total,
        failed=note.failed,
        attempt=event.attempt,
    )


async def steps(transport: Transport, subjects: Subjects, task_id: str) -> list[Step]:
    """The steps of a task, in the order in which they were first begun."""
    found = await _told(transport, subjects, task_id)
    return [await _completed(transport, subjects, step) for step in found.values()]


async def _told(transport: Transport, subjects: Subjects, task_id: str) -> dict[str, Step]:
    found: dict[str, Step] = {}
    start = 1
    while True:
        page = await transport.messages(STREAM, subjects.stream(task_id), start=start, limit=_PAGE)
        for stored in page:
            start = stored.sequence + 1
            for event in decode_events(stored.data, stored.sequence):
                step = step_of(event)
                if step is not None:
                    found[step.name] = _merged(found.get(step.name), step)
        if len(page) < _PAGE:
            return found


def _merged(before: Step | None, step: Step) -> Step:
    if before is None:
        return step
    if step.state == "running":
        return before if before.state != "running" else replace(step, began_at=before.began_at, attempt=before.attempt)
    return replace(step, began_at=before.began_at, attempt=before.attempt, until=step.until or before.until)


async def _completed(transport: Transport, subjects: Subjects, step: Step) -> Step:
    """The end of a step may not have been told: its process died between the two."""
    if step.state != "running" or not step.id or step.kind == "sleep":
        return step
    body = await slot.read(transport, subjects, step.id)
    if body is None:
        return step
    at = msgspec.convert(body.timestamp, datetime | None, strict=False)
    return replace(step, state=body.status, error=body.reason if body.status != "completed" else "", ended_at=at)
