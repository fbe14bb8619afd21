"""From settings to what `agentmesh up` is to run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from agentmesh.agent import Agent, default_name
from agentmesh.breaker import BreakerPolicy
from agentmesh.chat import RELAY
from agentmesh.config import AgentSettings, GroupSettings, HttpSettings, KeySettings, Settings
from agentmesh.errors import ConfigError, UsageError
from agentmesh.gateway.keys import stored
from agentmesh.gateway.options import ANONYMOUS, GatewayOptions, KeyOptions
from agentmesh.registry import near_misses
from agentmesh.supervisor import RestartPolicy
from agentmesh.tasks.layout import StreamBounds
from agentmesh.up.plan import (
    LLM_GATEWAY,
    AgentPlan,
    BrokerPlan,
    GroupPlan,
    MemoryPlan,
    SchedulePlan,
    ToolsPlan,
    UpPlan,
    default_nodes,
)


def make_plan(
    settings: Settings, targets: Sequence[str] = (), *, only: Iterable[str] = (), ready_made: bool = False
) -> UpPlan:
    """The plan that the settings describe.

    Args:
        settings: All of them, the command line's included.
        targets: Classes as `module:Class` to run instead of the agents of the settings; one that the settings have an
            agent for runs as it is described there.
        only: Names of agents; the others are left out.
        ready_made: With the agents that come with agentmesh, such as `llm`, as far as the settings want them.

    Raises:
        UsageError: `only` names an agent that is not there.
        ConfigError: The settings contradict each other.
    """
    agents = [_agent(name, agent, settings) for name, agent in settings.agents.items()]
    if targets:
        agents = [agent for target in targets for agent in _targeted(target, agents)]
    if ready_made:
        agents += [agent for agent in _ready_made(settings) if agent.name not in {one.name for one in agents}]
    wanted = list(only)
    for name in wanted:
        _known(f"--only {name}", name, agents)
    agents = [agent for agent in agents if not wanted or agent.name in wanted]
    groups = [_group(name, group, agents, settings) for name, group in settings.groups.items() if not targets]
    return UpPlan(
        name=settings.name,
        tenant=settings.tenant,
        root=settings.root,
        broker=_broker(settings),
        limits=tuple(limit.limit() for limit in settings.limits.tenant),
        queue_limit=settings.tasks.queue_limit,
        mailbox_limit=settings.events.mailbox_limit,
        streams=StreamBounds(**settings.streams.model_dump()),
        agents=tuple(agents),
        groups=tuple(group for group in groups if group.agents),
        nodes=settings.node.count or default_nodes(),
        tools=ToolsPlan(
            tuple(settings.tools.targets),
            settings.tools.executors,
            settings.tools.settings,
            {agent: tuple(tools) for agent, tools in settings.tools.allow.items()},
        ),
        memory=MemoryPlan(
            settings.memory.enabled, settings.path(settings.memory.path) if settings.memory.path else None
        ),
        http=_http(settings.http) if settings.http.enabled else None,
        schedules=None if settings.file is None else tuple(_schedules(settings)),
        policy=RestartPolicy(max_restarts=settings.defaults.restart.max, period=settings.defaults.restart.window),
        grace=settings.node.grace,
        ttl=settings.supervisor.ttl,
        tracing=settings.tracing.to,
        breaker=BreakerPolicy(**settings.breaker.model_dump(exclude={"enabled"})) if settings.breaker.enabled else None,
    )


def scaled(plan: UpPlan, counts: Iterable[str]) -> UpPlan:
    """The plan with other numbers of replicas, each typed as `AGENT=COUNT`.

    Raises:
        UsageError: Not of that form, or the plan has no such agent.
    """
    wanted = dict(map(count, counts))
    for name in wanted:
        _known(f"--replicas {name}={wanted[name]}", name, plan.agents)
    agents = (replace(agent, replicas=wanted.get(agent.name, agent.replicas)) for agent in plan.agents)
    return replace(plan, agents=tuple(agents))


def _known(typed: str, name: str, agents: Sequence[AgentPlan]) -> None:
    names = [agent.name for agent in agents]
    if name not in names:
        near = near_misses(name, names)
        hint = f"; did you mean {' or '.join(near)}?" if near else f" (there are: {', '.join(names) or 'none'})"
        raise UsageError(f"{typed}: no such agent{hint}")


def count(text: str) -> tuple[str, int]:
    """The two halves of `AGENT=COUNT`.

    Raises:
        UsageError: Not of that form.
    """
    name, equals, number = text.partition("=")
    if not equals or not name or not number.isdigit():
        raise UsageError(f"{text!r}: expected AGENT=COUNT, such as greeter=3")
    return name, int(number)


def _targeted(target: str, agents: list[AgentPlan]) -> list[AgentPlan]:
    described = [agent for agent in agents if agent.target == target]
    if described:
        return described
    module, colon, name = target.partition(":")
    if not (module and colon and name.isidentifier()):
        raise UsageError(f"{target!r}: expected module:Class, such as hello.agents:Greeter")
    # The class itself is imported only where it runs; its name says enough.
    return [AgentPlan(default_name(type(name, (Agent,), {})), target)]


def _agent(name: str, agent: AgentSettings, settings: Settings) -> AgentPlan:
    mailbox = agent.mailbox or settings.defaults.mailbox
    plan = AgentPlan(
        name,
        agent.target,
        replicas=agent.replicas,
        kwargs=agent.args,
        env=agent.env,
        isolation=agent.isolation,
        concurrency=agent.concurrency or settings.defaults.concurrency,
        limits=tuple(limit.limit() for limit in agent.limits),
        restart=agent.restart,
        significant=agent.significant,
    )
    return plan if mailbox is None else replace(plan, mailbox_size=mailbox.size, overflow=mailbox.overflow)


def _ready_made(settings: Settings) -> Iterator[AgentPlan]:
    """Agents that run unless the settings say otherwise, or have agents of these names."""
    if settings.llm.enabled and "llm" not in settings.agents:
        yield AgentPlan(
            "llm",
            LLM_GATEWAY,
            replicas=settings.llm.replicas,
            kwargs={
                "models": {name: model.model_dump(exclude_unset=True) for name, model in settings.models.items()},
                "llm": settings.llm.model_dump(exclude_unset=True),
            },
        )
    if settings.http.enabled and settings.http.conversations and RELAY not in settings.agents:
        yield AgentPlan(RELAY, "agentmesh.agents.chat:Conversations")


def _schedules(settings: Settings) -> Iterator[SchedulePlan]:
    for name, entry in settings.schedules.items():
        yield SchedulePlan(
            name,
            entry.task,
            data=entry.data,
            every=entry.every,
            cron=entry.cron,
            tz=entry.tz,
            to=entry.to,
            priority=entry.priority,
            deadline=entry.deadline,
        )


def _group(name: str, group: GroupSettings, agents: Sequence[AgentPlan], settings: Settings) -> GroupPlan:
    """With those of its agents that are to run."""
    for agent in group.agents:
        if agent not in settings.agents:
            raise ConfigError(f"groups.{name}.agents", f"there is no agent {agent!r}", settings.origin("groups"))
    there = [agent.name for agent in agents]
    return GroupPlan(
        name,
        tuple(agent for agent in group.agents if agent in there),
        strategy=group.strategy,
        auto_shutdown=group.auto_shutdown,
        policy=RestartPolicy(max_restarts=group.max, period=group.window),
    )


def _http(http: HttpSettings) -> GatewayOptions:
    def limits(entry: HttpSettings | KeySettings) -> dict[str, Any]:
        return {"rate": entry.rate, "concurrency": entry.concurrency, "streams": entry.streams}

    keys = [
        KeyOptions(name, stored(f"http.keys.{name}.token", key.token), key.tenant or "", **limits(key))
        for name, key in http.keys.items()
    ]
    if http.token is not None:
        keys.insert(0, KeyOptions("token", stored("http.token", http.token), **limits(http)))
    return GatewayOptions(
        host=http.host.strip("[]"),
        port=http.port,
        keys=tuple(keys),
        anonymous=KeyOptions(ANONYMOUS, **limits(http)),
        hosts=tuple(http.hosts),
        cors=tuple(http.cors),
        max_body=http.max_body,
        header_timeout=http.header_timeout,
        body_timeout=http.body_timeout,
        idle_timeout=http.idle_timeout,
        write_timeout=http.write_timeout,
        timeout=http.timeout,
        routes={route: entry.timeout for route, entry in http.routes.items()},
        chat_agent=http.chat_agent,
        access_log=http.access_log,
        debug=http.debug,
    )


def _broker(settings: Settings) -> BrokerPlan:
    broker = settings.broker

    def path(value: str | None) -> str | None:
        return str(settings.path(value)) if value else None

    return BrokerPlan(
        url="" if broker.embedded else broker.url,
        store=settings.store,
        host=broker.host,
        port=broker.port,
        sync_always=broker.sync_always,
        max_payload=str(broker.max_payload),
        user=broker.user,
        password=broker.password,
        token=broker.token,
        creds=path(broker.creds),
        tls_ca=path(broker.tls_ca),
        tls_cert=path(broker.tls_cert),
        tls_key=path(broker.tls_key),
        replicas=broker.replicas,
        monitor=broker.monitor,
    )
