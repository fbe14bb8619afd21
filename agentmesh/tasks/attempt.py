"""The life of a task at a worker: `Attempt.live`, top to bottom.

What becomes of it is one of six things, decided in `_judge` and carried out in `_settle`; `Wait` by the worker:

| outcome   | when                                                                    | carried out as         |
| --------- | ----------------------------------------------------------------------- | ---------------------- |
| `Decided` | the handler returned; time limit, deadline, end of the parent, a budget | slot, then double ack; |
|           | used up; others wrote the slot                                          | children are prompted  |
| `Again`   | the handler raised, or asked for it with `Retry`; attempts are left     | record, nak with delay |
| `Dead`    | unreadable, `Reject`, or no attempts left                               | dead letter, slot, ack |
| `Return`  | stop, drain, agent gone, or it is running here already                  | record, nak            |
| `Wait`    | a limit has no room                                                     | kept, or nak with delay |
| `Leave`   | a later attempt has taken over                                          | not at all: it is theirs |
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh import codec
from agentmesh.context import Context, enter
from agentmesh.errors import (
    AgentStoppedError,
    AttemptReplacedError,
    BrokerError,
    BudgetExceededError,
    CallDepthError,
    InvalidMessageError,
    InvalidNameError,
    PayloadTooLargeError,
    Reject,
    Retry,
    error_to_wire,
)
from agentmesh.ids import now
from agentmesh.messages import Task, TaskPolicy
from agentmesh.metrics.registry import Histogram
from agentmesh.subjects import Subjects
from agentmesh.tasks import dead, history, lineage, slot, wire
from agentmesh.tasks.clock import DEADLINE, TIME_LIMIT, Clock
from agentmesh.tasks.context import Desk, TaskContext
from agentmesh.tasks.fence import AttemptBody
from agentmesh.tasks.gate import Gate, parameters
from agentmesh.tasks.giving import give_back, record_wait
from agentmesh.tasks.line import Line
from agentmesh.tasks.lineage import Ending
from agentmesh.tasks.outcome import Again, Dead, Decided, Leave, Outcome, Return, Wait, inside
from agentmesh.tasks.seat import Seat
from agentmesh.tasks.undoing import put_off, undone
from agentmesh.tasks.wire import NOTHING, Failure, ResultBody, TaskBody, decode_queued
from agentmesh.tasks.workflow.journal import has_sagas
from agentmesh.trace import adopt, inherit, trace_id_of
from agentmesh.transport import Delivery, Transport

if TYPE_CHECKING:
    from agentmesh.tasks.client import TaskClient

log = logging.getLogger("agentmesh.tasks")

ENDED, STOPPED = "ended", "stopped"
CROWDED = "too many workflows wait here"
"""Why a handler is interrupted."""

_CROWDED_DELAY = 2.0
"""Seconds until a workflow comes again that was given back because too many wait."""

PAUSED = "paused"
"""Why a task is given back that has not begun."""

_PAUSES = (0.5, 1.0, 2.0, 5.0)
"""Seconds between tries to store a result, for as long as it takes."""

_LONGEST_MESSAGE = 2_000

Runner = Callable[[Task[Any], TaskContext], Awaitable[Any]]


@dataclass(frozen=True)
class Bench:
    """What all attempts of one worker share."""

    transport: Transport
    subjects: Subjects
    agent: str
    node: str
    types: dict[str, type[Task[Any]]]
    run: Runner
    running: dict[str, Attempt]
    """By task id: those whose handler has begun, or is about to."""
    instance: str
    """Unique per worker."""
    client: Callable[[], TaskClient]
    moved: Callable[[Attempt], None]
    """Called when a workflow begins or ends to wait."""
    gate: Gate | None = None
    """None: no limit applies to any of its tasks."""
    queued: Histogram = field(default_factory=Histogram)
    """Seconds from when the broker stored a task until its handler began for the first time."""


class Attempt:
    """One delivery of a task in the hands of a worker, from its arrival until it is settled."""

    def __init__(self, bench: Bench, delivery: Delivery) -> None:
        self.bench = bench
        self.delivery = delivery
        """The latest delivery of this message: after a long silence the broker may have sent it to us again."""
        self.loop = asyncio.get_running_loop()
        self.beaten_at = self.loop.time()
        self.beats = 0
        self.number = delivery.attempt
        self.body: TaskBody | None = None
        self.task: asyncio.Task[None] | None = None
        self.why = ""
        """Why it was interrupted; empty if it was not."""
        self.why_at = 0.0
        self.clock = Clock()
        self.handling = False
        self.handled = False
        """Its handler has begun, at least."""
        self.settled = False
        self.away = False
        """It is a workflow that only waits, and takes no slot."""
        self.undoes = False
        """Its task is decided; the handler runs once more, to undo what a saga did."""
        self.context: TaskContext | None = None
        """Of the handler that was begun last."""
        self._ending: Ending | None = None
        self._scope: Context | None = None
        """Of the handler; knows whether it has submitted tasks."""
        self.waits = False
        """A limit has made it wait, now or before, which is recorded."""
        self.waits_since = 0
        """The delivery since which it waits, if that could not be recorded yet; else 0."""
        self.line: Line | None = None
        """Where it has to wait, when its life ended that way."""
        self.places: list[str] = []
        """Of which limits it holds a slot."""
        self.policy = TaskPolicy()
        self._history: history.History | None = None

    @property
    def task_id(self) -> str:
        return self.body.task_id if self.body is not None else ""

    @property
    def mark(self) -> str:
        """Unique for this delivery to this worker."""
        return f"{self.bench.instance}:{self.delivery.sequence}:{self.delivery.attempt}"

    # ------------------------------------------------------------ from outside

    def interrupt(self, why: str) -> None:
        """End the handler, now or as soon as it would begin; does nothing once the outcome is known."""
        if self.why or self.settled or (self.undoes and why == ENDED):
            return
        self.why, self.why_at = why, self.loop.time()
        if self.handling and self.task is not None:
            self.task.cancel()

    def end(self, ending: Ending) -> None:
        """Interrupt it, because it is decided, or because the task it belongs to ended."""
        self._ending = self._ending or ending
        self.interrupt(ENDED)

    def belongs_to(self, task_id: str) -> bool:
        """Whether it is that task, or ends with it."""
        return self.body is not None and task_id in (self.body.task_id, self.body.master_id)

    async def abandon(self) -> None:
        """The handler ignores its cancellation: settle the task without it."""
        log.error("the handler of %s does not stop (%s); its task is settled without it", self, self.why)
        try:
            await self._settle(await put_off(self, self.interrupted()))
        except BrokerError as error:
            log.warning("%s cannot be settled now: %s", self, error)
            self.settled, self.why_at = False, self.loop.time()

    def __str__(self) -> str:
        kind = self.body.task_type if self.body is not None else "task"
        return f"{kind} {self.task_id or self.delivery.sequence} of {self.bench.agent}"

    # ------------------------------------------------------------ the life of a task

    async def live(self) -> None:
        """From delivery to settlement. What the broker makes fail comes back after `ack_wait`."""
        try:
            outcome = await self._judge()
            if isinstance(outcome, Wait):
                self.line = outcome.line
            else:
                await self._settle(await undone(self, outcome))
        except BrokerError as error:
            log.warning("%s is left to the broker, it will be delivered again: %s", self, error)
        finally:
            if self.places and self.bench.gate is not None:
                self.bench.gate.leave(self)
            if self.bench.running.get(self.task_id) is self:
                del self.bench.running[self.task_id]

    async def end_unrun(self) -> bool:
        """Settle a task that waits, if it or the task it belongs to has ended; whether that is so.

        One that has to undo a saga waits for its turn.
        """
        transport, subjects = self.bench.transport, self.bench.subjects
        self.body = body = decode_queued(self.delivery.data)
        ending = await lineage.ending(transport, subjects, body)
        if ending is None or await has_sagas(transport, subjects, body.task_id):
            return False
        await self._settle(self._ended(ending))
        return True

    async def _judge(self) -> Outcome:
        """Look at the task, and run its handler if that is what it needs."""
        bench = self.bench
        try:
            self.body = body = decode_queued(self.delivery.data)
            adopt(body, self.delivery.headers)
            if body.task_id in bench.running:
                return Return("the same task is running here", min(30.0, 2.0**self.delivery.attempt))
            bench.running[body.task_id] = self
            ending = await lineage.ending(bench.transport, bench.subjects, body, latest=True)
            if ending is not None:
                return self._ended(ending)
            task_type = bench.types.get(body.task_type)
            if task_type is None:
                return Dead(f"agent {bench.agent!r} takes no {body.task_type!r}; it takes {', '.join(bench.types)}")
            self.policy = task_type.policy()
            await self._count()
            if body.is_late():
                return Decided(self._verdict("expired", reason=lineage.why_late(body)))
            if self.number > self.policy.max_attempts:
                return Dead(self._exhausted())
            task: Task[Any] = codec.decode_body(task_type, parameters(body))
        except (InvalidMessageError, InvalidNameError) as error:
            return Dead(str(error))
        if bench.gate is not None and bench.gate.applies(task_type):
            refused = await self._admit(bench.gate, task)
            if refused is not None:
                return refused
        return await self._handle(task, body, task_type)

    async def _admit(self, gate: Gate, task: Task[Any]) -> Outcome | None:
        """None: it may begin. A task about which nothing can be known now is tried again, by anybody."""
        try:
            line = await gate.admit(self, task)
        except BrokerError as error:
            return Return(f"its limits are not known: {error}", 1.0)
        return None if line is None else Wait(line)

    async def _handle(self, task: Task[Any], body: TaskBody, task_type: type[Task[Any]]) -> Outcome:
        """Run the handler; whatever it does becomes an outcome."""
        if self.why:
            return self.interrupted()
        self.clock.start(self.policy.time_limit, body.deadline)
        try:
            value = await self.run(task)
        except asyncio.CancelledError:
            if self.cancelled_from_outside():
                raise
            if self.why:
                return self.interrupted()
            return self._failed("CancelledError", "something the handler waited for was cancelled")
        except AgentStoppedError as error:
            return self.interrupted() if self.why else Return(str(error), self._return_delay())
        except Retry as wish:
            return self._failed("Retry", str(wish), wish.delay)
        except Reject as verdict:
            return Dead(verdict.reason, self.failure("Reject", verdict.reason))
        except Exception as error:  # the edge to foreign code: whatever it raises is about this task only
            if (replaced := inside(error, AttemptReplacedError)) is not None:
                return Leave(str(replaced))
            if (exceeded := inside(error, BudgetExceededError, CallDepthError)) is not None:
                return self._no_further(exceeded)
            log.warning("attempt %d of %s failed", self.number, self, exc_info=True)
            if self.context is not None and self.context.is_final(error):
                return Dead(str(error), self.failure(type(error).__name__, str(error)))
            return self._failed(type(error).__name__, str(error))
        return self._completed(value, task_type)

    async def run(self, task: Task[Any], *, ended: str = "") -> Any:
        """Run the handler; raises what it raises. `ended`: see `Desk.ended`."""
        assert self.body is not None
        self.context = context = self._context(self.body, ended)
        assert self._scope is not None
        if not self.handled and self.delivery.attempt == 1:
            self._scope.queued = max(0.0, (now() - self.delivery.stored_at).total_seconds())
            self.bench.queued.observe(self._scope.queued)
        tracer = self.bench.transport.tracer
        span = None if tracer is None else tracer.received(self._scope)
        self.handling = self.handled = True
        try:
            value = await self.bench.run(task, context)
            await context.flush()
            return value
        finally:
            if span is not None:
                span.ended(self.body.task_type, sys.exception())
            self.handling = False
            context.seat.close()
            if self.away:  # it was cancelled while it waited
                self._sat(True)
            await context.flush_steps()

    async def _settle(self, outcome: Outcome) -> None:
        """Carry out what was decided; the only place that answers the broker."""
        if self.settled:
            return
        self.settled = True
        match outcome:
            case Decided(body, status):
                if body is not None:
                    status = await self.decide(body)
                if self.delivery.attempt > 1 and status != "dead":
                    # A worker that died in the middle of burying it may have left a letter.
                    await dead.withdraw(self.bench.transport, self.bench.subjects, self.task_id)
                if status in lineage.ENDED and self._may_have_children():
                    await lineage.prompt(self.bench.transport, self.bench.subjects, self.task_id)
                await self.bench.transport.ack(self.delivery)
            case Again(delay, failure):
                await history.record(self.bench.transport, self.bench.subjects, self.task_id, history.FAILED, failure)
                await self.bench.transport.nak(self.delivery, delay)
            case Dead(reason, failure):
                await self._bury(reason, failure)
            case Return(reason, delay):
                await give_back(self.bench, self.delivery, reason, delay)
            case Leave(reason):  # if it is nobody's, the broker notices our silence
                log.warning("%s ends unsettled: %s", self, reason)

    async def decide(self, verdict: ResultBody) -> str:
        """Write the slot, unless somebody else has; returns what it says. A broker without room for results makes
        the queue wait."""
        pauses = itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))
        while True:
            try:
                decided = await slot.decide(self.bench.transport, self.bench.subjects, verdict)
            except PayloadTooLargeError as error:
                verdict = self._verdict("failed", reason=f"result too large: {error}")
                continue
            except BrokerError as error:
                log.error("the result of %s cannot be stored, trying again: %s", self, error)
                await asyncio.sleep(next(pauses))
                continue
            if decided.by != verdict.by:
                log.info("%s was %s meanwhile; our result is dropped", self, decided.status)
            return decided.status

    async def _bury(self, reason: str, failure: Failure | None) -> None:
        """Give the task up, with one entry in its history per attempt."""
        log.error("%s is a dead letter: %s", self, reason)
        past = self._history.complete(self.number - 1) if self._history is not None else []
        bury = partial(
            dead.bury,
            self.bench.transport,
            self.bench.subjects,
            self.delivery,
            reason,
            task_id=self.task_id or wire.peek_id(self.delivery.data),
            agent=self.bench.agent,
            task_type=self.body.task_type if self.body is not None else "",
            history=[*past, failure] if failure is not None else past,
        )
        for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
            try:
                await bury()
                return
            except PayloadTooLargeError:
                raise
            except BrokerError as error:  # given back to the broker, it would be run again
                log.error("%s cannot be buried, trying again: %s", self, error)
                await asyncio.sleep(pause)

    # ------------------------------------------------------------ parts

    async def _count(self) -> None:
        """Which attempt this is: only for a task delivered before does the history have to be read."""
        if self.waits_since:
            await self.record_wait()
        if self.delivery.attempt > 1:
            self._history = await history.read(self.bench.transport, self.bench.subjects, self.task_id)
            self.number = self._history.attempt(self.delivery.attempt)
            self.waits = self.waits or self._history.waits

    async def record_wait(self) -> None:
        """A limit makes it wait: from now on its attempts are counted as they begin."""
        if self.waits_since:
            await record_wait(self.bench, self.delivery, self.waits_since)
            self.waits, self.waits_since = True, 0

    async def record_beginning(self) -> None:
        """The handler of a task that had to wait is about to begin: this counts as an attempt."""
        await self._record(history.BEGAN)

    async def record_return(self) -> None:
        """It did not begin after all."""
        await self._record(history.RETURNED)

    async def _record(self, kind: str) -> None:
        bench = self.bench
        entry = Failure(self.delivery.attempt, bench.node)
        await history.record(bench.transport, bench.subjects, self.task_id, kind, entry)

    def begin_undoing(self) -> None:
        """The handler runs once more, without limits, to undo what a saga did."""
        self.why, self.undoes = "", True
        self.clock.clear()

    def _context(self, body: TaskBody, ended: str) -> TaskContext:
        """The handler's context; its own messages inherit deadline and trace."""
        bench = self.bench
        trace_id = body.trace_id or trace_id_of(body.task_id)
        deliveries = self.delivery.attempt
        rank = self._history.rank(deliveries) if self._history is not None else deliveries
        context = TaskContext(
            bench.transport,
            bench.subjects,
            body.task_id,
            attempt=self.number,
            deadline=body.deadline,
            priority=body.lane(),
            sender=body.source_agent_id,
            trace_id=trace_id,
            seat=Seat(self._sat),
            desk=partial(self._desk, body, ended),
            me=AttemptBody(body.task_id, rank, self.mark, bench.node),
        )
        self._scope = Context(
            bench.agent,
            body.source_agent_id,
            body.task_id,
            trace_id,
            None if ended else body.deadline,
            body.hops,
            "" if ended else body.task_id,  # what undoes something must not end with what it undoes
            body.budget,
            submitted=deque(maxlen=1),  # they look after themselves: it is enough to know that there are some
            attempt=context,
        )
        if body.traceparent or body.baggage:
            inherit(self._scope, body)
        enter(self._scope)
        return context

    def _desk(self, body: TaskBody, ended: str) -> Desk:
        bench = self.bench
        return Desk(bench.transport, bench.subjects, bench.client, bench.agent, bench.node, ended, body.submitted_at())

    def _sat(self, taken: bool) -> None:
        """A workflow gave its place up or has it again. Time in which it only waits does not count as its own."""
        self.away = not taken
        (self.clock.go_on if taken else self.clock.stop)()
        self.bench.moved(self)

    def cancelled_from_outside(self) -> bool:
        """Whether it was not us who cancelled the handler: then the process or its event loop ends."""
        task = asyncio.current_task()
        assert task is not None
        if not self.why:
            return task.cancelling() > 0
        while task.cancelling():
            task.uncancel()
        return False

    def interrupted(self) -> Outcome:
        if self.why == TIME_LIMIT:
            limit = self.policy.time_limit
            return Decided(self._verdict("failed", reason=f"timeout: it ran longer than {limit:g} s"))
        if self.why == DEADLINE:
            assert self.body is not None
            return Decided(self._verdict("expired", reason=lineage.why_late(self.body)))
        if self._ending is not None:
            return self._ended(self._ending)
        return Return(self.why, _CROWDED_DELAY if self.why == CROWDED else 0.0)

    def _ended(self, ending: Ending) -> Outcome:
        if ending.own:
            return Decided(status=ending.status)
        return Decided(self._verdict(ending.status, reason=ending.reason))

    def _no_further(self, exceeded: Exception) -> Outcome:
        """The next attempt would get no further; whoever waits for the result gets the error as it is."""
        verdict = self._verdict("failed", reason=f"{type(exceeded).__name__}: {exceeded}")
        verdict.error = error_to_wire(exceeded)
        return Decided(verdict)

    def _may_have_children(self) -> bool:
        """Whether this attempt, or one before it, may have submitted tasks."""
        return self.delivery.attempt > 1 or bool(self._scope is not None and self._scope.submitted)

    def _return_delay(self) -> float:
        """None at first, so that another worker has it at once; growing, when the agent is gone everywhere."""
        deliveries = self.delivery.attempt
        return 0.0 if deliveries == 1 else min(5.0, 0.1 * 2.0 ** min(deliveries, 10))

    def _completed(self, value: Any, task_type: type[Task[Any]]) -> Outcome:
        try:
            result = msgspec.Raw(codec.encode_body(value, task_type.result_type()))
        except InvalidMessageError as error:
            return Decided(self._verdict("failed", reason=f"the result does not fit its declaration: {error}"))
        return Decided(self._verdict("completed", result=result))

    def _failed(self, error_type: str, message: str, delay: float | None = None) -> Outcome:
        failure = self.failure(error_type, message)
        if self.number >= self.policy.max_attempts:
            return Dead(f"attempt {self.number} of {self.policy.max_attempts}: {error_type}: {message}", failure)
        return Again(self.policy.delay_after(self.number) if delay is None else delay, failure)

    def _exhausted(self) -> str:
        past = self._history.complete(self.number - 1) if self._history is not None else []
        last = f"{past[-1].error_type}: {past[-1].message}" if past else "it was delivered too often"
        return f"no attempts left of {self.policy.max_attempts}: {last}"

    def failure(self, error_type: str, message: str) -> Failure:
        return Failure(self.number, self.bench.node, error_type, message[:_LONGEST_MESSAGE], now())

    def _verdict(self, status: str, *, result: msgspec.Raw = NOTHING, reason: str = "") -> ResultBody:
        assert self.body is not None
        return ResultBody(
            self.body.task_id,
            status,
            by=self.mark,
            agent_id=self.bench.agent,
            task_type=self.body.task_type,
            result=result,
            reason=reason,
            attempt=self.number,
            worker=self.bench.node,
            trace_id=self.body.trace_id or trace_id_of(self.body.task_id),
            fingerprint=self.body.fingerprint,
        )
