"""Spans for OpenTelemetry: the bridge from `tracing` to its SDK. Imported only with `tracing = "otel"`.

They go to the processors of the program's own `TracerProvider`, if it has set one; else to an OTLP exporter, which
reads `$OTEL_EXPORTER_OTLP_ENDPOINT` and the other variables of OpenTelemetry. While a handler runs, its span is the
current one of OpenTelemetry, so that spans of libraries and of user code belong to it.
"""

from __future__ import annotations

import atexit

from opentelemetry import context as otel_context
from opentelemetry import trace as api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from agentmesh.context import Context
from agentmesh.errors import MissingExtraError
from agentmesh.trace import Parent
from agentmesh.tracing import Handled, Span, Tracer
from agentmesh.version import __version__

_KINDS = {"producer": SpanKind.PRODUCER, "client": SpanKind.CLIENT, "consumer": SpanKind.CONSUMER}
_SCOPE = InstrumentationScope("agentmesh", __version__)


class OtelTracer(Tracer):
    """Hands spans to a processor of OpenTelemetry.

    Args:
        processor: What becomes of them.
        resource: Of which program they are.
    """

    def __init__(self, processor: SpanProcessor, resource: Resource) -> None:
        super().__init__(lambda span: processor.on_end(_readable(span, resource)))

    def received(self, context: Context) -> Handled:
        handled = super().received(context)
        current = NonRecordingSpan(_context(handled.own, context.tracestate))
        token = otel_context.attach(api.set_span_in_context(current))
        handled.on_end = lambda: otel_context.detach(token)
        return handled


def make() -> Tracer:
    """The tracer of this process.

    Raises:
        MissingExtraError: There is no exporter.
    """
    provider = api.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise MissingExtraError("opentelemetry-exporter-otlp-proto-http", "otel") from None
        provider = TracerProvider(resource=Resource.create({"service.name": "agentmesh"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        api.set_tracer_provider(provider)
        atexit.register(provider.shutdown)
    # The SDK has no public way to hand over a span that is over, with the ids it was sent under.
    return OtelTracer(provider._active_span_processor, provider.resource)


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    own = Parent(span.trace_id, span.span_id, "01")
    parent = Parent(span.trace_id, span.parent_id, "01") if span.parent_id else None
    links = [Link(_context(Parent(span.trace_id, link, "01"))) for link in span.links]
    return ReadableSpan(
        span.name,
        _context(own, span.tracestate),
        _context(parent) if parent else None,
        resource,
        dict(span.attributes),
        links=links,
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=int(span.started_at * 1e9),
        end_time=int(span.ended_at * 1e9),
        instrumentation_scope=_SCOPE,
    )


def _context(parent: Parent, tracestate: str = "") -> SpanContext:
    return SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=False,
        trace_flags=TraceFlags(int(parent.flags, 16) & 1),
        trace_state=TraceState.from_header([tracestate] if tracestate else []),
    )
