"""Figures over NATS: every process answers `ai.agent.control.T.metrics`, and whoever wants them asks all.

An empty question, as `nats req` sends it, is answered with text. Ours asks for documents, in parts that fit into a
message, to be put together with a label `process` on every figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Iterable, Iterator
from functools import partial

import msgspec

from agentmesh.errors import AgentMeshError, PermissionDeniedError
from agentmesh.ids import new_id
from agentmesh.metrics.depths import depth_families
from agentmesh.metrics.family import Family, Sample, merge
from agentmesh.metrics.process import process_families
from agentmesh.metrics.registry import Metrics
from agentmesh.metrics.text import render
from agentmesh.subjects import Subjects
from agentmesh.transport import Message, Subscription, Transport

log = logging.getLogger("agentmesh.metrics")

METRICS = "metrics"
"""Control subject."""

TIMEOUT = 1.0
STALL = 0.1
"""Seconds of silence after which everybody has answered."""


class Question(msgspec.Struct, omit_defaults=True):
    """An empty process asks all."""

    process: str = ""
    documents: bool = False


class Report(msgspec.Struct, omit_defaults=True):
    """What one process answers, or a part of it."""

    process: str
    life: str
    host: str = ""
    pid: int = 0
    families: list[Family] = []
    more: bool = False
    """Another part follows."""


_reports = msgspec.json.Decoder(Report)
_encode = msgspec.json.encode


def metrics_of(transport: Transport) -> Metrics:
    """The figures of the process that has this connection."""
    place = ("metrics", "")
    found: Metrics | None = transport.shared.get(place)
    if found is None:
        found = transport.shared[place] = Metrics()
        found.add_source(partial(process_families, transport))
    return found


async def serve(transport: Transport, subject: str, process: str) -> Subscription | None:
    """Answer for this process on `subject`, under that name; None if the broker does not let us."""
    life = new_id()
    metrics_of(transport).process = process
    answering: set[asyncio.Task[None]] = set()

    def on_question(message: Message) -> None:
        try:
            question = msgspec.json.decode(message.data, type=Question) if message.data.strip() else Question()
        except msgspec.MsgspecError:
            return
        if message.reply and question.process in ("", process):
            answer = asyncio.get_running_loop().create_task(_answer(transport, message.reply, question, process, life))
            answering.add(answer)
            answer.add_done_callback(answering.discard)

    try:
        return await transport.subscribe(subject, on_question)
    except PermissionDeniedError as error:
        log.warning("nobody can ask this process for its metrics: %s", error)
        return None


async def _answer(transport: Transport, reply: str, question: Question, process: str, life: str) -> None:
    families = metrics_of(transport).families()
    try:
        if not question.documents:
            text = render(_labelled(families, process))
            await transport.publish(reply, text.encode()[: transport.max_payload])
            return
        parts = list(_parts(families, transport.max_payload // 2))
        for number, part in enumerate(parts, 1):
            report = Report(process, life, socket.gethostname(), os.getpid(), part, more=number < len(parts))
            await transport.publish(reply, _encode(report))
    except AgentMeshError as error:
        log.debug("metrics were not sent: %s", error)


async def gather(
    transport: Transport, subjects: Subjects, *, process: str = "", timeout: float = TIMEOUT
) -> list[Report]:
    """What each process of the tenant, or one of them, has to say; by name."""
    question = _encode(Question(process, documents=True))
    whole: dict[str, Report] = {}
    arrived = asyncio.Event()
    inbox = transport.open_inbox(lambda message: _take(message, whole, arrived))
    try:
        await transport.publish(subjects.control(METRICS), question, inbox.subject)
        async with asyncio.timeout(timeout):
            while True:
                is_over = whole and not any(report.more for report in whole.values())
                async with asyncio.timeout(STALL if is_over else None):
                    await arrived.wait()
                if not whole:  # "no responders"
                    break
                arrived.clear()
    except TimeoutError:
        pass
    finally:
        inbox.close()
    return sorted(whole.values(), key=lambda report: (report.process, report.life))


def _take(message: Message, whole: dict[str, Report], arrived: asyncio.Event) -> None:
    arrived.set()
    with contextlib.suppress(msgspec.MsgspecError):  # somebody else's answer
        part = _reports.decode(message.data)
        known = whole.setdefault(part.life, part)
        if known is not part:
            known.families += part.families
            known.more = part.more


async def collect_families(
    transport: Transport, subjects: Subjects, *, process: str = "", timeout: float = TIMEOUT
) -> list[Family]:
    """Like `collect`, as families. Without a connection: those of this process."""
    if process:
        return merge(_together(await gather(transport, subjects, process=process, timeout=timeout)))
    if not transport.is_connected:
        return _labelled(metrics_of(transport).families(), metrics_of(transport).process)
    reports, depths = await asyncio.gather(
        gather(transport, subjects, timeout=timeout), _within(2 * timeout, depth_families(transport, subjects))
    )
    return merge([*_together(reports), *depths])


async def collect(transport: Transport, subjects: Subjects, *, process: str = "", timeout: float = TIMEOUT) -> str:
    """The figures of all processes of a tenant, or of one, and of what waits at the broker, as text for Prometheus.

    Args:
        transport: Where to ask.
        subjects: Whose.
        process: Only of this one, without what waits at the broker.
        timeout: Seconds after which the answers so far are returned.
    """
    return render(await collect_families(transport, subjects, process=process, timeout=timeout))


async def _within(seconds: float, work: Awaitable[list[Family]]) -> list[Family]:
    """Nothing, if the broker takes too long."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        return []


def _together(reports: list[Report]) -> Iterator[Family]:
    """With the process on every figure; of several of one name, also where they are: no series may come twice."""
    names = [report.process for report in reports]
    for report in reports:
        name = report.process
        if names.count(name) > 1:
            name = f"{name}@{report.host}:{report.pid}"
        yield from _labelled(report.families, name)


def _labelled(families: Iterable[Family], process: str) -> list[Family]:
    return [
        Family(
            family.name,
            family.kind,
            family.help,
            [Sample({"process": process, **sample.labels}, sample.value, sample.suffix) for sample in family.samples],
        )
        for family in families
    ]


def _parts(families: Iterable[Family], limit: int) -> Iterator[list[Family]]:
    """Families in parts of about `limit` bytes; one that is larger is divided."""
    part: list[Family] = []
    room = limit
    for family in families:
        piece = Family(family.name, family.kind, family.help)
        for sample in family.samples:
            size = 40 + sum(len(name) + len(value) + 8 for name, value in sample.labels.items())
            if size > room:
                yield [*part, piece]
                part, piece, room = [], Family(family.name, family.kind, family.help), limit
            piece.samples.append(sample)
            room -= size
        part.append(piece)
        room -= 40 + len(family.name) + len(family.help)
    yield part
