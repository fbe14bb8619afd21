"""The slots in which the outcomes of steps stand.

A step is known by the task it belongs to and its name, in no other way: neither its place in the code nor the order in
which steps are begun matters. Its fingerprint says what it was, and is compared when the recorded outcome is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from typing import Any

import msgspec

from agentmesh import codec
from agentmesh.errors import BrokerError, PayloadTooLargeError, WorkflowChangedError
from agentmesh.ids import new_id
from agentmesh.subjects import Subjects
from agentmesh.tasks import slot
from agentmesh.tasks.wire import NOTHING, ResultBody, Status, encode
from agentmesh.transport import Transport

log = logging.getLogger("agentmesh.tasks")

_PAUSES = (0.5, 1.0, 2.0, 5.0)
"""Seconds between tries to store an outcome, for as long as it takes."""

_LAST_WORDS = 1.0
"""Seconds that storing an outcome still gets when the handler is cancelled: what was done must not be done again."""


SAGAS = "\nsagas"
"""Name of the slot that says that this task has begun a saga; no step of the user's can be called so."""


class StepError(msgspec.Struct):
    """Content of the slot of a step that failed."""

    error_type: str
    message: str
    attempts: int = 0


def ident(kind: str, task_id: str, name: str) -> str:
    """The id of something that belongs to a task: the same in every run, in every process."""
    return f"{kind}-" + hashlib.sha256(f"{task_id}\n{name}".encode()).hexdigest()[:40]


def digest(data: bytes) -> str:
    """A few letters that differ when `data` does."""
    return hashlib.sha256(data).hexdigest()[:16]


def signal_body(task_id: str, name: str, value: Any = None, status: Status = "completed") -> ResultBody:
    """What is written about a signal: that it came, or that it did not come in time (`expired`)."""
    return ResultBody(
        ident("signal", task_id, name),
        status,
        by=f"signal:{new_id()}",
        result=msgspec.Raw(codec.encode_body(value, Any)),
        parent_id=task_id,
        step=name,
    )


async def has_sagas(transport: Transport, subjects: Subjects, task_id: str) -> bool:
    """Whether a run of this task has begun a saga."""
    return await slot.read(transport, subjects, ident("step", task_id, SAGAS)) is not None


class Journal:
    """The steps of one task.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        task_id: The task.
        agent: Who runs it.
        node: In which process.
        attempt: Which attempt of the task this is.
    """

    def __init__(
        self, transport: Transport, subjects: Subjects, task_id: str, *, agent: str, node: str, attempt: int
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._task_id = task_id
        self._agent = agent
        self._node = node
        self._attempt = attempt

    def id(self, name: str) -> str:
        """The id of the slot of a step."""
        return ident("step", self._task_id, name)

    async def read(self, name: str, fingerprint: str = "") -> ResultBody | None:
        """What was decided about a step, None if nothing is.

        Raises:
            WorkflowChangedError: It was another kind of step then.
        """
        body = await slot.read(self._transport, self._subjects, self.id(name))
        return body if body is None else _checked(name, fingerprint, body)

    async def decide(
        self, name: str, fingerprint: str, status: Status, *, result: msgspec.Raw = NOTHING, reason: str = ""
    ) -> ResultBody:
        """Store the outcome of a step, unless it has one; the one it has now. Waits for a broker that is away.

        Raises:
            WorkflowChangedError: Another run has decided another kind of step of that name.
        """
        verdict = ResultBody(
            self.id(name),
            status,
            by=f"step:{new_id()}",
            agent_id=self._agent,
            result=result,
            reason=reason[:2000],
            attempt=self._attempt,
            worker=self._node,
            parent_id=self._task_id,
            step=name,
            fingerprint=fingerprint,
        )
        return _checked(name, fingerprint, await self.write(verdict))

    async def write(self, verdict: ResultBody) -> ResultBody:
        """Write a slot; a handler that is cancelled meanwhile ends up to a second later."""
        writing = asyncio.get_running_loop().create_task(self._write(verdict), name="step outcome")
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing], timeout=_LAST_WORDS)
            writing.cancel()
            raise

    async def _write(self, verdict: ResultBody) -> ResultBody:
        pauses = itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))
        while True:
            try:
                return await slot.decide(self._transport, self._subjects, verdict)
            except PayloadTooLargeError as error:
                verdict.status, verdict.reason = "failed", str(error)
                verdict.result = msgspec.Raw(encode(StepError(type(error).__name__, str(error))))
            except BrokerError as error:
                log.error("the outcome of step %r cannot be stored, trying again: %s", verdict.step, error)
                await asyncio.sleep(next(pauses))


def _checked(name: str, fingerprint: str, body: ResultBody) -> ResultBody:
    if fingerprint and body.fingerprint and body.fingerprint != fingerprint:
        raise WorkflowChangedError(name, body.fingerprint, fingerprint)
    return body
