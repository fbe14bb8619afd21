"""The settings themselves: one class for each table of the file. The defaults are the recommended values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

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


class Table(BaseModel):
    """One table of the file: immutable, and unknown keys are errors."""

    # No `use_attribute_docstrings`: reading the sources for them costs every command 25 ms; `cli/docs.py` does it.
    model_config = ConfigDict(frozen=True, extra="forbid")


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


class PriceSettings(Table):
    """US dollars per million tokens."""

    prompt: float = Field(default=0.0, ge=0)
    """Of what is sent to the model."""

    completion: float = Field(default=0.0, ge=0)
    """Of what it answers."""


class ModelBudgetSettings(Table):
    """What may be used, over all replicas of the gateway; unset: no bound."""

    usd_per_day: float | None = Field(default=None, gt=0)
    """US dollars from midnight to midnight UTC."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens of questions and answers within any minute."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Calls within any minute."""

    alerts: list[float] = [0.5, 0.8, 1.0]
    """Fractions of `usd_per_day` that are told once a day each when they are reached."""


class ModelSettings(Table):
    """A language model: `[models.NAME]`."""

    backend: str = "offline"
    """`offline` (rules, no network), `openai` (any compatible server), `litellm`, or a class as `module:Class`."""

    base_url: str | None = None
    """Of the server, such as `https://api.openai.com/v1`; unset: the backend's own."""

    model: str = ""
    """What the backend calls it; unset: NAME."""

    api_key: str | None = None
    """In a file only as `${NAME}`."""

    timeout: Duration | None = None
    """Seconds a whole answer may take; unset: as the route says."""

    price: PriceSettings = PriceSettings()
    """What a million tokens cost; unset: nothing, or what the backend knows."""

    budget: ModelBudgetSettings = ModelBudgetSettings()
    """What all callers together may use of it, for each tenant."""

    fallbacks: list[str] = []
    """Models that are asked, in this order, when it cannot answer."""

    concurrency: int | None = Field(default=None, ge=1)
    """Calls that one replica of the gateway has under way to it."""

    options: dict[str, Any] = {}
    """What else the backend takes."""


class RouteSettings(Table):
    """A name under which models are asked for: `[llm.routes.NAME]`."""

    models: list[str] = []
    """Tried in this order; unset: the model of that name with its fallbacks."""

    connect: Duration = 5.0
    """Seconds until a model's server is reached."""

    first_token: Duration = 30.0
    """Seconds until the answer begins."""

    idle: Duration = 30.0
    """Seconds between two pieces of it."""

    total: Duration = 60.0
    """Seconds for the whole answer, with all further tries."""

    retries: int = Field(default=2, ge=0)
    """Further tries of each model, when what went wrong may pass."""

    backoff: Duration = 0.5
    """Seconds before the second try; doubles with each further one. A server that says when counts instead."""

    cache: bool = False
    """Whether answers are stored and given again, also when the request does not ask for it."""


class CacheSettings(Table):
    """Answers that are given again: `[llm.cache]`."""

    ttl: Duration = 3600.0
    """Seconds an answer is kept, unless the request says otherwise."""

    max_size: Size = 64 * 1024 * 1024
    """Bytes that one replica keeps; the least used go first. 0: nothing is kept."""


class BreakerSettings(Table):
    """When a model that fails is left alone: `[llm.breaker]`."""

    failures: int = Field(default=5, ge=1)
    """Failures within `window` after which it is."""

    window: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds that failures count."""

    cooldown: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds until it is tried again."""


class DoorSettings(Table):
    """How clients that are no agents reach the gateway to language models: `[llm.doors]`."""

    enabled: bool = True
    """Whether there are doors; without them only agents, and what speaks for them, can ask."""

    shared: bool | None = None
    """Whether to serve the subject that names no tenant, `svc.ai.llm.v1.infer`; unset: only as tenant `default`."""

    capacity: int = Field(default=512, ge=1)
    """Requests under way at each door of a replica; more are passed on to other replicas, or refused."""

    timeout: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds an answer may take, if the client does not say."""

    idle_timeout: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds until the next piece of a streamed answer, if the client does not say."""

    responses: bool = False
    """Whether answers to `ai.gateway.requests.T` are copied to `ai.gateway.responses.T`, where all who listen read
    them."""


