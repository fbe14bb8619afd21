"""What other processes may ask of a running mesh: `ai.agent.control.T.supervisor`, JSON requests and answers.

| op        | arguments                | answer                                                        |
| --------- | ------------------------ | ------------------------------------------------------------- |
| `ping`    |                          | `up`: name, tenant, url, pid, started_at, root                 |
| `ps`      |                          | `up`, `processes`, `wanted` (replicas per agent), `agents`     |
| `scale`   | `agent`, `replicas`      | `problem`                                                      |
| `restart` | `name` (agent, process)  | `problem`                                                      |
| `reload`  |                          | `nodes`, `problem`, `seconds`                                  |
| `rolling` | `name` (agent; empty: all) | `nodes`, `problem`, `seconds`                                |
| `drain`   | `node`                   | `problem`, `moved` (replicas and their nodes)                   |
| `logs`    | `source, after, limit`   | `lines`: number, at, source, text                              |
| `down`    | `force`                  | at once; the stop follows                                      |

With `up` a request is only for the mesh of that name, when several share a tenant. Errors are typed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh import registry
from agentmesh.subjects import Subjects
from agentmesh.supervisor.control import Arguments, ControlService, argument, call
from agentmesh.transport import Transport
from agentmesh.up.fleet import Fleet
from agentmesh.up.moving import drain_node, rolling_restart

if TYPE_CHECKING:
    from agentmesh.up.root import Up

SUPERVISOR = "supervisor"
"""Control subject of the mesh."""


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
        return arguments.pop("up", None) in (None, "", self._up.plan.name)

    async def _ping(self, arguments: Arguments) -> Arguments:
        plan = self._up.plan
        return {
            "up": {
                "name": plan.name,
                "tenant": plan.tenant,
                "url": self._up.url,
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
                "replicas": len(self._fleet.replicas(name)),
                "isolation": agent.isolation,
                "target": agent.target,
            }
            for name, agent in self._fleet.agents.items()
        }
        return {
            **await self._ping(arguments),
            "processes": self._fleet.table(),
            "wanted": wanted,
            "agents": [msgspec.to_builtins(info) for info in infos],
        }

    async def _scale(self, arguments: Arguments) -> Arguments:
        name: str = argument(arguments, "agent", str)
        return {"problem": await self._fleet.scale(name, argument(arguments, "replicas", int))}

    async def _restart(self, arguments: Arguments) -> Arguments:
        return {"problem": await self._fleet.restart(argument(arguments, "name", str))}

    async def _reload(self, arguments: Arguments) -> Arguments:
        event = await self._fleet.reload()
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


async def ask_supervisor(
    transport: Transport, subjects: Subjects, op: str, *, timeout: float = 30.0, **arguments: Any
) -> Arguments:
    """Ask the running mesh something; see the module.

    Raises:
        NoRespondersError: No mesh runs for this tenant.
        AgentMeshError: What the operation raised.
    """
    return await call(transport, subjects.control(SUPERVISOR), op, timeout=timeout, **arguments)


def _fitting(lines: list[Any], budget: int) -> list[Any]:
    """The youngest lines that fit into one message."""
    fitting: list[Any] = []
    for line in reversed(lines):
        budget -= 2 * len(line.text) + 120
        if budget < 0:
            break
        fitting.append(line)
    return fitting[::-1]
