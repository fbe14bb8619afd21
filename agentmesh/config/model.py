"""The settings themselves: one class for each table of the file. The defaults are the recommended values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from agentmesh.config.http import HttpSettings
from agentmesh.config.llm import LLMSettings, ModelSettings
from agentmesh.config.table import Table
from agentmesh.config.values import (
    AgentName,
    Caller,
    Duration,
    ModuleTarget,
    Overflow,
    Size,
    Target,
    Tenant,
    ToolPattern,
)
from agentmesh.errors import DefinitionError, InvalidNameError, InvalidScheduleError
from agentmesh.limits import Limit
from agentmesh.when import repeating

EMBEDDED = "embedded"
_MODEL_SECRET = re.compile(r"models\.[^.]+\.(api_key|options\..*)")
MEMORY = "memory"


class BrokerSettings(Table):
    """Where messages go."""

    url: str = EMBEDDED
    """`embedded` starts a broker and stops it again; else the URL of a running one (several: separated by commas)."""

    store: str = ".agentmesh"
    """Directory of the embedded broker's data; `memory`: gone on exit."""

    host: str = "127.0.0.1"
    """Address the embedded broker listens on."""

    port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the embedded broker; 0 takes any free one. Unset: 4222, or a free one when that is taken."""

    max_payload: Size = 1024 * 1024
    """Largest message the embedded broker takes, in bytes."""

    sync_always: bool = True
    """Every accepted message is on disk before it is confirmed; without it a power failure loses up to two minutes."""

    user: str | None = None
    """User name."""

    password: str | None = None
    """Password; in a file only as `${NAME}`."""

    token: str | None = None
    """Token; in a file only as `${NAME}`."""

    creds: str | None = None
    """Path of a NATS credentials file."""

    tls_ca: str | None = None
    """Path of the certificate authority's certificate. TLS is spoken first (`handshake_first`)."""

    tls_cert: str | None = None
    """Path of our certificate."""

    tls_key: str | None = None
    """Path of our certificate's key."""

    replicas: int | None = Field(default=None, ge=1, le=5)
    """Copies of each stream; unset: 3 when the cluster has three or more nodes, else 1."""

    monitor: str | None = None
    """Address of the broker's monitoring pages, such as `http://127.0.0.1:8222`: only they tell whether it syncs."""

    @property
    def embedded(self) -> bool:
        return self.url == EMBEDDED


class NodeSettings(Table):
    """Processes that host agents."""

    count: int | None = Field(default=None, ge=1, le=256)
    """Node processes that share the agents without a process of their own; unset: 2, or 1 on a single core."""

    grace: Duration = 10.0
    """Seconds agents get to finish when they are stopped; then they are killed."""


class SupervisorSettings(Table):
    """Several `agentmesh up` at one broker: one is active, the others stand by."""

    ttl: Duration = 5.0
    """Seconds until another one takes over from one that was killed: whole seconds, 1 or more."""


class MailboxSettings(Table):
    """The queue in front of an agent."""

    size: int = Field(default=1024, ge=1)
    """Messages that may wait."""

    overflow: Overflow = "reject"
    """What happens to a message that finds it full: `reject` tells the sender, `drop_oldest`, or `block`."""


class RestartSettings(Table):
    """How often a failing child is started again before its supervisor gives up."""

    max: int = Field(default=3, ge=0)
    """Restarts within `window`; 0 never restarts."""

    window: Annotated[Duration, Field(gt=0)] = 5.0
    """Seconds the count looks back."""


class DefaultSettings(Table):
    """What holds for every agent that does not say otherwise."""

    deadline: Duration = 30.0
    """Seconds the command line waits for an answer."""

    concurrency: int | None = Field(default=None, ge=1)
    """Messages an agent handles at the same time; unset: what its class says (1)."""

    mailbox: MailboxSettings | None = None
    """Unset: what the agent's class says."""

    restart: RestartSettings = RestartSettings()


class LimitSettings(Table):
    """A limit: `{concurrency = 4}` or `{rate = 10, period = 60}`, and what is counted for itself."""

    concurrency: int = 0
    """Tasks that may run at the same time, over all workers on all hosts."""

    rate: int = 0
    """Instead: tasks that may start within `period`."""

    period: Duration = 1.0
    """Seconds."""

    key: str = ""
    """A field of the task: each of its values is counted for itself."""

    name: str = ""
    """Limits of the same name, kind and key are counted together."""

    @model_validator(mode="after")
    def _makes_a_limit(self) -> Self:
        self.limit()
        return self

    def limit(self) -> Limit:
        """The limit it describes."""
        try:
            return Limit(**self.model_dump())
        except (DefinitionError, InvalidNameError) as error:
            raise ValueError(str(error).removeprefix("Limit: ")) from None


