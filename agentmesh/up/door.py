"""The door for messages: whoever does not know subjects sends to `ai.agent.message.T` and names the agent.

The agent is named by the header `target_agent_id` or by the field of that name in the JSON document. The answer comes
to the reply subject of the sender, as if the agent had been asked directly; an agent that is not there is a typed
error. Several routers may run: each message is forwarded by one of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import msgspec

from agentmesh import codec, registry
from agentmesh.errors import AgentMeshError, InvalidMessageError, InvalidNameError, NoSuchAgentError
from agentmesh.ids import new_id, now
from agentmesh.subjects import Subjects
from agentmesh.transport import Inbox, Message, Subscription, Transport, is_no_responders

log = logging.getLogger("agentmesh.door")

GROUP = "doors"
"""Queue group of the routers of a tenant."""

IDLE = 300.0
"""Seconds without any answer after which a conversation through the door is forgotten."""


class _Outline(msgspec.Struct):
    target_agent_id: str = ""


_outline = msgspec.json.Decoder(_Outline)


class MessageDoor:
    """See the module."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._subscription: Subscription | None = None
        self._posts: deque[tuple[str, bytes, str, dict[str, str] | None]] = deque()
        self._poster: asyncio.Task[None] | None = None
        self._relays: set[_Relay] = set()
        self._lookups: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Open the door."""
        self._subscription = await self._transport.subscribe(
            self._subjects.message_door(), self._on_message, queue=GROUP
        )
        self._sweep()

    async def stop(self) -> None:
        """Close it; conversations under way end without an answer."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for relay in list(self._relays):
            self.close(relay)
        for work in [*self._lookups, *([self._poster] if self._poster else [])]:
            work.cancel()

    def _on_message(self, message: Message) -> None:
        try:
            agent = _target(message)
            subject = self._subjects.mailbox(agent)
        except (InvalidMessageError, InvalidNameError) as error:
            self.refuse(message.reply, error)
            return
        relay = _Relay(self, agent, message.reply) if message.reply else None
        if relay is not None:
            self._relays.add(relay)
        self.post(subject, message.data, relay.subject if relay else "", message.headers)

    def post(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send in order, from a callback that cannot wait: one task for all that is due."""
        self._posts.append((subject, data, reply, headers))
        if self._poster is None or self._poster.done():
            self._poster = asyncio.get_running_loop().create_task(self._send(), name="message door")

    async def _send(self) -> None:
        while self._posts:
            subject, data, reply, headers = self._posts.popleft()
            try:
                await self._transport.publish(subject, data, reply, headers)
            except AgentMeshError as error:
                log.warning("the message door could not forward to %s: %s", subject, error)

    def refuse(self, reply: str, error: AgentMeshError) -> None:
        """Tell the sender why its message went nowhere."""
        if not reply:
            log.warning("a message at the door was dropped: %s", error)
            return
        answer = codec.Envelope(
            message_id=new_id(), message_type=codec.ERROR, timestamp=now(), content=codec.encode_error(error)
        )
        self.post(reply, codec.encode(answer))

    def nobody(self, agent: str, reply: str) -> None:
        """Tell the sender that the agent is not there, and who may have been meant."""

        async def look() -> None:
            known = await registry.discover(self._transport, self._subjects, brief=True, timeout=0.08, stall=0.03)
            self.refuse(reply, NoSuchAgentError(agent, registry.near_misses(agent, (info.name for info in known))))

        lookup = asyncio.get_running_loop().create_task(look(), name="message door: near misses")
        self._lookups.add(lookup)
        lookup.add_done_callback(self._lookups.discard)

    def open_inbox(self, relay: _Relay) -> Inbox:
        return self._transport.open_inbox(relay.on_answer)

    def close(self, relay: _Relay) -> None:
        """Forget a conversation."""
        self._relays.discard(relay)
        relay.inbox.close()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for relay in [relay for relay in self._relays if relay.last < loop.time() - IDLE]:
            self.close(relay)
        self._sweeper = loop.call_later(IDLE / 10, self._sweep)


class _Relay:
    """One conversation: passes on what the agent answers. Its own inbox is how the broker can say 'nobody there'."""

    def __init__(self, door: MessageDoor, agent: str, reply: str) -> None:
        self._door = door
        self._agent = agent
        self._reply = reply
        self.last = asyncio.get_running_loop().time()
        self.inbox = door.open_inbox(self)

    @property
    def subject(self) -> str:
        return self.inbox.subject

    def on_answer(self, message: Message) -> None:
        self.last = asyncio.get_running_loop().time()
        if is_no_responders(message):
            self._door.close(self)
            self._door.nobody(self._agent, self._reply)
            return
        self._door.post(self._reply, message.data, message.reply, message.headers)
        if _is_last(message.data):
            self._door.close(self)


def _is_last(data: bytes) -> bool:
    """Whether nothing follows this answer."""
    try:
        return codec.decode(data).message_type != codec.CHUNK
    except InvalidMessageError:
        return True


def _target(message: Message) -> str:
    named = (message.headers or {}).get("target_agent_id", "")
    if named:
        return named
    try:
        named = _outline.decode(message.data).target_agent_id
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        named = ""
    if not named:
        raise InvalidMessageError("it names no agent: set the header or the JSON field 'target_agent_id'")
    return named
