"""Requests with an idempotency key, at both ends: the handler runs once, and everybody who asks gets what came of it.

The agent that gets such a request claims the key before it runs the handler, and stores the outcome before it answers.
Who asks looks for an outcome first, and while somebody else's request is being handled. Giving up such a request does
not cancel its handler, for others may wait for it; its deadline does. Then, or when its process was killed, there is a
claim without an outcome, and the next one who asks takes it over.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import msgspec

from agentmesh import codec
from agentmesh.errors import (
    AgentMeshError,
    DeadlineExceededError,
    InvalidMessageError,
    KeyInUseError,
    PayloadTooLargeError,
    RemoteError,
    Retry,
    error_from_wire,
    error_to_wire,
)
from agentmesh.ids import new_id, now
from agentmesh.tasks.keys import PAUSES, Entry, Keys, Record, checked, fingerprint

Send = Callable[[codec.Envelope, float], Awaitable[codec.Envelope]]
"""Asks, and waits for up to so many seconds."""


async def ask(keys: Keys, agent: str, envelope: codec.Envelope, seconds: float, send: Send) -> msgspec.Raw:
    """The reply to a request with a key: the one that is kept, that somebody else is about to get, or a new one.

    Raises:
        IdempotencyConflictError: The key was used for another request.
        DeadlineExceededError: None within `seconds`.
        AgentMeshError: What came of it.
    """
    what, mark = _told(agent, envelope)
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
    while (left := end - loop.time()) > 0:
        entry = await keys.find(checked(envelope.key), mark, what)
        if entry is not None and entry.record.state == "decided":
            return outcome(entry.record, agent)
        if entry is None or entry.record.state == "free" or entry.record.is_abandoned():
            try:
                return (await send(msgspec.structs.replace(envelope, message_id=new_id()), left)).content
            except KeyInUseError:
                pass
        await asyncio.sleep(min(next(pauses), max(0.0, left)))
    raise DeadlineExceededError(f"{what}, asked by somebody else with the same idempotency key", seconds)


async def handle(keys: Keys, agent: str, envelope: codec.Envelope, work: Callable[[], Awaitable[bytes]]) -> bytes:
    """Run the handler of a request with a key, unless that was done; returns the reply.

    Raises:
        KeyInUseError: Somebody else is at it.
        IdempotencyConflictError: The key was used for another request.
        Exception: What came of it: what the handler raised now, or then.
    """
    what, mark = _told(agent, envelope)
    entry = await keys.find(checked(envelope.key), mark, what)
    if entry is not None and entry.record.state == "decided":
        return bytes(outcome(entry.record, agent))
    if entry is not None and entry.record.state == "claimed" and not entry.record.is_abandoned():
        raise KeyInUseError(envelope.key)
    claimed = await keys.claim(Record(envelope.key, what, mark, until=envelope.deadline or now()), entry)
    if claimed is None:
        raise KeyInUseError(envelope.key)
    return await _decided(keys, claimed, agent, work)


async def _decided(keys: Keys, claimed: Entry, agent: str, work: Callable[[], Awaitable[bytes]]) -> bytes:
    """Run the handler and store what came of it."""
    try:
        reply = await work()
    except Retry:
        await keys.release(claimed)
        raise
    except Exception as error:  # the edge to foreign code: an error is an outcome like any other
        await keys.decide(claimed, error=msgspec.json.decode(codec.encode_error(error)))
        raise
    try:
        kept = await keys.decide(claimed, result=msgspec.Raw(reply))
    except PayloadTooLargeError as error:
        await keys.decide(claimed, error=error_to_wire(error))
        raise
    if kept is None:  # it took longer than it had, and another one has taken over: there must be one outcome only
        raise KeyInUseError(claimed.record.key)
    return reply


def outcome(record: Record, agent: str) -> msgspec.Raw:
    """The reply that is kept; raises the error that is."""
    if record.error is not None:
        raise _error(record, agent)
    return record.result


def _error(record: Record, agent: str) -> AgentMeshError:
    assert record.error is not None
    error = error_from_wire(record.error, agent)
    return RemoteError(agent, type(error).__name__, str(error)) if isinstance(error, KeyInUseError) else error


def _told(agent: str, envelope: codec.Envelope) -> tuple[str, str]:
    """What is asked, for people, and its fingerprint."""
    what = f"{envelope.message_type} of {agent}"
    try:
        return what, fingerprint(what, bytes(envelope.content))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidMessageError(f"{what}: {error}") from error
