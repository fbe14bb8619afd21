"""Standing orders: what is paused, and which messages are quarantined. They outlive whoever gave them.

An order is one message on `$KV.mesh_state.T.<kind>.<name>`, gone when it is taken back or its time is over. Every host
of agents reads all orders of its tenant when it starts, so one that joins later knows them too; again when it is
prompted on the control subject `orders`; and every `LOOK_AGAIN` seconds, should it have missed a prompt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from agentmesh.errors import AgentMeshError, BrokerError, SequenceConflictError, UsageError
from agentmesh.ids import now
from agentmesh.subjects import Subjects, token
from agentmesh.tasks.layout import ORDERS, ensure
from agentmesh.transport import Message, Subscription, Transport

log = logging.getLogger("agentmesh.orders")

S = TypeVar("S", bound=msgspec.Struct)

PROMPT = "orders"
"""Control subject: orders have changed. Hosts answer with their names when they have read them."""

PAUSE, PAUSE_ALL, QUARANTINE, STRIKE = "pause", "pause-all", "quarantine", "strike"
"""Kinds of orders; `strike` is none yet: how often messages of that kind have ended the agent."""

EVERYTHING = "all"

LOOK_AGAIN = 5.0
"""Seconds between looks at the orders without being prompted."""

PROMPT_TIMEOUT, PROMPT_SILENCE = 2.0, 0.15
"""Seconds to wait for hosts that confirm a change; silence that ends the wait."""

QUARANTINE_TIME = 3_600.0
"""Seconds a quarantine lasts, and failures are remembered."""

_PAGE = 500


class Pause(msgspec.Struct, omit_defaults=True):
    """An agent, or everything, takes nothing new."""

    agent: str
    """Empty: all agents of the tenant."""
    since: datetime
    by: str = ""
    reason: str = ""


class Quarantine(msgspec.Struct, omit_defaults=True):
    """Messages with this content are refused."""

    id: str
    agent: str
    message_type: str
    since: datetime
    until: datetime
    failures: int = 0
    """How often they ended the agent."""
    reason: str = ""
    sender: str = ""
    """Who sent the last one."""


class _Strikes(msgspec.Struct):
    count: int


def digest(agent: str, message_type: str, content: bytes) -> str:
    """What messages of the same type and content to the same agent have in common."""
    return blake2b(b"\0".join((agent.encode(), message_type.encode(), content)), digest_size=16).hexdigest()


class Orders:
    """Gives, takes back and lists the orders of a tenant."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects

    async def pause(self, agent: str = "", *, by: str = "", reason: str = "") -> list[str]:
        """Pause an agent, which need not run yet, or all (empty); the names of the nodes that hold to it already."""
        await self._store(_pause_subject(self._subjects, agent), Pause(agent, now(), by, reason))
        return await self.prompt()

    async def resume(self, agent: str = "") -> list[str]:
        """Take a pause back; nothing happens if there is none. A pause of all is taken back as such only."""
        await self._remove(_pause_subject(self._subjects, agent))
        return await self.prompt()

    async def pauses(self) -> list[Pause]:
        """All pauses, that of everything first."""
        everything = await self._read(PAUSE_ALL, Pause)
        return [*everything.values(), *(await self._read(PAUSE, Pause)).values()]

    async def quarantine(self, order: Quarantine) -> None:
        """Refuse messages from now on; the order ends by itself."""
        seconds = max(1, round((order.until - now()).total_seconds()))
        await self._store(self._subjects.order(QUARANTINE, order.id), order, ttl=seconds)
        await self.prompt()

    async def quarantines(self) -> list[Quarantine]:
        """All quarantines, oldest first."""
        found = (await self._read(QUARANTINE, Quarantine)).values()
        return sorted((one for one in found if one.until > now()), key=lambda one: one.since)

    async def release(self, quarantine_id: str) -> Quarantine:
        """End a quarantine, and forget the failures that led to it.

        Raises:
            UsageError: There is none of that id.
        """
        known = {one.id: one for one in await self.quarantines()}
        if quarantine_id not in known:
            there = ", ".join(known) or "none"
            raise UsageError(f"no quarantine {quarantine_id!r}; there are: {there}")
        await self.forgive(quarantine_id)
        await self._remove(self._subjects.order(QUARANTINE, quarantine_id))
        await self.prompt()
        return known[quarantine_id]

    async def strike(self, message_id: str) -> int:
        """Count that messages with this digest have ended their agent once more, wherever; how often it was now."""
        await ensure(self._transport, ORDERS)
        subject = self._subjects.order(STRIKE, message_id)
        while True:
            last = await self._transport.last_message(ORDERS.name, subject)
            count = 1 + (_decoded(last.data, _Strikes) or _Strikes(0)).count if last else 1
            try:
                await self._store(
                    subject, _Strikes(count), ttl=int(QUARANTINE_TIME), expect_last=last.sequence if last else 0
                )
            except SequenceConflictError:
                continue  # another replica counted at the same time
            return count

    async def forgive(self, message_id: str) -> None:
        """Forget what `strike` counted."""
        await self._remove(self._subjects.order(STRIKE, message_id))

    async def prompt(self) -> list[str]:
        """Have the hosts look; the nodes that have looked."""
        subject = self._subjects.control(PROMPT)
        try:
            answers = await self._transport.request_many(subject, b"", timeout=PROMPT_TIMEOUT, stall=PROMPT_SILENCE)
        except BrokerError:
            return []  # they look by themselves
        return sorted(answer.data.decode("utf-8", "replace") for answer in answers)

    async def _store(
        self, subject: str, order: msgspec.Struct, *, ttl: int = 0, expect_last: int | None = None
    ) -> None:
        await ensure(self._transport, ORDERS)
        headers = {"Nats-TTL": f"{ttl}s"} if ttl else None
        await self._transport.publish_durable(
            subject, msgspec.json.encode(order), headers=headers, expect_last=expect_last
        )

    async def _remove(self, subject: str) -> None:
        await ensure(self._transport, ORDERS)
        await self._transport.purge(ORDERS.name, subject)

    async def _read(self, kind: str, form: type[S]) -> dict[str, S]:
        await ensure(self._transport, ORDERS)
        return await read(self._transport, self._subjects.orders(kind), form)