class AgentSettings(Table):
    """One agent: `[agents.NAME]`."""

    target: Target = Field(alias="class")
    """The class, as `module:Class`."""

    replicas: int = Field(default=1, ge=0, le=1024)
    """How many run."""

    isolation: Literal["shared", "process"] = "shared"
    """`shared`: in the node processes, beside other agents; `process`: each replica in a process of its own."""

    args: dict[str, Any] = {}
    """Arguments of the constructor."""

    env: dict[str, str] = {}
    """Variables for its process; needs `isolation = "process"`."""

    concurrency: int | None = Field(default=None, ge=1)
    """Messages it handles at the same time; unset: the default, or what its class says."""

    mailbox: MailboxSettings | None = None
    """Unset: the default, or what its class says."""

    limits: list[LimitSettings] = []
    """Bounds on the tasks in its queue, such as `[{concurrency = 4}, {rate = 10, period = 60, key = "host"}]`."""
    restart: Literal["permanent", "transient", "temporary"] | None = None
    """Started again always, after a failure, or never; unset: what its class says, in a group `permanent`."""

    significant: bool = False
    """Its end may end its group, see `auto_shutdown`; needs `restart` to be `transient` or `temporary`."""

    @model_validator(mode="after")
    def _env_needs_a_process(self) -> Self:
        if self.env and self.isolation != "process":
            raise ValueError("env needs isolation = 'process': agents in a shared process share its environment")
        return self


class LimitsSettings(Table):
    """Limits for all tasks of the tenant, beside those of agents and of task types: `[limits]`."""

    tenant: list[LimitSettings] = []
    """Bounds on all of them together, such as `[{concurrency = 50}]`."""


class TaskSettings(Table):
    """Queues of tasks: `[tasks]`."""

    queue_limit: int | None = Field(default=None, ge=1)
    """Tasks that may wait per agent and priority, for every tenant of this broker account: `agentmesh up` sets it when
    it starts. Unset: as it is, 10000 at first."""


class EventSettings(Table):
    """Durable events: `[events]`."""

    mailbox_limit: int | None = Field(default=None, ge=1)
    """Durable events that may wait per agent, for every tenant of this broker account: `agentmesh up` sets it when it
    starts. Unset: as it is, 1000 at first."""


class StreamsSettings(Table):
    """How long replayable streams are kept, for every tenant of this broker account: `[streams]`. `agentmesh up` sets
    it when it starts; what is unset stays as it is."""

    max_age: Duration | None = Field(default=None, gt=0)
    """Time after which chunks go; 7 days at first."""

    max_bytes: Size | None = Field(default=None, gt=0)
    """Bytes of all streams together; the oldest chunks go first. 1 GB at first."""

    max_chunks: int | None = Field(default=None, ge=1)
    """Messages of one stream, which have one chunk or several; the oldest go first. 1000000 at first."""

    compression: bool | None = None
    """Whether what is on disk is compressed; it is at first."""


class GroupSettings(Table):
    """Agents that are supervised together, in whatever processes they run: `[groups.NAME]`."""

    agents: list[str] = []
    """Their names, in the order in which they start; they stop in reverse."""

    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] = "one_for_one"
    """Who is restarted with one that failed: nobody else, all, or those started after it."""

    max: int = Field(default=3, ge=0)
    """Restarts within `window` for all of them together; one more and the group goes down."""

    window: Annotated[Duration, Field(gt=0)] = 5.0
    """Seconds the count looks back."""

    auto_shutdown: Literal["never", "any_significant", "all_significant"] = "never"
    """Whether the group ends when one, or the last, of its significant agents has ended by itself."""


class ToolSettings(Table):
    """Tools served to agents: `[tools]`."""

    targets: list[ModuleTarget] = []
    """Modules with `@tool` functions, or single functions as `module:function`."""

    executors: int = Field(default=1, ge=0, le=64)
    """Processes that run tools."""

    settings: dict[str, Any] = {}
    """What the tools leave to whoever serves them, such as the built-in ones' `root` and `commands`."""

    allow: dict[Caller, list[ToolPattern]] = {}
    """The tools an agent may call, such as `{helper = ["search", "read_*"]}`; `"*"` is everybody else. Once one agent
    is named, who is not may call nothing. Empty: everybody may call everything."""


