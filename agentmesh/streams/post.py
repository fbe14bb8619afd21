"""Prompts about streams, on `ai.agent.control.T.stream.<id>`: look whether you were cancelled, are you alive, make way.

They are never trusted alone: what counts is what is stored. One subscription per connection and tenant serves all runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

import msgspec

from agentmesh.errors import BrokerError, DeadlineExceededError, NoRespondersError
from agentmesh.subjects import Subjects
from agentmesh.transport import Message, Subscription, Transport

CANCEL, ALIVE, WAY = "cancel", "alive", "way"

log = logging.getLogger("agentmesh.streams")


class Prompt(msgspec.Struct, omit_defaults=True):
    """What is asked."""

    op: str = ""
    run_id: str = ""
    """Whom it is for; of `way`, who asks all others."""
    epoch: int = 0


class Producer(Protocol):
    """Who is asked."""

    run_id: str
    epoch: int

    def prompted(self, op: str) -> None: ...


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Prompt).decode


class Post:
    """Takes prompts for the runs of one connection, and sends them."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._runs: dict[str, set[Producer]] = {}
        self._subscription: Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscribing: asyncio.Task[None] | None = None

    def join(self, conversation_id: str, run: Producer) -> None:
        """From now on the run is prompted; the first one on a connection, as soon as the broker knows."""
        self._runs.setdefault(conversation_id, set()).add(run)
        if self._subscription is None and self._subscribing is None:
            self._subscribing = self._begin(self._subscribe())
            self._subscribing.add_done_callback(self._subscribed)

    def leave(self, conversation_id: str, run: Producer) -> None:
        """No more prompts for it."""
        runs = self._runs.get(conversation_id, set())
        runs.discard(run)
        if not runs:
            self._runs.pop(conversation_id, None)

    async def send(self, conversation_id: str, op: str, run_id: str = "", epoch: int = 0) -> None:
        """Prompt that run, or all of the conversation; for `way`, all but that one."""
        try:
            await self._transport.publish(
                self._subjects.stream_control(conversation_id), _encode(Prompt(op, run_id, epoch))
            )
        except BrokerError as error:
            log.debug("prompt %r for stream %r: %s", op, conversation_id, error)

    async def alive(self, conversation_id: str, run_id: str, epoch: int, timeout: float) -> bool:
        """Whether the producer of that take of the run answers within `timeout` seconds."""
        subject = self._subjects.stream_control(conversation_id)
        try:
            await self._transport.request(subject, _encode(Prompt(ALIVE, run_id, epoch)), timeout=timeout)
        except NoRespondersError:
            await asyncio.sleep(timeout)  # its connection may be about to come back
            return False
        except (BrokerError, DeadlineExceededError):
            return False
        return True

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name="streams: prompts")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _subscribe(self) -> None:
        self._subscription = await self._transport.subscribe(self._subjects.stream_controls(), self._on_prompt)

    def _subscribed(self, task: asyncio.Task[None]) -> None:
        self._subscribing = None
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.warning("producers on this connection cannot be prompted: %s", problem)

    def _on_prompt(self, message: Message) -> None:
        runs = self._runs.get(message.subject.rpartition(".")[2])
        if not runs:
            return
        try:
            prompt = _decode(message.data)
        except msgspec.MsgspecError:
            return
        for run in tuple(runs):
            if prompt.op == WAY:
                if prompt.run_id != run.run_id:
                    run.prompted(WAY)
            elif prompt.run_id not in ("", run.run_id):
                continue
            elif prompt.op != ALIVE:
                run.prompted(prompt.op)
            elif prompt.epoch <= run.epoch and message.reply:
                self._begin(self._answer(message.reply))

    async def _answer(self, reply: str) -> None:
        try:
            await self._transport.publish(reply, b"{}")
        except BrokerError as error:
            log.debug("cannot say that a producer is alive: %s", error)


def post_of(transport: Transport, subjects: Subjects) -> Post:
    """The one of a connection and tenant."""
    key = ("stream-prompts", subjects.tenant)
    post: Post | None = transport.shared.get(key)
    if post is None:
        post = transport.shared[key] = Post(transport, subjects)
    return post
