"""What happened to agents and processes: crashes, terminations, quarantines, fail-overs.

    await record(transport, subjects, "crash", "greeter", {"reason": "ValueError: no"})
    for happening in await recent(transport, subjects, kind="crash"): ...

They are kept in the stream EVENTS for 7 days (64 MB, the oldest go first) and written by whoever notices, so that one
fact may be told twice. Nobody waits for them and nothing is decided by them: they are for people and for tools.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from agentmesh.errors import BrokerError
from agentmesh.ids import now
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import EVENTS, EVENTS_SPEC, ensure
from agentmesh.transport import StoredMessage, Transport

log = logging.getLogger("agentmesh.happenings")

RECORD_TIMEOUT = 5.0
"""Seconds that recording may take."""

KINDS = ("crash", "gave-up", "quarantine", "group-ended", "failover")
"""What agentmesh itself records."""

LOOK_AGAIN = 1.0
"""Seconds after which a follower looks even if it heard of nothing new."""

_PAGE = 500
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Happening(msgspec.Struct, frozen=True):
    """One of them."""

    kind: str
    """One of `KINDS`, or whatever somebody else recorded."""
    name: str
    """The agent, node or lease it is about."""
    at: datetime
    sequence: int
    """Its place in the stream."""
    document: dict[str, Any]
    """What else is known."""


async def record(
    transport: Transport,
    subjects: Subjects,
    kind: str,
    name: str,
    document: Mapping[str, Any],
    *,
    msg_id: str = "",
    timeout: float = RECORD_TIMEOUT,
) -> bool:
    """Keep a happening. What cannot be kept is logged: it must not break what it tells about.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        kind: A name token.
        name: A name token.
        document: Plain data; `kind`, `name` and `at` are added.
        msg_id: Kept once within ten minutes, if others may record the same.
        timeout: Seconds to wait for the broker.

    Returns:
        Whether it is kept for sure.

    Raises:
        InvalidNameError: `kind` or `name` is no token.
    """
    subject = subjects.happening(kind, name)
    body = msgspec.json.encode({"kind": kind, "name": name, "at": now(), **document})
    try:
        async with asyncio.timeout(timeout):
            await ensure(transport, EVENTS_SPEC)
            await transport.publish_durable(
                subject, body, msg_id=f"{subjects.tenant}.{msg_id}" if msg_id else "", timeout=timeout
            )
    except (BrokerError, TimeoutError) as error:
        log.warning("%s of %s was not recorded: %s", kind, name, error or type(error).__name__)
        return False
    return True


async def recent(
    transport: Transport, subjects: Subjects, *, kind: str = "", name: str = "", start: int = 1, limit: int = 1000
) -> list[Happening]:
    """The last `limit` of those kept from stream sequence `start` on, oldest first; `kind` and `name` choose."""
    await ensure(transport, EVENTS_SPEC)
    pattern = subjects.happenings(kind, name)
    found: list[Happening] = []
    while True:
        batch = await transport.messages(EVENTS, pattern, start=start, limit=_PAGE)
        found = [*found, *filter(None, map(_read, batch))][-limit:]
        if len(batch) < _PAGE:
            return found
        start = batch[-1].sequence + 1


async def follow(
    transport: Transport, subjects: Subjects, *, kind: str = "", name: str = "", start: int = 1
) -> AsyncGenerator[Happening, None]:
    """Those kept from stream sequence `start` on, and then each as it happens, in order."""
    await ensure(transport, EVENTS_SPEC)
    pattern = subjects.happenings(kind, name)
    heard = asyncio.Event()
    subscription = await transport.subscribe(pattern, lambda message: heard.set())
    try:
        while True:
            heard.clear()
            batch = await transport.messages(EVENTS, pattern, start=start, limit=_PAGE)
            for stored in batch:
                start = stored.sequence + 1
                happening = _read(stored)
                if happening is not None:
                    yield happening
            if not batch:
                await _wait(heard)
    finally:
        await subscription.unsubscribe()


async def _wait(heard: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK_AGAIN):
            await heard.wait()
    except TimeoutError:
        return


def _read(stored: StoredMessage) -> Happening | None:
    try:
        document = _decode(stored.data)
    except msgspec.MsgspecError:
        return None  # anybody may publish there; the others count
    *_, kind, name = stored.subject.split(".")
    for field in ("kind", "name", "at"):
        document.pop(field, None)
    return Happening(kind, name, stored.time, stored.sequence, document)
