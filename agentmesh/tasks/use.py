"""How far limits are used: what is kept at the broker, and what workers say about who waits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from agentmesh.subjects import Subjects
from agentmesh.tasks.allowance import Record, decode
from agentmesh.tasks.gate import WAITING, Waiting
from agentmesh.tasks.layout import LIMITS
from agentmesh.transport import StoredMessage, Transport

_PAGE = 500
_TIMEOUT, _SILENCE = 0.6, 0.1

_read_waiting = msgspec.json.Decoder(list[Waiting]).decode


@dataclass(frozen=True)
class LimitUse:
    """One limit, for one value of its key."""

    scope: str
    """`task`, `agent`, `tenant` or `shared`."""
    owner: str
    """The task type, the agent, or the name of the limit; `all` for a tenant."""
    kind: str
    """`slots` for tasks that run, `rate` for tasks that start."""
    key: str
    """The key's value; empty without a key."""
    used: int
    """Tasks that run, or that started within the last period."""
    allowed: int
    period: float
    """Seconds, of a rate; else 0."""
    waiting: int
    """Tasks that workers made wait, as far as they know; those nobody has looked at yet are not counted."""
    running: tuple[str, ...] = ()
    """Ids of the tasks that run."""


class Limits:
    """The limits of a tenant that are in use, or were within the last minute."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects

    async def ls(self, limit: int = 500) -> list[LimitUse]:
        """Up to `limit` of them, those with the most waiting tasks first."""
        if await self._transport.stream_info(LIMITS.name) is None:
            return []
        waiting = await self._waiting()
        found: list[LimitUse] = []
        start, full = 1, True
        while full:
            page = await self._transport.messages(LIMITS.name, self._subjects.all_limits(), start=start, limit=_PAGE)
            full = len(page) == _PAGE
            for stored in page:
                start = stored.sequence + 1
                found.append(_use(stored, waiting))
        found.sort(key=lambda use: (-use.waiting, -use.used, use.scope, use.owner, use.kind, use.key))
        return found[:limit]

    async def _waiting(self) -> Counter[str]:
        """Per record: what the workers say."""
        replies = await self._transport.request_many(
            self._subjects.control(WAITING), b"", timeout=_TIMEOUT, stall=_SILENCE
        )
        found: Counter[str] = Counter()
        for reply in replies:
            try:
                entries = _read_waiting(reply.data)
            except msgspec.MsgspecError:
                continue  # somebody else's answer
            for entry in entries:
                found[entry.path] += entry.waiting
        return found


def _use(stored: StoredMessage, waiting: Counter[str]) -> LimitUse:
    scope, owner, what, _ = tokens = stored.subject.split(".")[-4:]
    record = decode(stored.data)
    return LimitUse(
        scope,
        owner,
        what.partition("-")[0],
        record.key,
        _used(record),
        record.allowed,
        record.period,
        waiting[".".join(tokens)],
        tuple(holder.task_id for holder in record.holders.values()),
    )


def _used(record: Record) -> int:
    if record.period:
        return record.started(datetime.now(UTC).timestamp())
    return len(record.holders)
