"""The verbs by which a task handler becomes a workflow: part of `TaskContext`, done in `agentmesh.tasks.workflow`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, TypeVarTuple, overload

from agentmesh.messages import Task, TaskPolicy

if TYPE_CHECKING:
    from agentmesh.errors import AgentMeshError
    from agentmesh.tasks.workflow.flow import Workflow
    from agentmesh.tasks.workflow.saga import Saga

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_POLICY = TaskPolicy()


class WorkflowVerbs(ABC):
    """What is begun by these has one outcome, in whatever run of the handler it is decided. See docs/workflows.md.

    Names tell steps apart: within a task each is used once, and means the same in every run. Something that only waits
    (`run`, `map`, `sleep`, `signal`) gives the agent's slot to others meanwhile, and its time does not count.
    """

    __slots__ = ()

    @abstractmethod
    def _flow(self) -> Workflow: ...

    @overload
    async def step(
        self,
        name: str,
        call: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        max_attempts: int = ...,
        backoff: float = ...,
        timeout: float | None = ...,
    ) -> R: ...
    @overload
    async def step(
        self,
        name: str,
        call: Callable[[*Ts], R],
        /,
        *args: *Ts,
        max_attempts: int = ...,
        backoff: float = ...,
        timeout: float | None = ...,
    ) -> R: ...
    async def step(
        self,
        name: str,
        call: Callable[[*Ts], Any],
        /,
        *args: *Ts,
        max_attempts: int = _POLICY.max_attempts,
        backoff: float = _POLICY.backoff,
        timeout: float | None = None,
    ) -> Any:
        """Call a function and store what it returns; in later runs, return what is stored.

        It is called at least once: a process that dies between the effect and the storing has it called again, so give
        `ctx.key(name)` to what has an effect outside. Once stored, it is never called again.

        Args:
            name: Of this step.
            call: An async function, or one that blocks, which runs in a thread. Its return annotation says what is
                stored and returned, by value; without one it is plain data.
            args: For `call`.
            max_attempts: Calls in one run, before the step fails for good. `Reject` fails it at once, `Retry(delay)`
                chooses the delay.
            backoff: Seconds before the second call; doubled before each further one, up to 30.
            timeout: Seconds one call may take. What runs in a thread cannot be ended, it is left behind.

        Raises:
            StepFailedError: Its attempts are used up; so it will be in every run.
            DuplicateStepError: There is a step of that name in this run.
            WorkflowChangedError: Another function was recorded under that name.
        """
        policy = TaskPolicy(max_attempts=max_attempts, backoff=backoff)
        return await self._flow().step(name, call, args, policy, timeout)

    async def run(
        self, task: Task[R], *, to: str | None = None, name: str | None = None, priority: str | None = None
    ) -> R:
        """Submit a task and wait for its result; in later runs, wait for the same one.

        The task is cancelled when this one is cancelled or expires.

        Args:
            task: What to do.
            to: The agent; None lets the dispatcher find one.
            name: Of this step; by default the type of the task.
            priority: `high`, `normal` or `low`; None takes the task's own.

        Raises:
            TaskFailedError, TaskDeadError, TaskCancelledError, TaskExpiredError: As `Job.result`.
            DuplicateStepError: There is a step of that name in this run.
            WorkflowChangedError: It was another task, or the same with other parameters.
        """
        return await self._flow().run(task, to=to, name=name, priority=priority)

    @overload
    async def map(
        self,
        task_type: type[Task[R]],
        items: Iterable[Any],
        *,
        to: str | None = ...,
        limit: int = ...,
        on_error: Literal["raise"] = ...,
        name: str | None = ...,
        priority: str | None = ...,
    ) -> list[R]: ...
    @overload
    async def map(
        self,
        task_type: type[Task[R]],
        items: Iterable[Any],
        *,
        to: str | None = ...,
        limit: int = ...,
        on_error: Literal["return"],
        name: str | None = ...,
        priority: str | None = ...,
    ) -> list[R | AgentMeshError]: ...
    async def map(
        self,
        task_type: type[Task[R]],
        items: Iterable[Any],
        *,
        to: str | None = None,
        limit: int = 64,
        on_error: Literal["raise", "return"] = "raise",
        name: str | None = None,
        priority: str | None = None,
    ) -> Any:
        """Submit a task for each item, at most `limit` under way, and wait for all results, in order of the items.

        Items are known by their content: in a later run they may come in another order.

        Args:
            task_type: The task.
            items: Tasks, dicts of fields, or values of its only required field.
            to: The agent; None lets the dispatcher find one.
            limit: Tasks under way at the same time.
            on_error: `raise` cancels the rest when one fails, and raises `BatchFailedError` with the results there
                are; `return` puts the error in the place of the result.
            name: Of this step; by default the type of the task.
            priority: As in `run`.
        """
        return await self._flow().map(
            task_type, items, to=to, limit=limit, on_error=on_error, name=name, priority=priority
        )

    @overload
    async def gather(self, a: Awaitable[A], b: Awaitable[B], /) -> tuple[A, B]: ...
    @overload
    async def gather(self, a: Awaitable[A], b: Awaitable[B], c: Awaitable[C], /) -> tuple[A, B, C]: ...
    @overload
    async def gather(
        self, a: Awaitable[A], b: Awaitable[B], c: Awaitable[C], d: Awaitable[D], /
    ) -> tuple[A, B, C, D]: ...
    @overload
    async def gather(self, *branches: Awaitable[R]) -> tuple[R, ...]: ...
    async def gather(self, *branches: Awaitable[Any]) -> tuple[Any, ...]:
        """Do several things at the same time, such as `ctx.run(…)` and `ctx.step(…)`; their results, in order.

        All of them come to their end, also when one fails: then nothing is left half done. The first error, by
        position, is raised after that. To stop early, use `race` or `map`.
        """
        from agentmesh.tasks.workflow import branches as module

        return await module.gather(self._flow(), branches)

    async def race(self, *branches: Awaitable[R], name: str = "race") -> R:
        """Do several things at the same time; the result of the first that succeeds.

        Who won is stored, so it is the same in later runs. The others are cancelled, with the tasks they have
        submitted; a function in a thread cannot be stopped.

        Args:
            branches: Coroutines, such as `ctx.run(…)` and `ctx.step(…)`; the same ones in each run.
            name: Of this step.

        Raises:
            RaceFailedError: None succeeded; says why.
        """
        from agentmesh.tasks.workflow import branches as module

        return await module.race(self._flow(), branches, name)  # type: ignore[no-any-return]

    async def sleep(self, seconds: float, name: str = "sleep") -> None:
        """Wait; a later run waits only for what is left. Up to 6 days.

        Args:
            seconds: Counted from the first time this is reached, in whichever run.
            name: Of this step.
        """
        await self._flow().sleep(seconds, name)

    @overload
    async def signal(self, name: str, *, timeout: float | None = ...) -> Any: ...
    @overload
    async def signal(self, name: str, kind: type[R], *, timeout: float | None = ...) -> R: ...
    async def signal(self, name: str, kind: Any = Any, *, timeout: float | None = None) -> Any:
        """Wait for what somebody outside says with `job.signal(name, value)` or `agentmesh task signal`; its value.

        The first one counts, also if it came before this was reached.

        Args:
            name: Of the signal, and of this step.
            kind: Type of the value; by default plain data.
            timeout: Seconds, counted as in `sleep`, up to 6 days; None waits as long as it takes.

        Raises:
            SignalTimeoutError: It did not come in time; from now on it is refused.
            WorkflowChangedError: The value is not of that type.
        """
        return await self._flow().signal(name, kind, timeout)

    def saga(self, name: str = "saga", *, undo_attempts: int = 10) -> Saga:
        """Steps that are undone when one of them fails: `async with ctx.saga() as saga:`. See `Saga`.

        Args:
            name: Of this saga, as of a step.
            undo_attempts: Calls in one run of each function that undoes something.
        """
        from agentmesh.tasks.workflow.saga import Saga

        return Saga(self._flow(), name, undo_attempts)
