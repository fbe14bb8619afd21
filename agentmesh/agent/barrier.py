"""What keeps messages from an agent for a time: a pause, and quarantines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentmesh.agent.letter import Letter
from agentmesh.errors import AgentMeshError, AgentPausedError, QuarantinedError
from agentmesh.ids import now
from agentmesh.orders import Pause, Quarantine, digest


@dataclass(frozen=True)
class Barrier:
    """Stands before the mailbox of an agent while something is paused or quarantined; usually there is none."""

    agent: str
    pause: Pause | None = None
    quarantines: Mapping[str, Quarantine] = field(default_factory=dict)
    """By digest."""

    def refusal(self, letter: Letter) -> AgentMeshError | None:
        """Why a message that arrives is refused; None if it may enter."""
        if self.pause is not None:
            return AgentPausedError(self.agent, self.pause.reason)
        return self.poison(letter)

    def poison(self, letter: Letter) -> AgentMeshError | None:
        """Why a message is not to be handled, also if it has been waiting; None if it may be."""
        kind = letter.envelope.message_type
        if not any(order.message_type == kind for order in self.quarantines.values()):
            return None
        order = self.quarantines.get(digest(self.agent, kind, bytes(letter.envelope.content)))
        if order is None or order.until <= now():
            return None
        return QuarantinedError(self.agent, kind, order.id)
