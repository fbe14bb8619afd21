"""Who is there: presence with capabilities and message schemas.

There is no stored registry that could be out of date. Whoever wants to know asks on `ai.agent.control.T.who`, and
every host of agents answers for its own; the answer is complete when nobody has said anything new for a moment.
Hosts also announce agents that come and go on `ai.agent.control.T.presence`, and that they are alive: see `presence`.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from agentmesh.errors import BrokerError, NoRespondersError
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport

WHO, PRESENCE = "who", "presence"

STALL = 0.06
"""Seconds of silence after which the answers are taken as complete; a host answers in well under 10 ms."""


class MessageInfo(msgspec.Struct, omit_defaults=True):
    """One type of message that an agent takes."""

    name: str
    kind: str
    """`event`, `request`, `stream` or `task`."""
    schema: dict[str, Any] = {}
    reply_schema: dict[str, Any] | None = None
    topic: str = ""


class AgentInfo(msgspec.Struct, omit_defaults=True):
    """One replica of an agent."""

    name: str
    node: str
    replica: int = 1
    state: str = "ready"
    """`starting`, `ready`, `paused`, `restarting`, `stopping`, `failed` or `stopped`."""
    description: str = ""
    messages: list[MessageInfo] = []
    mailbox: int = 0
    """Messages that wait."""
    in_flight: int = 0
    """Messages and tasks being handled."""
    handled: int = 0
    failed: int = 0
    restarts: int = 0
    started_at: datetime | None = None
    pid: int = 0
    host: str = ""
    problem: str = ""
    """Why it is not ready."""
    remark: str = ""
    """What it says itself about how it is doing: see `Agent.remark`."""
    life: str = ""
    """Of its node: another one after each start of the process."""


class Who(msgspec.Struct, omit_defaults=True):
    """The question. An empty name asks for all."""

    name: str = ""
    brief: bool = False
    """Leave out schemas and descriptions."""


class _Endpoint(msgspec.Struct):
    subject: str = ""


class _Service(msgspec.Struct):
    endpoints: list[_Endpoint] = []


_services = msgspec.json.Decoder(_Service)
_answers = msgspec.json.Decoder(list[AgentInfo])
encode = msgspec.json.encode


def encode_in_parts(infos: Iterable[AgentInfo], limit: int) -> Iterator[bytes]:
    """One or more answers, none larger than half of `limit` bytes, unless one agent is."""
    part: list[bytes] = []
    size = 0
    for one in map(encode, infos):
        if part and size + len(one) > limit // 2:
            yield b"[" + b",".join(part) + b"]"
            part, size = [], 0
        part.append(one)
        size += len(one) + 1
    if part:
        yield b"[" + b",".join(part) + b"]"


async def discover(
    transport: Transport,
    subjects: Subjects,
    *,
    name: str = "",
    brief: bool = False,
    timeout: float = 0.5,
    stall: float = STALL,
) -> list[AgentInfo]:
    """Every replica that is there now, sorted by name, node and replica.

    Args:
        transport: Where to ask.
        subjects: Whose agents.
        name: Only replicas of this agent.
        brief: Without schemas and descriptions.
        timeout: Seconds after which the answers so far are returned.
        stall: Seconds of silence that end the wait early.
    """
    question = encode(Who(name, brief))
    replies = await transport.request_many(subjects.control(WHO), question, timeout=timeout, stall=stall)
    found = [info for reply in replies for info in _read(reply.data)]
    return sorted(found, key=lambda info: (info.name, info.node, info.replica))


def near_misses(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that `name` may have meant."""
    return difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.5)


async def nobody_on(transport: Transport, subject: str, *, timeout: float = 0.2) -> NoRespondersError:
    """The error for a request to a subject on which nobody listens, with subjects that may have been meant.

    Those are the endpoints of NATS micro services: agents, doors, the memory, and whatever else is listed.
    """
    try:
        replies = await transport.request_many("$SRV.INFO", b"", timeout=timeout, stall=STALL)
    except BrokerError:
        return NoRespondersError(subject)
    known: set[str] = set()
    for reply in replies:
        with contextlib.suppress(msgspec.MsgspecError):  # another kind of service, which says something else
            known.update(endpoint.subject for endpoint in _services.decode(reply.data).endpoints)
    return NoRespondersError(subject, difflib.get_close_matches(subject, sorted(known), n=3, cutoff=0.7))


def _read(data: bytes) -> list[AgentInfo]:
    try:
        return _answers.decode(data)
    except msgspec.MsgspecError:
        return []  # somebody else's answer; the others count
