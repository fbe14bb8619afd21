"""What `agentmesh up` is to run: plain data, so that it can be made from settings, by a test, or sent to a process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from agentmesh.breaker import BreakerPolicy
from agentmesh.errors import ConfigError, DefinitionError
from agentmesh.gateway.options import GatewayOptions
from agentmesh.limits import Limit, rules
from agentmesh.subjects import token
from agentmesh.supervisor import AutoShutdown, RestartPolicy, Strategy
from agentmesh.tasks.layout import StreamBounds
from agentmesh.transport import TransportOptions

DEFAULT_PORT = 4222

LLM_GATEWAY = "agentmesh.agents.llm:LLMGateway"
"""The agent that language models are reached through; its `models` say which."""

PROCESS_POLICY = RestartPolicy(max_restarts=5, period=60.0)
"""For processes: they take about half a second to start, so the count looks back longer than for agents."""


def default_nodes() -> int:
    """Node processes for agents that share: two, or one on a single core."""
    return min(2, os.cpu_count() or 1)


@dataclass(frozen=True)
class BrokerPlan:
    """A broker to connect to, or the embedded one to start."""

    url: str = ""
    """Of a running broker (several: separated by commas); empty starts the embedded one with the fields below."""
    store: Path | None = None
    """Folder for the embedded broker's data; None: a temporary one, gone at the end."""
    host: str = "127.0.0.1"
    port: int | None = None
    """None: 4222, or any free port when that is taken. 0: any free port."""
    sync_always: bool = True
    max_payload: str = "1MB"
    user: str | None = None
    password: str | None = None
    token: str | None = None
    creds: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    replicas: int | None = None
    monitor: str | None = None
    """Address of the monitoring pages of a broker that is not ours."""

    @property
    def embedded(self) -> bool:
        return not self.url

    def with_credentials(self, url: str) -> str:
        """`url` with the user or the token in it, for programs that take nothing else. Never to be shown."""
        login = quote(self.token or self.user or "", safe="")
        if self.user and not self.token:
            login += f":{quote(self.password or '', safe='')}"
        if not login:
            return url
        scheme, _, host = (url if "://" in url else f"nats://{url}").partition("://")
        return f"{scheme}://{login}@{host.rpartition('@')[2]}"


@dataclass(frozen=True)
class AgentPlan:
    """One agent."""

    name: str
    target: str
    """`module:Class`."""
    replicas: int = 1
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the constructor; plain data."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables of its process; needs `isolation="process"`."""
    isolation: Literal["shared", "process"] = "shared"
    """`shared`: in the node processes, beside others; `process`: each replica in a process of its own."""
    concurrency: int | None = None
    prefetch: int | None = None
    mailbox_size: int | None = None
    overflow: Literal["reject", "drop_oldest", "block"] | None = None
    restart: Literal["permanent", "transient", "temporary"] | None = None
    """None, here and above: what the class says."""
    limits: tuple[Limit, ...] = ()
    """Bounds on the tasks in its queue."""
    grouped: bool = False
    """A group starts and restarts it, see `UpPlan.groups`; set by whoever carries out the plan."""
    significant: bool = False
    """Its end may end its group; needs `restart` to be `transient` or `temporary`."""


@dataclass(frozen=True)
class GroupPlan:
    """Agents that are supervised together, wherever their processes are."""

    name: str
    agents: tuple[str, ...]
    """In the order in which they are started; they are stopped in reverse."""
    strategy: Strategy = "one_for_one"
    auto_shutdown: AutoShutdown = "never"
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    """How often its agents, taken together, may be restarted until the group goes down."""


@dataclass(frozen=True)
class ToolsPlan:
    """Tool executors."""

    targets: tuple[str, ...] = ()
    """Modules with `@tool` functions, or `module:function`."""
    executors: int = 1
    """Processes; none are started without targets."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Values for the settings of the tools, by name; plain data."""
    allow: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The tools that an agent may call, by its name; `*`: everybody else. Empty: no rules."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory service."""

    enabled: bool = True
    path: Path | None = None
    """The SQLite file; None: `memory.db` in the broker's store, or gone at the end with a temporary one."""


