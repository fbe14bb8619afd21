"""The verbs: tell, ask, stream, publish, listen, submit, map.

A `Client` sends under one name over a shared transport. Inside a handler it adds what the message at hand implies: the
time that is left, the trace id, and the depth of the chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from agentmesh import codec, keyed, registry, schemas
from agentmesh.budgets import Budget, out_of_time
from agentmesh.context import check_depth, covering, current, granted, next_hops, time_of_end
from agentmesh.deathwatch import Watch, watch_tower
from agentmesh.errors import (
    AgentMeshError,
    AgentStoppedError,
    BrokerError,
    DeadlineExceededError,
    DefinitionError,
    InvalidMessageError,
    MailboxFullError,
    NoRespondersError,
    NoSuchAgentError,
    QueueFullError,
    StreamFullError,
)
from agentmesh.ids import new_id, now
from agentmesh.llmops import LLMOps
from agentmesh.memory import Memory
from agentmesh.messages import Event, Message, Request, Task, Terminated, wire_name
from agentmesh.orders import Orders
from agentmesh.presence import NodeInfo, node_monitor
from agentmesh.refs import AgentRef
from agentmesh.registry import AgentInfo
from agentmesh.streaming import WINDOW, StreamReader
from agentmesh.streams import Streams
from agentmesh.subjects import Subjects, token
from agentmesh.tasks import Batch, Job, Schedule, Schedules, TaskClient
from agentmesh.tasks.keys import Keys, checked
from agentmesh.tasks.layout import use_scheme
from agentmesh.tasks.spending import charge
from agentmesh.tasks.use import Limits
from agentmesh.tooling import ToolClient
from agentmesh.trace import inherit, outside
from agentmesh.tracing import Kind
from agentmesh.transport import Inbox, Transport, is_no_responders
from agentmesh.transport import Message as WireMessage

if TYPE_CHECKING:
    from agentmesh.facade import NATSClient

R = TypeVar("R")

ASK_TIMEOUT = 30.0
"""Seconds an ask waits unless told otherwise."""

LONGEST_WAIT = 365 * 86_400.0
"""Seconds that stand for a timeout without an end."""

KNOWN_RECEIVERS = 1_000
"""Receivers of events whose refusals come back. Beyond that, those told first are no longer listened to."""

WHEREABOUTS = 0.05
"""Seconds that an ask whose deadline has passed waits to be told where the time went."""

CANCEL = "cancel-request"
"""Control subject: the asker of a request has gone; the body is its message id."""

log = logging.getLogger("agentmesh.client")


class Undelivered(msgspec.Struct):
    """An event that did not get into the mailbox it was sent to."""

    agent: str
    error: Exception


class Client:
    """Everything one can say to agents.

    Args:
        transport: The connection, shared.
        subjects: The tenant's subjects.
        identity: The name that receivers see as the sender.
    """

    def __init__(self, transport: Transport, subjects: Subjects, identity: str) -> None:
        self.transport = transport
        self.subjects = subjects
        self.identity = identity
        use_scheme(transport, subjects)
        self.tasks = TaskClient(transport, subjects)
        self.streams = Streams(transport, subjects, self.tasks.ensure, self.tasks.endings)
        """Replayable streams: conversations, and what tasks tell."""
        self.tools = ToolClient(transport, subjects, identity)
        self.on_undelivered: Callable[[Undelivered], None] | None = None
        """Called for each told event that was refused or had no receiver, if the broker or the mailbox said so."""
        self.held: Callable[[], AgentMeshError | None] = lambda: None
        """Of an agent: why it takes nothing new at present, for whatever brings it requests beside its mailbox."""
        self.on_terminated: Callable[[Terminated], None] | None = None
        """Set for an agent: what it watches goes to its mailbox."""
        self._watches: dict[str, Watch] = {}
        self._bounces: dict[str, Inbox] = {}
        self._quiet_until: dict[str, float] = {}
        self._nats: NATSClient | None = None

    def bound(self, identity: str) -> Client:
        """The same connection under another name."""
        other = Client(self.transport, self.subjects, identity)
        other.tasks, other.streams = self.tasks, self.streams  # one subscription to results, whoever waits for them
        return other

    def forget_receivers(self) -> None:
        """Hear no more of events that are refused, for a sender that has ended."""
        while self._bounces:
            self._bounces.popitem()[1].close()
        self._quiet_until.clear()

    def ref(self, agent: str) -> AgentRef:
        """A reference to an agent; it need not run yet.

        Raises:
            InvalidNameError: The name cannot be an address.
        """
        self.subjects.mailbox(agent)
        return AgentRef(self, agent)

    # ------------------------------------------------------------ events
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
                timeout=timeout or ASK_TIMEOUT,
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

    # ------------------------------------------------------------ requests
    async def ask(
        self,
        agent: str,
        request: Request[R],
        *,
        timeout: float | None = None,
        budget: Budget | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        """Send a request and wait for its reply. Cancelling the wait cancels the handler, and what that started.

        Args:
            agent: Whom to ask.
            request: What.
            timeout: Seconds; by default 30, or what is left of the deadline of the message being handled, which is
                the most in any case.
            budget: What this request, and all that follows from it, may use.
            idempotency_key: The handler runs once for it, whoever asks; what came of it, a reply or an error, is kept
                for a day and returned to everybody who asks the same with the same key. A handler that raises `Retry`
                gives the key back. Cancelling the wait does not cancel the handler.

        Raises:
            NoSuchAgentError: Nobody listens; names near misses. Within 100 ms.
            NoHandlerError: The agent does not take this request.
            MailboxFullError: Refused.
            AgentStoppedError: The agent stopped first.
            RemoteError: The handler raised.
            DeadlineExceededError: No reply in time.
            InvalidMessageError: The reply is not of the promised type.
            BudgetExceededError: A budget is used up, here or further down.
            CallDepthError: Too deep a chain of handlers, here or further down.
            IdempotencyConflictError: The key was used for another request.
        """
        reply_type = _reply_type(request)
        try:
            if budget is None:
                content = await self._question(agent, self._envelope(agent, request), timeout, idempotency_key)
            else:
                with granted(budget, self.identity):
                    content = await self._question(agent, self._envelope(agent, request), timeout, idempotency_key)
        except InvalidMessageError as error:
            raise await self._mismatch(agent, request, error) from error
        try:
            result: R = codec.decode_body(reply_type, content)
        except InvalidMessageError as error:
            raise await self._mismatch(agent, request, error) from error
        return result

    async def _mismatch(self, agent: str, request: Request[Any], error: InvalidMessageError) -> InvalidMessageError:
        """`error` with how the schemas of both sides differ, if they do: two versions of a program run."""
        try:
            infos = await registry.discover(self.transport, self.subjects, name=agent)
        except BrokerError:
            return error
        difference = schemas.difference(type(request), infos)
        return InvalidMessageError(f"{error.problem}; {difference}") if difference else error

    async def ask_raw(
        self,
        agent: str,
        message_type: str,
        content: Any,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Like `ask`, for callers that do not have the message class: plain data in, plain data out."""
        envelope = self._outline(agent, message_type, msgspec.Raw(msgspec.json.encode(content)))
        return msgspec.json.decode(await self._question(agent, envelope, timeout, idempotency_key))

    def stream(self, agent: str, request: Request[R], *, timeout: float = ASK_TIMEOUT) -> AsyncGenerator[R, None]:
        """Chunks of a streaming answer, in order and without a gap; leaving the loop stops the producer.

        A handler that does not stream gives its reply as the only chunk.

        Args:
            agent: Whom to ask.
            request: What.
            timeout: Seconds without any chunk after which the stream is given up.

        Raises:
            StreamIdleError: Nothing came for `timeout` seconds.
            StreamGapError: A chunk was lost.
            NoSuchAgentError: and the other errors of `ask`.
        """
        return self._stream(self._envelope(agent, request), agent, _reply_type(request), timeout)

    def stream_raw(
        self, agent: str, message_type: str, content: Any, *, timeout: float = ASK_TIMEOUT
    ) -> AsyncGenerator[Any, None]:
        """Like `stream`, for callers that do not have the message class."""
        envelope = self._outline(agent, message_type, msgspec.Raw(msgspec.json.encode(content)))
        return self._stream(envelope, agent, Any, timeout)

    def _stream(self, envelope: codec.Envelope, agent: str, kind: Any, timeout: float) -> AsyncGenerator[Any, None]:
        """What can be wrong with the call is said before the first step of the loop."""
        subject, idle = self.subjects.mailbox(agent), self._timeout(agent, timeout)
        envelope.window = WINDOW
        envelope.deadline = time_of_end()
        _belongs(envelope)
        return self._chunks(envelope, agent, subject, kind, idle)

    async def _chunks(
        self, envelope: codec.Envelope, agent: str, subject: str, kind: Any, idle: float
    ) -> AsyncGenerator[Any, None]:
        nobody = NoSuchAgentError(agent)
        reader = StreamReader(self.transport, agent, kind, idle_timeout=idle, nobody=lambda: nobody)
        try:
            if envelope.budget:
                await charge(self.transport, self.subjects, envelope.budget)
            await self.transport.publish(subject, codec.encode(envelope), reader.subject, self._headers(envelope))
            async for chunk in reader:
                yield chunk
        except NoSuchAgentError as error:
            if error is not nobody:  # the handler asked an agent that is not there
                raise
            raise await self._no_such_agent(agent) from None
        finally:
            reader.close()
            self._sent(envelope, "client", sys.exception())
            if not reader.finished:
                await self._cancel(envelope)

    async def _question(
        self, agent: str, envelope: codec.Envelope, timeout: float | None, key: str | None
    ) -> msgspec.Raw:
        _belongs(envelope)
        seconds = self._timeout(agent, timeout)
        if key is None:
            return (await self._request(agent, envelope, seconds)).content
        envelope.key = checked(key)

        async def send(again: codec.Envelope, left: float) -> codec.Envelope:
            return await self._request(agent, again, left)

        keys = Keys(self.transport, self.subjects, "ask")
        return await keyed.ask(keys, agent, envelope, seconds, send)

    async def _request(self, agent: str, envelope: codec.Envelope, timeout: float) -> codec.Envelope:
        if self.transport.tracer is None:
            return await self._exchange(agent, envelope, timeout)
        try:
            reply = await self._exchange(agent, envelope, timeout)
        except BaseException as error:
            self._sent(envelope, "client", error)
            raise
        self._sent(envelope, "client")
        return reply

    async def _exchange(self, agent: str, envelope: codec.Envelope, timeout: float) -> codec.Envelope:
        breakers = self.transport.breakers
        breaker = None if breakers is None else breakers.of(self.subjects.tenant, agent)
        if breaker is None:
            reply, error = await self._converse(agent, envelope, timeout)
        else:
            breaker.admit()
            try:
                reply, error = await self._converse(agent, envelope, timeout)
            except (NoSuchAgentError, DeadlineExceededError):
                breaker.failed()
                raise
            except BaseException:
                breaker.dropped()
                raise
            stopped = isinstance(error, AgentStoppedError) and error.agent == agent
            (breaker.failed if stopped else breaker.succeeded)()
        if error is not None:
            raise error
        return reply

    async def _converse(
        self, agent: str, envelope: codec.Envelope, timeout: float
    ) -> tuple[codec.Envelope, AgentMeshError | None]:
        """The reply, and the error it says."""
        timeout = min(timeout, LONGEST_WAIT)
        envelope.deadline = now() + timedelta(seconds=timeout)
        if envelope.budget:
            await charge(self.transport, self.subjects, envelope.budget)
        try:
            answer = await self.transport.request(
                self.subjects.mailbox(agent), codec.encode(envelope), timeout=timeout, headers=self._headers(envelope)
            )
        except NoRespondersError:
            raise await self._no_such_agent(agent) from None
        except DeadlineExceededError:
            where = await self._cancel_late(envelope)
            spent = out_of_time(envelope.budget)
            raise spent or DeadlineExceededError(f"{agent}: {envelope.message_type}", timeout, where) from None
        except asyncio.CancelledError:
            await self._cancel(envelope)
            raise
        reply = codec.decode(answer.data)
        error = codec.decode_error(reply.content, agent) if reply.message_type == codec.ERROR else None
        return reply, error

    async def _cancel_late(self, envelope: codec.Envelope) -> str:
        """Like `_cancel`, for a request whose deadline has passed; where it was then, if that is known at once."""
        if not self.transport.is_connected:
            return "the connection to the broker was lost meanwhile"
        if envelope.key:
            return ""
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(message: WireMessage) -> None:
            if not answered.done():
                answered.set_result("" if is_no_responders(message) else message.data.decode(errors="replace"))

        inbox = self.transport.open_inbox(take)
        try:
            await self.transport.publish(self.subjects.control(CANCEL), envelope.message_id.encode(), inbox.subject)
            async with asyncio.timeout(WHEREABOUTS):
                return await answered
        except TimeoutError:
            return "no replica has it: its reply was lost, or it did not arrive"
        except BrokerError:
            return ""
        finally:
            inbox.close()

    async def _cancel(self, envelope: codec.Envelope) -> None:
        """Let the handler know that nobody waits. If that fails, it hears so from the deadline."""
        if self.transport.is_connected and not envelope.key:  # with a key, others may wait for the same handler
            with contextlib.suppress(BrokerError):
                await self.transport.publish(self.subjects.control(CANCEL), envelope.message_id.encode())

    async def _no_such_agent(self, agent: str) -> NoSuchAgentError:
        try:
            known = await registry.discover(self.transport, self.subjects, brief=True, timeout=0.08, stall=0.03)
        except BrokerError:
            return NoSuchAgentError(agent)
        return NoSuchAgentError(agent, registry.near_misses(agent, (info.name for info in known)))

    # ------------------------------------------------------------ tasks
    async def submit(
        self,
        task: Task[R],
        *,
        to: str | None = None,
        task_id: str | None = None,
        priority: str | None = None,
        deadline: float | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        detached: bool = False,
        budget: Budget | None = None,
        idempotency_key: str | None = None,
        patience: float = 0.0,
        on_full: Callable[[QueueFullError], None] | None = None,
    ) -> Job[R]:
        """Hand over a task; when this returns, the task is accepted and survives anything.

        Submitted in a handler, it belongs to what is being handled: it inherits what is left of its deadline, and is
        cancelled with it. Completion or failure of the handler changes nothing about it.

        Args:
            task: What to do.
            to: The agent; None lets the supervisor find one that takes this type of task.
            task_id: Your id, to make repeating safe: a second submit of the same id runs nothing again.
            priority: `high`, `normal` or `low`; None takes the task's own.
            deadline: Seconds from now, or from when it is due; a task that is not done by then is decided `expired`.
            delay: Seconds until it is due. It can be cancelled before, and its id is known at once.
            at: When it is due, with a time zone; instead of `delay`.
            detached: It inherits no deadline, and goes on when the handler that submits it is cancelled.
            budget: What it, and all that follows from it, may use.
            idempotency_key: Submitted again with it within a day, by whomever, the job is the first one. Instead of
                `task_id`; and the same key for another task is an error.
            patience: Seconds to wait for room when the queue is full; 0 raises at once.
            on_full: Called with each refusal that is waited out; must not block.

        Raises:
            QueueFullError: Not accepted; its `retry_after` says when to try again.
            BudgetExceededError: Not accepted: a budget is used up.
            IdempotencyConflictError: Not accepted: the key was used for another task.
            CallDepthError: Not accepted: too deep a chain of handlers.
            InvalidScheduleError: Not accepted: `at` is in the past, and the like.
            PublishTimeoutError: Unknown; submit again with the same id.
        """
        return await self.tasks.submit(
            task,
            to=to,
            task_id=task_id,
            priority=priority,
            deadline=deadline,
            delay=delay,
            at=at,
            source=self.identity,
            detached=detached,
            budget=budget,
            idempotency_key=idempotency_key,
            patience=patience,
            on_full=on_full,
        )

    async def schedule(
        self,
        task: Task[Any],
        *,
        every: float | None = None,
        cron: str | None = None,
        tz: str | None = None,
        schedule_id: str = "",
        to: str | None = None,
        priority: str | None = None,
        deadline: float | None = None,
        replace: bool = False,
    ) -> Schedule:
        """Submit a task again and again, each time with an id of its own: `<schedule_id>-<time>`.

        The broker keeps the schedule and fires it. Scheduling the same once more changes nothing, so a program may
        do it whenever it starts.

        Args:
            task: What to do.
            every: Whole seconds between firings, 1 or more; the first is that long from now.
            cron: Six fields, seconds first: `0 30 9 * * MON-FRI`; or `@hourly`, `@daily` and the like.
            tz: Time zone of `cron`, such as `Europe/Berlin`; UTC unless given.
            schedule_id: Your id, up to 44 characters, by which it is found again; a new one unless given.
            to: The agent; None lets the supervisor find one each time.
            priority: As in `submit`.
            deadline: Seconds after each firing; a task that is not done by then is decided `expired`.
            replace: Change a schedule of that id that says something else. A paused one stays paused.

        Raises:
            InvalidScheduleError: Such a time cannot be; nothing was scheduled.
            DuplicateScheduleError: There is another schedule of that id, and `replace` is false.
        """
        return await self.tasks.schedule(
            task,
            every=every,
            cron=cron,
            tz=tz,
            schedule_id=schedule_id,
            to=to,
            priority=priority,
            deadline=deadline,
            replace=replace,
            source=self.identity,
        )

    @property
    def schedules(self) -> Schedules:
        """What is scheduled: list, pause, resume and remove by id."""
        return self.tasks.schedules

    @property
    def limits(self) -> Limits:
        """How far limits are used, and how many tasks wait for them."""
        return Limits(self.transport, self.subjects)

    @property
    def llmops(self) -> LLMOps:
        """Calls to language models: what they cost, alerts, and cached answers."""
        return LLMOps(self.transport, self.subjects)

    def job(self, task_id: str, task_type: type[Task[R]] | None = None) -> Job[R]:
        """A handle on a task submitted earlier, also by another process; without its type the result is plain data."""
        return self.tasks.job(task_id, task_type)

    def map(
        self,
        task_type: type[Task[R]],
        items: Iterable[Any],
        *,
        to: str | None = None,
        limit: int = 64,
        on_error: Literal["raise", "return"] = "raise",
        priority: str | None = None,
    ) -> Batch[R]:
        """Run a task for each item, at most `limit` under way; await it for the results in order of the items.

        Args:
            task_type: The task.
            items: Tasks, dicts of fields, or values of its only required field.
            to: The agent; None lets the supervisor find one.
            limit: Tasks under way at the same time.
            on_error: `raise` cancels the rest and raises `BatchFailedError` with the results so far; `return` puts
                the error in the place of the result.
            priority: As in `submit`.
        """
        return self.tasks.map(
            task_type, items, to=to, limit=limit, on_error=on_error, priority=priority, source=self.identity
        )

    # ------------------------------------------------------------ death watch
    def watch(self, agent: str | AgentRef) -> Watch:
        """Be told of each replica of an agent that ends for good: stopped, given up, or gone with its node.

        At once if somebody saw the end, else within 3.5 s. An agent that is not there is told as terminated at once.

            async for gone in mesh.watch("greeter"): ...

        Inside an agent `await self.mesh.watch("greeter")` sends a `Terminated` to the agent's own mailbox for each,
        also after the agent was restarted, until `unwatch`; it needs a handler for it.

        Raises:
            InvalidNameError: The name cannot be an address.
        """
        name = agent if isinstance(agent, str) else agent.name
        self.subjects.mailbox(name)
        if self.on_terminated is None:
            return Watch(watch_tower(self.transport, self.subjects), name)
        if name not in self._watches:
            self._watches[name] = Watch(watch_tower(self.transport, self.subjects), name, self.on_terminated)
        return self._watches[name]

    async def unwatch(self, agent: str | AgentRef | None = None) -> None:
        """Inside an agent: no more `Terminated` of that agent; of any, without a name."""
        name = agent.name if isinstance(agent, AgentRef) else agent
        for one in [watched for watched in self._watches if name in (None, watched)]:
            await self._watches.pop(one).close()

    # ------------------------------------------------------------ standing orders
    async def pause(self, agent: str, *, reason: str = "") -> list[str]:
        """Have an agent take nothing new, wherever it runs and whenever it starts, until `resume`.

        What it is handling is finished, and so is what waits in its mailbox. Tasks and durable events wait; requests
        and other events are refused with `AgentPausedError`.

        Returns:
            The nodes that hold to it already; others do within 5 seconds.
        """
        return await Orders(self.transport, self.subjects).pause(agent, by=self.identity, reason=reason)

    async def resume(self, agent: str) -> list[str]:
        """Take back the pause of an agent; not that of all. Returns the nodes that know already."""
        return await Orders(self.transport, self.subjects).resume(agent)

    async def pause_all(self, *, reason: str = "") -> list[str]:
        """Like `pause`, for every agent of the tenant."""
        return await Orders(self.transport, self.subjects).pause(by=self.identity, reason=reason)

    async def resume_all(self) -> list[str]:
        """Take back `pause_all`; agents that were paused by name stay paused."""
        return await Orders(self.transport, self.subjects).resume()

    # ------------------------------------------------------------ subjects and bytes
    @property
    def nats(self) -> NATSClient:
        """Publish, subscribe and request by subject, with the keywords of the guides; see `agentmesh.facade`."""
        if self._nats is None:
            from agentmesh.facade import NATSClient

            self._nats = NATSClient.on(self.transport, self.subjects)
        return self._nats

    async def end_nats(self, grace: float = 1.0) -> None:
        """End the subscriptions made through `nats`; callbacks get `grace` seconds to finish."""
        if self._nats is not None:
            await self._nats.close(grace=grace)

    # ------------------------------------------------------------ services
    def memory(self, namespace: str) -> Memory:
        """Durable records of a namespace, kept by the memory service."""
        return Memory(self.transport, self.subjects, namespace)

    async def agents(self, name: str = "") -> list[AgentInfo]:
        """Every replica that runs now, or only those of one agent."""
        return await registry.discover(self.transport, self.subjects, name=name)

    async def nodes(self) -> list[NodeInfo]:
        """The processes that host agents, also those that are suspected to be gone, or were alive minutes ago.

        From the first call on this connection listens to their signs of life; see `agentmesh.presence`.
        """
        return (await node_monitor(self.transport, self.subjects)).nodes()

    # ------------------------------------------------------------ parts
    def _envelope(self, agent: str, message: Message) -> codec.Envelope:
        name = wire_name(type(message))
        if not name:
            raise DefinitionError(type(message).__name__, "subclass it and send an instance of the subclass")
        return self._outline(agent, name, msgspec.Raw(codec.encode_body(message)))

    def _outline(self, agent: str, message_type: str, content: msgspec.Raw) -> codec.Envelope:
        here = current() or outside()
        envelope = codec.Envelope(
            message_id=new_id(),
            message_type=message_type,
            timestamp=now(),
            source_agent_id=self.identity,
            target_agent_id=agent,
            schema_version=codec.SCHEMA_VERSION,
            content=content,
            trace_id=here.trace_id if here else "",
            hops=next_hops(),
            budget=covering(),
        )
        if here is not None and (here.traceparent or here.baggage):
            inherit(envelope, here)
        if self.transport.tracer is not None:
            self.transport.tracer.begin(envelope, envelope.message_id)
        return envelope

    def _headers(self, envelope: codec.Envelope) -> dict[str, str] | None:
        """None unless this process traces: headers cost more than the rest of a message."""
        tracer = self.transport.tracer
        return None if tracer is None else tracer.headers(envelope)

    def _sent(self, envelope: codec.Envelope, kind: Kind = "producer", error: BaseException | None = None) -> None:
        """For those who trace: it was sent, or answered."""
        tracer = self.transport.tracer
        if tracer is not None and envelope.timestamp is not None:
            what = f"{envelope.target_agent_id} {envelope.message_type}".lstrip()
            problem = "" if error is None or isinstance(error, GeneratorExit) else f"{type(error).__name__}: {error}"
            tracer.sent(envelope, what, envelope.timestamp.timestamp(), kind, problem)

    def _timeout(self, agent: str, wanted: float | None) -> float:
        """Seconds to wait: never longer than whoever asked us waits, nor longer than a budget lasts."""
        check_depth(agent, next_hops(), covering())
        end = time_of_end()
        if end is None:
            return ASK_TIMEOUT if wanted is None else wanted
        left = (end - now()).total_seconds()
        if left <= 0:
            if (spent := out_of_time(covering())) is not None:
                raise spent
            raise DeadlineExceededError(
                f"{agent}: not asked, the deadline of the message being handled has passed", 0.0
            )
        return left if wanted is None else min(wanted, left)

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


def _belongs(envelope: codec.Envelope) -> None:
    """Say for which task a request is made."""
    here = current()
    if here is not None:
        envelope.task_id = here.task_id


def _reply_type(request: Any) -> Any:
    if not isinstance(request, Request):
        raise DefinitionError(type(request).__name__, "ask and stream take a Request; tell an Event, submit a Task")
    return type(request).reply_type()
