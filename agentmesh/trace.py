"""W3C trace context: which trace a message belongs to, whoever began it.

A trace id is 32 hex digits. Of a message that begins a trace it is its own id (which is hex), filled up with zeros on
the left; so there is one id, inside agentmesh and in the header `traceparent`. Messages carry it in `trace_id`, and,
when somebody traces, `traceparent` (with the span that sent it), `tracestate` and `baggage` as W3C defines them.

Source: https://www.w3.org/TR/trace-context/ and https://www.w3.org/TR/baggage/
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

from agentmesh.ids import new_id

HEADERS = ("traceparent", "tracestate", "baggage")

_ID = re.compile(r"[0-9a-f]{32}")
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST = {"traceparent": 256, "tracestate": 512, "baggage": 8192}


class Carrier(Protocol):
    """What travels: a message or a task."""

    trace_id: str
    traceparent: str
    tracestate: str
    baggage: str


class Parent(NamedTuple):
    """What a `traceparent` says."""

    trace_id: str
    span_id: str
    flags: str
    """Two hex digits; odd: whoever began the trace records it."""

    @property
    def sampled(self) -> bool:
        return int(self.flags, 16) & 1 == 1

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def parse(traceparent: str) -> Parent | None:
    """What it says; None if it is none. Versions to come are read as far as this one knows them."""
    found = _PARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Parent(trace_id, span_id, flags)


def trace_id_of(message_id: str) -> str:
    """The id of the trace that a message begins."""
    padded = message_id.rjust(32, "0")
    if _ID.fullmatch(padded) is not None and message_id.strip("0"):
        return padded
    return blake2b(message_id.encode(errors="replace"), digest_size=16).hexdigest()  # a foreign client's own id


def new_span_id() -> str:
    """16 hex digits."""
    return os.urandom(8).hex()


def adopt(carrier: Carrier, headers: Mapping[str, str] | None = None) -> None:
    """Continue the trace that a message says it belongs to, in its document or in its headers; what is malformed is
    ignored, as W3C wants it."""
    for name, value in headers.items() if headers else ():
        field = name.lower()
        if field in HEADERS and not getattr(carrier, field):
            setattr(carrier, field, value.strip())
    for field in HEADERS:
        value = getattr(carrier, field)
        if value and (len(value) > _LONGEST[field] or not (value.isascii() and value.isprintable())):
            setattr(carrier, field, "")
    parent = parse(carrier.traceparent) if carrier.traceparent else None
    if parent is None:
        carrier.traceparent = carrier.tracestate = ""
    else:
        carrier.trace_id = parent.trace_id


def inherit(carrier: Carrier, here: Carrier) -> None:
    """What is sent while `here` is handled belongs to its trace."""
    carrier.trace_id = carrier.trace_id or here.trace_id
    carrier.traceparent, carrier.tracestate, carrier.baggage = here.traceparent, here.tracestate, here.baggage


@dataclass(slots=True)
class Trace:
    """The trace of what a door does outside of handlers."""

    trace_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    baggage: str = ""


_outside: ContextVar[Trace | None] = ContextVar("agentmesh_trace", default=None)
outside = _outside.get


@contextmanager
def continued(headers: Mapping[str, str] | None, *, trace_id: str = "") -> Iterator[str]:
    """Have what is sent inside belong to the trace that the headers of a request speak of, or to a new one.

    Args:
        headers: `traceparent` and the like, of whatever case.
        trace_id: Of an older kind of client, which knows no `traceparent`.

    Yields:
        The trace id.
    """
    trace = Trace(trace_id)
    adopt(trace, headers)
    trace.trace_id = trace_id_of(trace.trace_id or new_id())
    before = _outside.set(trace)
    try:
        yield trace.trace_id
    finally:
        _outside.reset(before)


def headers_of(carrier: Carrier) -> dict[str, str]:
    """The headers of a message, as far as there is something to say."""
    return {field: value for field in HEADERS if (value := getattr(carrier, field))}
