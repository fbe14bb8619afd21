"""Crash reports: what ended an agent or a process, kept in the stream of events and nowhere else.

A report holds the message that was being handled, which is why none of it is logged. Fields that its class declares
with `redact` are left out, and so are logins in addresses.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec

from agentmesh import happenings
from agentmesh.agent.cell import AgentCell, Crash
from agentmesh.agent.letter import Letter
from agentmesh.client import Client
from agentmesh.errors import BrokerError
from agentmesh.flight import SLOT_SIZE, FlightRecorder
from agentmesh.ids import now
from agentmesh.orders import Orders, Quarantine, StandingOrders, digest, until
from agentmesh.tasks import keep_event

log = logging.getLogger("agentmesh.crashes")

CRASH, GAVE_UP, QUARANTINE = "crash", "gave-up", "quarantine"
"""Kinds of events."""

LONGEST_TRACEBACK, LONGEST_MESSAGE, LONGEST_BODY = 8_000, 2_000, 4_096
"""Characters of a report's traceback (its end), error message, and message body (its beginning)."""

REMEMBERED = 1_000
"""Kinds of messages that ended an agent here, of which the count is known without asking the broker."""

_LOGIN = re.compile(r"(://)[^\s/@'\"]+@")


def report_error(error: BaseException) -> dict[str, Any]:
    """What a report says of an error."""
    text = "".join(traceback.format_exception(error))
    return {
        "error_type": type(error).__name__,
        "error": without_logins(str(error))[:LONGEST_MESSAGE],
        "traceback": without_logins(text)[-LONGEST_TRACEBACK:],
    }


def report_message(letter: Letter) -> dict[str, Any]:
    """What a report says of the message that was being handled."""
    envelope = letter.envelope
    body = _redacted(bytes(envelope.content), letter.handler.message_type._redacted)
    return {
        "type": envelope.message_type,
        "id": envelope.message_id,
        "sender": envelope.source_agent_id,
        "body": body[:LONGEST_BODY],
        "truncated": len(body) > LONGEST_BODY,
    }


def _redacted(content: bytes, fields: frozenset[str]) -> str:
    if fields:
        document = msgspec.json.decode(content)
        if isinstance(document, dict):
            content = msgspec.json.encode({name: "***" if name in fields else document[name] for name in document})
    return without_logins(content.decode("utf-8", "replace"))


def without_logins(text: str) -> str:
    """`text` without user names and passwords in addresses."""
    return _LOGIN.sub(r"\1***@", text)


def recorded(cell: AgentCell, recorder: FlightRecorder) -> Callable[[Letter | None, Awaitable[Any]], Awaitable[Any]]:
    """Has what an agent handles written down while it is being handled."""

    async def handle(letter: Letter | None, handling: Awaitable[Any]) -> Any:
        slot = recorder.begin(_noted(cell, letter))
        try:
            return await handling
        finally:
            recorder.end(slot)

    return handle


