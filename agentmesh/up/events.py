"""What a running `agentmesh up` tells whoever shows it: plain data, in the order things happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from agentmesh.ids import now


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all; `kind` is the name in JSON."""

    kind: ClassVar[str]
    at: datetime = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class BrokerReady(Event):
    """Connected to the broker; again after the embedded one was restarted."""

    kind = "broker_ready"
    url: str
    version: str
    embedded: bool
    monitor: str | None = None
    """Address of the embedded broker's monitoring pages."""
    store: str = ""
    """Folder of the embedded broker's data; empty: it is gone at the end."""


@dataclass(frozen=True, kw_only=True)
class ServiceReady(Event):
    """The memory service, a tool executor, the HTTP gateway or a node is up, for the first time or again."""

    kind = "service_ready"
    service: str
    """`memory`, `tools`, `gateway` or `node`."""
    process: str
    pid: int
    url: str = ""
    """Of the gateway."""


@dataclass(frozen=True, kw_only=True)
class AgentState(Event):
    """A replica of an agent changed its state."""

    kind = "agent_state"
    name: str
    replica: int
    node: str
    state: str
    """`starting`, `ready`, `paused`, `restarting`, `stopping`, `failed` or `stopped`."""
    problem: str = ""
    isolation: str = "shared"
    messages: tuple[str, ...] = ()
    """Types of message it takes; a `*` behind a name: the answer streams. Only with `ready` at the start."""


@dataclass(frozen=True, kw_only=True)
class Ready(Event):
    """Everything that could be started is up."""

    kind = "ready"
    url: str
    seconds: float
    agents: int
    """Agents of which at least one replica is ready."""
    failed: int = 0
    """Agents without any replica that is ready, though some are wanted."""


@dataclass(frozen=True, kw_only=True)
class LogLine(Event):
    """One line that a process printed."""

    kind = "log"
    source: str
    """The process."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Elected(Event):
    """Which of the supervisors of a tenant does the chores, when that is news here."""

    kind = "elected"
    active: bool
    """It is this one."""
    supervisor: str = ""
    """Name, process and host of the active one, if it is another."""


@dataclass(frozen=True, kw_only=True)
class Restarted(Event):
    """A process ended and was started again."""

    kind = "restarted"
    process: str
    reason: str
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Reloaded(Event):
    """Nodes were replaced, or kept because the new code is broken."""

    kind = "reload"
    files: tuple[str, ...]
    """Those that changed; none if somebody asked for it."""
    nodes: tuple[str, ...]
    """Those that run the new code now."""
    agents: tuple[str, ...]
    """The agents in them."""
    seconds: float
    problem: str = ""
    """Why the old code runs on; empty: it was replaced."""


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something is wrong, and the rest runs on."""

    kind = "warning"
    source: str
    text: str
    """May have several lines, such as a traceback."""
    hint: str = ""
    """What to do."""


@dataclass(frozen=True, kw_only=True)
class Stopping(Event):
    """The orderly stop began."""

    kind = "stopping"
    reason: str
    grace: float


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """Nothing runs any more."""

    kind = "stopped"
    drained: int
    """Messages and tasks that were being handled when the stop began, and were finished."""
    given_back: int
    """Tasks that were given back to their queues."""
    seconds: float
    killed: bool = False
    """Somebody did not want to wait, or a process had to be killed."""


UpEvent = (
    BrokerReady
    | ServiceReady
    | AgentState
    | Ready
    | LogLine
    | Elected
    | Restarted
    | Reloaded
    | Warned
    | Stopping
    | Stopped
)
