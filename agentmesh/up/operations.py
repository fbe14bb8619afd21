"""What other processes may ask of a running mesh: `ai.agent.control.T.supervisor`, JSON requests and answers.

| op        | arguments                | answer                                                        |
| --------- | ------------------------ | ------------------------------------------------------------- |
| `ping`    |                          | `up`: name, id, active, knows, groups, tenant, url, host, pid … |
| `ps`      |                          | `up`, `processes`, `wanted` (replicas per agent), `agents`, `nodes`, `groups` |
| `nodes`   |                          | `nodes`: state, host, pid, seen_at, names of agents …          |
| `scale`   | `agent`, `replicas`      | `problem`; `elsewhere` (replicas on nodes of others), if any   |
| `restart` | `name` (agent, group, process) | `problem`                                                      |
| `reload`  |                          | `nodes`, `problem`, `seconds`                                  |
| `rolling` | `name` (agent; empty: all) | `nodes`, `problem`, `seconds`                                |
| `drain`   | `node`                   | `problem`, `moved` (replicas and their nodes)                   |
| `logs`    | `source, after, limit`   | `lines`: number, at, source, text                              |
| `down`    | `force`                  | at once; the stop follows                                      |

Several supervisors may share a tenant. With `up` a request is only for the one of that name or id. Without, all of
them answer what only reads; what changes something is for the active one alone. `ask_supervisor` looks who is there,
and asks the one that has the agent. Errors are typed.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh import registry
from agentmesh.presence import NodeInfo
from agentmesh.subjects import Subjects
from agentmesh.supervisor.control import Arguments, ControlService, argument, call
from agentmesh.transport import Transport
from agentmesh.up.fleet import Fleet
from agentmesh.up.moving import drain_node, reload, rolling_restart
from agentmesh.up.restarting import restart
from agentmesh.up.scaling import scale

if TYPE_CHECKING:
    from agentmesh.up.root import Up

SUPERVISOR = "supervisor"
"""Control subject of the mesh."""

READING = ("ping", "ps", "nodes", "logs")
"""Operations that change nothing."""


class Operations:
    """Answers control requests for `up`."""

    def __init__(self, up: Up, fleet: Fleet, transport: Transport) -> None:
        self._up = up
        self._fleet = fleet
        self._transport = transport
        self._subjects = Subjects(up.plan.tenant)
        operations = {
            "ping": self._ping,
            "ps": self._ps,
            "nodes": self._nodes,
            "scale": self._scale,
            "restart": self._restart,
            "reload": self._reload,
            "rolling": self._rolling,
            "drain": self._drain,
            "logs": self._logs,
            "down": self._down,
        }
        self._service = ControlService(
            transport, self._subjects.control(SUPERVISOR), operations, concerns=self._concerns
        )

    async def start(self) -> None:
        """Listen."""
        await self._service.start()

    async def stop(self) -> None:
        """Listen no more."""
        await self._service.stop()

    def _concerns(self, arguments: Arguments) -> bool:
        wanted = arguments.pop("up", None)
        if wanted in (None, ""):
            chores = self._up.chores
            return arguments.get("op") in READING or chores is None or chores.active or chores.holder is None
        return wanted in (self._up.plan.name, self._up.id)

    async def _ping(self, arguments: Arguments) -> Arguments:
        plan = self._up.plan
        return {
            "up": {
                "name": plan.name,
                "id": self._up.id,
                "active": self._up.chores is not None and self._up.chores.active,
                "knows": [*self._fleet.agents, *self._fleet.members, *self._fleet.groups],
                "groups": self._fleet.groups.table(),
                "tenant": plan.tenant,
                "url": self._up.url,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started_at": self._up.started_at,
                "root": str(plan.root),
                "reload": plan.reload,
            }
        }

    async def _ps(self, arguments: Arguments) -> Arguments:
        infos = await registry.discover(self._transport, self._subjects, brief=True)
        wanted = {
            name: {
                "replicas": self._fleet.wanted(name),
                "isolation": agent.isolation,
                "target": agent.target,
            }
            for name, agent in self._fleet.agents.items()
        }
        return {
            **await self._ping(arguments),
            "processes": self._fleet.table(),
            "wanted": wanted,
            "groups": self._fleet.groups.table(),
            "agents": [msgspec.to_builtins(info) for info in infos],
            **await self._nodes(arguments),
        }

    async def _nodes(self, arguments: Arguments) -> Arguments:
        monitor = self._up.monitor
        return {"nodes": [outline(node) for node in monitor.nodes()] if monitor else []}

    async def _scale(self, arguments: Arguments) -> Arguments:
        name: str = argument(arguments, "agent", str)
        problem = await scale(self._fleet, name, argument(arguments, "replicas", int))
        infos = await registry.discover(self._transport, self._subjects, name=name, brief=True)
        elsewhere = sum(info.node not in self._fleet.nodes and info.state != "stopped" for info in infos)
        return {"problem": problem, "elsewhere": elsewhere} if elsewhere else {"problem": problem}

    async def _restart(self, arguments: Arguments) -> Arguments:
        return {"problem": await restart(self._fleet, argument(arguments, "name", str))}

    async def _reload(self, arguments: Arguments) -> Arguments:
        event = await reload(self._fleet)
        if event is None:
            return {"nodes": [], "problem": "", "seconds": 0.0}
        return {"nodes": list(event.nodes), "problem": event.problem, "seconds": event.seconds}

    async def _rolling(self, arguments: Arguments) -> Arguments:
        event = await rolling_restart(self._fleet, argument(arguments, "name", str))
        return {"nodes": list(event.nodes), "problem": event.problem, "seconds": event.seconds}

    async def _drain(self, arguments: Arguments) -> Arguments:
        moved, problem = await drain_node(self._fleet, argument(arguments, "node", str))
        return {"moved": moved, "problem": problem}

    async def _logs(self, arguments: Arguments) -> Arguments:
        source: str | None = argument(arguments, "source", str | None)
        after: int | None = argument(arguments, "after", int | None)
        limit: int | None = argument(arguments, "limit", int | None)
        lines = self._up.book.query(source or "", after or 0, 200 if limit is None else min(limit, 1000))
        return {"lines": [msgspec.to_builtins(line) for line in _fitting(lines, self._transport.max_payload // 2)]}

    async def _down(self, arguments: Arguments) -> Arguments:
        force: bool | None = argument(arguments, "force", bool | None)
        self._up.stop("asked by a control request", force=bool(force))
        return await self._ping(arguments)


def outline(node: NodeInfo) -> dict[str, Any]:
    """A node as plain data, with the names of its agents."""
    document: dict[str, Any] = msgspec.to_builtins(node)
    document["agents"] = sorted({info.name for info in node.agents})
    document["replicas"] = len(node.agents)
    return document


async def supervisors(transport: Transport, subjects: Subjects) -> list[dict[str, Any]]:
    """Who supervises the tenant, as `ping` answers it; the active one first."""
    question = msgspec.json.encode({"op": "ping"})
    replies = await transport.request_many(subjects.control(SUPERVISOR), question, timeout=0.5, stall=registry.STALL)
    answers = [msgspec.json.decode(reply.data) for reply in replies]
    found = [answer["up"] for answer in answers if isinstance(answer, dict) and "up" in answer]
    return sorted(found, key=lambda up: (not up.get("active"), str(up.get("started_at"))))


async def ask_supervisor(
    transport: Transport,
    subjects: Subjects,
    op: str,
    *,
    up: str = "",
    pid: int = 0,
    timeout: float = 30.0,
    **arguments: Any,
) -> Arguments:
    """Ask the running mesh something; see the module.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        op: What.
        up: Name or id of the one to ask; else it is found out, if it matters.
        pid: Process of the one to prefer, if it runs on this host.
        timeout: Seconds to wait for the answer.
        arguments: Of the operation.

    Raises:
        NoRespondersError: No mesh runs for this tenant.
        AgentMeshError: What the operation raised.
    """
    if not up and op not in READING:
        name = next((str(arguments[key]) for key in ("agent", "name", "node") if arguments.get(key)), "")
        up = _chosen(await supervisors(transport, subjects), name, pid)
    if up:
        arguments["up"] = up
    return await call(transport, subjects.control(SUPERVISOR), op, timeout=timeout, **arguments)


def _chosen(found: list[dict[str, Any]], name: str, pid: int) -> str:
    """Of those that know the agent or process the one here, else the active one; empty if there is no choice."""
    if len(found) < 2:
        return ""
    able = [up for up in found if name in up.get("knows", ())] or found
    host = socket.gethostname()
    near = [up for up in able if pid and (up.get("pid"), up.get("host")) == (pid, host)]
    return str((near or able)[0].get("id", ""))


def _fitting(lines: list[Any], budget: int) -> list[Any]:
    """The youngest lines that fit into one message."""
    fitting: list[Any] = []
    for line in reversed(lines):
        budget -= 2 * len(line.text) + 120
        if budget < 0:
            break
        fitting.append(line)
    return fitting[::-1]
