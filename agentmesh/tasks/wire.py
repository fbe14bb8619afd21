"""Bodies of tasks, results and dead letters: flat JSON documents that any client can write and read.

    task     {"task_id", "agent_id", "task_type", "parameters": {…}, "priority", "timestamp", "schema_version", …}
    result   {"task_id", "status": "completed", "result": …, "attempt", "worker", "timestamp", "schema_version", …}
    schedule {"schedule_id", "when", "paused", …} and the fields of the task
    dead     {"task_id", "reason", "attempts", "history": […], "body", "subject", "timestamp", "schema_version", …}

A task's body says everything that is needed to run it; no header is. Only `task_type` is required of a foreign
client, and `task_id` where no dispatcher can give it one.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from agentmesh.budgets import Grants
from agentmesh.codec import SCHEMA_VERSION
from agentmesh.errors import InvalidMessageError, InvalidNameError
from agentmesh.ids import now
from agentmesh.subjects import PRIORITIES, token
from agentmesh.when import FARTHEST

Status = Literal["completed", "failed", "cancelled", "expired", "dead"]
"""How a task was decided."""

NOTHING = msgspec.Raw(b"null")


class TaskBody(msgspec.Struct, omit_defaults=True):
    """A task as it waits in a queue."""

    task_id: str = ""
    agent_id: str | None = None
    """Who shall do it; None lets the dispatcher choose by type."""
    task_type: str = ""
    parameters: msgspec.Raw = NOTHING
    priority: Any = None
    """What is not `high` or `low` counts as `normal`."""
    timestamp: Any = None
    """When it was submitted. Of a foreign client it may be any text; nothing depends on it."""
    schema_version: str | None = None
    tenant_id: str | None = None
    deadline: datetime | None = None
    """When its result is of no use any more."""
    source_agent_id: str = ""
    trace_id: str = ""
    traceparent: str = ""
    """When somebody traces: W3C trace context, see `trace`."""
    tracestate: str = ""
    baggage: str = ""
    parent_id: str = ""
    """The task whose handler submitted it, itself or through requests; empty if no task did."""
    detached: bool = False
    """It goes on whatever becomes of its parent."""
    deadline_inherited: bool = False
    """The deadline is that of whatever submitted it."""
    hops: int = 0
    """Handlers the chain of calls went through before this one."""
    budget: Grants = ()
    """What the call tree it belongs to may use."""
    fingerprint: str = ""
    """Of a workflow's child: of its type and parameters. Its result has it too: so a changed workflow is noticed."""

    @property
    def master_id(self) -> str:
        """The task with which it ends; empty if there is none."""
        return "" if self.detached else self.parent_id

    def submitted_at(self) -> datetime | None:
        """When it was submitted, if that can be read."""
        try:
            time = datetime.fromisoformat(self.timestamp)
        except (TypeError, ValueError):
            return None
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)

    def lane(self) -> str:
        """Its priority, as one of those we know."""
        return self.priority if self.priority in PRIORITIES else "normal"

    def is_late(self) -> bool:
        return self.deadline is not None and self.deadline <= now()


class ScheduleBody(TaskBody, omit_defaults=True):
    """A delayed or repeating task: the document of the task, and when it is due.

    `task_id` is that of the task if it is due once, and empty if it repeats: then each firing is a task of its own.
    """

    schedule_id: str = ""
    when: str = ""
    """As in the header `Nats-Schedule`, which a paused schedule does not have."""
    time_zone: str = ""
    paused: bool = False
    deadline_after: float | None = None
    """Seconds after each firing at which the task expires; of one that is due once, `deadline` says it."""
    origin: str = ""
    """Who keeps it up to date, such as `up hello`; empty: nobody."""


class ResultBody(msgspec.Struct, omit_defaults=True):
    """What was decided about a task: the content of its result slot."""

    task_id: str
    status: str
    by: str = ""
    """Who wrote it, unique per attempt: after a lost confirmation it tells our own result from somebody else's."""
    agent_id: str = ""
    task_type: str = ""
    result: msgspec.Raw = NOTHING
    reason: str = ""
    error: dict[str, Any] | None = None
    """For `failed`: the error that whoever waits gets, in the form of `error_to_wire`, if there is one to say."""
    attempt: int = 0
    worker: str = ""
    """The node that did it."""
    timestamp: Any = None
    schema_version: str = ""
    trace_id: str = ""
    parent_id: str = ""
    """Of a step: the task whose handler is the workflow."""
    step: str = ""
    """The step's name; empty for the result of a task."""
    fingerprint: str = ""
    """Of a step or a workflow's child: what was to be done."""


