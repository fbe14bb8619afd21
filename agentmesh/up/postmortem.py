"""When a process has ended by itself: the others are told, and it is reported with what it was handling."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from agentmesh import happenings
from agentmesh.client import Client
from agentmesh.crashes import CRASH, GAVE_UP, LONGEST_TRACEBACK, suspect, without_logins
from agentmesh.errors import BrokerError
from agentmesh.flight import read_flight
from agentmesh.presence import report_death
from agentmesh.subjects import Subjects
from agentmesh.supervisor import SupervisorEvent
from agentmesh.transport import Transport
from agentmesh.up.members import Member
from agentmesh.up.placement import NodePlan

SUSPICION = 600.0
"""Seconds after the death of a process in which its successors write down what they handle."""


class PostMortem:
    """See the module.

    Args:
        transport: The connection of the root process; without it, nothing is told and nothing reported.
        subjects: The tenant's subjects.
        folder: Where processes write down what they handle.
    """

    def __init__(self, transport: Transport, subjects: Subjects, folder: Path) -> None:
        self._transport = transport
        self._subjects = subjects
        self._folder = folder
        self._died: dict[str, float] = {}
        """When processes last ended by themselves, by the clock of the event loop."""
        self._telling: set[asyncio.Task[None]] = set()

    def flight(self, process: str) -> str:
        """The file in which a process is to write down what it handles; empty if it has not died lately."""
        died = self._died.get(process, -math.inf)
        return str(self._folder / process) if asyncio.get_running_loop().time() - died < SUSPICION else ""

    def tell(self, node: str, pid: int, detail: str) -> None:
        """Spare the others the wait for signs of life that do not come."""
        self._beside(report_death(self._transport, self._subjects, node, pid, how(detail, node)))

    def ended(self, member: Member, event: SupervisorEvent, node: NodePlan | None) -> None:
        """Report the end of a process; the only message that it was handling is suspected of it."""
        self._died[member.name] = asyncio.get_running_loop().time()
        handled = read_flight(self._folder / member.name)
        if len(handled) == 1:
            self._beside(suspect(Client(self._transport, self._subjects, "up"), handled[0]))
        document = {
            "process": member.name,
            "service": member.kind,
            "node": member.name,
            "host": socket.gethostname(),
            "pid": member.process.pid if member.process is not None else 0,
            "reason": how(event.detail, member.name),
            "agents": {entry.name: entry.replicas for entry in node.agents} if node is not None else {},
            "restarts": event.restarts,
            "last_words": without_logins(event.detail.partition("\n")[2])[-LONGEST_TRACEBACK:],
            "message": handled[0] if len(handled) == 1 else None,
            "messages": len(handled),
        }
        self.record(CRASH, member.name, document)

    def gave_up(self, member: Member, event: SupervisorEvent) -> None:
        """Report that a process stays down."""
        reason = without_logins(event.detail)[-LONGEST_TRACEBACK:]
        self.record(GAVE_UP, member.name, {"process": member.name, "reason": reason, "restarts": event.restarts})

    def record(self, kind: str, name: str, document: Mapping[str, Any]) -> None:
        """Keep an event, beside whatever else goes on."""
        self._beside(self._keep(kind, name, document))

    async def _keep(self, kind: str, name: str, document: Mapping[str, Any]) -> None:
        await happenings.record(self._transport, self._subjects, kind, name, document)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        if not self._transport.is_connected:
            work.close()
            return
        with contextlib.suppress(BrokerError):  # the others find out by themselves
            await work


def how(detail: str, process: str) -> str:
    """How a process ended, without its name and its last words."""
    return detail.partition("\n")[0].removeprefix(f"{process} ").removesuffix(":")
