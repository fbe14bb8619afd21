"""Which replica runs in which process."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from agentmesh.node import NodeAgent
from agentmesh.up.plan import AgentPlan, UpPlan

LONGEST_NAME = 40
"""Characters of an agent's name that the names of its processes show."""


@dataclass
class NodePlan:
    """One node process."""

    name: str
    agents: list[NodeAgent] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    shared: bool = True
    """It may get further replicas of any agent that shares."""
    lineage: str = ""
    """Name of the first of those that replaced each other."""
    generation: int = 1
    """Successors that were tried so far, this one included."""

    def replicas(self, agent: str) -> list[int]:
        """Numbers of the agent's replicas here."""
        return next((entry.replicas for entry in self.agents if entry.name == agent), [])

    def load(self) -> int:
        """Replicas of all agents here."""
        return sum(len(entry.replicas) for entry in self.agents)

    def add(self, plan: AgentPlan, replica: int) -> None:
        """Put one more replica here."""
        for entry in self.agents:
            if entry.name == plan.name:
                entry.replicas = sorted({*entry.replicas, replica})
                return
        self.agents.append(node_agent(plan, [replica]))

    def drop(self, agent: str, replica: int) -> None:
        """Take one replica away."""
        for entry in list(self.agents):
            if entry.name == agent:
                entry.replicas = [number for number in entry.replicas if number != replica]
                if not entry.replicas:
                    self.agents.remove(entry)


def node_agent(plan: AgentPlan, replicas: Iterable[int]) -> NodeAgent:
    """An agent as its node is told of it."""
    return NodeAgent(
        name=plan.name,
        target=plan.target,
        replicas=list(replicas),
        args=list(plan.args),
        kwargs=dict(plan.kwargs),
        concurrency=plan.concurrency,
        prefetch=plan.prefetch,
        mailbox_size=plan.mailbox_size,
        overflow=plan.overflow,
        restart=plan.restart,
        limits=plan.limits,
        grouped=plan.grouped,
    )


def place(plan: UpPlan, suffix: str = "") -> list[NodePlan]:
    """The nodes of a plan: replicas that share go round the shared nodes, the others get a process each.

    Agents in groups are left out: their groups start them.

    Args:
        plan: The plan.
        suffix: Added to the names of nodes, which must be unique at the broker.
    """
    sharing = [agent for agent in plan.agents if agent.isolation == "shared"]
    wanted = max(1, sum(agent.replicas for agent in sharing)) if sharing else 0
    shared = [NodePlan(f"node-{number}{suffix}") for number in range(1, min(plan.nodes, wanted) + 1)]
    turn = itertools.cycle(shared)
    for agent in sharing:
        if plan.group_of(agent.name):
            continue
        for replica in range(1, agent.replicas + 1):
            next(turn).add(agent, replica)
    own = [
        own_node(agent, replica, suffix)
        for agent in plan.agents
        if agent.isolation == "process" and not plan.group_of(agent.name)
        for replica in range(1, agent.replicas + 1)
    ]
    return [*shared, *own]


def own_node(agent: AgentPlan, replica: int, suffix: str = "") -> NodePlan:
    """The process of one replica that does not share."""
    return NodePlan(
        f"{_distinct(agent.name)}-{replica}{suffix}", [node_agent(agent, [replica])], dict(agent.env), shared=False
    )


def _distinct(agent: str) -> str:
    """For the names of its processes: short, and never that of another agent's, a shared node or a tool executor."""
    if len(agent) > LONGEST_NAME:
        return f"{agent[: LONGEST_NAME - 9]}-{hashlib.sha256(agent.encode()).hexdigest()[:8]}"
    return f"{agent}-own" if re.fullmatch(r"(node|tools)(-own)*", agent) else agent


def successor(node: NodePlan) -> NodePlan:
    """The same node under a new name. Each call gives another one."""
    node.generation += 1
    lineage = node.lineage or node.name
    agents = [msgspec.structs.replace(entry, replicas=list(entry.replicas)) for entry in node.agents]
    name = f"{lineage}-r{node.generation}"
    return NodePlan(name, agents, dict(node.env), node.shared, lineage, node.generation)
