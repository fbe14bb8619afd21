"""The verbs, together: tell, ask, stream, publish, listen, submit, map.

A `Client` sends under one name over a shared transport. Inside a handler it adds what the message at hand implies: the
time that is left, the trace id, and the depth of the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from agentmesh import registry
from agentmesh.budgets import Budget
from agentmesh.deathwatch import Watch, watch_tower
from agentmesh.errors import AgentMeshError, QueueFullError
from agentmesh.llmops import LLMOps
from agentmesh.memory import Memory
from agentmesh.messages import Task, Terminated
from agentmesh.orders import Orders
from agentmesh.presence import NodeInfo, node_monitor
from agentmesh.refs import AgentRef
from agentmesh.registry import AgentInfo
from agentmesh.streams import Streams
from agentmesh.subjects import Subjects
from agentmesh.tasks import Batch, Job, Schedule, Schedules
from agentmesh.tasks.use import Limits
from agentmesh.telling import Telling
from agentmesh.tooling import ToolClient
from agentmesh.transport import Transport

if TYPE_CHECKING:
    from agentmesh.facade import NATSClient

R = TypeVar("R")


class Client(Telling):
    """Everything one can say to agents.

    Args:
        transport: The connection, shared.
        subjects: The tenant's subjects.
        identity: The name that receivers see as the sender.
    """

    def __init__(self, transport: Transport, subjects: Subjects, identity: str) -> None:
        super().__init__(transport, subjects, identity)
        self.streams = Streams(transport, subjects, self.tasks.ensure, self.tasks.endings)
        """Replayable streams: conversations, and what tasks tell."""
        self.tools = ToolClient(transport, subjects, identity)
        self.held: Callable[[], AgentMeshError | None] = lambda: None
        """Of an agent: why it takes nothing new at present, for whatever brings it requests beside its mailbox."""
        self.on_terminated: Callable[[Terminated], None] | None = None
        """Set for an agent: what it watches goes to its mailbox."""
        self._watches: dict[str, Watch] = {}
        self._nats: NATSClient | None = None

    def bound(self, identity: str) -> Client:
        """The same connection under another name."""
        other = Client(self.transport, self.subjects, identity)
        other.tasks, other.streams = self.tasks, self.streams  # one subscription to results, whoever waits for them
        return other

    def ref(self, agent: str) -> AgentRef:
        """A reference to an agent; it need not run yet.

        Raises:
            InvalidNameError: The name cannot be an address.
        """
        self.subjects.mailbox(agent)
        return AgentRef(self, agent)

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
