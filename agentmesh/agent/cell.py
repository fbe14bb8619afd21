"""One running replica of an agent: its mailbox, its instance, and what brings them together.

The life of a message, top to bottom, is `_process`. There is no task while the mailbox is empty: the first message
starts a worker, and the worker ends when nothing waits. A worker takes one of `concurrency` slots; tasks and stored
events, which come from elsewhere, take a slot each, so the limit holds for all of them together. When both wait, slots
go to them in turn.

The mailbox belongs to the cell; the instance, the slots and the workers belong to one `_Life`. When an event handler
fails, that life is over and the cell says so (`failed`); its supervisor starts it again, with a new life and the same
mailbox. A failing request or task handler does not end the agent: its caller is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from agentmesh import codec
from agentmesh.agent.answers import Answers
from agentmesh.agent.declare import Agent, Behaviour, behaviour, check_settings
from agentmesh.agent.letter import CellOptions, Counters, Letter
from agentmesh.client import Client
from agentmesh.context import Context, enter, leave
from agentmesh.errors import (
    AgentMeshError,
    AgentStoppedError,
    AskerGoneError,
    InvalidMessageError,
    MailboxFullError,
    NoHandlerError,
    RemoteError,
)
from agentmesh.ids import now
from agentmesh.mailbox import Mailbox
from agentmesh.messages import Message, Task
from agentmesh.streaming import StreamWriter
from agentmesh.subjects import token
from agentmesh.transport import Message as WireMessage
from agentmesh.transport import Subscription

log = logging.getLogger("agentmesh.agent")

INTERRUPT_TIMEOUT = 1.0
"""Seconds that cancelled handlers get to end; those that do not are left behind."""

FLUSH_TIMEOUT = 1.0
"""Seconds a stopping cell gives itself to answer those who still wait."""

HOOK_TIMEOUT = 5.0
"""Seconds that `on_failure` and `on_stop` may take."""

GONE_LIMIT = 10_000
"""Requests given up by their askers that are remembered while messages wait."""


class _Life:
    """An instance, from its start to its end, and what it is working on."""

    __slots__ = ("cause", "concurrency", "free", "guests", "idle", "instance", "over", "workers")

    def __init__(self, instance: Agent, concurrency: int) -> None:
        self.instance = instance
        self.concurrency = concurrency
        self.free = concurrency
        """Slots that nobody has."""
        self.idle = asyncio.Event()
        """All slots are free."""
        self.idle.set()
        self.workers: dict[asyncio.Task[None], Letter | None] = {}
        """Each with the letter in its hands."""
        self.guests: dict[asyncio.Task[Any], bool] = {}
        """Tasks that run a handler in a slot, though they are not ours; and whether we cancelled them."""
        self.over = False
        """Nothing new begins in this life."""
        self.cause: tuple[BaseException, Message] | None = None
        """The failure that ended it, and the event whose handler failed."""

    def take(self) -> None:
        self.free -= 1
        self.idle.clear()


class AgentCell:
    """See the module.

    Args:
        client: The connection; the agent sends under its own name over it.
        agent_class: The behaviour.
        factory: Makes an instance; called again for each restart.
        options: What differs from the class's own settings.

    Raises:
        DefinitionError: A setting cannot work.
        InvalidNameError: The name cannot be an address.
    """

    def __init__(
        self, client: Client, agent_class: type[Agent], factory: Callable[[], Agent], options: CellOptions | None = None
    ) -> None:
        chosen = options or CellOptions()
        self.behaviour: Behaviour = behaviour(agent_class)
        self.name = token("agent", chosen.name or self.behaviour.name)
        self.replica = chosen.replica
        self.concurrency = _either(chosen.concurrency, agent_class.concurrency)
        self.prefetch = _either(chosen.prefetch, agent_class.prefetch)
        self.restart_type = _either(chosen.restart, agent_class.restart)
        size = _either(chosen.mailbox_size, agent_class.mailbox_size)
        overflow = _either(chosen.overflow, agent_class.overflow)
        check_settings(self.name, self.concurrency, self.prefetch, size, overflow, self.restart_type)
        self.mailbox: Mailbox[Letter] = Mailbox(size, overflow)
        self.client = client.bound(self.name)
        self.state = "starting"
        self.problem = ""
        self.started_at = now()
        self.counters = Counters()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Set when this life has failed, or the next one could not begin; another one after each restart."""
        self._factory = factory
        self._answers = Answers(self.client.transport, self.name)
        self._life: _Life | None = None
        self._lives = 0
        self._changing = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        """No further life begins."""
        self._over = False
        """Nothing is taken any more."""
        self._turns: deque[asyncio.Future[_Life | None]] = deque()
        self._last_was_turn = False
        self._gone: set[str] = set()
        """Ids of requests whose askers have gone; some of those may be in the mailbox."""
        self._subscriptions: list[Subscription] = []

    @property
    def in_flight(self) -> int:
        """Messages and tasks being handled now."""
        return 0 if self._life is None else self._life.concurrency - self._life.free

    # ------------------------------------------------------------ life and death
    async def start(self) -> None:
        """Begin a life: make the instance, run `on_start`, and take messages. Does nothing while one goes on.

        Raises:
            AgentStoppedError: It was stopped meanwhile.
            Exception: What the constructor or `on_start` raised; the supervisor decides what is next.
        """
        async with self._changing:
            if self._life is None or self._life.over:
                await self._begin_life()

    async def restart(self) -> None:
        """End this life and begin another; what is being handled is interrupted, and what waits is kept."""
        async with self._changing:
            await self._begin_life()

    async def stop(self, grace: float, *, hooks: bool = True) -> None:
        """Refuse new messages, handle those that wait within `grace` seconds, answer everybody who still waits.

        Args:
            grace: Seconds; 0 interrupts at once.
            hooks: Run `on_stop`, which gets `HOOK_TIMEOUT` seconds.
        """
        self._stopping = True
        if self._starting is not None:
            self._starting.cancel()
        subscriptions, self._subscriptions = self._subscriptions, []
        await asyncio.gather(*(subscription.drain() for subscription in subscriptions))
        self.state = "stopping"
        if grace > 0 and self._life is not None and not self._life.over:
            try:
                async with asyncio.timeout(grace):
                    await self._life.idle.wait()
            except TimeoutError:
                log.warning("%s: %d messages were not handled within %g s", self.name, len(self.mailbox), grace)
        self._over = True
        await self._end_life(hooks)
        for letter in self.mailbox.clear():
            self._refuse(letter, AgentStoppedError(self.name))
        for turn in self._turns:
            if not turn.done():
                turn.set_result(None)
        await self._answers.flush(FLUSH_TIMEOUT)
        self.client.forget_receivers()
        self.state = "stopped"

    async def _begin_life(self) -> None:
        if self._lives:
            self.counters.restarts += 1
            await self._end_life()
        if self.failed.done():
            self.failed = asyncio.get_running_loop().create_future()
        self._lives += 1
        self.state, self.problem = "starting", ""
        try:
            if self._stopping:
                raise AgentStoppedError(self.name)
            instance = self._factory()
            instance.name, instance.mesh = self.name, self.client
            instance.memory, instance.tools = self.client.memory(self.name), self.client.tools
            await self._on_start(instance)
            await self._subscribe()
        except (Exception, SystemExit) as error:  # user code: reported, and the supervisor decides
            self.state, self.problem = "failed", f"{type(error).__name__}: {error}"
            self.failed.set_result(error)
            if isinstance(error, SystemExit):
                raise RemoteError(self.name, "SystemExit", str(error)) from error
            raise
        self._life = _Life(instance, self.concurrency)
        self.state = "ready"
        self._wake()

    async def _on_start(self, instance: Agent) -> None:
        """In a task of its own, so that a stop can end it, and a cancellation inside it is told from one of ours."""
        self._starting = asyncio.get_running_loop().create_task(_hook(instance.on_start()), name=f"start {self.name}")
        try:
            await self._starting
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            if self._stopping:
                raise AgentStoppedError(self.name) from None
            raise RemoteError(self.name, "CancelledError", "something on_start waited for was cancelled") from None
        finally:
            self._starting = None

    async def _end_life(self, hooks: bool = True) -> None:
        life = self._life
        if life is None:
            return
        life.over = True
        await self._interrupt(life)
        if self._life is not life:
            return  # somebody else ended it at the same time
        self._life = None
        if hooks:
            if life.cause is not None:
                await self._last_words("on_failure", life.instance.on_failure(*life.cause))
            await self._last_words("on_stop", life.instance.on_stop())

    async def _interrupt(self, life: _Life) -> None:
        """End the handlers that run; whoever waits for one is told that the agent stopped."""
        for worker, letter in life.workers.items():
            if letter is not None:
                self._cancel(worker, letter, AgentStoppedError(self.name))
        for guest in life.guests:
            life.guests[guest] = True
            guest.cancel()
        try:
            async with asyncio.timeout(INTERRUPT_TIMEOUT):
                await life.idle.wait()
        except TimeoutError:
            log.error("%s: a handler ignores that it is cancelled; going on without it", self.name)

    async def _last_words(self, hook: str, work: Awaitable[None]) -> None:
        speaking = asyncio.get_running_loop().create_task(_hook(work), name=f"{hook} {self.name}")
        done, _ = await asyncio.wait([speaking], timeout=HOOK_TIMEOUT)
        if not done:
            speaking.cancel()
            log.error("%s: %s did not end within %g s; going on without it", self.name, hook, HOOK_TIMEOUT)
        elif speaking.cancelled() or speaking.exception() is not None:
            error = None if speaking.cancelled() else speaking.exception()
            log.error("%s: %s failed", self.name, hook, exc_info=error)

    async def _subscribe(self) -> None:
        """Take messages; nothing to do at a restart."""
        if self._subscriptions:
            return
        subjects = self.client.subjects
        wanted: list[tuple[str, Callable[[WireMessage], None]]] = [(subjects.mailbox(self.name), self._on_message)]
        # One per pattern, though handlers may share it: of several that match, the broker serves one per queue group.
        wanted += [(subjects.topic_pattern(topic), self._on_published) for topic in self.behaviour.topics]
        for subject, callback in wanted:
            subscription = await self.client.transport.subscribe(
                subject, callback, queue=subjects.mailbox_group(self.name)
            )
            self._subscriptions.append(subscription)
            if self._stopping:
                await subscription.unsubscribe()
                raise AgentStoppedError(self.name)

    # ------------------------------------------------------------ arrival
    def _on_message(self, message: WireMessage) -> None:
        data, reply = message.data, message.reply
        if reply[:1] == "$":
            reply = ""  # the broker's own subjects: nobody there waits for an answer, and we must not act on them
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
            self._answers.refuse(reply, "", error)
            return
        self.deliver(Letter(entry, envelope, reply))

    def _on_published(self, message: WireMessage) -> None:
        """A topic carries several types; what no handler takes from this topic was meant for others."""
        try:
            envelope = codec.decode_foreign(message.data, message.headers, False)
        except InvalidMessageError:
            self.counters.refused += 1
            return
        entry = self.behaviour.handlers.get(envelope.message_type)
        if entry is not None and entry.topic and self.client.subjects.topic_matches(entry.topic, message.subject):
            self.deliver(Letter(entry, envelope, ""))

    def deliver(self, letter: Letter) -> None:
        """Put a letter into the mailbox, or refuse it."""
        if self._over:
            self._refuse(letter, AgentStoppedError(self.name))
            return
        inside, refused = self.mailbox.put(letter)
        if refused is not None:
            self._refuse(refused, MailboxFullError(self.name, self.mailbox.capacity))
        if inside:
            if letter.envelope.confirm:
                self._answers.confirm(letter)
            self._wake()

    def _refuse(self, letter: Letter, error: AgentMeshError) -> None:
        self.counters.refused += 1
        self._answers.refuse(letter.reply, letter.envelope.message_id, error)

    def _takes(self) -> list[str]:
        return [name for name, entry in self.behaviour.handlers.items() if entry.kind != "task"]

    # ------------------------------------------------------------ slots
    def _wake(self) -> None:
        """Give free slots to what waits."""
        life = self._life
        if life is None or life.over:
            return
        while life.free:
            if self._turns and (not self._last_was_turn or not len(self.mailbox)):
                turn = self._turns.popleft()
                if not turn.done():
                    self._last_was_turn = True
                    life.take()
                    turn.set_result(life)
            elif len(self.mailbox):
                life.take()
                worker = asyncio.get_running_loop().create_task(self._work(life), name=f"agent {self.name}")
                life.workers[worker] = None
                worker.add_done_callback(self._worker_done)
                return  # it wakes the next one when it has taken its letter
            else:
                return

    def _release(self, life: _Life) -> None:
        life.free += 1
        self._wake()
        if life.free == life.concurrency:  # not before: whoever waits must not be woken between two messages
            life.idle.set()

    async def _work(self, life: _Life) -> None:
        """Handle what waits, until nothing does or it is the turn of a task."""
        worker = asyncio.current_task()
        assert worker is not None
        try:
            while not life.over and len(self.mailbox) and (self._last_was_turn or not self._turns):
                self._last_was_turn = False
                letter, admitted = self.mailbox.pop()
                if admitted is not None and admitted.envelope.confirm:
                    self._answers.confirm(admitted)
                if life.free and (self._turns or len(self.mailbox)):
                    self._wake()
                life.workers[worker] = letter
                await self._process(letter, life, worker)
                life.workers[worker] = None
            if self._gone and not len(self.mailbox):
                self._gone.clear()
        finally:
            del life.workers[worker]
            self._release(life)

    def _worker_done(self, worker: asyncio.Task[None]) -> None:
        if not worker.cancelled() and worker.exception() is not None:
            log.error("%s: a worker failed, which is an error of agentmesh", self.name, exc_info=worker.exception())

    async def run_task(self, task: Task[Any], context: Any) -> Any:
        """Run the handler of a task when the agent has a free slot.

        Raises:
            AgentStoppedError: The agent stopped before it was done.
            Exception: Whatever the handler raises; cancelling this cancels the handler.
        """
        entry = self.behaviour.handlers[task._wire_name]
        return await self._as_guest(lambda agent: entry.call(agent, task, context))

    async def run_event(self, event: Message, envelope: codec.Envelope) -> None:
        """Run the handler of an event of the durable mailbox when the agent has a free slot; raises as `run_task`."""
        entry, context = self.behaviour.handlers[event._wire_name], self._context(envelope)
        enter(context)
        await self._as_guest(lambda agent: entry.call(agent, event, context))

    async def _as_guest(self, call: Callable[[Agent], Awaitable[Any]]) -> Any:
        """Run a handler in the task of the caller."""
        life = await self._take_turn()
        guest = asyncio.current_task()
        assert guest is not None
        life.guests[guest] = False
        try:
            result = await call(life.instance)
        except asyncio.CancelledError:
            if not life.guests[guest]:
                raise
            guest.uncancel()  # the agent ended, not the caller: another replica may do it
            raise AgentStoppedError(self.name) from None
        except (AgentStoppedError, SystemExit) as error:  # another agent stopped, or so the handler wishes: it failed
            self.counters.failed += 1
            raise RemoteError(self.name, type(error).__name__, str(error)) from error
        except Exception:
            self.counters.failed += 1
            raise
        finally:
            del life.guests[guest]
            self._release(life)
        self.counters.handled += 1
        return result

    async def _take_turn(self) -> _Life:
        """Wait for a slot and take it."""
        if self._over:
            raise AgentStoppedError(self.name)
        turn: asyncio.Future[_Life | None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        self._wake()
        try:
            life = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and (given := turn.result()) is not None:
                self._release(given)  # it was given in the same moment
            raise
        if life is None:
            raise AgentStoppedError(self.name)
        if life.over:
            self._release(life)
            raise AgentStoppedError(self.name)
        return life

    # ------------------------------------------------------------ cancelling
    def cancel(self, message_id: str) -> bool:
        """Cancel the handler of that request, or see to it that the waiting request is skipped; whether it runs."""
        for worker, letter in self._life.workers.items() if self._life is not None else ():
            if letter is not None and letter.envelope.message_id == message_id:
                if letter.handler.kind != "event":
                    self._cancel(worker, letter, AskerGoneError())
                return True
        if len(self.mailbox):
            if len(self._gone) >= GONE_LIMIT:
                self._gone.clear()  # they are answered, though nobody reads it
            self._gone.add(message_id)
        return False

    def cancel_overdue(self) -> None:
        """Cancel handlers of requests whose asker has stopped waiting."""
        time_of_day = now()
        for worker, letter in self._life.workers.items() if self._life is not None else ():
            if letter is not None and letter.handling and _is_overdue(letter, time_of_day):
                if letter.why_cancelled is None:
                    log.warning("%s: %s was cancelled at its deadline", self.name, letter.envelope.message_type)
                self._cancel(worker, letter, AskerGoneError())

    def _cancel(self, worker: asyncio.Task[None], letter: Letter, why: AgentMeshError) -> None:
        """Once per letter: a second time would end the handler's own cleaning up."""
        if letter.handling and letter.why_cancelled is None:
            letter.why_cancelled = why
            worker.cancel()

    # ------------------------------------------------------------ the life of a message
    async def _process(self, letter: Letter, life: _Life, worker: asyncio.Task[None]) -> None:
        envelope, entry = letter.envelope, letter.handler
        if (envelope.deadline is not None and _is_overdue(letter, now())) or (
            self._gone and entry.kind != "event" and envelope.message_id in self._gone
        ):
            return
        try:
            message = codec.decode_body(entry.message_type, envelope.content)
        except InvalidMessageError as problem:
            log.warning("%s: %s was not handled: %s", self.name, envelope.message_type, problem)
            self._refuse(letter, problem)
            return
        context = self._context(envelope, None if entry.kind == "event" else envelope.deadline)
        outer = enter(context)
        letter.handling = True
        began = perf_counter()
        error: BaseException | None = None
        try:
            await self._handle(letter, life.instance, message, context)
        except asyncio.CancelledError as cancelled:
            # Cancelled by us; with the worker, because the loop ends; or something inside the handler was cancelled,
            # and that is its failure and not our end.
            if letter.why_cancelled is None and worker.cancelling():
                raise
            error = letter.why_cancelled or cancelled
        except (Exception, SystemExit) as raised:  # user code: the sender or the supervisor is told
            error = letter.why_cancelled or raised
        finally:
            letter.handling = False
            if letter.why_cancelled is not None:
                worker.uncancel()
            self.counters.busy += perf_counter() - began
            leave(outer)
        if error is None:
            self.counters.handled += 1
        else:
            await self._conclude(letter, life, message, error)

    def _context(self, envelope: codec.Envelope, deadline: Any = None) -> Context:
        return Context(
            self.name,
            envelope.source_agent_id,
            envelope.message_id,
            envelope.trace_id or envelope.message_id,
            deadline,
            envelope.hops,
        )

    async def _handle(self, letter: Letter, agent: Agent, message: Message, context: Context) -> None:
        entry = letter.handler
        if entry.kind == "stream":
            await self._stream(letter, entry.call(agent, message, context))
            return
        result = await entry.call(agent, message, context)
        if entry.kind == "request" and letter.reply:
            await self._answers.reply(letter, codec.encode_body(result, entry.reply_type))

    async def _stream(self, letter: Letter, chunks: Any) -> None:
        entry, envelope = letter.handler, letter.envelope
        try:
            if envelope.window <= 0 or not letter.reply:  # one reply is wanted: all chunks together
                whole = [chunk async for chunk in chunks]
                if letter.reply:
                    await self._answers.reply(
                        letter, codec.encode_body("".join(whole) if entry.reply_type is str else whole)
                    )
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

    async def _conclude(self, letter: Letter, life: _Life, message: Message, error: BaseException) -> None:
        """A handler did not return: say so to whoever should know."""
        if isinstance(error, AskerGoneError):
            return
        self.counters.failed += 1
        kind = letter.envelope.message_type
        if letter.handler.kind != "event":
            if not isinstance(error, AgentMeshError):
                log.error("%s: handler of %s failed", self.name, kind, exc_info=error)
            if letter.reply:
                await self._answers.error(letter, error)
        elif error is letter.why_cancelled:
            log.warning("%s: the handler of %s was interrupted by the end of the agent", self.name, kind)
        else:
            log.error("%s: handler of %s failed", self.name, kind, exc_info=error)
            self._fail(life, message, error)

    def _fail(self, life: _Life, message: Message, error: BaseException) -> None:
        """An event handler failed and nobody waits for an answer: the supervisor is told, and starts a new life."""
        if life.over:
            return
        life.over, life.cause = True, (error, message)
        self.problem = f"{type(error).__name__}: {error}"
        if not self._stopping:
            self.state = "restarting"
        if not self.failed.done():
            self.failed.set_result(error)


def _is_overdue(letter: Letter, time_of_day: Any) -> bool:
    """Whether the asker has stopped waiting. An event is handled in any case: its sender waits for the mailbox only."""
    deadline = letter.envelope.deadline
    return letter.handler.kind != "event" and bool(letter.reply) and deadline is not None and deadline < time_of_day


async def _hook(work: Awaitable[None]) -> None:
    """A hook is no part of the message that somebody may be handling while it spawns an agent."""
    enter(None)
    await work


def _either(chosen: Any, otherwise: Any) -> Any:
    return otherwise if chosen is None else chosen
