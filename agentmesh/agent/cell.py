"""One running replica of an agent: its mailbox, its instance, and the loop that brings them together.

The life of a message, top to bottom, is `_process`. There is no task while the mailbox is empty: the first message
starts a worker, and the worker ends when nothing waits. At most `concurrency` workers run; a task from the durable
queue takes the turn of a worker, so the limit holds for messages and tasks together.

The mailbox belongs to the cell, the instance to the current life of the agent: when an event handler fails, the cell
says so (`failed`), and its supervisor starts it again with a new instance and the same mailbox. A failing request or
task handler does not end the agent: its caller is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import msgspec

from agentmesh import codec
from agentmesh.agent.declare import Agent, Behaviour, Handler, behaviour
from agentmesh.client import Client
from agentmesh.context import Context, enter, leave
from agentmesh.errors import (
    AgentMeshError,
    AgentStoppedError,
    AskerGoneError,
    InvalidMessageError,
    MailboxFullError,
    NoHandlerError,
)
from agentmesh.ids import new_id, now
from agentmesh.mailbox import Mailbox, Overflow
from agentmesh.messages import Task
from agentmesh.streaming import StreamWriter
from agentmesh.transport import Message as WireMessage
from agentmesh.transport import Subscription

log = logging.getLogger("agentmesh.agent")

STOP_REPLY_TIMEOUT = 1.0
"""Seconds a stopping cell gives itself to answer those who still wait."""


@dataclass(slots=True, eq=False)
class Letter:
    """A message in the mailbox."""

    handler: Handler
    envelope: codec.Envelope
    reply: str
    """Where an answer or a refusal goes; empty if nobody listens."""
    settle: Callable[[BaseException | None], Awaitable[None]] | None = None
    """For durable events: what to do with the stored message when it was handled, or failed."""
    handling: bool = False
    """The handler runs now, and may be cancelled."""
    why_cancelled: AgentMeshError | None = None
    """Set before the handler is cancelled by us: what the asker is told."""


@dataclass(slots=True, eq=False)
class _Turn:
    """A task of the durable queue that waits for a free worker."""

    begin: asyncio.Future[None]
    done: asyncio.Future[None]


@dataclass(slots=True)
class Counters:
    """What the cell has done since it was made."""

    handled: int = 0
    failed: int = 0
    refused: int = 0
    restarts: int = 0
    busy: float = 0.0
    """Seconds spent in handlers of events and requests."""


@dataclass(slots=True)
class CellOptions:
    """What may differ from the agent class's own settings."""

    name: str = ""
    replica: int = 1
    concurrency: int | None = None
    prefetch: int | None = None
    mailbox_size: int | None = None
    overflow: Overflow | None = None
    restart: str | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class AgentCell:
    """See the module.

    Args:
        client: The connection; the agent sends under its own name over it.
        agent_class: The behaviour.
        factory: Makes an instance; called again for each restart.
        options: What differs from the class's own settings.
    """

    def __init__(
        self, client: Client, agent_class: type[Agent], factory: Callable[[], Agent], options: CellOptions | None = None
    ) -> None:
        chosen = options or CellOptions()
        self.behaviour: Behaviour = behaviour(agent_class)
        self.name = chosen.name or self.behaviour.name
        self.replica = chosen.replica
        self.concurrency = chosen.concurrency or agent_class.concurrency
        self.prefetch = agent_class.prefetch if chosen.prefetch is None else chosen.prefetch
        self.restart = chosen.restart or agent_class.restart
        self.mailbox: Mailbox[Letter] = Mailbox(
            chosen.mailbox_size or agent_class.mailbox_size,
            chosen.overflow or agent_class.overflow,
        )
        self.client = client.bound(self.name)
        self.state = "starting"
        self.problem = ""
        self.started_at = now()
        self.counters = Counters()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._factory = factory
        self._instance: Agent | None = None
        self._workers: dict[asyncio.Task[None], Letter | None] = {}
        self._turns: deque[_Turn] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_was_turn = False
        self._halted = False
        """Set when even what waits is no longer handled."""
        self._subscriptions: list[Subscription] = []
        self._posts: deque[tuple[str, bytes]] = deque()
        self._poster: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def in_flight(self) -> int:
        """Messages and tasks being handled now."""
        return sum(letter is not None for letter in self._workers.values()) + len(self._tasks)

    # ------------------------------------------------------------ life
    async def start(self) -> None:
        """Make the instance, run `on_start`, and take messages. Called again after a failure, it starts a new life."""
        again = self._instance is not None or self.failed.done()
        if again:
            self.counters.restarts += 1
            await self._interrupt()
            await self._end_life()
            self.failed = asyncio.get_running_loop().create_future()
        self.state, self.problem = "starting", ""
        try:
            instance = self._factory()
            instance.name, instance.mesh = self.name, self.client
            instance.memory, instance.tools = self.client.memory(self.name), self.client.tools
            await instance.on_start()
        except Exception as error:  # user code: reported, and the supervisor decides
            self.state, self.problem = "failed", f"{type(error).__name__}: {error}"
            if not self.failed.done():
                self.failed.set_result(error)
            raise
        self._instance = instance
        self.state = "ready"
        await self._subscribe()
        self._wake()

    async def stop(self, grace: float) -> None:
        """Refuse new messages, handle those that wait within `grace` seconds, answer everybody who still waits."""
        await asyncio.gather(*(subscription.drain() for subscription in self._subscriptions))
        self.state = "stopping"
        self._subscriptions.clear()
        if self._instance is not None and grace > 0 and not self.failed.done():
            try:
                async with asyncio.timeout(grace):
                    await self._empty.wait()
            except TimeoutError:
                log.warning("%s: %d messages were not handled within %g s", self.name, len(self.mailbox), grace)
        self._halted = True
        await self._interrupt()
        for letter in self.mailbox.clear():
            await self._refuse_now(letter, AgentStoppedError(self.name))
        while self._turns:
            self._turns.popleft().begin.cancel()
        await self._end_life()
        if self._poster is not None:
            await asyncio.wait([self._poster], timeout=STOP_REPLY_TIMEOUT)
        self.state = "stopped"

    async def kill(self) -> None:
        """Stop at once, without `on_stop`; those who wait are still answered."""
        self._instance, killed = None, self._instance
        await self.stop(0.0)
        del killed

    async def _end_life(self) -> None:
        instance, self._instance = self._instance, None
        if instance is None:
            return
        try:
            await instance.on_stop()
        except Exception:  # user code at the edge: the old life ends whatever it says
            log.exception("%s: on_stop failed", self.name)

    async def _subscribe(self) -> None:
        if self._subscriptions:
            return
        subjects, transport = self.client.subjects, self.client.transport
        group = subjects.mailbox_group(self.name)
        self._subscriptions.append(
            await transport.subscribe(subjects.mailbox(self.name), self._on_message, queue=group)
        )
        for topic, entry in self.behaviour.topics.items():

            def take(message: WireMessage, entry: Handler = entry) -> None:
                self._on_published(message, entry)

            self._subscriptions.append(await transport.subscribe(subjects.topic_pattern(topic), take, queue=group))

    # ------------------------------------------------------------ arrival
    def _on_message(self, message: WireMessage) -> None:
        data, reply = message.data, message.reply
        try:
            try:
                envelope = codec.decode(data)
            except InvalidMessageError:
                envelope = codec.decode_foreign(data, message.headers, bool(reply))
            entry = self.behaviour.handlers.get(envelope.message_type)
            if entry is None or entry.kind == "task":
                raise NoHandlerError(self.name, envelope.message_type, self._takes())
        except AgentMeshError as error:
            self.counters.refused += 1
            if reply:
                self._post(reply, self._error(error, ""))
            return
        self.deliver(Letter(entry, envelope, reply))

    def _on_published(self, message: WireMessage, entry: Handler) -> None:
        """A topic carries several types; what this handler does not take was meant for others."""
        try:
            envelope = codec.decode_foreign(message.data, message.headers, False)
        except InvalidMessageError:
            self.counters.refused += 1
            return
        if envelope.message_type == entry.message_type._wire_name:
            self.deliver(Letter(entry, envelope, ""))

    def deliver(self, letter: Letter) -> None:
        """Put a letter into the mailbox, or refuse it."""
        if self.state in ("stopping", "stopped"):
            self._refuse(letter, AgentStoppedError(self.name))
            return
        inside, refused = self.mailbox.put(letter)
        if refused is not None:
            self._refuse(refused, MailboxFullError(self.name, self.mailbox.capacity))
        if inside:
            if letter.envelope.confirm:
                self._confirm(letter)
            self._wake()

    def deliver_stored(self, letter: Letter) -> bool:
        """Put an event of the durable mailbox into the mailbox, full or not; False when the cell is stopping."""
        if self.state in ("stopping", "stopped"):
            return False
        self.mailbox.put_beyond(letter)
        self._wake()
        return True

    def _takes(self) -> list[str]:
        return [name for name, entry in self.behaviour.handlers.items() if entry.kind != "task"]

    # ------------------------------------------------------------ workers
    def _wake(self) -> None:
        if len(self._workers) < self.concurrency and (self._turns or len(self.mailbox)) and self._alive():
            self._empty.clear()
            worker = asyncio.get_running_loop().create_task(self._work(), name=f"agent {self.name}")
            self._workers[worker] = None
            worker.add_done_callback(self._worker_done)

    def _alive(self) -> bool:
        return self._instance is not None and not self._halted and not self.failed.done()

    def _worker_done(self, worker: asyncio.Task[None]) -> None:
        del self._workers[worker]
        if not worker.cancelled() and worker.exception() is not None:
            log.error("%s: worker failed", self.name, exc_info=worker.exception())
        self._wake()
        if not self._workers:
            self._empty.set()

    async def _work(self) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        while self._alive():
            if self._turns and (not self._last_was_turn or not len(self.mailbox)):
                self._last_was_turn = True
                await self._give_turn(self._turns.popleft())
            elif len(self.mailbox):
                self._last_was_turn = False
                letter, admitted = self.mailbox.pop()
                if admitted is not None and admitted.envelope.confirm:
                    self._confirm(admitted)
                if (self._turns or len(self.mailbox)) and len(self._workers) < self.concurrency:
                    self._wake()
                self._workers[worker] = letter
                await self._process(letter, worker)
                self._workers[worker] = None
                if worker.cancelling():
                    return
            else:
                return

    async def _give_turn(self, turn: _Turn) -> None:
        """Stand still while a task of the durable queue is run in this worker's place."""
        if turn.begin.done():
            return
        turn.begin.set_result(None)
        self._wake()
        await turn.done

    async def run_task(self, task: Task[Any], context: Any) -> Any:
        """Run the handler of a task when the agent has a free worker.

        Raises:
            AgentStoppedError: The agent stopped before it began.
            Exception: Whatever the handler raises; cancelling this cancels the handler.
        """
        entry = self.behaviour.handlers[task._wire_name]
        loop = asyncio.get_running_loop()
        turn = _Turn(loop.create_future(), loop.create_future())
        self._turns.append(turn)
        self._wake()
        try:
            await turn.begin
        except asyncio.CancelledError:
            if turn.begin.cancelled() and self.state in ("stopping", "stopped"):
                raise AgentStoppedError(self.name) from None
            turn.begin.cancel()
            raise
        running = asyncio.current_task()
        assert running is not None
        self._tasks.add(running)
        try:
            if self._instance is None:
                raise AgentStoppedError(self.name)
            result = await entry.call(self._instance, task, context)
            self.counters.handled += 1
            return result
        except asyncio.CancelledError:
            if self._alive() and self.state == "ready":
                raise
            running.uncancel()  # the agent ended, not the caller: another replica may do it
            raise AgentStoppedError(self.name) from None
        except Exception:
            self.counters.failed += 1
            raise
        finally:
            self._tasks.discard(running)
            turn.done.set_result(None)

    async def _interrupt(self) -> None:
        """End the handlers that run; whoever waits for one is told that the agent stopped."""
        for worker, letter in list(self._workers.items()):
            if letter is not None and letter.why_cancelled is None:
                letter.why_cancelled = AgentStoppedError(self.name)
                worker.cancel()
        for task in list(self._tasks):
            task.cancel()
        if self._workers:
            await asyncio.wait(list(self._workers), timeout=STOP_REPLY_TIMEOUT)

    def cancel(self, message_id: str) -> bool:
        """Cancel the handler of that request, or see to it that the waiting request is skipped; whether it is here."""
        for worker, letter in self._workers.items():
            if letter is not None and letter.handling and letter.envelope.message_id == message_id:
                letter.why_cancelled = AskerGoneError()
                worker.cancel()
                return True
        for waiting in self.mailbox:
            if waiting.envelope.message_id == message_id:
                waiting.why_cancelled = AskerGoneError()
                return True
        return False

    def cancel_overdue(self) -> None:
        """Cancel handlers of requests whose asker has stopped waiting."""
        time_of_day = now()
        for letter in list(self._workers.values()):
            if letter is not None and letter.reply and letter.envelope.deadline is not None:
                overdue = letter.envelope.deadline < time_of_day
                if overdue and self.cancel(letter.envelope.message_id):
                    log.warning("%s: %s was cancelled at its deadline", self.name, letter.envelope.message_type)

    # ------------------------------------------------------------ the life of a message
    async def _process(self, letter: Letter, worker: asyncio.Task[None]) -> None:
        envelope = letter.envelope
        overdue = letter.reply and envelope.deadline is not None and envelope.deadline < now()
        if overdue or letter.why_cancelled is not None:
            return  # the asker has gone
        context = Context(
            self.name,
            envelope.source_agent_id,
            envelope.message_id,
            envelope.trace_id or envelope.message_id,
            envelope.deadline if letter.handler.kind != "event" else None,
            envelope.hops,
        )
        token = enter(context)
        letter.handling = True
        began = perf_counter()
        try:
            await self._handle(letter, context)
            error: BaseException | None = None
        except asyncio.CancelledError as cancelled:
            if letter.why_cancelled is not None:
                error = letter.why_cancelled
                if not isinstance(error, AgentStoppedError):
                    worker.uncancel()  # it was the message that was cancelled, not the worker
            elif worker.cancelling():
                raise
            else:
                error = cancelled  # something inside the handler was cancelled: that is its failure, not our end
        except Exception as raised:  # user code: the sender or the supervisor is told
            error = raised
        finally:
            letter.handling = False
            self.counters.busy += perf_counter() - began
            leave(token)
        await self._conclude(letter, error)

    async def _handle(self, letter: Letter, context: Context) -> None:
        entry, envelope = letter.handler, letter.envelope
        message = codec.decode_body(entry.message_type, envelope.content)
        assert self._instance is not None
        if entry.kind == "stream":
            await self._stream(letter, entry.call(self._instance, message, context))
            return
        result = await entry.call(self._instance, message, context)
        if entry.kind == "request" and letter.reply:
            await self._reply(letter, codec.encode_body(result, entry.reply_type))

    async def _stream(self, letter: Letter, chunks: Any) -> None:
        entry, envelope = letter.handler, letter.envelope
        try:
            if not envelope.window:  # one reply is wanted: all chunks together
                whole = [chunk async for chunk in chunks]
                joined = "".join(whole) if entry.reply_type is str else whole
                await self._reply(letter, codec.encode_body(joined))
                return
            writer = StreamWriter(
                self.client.transport, letter.reply, envelope.message_id, self.name, entry.reply_type, envelope.window
            )
            try:
                async for chunk in chunks:
                    await writer.send(chunk)
                await writer.end()
            finally:
                writer.close()
        finally:
            await chunks.aclose()

    async def _conclude(self, letter: Letter, error: BaseException | None) -> None:
        if letter.settle is not None:
            await letter.settle(error)
        if error is None:
            self.counters.handled += 1
            return
        if isinstance(error, AskerGoneError):
            return
        self.counters.failed += 1
        kind = letter.handler.kind
        if kind != "event":
            if not isinstance(error, AgentMeshError):
                log.error("%s: handler of %s failed", self.name, letter.envelope.message_type, exc_info=error)
            if letter.reply:
                await self.client.transport.publish(letter.reply, self._error(error, letter.envelope.message_id))
        elif not isinstance(error, (AgentStoppedError, InvalidMessageError)) and letter.settle is None:
            await self._fail(error, letter)
        else:
            log.warning("%s: %s was not handled: %s", self.name, letter.envelope.message_type, error)

    async def _fail(self, error: BaseException, letter: Letter) -> None:
        """An event handler failed and nobody waits for an answer: the supervisor is told, and starts a new life."""
        log.error("%s: handler of %s failed", self.name, letter.envelope.message_type, exc_info=error)
        if self._instance is not None:
            try:
                await self._instance.on_failure(error, letter.envelope)
            except Exception:  # user code at the edge: the restart comes in any case
                log.exception("%s: on_failure failed", self.name)
        self.state, self.problem = "restarting", f"{type(error).__name__}: {error}"
        if not self.failed.done():
            self.failed.set_result(error)

    # ------------------------------------------------------------ answers
    async def _reply(self, letter: Letter, body: bytes) -> None:
        answer = self._answer(codec.REPLY, letter.envelope.message_id, msgspec.Raw(body))
        await self.client.transport.publish(letter.reply, answer)

    def _answer(self, message_type: str, request_id: str, content: msgspec.Raw = codec.NULL) -> bytes:
        return codec.encode(
            codec.Envelope(
                message_id=new_id(),
                message_type=message_type,
                source_agent_id=self.name,
                correlation_id=request_id,
                content=content,
            )
        )

    def _error(self, error: BaseException, request_id: str) -> bytes:
        return self._answer(codec.ERROR, request_id, codec.encode_error(error))

    def _confirm(self, letter: Letter) -> None:
        if letter.reply:
            self._post(letter.reply, self._answer(codec.ACCEPTED, letter.envelope.message_id))

    def _refuse(self, letter: Letter, error: AgentMeshError) -> None:
        self.counters.refused += 1
        if letter.reply:
            self._post(letter.reply, self._error(error, letter.envelope.message_id))

    async def _refuse_now(self, letter: Letter, error: AgentMeshError) -> None:
        if letter.settle is not None:
            await letter.settle(error)
        elif letter.reply:
            await self.client.transport.publish(letter.reply, self._error(error, letter.envelope.message_id))

    def _post(self, subject: str, data: bytes) -> None:
        """Send from a callback that cannot await: one task for all that waits, not one per message."""
        self._posts.append((subject, data))
        if self._poster is None or self._poster.done():
            self._poster = asyncio.get_running_loop().create_task(self._send_posts(), name=f"answers of {self.name}")

    async def _send_posts(self) -> None:
        while self._posts:
            subject, data = self._posts.popleft()
            try:
                await self.client.transport.publish(subject, data)
            except AgentMeshError as error:  # the asker's own deadline tells it
                log.warning("%s: an answer could not be sent: %s", self.name, error)
