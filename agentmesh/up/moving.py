"""Moving agents between processes while they work: reloading, rolling restarts, and draining a node.

The successor is there before the predecessor goes: it takes messages beside it, the old one takes no more, finishes
what it has, and ends. So requests, tasks and durable events find somebody at every moment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from agentmesh.errors import AgentMeshError, NoSuchAgentError, UsageError
from agentmesh.registry import near_misses
from agentmesh.up.events import Reloaded
from agentmesh.up.fleet import Fleet, problems_of
from agentmesh.up.placement import NodePlan, successor
from agentmesh.up.scaling import start_on, stop_on


async def replace(fleet: Fleet, name: str) -> tuple[str, str]:
    """Start a successor of a node and retire the node, unless the successor cannot run what the node runs.

    Returns:
        The name of the one that runs now, and what is wrong with it or with the one that was tried.
    """
    old = fleet.members[name].process
    broken_before = set(problems_of(old)) if old is not None and old.alive else set(fleet.agents)
    new = successor(fleet.nodes[name])
    try:
        problems = await fleet.try_out(new)
    except AgentMeshError as error:
        return name, str(error)
    newly_broken = [text for agent, text in problems.items() if agent not in broken_before]
    if newly_broken:
        await fleet.retire(new.name)
        return name, newly_broken[0]
    fleet.promote(new.name)
    await fleet.retire(name)
    return new.name, next(iter(problems.values()), "")


async def reload(fleet: Fleet, files: Iterable[str] | None = None) -> Reloaded | None:
    """Replace the nodes whose code is in `files` (None: all nodes), all at the same time; nothing is lost on the way.

    Returns:
        What was done; None if no node was concerned.
    """
    began = asyncio.get_running_loop().time()
    async with fleet.change():
        changed = None if files is None else set(files)
        nodes = [name for name in fleet.nodes if changed is None or _concerns(fleet, name, changed)]
        if not nodes:
            return None
        fleet.forget_problems()
        outcomes = await asyncio.gather(*(replace(fleet, name) for name in nodes))
        agents = {entry.name for name, _ in outcomes for entry in fleet.nodes[name].agents}
    replaced = [name for name, problem in outcomes if not problem]
    return _tell(fleet, began, replaced, agents, next(filter(None, (problem for _, problem in outcomes)), ""), changed)


def _concerns(fleet: Fleet, name: str, changed: set[str]) -> bool:
    """Whether a node runs code of these files. What failed to load may need any of them."""
    process = fleet.members[name].process
    if process is None or not process.alive or process.said.get("problems"):
        return True
    files = process.said.get("files")
    return isinstance(files, list) and not changed.isdisjoint(files)


def _tell(
    fleet: Fleet, began: float, nodes: list[str], agents: set[str], problem: str, files: set[str] | None = None
) -> Reloaded:
    seconds = asyncio.get_running_loop().time() - began
    event = Reloaded(
        files=tuple(sorted(files or ())),
        nodes=tuple(nodes),
        agents=tuple(sorted(agents)),
        seconds=seconds,
        problem=problem,
    )
    fleet.emit(event)
    return event


async def rolling_restart(fleet: Fleet, agent: str = "") -> Reloaded:
    """Replace the processes that host an agent, or all that host agents, one after the other.

    Each successor imports the code afresh, and the next one's turn comes when it is ready and its predecessor has
    ended. The first that cannot run what its predecessor runs is taken away again, and the rest stays as it is.

    Raises:
        NoSuchAgentError: The plan has no such agent.
    """
    if agent and agent not in fleet.agents:
        raise NoSuchAgentError(agent, near_misses(agent, fleet.agents))
    began = asyncio.get_running_loop().time()
    replaced: list[str] = []
    nodes = [node.name for node in fleet.nodes.values() if not agent or node.replicas(agent)]
    problem = "" if nodes else f"no replica of {agent or 'any agent'} runs here; see: agentmesh ps --nodes"
    for node in nodes:
        async with fleet.change():
            if node not in fleet.nodes:
                continue  # scaled away meanwhile
            now, problem = await replace(fleet, node)
            replaced += [now] if not problem else []
        if problem:
            break
    agents = {entry.name for node in replaced if node in fleet.nodes for entry in fleet.nodes[node].agents}
    return _tell(fleet, began, replaced, agents, problem)


async def drain_node(fleet: Fleet, name: str) -> tuple[dict[str, str], str]:
    """Take a node away: its replicas are started on other nodes, then it finishes what it has and ends.

    Without another node that shares, a new process takes its place.

    Returns:
        Where each replica is now, and what went wrong: then the node stays.

    Raises:
        UsageError: There is no such node.
    """
    async with fleet.change():
        node = fleet.nodes.get(name)
        if node is None:
            known = ", ".join(sorted(fleet.nodes)) or "none"
            raise UsageError(
                f"this supervisor has no node {name!r}, only: {known}; stop others where they were started"
            )
        others = [
            other
            for other in fleet.nodes.values()
            if other is not node and other.shared and fleet.members[other.name].state == "running"
        ]
        if not others or not node.shared:
            where, problem = await replace(fleet, name)
            return dict.fromkeys(_keys(node), where) if not problem else {}, problem
        moved: dict[str, str] = {}
        for entry in list(node.agents):
            for replica in entry.replicas:
                target = min(others, key=lambda other: (len(other.replicas(entry.name)), other.load()))
                problem = await _move(fleet, target.name, entry.name, replica)
                if problem:
                    for key, where in moved.items():
                        await stop_on(fleet, where, *_parts(key))
                    return {}, problem
                moved[f"{entry.name}.{replica}"] = target.name
        await fleet.retire(name)
        return moved, ""


async def _move(fleet: Fleet, target: str, agent: str, replica: int) -> str:
    """Start one replica on a node; or say what went wrong, and leave nothing of it there."""
    try:
        problem = await start_on(fleet, target, fleet.agents[agent], replica)
    except AgentMeshError as error:
        problem = str(error)
    if problem:
        with contextlib.suppress(AgentMeshError):  # a node that does not answer starts again without it
            await stop_on(fleet, target, agent, replica)
    return problem


def _parts(key: str) -> tuple[str, int]:
    agent, _, replica = key.rpartition(".")
    return agent, int(replica)


def _keys(node: NodePlan) -> list[str]:
    return [f"{entry.name}.{replica}" for entry in node.agents for replica in entry.replicas]