@dataclass(frozen=True)
class SchedulePlan:
    """A repeating task."""

    id: str
    task_type: str
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the task; plain data."""
    every: float | None = None
    cron: str | None = None
    tz: str | None = None
    to: str | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    deadline: float | None = None
    """Seconds after each firing."""


@dataclass(frozen=True)
class UpPlan:
    """Everything `agentmesh up` needs to know."""

    name: str = "mesh"
    tenant: str = "default"
    root: Path = field(default_factory=Path.cwd)
    """The project: modules are imported from here, and processes run here."""
    broker: BrokerPlan = BrokerPlan()
    agents: tuple[AgentPlan, ...] = ()
    limits: tuple[Limit, ...] = ()
    """Bounds on all tasks of the tenant."""
    queue_limit: int | None = None
    """Tasks that may wait per agent and priority; None: as the broker has it."""
    mailbox_limit: int | None = None
    """Durable events that may wait per agent; None: as the broker has it."""
    streams: StreamBounds = field(default_factory=StreamBounds)
    """How long replayable streams are kept."""
    groups: tuple[GroupPlan, ...] = ()
    nodes: int = field(default_factory=default_nodes)
    """Processes that agents share."""
    tools: ToolsPlan = ToolsPlan()
    memory: MemoryPlan = MemoryPlan()
    http: GatewayOptions | None = None
    """The HTTP gateway; None: there is none."""
    schedules: tuple[SchedulePlan, ...] | None = None
    """Those that came from here before and are not among them are removed; None: there are no settings to follow."""
    run_dir: Path = Path(".agentmesh")
    """For `up.json`, logs and the like; taken from `root`."""
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    """How often a failing agent is restarted."""
    process_policy: RestartPolicy = PROCESS_POLICY
    """How often a failing process is restarted."""
    grace: float = 10.0
    """Seconds that agents get to finish when they are stopped."""
    ttl: float = 5.0
    """Whole seconds until another supervisor takes over from one that was killed."""
    joined: bool = False
    """Only host agents for a mesh that runs elsewhere: no doors, no chores, no control of the mesh."""
    reload: bool = False
    """Watch the sources and replace nodes whose code changed."""
    watch: tuple[Path, ...] = ()
    """Folders to watch, besides `root`."""
    breaker: BreakerPolicy | None = None
    """When agents that do not answer are not asked for a while; None: they always are."""
    tracing: Literal["off", "log", "otel"] = "off"
    """Where the spans of all its processes go."""
    log_format: Literal["text", "json"] = "text"
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        token("tenant", self.tenant)
        names = [token("agent", agent.name) for agent in self.agents]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"agents.{name}", "is there twice")
        for agent in self.agents:
            if agent.env and agent.isolation != "process":
                raise ConfigError(f"agents.{agent.name}.env", 'needs isolation = "process"')
            if agent.replicas < 0:
                raise ConfigError(f"agents.{agent.name}.replicas", f"{agent.replicas}: expected 0 or more")
            _check_limits(f"agents.{agent.name}.limits", agent.limits)
        _check_limits("limits.tenant", self.limits)
        self._check_groups()
        if self.ttl < 1 or self.ttl != int(self.ttl):
            raise ConfigError("supervisor.ttl", f"{self.ttl:g}: expected whole seconds, 1 or more")
        if self.joined and self.broker.embedded:
            raise ConfigError("broker.url", "a node joins a mesh that runs; say where its broker is")
        if self.nodes < 1:
            raise ConfigError("nodes", f"{self.nodes}: expected 1 or more")

    def _check_groups(self) -> None:
        agents = {agent.name: agent for agent in self.agents}
        taken: dict[str, str] = {}
        for group in self.groups:
            key = f"groups.{token('group', group.name)}"
            if group.name in agents:
                raise ConfigError(key, "there is an agent of that name")
            for name in group.agents:
                if name not in agents:
                    raise ConfigError(f"{key}.agents", f"there is no agent {name!r}")
                if name in taken:
                    raise ConfigError(f"{key}.agents", f"{name} is in group {taken[name]} already")
                taken[name] = group.name
                if agents[name].significant and group.auto_shutdown == "never":
                    raise ConfigError(
                        f"agents.{name}.significant", f'needs {key}.auto_shutdown to be other than "never"'
                    )
        for agent in self.agents:
            if agent.name in taken and agent.significant and agent.restart not in ("transient", "temporary"):
                raise ConfigError(f"agents.{agent.name}.significant", 'needs restart = "transient" or "temporary"')

    def group_of(self, agent: str) -> str:
        """The group an agent is in; empty for none."""
        return next((group.name for group in self.groups if agent in group.agents), "")

    @property
    def folder(self) -> Path:
        """`run_dir` as an absolute path."""
        return (self.root / self.run_dir).absolute()

    def transport(self, url: str, name: str) -> TransportOptions:
        """How a process of this plan connects."""
        broker = self.broker
        servers: str | Sequence[str] = [part.strip() for part in url.split(",") if part.strip()]
        return TransportOptions(
            url=servers,
            name=name,
            user=broker.user,
            password=broker.password,
            token=broker.token,
            creds=broker.creds,
            tls_ca=broker.tls_ca,
            tls_cert=broker.tls_cert,
            tls_key=broker.tls_key,
            replicas=broker.replicas,
            tracing=self.tracing,
            breaker=self.breaker,
        )


def _check_limits(key: str, limits: Sequence[Limit]) -> None:
    try:
        rules("limits", "all", limits)
    except DefinitionError as error:
        raise ConfigError(key, error.problem) from None


_adapter = TypeAdapter(UpPlan)


def dump(plan: UpPlan) -> bytes:
    """The plan as JSON. It may hold credentials."""
    return _adapter.dump_json(plan)


def load(data: bytes) -> UpPlan:
    """The plan in `data`.

    Raises:
        ConfigError: It is none.
    """
    try:
        return _adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(".".join(map(str, first["loc"])) or "plan", first["msg"]) from error
