"""What a workflow can do: the verbs behind those of `TaskContext`."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from agentmesh import codec
from agentmesh.errors import (
    AgentMeshError,
    AttemptReplacedError,
    BatchFailedError,
    BrokerError,
    BudgetExceededError,
    CallDepthError,
    DefinitionError,
    DuplicateStepError,
    InvalidMessageError,
    NestedStepError,
    Reject,
    Retry,
    SignalTimeoutError,
    StepFailedError,
    TaskCancelledError,
    WorkflowChangedError,
    WorkflowEndedError,
    WorkflowTooOldError,
)
from agentmesh.ids import now
from agentmesh.messages import Task, TaskPolicy, wire_name
from agentmesh.tasks import slot
from agentmesh.tasks.batch import as_task
from agentmesh.tasks.wire import ResultBody, encode
from agentmesh.tasks.workflow import calls
from agentmesh.tasks.workflow.journal import SAGAS, Journal, StepError, digest, ident, signal_body
from agentmesh.tasks.workflow.view import Teller

if TYPE_CHECKING:
    from agentmesh.tasks.client import TaskClient
    from agentmesh.tasks.context import Desk, TaskContext
    from agentmesh.tasks.job import Job

R = TypeVar("R")

log = logging.getLogger("agentmesh.tasks")

LONGEST = 7 * 86_400.0
"""Seconds that outcomes are kept: a run that begins later than this after the task was submitted is refused."""

LONGEST_SLEEP = 6 * 86_400.0
"""Seconds of the longest sleep or wait for a signal."""

_LONGEST_NAME = 200

undoing: ContextVar[bool] = ContextVar("agentmesh_undoing", default=False)
"""Inside a saga that is to be undone: finished steps are passed, and no other is begun."""

children: ContextVar[list[str] | None] = ContextVar("agentmesh_children", default=None)
"""Where the branch of a race notes the tasks it has submitted."""

_read_error = msgspec.json.Decoder(StepError).decode


class Workflow:
    """One run of a handler, as a workflow. Made when the first step is begun.

    Args:
        context: The handler's.
        desk: Where it is worked on.
    """

    def __init__(self, context: TaskContext, desk: Desk) -> None:
        self.context = context
        self.desk = desk
        self.task_id = context.task_id
        self.seat = context.seat
        self.transport, self.subjects, self.agent = desk.transport, desk.subjects, desk.agent
        self.journal = Journal(
            self.transport, self.subjects, self.task_id, agent=desk.agent, node=desk.node, attempt=context.attempt
        )
        self.teller = Teller(self.transport, self.subjects, self.task_id, context.attempt)
        self.sagas = 0
        """Sagas that were begun in this run."""
        self.open_sagas = 0
        """Those of them that have come to no end."""
        self._names: set[str] = set()
        self._finals: list[BaseException] = []
        self._check_age()

    @property
    def client(self) -> TaskClient:
        """Submits and waits; shared by all workflows of a worker."""
        return self.desk.client()

    def is_final(self, error: BaseException) -> bool:
        """Whether another run would come to the same: a decided step said so."""
        return any(error is known for known in self._finals)

    def final(self, error: BaseException) -> BaseException:
        """Remember that this error is decided."""
        self._finals.append(error)
        return error

    # ------------------------------------------------------------ what all steps share

    def begin(self, name: str) -> None:
        """Claim the name of a step.

        Raises:
            DuplicateStepError: It is taken in this run.
            NestedStepError: Another step's function runs.
        """
        outer = calls.inside.get()
        if outer:
            raise NestedStepError(name, outer)
        if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
            raise DefinitionError(f"step {name[:80]!r}", f"a name is 1 to {_LONGEST_NAME} printable characters")
        if name in self._names:
            raise DuplicateStepError(name)
        self._names.add(name)

    async def recorded(self, name: str, fingerprint: str, *, always: bool = False) -> ResultBody | None:
        """The outcome of a step; None if it has none and may be run.

        Args:
            name: The step.
            fingerprint: What it is.
            always: It may be run also when the task is decided: it undoes something.

        Raises:
            WorkflowChangedError: It was something else.
            WorkflowEndedError: It has none, and no further step is begun.
        """
        body = await self.journal.read(name, fingerprint)
        if body is None and not always:
            self.check_ended()
        return body

    def check_ended(self) -> None:
        """Raise WorkflowEndedError if nothing new is begun any more."""
        if self.desk.ended or undoing.get():
            raise WorkflowEndedError(self.task_id, self.desk.ended or "being undone")

    def _check_age(self) -> None:
        submitted = self.desk.submitted_at
        if self.context.attempt > 1 and submitted is not None and now() - submitted > timedelta(seconds=LONGEST):
            raise WorkflowTooOldError(self.task_id, LONGEST / 86_400.0)

    # ------------------------------------------------------------ step

    async def step(
        self,
        name: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        policy: TaskPolicy,
        timeout: float | None,
        *,
        kind: str = "step",
    ) -> Any:
        """See `TaskContext.step`."""
        self.begin(name)
        fingerprint = f"{kind} {calls.described(call)}"
        returns = calls.result_type(call)
        cause: BaseException | None = None
        body = await self.recorded(name, fingerprint, always=kind == "undo")
        if body is None:
            await self.seat.back()
            self.teller.tell(name, kind, "running", self.journal.id(name))
            result, failure, cause = await self._tried(name, call, args, returns, policy, timeout)
            if failure is None:
                body = await self.journal.decide(name, fingerprint, "completed", result=result)
            else:
                reason, content = f"{failure.error_type}: {failure.message}", msgspec.Raw(encode(failure))
                body = await self.journal.decide(name, fingerprint, "failed", result=content, reason=reason)
            self.teller.tell(name, kind, body.status, body.task_id, error=body.reason)
        else:
            await self.teller.passed(name, kind, body)
        if body.status != "completed":
            raise self.final(_step_failed(name, body)) from cause
        return decoded(name, returns, body)

    async def _tried(
        self,
        name: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        returns: Any,
        policy: TaskPolicy,
        timeout: float | None,
    ) -> tuple[msgspec.Raw, StepError | None, BaseException | None]:
        """Call the function until it succeeds or its attempts are used up."""
        attempt = 0
        while True:
            attempt += 1
            delay, last = policy.delay_after(attempt), attempt >= policy.max_attempts
            try:
                value = await calls.called(name, call, args, timeout)
            except asyncio.CancelledError as error:
                strand = asyncio.current_task()
                if strand is None or strand.cancelling():
                    raise
                problem: BaseException = error  # something inside was cancelled, and not we
            except AttemptReplacedError:
                raise  # this attempt is over, and says nothing about the step: the one that replaced it does
            except (Reject, BudgetExceededError, CallDepthError) as error:
                problem, last = error, True
            except Retry as error:
                problem, delay = error, delay if error.delay is None else error.delay
            except Exception as error:  # the edge to foreign code: whatever it raises is this step's failure
                problem = error
            else:
                try:
                    return msgspec.Raw(codec.encode_body(value, returns)), None, None
                except InvalidMessageError as error:
                    text = f"what it returned does not fit its annotation: {error}"
                    return msgspec.Raw(), StepError(type(error).__name__, text, attempt), error
            if last:
                text = problem.reason if isinstance(problem, Reject | Retry) else str(problem)
                return msgspec.Raw(), StepError(type(problem).__name__, text[:2000], attempt), problem
            log.warning("step %r of task %s: attempt %d failed: %s", name, self.task_id, attempt, problem)
            async with self.seat.away():
                await asyncio.sleep(delay)

    # ------------------------------------------------------------ children

    async def run(self, task: Task[R], *, to: str | None, name: str | None, priority: str | None) -> R:
        """See `TaskContext.run`."""
        name = name or wire_name(type(task)) or type(task).__name__
        self.begin(name)
        child_id = ident("run", self.task_id, name)
        self.teller.tell(name, "run", "running", child_id, task_type=wire_name(type(task)))
        async with self.seat.away():
            job, body = await self._child(task, child_id, name, to=to, priority=priority)
        self.teller.tell(name, "run", body.status, child_id, error=body.reason, task_type=wire_name(type(task)))
        return self._result(job, body)

    async def map(
        self,
        task_type: type[Task[R]],
        items: Iterable[Any],
        *,
        to: str | None,
        limit: int,
        on_error: Literal["raise", "return"],
        name: str | None,
        priority: str | None,
    ) -> list[Any]:
        """See `TaskContext.map`."""
        name = name or wire_name(task_type) or task_type.__name__
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit}")
        self.begin(name)
        tasks = [as_task(task_type, item) for item in items]
        ids = self._item_ids(name, tasks)
        outcomes: list[Any] = [None] * len(tasks)
        todo = iter(range(len(tasks)))
        failed = asyncio.Event()

        async def runner() -> None:
            for index in todo:
                try:
                    job, body = await self._child(tasks[index], ids[index], name, to=to, priority=priority)
                    outcomes[index] = self._result(job, body)
                except (BrokerError, WorkflowEndedError):
                    raise
                except AgentMeshError as error:
                    outcomes[index] = error
                    if on_error == "raise" and not failed.is_set():
                        failed.set()
                        await self.cancel_children(ids)
                if failed.is_set():
                    return

        self.teller.tell(name, "map", "running", "", task_type=wire_name(task_type), total=len(tasks))
        async with self.seat.away():
            await all_or_none([runner() for _ in range(min(limit, len(tasks)))])
        errors = [outcome for outcome in outcomes if isinstance(outcome, AgentMeshError)]
        status = "failed" if errors and on_error == "raise" else "completed"
        self.teller.tell(name, "map", status, "", task_type=wire_name(task_type), total=len(tasks), failed=len(errors))
        if status == "failed":
            # Those that were cancelled because another one failed are not what went wrong.
            cause = next((error for error in errors if not isinstance(error, TaskCancelledError)), errors[0])
            results = [None if isinstance(outcome, AgentMeshError) else outcome for outcome in outcomes]
            raise self.final(BatchFailedError(len(errors), len(tasks), str(cause), results)) from cause
        return outcomes

    def _item_ids(self, name: str, tasks: Sequence[Task[Any]]) -> list[str]:
        """By content, so that items in another order, or with others between them, keep their results."""
        seen: dict[str, int] = {}
        ids = []
        for task in tasks:
            content = _fingerprint(task)
            seen[content] = seen.get(content, 0) + 1
            ids.append(ident("map", self.task_id, f"{name}\n{content}\n{seen[content]}"))
        return ids

    async def _child(
        self, task: Task[R], child_id: str, name: str, *, to: str | None, priority: str | None
    ) -> tuple[Job[R], ResultBody]:
        """Submit a task of that id, unless it has been, and wait until it is decided."""
        noted = children.get()
        if noted is not None:
            noted.append(child_id)
        job = self.client.job(child_id, type(task))
        fingerprint = _fingerprint(task)
        body = None
        if self.context.may_repeat or self.desk.ended or undoing.get():
            body = await slot.read(self.transport, self.subjects, child_id)
        if body is None:
            self.check_ended()
            job = await self._submitted(task, child_id, fingerprint, to, priority)
            body = await job.outcome()
        if body.fingerprint and body.fingerprint != fingerprint:
            raise self.final(WorkflowChangedError(name, body.fingerprint, fingerprint))
        return job, body

    async def _submitted(
        self, task: Task[R], child_id: str, fingerprint: str, to: str | None, priority: str | None
    ) -> Job[R]:
        """Submit; when the queue is full, wait for room."""
        return await self.client.submit(
            task,
            to=to,
            task_id=child_id,
            priority=priority,
            source=self.agent,
            fingerprint=fingerprint,
            patience=math.inf,
        )

    def _result(self, job: Job[R], body: ResultBody) -> R:
        try:
            return job.value(body)
        except AgentMeshError as error:
            self.final(error)
            raise

    async def cancel_children(self, task_ids: Iterable[str]) -> None:
        """Cancel tasks of ours that nobody needs any more."""
        await asyncio.gather(*(self.client.cancel(task_id, self.agent) for task_id in task_ids))

    # ------------------------------------------------------------ time and signals

    async def sleep(self, seconds: float, name: str) -> None:
        """See `TaskContext.sleep`."""
        self.begin(name)
        until = await self._moment(name, "sleep", seconds)
        left = (until - now()).total_seconds()
        if left > 0:
            self.check_ended()
            self.teller.tell(name, "sleep", "running", self.journal.id(name), until=until)
            async with self.seat.away():
                await asyncio.sleep(left)
            self.teller.tell(name, "sleep", "completed", self.journal.id(name))

    async def _moment(self, name: str, kind: str, seconds: float) -> datetime:
        """`seconds` from when this was first asked, in whichever run that was."""
        if not 0 <= seconds <= LONGEST_SLEEP:
            raise DefinitionError(f"{kind} {name!r}", f"it may last 0 to {LONGEST_SLEEP:g} seconds, not {seconds:g}")
        body = await self.recorded(name, kind)
        if body is None:
            until = msgspec.Raw(encode(now() + timedelta(seconds=seconds)))
            body = await self.journal.decide(name, kind, "completed", result=until)
        return msgspec.json.decode(body.result, type=datetime)

    async def signal(self, name: str, kind: Any, timeout: float | None) -> Any:
        """See `TaskContext.signal`."""
        self.begin(name)
        signal_id = ident("signal", self.task_id, name)
        watch = self.client.results.watch(signal_id)
        body = await slot.read(self.transport, self.subjects, signal_id)
        if body is None:
            self.check_ended()
            until = None if timeout is None else await self._moment(name, "signal", timeout)
            self.teller.tell(name, "signal", "running", signal_id, until=until)
            async with self.seat.away():
                try:
                    async with asyncio.timeout(None if until is None else (until - now()).total_seconds()):
                        body = await self.client.results.wait(watch)
                except TimeoutError:
                    body = await self.journal.write(signal_body(self.task_id, name, status="expired"))
            self.teller.tell(name, "signal", body.status, signal_id)
        if body.status != "completed":
            raise self.final(SignalTimeoutError(name, timeout or 0.0))
        return decoded(name, kind, body)

    # ------------------------------------------------------------ sagas

    async def mark_sagas(self) -> None:
        """Have it stored that there may be something to undo, before there is."""
        self.sagas += 1
        if self.sagas == 1 and not self.desk.ended:
            await self.journal.decide(SAGAS, "", "completed")


def decoded(name: str, kind: Any, body: ResultBody) -> Any:
    """What a step returned, as its type."""
    try:
        return codec.decode_body(kind, body.result)
    except InvalidMessageError as error:
        raise WorkflowChangedError(name, f"a value that is no {kind}", str(error)) from error


async def all_or_none(work: Sequence[Any]) -> None:
    """Run coroutines beside each other; when one raises, the others are cancelled and it is raised."""
    strands = [asyncio.get_running_loop().create_task(each, name="workflow") for each in work]
    try:
        await asyncio.gather(*strands)
    finally:
        for strand in strands:
            strand.cancel()
        await asyncio.gather(*strands, return_exceptions=True)


def _fingerprint(task: Task[Any]) -> str:
    return f"{wire_name(type(task))} {digest(codec.encode_body(task))}"


def _step_failed(name: str, body: ResultBody) -> StepFailedError:
    try:
        failure = _read_error(body.result)
    except msgspec.MsgspecError:
        failure = StepError(body.status, body.reason)
    return StepFailedError(name, failure.error_type, failure.message, failure.attempts)