def _noted(cell: AgentCell, letter: Letter | None) -> dict[str, Any]:
    if letter is None:  # counted by its attempts
        return {"agent": cell.name, "type": "a task or a durable event", "id": "", "sender": "", "body": ""}
    message = report_message(letter)
    message["body"] = message["body"][: SLOT_SIZE // 4]
    poison = digest(cell.name, letter.envelope.message_type, bytes(letter.envelope.content))
    return {**message, "agent": cell.name, "digest": poison, "after": cell.quarantine_after}


async def suspect(client: Client, message: Mapping[str, Any]) -> None:
    """The only message that a process was handling when it died: refused from its third time on.

    Raises:
        BrokerError: It could not be counted.
    """
    if not message.get("after"):
        return  # a task or a stored event, or never to be quarantined
    orders = Orders(client.transport, client.subjects)
    count = await orders.strike(message["digest"])
    if count < message["after"]:
        return
    reason = f"the process that handled it died, {count} times"
    order = Quarantine(
        message["digest"], message["agent"], message["type"], now(), until(), count, reason, message["sender"]
    )
    await orders.quarantine(order)
    document = {"agent": order.agent, "reason": reason, "quarantine": order, "message": message}
    await happenings.record(client.transport, client.subjects, QUARANTINE, order.agent, document)


class Crashes:
    """Reports the crashes of one process's agents, and quarantines what ends them again and again.

    Args:
        client: The connection.
        node: Name of this process.
        standing: The orders this process holds to.
    """

    def __init__(self, client: Client, node: str, standing: StandingOrders) -> None:
        self._transport = client.transport
        self._subjects = client.subjects
        self._node = node
        self._standing = standing
        self._orders = Orders(client.transport, client.subjects)
        self._strikes: dict[str, int] = {}
        self._chores: set[asyncio.Task[None]] = set()

    async def flush(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for reports that are being written."""
        if self._chores:
            await asyncio.wait(self._chores, timeout=timeout)
        for chore in self._chores:
            chore.cancel()

    def crashed(self, cell: AgentCell, crash: Crash) -> None:
        """An agent's life ended with a failure. Never raises and does not block."""
        try:
            self._report(cell, crash)
        except Exception:  # such as an error whose text cannot be made: the agent is to be restarted all the same
            log.exception("a crash of %s could not be reported", cell.name)

    def _report(self, cell: AgentCell, crash: Crash) -> None:
        document = {
            **self._whose(cell),
            "reason": f"the handler of {crash.letter.envelope.message_type} failed"
            if crash.letter
            else "it could not start",
            **report_error(crash.error),
            "message": report_message(crash.letter) if crash.letter else None,
        }
        self._chore(self._record(CRASH, cell.name, document))
        if crash.letter is not None:
            self._strike(cell, crash.letter, document)

    def not_started(self, name: str, error: BaseException) -> None:
        """An agent could not be loaded, or started for the first time."""
        document = {"agent": name, "node": self._node, "host": socket.gethostname(), "pid": os.getpid()}
        self._chore(self._record(CRASH, name, {**document, "reason": "it could not start", **report_error(error)}))

    def gave_up(self, cell: AgentCell, error: BaseException) -> None:
        """An agent has failed more often than its policy allows, and stays down."""
        document = {**self._whose(cell), "reason": without_logins(str(error))[:LONGEST_MESSAGE]}
        self._chore(self._record(GAVE_UP, cell.name, document))

    def _whose(self, cell: AgentCell) -> dict[str, Any]:
        return {
            "agent": cell.name,
            "replica": cell.replica,
            "node": self._node,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "restarts": cell.counters.restarts,
        }

    # ------------------------------------------------------------ poison
    def _strike(self, cell: AgentCell, letter: Letter, document: dict[str, Any]) -> None:
        """Count it; here at once, so that the next of its kind is refused even while the broker is slow."""
        if not cell.quarantine_after:
            return
        poison = digest(cell.name, letter.envelope.message_type, bytes(letter.envelope.content))
        count = self._strikes.pop(poison, 0) + 1
        while len(self._strikes) >= REMEMBERED:
            self._strikes.pop(next(iter(self._strikes)))
        self._strikes[poison] = count
        if count >= cell.quarantine_after:
            self._quarantine(cell, letter, poison, count, document)
        else:
            self._chore(self._count(cell, letter, poison, document))

    async def _count(self, cell: AgentCell, letter: Letter, poison: str, document: dict[str, Any]) -> None:
        """Other replicas may have been ended by the same."""
        count = await self._orders.strike(poison)
        if count >= cell.quarantine_after and poison not in self._standing.quarantined(cell.name):
            self._quarantine(cell, letter, poison, count, document)

    def _quarantine(self, cell: AgentCell, letter: Letter, poison: str, count: int, document: dict[str, Any]) -> None:
        self._strikes.pop(poison, None)
        envelope = letter.envelope
        reason = f"{document['error_type']}: {document['error']}"
        order = Quarantine(
            poison, cell.name, envelope.message_type, now(), until(), count, reason[:500], envelope.source_agent_id
        )
        self._standing.add(order)
        log.error("%s: a %s ended it %d times and is quarantined", cell.name, envelope.message_type, count)
        self._chore(self._keep(cell, letter, order, document))

    async def _keep(self, cell: AgentCell, letter: Letter, order: Quarantine, document: dict[str, Any]) -> None:
        await self._orders.quarantine(order)
        why = f"it ended {cell.name} {order.failures} times: {order.reason}"
        await keep_event(self._transport, self._subjects, cell.name, letter.envelope, why, order.failures)
        told = {**self._whose(cell), "reason": why, "quarantine": order, "message": document["message"]}
        await self._record(QUARANTINE, cell.name, told)

    # ------------------------------------------------------------ parts
    async def _record(self, kind: str, name: str, document: dict[str, Any]) -> None:
        await happenings.record(self._transport, self._subjects, kind, name, document)

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        chore = asyncio.get_running_loop().create_task(self._guarded(work), name="crash report")
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BrokerError as error:
            log.warning("a crash could not be reported in full: %s", error)