class AgentBreakerSettings(Table):
    """Agents that do not answer are not asked for a while: `[breaker]`."""

    enabled: bool = False
    """Whether agents, and the HTTP gateway, have a circuit breaker for each agent they ask."""

    failures: int = Field(default=5, ge=1)
    """Failures within `window` that open it: nobody listens, no reply by the deadline, the agent stopped first."""

    window: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds that failures count."""

    cooldown: Annotated[Duration, Field(gt=0)] = 5.0
    """Seconds until a first ask is let through again, to see."""

    probes: int = Field(default=1, ge=1)
    """Asks that may be under way then."""

    successes: int = Field(default=2, ge=1)
    """Answers that close it."""


class TracingSettings(Table):
    """Spans of what is sent and handled: `[tracing]`."""

    to: Literal["off", "log", "otel"] = "off"
    """`log`: lines of the logger `agentmesh.trace`; `otel`: OpenTelemetry, as `$OTEL_EXPORTER_OTLP_ENDPOINT` and the
    like say. `off` costs nothing; traces of others are continued all the same."""


class LedgerSettings(Table):
    """What this project submits is written down until it is decided: `[ledger]`."""

    path: str | None = None
    """The file, which several processes may share; unset: there is none. Also `$AGENTMESH_LEDGER`."""


class ScheduleSettings(Table):
    """A task that is submitted again and again: `[schedules.NAME]`. `agentmesh up` sees to it."""

    task: str = Field(min_length=1)
    """Its type."""

    data: dict[str, Any] = {}
    """Its fields."""

    every: Duration | None = None
    """Time between firings, whole seconds; this or `cron`."""

    cron: str | None = None
    """Six fields, seconds first, such as `0 30 9 * * MON-FRI`; or `@hourly`, `@daily` and the like."""

    tz: str | None = None
    """Time zone of `cron`, such as `Europe/Berlin`; unset: UTC."""

    to: AgentName | None = None
    """The agent; unset: one that takes the type."""

    priority: Literal["high", "normal", "low"] = "normal"
    """Before or behind other tasks."""

    deadline: Duration | None = None
    """After each firing; a task that is not done by then is decided `expired`."""

    @model_validator(mode="after")
    def _must_be_possible(self) -> Self:
        try:
            repeating(self.every, self.cron, self.tz)
        except InvalidScheduleError as error:
            raise ValueError(str(error)) from None
        return self


class MemorySettings(Table):
    """The memory service: `[memory]`."""

    enabled: bool = True
    """Whether `agentmesh up` starts it."""

    path: str | None = None
    """The SQLite file; unset: `memory.db` in the broker's store."""


class Settings(Table):
    """Everything agentmesh can be told."""

    name: str = "mesh"
    """What is shown on screen; unset: the directory's name."""

    tenant: Tenant = "default"
    """Whose agents these are; tenants never see each other."""

    broker: BrokerSettings = BrokerSettings()
    node: NodeSettings = NodeSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    defaults: DefaultSettings = DefaultSettings()
    agents: dict[str, AgentSettings] = {}
    tasks: TaskSettings = TaskSettings()
    events: EventSettings = EventSettings()
    streams: StreamsSettings = StreamsSettings()
    limits: LimitsSettings = LimitsSettings()
    groups: dict[str, GroupSettings] = {}
    tools: ToolSettings = ToolSettings()
    memory: MemorySettings = MemorySettings()
    schedules: dict[str, ScheduleSettings] = {}
    ledger: LedgerSettings = LedgerSettings()
    tracing: TracingSettings = TracingSettings()
    breaker: AgentBreakerSettings = AgentBreakerSettings()
    models: dict[str, ModelSettings] = {}
    llm: LLMSettings = LLMSettings()
    http: HttpSettings = HttpSettings()

    _file: Path | None = PrivateAttr(default=None)
    _root: Path = PrivateAttr(default_factory=Path.cwd)
    _profile: str = PrivateAttr(default="")
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _written: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def file(self) -> Path | None:
        """The file that was read; None if there is none."""
        return self._file

    @property
    def root(self) -> Path:
        """The project: the directory of the file, else the current one. Relative paths and modules start here."""
        return self._root

    @property
    def profile(self) -> str:
        """The profile that was chosen; empty for none."""
        return self._profile

    def origin(self, key: str) -> str:
        """Where the value of a dotted key came from, such as `mesh.toml` or `$NATS_URL`."""
        return self._origins.get(key, "default")

    def entries(self) -> Iterator[Entry]:
        """Every setting with its value and origin; secrets are not shown."""
        for key, value in _leaves(self.model_dump(by_alias=True)):
            yield Entry(key, _shown(key, value, self._written), self.origin(key))

    def path(self, value: str) -> Path:
        """A path from the settings, taken from the project's directory."""
        return self._root / Path(value).expanduser()

    @property
    def store(self) -> Path | None:
        """Directory of the embedded broker's data; None: nothing is kept."""
        return None if self.broker.store == MEMORY else self.path(self.broker.store)


@dataclass(frozen=True)
class Entry:
    """One setting, for people."""

    key: str
    value: str
    origin: str


def _leaves(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _shown(key: str, value: Any, written: Mapping[str, str]) -> str:
    """The value for people: what came from a `${…}` as it was written, and never a secret."""
    if key in written:
        return written[key]
    if value and (key in ("broker.password", "broker.token") or _MODEL_SECRET.fullmatch(key)):
        return "***"
    if value and (key == "http.token" or (key.startswith("http.keys.") and key.endswith(".token"))):
        return "***"
    if key == "broker.url":
        return re.sub(r"://[^@/,]*@", "://***@", str(value))
    if value is None:
        return "(unset)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
