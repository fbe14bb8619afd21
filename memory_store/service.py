"""The memory service: answers `ai.agent.memory.T.<operation>` and the bare `ai.agent.memory.T` from one store.

A subscription's callback only hands the request to the store; the store collects what comes in meanwhile into one
transaction and calls back when it is on disk; one task sends the answers. So thousands of requests may be under way
without a task, a timer or a thread for each, and everything that can pile up has a bound: beyond it a request is
refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import msgspec

from agentmesh.errors import (
    AgentMeshError,
    InvalidMessageError,
    PayloadTooLargeError,
    PermissionDeniedError,
    StoreBusyError,
    error_to_wire,
)
from agentmesh.lane import Outcome
from agentmesh.memory import MemoryRequest
from agentmesh.memory_store.store import OPERATIONS, Store
from agentmesh.subjects import MEMORY_OF_EVERY_TENANT, memory_tenant
from agentmesh.tasks.layout import subjects_on
from agentmesh.transport import Endpoint, Message, Service, Subscription, Transport
from agentmesh.version import __version__

log = logging.getLogger("agentmesh.memory_store")

QUEUE_GROUP = "memory"
MAX_UNANSWERED = 4096
"""Requests under way; more are refused at once."""
ANSWER_GRACE = 3.0
"""Seconds that answers may take when the service stops."""

_decoder = msgspec.json.Decoder(MemoryRequest)


class Call:
    """One request under way."""

    __slots__ = ("began", "operation", "reply")

    def __init__(self, operation: str, reply: str) -> None:
        self.operation = operation
        self.reply = reply
        self.began = time.monotonic()


class MemoryService:
    """See the module.

    Args:
        transport: The connection; stays open when the service stops.
        path: The SQLite file, made if need be.
        tenants: Whose requests to answer; none means every tenant of this broker account. Whose records a request is
            about is said by its subject, where the broker's permissions apply, and never by its body.
    """

    def __init__(self, transport: Transport, path: Path | str, *, tenants: Iterable[str] = ()) -> None:
        self.store = Store(path)
        self._transport = transport
        self._subjects = [subjects_on(transport, tenant) for tenant in dict.fromkeys(tenants)]
        self._subscriptions: list[Subscription] = []
        self._answers: deque[tuple[Call, bytes]] = deque()
        self._unanswered = 0
        self._wake = asyncio.Event()
        self._answerer: asyncio.Task[None] | None = None
        self._stopping = False
        self._endpoints = {name: Endpoint(name, subject, QUEUE_GROUP) for name, subject in self._listed().items()}
        self._registered: Service | None = None

    async def start(self) -> None:
        """Open the store and begin to answer.

        Raises:
            StoreError: The file cannot be opened; see `Store.open`.
            PermissionDeniedError: The broker does not let us subscribe.
        """
        await self.store.open()
        self._answerer = asyncio.get_running_loop().create_task(self._answer_all(), name="memory service answers")
        try:
            await self._subscribe()
            await self._register()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Take no more requests, answer those that are here, close the store. May be called again."""
        if self._registered is not None:
            self._transport.services.remove(self._registered)
            self._registered = None
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()
        await self.store.close()
        if self._answerer is not None:
            self._stopping = True  # the store has done everything, so every answer is in the queue
            self._wake.set()
            await asyncio.wait([self._answerer], timeout=ANSWER_GRACE)
            self._answerer.cancel()
            self._answerer = None

    # ------------------------------------------------------------ requests
    async def _subscribe(self) -> None:
        patterns = [(subjects.tenant, subjects.memory_pattern(), subjects.memory_door()) for subjects in self._subjects]
        for tenant, operations, door in patterns or [("", *MEMORY_OF_EVERY_TENANT)]:
            for subject, is_door in ((operations, False), (door, True)):
                callback = partial(self._on_request, tenant, is_door)
                self._subscriptions.append(await self._transport.subscribe(subject, callback, queue=QUEUE_GROUP))

    def _on_request(self, tenant: str, is_door: bool, message: Message) -> None:
        """One request: check it, hand it to the store. Runs in the connection's read loop and never waits."""
        call = Call("" if is_door else message.subject.rpartition(".")[2], message.reply)
        if self._unanswered >= MAX_UNANSWERED:
            self._refuse_at_once(call, StoreBusyError(self._unanswered))
            return
        self._unanswered += 1
        try:
            request = _decode(message.data)
            if request.operation not in ("", call.operation) and not is_door:
                raise InvalidMessageError(f"{request.operation!r} was sent to the subject of {call.operation!r}")
            call.operation = call.operation or request.operation
            owner = tenant or memory_tenant(message.subject)
            self.store.submit(call.operation, owner, request, partial(self._done, call), size=len(message.data))
        except AgentMeshError as error:
            self._done(call, error)

    def _done(self, call: Call, outcome: Outcome) -> None:
        """The store is done with it: queue the answer."""
        body = _error(outcome) if isinstance(outcome, BaseException) else msgspec.json.encode({"ok": outcome})
        self._count(call, outcome)
        if call.reply:
            self._answers.append((call, body))
            self._wake.set()
            return
        self._unanswered -= 1
        if isinstance(outcome, BaseException):
            log.warning("a %s without a reply subject was refused: %s", call.operation or "request", outcome)

    def _refuse_at_once(self, call: Call, error: AgentMeshError) -> None:
        """Past the queue of answers, which is part of what is full."""
        self._count(call, error)
        if call.reply:
            self._transport.connection.send(call.reply, _error(error))

    def _count(self, call: Call, outcome: Outcome) -> None:
        endpoint = self._endpoints.get(call.operation)
        if endpoint is not None:
            problem = str(outcome) if isinstance(outcome, BaseException) else ""
            endpoint.count(time.monotonic() - call.began, problem)

    # ------------------------------------------------------------ answers
    async def _answer_all(self) -> None:
        """Send answers in order, as fast as the broker takes them."""
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            while self._answers:
                call, body = self._answers.popleft()
                self._unanswered -= 1
                if self._transport.is_connected:  # else the asker knows, and repeats
                    await self._answer(call, body)

    async def _answer(self, call: Call, body: bytes) -> None:
        try:
            await self._transport.publish(call.reply, body)
        except PayloadTooLargeError as error:
            await self._answer(call, _error(error))
        except AgentMeshError as error:  # a bad reply subject, or the connection is gone: the asker repeats
            log.debug("no answer to a %s: %s", call.operation, error)

    # ------------------------------------------------------------ discovery
    def _listed(self) -> dict[str, str]:
        """The subject of each operation, as others see it."""
        if not self._subjects:
            return {name: MEMORY_OF_EVERY_TENANT[0].removesuffix("*") + name for name in sorted(OPERATIONS)}
        return {name: self._subjects[0].memory(name) for name in sorted(OPERATIONS)}

    async def _register(self) -> None:
        """Be listed as a NATS micro service."""
        service = Service(
            name="memory",
            version=__version__,
            description="Durable JSON records of agents, with full-text search",
            metadata={"agentmesh.tenants": ",".join(subjects.tenant for subjects in self._subjects) or "*"},
            endpoints=list(self._endpoints.values()),
        )
        try:
            await self._transport.services.start()
        except PermissionDeniedError as error:
            log.info("the memory service is not listed: %s", error)
            return
        self._registered = self._transport.services.add(service)


def _decode(data: bytes) -> MemoryRequest:
    try:
        return _decoder.decode(data or b"{}")
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidMessageError(f"not a memory request: {error}") from error


def _error(error: BaseException) -> bytes:
    return msgspec.json.encode({"error": error_to_wire(error)})
