"""One running replica of an agent: its mailbox, its lives, and what brings them together.

Messages arrive in `_on_message` and wait in the mailbox; what happens to one when its turn comes is in `handling`.
There is no task while the mailbox is empty: the first message starts a worker, which ends when nothing waits. A worker
takes one of `concurrency` slots; tasks and stored events, which come from elsewhere, take a slot each, so the limit
holds for all of them together. When both wait, slots go to them in turn.

The mailbox belongs to the cell; the instance, the slots and the workers belong to one `Life`. When an event handler
fails, that life is over and the cell says so (`failed`); its supervisor starts it again, with a new life and the same
mailbox. A failing request or task handler does not end the agent: its caller is told.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import msgspec

from agentmesh import codec
from agentmesh.agent.answers import Answers
from agentmesh.agent.barrier import Barrier
from agentmesh.agent.declare import Agent, Behaviour, behaviour, check_settings
from agentmesh.agent.handling import Handling, context_of
from agentmesh.agent.letter import CellOptions, Counters, Letter
from agentmesh.agent.life import Life
from agentmesh.client import Client
from agentmesh.context import enter
from agentmesh.errors import (
    AgentMeshError,
    AgentPausedError,
    AgentStoppedError,
    AskerGoneError,
    Finish,
    InvalidMessageError,
    MailboxFullError,
    NoHandlerError,
    RemoteError,
)
from agentmesh.ids import new_id, now
from agentmesh.mailbox import Mailbox
from agentmesh.messages import Message, Task, Terminated, wire_name
from agentmesh.subjects import token
from agentmesh.tasks import TaskContext
from agentmesh.tasks.seat import Seat
from agentmesh.trace import adopt
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


Failure = tuple[BaseException, Message] | None
"""What an event handler raised, and the event."""


@dataclass(frozen=True)
class Crash:
    """Why a life ended, or could not begin."""

    error: BaseException
    letter: Letter | None = None
    """The event whose handler failed."""


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
        self.limits = chosen.limits
        self.prefetch = _either(chosen.prefetch, agent_class.prefetch)
        self.quarantine_after = agent_class.quarantine_after
        self.restart_type = _either(chosen.restart, agent_class.restart)
        size = _either(chosen.mailbox_size, agent_class.mailbox_size)
        overflow = _either(chosen.overflow, agent_class.overflow)
        check_settings(self.name, self.concurrency, self.prefetch, size, overflow, self.restart_type)
        self.mailbox: Mailbox[Letter] = Mailbox(size, overflow)
        self.client = client.bound(self.name)
        self.client.on_terminated = self._on_terminated
        self.client.held = self._held
        self.state = "starting"
        self.problem = ""
        self.started_at = now()
        self.counters = Counters()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Set when this life has ended, or the next one could not begin; another one after each restart."""
        self.on_crash: Callable[[Crash], None] = lambda crash: None
        """Called when a life has failed, or the next one could not begin; must not block."""
        self.record: Callable[[Letter | None, Awaitable[Any]], Awaitable[Any]] | None = None
        """Awaits the handling of a letter (None: of a task or a stored event), and writes down that it goes on."""
        self.barrier: Barrier | None = None
        """What is refused at present besides what does not fit; None: nothing."""
        self._factory = factory
        self._answers = Answers(self.client.transport, self.name)
        self._handling = Handling(self.client.transport, self.client.tasks, self.name, self._answers, self.counters)
        self._life: Life | None = None
        self._lives = 0
        self._changing = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        """No further life begins."""
        self._over = False
        """Nothing is taken any more."""
        self._turns: deque[asyncio.Future[Life | None]] = deque()
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
        await self.client.unwatch()
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
            if self._lives > 1 and not self._stopping:
                self.on_crash(Crash(error))
            if isinstance(error, SystemExit):
                raise RemoteError(self.name, "SystemExit", str(error)) from error
            raise
        self._life = Life(instance, self.concurrency)
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
        await self.client.end_nats(1.0 if hooks else 0.0)  # the next life subscribes for itself
        if hooks:
            if life.cause is not None:
                await self._last_words("on_failure", life.instance.on_failure(*life.cause))
            await self._last_words("on_stop", life.instance.on_stop())

    async def _interrupt(self, life: Life) -> None:
        """End the handlers that run; whoever waits for one is told that the agent stopped."""
        for worker, letter in life.workers.items():
            if letter is not None:
                letter.cancel(worker, AgentStoppedError(self.name))
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
            if message.headers is not None or envelope.traceparent:
                adopt(envelope, message.headers)
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
        if message.headers is not None or envelope.traceparent:
            adopt(envelope, message.headers)
        entry = self.behaviour.handlers.get(envelope.message_type)
        if entry is not None and entry.topic and self.client.subjects.topic_matches(entry.topic, message.subject):
            self.deliver(Letter(entry, envelope, ""))

    def deliver(self, letter: Letter) -> None:
        """Put a letter into the mailbox, or refuse it."""
        if self._over:
            self._refuse(letter, AgentStoppedError(self.name))
            return
        if self.barrier is not None and (why := self.barrier.refusal(letter)) is not None:
            self._refuse(letter, why)
            return
        inside, refused = self.mailbox.put(letter)
        if refused is not None:
            self._refuse(refused, MailboxFullError(self.name, self.mailbox.capacity))
        if inside:
            if letter.envelope.confirm:
                self._answers.confirm(letter)
            self._wake()

    def _held(self) -> AgentMeshError | None:
        """Why nothing new is taken at present."""
        pause = self.barrier.pause if self.barrier is not None else None
        return None if pause is None else AgentPausedError(self.name, pause.reason)

    def _on_terminated(self, gone: Terminated) -> None:
        """An agent that this one watches has ended. Neither a pause nor a full mailbox keeps the news out."""
        entry = self.behaviour.handlers.get(wire_name(Terminated))
        if entry is None or self._over:
            log.warning("%s watches %s and has no handler for Terminated: %s", self.name, gone.agent, gone.reason)
            return
        content = msgspec.Raw(codec.encode_body(gone))
        envelope = codec.Envelope(new_id(), wire_name(Terminated), now(), source_agent_id=gone.agent, content=content)
        self.mailbox.put_always(Letter(entry, envelope, ""))
        self._wake()

    def _refuse(self, letter: Letter, error: AgentMeshError) -> None:
        self.counters.refused += 1
        self._answers.refuse(letter.reply, letter.envelope.message_id, error)

    def _takes(self) -> list[str]:
        return [name for name, entry in self.behaviour.handlers.items() if entry.kind != "task"]

    @property
    def remark(self) -> str:
        """What the agent says itself about how it is doing."""
        if self._life is None:
            return ""
        try:
            return str(self._life.instance.remark())
        except Exception:  # the edge to foreign code; an agent may also have something else of that name
            return ""

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

    def _release(self, life: Life) -> None:
        life.free += 1
        self._wake()
        life.rest()  # not before: whoever waits for it must not be woken between two messages

    async def _work(self, life: Life) -> None:
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
                if (letter.envelope.deadline is None and not self._gone) or not self._is_in_vain(letter):
                    if self.barrier is not None and (why := self.barrier.poison(letter)) is not None:
                        self._refuse(letter, why)  # it came before its kind was quarantined
                    else:
                        handling = self._handling.process(letter, life.instance, worker)
                        failure: Failure = await (handling if self.record is None else self.record(letter, handling))
                        if failure is not None:
                            self._fail(life, failure[0], failure[1], letter)
                life.workers[worker] = None
            if self._gone and not len(self.mailbox):
                self._gone.clear()
        finally:
            del life.workers[worker]
            self._release(life)

    def _is_in_vain(self, letter: Letter) -> bool:
        """Whether nobody waits for the answer any more."""
        if letter.envelope.deadline is not None and letter.is_overdue(now()):
            return True
        return bool(self._gone) and letter.envelope.message_id in self._gone and letter.handler.kind != "event"

    def _worker_done(self, worker: asyncio.Task[None]) -> None:
        if not worker.cancelled() and worker.exception() is not None:
            log.error("%s: a worker failed, which is an error of agentmesh", self.name, exc_info=worker.exception())

    async def run_task(self, task: Task[Any], context: TaskContext | None) -> Any:
        """Run the handler of a task when the agent has a free slot. A workflow gives it up while it only waits.

        Raises:
            AgentStoppedError: The agent stopped before it was done.
            Exception: Whatever the handler raises; cancelling this cancels the handler.
        """
        entry = self.behaviour.handlers[task._wire_name]
        return await self._as_guest(lambda agent: entry.call(agent, task, context), context.seat if context else None)

    async def run_event(self, event: Message, envelope: codec.Envelope) -> None:
        """Run the handler of an event of the durable mailbox when the agent has a free slot; raises as `run_task`."""
        entry, context = self.behaviour.handlers[event._wire_name], context_of(self.name, envelope)
        enter(context)
        if envelope.timestamp is not None:
            context.queued = max(0.0, (now() - envelope.timestamp).total_seconds())
            self.counters.queued.observe(context.queued)
        tracer = self.client.transport.tracer
        span = None if tracer is None else tracer.received(context)
        finished: list[Finish] = []

        async def call(agent: Agent) -> None:
            try:
                await entry.call(agent, event, context)
            except Finish as finish:
                finished.append(finish)

        life = self._life
        try:
            await self._as_guest(call)
        finally:
            if span is not None:
                span.ended(envelope.message_type, sys.exception())
        if finished and life is not None:
            self._fail(life, finished[0])

    async def _as_guest(self, call: Callable[[Agent], Awaitable[Any]], seat: Seat | None = None) -> Any:
        """Run a handler in the task of the caller."""
        life = await self._take_turn()
        guest = asyncio.current_task()
        assert guest is not None
        life.guests[guest] = False
        if seat is not None:
            seat.bind(partial(self._release, life), partial(self._come_back, life, guest))
        try:
            handling = call(life.instance)
            result = await (handling if self.record is None else self.record(None, handling))
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
            if seat is None or seat.taken:
                self._release(life)
            if seat is not None:
                seat.close()
        self.counters.handled += 1
        return result

    async def _come_back(self, life: Life, guest: asyncio.Task[Any]) -> None:
        """Take a slot again for a handler that gave its own up to wait."""
        try:
            given = await self._take_turn()
            if given is life and guest in life.guests:
                return
            self._release(given)  # the agent was restarted, or the handler has ended and left this one behind
        except AgentStoppedError:
            pass
        if guest not in life.guests:
            raise asyncio.CancelledError
        if not life.guests[guest]:
            life.guests[guest] = True
            guest.cancel()
        await asyncio.Event().wait()  # its end is on the way

    async def _take_turn(self) -> Life:
        """Wait for a slot and take it."""
        if self._over:
            raise AgentStoppedError(self.name)
        turn: asyncio.Future[Life | None] = asyncio.get_running_loop().create_future()
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
    def whereabouts(self, message_id: str) -> str:
        """Where a request is here, for an asker who has waited in vain; empty if it is not."""
        me = f"{self.name}.{self.replica}"
        for letter in self._life.workers.values() if self._life is not None else ():
            if letter is not None and letter.envelope.message_id == message_id:
                return f"its handler at {me} has been running for {perf_counter() - letter.began:.1f} s"
        for ahead, letter in enumerate(self.mailbox):
            if letter.envelope.message_id == message_id:
                return f"it waits in the mailbox of {me}, behind {ahead + self.in_flight} others"
        return ""

    def cancel(self, message_id: str) -> bool:
        """Cancel the handler of that request, or see to it that the waiting request is skipped; whether it runs."""
        for worker, letter in self._life.workers.items() if self._life is not None else ():
            if letter is not None and letter.envelope.message_id == message_id:
                if letter.handler.kind != "event":
                    letter.cancel(worker, AskerGoneError())
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
            if letter is not None and letter.is_overdue(time_of_day) and letter.cancel(worker, AskerGoneError()):
                log.warning("%s: %s was cancelled at its deadline", self.name, letter.envelope.message_type)

    # ------------------------------------------------------------ failure
    def _fail(
        self, life: Life, error: BaseException, message: Message | None = None, letter: Letter | None = None
    ) -> None:
        """An event handler failed, and nobody waits for an answer, or finished: the supervisor decides what is next."""
        if life.over:
            return
        life.over = True
        if not self._stopping:
            self.state = "restarting"
        if not isinstance(error, Finish):
            life.cause = error, message
            self.problem = f"{type(error).__name__}: {error}"
            self.on_crash(Crash(error, letter))
        if not self.failed.done():
            self.failed.set_result(error)


async def _hook(work: Awaitable[None]) -> None:
    """A hook is no part of the message that somebody may be handling while it spawns an agent."""
    enter(None)
    await work


def _either(chosen: Any, otherwise: Any) -> Any:
    return otherwise if chosen is None else chosen
