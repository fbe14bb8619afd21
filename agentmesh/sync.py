"""The mesh for plain code: a connection on a thread of its own, and calls that block.

    mesh = await agentmesh.connect()        # in a notebook cell, or
    mesh = agentmesh.SyncMesh()             # in a script without asyncio
    mesh.sync.ask("greeter", Greet(name="Ada"))

The loop runs on its own thread, so a busy cell cannot starve heartbeats, and no running loop is nested. Interrupting a
call (Ctrl-C, the stop button) cancels that call, not the mesh.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from agentmesh.budgets import Budget
from agentmesh.loopthread import LoopThread, pulled
from agentmesh.messages import Event, Request, Task, Terminated
from agentmesh.presence import NodeInfo
from agentmesh.refs import AgentRef
from agentmesh.registry import AgentInfo

if TYPE_CHECKING:
    from types import TracebackType

    from agentmesh.agent import Agent
    from agentmesh.deathwatch import Watch
    from agentmesh.llmops import Cost, CostAlert, LLMOps, Operation
    from agentmesh.mesh import ConnectOptions, Mesh
    from agentmesh.tasks import Job, Schedule, ScheduleInfo, Schedules, Step
    from agentmesh.tasks.use import Limits, LimitUse

R = TypeVar("R")
T = TypeVar("T")


class SyncJob(Generic[R]):
    """A submitted task, for plain code."""

    def __init__(self, thread: LoopThread, job: Job[R]) -> None:
        self._thread = thread
        self._job = job
        self.id = job.id

    def __repr__(self) -> str:
        return f"SyncJob({self.id!r})"

    def result(self, timeout: float | None = None) -> R:
        """See `Job.result`."""
        return self._thread.run(self._job.result(timeout))

    def cancel(self) -> bool:
        """See `Job.cancel`."""
        return self._thread.run(self._job.cancel())

    def signal(self, name: str, value: Any = None) -> bool:
        """See `Job.signal`."""
        return self._thread.run(self._job.signal(name, value))

    def steps(self) -> list[Step]:
        """See `Job.steps`."""
        return self._thread.run(self._job.steps())

    def __iter__(self) -> Iterator[Any]:
        """Progress and chunks, from the first one on, until the task is decided."""
        return pulled(self._thread, aiter(self._job))


class SyncSchedule:
    """A schedule, for plain code."""

    def __init__(self, thread: LoopThread, schedule: Schedule) -> None:
        self._thread = thread
        self._schedule = schedule
        self.id = schedule.id

    def __repr__(self) -> str:
        return f"Sync{self._schedule!r}"

    @property
    def info(self) -> ScheduleInfo:
        """What it was when it was used last."""
        return self._schedule.info

    def pause(self) -> None:
        """See `Schedules.pause`."""
        self._thread.run(self._schedule.pause())

    def resume(self) -> None:
        """See `Schedules.resume`."""
        self._thread.run(self._schedule.resume())

    def remove(self) -> None:
        """See `Schedules.remove`."""
        self._thread.run(self._schedule.remove())

    def next_runs(self, count: int = 5) -> list[datetime]:
        """See `ScheduleInfo.next_runs`."""
        return self._schedule.next_runs(count)


class SyncSchedules:
    """`Schedules` without `await`."""

    def __init__(self, thread: LoopThread, schedules: Schedules) -> None:
        self._thread = thread
        self._schedules = schedules

    def ls(self, kind: Literal["all", "repeating", "once"] = "all", limit: int = 1000) -> list[ScheduleInfo]:
        return self._thread.run(self._schedules.ls(kind, limit))

    def get(self, schedule_id: str) -> SyncSchedule:
        return SyncSchedule(self._thread, self._thread.run(self._schedules.get(schedule_id)))

    def pause(self, schedule_id: str) -> None:
        self._thread.run(self._schedules.pause(schedule_id))

    def resume(self, schedule_id: str) -> None:
        self._thread.run(self._schedules.resume(schedule_id))

    def remove(self, schedule_id: str) -> None:
        self._thread.run(self._schedules.remove(schedule_id))


class SyncLimits:
    """`Limits` without `await`."""

    def __init__(self, thread: LoopThread, limits: Limits) -> None:
        self._thread = thread
        self._limits = limits

    def ls(self, limit: int = 500) -> list[LimitUse]:
        return self._thread.run(self._limits.ls(limit))


class SyncLLMOps:
    """`LLMOps` without `await`."""

    def __init__(self, thread: LoopThread, llmops: LLMOps) -> None:
        self._thread = thread
        self._llmops = llmops

    def operations(self, *, model: str = "", day: date | None = None, user_id: str = "") -> Iterator[Operation]:
        return pulled(self._thread, self._llmops.operations(model=model, day=day, user_id=user_id))

    def cost(self, *, model: str = "", day: date | None = None) -> list[Cost]:
        return self._thread.run(self._llmops.cost(model=model, day=day))

    def alerts(self, limit: int = 500) -> list[CostAlert]:
        return self._thread.run(self._llmops.alerts(limit))

    def invalidate(
        self,
        *,
        keys: Sequence[str] = (),
        prefixes: Sequence[str] = (),
        tags: Sequence[str] = (),
        everything: bool = False,
    ) -> str:
        order = self._llmops.invalidate(keys=keys, prefixes=prefixes, tags=tags, everything=everything)
        return self._thread.run(order)


class SyncMesh:
    """`Mesh` without `await`. Every method is the one of the same name there, and blocks.

    Args:
        options: Where to connect; by default like `connect()`.
    """

    def __init__(self, options: ConnectOptions | None = None) -> None:
        from agentmesh.mesh import ConnectOptions, _connect

        self._thread = LoopThread()
        try:
            self._mesh: Mesh = self._thread.run(_connect(options or ConnectOptions(own_thread=False)))
        except BaseException:
            self._thread.close()
            raise

    def __repr__(self) -> str:
        return f"Sync{self._mesh!r}"

    def tell(self, agent: str, event: Event, *, timeout: float | None = None, message_id: str | None = None) -> None:
        self._thread.run(self._mesh.tell(agent, event, timeout=timeout, message_id=message_id))

    def ask(
        self,
        agent: str,
        request: Request[R],
        *,
        timeout: float | None = None,
        budget: Budget | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        work = self._mesh.ask(agent, request, timeout=timeout, budget=budget, idempotency_key=idempotency_key)
        return self._thread.run(work)

    def stream(self, agent: str, request: Request[R], *, timeout: float = 30.0) -> Iterator[R]:
        return pulled(self._thread, self._mesh.stream(agent, request, timeout=timeout))

    def publish(self, topic: str, event: Event) -> None:
        self._thread.run(self._mesh.publish(topic, event))

    def submit(
        self,
        task: Task[R],
        *,
        to: str | None = None,
        task_id: str | None = None,
        priority: str | None = None,
        deadline: float | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        budget: Budget | None = None,
        idempotency_key: str | None = None,
        patience: float = 0.0,
    ) -> SyncJob[R]:
        work = self._mesh.submit(
            task,
            to=to,
            task_id=task_id,
            priority=priority,
            deadline=deadline,
            delay=delay,
            at=at,
            budget=budget,
            idempotency_key=idempotency_key,
            patience=patience,
        )
        return SyncJob(self._thread, self._thread.run(work))

    @property
    def limits(self) -> SyncLimits:
        """The limits that are in use."""
        return SyncLimits(self._thread, self._mesh.limits)

    @property
    def llmops(self) -> SyncLLMOps:
        """Calls to language models."""
        return SyncLLMOps(self._thread, self._mesh.llmops)

    def schedule(
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
    ) -> SyncSchedule:
        work = self._mesh.schedule(
            task,
            every=every,
            cron=cron,
            tz=tz,
            schedule_id=schedule_id,
            to=to,
            priority=priority,
            deadline=deadline,
            replace=replace,
        )
        return SyncSchedule(self._thread, self._thread.run(work))

    @property
    def schedules(self) -> SyncSchedules:
        """What is scheduled: list, pause, resume and remove by id."""
        return SyncSchedules(self._thread, self._mesh.schedules)

    def job(self, task_id: str, task_type: type[Task[R]] | None = None) -> SyncJob[R]:
        async def make() -> Job[R]:
            return self._mesh.job(task_id, task_type)

        return SyncJob(self._thread, self._thread.run(make()))

    def map(
        self,
        task_type: type[Task[R]],
        items: Iterable[Any],
        *,
        to: str | None = None,
        limit: int = 64,
        on_error: Literal["raise", "return"] = "raise",
    ) -> list[R]:
        async def collect() -> list[R]:
            return await self._mesh.map(task_type, items, to=to, limit=limit, on_error=on_error)

        return self._thread.run(collect())

    def spawn(
        self, agent_class: type[Agent], *args: Any, name: str | None = None, replicas: int = 1, **kwargs: Any
    ) -> AgentRef:
        return self._thread.run(self._mesh.spawn(agent_class, *args, name=name, replicas=replicas, **kwargs))

    def stop(self, agent: str) -> int:
        return self._thread.run(self._mesh.stop(agent))

    def watch(self, agent: str) -> Iterator[Terminated]:
        return pulled(self._thread, _closing(self._mesh.watch(agent)))

    def pause(self, agent: str, *, reason: str = "") -> list[str]:
        return self._thread.run(self._mesh.pause(agent, reason=reason))

    def resume(self, agent: str) -> list[str]:
        return self._thread.run(self._mesh.resume(agent))

    def pause_all(self, *, reason: str = "") -> list[str]:
        return self._thread.run(self._mesh.pause_all(reason=reason))

    def resume_all(self) -> list[str]:
        return self._thread.run(self._mesh.resume_all())

    def agents(self, name: str = "") -> list[AgentInfo]:
        return self._thread.run(self._mesh.agents(name))

    def nodes(self) -> list[NodeInfo]:
        return self._thread.run(self._mesh.nodes())

    def call_tool(self, tool: Any, **arguments: Any) -> Any:
        """Call a tool, by name or by function."""
        return self._thread.run(self._mesh.tools.call(tool, **arguments))

    def submit_call(self, action: Callable[[Mesh], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run any coroutine of the mesh on its thread, for what has no method here."""
        return self._thread.submit(action(self._mesh))

    def close(self) -> None:
        """Stop the agents of this thread, the connection and the thread; once more does nothing."""
        if self._thread.loop.is_closed():
            return
        try:
            self._thread.run(self._mesh.close())
        finally:
            self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _closing(watch: Watch) -> AsyncIterator[Terminated]:
    async with watch:
        async for gone in watch:
            yield gone
