"""What a handler knows about the message it is working on, and what its own messages inherit.

While a handler runs, `current()` is its `Context`. The client reads it, so that requests made by a handler carry what
is left of the deadline, the same trace id, and one hop more.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from agentmesh.ids import now


@dataclass(slots=True)
class Context:
    """About the message at hand. Ask for it with a second parameter: `async def h(self, message, ctx: Context)`."""

    agent: str
    """The agent that handles the message."""
    sender: str
    """Who sent it; empty if the sender did not say."""
    message_id: str
    trace_id: str
    """Shared by all messages that follow from the first one."""
    deadline: datetime | None = None
    """When the sender stops waiting (UTC); None if it does not wait."""
    hops: int = 0
    """Handlers the chain of messages went through before this one."""

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative when it has passed; None without one."""
        return None if self.deadline is None else (self.deadline - now()).total_seconds()


_current: ContextVar[Context | None] = ContextVar("agentmesh_context", default=None)

current = _current.get
enter = _current.set
leave = _current.reset
