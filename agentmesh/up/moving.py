"""Moving agents between processes while they work: rolling restarts, and draining a node.

The successor is there before the predecessor goes: it takes messages beside it, the old one takes no more, finishes
what it has, and ends. So requests, tasks and durable events find somebody at every moment.
"""

from __future__ import annotations

import asyncio
import contextlib

from agentmesh.errors import AgentMeshError, NoSuchAgentError, UsageError
from agentmesh.registry import near_misses
from agentmesh.up.events import Reloaded
from agentmesh.up.fleet import Fleet
from agentmesh.up.placement import NodePlan


async def rolling_restart(fleet: Fleet, agent: str = "") -> Reloaded:
    """Replace the processes that host an agent, or all that host agents, one after the other.

    Each successor imports the code afresh, and the next one's turn comes when it is ready and its predecessor has
    ended. The first that cannot run what its predecessor runs is taken away again, and the rest stays as it is.

    Raises:
        NoSuchAgentError: The plan has no such agent.
    """
    if agent and agent not in fleet.agents:
        raise NoSuchAgentError(agent, near_misses(agent, fleet.agents))
    loop = asyncio.get_running_loop()
    began = loop.time()
    replaced: list[str] = []
    problem = ""
    for node in [node.name for node in fleet.nodes.values() if not agent or node.replicas(agent)]:
        async with fleet.changing:
            if node not in fleet.nodes:
                continue  # scaled away meanwhile
            problem = await fleet.replace(node)
            replaced += [fleet.current(node)] if not problem else []
        if problem:
            break
    agents = {entry.name for node in replaced if node in fleet.nodes for entry in fleet.nodes[node].agents}
    event = Reloaded(
        files=(), nodes=tuple(replaced), agents=tuple(sorted(agents)), seconds=loop.time() - began, problem=problem
    )
    fleet.emit(event)
    return event


async def drain_node(fleet: Fleet, name: str) -> tuple[dict[str, str], str]:
    """Take a node away: its replicas are started on other nodes, then it finishes what it has and ends.

    Without another node that shares, a new process takes its place.

    Returns:
        Where each replica is now, and what went wrong: then the node stays.

    Raises:
        UsageError: There is no such node.
    """
    async with fleet.changing:
        node = fleet.nodes.get(name)
        if node is None:
            raise UsageError(f"no node {name!r} runs here; there are: {', '.join(sorted(fleet.nodes)) or 'none'}")
        others = [
            other
            for other in fleet.nodes.values()
            if other is not node and other.shared and fleet.members[other.name].state == "running"
        ]
        if not others or not node.shared:
            problem = await fleet.replace(name)
            where = fleet.current(name)
            return dict.fromkeys(_keys(node), where) if not problem else {}, problem
        moved: dict[str, str] = {}
        for entry in list(node.agents):
            for replica in entry.replicas:
                target = min(others, key=lambda other: (len(other.replicas(entry.name)), other.load()))
                problem = await _move(fleet, target.name, entry.name, replica)
                if problem:
                    for key, where in moved.items():
                        await fleet.stop_on(where, *_parts(key))
                    return {}, problem
                moved[f"{entry.name}.{replica}"] = target.name
        await fleet.retire(name)
        return moved, ""


async def _move(fleet: Fleet, target: str, agent: str, replica: int) -> str:
    """Start one replica on a node; or say what went wrong, and leave nothing of it there."""
    try:
        problem = await fleet.start_on(target, fleet.agents[agent], replica)
    except AgentMeshError as error:
        problem = str(error)
    if problem:
        with contextlib.suppress(AgentMeshError):  # a node that does not answer starts again without it
            await fleet.stop_on(target, agent, replica)
    return problem


def _parts(key: str) -> tuple[str, int]:
    agent, _, replica = key.rpartition(".")
    return agent, int(replica)


def _keys(node: NodePlan) -> list[str]:
    return [f"{entry.name}.{replica}" for entry in node.agents for replica in entry.replicas]