class LLMSettings(Table):
    """The gateway to language models, the agent `llm`: `[llm]`."""

    enabled: bool = True
    """Whether `agentmesh up` starts it."""

    replicas: int = Field(default=1, ge=0, le=1024)
    """How many run."""

    routes: dict[str, RouteSettings] = {}
    """Names for requests; `default` is for those that name none."""

    cache: CacheSettings = CacheSettings()

    coalesce: bool = True
    """Whether equal requests at the same time are one call, unless they want a temperature above 0."""

    breaker: BreakerSettings = BreakerSettings()

    doors: DoorSettings = DoorSettings()

    budget: ModelBudgetSettings = ModelBudgetSettings()
    """What each tenant may use."""

    tenants: dict[str, ModelBudgetSettings] = {}
    """Instead of `budget`, for single tenants."""

    user_budget: ModelBudgetSettings = ModelBudgetSettings()
    """What each user of a tenant may use."""

    queue: int = Field(default=1000, ge=0)
    """Requests of one replica that may wait for their turn at a limit."""

    user_queue: int = Field(default=100, ge=1)
    """Those of one user."""

    wait: Duration = 30.0
    """Seconds a request waits for its turn, if it wants to wait."""


class KeySettings(Table):
    """A key of the HTTP gateway: `[http.keys.NAME]`."""

    token: str = Field(min_length=1)
    """Its token, as `${NAME}`, or `sha256:…` as `agentmesh keys new` prints it."""

    tenant: Tenant | None = None
    """Whose agents it reaches; unset: those of this mesh."""

    rate: float = Field(default=1000.0, ge=0)
    """Requests per second; 0: no limit."""

    concurrency: int = Field(default=256, ge=0)
    """Requests under way at the same time, open streams not counted; 0: no limit."""

    streams: int = Field(default=100, ge=0)
    """Streams open at the same time; 0: no limit."""


class HttpRouteSettings(Table):
    """One route of the HTTP gateway, such as `[http.routes."POST /ai/llm/infer"]`."""

    timeout: Annotated[Duration, Field(gt=0)]
    """Seconds a request may take."""


class HttpSettings(Table):
    """The HTTP gateway: `[http]`."""

    enabled: bool = True
    """Whether `agentmesh up` starts it."""

    host: str = "127.0.0.1"
    """Address it listens on; any but loopback needs a token or keys. Also `$HOST`, if that is an address."""

    port: int | None = Field(default=None, ge=0, le=65535)
    """Its port; 0 takes any free one. Unset: 8000, or a free one when that is taken. Also `$PORT`."""

    token: str | None = None
    """Token that every caller needs, for this mesh's tenant; in a file only as `${NAME}` or `sha256:…`."""

    keys: dict[str, KeySettings] = {}
    """Further keys, each with a token, a tenant and limits of its own."""

    rate: float = Field(default=1000.0, ge=0)
    """Requests per second with `token`, or without any on loopback; 0: no limit."""

    concurrency: int = Field(default=256, ge=0)
    """Requests under way at the same time, likewise."""

    streams: int = Field(default=100, ge=0)
    """Streams open at the same time, likewise."""

    hosts: list[str] = []
    """Names under which it is reached, such as that of a proxy in front of it; with any, all others are refused."""

    cors: list[str] = []
    """Origins whose pages may call it, such as `["https://app.example"]`; never `*`."""

    max_body: Size = 512 * 1024
    """Largest body of a request, in bytes."""

    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds a request may take, unless its route says otherwise."""

    header_timeout: Annotated[Duration, Field(gt=0)] = 10.0
    """Seconds for the headers of a request."""

    body_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds for the body of a request."""

    idle_timeout: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds a connection may lie idle."""

    write_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds a client may take nothing of its answer."""

    conversations: bool = True
    """Whether `agentmesh up` runs the agent `conversations`, which answers stored conversations, too."""

    chat_agent: str = ""
    """The agent that answers `POST /chat` when the request names none; unset: the only one that can, or `llm`."""

    access_log: bool = True
    """A line for each request, without what is in it."""

    debug: bool = False
    """Tell callers what a failing handler said; by default only its kind, since it may hold secrets."""

    routes: dict[str, HttpRouteSettings] = {}
    """Single routes."""


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
