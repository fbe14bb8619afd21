"""Calls with an idempotency key: run once, by whichever executor; what came of it is kept where all of them look.

| what happened                                     | what every further call with the key gets                    |
| ------------------------------------------------- | ------------------------------------------------------------ |
| the tool returned, or raised                      | that result, or that error                                   |
| it raised `Retry`                                 | it is run again: it said that nothing was done               |
| it was ended: by a limit, its time, or a cancel   | `ToolOutcomeUnknownError`, with that reason                  |
| its executor was killed, or lost the broker       | the same, once the time the call had is over                 |
| it runs now                                       | the outcome, as soon as there is one                         |
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec

from agentmesh.errors import (
    AgentMeshError,
    AttemptReplacedError,
    BrokerError,
    PayloadTooLargeError,
    RemoteError,
    Retry,
    ToolCancelledError,
    ToolLimitError,
    ToolOutcomeUnknownError,
    ToolTimeoutError,
    error_from_wire,
    error_to_wire,
)
from agentmesh.ids import now
from agentmesh.subjects import Subjects
from agentmesh.tasks import fence
from agentmesh.tasks.keys import PAUSES, Entry, Keys, Record, checked, fingerprint
from agentmesh.tooling import Tool, ToolRequest
from agentmesh.transport import Transport

Work = Callable[[float], Awaitable[bytes]]
"""Runs the tool for up to so many seconds."""

_CUT_OFF = (ToolTimeoutError, ToolLimitError, ToolCancelledError)


class Memory:
    """What this tenant's executors remember of calls with a key.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        executor: Who we are, for the records.
    """

    def __init__(self, transport: Transport, subjects: Subjects, executor: str) -> None:
        self._transport = transport
        self._subjects = subjects
        self._executor = executor
        self._keys = Keys(transport, subjects, "tool")

    async def recall(self, tool: Tool[..., Any], request: ToolRequest, key: str) -> tuple[bytes | None, Entry | None]:
        """The result that is kept for the key, or None and where to claim it; waits while somebody else is at it.

        Raises:
            AttemptReplacedError: The caller's attempt is not the latest of its task.
            IdempotencyConflictError: The key was used for something else.
            ToolOutcomeUnknownError: A call with the key was cut off.
            AgentMeshError: The error that is kept for the key.
        """
        mark = _fingerprint(request)
        pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
        await self._refuse_the_replaced(request)
        while True:
            entry = await self._keys.find(checked(key), mark, f"tool {tool.name}")
            if entry is None or entry.record.state == "free":
                return None, entry
            if entry.record.state == "decided":
                return _kept(tool, entry.record), None
            if entry.record.is_abandoned():
                raise ToolOutcomeUnknownError(tool.name, key, f"{entry.record.what} was begun, and its executor died")
            await asyncio.sleep(next(pauses))

    async def run(
        self, tool: Tool[..., Any], request: ToolRequest, key: str, entry: Entry | None, work: Work, seconds: float
    ) -> bytes | None:
        """Claim the key, run the tool, and keep what comes of it.

        Returns:
            The result; None if somebody else has claimed the key meanwhile, and nothing was run.

        Raises:
            AgentMeshError: What came of it, which is kept, too.
        """
        record = Record(
            key,
            f"tool {tool.name}",
            _fingerprint(request),
            until=now() + timedelta(seconds=seconds),
            task_id=request.task_id,
            fence=request.fence,
        )
        claimed = await self._keys.claim(record, entry)
        if claimed is None:
            return None
        try:
            result = await work(seconds)
        except asyncio.CancelledError:
            await self._keep_error(claimed, _unknown(tool, key, "it was cancelled"))
            raise
        except AgentMeshError as error:
            await self._failed(tool, claimed, error)
            raise
        try:
            kept = await self._keys.decide(claimed, result=msgspec.Raw(result))
        except PayloadTooLargeError:
            await self._keep_error(claimed, _unknown(tool, key, "it is done, but its result is too large to be kept"))
            return result
        except BrokerError as error:
            raise _unknown(tool, key, f"it is done, but this could not be kept: {error}") from error
        if kept is None:
            raise _unknown(tool, key, "it is done, but after the time it had")
        return result

    async def _refuse_the_replaced(self, request: ToolRequest) -> None:
        if request.fence and request.task_id:
            newest = await fence.latest(self._transport, self._subjects, request.task_id)
            if request.fence < newest:
                raise AttemptReplacedError(request.task_id)

    async def _failed(self, tool: Tool[..., Any], claimed: Entry, error: AgentMeshError) -> None:
        if isinstance(error, Retry) or (isinstance(error, RemoteError) and error.error_type == "Retry"):
            await self._keys.release(claimed)
        elif isinstance(error, _CUT_OFF):
            await self._keep_error(claimed, _unknown(tool, claimed.record.key, str(error)))
        else:
            await self._keep_error(claimed, error)

    async def _keep_error(self, claimed: Entry, error: AgentMeshError) -> None:
        await self._keys.decide(claimed, error=error_to_wire(error))


def _kept(tool: Tool[..., Any], record: Record) -> bytes:
    if record.error is not None:
        raise error_from_wire(record.error, tool.name)
    return bytes(record.result)


def _unknown(tool: Tool[..., Any], key: str, problem: str) -> ToolOutcomeUnknownError:
    return ToolOutcomeUnknownError(tool.name, key, problem)


def _fingerprint(request: ToolRequest) -> str:
    return fingerprint(f"tool {request.tool}", bytes(request.arguments))
