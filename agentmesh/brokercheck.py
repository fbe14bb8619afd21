"""What about a broker would break a promise: its configuration, its streams, and what else lives there.

    for weakness in await weaknesses(transport, monitor="http://127.0.0.1:8222"):
        print(weakness.what, weakness.says, weakness.fix)

`agentmesh doctor` shows them, and `agentmesh up` warns of them when it starts. Nothing is changed. What would make
agentmesh work wrongly from the first message on is refused elsewhere, with an error: a broker that is too old, or a
stream of one of our names that promises something else.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from agentmesh.subjects import may_overlap
from agentmesh.tasks.layout import SPECS
from agentmesh.transport import StreamInfo, StreamSpec, Transport

PAGE_TIMEOUT = 2.0
"""Seconds to wait for the monitoring page."""

CLOCK_SKEW = 1.0
"""Seconds by which the broker's time of day may differ from ours."""

NEARLY_FULL = 0.8
"""Fraction of a stream's bound from which on it is worth a warning."""

CORE_SUBJECTS = (
    "ai.agent.message.>",
    "ai.agent.topic.>",
    "ai.agent.control.>",
    "ai.agent.memory.>",
    "ai.agent.tools.>",
    "ai.agent.results.*",
    "ai.stream.live.*.*",
    "svc.>",
    "ai.gateway.requests.*",
    "$SRV.>",
    "_INBOX.>",
)
"""Not to be captured by any stream: it would answer requests itself, or store what is meant to pass by."""


@dataclass(frozen=True)
class Weakness:
    """One thing that breaks a promise, or may."""

    what: str
    """`durability`, `clock`, `replicas`, `limits`, `streams` or `room`."""
    says: str
    fix: str


async def weaknesses(transport: Transport, *, monitor: str | None = None) -> list[Weakness]:
    """Everything that is wrong with the broker behind `transport`; empty if nothing is.

    Args:
        transport: The connection.
        monitor: Address of the monitoring pages, the only place that tells whether writes are synced to disk. Without
            it, that is itself a weakness: nobody knows.

    Raises:
        BrokerError: JetStream does not answer.
    """
    streams = await transport.streams()
    found = [await durability(monitor), await clock(transport, streams)]
    return [
        *(weakness for weakness in found if weakness is not None),
        *_replicas(transport, streams),
        *_bounds(streams),
        *overlaps(streams),
        *_room(streams),
    ]


# ------------------------------------------------------------ what a power failure takes

_SYNC = "set sync_interval: always in the broker's jetstream block"


async def durability(monitor: str | None) -> Weakness | None:
    """Whether what is accepted survives a power failure."""
    if monitor is None:
        says = "cannot tell whether accepted tasks survive a power failure: the broker's monitoring page is not known"
        return Weakness("durability", says, f"{_SYNC}, and say where the page is: broker.monitor = 'http://…:8222'")
    try:
        varz = await asyncio.to_thread(_page, f"{monitor.rstrip('/')}/varz")
    except (OSError, ValueError) as error:
        return Weakness("durability", f"the monitoring page {monitor} cannot be read: {error}", _SYNC)
    config = (varz.get("jetstream") or {}).get("config") or {}
    if config.get("sync_always"):
        return None
    return Weakness("durability", "a power failure loses the writes of the last two minutes", _SYNC)


def _page(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise ValueError("expected an address such as http://127.0.0.1:8222")
    with urllib.request.urlopen(url, timeout=PAGE_TIMEOUT) as page:
        document = json.load(page)
    if not isinstance(document, dict):
        raise ValueError("it is no monitoring page")
    return document


# ------------------------------------------------------------ time


async def clock(transport: Transport, streams: Iterable[StreamInfo]) -> Weakness | None:
    """Whether the broker's time of day is ours: deadlines are set by one clock and read by another."""
    first = next(iter(streams), None)
    offset = await transport.clock_offset(first.name) if first is not None else None
    if offset is None or abs(offset) <= CLOCK_SKEW:
        return None
    says = f"the clock of this machine is {abs(offset):.1f} s {'behind' if offset > 0 else 'ahead of'} the broker's"
    return Weakness("clock", f"{says}: deadlines and times of tasks are off by that", "synchronise both: NTP, chrony")


# ------------------------------------------------------------ streams


def _ours(streams: Iterable[StreamInfo]) -> Iterator[tuple[StreamSpec, StreamInfo]]:
    specs = {spec.name: spec for spec in SPECS}
    return ((specs[info.name], info) for info in streams if info.name in specs)


def _replicas(transport: Transport, streams: Iterable[StreamInfo]) -> Iterator[Weakness]:
    """A stream made while the cluster was still forming has one copy for ever."""
    wanted = transport.replicas
    alone = [info.name for _, info in _ours(streams) if info.config.get("num_replicas", 1) < wanted]
    if alone:
        says = f"{', '.join(alone)}: fewer copies than {wanted}, so one lost node stops or loses them"
        yield Weakness("replicas", says, f"nats stream edit NAME --replicas {wanted}")


def _bounds(streams: Iterable[StreamInfo]) -> Iterator[Weakness]:
    """Bounds somebody edited. A larger one costs room, a smaller one refuses or forgets what we promise to keep."""
    for spec, info in _ours(streams):
        wanted = spec.config(1)
        bounds = ("max_age", "max_bytes", "max_msgs", "max_msgs_per_subject", "duplicate_window", "max_msg_size")
        for key in (bound for bound in bounds if bound not in spec.settable):
            ours, theirs = _amount(wanted[key]), _amount(info.config.get(key, 0))
            if theirs < ours:
                says = f"stream {spec.name} has {key} = {info.config.get(key)}, less than {wanted[key]}"
                yield Weakness("limits", says, f"nats stream edit {spec.name}, or delete it while nothing is in it")


def _amount(bound: int) -> float:
    """Nothing, 0 and -1 mean unlimited."""
    return float("inf") if bound is None or bound <= 0 else bound


def overlaps(streams: Iterable[StreamInfo]) -> Iterator[Weakness]:
    """Streams that keep what is asked, or what is meant to pass by."""
    for info in streams:
        captured = [
            f"{subject} ({ours})"
            for subject in info.config.get("subjects") or ()
            for ours in CORE_SUBJECTS
            if may_overlap(subject, ours)
        ]
        if captured:
            says = f"stream {info.name} captures {', '.join(captured)}, and answers the requests sent there itself"
            yield Weakness("streams", says, f"narrow the subjects of {info.name}, or use an account of its own")


def _room(streams: Iterable[StreamInfo]) -> Iterator[Weakness]:
    for spec, info in _ours(streams):
        limit = info.config.get("max_bytes", 0)
        if spec.discard == "new" and limit > 0 and info.bytes > limit * NEARLY_FULL:
            says = f"stream {info.name} is {info.bytes / limit:.0%} full; when it is full, nothing more is accepted"
            yield Weakness("room", says, f"raise its max_bytes: nats stream edit {info.name} --max-bytes SIZE")
