"""Groups: agents that are started, restarted and stopped together, whatever processes they run in.

A group is a supervisor whose children are agents, each with all its replicas. What ends one of them, a failing handler
or the death of its process, ends the child, and the strategy of the group decides who is restarted with it. Neither the
node nor the process of a member restarts it. When the group gives up, or shuts itself down, all its agents are stopped,
the last first, and it stays down until somebody restarts it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, Protocol

from agentmesh.crashes import GAVE_UP
from agentmesh.errors import AgentMeshError, SupervisionError
from agentmesh.supervisor import ChildSpec, Exit, Supervisor, SupervisorEvent
from agentmesh.up.events import UpEvent, Warned
from agentmesh.up.plan import AgentPlan, GroupPlan, UpPlan

GROUP_ENDED = "group-ended"
"""Kind of event: a group shut itself down."""


class Stage(Protocol):
    """Where the agents of groups are started and stopped."""

    @property
    def agents(self) -> Mapping[str, AgentPlan]:
        """As they are planned now."""

    async def bring_up(self, name: str) -> None:
        """Start all replicas of an agent; returns when they are ready.

        Raises:
            AgentMeshError: One of them cannot start; none is left.
        """

    async def take_down(self, name: str) -> None:
        """Stop all replicas of an agent, within the grace of their nodes."""


class _Member:
    """An agent of a group, running."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.over: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._name = name
        self._stage = stage

    async def stop(self, timeout: float) -> None:
        await self._stage.take_down(self._name)

    async def wait(self) -> Exit:
        return await asyncio.shield(self.over)


class Groups:
    """The groups of a plan.

    Args:
        plan: The plan.
        stage: Starts and stops agents.
        emit: Called with what happens.
        record: Keeps an event: kind, name, document.
    """

    def __init__(
        self,
        plan: UpPlan,
        stage: Stage,
        emit: Callable[[UpEvent], None],
        record: Callable[[str, str, Mapping[str, Any]], None],
    ) -> None:
        self._plans = {group.name: group for group in plan.groups}
        self._stage = stage
        self._emit = emit
        self._record = record
        self._supervisors: dict[str, Supervisor] = {}
        self._members: dict[str, _Member] = {}
        self._states: dict[str, Literal["up", "down", "ended"]] = dict.fromkeys(self._plans, "down")
        self._problems: dict[str, str] = {}
        self._going_down: dict[str, asyncio.Task[None]] = {}
        self._busy = {name: asyncio.Lock() for name in self._plans}
        """Held by whoever starts or restarts a group, or one of its agents."""

    def __contains__(self, name: str) -> bool:
        return name in self._plans

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._plans)

    async def start(self) -> None:
        """Start all groups. One that cannot start is reported and stays down."""
        await asyncio.gather(*(self.restart(name) for name in self._plans))

    async def stop(self) -> None:
        """Stop all groups, in each the last agent first."""
        await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors.values()))
        if self._going_down:
            await asyncio.wait(self._going_down.values())

    def ended(self, agent: str, exit: Exit) -> None:
        """A replica of an agent has ended by itself."""
        member = self._members.get(agent)
        if member is not None and not member.over.done():
            member.over.set_result(exit)

    async def restart(self, name: str) -> str:
        """Stop a group and start it anew, also one that is down; what went wrong."""
        async with self._busy[name]:
            if name in self._supervisors:
                await self._supervisors[name].stop()
            if name in self._going_down:
                await asyncio.wait([self._going_down.pop(name)])
            await self._begin(self._plans[name])
            return self._problems.get(name, "")

    async def restart_agent(self, agent: str) -> str:
        """Restart one agent of a group, without its siblings; what went wrong."""
        group = self._group_of(agent)
        async with self._busy[group]:
            if self._states[group] != "up":
                return f"group {group} is {self._states[group]}; start it with: agentmesh restart {group}"
            try:
                await self._supervisors[group].restart_child(agent)
            except AgentMeshError as error:
                return str(error)
            return ""

    def state_of(self, agent: str) -> Literal["up", "down", "ended"]:
        """The state of the group that an agent is in."""
        return self._states[self._group_of(agent)]

    def table(self) -> list[dict[str, Any]]:
        """The groups and what became of them."""
        return [
            {
                "name": name,
                "state": self._states[name],
                "strategy": plan.strategy,
                "agents": list(plan.agents),
                "problem": self._problems.get(name, ""),
            }
            for name, plan in self._plans.items()
        ]

    # ------------------------------------------------------------ inside
    def _group_of(self, agent: str) -> str:
        return next(plan.name for plan in self._plans.values() if agent in plan.agents)

    async def _begin(self, plan: GroupPlan) -> None:
        supervisor = self._supervisors[plan.name] = Supervisor(
            plan.name,
            policy=plan.policy,
            strategy=plan.strategy,
            auto_shutdown=plan.auto_shutdown,
            on_event=partial(self._on_event, plan),
            on_escalation=partial(self._gave_up, plan),
        )
        self._problems.pop(plan.name, None)
        self._states[plan.name] = "up"
        try:
            await supervisor.start(self._spec(plan, agent) for agent in plan.agents)
        except (AgentMeshError, TimeoutError) as error:
            await self._go_down(plan, error)

    def _spec(self, group: GroupPlan, name: str) -> ChildSpec:
        agent = self._stage.agents[name]

        async def start() -> _Member:
            member = self._members[name] = _Member(name, self._stage)
            await self._stage.bring_up(name)
            return member

        return ChildSpec(
            name,
            start,
            restart=agent.restart or "permanent",
            shutdown_timeout=math.inf,
            significant=agent.significant and group.auto_shutdown != "never",
        )

    def _on_event(self, plan: GroupPlan, event: SupervisorEvent) -> None:
        if event.kind == "restarting":
            text = f"{event.child} ended ({event.detail.partition(chr(10))[0]}); strategy {plan.strategy}"
            self._emit(Warned(source=plan.name, text=text))
        elif event.kind == "shut_down":
            reason = f"{event.child} ended: {event.detail}"
            self._states[plan.name], self._problems[plan.name] = "ended", reason
            self._record(GROUP_ENDED, plan.name, {"reason": reason, "group": plan.name, "agents": list(plan.agents)})
            self._emit(Warned(source=plan.name, text=f"the group has ended, because {reason}", hint=_hint(plan)))

    def _gave_up(self, plan: GroupPlan, error: BaseException) -> None:
        sweep = asyncio.get_running_loop().create_task(self._go_down(plan, error), name=f"group {plan.name} goes down")
        self._going_down[plan.name] = sweep

    async def _go_down(self, plan: GroupPlan, error: BaseException) -> None:
        for agent in reversed(plan.agents):  # also what the one that failed has left
            await self._stage.take_down(agent)
        reason = str(error) or type(error).__name__
        self._states[plan.name], self._problems[plan.name] = "down", reason
        self._record(GAVE_UP, plan.name, {"reason": reason, "group": plan.name, "agents": list(plan.agents)})
        self._emit(Warned(source=plan.name, text=f"the group is down: {reason}", hint=_hint(plan)))


def _hint(plan: GroupPlan) -> str:
    return f"start it with: agentmesh restart {plan.name}"


def failure(detail: str) -> Exit:
    """The end of an agent that failed."""
    return Exit(SupervisionError(detail), detail)
