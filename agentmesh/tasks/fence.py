"""Fences: a number per attempt of a task that only grows, whatever the broker forgets about deliveries.

It is the stream sequence of a record which the attempt writes to `ai.agent.attempts.T.<task_id>` when it first asks.
A store that keeps the highest fence it has seen, and refuses lower ones, cannot be written to by an attempt that was
replaced, though its machine was frozen for an hour and knows nothing of it.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from agentmesh.errors import AttemptReplacedError, ConnectionLostError, SequenceConflictError
from agentmesh.ids import now
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import ATTEMPTS, ATTEMPTS_SPEC, ensure
from agentmesh.transport import Transport

_TRIES = 10


class AttemptBody(msgspec.Struct, omit_defaults=True):
    """An attempt that has asked for a fence."""

    task_id: str
    rank: int
    """Deliveries of the task up to this one, as far as they are known."""
    by: str
    """Unique per attempt."""
    worker: str = ""
    timestamp: datetime | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AttemptBody).decode


async def take(transport: Transport, subjects: Subjects, attempt: AttemptBody) -> int:
    """The fence of an attempt: the same one each time it asks.

    Raises:
        AttemptReplacedError: A later attempt has one, or another one of the same rank, which the broker forgot.
    """
    await ensure(transport, ATTEMPTS_SPEC)
    subject = subjects.attempts(attempt.task_id)
    for _ in range(_TRIES):
        last = await transport.last_message(ATTEMPTS, subject)
        if last is not None:
            known = _decode(last.data)
            if known.by == attempt.by:
                return last.sequence
            if known.rank >= attempt.rank:
                raise AttemptReplacedError(attempt.task_id, known.worker)
        attempt.timestamp = now()
        try:
            stored = await transport.publish_durable(
                subject,
                _encode(attempt),
                msg_id=f"{subjects.tenant}.{attempt.task_id}:{attempt.by}",
                expect_last=0 if last is None else last.sequence,
            )
        except SequenceConflictError:
            continue
        return stored.sequence
    raise ConnectionLostError(f"{subject!r} is written by others all the time")


async def latest(transport: Transport, subjects: Subjects, task_id: str) -> int:
    """The highest fence of a task; 0 if no attempt asked for one."""
    await ensure(transport, ATTEMPTS_SPEC)
    last = await transport.last_message(ATTEMPTS, subjects.attempts(task_id))
    return 0 if last is None else last.sequence
