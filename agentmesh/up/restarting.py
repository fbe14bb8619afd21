"""Restarting what somebody names: an agent, a group, or a process."""

from __future__ import annotations

from agentmesh.errors import NoSuchAgentError
from agentmesh.registry import near_misses
from agentmesh.up.fleet import Fleet


async def restart(fleet: Fleet, name: str) -> str:
    """Restart an agent, a group, or a process by its name. Replicas go one after the other.

    Returns:
        What went wrong; empty if nothing did.

    Raises:
        NoSuchAgentError: There is neither an agent, a group nor a process of that name.
        SupervisionError: The process cannot start, or the mesh stops.
    """
    if name in fleet.groups:
        return await fleet.groups.restart(name)
    if name in fleet.agents and fleet.agents[name].grouped:
        return await fleet.groups.restart_agent(name)
    async with fleet.change():
        if name in fleet.members:
            await fleet.restart(fleet.members[name])
            return ""
        if name not in fleet.agents:
            raise NoSuchAgentError(name, near_misses(name, [*fleet.agents, *fleet.groups, *fleet.members]))
        return await _restart_agent(fleet, name)


async def _restart_agent(fleet: Fleet, name: str) -> str:
    fleet.forget_problem(name)
    for where in sorted(set(fleet.replicas(name).values())):
        member = fleet.members[where]
        if fleet.nodes[where].shared and member.state == "running":
            answer = await fleet.tell_node(where, "restart", name=name)
            if answer.get("problem"):
                return str(answer["problem"])
        else:
            await fleet.restart(member)
    return fleet.problem_of(name)
