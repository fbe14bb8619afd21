"""Why a task ends before it is done: it was decided, or the task it belongs to was cancelled or has expired.

There is no list of children anywhere: a task names its parent, and whoever works on it looks at the parent's slot,
before it begins, when prompted, and at every third heartbeat. So the end of a tree needs no process to survive: each
level that ends decides its own slot, at which the next one looks.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from agentmesh.budgets import SECONDS
from agentmesh.subjects import Subjects
from agentmesh.tasks import slot
from agentmesh.tasks.wire import ResultBody, Status, TaskBody
from agentmesh.transport import Transport

CANCEL = "cancel"
"""Control subject: the prompt to look whether a task, or the one it belongs to, was cancelled or has expired."""

ENDED: tuple[Status, ...] = ("cancelled", "expired")
"""Decisions that end what belongs to the task, too. One that completed or failed leaves its children alone."""

_LOOK_AGAIN = 1.0
"""Seconds that it is good for that a task has not ended."""

_REMEMBERED = 1_000


@dataclass(frozen=True)
class Ending:
    """Why a task ends."""

    status: str
    reason: str = ""
    own: bool = False
    """It is decided already; otherwise it is to be decided so."""


async def ending(transport: Transport, subjects: Subjects, body: TaskBody, *, latest: bool = False) -> Ending | None:
    """Whether the task has to end, as its own slot and its parent's say. The second is read only if there is one.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        body: The task.
        latest: In a cluster, a replica that lags is not good enough: before a handler runs.
    """
    master = body.master_id
    if not master:
        return _own(await slot.read(transport, subjects, body.task_id, latest=latest))
    mine, parents = await asyncio.gather(
        slot.read(transport, subjects, body.task_id, latest=latest),
        slot.read(transport, subjects, master, latest=latest),
    )
    return _own(mine) or _inherited(parents)


class Masters:
    """Which tasks have ended that others belong to; each is looked at once a second at most."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._known: dict[str, tuple[float, bool]] = {}
        """When it was looked at last, and whether it had ended."""

    async def has_ended(self, body: TaskBody) -> bool:
        """Whether the task that this one belongs to has ended, as far as is known."""
        master = body.master_id
        if not master:
            return False
        looked_at, ended = self._known.get(master, (-math.inf, False))
        time = asyncio.get_running_loop().time()
        if not ended and time - looked_at > _LOOK_AGAIN:
            self._note(master, time, False)  # whoever asks meanwhile need not look
            ended = _inherited(await slot.read(self._transport, self._subjects, master)) is not None
            if ended or master in self._known:  # else it was to be forgotten meanwhile
                self._note(master, time, ended)
        return ended

    def forget(self, task_id: str) -> None:
        """It may have ended: look again."""
        self._known.pop(task_id, None)

    def _note(self, master: str, time: float, ended: bool) -> None:
        self._known.pop(master, None)
        self._known[master] = (time, ended)
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]


async def prompt(transport: Transport, subjects: Subjects, task_id: str) -> None:
    """Have those who work on the task, or on what belongs to it, look at its slot now."""
    await transport.publish(subjects.control(CANCEL), task_id.encode())


def why_late(body: TaskBody) -> str:
    """Whose deadline it is that the task has; empty if it is its own."""
    if not body.deadline_inherited or body.deadline is None:
        return ""
    for one in body.budget:
        if one.deadline is not None and one.deadline <= body.deadline:
            return str(one.spent(SECONDS))
    owner = f"its parent, task {body.parent_id}," if body.parent_id else "the request that submitted it"
    return f"the deadline of {owner} passed"


def _own(mine: ResultBody | None) -> Ending | None:
    return None if mine is None else Ending(mine.status, mine.reason, own=True)


def _inherited(parent: ResultBody | None) -> Ending | None:
    if parent is None or parent.status not in ENDED:
        return None
    if parent.status == "expired":
        return Ending("expired", f"its parent, task {parent.task_id}, expired")
    return Ending("cancelled", f"its parent, task {parent.task_id}")
