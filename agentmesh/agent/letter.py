"""What waits in a mailbox, and what may be chosen for one replica."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentmesh import codec
from agentmesh.agent.declare import Handler
from agentmesh.errors import AgentMeshError
from agentmesh.limits import Limit
from agentmesh.mailbox import Overflow
from agentmesh.metrics import Histogram


@dataclass(slots=True, eq=False)
class Letter:
    """A message in the mailbox."""

    handler: Handler
    envelope: codec.Envelope
    reply: str
    """Where an answer or a refusal goes; empty if nobody listens."""
    handling: bool = False
    """The handler runs now, and may be cancelled."""
    began: float = 0.0
    """When it began, by `perf_counter`."""
    why_cancelled: AgentMeshError | None = None
    """Set before the handler is cancelled by us: what the asker is told."""

    def is_overdue(self, time: datetime) -> bool:
        """Whether the asker has stopped waiting. An event is never: its sender waits for the mailbox only."""
        deadline = self.envelope.deadline
        return deadline is not None and deadline < time and self.handler.kind != "event" and bool(self.reply)

    def cancel(self, worker: asyncio.Task[None], why: AgentMeshError) -> bool:
        """Cancel its handler if it runs, once: a second time would end the handler's own cleaning up."""
        if not self.handling or self.why_cancelled is not None:
            return False
        self.why_cancelled = why
        worker.cancel()
        return True


@dataclass(slots=True)
class Counters:
    """What a replica has done since it was made."""

    handled: int = 0
    failed: int = 0
    refused: int = 0
    restarts: int = 0
    durations: Histogram = field(default_factory=Histogram)
    """Seconds that handlers of events and requests took."""
    queued: Histogram = field(default_factory=Histogram)
    """Seconds from when a message was sent until its handler began, by the clocks of both."""

    @property
    def busy(self) -> float:
        """Seconds spent in handlers of events and requests."""
        return self.durations.sum


@dataclass(slots=True)
class CellOptions:
    """What may differ from the agent class's own settings; None takes those."""

    name: str = ""
    replica: int = 1
    concurrency: int | None = None
    prefetch: int | None = None
    mailbox_size: int | None = None
    overflow: Overflow | None = None
    restart: str | None = None
    limits: tuple[Limit, ...] = ()
    """Bounds on the tasks in its queue, over all its replicas."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
