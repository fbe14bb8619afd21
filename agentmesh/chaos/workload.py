"""The processes of a run: workers are ordinary nodes, supervisors are ordinary `agentmesh up`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentmesh.chaos import agents, submitter
from agentmesh.chaos.history import Recorder
from agentmesh.chaos.members import Member
from agentmesh.node import NodeAgent, NodeSpec
from agentmesh.subjects import PRIORITIES, Subjects
from agentmesh.supervisor import RestartPolicy
from agentmesh.tasks.layout import (
    SCHEDULES,
    dispatch_consumer,
    due_consumer,
    ensure,
    ensure_streams,
    mailbox_consumer,
    task_consumer,
)
from agentmesh.transport import Transport, TransportOptions
from agentmesh.up.plan import AgentPlan, BrokerPlan, MemoryPlan, UpPlan, dump

GRACE = 2.0
"""Seconds in which a worker that was told to stop finishes what it is at."""

JUMP = 3600.0
"""Seconds by which a worker's time of day jumps."""


@dataclass(frozen=True)
class Shape:
    """How large the workload is."""

    workers: int = 3
    supervisors: int = 1
    """Each has a worker of its own, and a dispatcher."""
    submitters: int = 2
    rate: float = 10.0
    """Things each submitter does in a second."""


@dataclass(frozen=True)
class Setting:
    """Where the workload runs."""

    folder: Path
    urls: list[str]
    tenant: str
    replicas: int
    seed: int
    ack_wait: float
    without: tuple[str, ...] = ()

    @property
    def history(self) -> Path:
        return self.folder / "history"

    def transport(self, name: str, urls: list[str] | None = None) -> TransportOptions:
        return TransportOptions(url=urls or self.urls, name=name, replicas=self.replicas, connect_timeout=30.0)


async def prepare(setting: Setting, urls: list[str]) -> None:
    """Make streams and consumers, with the `ack_wait` of the run: those who come later use them as they are."""
    subjects = Subjects(setting.tenant)
    async with await Transport.connect(setting.transport("chaos", urls)) as transport:
        await ensure_streams(transport)
        for priority in PRIORITIES:
            await transport.ensure_consumer(task_consumer(subjects, agents.NAME, priority, setting.ack_wait))
        await ensure(transport, SCHEDULES)
        await transport.ensure_consumer(dispatch_consumer(subjects, setting.ack_wait))
        await transport.ensure_consumer(due_consumer(subjects, setting.ack_wait))
        await transport.ensure_consumer(mailbox_consumer(subjects, agents.NAME, setting.ack_wait))


def members(setting: Setting, shape: Shape, record: Recorder) -> dict[str, list[Member]]:
    """The processes, by group; none is started."""
    logs = setting.folder / "logs"
    logs.mkdir(exist_ok=True)

    def group(name: str, count: int, module: str, told: Callable[[int, int], bytes]) -> list[Member]:
        def teller(number: int) -> Callable[[int], bytes]:
            return lambda life: told(number, life)

        return [Member(f"{name}-{number}", module, teller(number), logs, record) for number in range(1, count + 1)]

    return {
        "worker": group("worker", shape.workers, "agentmesh.node", lambda number, life: _node(setting, number)),
        "supervisor": group("supervisor", shape.supervisors, "agentmesh.up", lambda number, life: _up(setting, number)),
        "submitter": group(
            "submitter",
            shape.submitters,
            "agentmesh.chaos.submitter",
            lambda number, life: _submitter(setting, shape, number, life),
        ),
    }


def reader(setting: Setting, task_ids: list[str], record: Recorder) -> Member:
    """A process that had no part in anything, and reads what was decided."""
    options = _submitter_options(setting, "reader", read=task_ids)
    told = msgspec.json.encode(options)
    return Member("reader", "agentmesh.chaos.submitter", lambda life: told, setting.folder / "logs", record, once=True)


def _arguments(setting: Setting) -> dict[str, Any]:
    """Of the agent's constructor."""
    return {
        "history": str(setting.history),
        "without": list(setting.without),
        "block": 3 * setting.ack_wait,
        "jump": JUMP,
    }


def _node(setting: Setting, number: int) -> bytes:
    name = f"worker-{number}"
    target = f"{agents.__name__}:{agents.Worker.__name__}"
    spec = NodeSpec(
        name=name,
        transport={"url": setting.urls, "name": name, "replicas": setting.replicas},
        tenant=setting.tenant,
        agents=[NodeAgent(name=agents.NAME, target=target, replicas=[number], kwargs=_arguments(setting))],
        grace=GRACE,
    )
    return msgspec.json.encode(spec)


def _up(setting: Setting, number: int) -> bytes:
    root = setting.folder / f"up-{number}"
    root.mkdir(exist_ok=True)
    target = f"{agents.__name__}:{agents.Worker.__name__}"
    return dump(
        UpPlan(
            name=f"up-{number}",
            tenant=setting.tenant,
            root=root,
            broker=BrokerPlan(url=",".join(setting.urls), replicas=setting.replicas),
            agents=(AgentPlan(name=agents.NAME, target=target, kwargs=_arguments(setting)),),
            nodes=1,
            memory=MemoryPlan(enabled=False),
            process_policy=RestartPolicy(max_restarts=1000, period=60.0, max_backoff=1.0),
            grace=GRACE,
        )
    )


def _submitter(setting: Setting, shape: Shape, number: int, life: int) -> bytes:
    options = _submitter_options(setting, f"submitter-{number}", number=number, life=life, rate=shape.rate)
    return msgspec.json.encode(options)


def _submitter_options(setting: Setting, role: str, **more: Any) -> submitter.Options:
    return submitter.Options(
        role=role,
        history=str(setting.history),
        urls=setting.urls,
        tenant=setting.tenant,
        seed=setting.seed,
        replicas=setting.replicas,
        without=list(setting.without),
        **more,
    )
