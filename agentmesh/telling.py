"""Events: tell, publish, listen."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable

import msgspec

from agentmesh import codec
from agentmesh.asking import Asking
from agentmesh.errors import (
    AgentMeshError,
    DefinitionError,
    InvalidMessageError,
    MailboxFullError,
    NoSuchAgentError,
    StreamFullError,
)
from agentmesh.messages import Event
from agentmesh.subjects import Subjects, token
from agentmesh.tasks.spending import charge
from agentmesh.transport import Inbox, Transport, is_no_responders
from agentmesh.transport import Message as WireMessage

KNOWN_RECEIVERS = 1_000
"""Receivers of events whose refusals come back. Beyond that, those told first are no longer listened to."""

TELL_TIMEOUT = 30.0
"""Seconds until a durable event must be stored, unless told otherwise."""

log = logging.getLogger("agentmesh.client")


class Undelivered(msgspec.Struct):
    """An event that did not get into the mailbox it was sent to."""

    agent: str
    error: Exception


class Telling(Asking):
    """Events, to one agent or to a topic. One whose taking is to be confirmed goes as a request."""

    def __init__(self, transport: Transport, subjects: Subjects, identity: str) -> None:
        super().__init__(transport, subjects, identity)
        self.on_undelivered: Callable[[Undelivered], None] | None = None
        """Called for each told event that was refused or had no receiver, if the broker or the mailbox said so."""
        self._bounces: dict[str, Inbox] = {}
        self._quiet_until: dict[str, float] = {}

    def forget_receivers(self) -> None:
        """Hear no more of events that are refused, for a sender that has ended."""
        while self._bounces:
            self._bounces.popitem()[1].close()
        self._quiet_until.clear()

    async def tell(
        self, agent: str, event: Event, *, timeout: float | None = None, message_id: str | None = None
    ) -> None:
        """Send an event.

        Without `timeout` this returns when the event is on its way: at most once. If the mailbox refuses it, or
        nobody is there, `on_undelivered` is called and a warning logged. A durable event returns when it is stored.

        Args:
            agent: Who gets it.
            event: What.
            timeout: Wait up to this many seconds until the mailbox has taken it.
            message_id: An id of your own for a durable event: told again with it within 10 minutes, it is stored once.

        Raises:
            MailboxFullError: The mailbox refused it (with `timeout`, or durable).
            NoSuchAgentError: Nobody listens (with `timeout`).
            DeadlineExceededError: No confirmation in time (with `timeout`); it may have been taken.
            PublishTimeoutError: Unknown (durable): tell it again with the same `message_id`.
        """
        if not isinstance(event, Event):
            raise DefinitionError(type(event).__name__, "tell takes an Event; ask a Request, submit a Task")
        if event.durable:
            await self._tell_durable(agent, event, timeout, message_id)
        elif message_id is not None:
            raise DefinitionError(type(event).__name__, "only a durable event is stored once; leave the message_id out")
        elif timeout is None:
            envelope = self._envelope(agent, event)
            if envelope.budget:
                await charge(self.transport, self.subjects, envelope.budget)
            subject = self.subjects.mailbox(agent)
            tracer = self.transport.tracer
            headers = None if tracer is None else tracer.headers(envelope)
            await self.transport.publish(subject, codec.encode(envelope), self._bounce(agent), headers)
            if tracer is not None:
                self._sent(envelope)
        else:
            envelope = self._envelope(agent, event)
            envelope.confirm = True
            await self._request(agent, envelope, timeout)

    async def _tell_durable(self, agent: str, event: Event, timeout: float | None, message_id: str | None) -> None:
        await self.tasks.ensure()
        envelope = self._envelope(agent, event)
        if message_id is not None:
            envelope.message_id = token("message id", message_id)
        if envelope.budget:
            await charge(self.transport, self.subjects, envelope.budget)
        subject = self.subjects.durable_mailbox(agent)
        try:
            # The window of duplicates is the stream's, which all agents of all tenants share.
            await self.transport.publish_durable(
                subject,
                codec.encode(envelope),
                msg_id=f"{self.subjects.tenant}.{agent}.{envelope.message_id}",
                headers=self._headers(envelope),
                timeout=timeout or TELL_TIMEOUT,
            )
            self._sent(envelope)
        except StreamFullError as error:
            raise MailboxFullError(agent, await self.tasks.mailbox_limit()) from error

    async def publish(self, topic: str, event: Event) -> None:
        """Publish an event to whoever listens to `topic`: at most once, each agent gets it once."""
        if not isinstance(event, Event) or event.durable:
            raise DefinitionError(type(event).__name__, "publish takes an Event that is not durable; tell that one")
        envelope = self._envelope("", event)
        if envelope.budget:
            await charge(self.transport, self.subjects, envelope.budget)
        await self.transport.publish(
            self.subjects.topic(topic), codec.encode(envelope), headers=self._headers(envelope)
        )
        self._sent(envelope)

    async def listen(self, pattern: str, *, limit: int = 10_000) -> AsyncGenerator[tuple[str, codec.Envelope], None]:
        """Topics and envelopes of events published from the first step of the loop on, in order.

        What is no message is left out.

        Args:
            pattern: A topic; `*` stands for one token, a final `>` for the rest.
            limit: Events held for a slow reader; then the oldest are dropped and a warning logged.
        """
        waiting: deque[tuple[str, codec.Envelope]] = deque()
        arrived = asyncio.Event()
        prefix = len(self.subjects.topic("x")) - 1
        dropped = 0

        def take(message: WireMessage) -> None:
            nonlocal dropped
            try:
                envelope = codec.decode_foreign(message.data, message.headers, False)
            except InvalidMessageError as error:
                log.debug("listener of %r: %s", pattern, error)
                return
            if len(waiting) >= limit:
                waiting.popleft()
                dropped += 1
            waiting.append((message.subject[prefix:], envelope))
            arrived.set()

        subscription = await self.transport.subscribe(self.subjects.topic_pattern(pattern), take)
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                if dropped:
                    log.warning("listener of %r is slow: %d events were dropped", pattern, dropped)
                    dropped = 0
                while waiting:
                    yield waiting.popleft()
        finally:
            await subscription.unsubscribe()

    def _bounce(self, agent: str) -> str:
        """The reply subject of told events, one per receiver: refusals and 'no responders' come back to it."""
        inbox = self._bounces.get(agent)
        if inbox is None:
            if len(self._bounces) >= KNOWN_RECEIVERS:
                first = next(iter(self._bounces))
                self._bounces.pop(first).close()
                self._quiet_until.pop(first, None)
            inbox = self._bounces[agent] = self.transport.open_inbox(lambda message: self._bounced(agent, message))
        return inbox.subject

    def _bounced(self, agent: str, message: WireMessage) -> None:
        error: AgentMeshError
        if is_no_responders(message):
            error = NoSuchAgentError(agent)
        else:
            try:
                answer = codec.decode(message.data)
            except InvalidMessageError:
                return
            if answer.message_type != codec.ERROR:
                return
            error = codec.decode_error(answer.content, agent)
        self._warn(agent, error)
        if self.on_undelivered is not None:
            self.on_undelivered(Undelivered(agent, error))

    def _warn(self, agent: str, error: AgentMeshError) -> None:
        """One line a second and receiver: a flood of refusals must not become a flood of log lines."""
        time = asyncio.get_running_loop().time()
        if time >= self._quiet_until.get(agent, 0.0):
            self._quiet_until[agent] = time + 1.0
            log.warning("an event told to %r was not delivered: %s", agent, error)