class Failure(msgspec.Struct, omit_defaults=True):
    """One entry of a task's history."""

    attempt: int
    worker: str = ""
    error_type: str = ""
    message: str = ""
    timestamp: Any = None


class DeadBody(msgspec.Struct, omit_defaults=True):
    """A dead letter: why, what was tried, and the message as it was."""

    task_id: str
    reason: str
    kind: str = "task"
    """`task`, or `event` for what a durable mailbox could not deliver."""
    agent_id: str = ""
    task_type: str = ""
    attempts: int = 0
    history: list[Failure] = msgspec.field(default_factory=list)
    subject: str = ""
    """Where the message waited."""
    body: msgspec.Raw = NOTHING
    """The message as it was; if it is no JSON, a string with its bytes in base64."""
    encoding: str = ""
    """`base64` in the latter case."""
    timestamp: Any = None
    schema_version: str = ""

    def original(self) -> bytes:
        """The message as it was."""
        return base64.b64decode(msgspec.json.decode(self.body)) if self.encoding else bytes(self.body)


class _Id(msgspec.Struct):
    task_id: str = ""


encode = msgspec.json.Encoder().encode
_read_id = msgspec.json.Decoder(_Id).decode
_read_task = msgspec.json.Decoder(TaskBody).decode
_read_schedule = msgspec.json.Decoder(ScheduleBody).decode
_read_result = msgspec.json.Decoder(ResultBody).decode
_read_dead = msgspec.json.Decoder(DeadBody).decode
_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def decode_task(data: bytes) -> TaskBody:
    """The task in `data`; its id is checked by `known_task`.

    Raises:
        InvalidMessageError: Not a task; says what is wrong.
    """
    try:
        body = _read_task(data)
    except _UNREADABLE as error:
        raise InvalidMessageError(f"not a task: {error}") from error
    version = body.schema_version
    if version and version != SCHEMA_VERSION and version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise InvalidMessageError(f"schema_version {version!r} of a task is not supported (this is {SCHEMA_VERSION})")
    if not body.task_type:
        raise InvalidMessageError("not a task: task_type is missing")
    if body.deadline is not None and body.deadline.tzinfo is None:
        body.deadline = body.deadline.replace(tzinfo=UTC)
    return body


def decode_queued(data: bytes) -> TaskBody:
    """Like `decode_task`, for an agent's own queue, where an id is required."""
    body = decode_task(data)
    if not body.task_id:
        raise InvalidMessageError("not a task: task_id is missing")
    token("task id", body.task_id)
    if body.parent_id:
        token("task id", body.parent_id)
    return body


def decode_schedule(data: bytes) -> ScheduleBody:
    """The definition in `data`, also as it comes when it is due.

    Raises:
        InvalidMessageError: It is none.
    """
    try:
        body = _read_schedule(data)
    except _UNREADABLE as error:
        raise InvalidMessageError(f"not a schedule: {error}") from error
    if not body.schedule_id or not body.task_type or not body.when:
        raise InvalidMessageError("not a schedule: schedule_id, task_type or when is missing")
    token("schedule id", body.schedule_id)
    if body.deadline_after is not None and not 0 < body.deadline_after <= FARTHEST:
        raise InvalidMessageError(f"not a schedule: deadline_after is {body.deadline_after:g}")
    return body


def peek_id(data: bytes) -> str:
    """The id of what may be a task; empty if it has none that can be used."""
    try:
        return token("task id", _read_id(data).task_id)
    except (*_UNREADABLE, InvalidNameError):
        return ""


def decode_result(data: bytes, task_id: str) -> ResultBody:
    """What a slot says; a slot that cannot be read has decided the task all the same."""
    try:
        return _read_result(data)
    except _UNREADABLE as error:
        return ResultBody(task_id, "failed", reason=f"its result cannot be read: {error}")


def decode_dead(data: bytes) -> DeadBody:
    """The dead letter in `data`.

    Raises:
        InvalidMessageError: It is none.
    """
    try:
        return _read_dead(data)
    except _UNREADABLE as error:
        raise InvalidMessageError(f"not a dead letter: {error}") from error


def is_json(data: bytes) -> bool:
    """Whether `data` can be a part of a JSON document."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
        data.decode()
    except _UNREADABLE:
        return False
    return True
