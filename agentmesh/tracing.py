"""Spans: what was sent and handled when, and what followed from what.

Off by default, and then nothing of it runs. A transport with `tracing="log"` writes each span as a line of the logger
`agentmesh.trace`; with `tracing="otel"` it goes to the tracer provider of OpenTelemetry, and spans that a
handler makes become its children. Any function that takes a `Span` does: `transport.tracer = Tracer(print)`.

Sending is a span (`producer`, or `client` if it waits for an answer), handling another one (`consumer`), with the first
as its parent and its link. What lies between them is the time in the queue, `queue_seconds` of the second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Literal

from agentmesh.context import Context, current
from agentmesh.errors import MissingExtraError
from agentmesh.trace import Carrier, Parent, headers_of, new_span_id, outside, parse, trace_id_of

log = logging.getLogger("agentmesh.trace")

To = Literal["off", "log", "otel"]
Kind = Literal["producer", "client", "consumer"]


@dataclass(slots=True)
class Span:
    """One step of a trace. Times are seconds since 1970."""

    name: str
    kind: Kind
    trace_id: str
    span_id: str
    parent_id: str
    started_at: float
    ended_at: float
    attributes: dict[str, str | float] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    """Span ids, of the same trace."""
    error: str = ""
    tracestate: str = ""


class Tracer:
    """Makes spans.

    Args:
        export: Called with each span when it is over; must not block.
    """

    def __init__(self, export: Callable[[Span], None]) -> None:
        self._export = export

    # ------------------------------------------------------------ sending
    def begin(self, carrier: Carrier, message_id: str) -> None:
        """Give what is about to be sent a span of its own."""
        before = parse(carrier.traceparent) if carrier.traceparent else None
        trace_id = trace_id_of(carrier.trace_id or message_id)
        carrier.traceparent = str(Parent(trace_id, new_span_id(), before.flags if before else "01"))
        carrier.trace_id = trace_id

    def headers(self, carrier: Carrier) -> dict[str, str]:
        """For foreign clients, and for whoever looks at the broker."""
        return headers_of(carrier)

    def sent(self, carrier: Carrier, what: str, began: float, kind: Kind = "producer", error: str = "") -> None:
        """It was sent, or answered. `began`: since when, in seconds since 1970."""
        span = parse(carrier.traceparent)
        if span is None or not span.sampled:
            return
        here = current() or outside()
        parent = parse(here.traceparent) if here is not None else None
        self._finish(Span(what, kind, span.trace_id, span.span_id, _id(parent), began, time.time(), error=error))

    # ------------------------------------------------------------ handling
    def received(self, context: Context) -> Handled:
        """The handler of a message is about to begin: from now on its span is the one that others belong to."""
        sender = parse(context.traceparent) if context.traceparent else None
        trace_id = trace_id_of(context.trace_id)
        own = Parent(trace_id, new_span_id(), sender.flags if sender else "01")
        context.traceparent = str(own)
        return Handled(self, own, sender, context)

    def _finish(self, span: Span) -> None:
        try:
            self._export(span)
        except Exception:  # whoever records must not bring down what is recorded
            log.exception("a span could not be exported")


class Handled:
    """The span of a handler that runs."""

    def __init__(self, tracer: Tracer, own: Parent, sender: Parent | None, context: Context) -> None:
        self._tracer = tracer
        self.own = own
        self._sender = sender
        self._context = context
        self.on_end: Callable[[], None] = lambda: None
        self._began = time.time()

    def ended(self, message_type: str, error: BaseException | None = None) -> None:
        """The handler is done."""
        self.on_end()
        if not self.own.sampled:
            return
        context = self._context
        attributes: dict[str, str | float] = {
            "messaging.system": "nats",
            "messaging.message.id": context.message_id,
            "agentmesh.agent": context.agent,
            "agentmesh.sender": context.sender,
            "queue_seconds": round(context.queued, 6),
        }
        if context.task_id:
            attributes["agentmesh.task"] = context.task_id
        span = Span(
            f"{context.agent} {message_type}",
            "consumer",
            self.own.trace_id,
            self.own.span_id,
            _id(self._sender),
            self._began,
            time.time(),
            attributes,
            [self._sender.span_id] if self._sender else [],
            "" if error is None else f"{type(error).__name__}: {error}",
            context.tracestate,
        )
        self._tracer._finish(span)


def _id(parent: Parent | None) -> str:
    return parent.span_id if parent is not None else ""


def make_tracer(to: To) -> Tracer | None:
    """The tracer of that name; None for `off`.

    Raises:
        MissingExtraError: `otel` is not installed.
    """
    if to == "off":
        return None
    if to == "log":
        return Tracer(lambda span: log.info("%s", span.name, extra={"span": asdict(span)}))
    try:
        import_module("opentelemetry.sdk.trace")
    except ImportError:
        raise MissingExtraError("opentelemetry-sdk", "otel") from None
    tracer: Tracer = import_module("agentmesh.otel").make()
    return tracer