class StandingOrders:
    """What a host of agents holds to.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        node: Name of this process.
        on_change: Called when something has changed; must not block.
    """

    def __init__(self, transport: Transport, subjects: Subjects, node: str, on_change: Callable[[], None]) -> None:
        self._transport = transport
        self._subjects = subjects
        self._node = node
        self._on_change = on_change
        self._pauses: Mapping[str, Pause] = {}
        self._everything: Pause | None = None
        self._quarantines: Mapping[str, Quarantine] = {}
        self._asked: list[str] = []
        self._prompted = asyncio.Event()
        self._subscription: Subscription | None = None
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the orders. If that is impossible now it is tried again, and nothing is held back until then."""
        self._subscription = await self._transport.subscribe(self._subjects.control(PROMPT), self._on_prompt)
        await self._look()
        self._loop = asyncio.get_running_loop().create_task(self._run(), name="standing orders")

    async def stop(self) -> None:
        """Look no more."""
        if self._loop is not None:
            self._loop.cancel()
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    def pause_of(self, agent: str) -> Pause | None:
        """The pause that concerns an agent, if there is one."""
        return self._everything or self._pauses.get(agent)

    def quarantined(self, agent: str) -> dict[str, Quarantine]:
        """Quarantined messages of an agent, by digest."""
        return {one.id: one for one in self._quarantines.values() if one.agent == agent}

    def add(self, order: Quarantine) -> None:
        """Hold to a quarantine at once, before the broker has it."""
        self._quarantines = {**self._quarantines, order.id: order}
        self._on_change()

    def _on_prompt(self, message: Message) -> None:
        if message.reply:
            self._asked.append(message.reply)
        self._prompted.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_AGAIN):
                    await self._prompted.wait()
            except TimeoutError:
                pass
            self._prompted.clear()
            asked, self._asked = self._asked, []
            if await self._look():
                for reply in asked:
                    await self._answer(reply)

    async def _answer(self, reply: str) -> None:
        try:
            await self._transport.publish(reply, self._node.encode())
        except AgentMeshError as error:
            log.debug("a prompt was not answered: %s", error)

    async def _look(self) -> bool:
        try:
            await ensure(self._transport, ORDERS)
            pauses = await read(self._transport, self._subjects.orders(PAUSE), Pause)
            everything = await read(self._transport, self._subjects.orders(PAUSE_ALL), Pause)
            quarantines = await read(self._transport, self._subjects.orders(QUARANTINE), Quarantine)
        except AgentMeshError as error:
            log.warning("the standing orders cannot be read, trying again: %s", error)
            return False
        found = (pauses, everything.get(EVERYTHING), quarantines)
        if found != (self._pauses, self._everything, self._quarantines):
            self._pauses, self._everything, self._quarantines = found
            self._on_change()
        return True


async def read(transport: Transport, pattern: str, form: type[S]) -> dict[str, S]:
    """The orders whose subjects match, by the last token; what is none is left out."""
    found: dict[str, S] = {}
    start = 1
    while True:
        batch = await transport.messages(ORDERS.name, pattern, start=start, limit=_PAGE)
        for stored in batch:
            order = _decoded(stored.data, form)
            if order is not None:
                found[stored.subject.rpartition(".")[2]] = order
        if len(batch) < _PAGE:
            return found
        start = batch[-1].sequence + 1


def until(seconds: float = QUARANTINE_TIME) -> datetime:
    """When a quarantine that begins now ends."""
    return now() + timedelta(seconds=seconds)


def _pause_subject(subjects: Subjects, agent: str) -> str:
    return subjects.order(PAUSE, token("agent", agent)) if agent else subjects.order(PAUSE_ALL, EVERYTHING)


def _decoded(data: bytes, form: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.MsgspecError:
        return None
