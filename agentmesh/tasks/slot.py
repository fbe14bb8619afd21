"""The result slot: the commit point of a task.

Whoever first stores a message on `ai.agent.results.T.<task_id>` has decided the task. Everything else (redelivery,
duplicates, cancelling, expiry, two workers at once) is safe because of that one compare-and-set write.
"""

from __future__ import annotations

import asyncio

from agentmesh.codec import SCHEMA_VERSION
from agentmesh.errors import ConnectionLostError, SequenceConflictError
from agentmesh.ids import now
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import RESULTS
from agentmesh.tasks.wire import ResultBody, decode_result, encode
from agentmesh.transport import Transport

_LOOKS = 20
_PAUSE = 0.1
"""How often and with which pauses the winner is looked for: a replica may lag behind the one that refused us."""


async def read(transport: Transport, subjects: Subjects, task_id: str, *, latest: bool = False) -> ResultBody | None:
    """What was decided about the task, None if nothing is; in a cluster perhaps not yet here, without `latest`."""
    stored = await transport.last_message(RESULTS, subjects.result(task_id), latest=latest)
    return None if stored is None else decode_result(stored.data, task_id)


async def decide(transport: Transport, subjects: Subjects, verdict: ResultBody, timeout: float = 30.0) -> ResultBody:
    """Decide the task, unless it is decided; returns what is decided now.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        verdict: Its `by` must be unique: ours won if the returned result has it.
        timeout: Seconds to wait for the confirmation.

    Raises:
        PublishTimeoutError: Unknown; call it again with the same verdict.
        StreamFullError: There is no room for results; nothing is decided.
        PayloadTooLargeError: The result is too large; nothing is decided.
    """
    verdict.timestamp = now()
    verdict.schema_version = SCHEMA_VERSION
    subject = subjects.result(verdict.task_id)
    try:
        await transport.publish_durable(
            subject,
            encode(verdict),
            msg_id=f"{subjects.tenant}.{verdict.task_id}:{verdict.by}",
            expect_last=0,
            timeout=timeout,
        )
    except SequenceConflictError as error:
        for _ in range(_LOOKS):
            winner = await read(transport, subjects, verdict.task_id, latest=True)
            if winner is not None:
                return winner
            await asyncio.sleep(_PAUSE)
        raise ConnectionLostError(f"{subject!r} is taken, but cannot be read") from error
    return verdict
