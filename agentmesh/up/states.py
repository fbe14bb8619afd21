"""What became of each replica of the agents here, told whenever it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentmesh.registry import AgentInfo
from agentmesh.up.events import AgentState, UpEvent
from agentmesh.up.plan import AgentPlan


class AgentStates:
    """See the module.

    Args:
        plans: The agents, as they are planned now.
        emit: Called with each change.
    """

    def __init__(self, plans: Mapping[str, AgentPlan], emit: Callable[[UpEvent], None]) -> None:
        self._plans = plans
        self._emit = emit
        self._states: dict[tuple[str, int, str], AgentState] = {}
        """By agent, replica and node."""
        self._messages: dict[str, tuple[str, ...]] = {}

    def ready(self) -> set[str]:
        """Agents with a replica that is there, be it paused."""
        return {name for (name, _, _), told in self._states.items() if told.state in ("ready", "paused")}

    def learn(self, info: AgentInfo) -> None:
        """Remember which messages an agent takes."""
        self._messages[info.name] = _names(info) or self._messages.get(info.name, ())

    def note(self, agent: str, replica: int, node: str, state: str, problem: str) -> None:
        """Tell it if it is news."""
        messages = self._messages.get(agent, ())
        before = self._states.get((agent, replica, node))
        if before is not None and (before.state, before.problem, before.messages) == (state, problem, messages):
            return
        plan = self._plans.get(agent)
        isolation = plan.isolation if plan else "shared"
        event = self._states[agent, replica, node] = AgentState(
            name=agent,
            replica=replica,
            node=node,
            state=state,
            problem=problem,
            isolation=isolation,
            messages=messages,
        )
        self._emit(event)

    def forget_agent(self, agent: str) -> None:
        """None of its replicas runs any more."""
        self._forget([key for key in self._states if key[0] == agent])

    def forget_node(self, node: str) -> None:
        """No replica runs there any more."""
        self._forget([key for key in self._states if key[2] == node])

    def _forget(self, keys: list[tuple[str, int, str]]) -> None:
        for key in keys:
            self.note(*key, "stopped", "")
            del self._states[key]


def _names(info: AgentInfo) -> tuple[str, ...]:
    return tuple(f"{message.name}{'*' if message.kind == 'stream' else ''}" for message in info.messages)
