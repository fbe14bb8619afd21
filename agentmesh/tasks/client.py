"""The submitter's side of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from agentmesh import codec
from agentmesh.budgets import Budget
from agentmesh.errors import DefinitionError, PayloadTooLargeError, QueueFullError
from agentmesh.ids import new_id
from agentmesh.messages import Task, wire_name
from agentmesh.subjects import Subjects, token
from agentmesh.tasks import history, keys, slot
from agentmesh.tasks.batch import Batch
from agentmesh.tasks.dead import DeadLetters
from agentmesh.tasks.endings import TaskEndings
from agentmesh.tasks.job import Job
from agentmesh.tasks.layout import MAILBOX, MAILBOX_LIMIT, MAX_BODY, ensure_streams
from agentmesh.tasks.lineage import prompt, why_late
from agentmesh.tasks.pressure import Patience, Pressure
from agentmesh.tasks.schedules import Schedule, Schedules, delayed, headers
from agentmesh.tasks.spending import charge
from agentmesh.tasks.status import Statuses, TaskStatus
from agentmesh.tasks.submission import Wishes, make_body
from agentmesh.tasks.watch import Results
from agentmesh.tasks.wire import DeadBody, Failure, ResultBody, TaskBody, encode
from agentmesh.tasks.workflow import view
from agentmesh.tasks.workflow.journal import signal_body
from agentmesh.tasks.workflow.view import Step
from agentmesh.transport import PubAck, Transport
from agentmesh.when import When, once, repeating

if TYPE_CHECKING:
    from agentmesh.tasks.ledger import Ledger

R = TypeVar("R")

_HEADERS = 256
"""Bytes kept free for the headers of a submitted task."""


class TaskClient:
    """Submits tasks, and finds out what became of them. One per connection and tenant is enough.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
    """

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self.transport = transport
        self.subjects = subjects
        self.results = Results(transport, subjects)
        self.endings = TaskEndings(transport, subjects, self.results)
        self.dead = DeadLetters(transport, subjects)
        self.schedules = Schedules(transport, subjects)
        self._pressure = Pressure(transport, subjects)
        self.ledger: Ledger | None = None
        """Where submitted tasks are written down until they are decided; see `reconcile.Reconciler`."""
        self._statuses = Statuses(transport, subjects)
        self._ready = False
        self._ensuring = asyncio.Lock()

    async def ensure(self) -> None:
        """Make the streams that are missing; done by every method that needs them."""
        if not self._ready:
            async with self._ensuring:
                await ensure_streams(self.transport)
                self._ready = True

    # ------------------------------------------------------------ submitting

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
        source: str = "",
        trace_id: str = "",
        detached: bool = False,
        budget: Budget | None = None,
        fingerprint: str = "",
        idempotency_key: str | None = None,
        patience: float = 0.0,
        on_full: Callable[[QueueFullError], None] | None = None,
    ) -> Job[R]:
        """Put a task into the queue. When this returns it is accepted: stored, and sure to be decided.

        Args:
            task: What to do.
            to: The agent, which need not run yet; None lets the dispatcher find one that takes this type.
            task_id: An id of your own: submitted again with it, nothing is run again.
            priority: `high`, `normal` or `low`; None takes the task's own.
            deadline: Seconds from now, or from when it is due; not done by then, it is decided `expired`.
            delay: Seconds until it is due; the broker keeps it until then.
            at: When it is due, aware; instead of `delay`.
            source: Who submits it.
            trace_id: Of the message that caused it.
            detached: Submitted in a handler, it goes on when that is cancelled, and does not inherit its deadline.
            budget: What it, and all that follows from it, may use.
            fingerprint: Of a workflow's child.
            idempotency_key: Whoever submits it first has it accepted; everybody after that, for a day, gets the same
                job. Instead of `task_id`, which is made from it.
            patience: Seconds to wait for room in a full queue; 0 raises at once.
            on_full: Called with each refusal that is waited out; must not block.

        Raises:
            QueueFullError: Not accepted; says when to try again.
            IdempotencyConflictError: Not accepted: the key was used for another task.
            LedgerError: Not accepted: it cannot be written down.
            BudgetExceededError: Not accepted: a budget is used up.
            CallDepthError: Not accepted: too deep a chain of handlers.
            DeadlineExceededError: Not accepted: the deadline of the handler that submits it has passed.
            PayloadTooLargeError: Not accepted: over 512 kB.
            InvalidScheduleError: Not accepted: `at` is in the past, and the like.
            DuplicateScheduleError: Not accepted: it is delayed, and its id is that of a repeating schedule.
            PublishTimeoutError: Unknown, no confirmation within 30 s; submit it again with the same id.
        """
        wishes = Wishes(
            to, task_id, priority, deadline, source, trace_id, detached, budget, patience=Patience(patience, on_full)
        )
        if idempotency_key is not None:
            return await self._submit_once(task, wishes, partial(_moment, delay, at), idempotency_key)
        when = _moment(delay, at)
        await self.ensure()
        body = make_body(self.subjects, task, replace(wishes, due=None if when is None else when.at))
        body.fingerprint = fingerprint
        return await self._accept(body, when, type(task), wishes)

    async def _submit_once(self, task: Task[R], wishes: Wishes, moment: Callable[[], When | None], key: str) -> Job[R]:
        """The job that was submitted under this key, or a new one.

        The record of the key is claimed, then the task accepted, then that is recorded. Who finds a claim without the
        last step accepts the task again: its id is made from the key, so it is the same one.
        """
        if wishes.task_id is not None:
            raise DefinitionError(type(task).__name__, "submit takes task_id or idempotency_key, not both")
        await self.ensure()
        known = keys.Keys(self.transport, self.subjects, "task")
        kind = wire_name(type(task))
        mark = keys.fingerprint(kind, codec.encode_body(task))
        task_id = f"key-{keys.digest(keys.checked(key), mark)[:40]}"
        record = keys.Record(key, f"task {kind}", mark, task_id=task_id)
        entry = await known.find(key, mark, record.what)
        if entry is not None and entry.record.state == "decided":
            return self.job(task_id, type(task))
        when = moment()  # not before: what was accepted under the key may have been due in the meantime
        entry = entry or await known.claim(record) or await known.find(key, mark, record.what)
        if entry is not None and entry.record.state == "decided":
            return self.job(task_id, type(task))
        wishes = replace(wishes, task_id=task_id, due=None if when is None else when.at)
        job = await self._accept(make_body(self.subjects, task, wishes), when, type(task), wishes)
        if entry is not None:
            await known.decide(entry)
        return job

    async def _accept(self, body: TaskBody, when: When | None, task_type: type[Task[R]], wishes: Wishes) -> Job[R]:
        if body.budget:
            await charge(self.transport, self.subjects, body.budget, "" if wishes.task_id is None else body.task_id)
        if when is not None:
            return await self._delay(body, when, task_type)
        tracer = self.transport.tracer
        if tracer is not None:
            tracer.begin(body, body.task_id)
        headers = None if tracer is None else tracer.headers(body)
        data = encode(body)
        if len(data) > MAX_BODY - _HEADERS:
            raise PayloadTooLargeError(len(data), MAX_BODY - _HEADERS)
        to = body.agent_id
        subject = self.subjects.task_door() if to is None else self.subjects.tasks(to, body.priority)
        watch = self.results.watch(body.task_id, body.deadline, is_new=True)
        watch.reason = why_late(body)

        def store() -> Awaitable[PubAck]:
            return self._stored(body.task_id, subject, data, headers)

        stored = await self._pressure.patiently(store, subject, len(data), wishes.patience)
        if tracer is not None:
            tracer.sent(body, f"{to or ''} {body.task_type}".lstrip(), body.timestamp.timestamp())
        if stored.duplicate:
            watch.look_at = 0.0  # it may be decided long since
        return Job(self, watch, task_type, stored.sequence)

    def _stored(self, task_id: str, subject: str, data: bytes, headers: dict[str, str] | None) -> Awaitable[PubAck]:
        # The window of duplicates is the stream's, which all tenants share: hence the tenant in the id.
        stored = self.transport.publish_durable(
            subject, data, msg_id=f"{self.subjects.tenant}.{task_id}", headers=headers
        )
        if self.ledger is None:
            return stored
        return self.ledger.submit(self.ledger.entry(self.subjects.tenant, task_id, subject, data), stored)

    async def _delay(self, body: TaskBody, when: When, task_type: type[Task[R]]) -> Job[R]:
        watch = self.results.watch(body.task_id, body.deadline, is_new=True)
        watch.reason = why_late(body)
        if self.ledger is None:
            await self.schedules.delay(body, when)
        else:
            document = delayed(body, when)
            subject, how = self.subjects.schedule(body.task_id), headers(self.subjects, document)
            entry = self.ledger.entry(self.subjects.tenant, body.task_id, subject, encode(document), how)
            await self.ledger.submit(entry, self.schedules.delay(body, when))
        return Job(self, watch, task_type)

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
        origin: str = "",
        source: str = "",
    ) -> Schedule:
        """Submit a task again and again. See `Client.schedule`; `origin` is who keeps the schedule up to date."""
        when = repeating(every, cron, tz)
        await self.ensure()
        body = make_body(self.subjects, task, Wishes(to, priority=priority, source=source, detached=True))
        return await self.schedules.add(body, when, schedule_id, deadline=deadline, replace=replace, origin=origin)

    def job(self, task_id: str, task_type: type[Task[R]] | None = None) -> Job[R]:
        """A handle on a task submitted before, here or elsewhere; without its type the result is plain data."""
        return Job(self, self.results.watch(token("task id", task_id)), task_type)

    def map(
        self,
        task_type: type[Task[R]],
        items: Iterable[Any],
        *,
        to: str | None = None,
        limit: int = 64,
        on_error: Literal["raise", "return"] = "raise",
        priority: str | None = None,
        source: str = "",
    ) -> Batch[R]:
        """Run a task for each item, at most `limit` under way. See `Batch`."""
        return Batch(self, task_type, items, to=to, limit=limit, on_error=on_error, priority=priority, source=source)

    # ------------------------------------------------------------ deciding and asking

    async def cancel(self, task_id: str, by: str = "") -> bool:
        """Cancel a task. True: it is cancelled; a waiting one never starts, a running one is interrupted.

        So is every task its handler submitted, and so on, except those submitted `detached`.

        False: it was decided otherwise before.

        Args:
            task_id: Which; one that was never submitted is cancelled in advance.
            by: Who wants it, for the record.
        """
        await self.ensure()
        verdict = ResultBody(task_id, "cancelled", by=f"cancel:{new_id()}", reason=by)
        decided = await slot.decide(self.transport, self.subjects, verdict)
        await prompt(self.transport, self.subjects, task_id)
        await self.schedules.drop_delayed(task_id)  # should it not be due yet; if it is, its worker looks at the slot
        return decided.status == "cancelled"

    async def signal(self, task_id: str, name: str, value: Any = None) -> bool:
        """Give a signal to a workflow, which waits for it with `ctx.signal`, or will.

        True: it counts. False: there was one of that name before, it came too late, or the task is decided.

        Args:
            task_id: The workflow.
            name: Which signal.
            value: What the workflow gets; anything that can be written as JSON.
        """
        await self.ensure()
        if await slot.read(self.transport, self.subjects, token("task id", task_id)) is not None:
            return False
        signal = signal_body(task_id, name, value)
        return (await slot.decide(self.transport, self.subjects, signal)).by == signal.by

    async def steps(self, task_id: str) -> list[Step]:
        """The steps of a workflow, in the order in which they were first begun; none for other tasks."""
        await self.ensure()
        return await view.steps(self.transport, self.subjects, token("task id", task_id))

    async def get(self, task_id: str, *, sequence: int = 0) -> TaskStatus:
        """Where a task stands.

        Raises:
            NoSuchTaskError: It neither waits nor was decided within the last 7 days.
        """
        await self.ensure()
        return await self._statuses.get(token("task id", task_id), sequence)

    async def ls(self, state: str = "", limit: int = 100) -> list[TaskStatus]:
        """Up to `limit` tasks in `state` (empty: any): undecided ones first, then decided ones, newest first."""
        await self.ensure()
        return await self._statuses.ls(state, limit)

    async def history(self, task_id: str) -> list[Failure]:
        """The failed attempts of a task so far, as far as their workers lived to tell."""
        await self.ensure()
        return (await history.read(self.transport, self.subjects, token("task id", task_id))).failures

    async def mailbox_limit(self) -> int:
        """How many durable events may wait per agent."""
        info = await self.transport.stream_info(MAILBOX)
        return MAILBOX_LIMIT if info is None else int(info.config["max_msgs_per_subject"])

    # ------------------------------------------------------------ dead letters

    async def dead_ls(self, limit: int = 100) -> list[DeadBody]:
        """Dead letters, oldest first."""
        await self.ensure()
        return await self.dead.ls(limit)

    async def dead_show(self, task_id: str) -> DeadBody:
        """One dead letter with reason and history. Raises NoSuchTaskError."""
        await self.ensure()
        return await self.dead.show(task_id)

    async def dead_retry(self, task_id: str) -> str:
        """Put it back into its queue under a new id, which is returned. Raises NoSuchTaskError."""
        await self.ensure()
        return await self.dead.retry(task_id)

    async def dead_drop(self, task_id: str) -> None:
        """Forget it. Raises NoSuchTaskError."""
        await self.ensure()
        await self.dead.drop(task_id)


def _moment(delay: float | None, at: datetime | None) -> When | None:
    """When a task is due; None: now."""
    return None if delay is None and at is None else once(delay, at)
