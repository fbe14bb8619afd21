"""Starting and stopping replicas of agents: how many there are, and on which node each runs."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from agentmesh.errors import AgentMeshError, ConfigError, NoSuchAgentError, SupervisionError
from agentmesh.registry import near_misses
from agentmesh.up.placement import NodePlan, node_agent, own_node
from agentmesh.up.plan import AgentPlan

if TYPE_CHECKING:
    from agentmesh.up.fleet import Fleet

MAX_REPLICAS = 1024


async def scale(fleet: Fleet, name: str, replicas: int) -> str:
    """Run that many replicas of an agent; those with the highest numbers go first.

    Returns:
        What went wrong when a new replica was started; empty if nothing did.

    Raises:
        NoSuchAgentError: The plan has no such agent.
        ConfigError: Not a sensible number.
        SupervisionError: A node that is being restarted does not come up, or the mesh stops.
    """
    agent = fleet.agents.get(name)
    if agent is None:
        raise NoSuchAgentError(name, near_misses(name, fleet.agents))
    if not 0 <= replicas <= MAX_REPLICAS:
        raise ConfigError("replicas", f"{replicas}: expected 0 to {MAX_REPLICAS}")
    async with fleet.change():
        if agent.grouped and (state := fleet.groups.state_of(name)) != "up":
            fleet.agents[name] = replace(agent, replicas=replicas)
            group = fleet.plan.group_of(name)
            return f"group {group} is {state}; so many will run when it is started: agentmesh restart {group}"
        here = fleet.replicas(name)
        surplus = sorted(here, reverse=True)[: max(0, len(here) - replicas)]
        await asyncio.gather(*(_drop(fleet, name, replica, here[replica]) for replica in surplus))
        free = (number for number in range(1, MAX_REPLICAS * 2) if number not in here)
        missing = [next(free) for _ in range(replicas - len(here))]
        problems = [await _add(fleet, agent, replica) for replica in missing]
        fleet.agents[name] = replace(agent, replicas=replicas)
    return next(filter(None, problems), "")


async def start_on(fleet: Fleet, where: str, agent: AgentPlan, replica: int) -> str:
    """Start one replica on a shared node; what went wrong. A node that has failed gets it when it is restarted."""
    await fleet.until_up(where)
    fleet.nodes[where].add(agent, replica)
    wanted = msgspec.to_builtins(node_agent(agent, [replica]))
    return str((await fleet.tell_node(where, "spawn", agent=wanted)).get("problem", ""))


async def stop_on(fleet: Fleet, where: str, agent: str, replica: int) -> None:
    """Stop one replica on a shared node."""
    if not fleet.stopping:
        await fleet.until_up(where)
    fleet.nodes[where].drop(agent, replica)
    await fleet.tell_node(where, "stop", name=agent, replica=replica)
    fleet.states.note(agent, replica, where, "stopped", "")


class GroupStage:
    """Where the agents of groups are started and stopped."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    @property
    def agents(self) -> dict[str, AgentPlan]:
        """As they are planned now."""
        return self._fleet.agents

    async def bring_up(self, name: str) -> None:
        """Start all replicas of an agent; returns when they are ready.

        Raises:
            AgentMeshError: One of them cannot start; none is left.
        """
        agent = self.agents[name]
        async with self._fleet.change():
            await self._clear(name)
            self._fleet.forget_problem(name)
            try:
                for replica in range(1, agent.replicas + 1):
                    problem = await _add(self._fleet, agent, replica)
                    if problem:
                        raise SupervisionError(problem)
            except AgentMeshError:
                await self._clear(name)
                raise

    async def take_down(self, name: str) -> None:
        """Stop all replicas of an agent, within the grace of their nodes."""
        async with self._fleet.changing:
            await self._clear(name)

    async def _clear(self, name: str) -> None:
        for replica, where in self._fleet.replicas(name).items():
            with contextlib.suppress(AgentMeshError):  # its process has just ended, and the replica with it
                await _drop(self._fleet, name, replica, where)
        self._fleet.states.forget_agent(name)


async def _add(fleet: Fleet, agent: AgentPlan, replica: int) -> str:
    """Start one replica where there is most room; what went wrong."""
    if agent.isolation == "process":
        return await _add_with_node(fleet, agent, own_node(agent, replica, fleet.suffix))
    shared = [node for node in fleet.nodes.values() if node.shared]
    if len(shared) < fleet.plan.nodes and all(node.load() for node in shared):
        return await _add_with_node(fleet, agent, NodePlan(_free_name(fleet), [node_agent(agent, [replica])]))
    able = [node for node in shared if fleet.members[node.name].state != "failed"]
    if not able:
        hint = f"fix why it failed, then: agentmesh restart {shared[0].name}"
        return f"no process is left that {agent.name} could share; {hint}"
    node = min(able, key=lambda candidate: (len(candidate.replicas(agent.name)), candidate.load()))
    return await start_on(fleet, node.name, agent, replica)


async def _add_with_node(fleet: Fleet, agent: AgentPlan, node: NodePlan) -> str:
    await fleet.add_node(node, patient=not agent.grouped)
    return fleet.problem_of(agent.name)


async def _drop(fleet: Fleet, agent: str, replica: int, where: str) -> None:
    if fleet.nodes[where].shared:
        await stop_on(fleet, where, agent, replica)
    else:
        fleet.nodes[where].drop(agent, replica)
        await fleet.retire(where)


def _free_name(fleet: Fleet) -> str:
    names = (f"node-{number}{fleet.suffix}" for number in range(1, MAX_REPLICAS))
    return next(name for name in names if name not in fleet.nodes)
