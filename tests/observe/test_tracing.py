"""One trace over all hops, whoever began it, and spans for those who want them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh import Agent, Context, Event, Mesh, Request, Task, TaskContext, connect, handler
from agentmesh.broker import EmbeddedBroker
from agentmesh.codec import Envelope
from agentmesh.context import current
from agentmesh.ids import new_id
from agentmesh.logs import JsonFormatter, about
from agentmesh.tooling import tool
from agentmesh.tools.executor import ToolExecutor
from agentmesh.trace import adopt, parse, trace_id_of
from agentmesh.tracing import Span, Tracer
from agentmesh.transport import Message, TransportOptions
from tests.harness.waiting import eventually

FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = FOREIGN.split("-")[1]

log = logging.getLogger("test.trace")


class Hop(Request[list[str]]):
    """Each hop says its trace id, and asks the next one."""

    to: list[str]


class Work(Task[str]): ...


class Mail(Event, durable=True): ...


class Hopper(Agent):
    seen: asyncio.Queue[Any]

    @handler
    async def hop(self, request: Hop, ctx: Context) -> list[str]:
        log.warning("hop at %s", self.name)
        rest = await self.mesh.ask(request.to[0], Hop(to=request.to[1:])) if request.to else []
        return [ctx.trace_id, *rest]

    @handler
    async def work(self, task: Work, ctx: TaskContext) -> str:
        await self.mesh.tell("a", Mail())
        return ctx.trace_id

    @handler
    async def mail(self, event: Mail, ctx: Context) -> None:
        type(self).seen.put_nowait(ctx)


class Lines(logging.Handler):
    """JSON lines, formatted where they are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter("acme"))
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def lines() -> Iterator[Lines]:
    found = Lines()
    log.addHandler(found)
    yield found
    log.removeHandler(found)


async def hoppers(mesh: Mesh) -> None:
    Hopper.seen = asyncio.Queue()
    for name in "abc":
        await mesh.spawn(Hopper, name=name)


@pytest.mark.seed("A26", "A30")
async def test_three_hops_have_one_trace_id_in_context_logs_and_results(mesh: Mesh, lines: Lines) -> None:
    await hoppers(mesh)

    ids = await mesh.ask("a", Hop(to=["b", "c"]))

    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert parse(f"00-{ids[0]}-b7ad6b7169203331-01") is not None
    assert [(line["trace_id"], line["agent"], line["tenant"]) for line in lines.lines] == [
        (ids[0], name, "acme") for name in "abc"
    ]
    assert len({line["message_id"] for line in lines.lines}) == 3
    assert all(line["queue_seconds"] >= 0 for line in lines.lines)


@pytest.mark.seed("A26")
async def test_the_trace_of_a_foreign_client_is_continued_whatever_it_sends(mesh: Mesh) -> None:
    await hoppers(mesh)
    subject = mesh.subjects.mailbox("a")
    document = {"message_type": "Hop", "content": {"to": ["b", "c"]}}
    for name in ("traceparent", "Traceparent"):
        reply = await mesh.transport.request(
            subject, json.dumps(document).encode(), timeout=10, headers={name: FOREIGN, "tracestate": "v=1"}
        )
        assert json.loads(reply.data)["content"] == [TRACE] * 3
    reply = await mesh.transport.request(subject, json.dumps({**document, "traceparent": FOREIGN}).encode(), timeout=10)
    assert json.loads(reply.data)["content"] == [TRACE] * 3


@pytest.mark.seed("A26")
async def test_a_task_through_the_door_keeps_its_trace_and_hands_it_on(mesh: Mesh) -> None:
    await hoppers(mesh)
    body = {"task_id": "t-1", "agent_id": "b", "task_type": "Work", "parameters": {}}
    headers = {"traceparent": FOREIGN, "baggage": "user=ada"}
    await mesh.transport.publish_durable(mesh.subjects.task_door(), json.dumps(body).encode(), headers=headers)

    assert await mesh.job("t-1", Work).result(timeout=20) == TRACE
    async with asyncio.timeout(20):
        mail = await Hopper.seen.get()
    assert (mail.trace_id, mail.traceparent, mail.baggage) == (TRACE, FOREIGN, "user=ada")
    stored = await mesh.transport.last_message("RESULTS", mesh.subjects.result("t-1"))
    assert stored is not None
    assert json.loads(stored.data)["trace_id"] == TRACE


@pytest.fixture
async def traced(nats_server: EmbeddedBroker) -> AsyncIterator[tuple[Mesh, list[Span]]]:
    """A mesh that traces, and its spans."""
    async with connect(nats_server.url, tenant=f"test-{new_id()}") as mesh:
        spans: list[Span] = []
        mesh.transport.tracer = Tracer(spans.append)
        yield mesh, spans


@pytest.mark.seed("B47", "A26")
async def test_sending_and_handling_are_spans_that_are_linked_and_queue_time_lies_between(
    traced: tuple[Mesh, list[Span]],
) -> None:
    mesh, spans = traced
    await hoppers(mesh)
    (trace_id, _) = await mesh.ask("a", Hop(to=["b"]))

    outer, inner = [span for span in spans if span.kind == "client"][::-1]
    first, second = [span for span in spans if span.kind == "consumer"][::-1]
    assert {span.trace_id for span in spans} == {trace_id}
    assert (outer.parent_id, first.parent_id, inner.parent_id) == ("", outer.span_id, first.span_id)
    assert (second.parent_id, second.links) == (inner.span_id, [inner.span_id])
    assert (outer.name, first.name, second.name) == ("a Hop", "a Hop", "b Hop")
    assert outer.started_at <= first.started_at <= first.ended_at <= outer.ended_at
    assert float(first.attributes["queue_seconds"]) >= 0


@pytest.mark.seed("B47")
async def test_tasks_and_durable_events_are_spans_of_the_same_trace(traced: tuple[Mesh, list[Span]]) -> None:
    mesh, spans = traced
    await hoppers(mesh)
    trace_id = await (await mesh.submit(Work(), to="b")).result()
    async with asyncio.timeout(20):
        await Hopper.seen.get()
    await eventually(lambda: len(spans) == 4)
    assert {span.trace_id for span in spans} == {trace_id}
    kinds = {(span.name, span.kind): span for span in spans}
    submitted, worked = kinds["b Work", "producer"], kinds["b Work", "consumer"]
    told, handled = kinds["a Mail", "producer"], kinds["a Mail", "consumer"]
    assert (worked.parent_id, told.parent_id, handled.links) == (submitted.span_id, worked.span_id, [told.span_id])


@pytest.mark.seed("A26")
async def test_headers_are_written_when_somebody_traces_and_never_else(
    mesh: Mesh, traced: tuple[Mesh, list[Span]]
) -> None:
    for sender in (mesh, traced[0]):
        came: asyncio.Queue[Message] = asyncio.Queue()
        await sender.transport.subscribe(sender.subjects.mailbox("x"), came.put_nowait)
        await sender.tell("x", Plain())
        async with asyncio.timeout(10):
            message = await came.get()
        if sender is mesh:
            assert message.headers is None
            assert b"traceparent" not in message.data
        else:
            assert message.headers is not None
            assert parse(message.headers["traceparent"]) is not None


class Plain(Event): ...


async def test_who_began_the_trace_decides_whether_it_is_recorded(traced: tuple[Mesh, list[Span]]) -> None:
    mesh, spans = traced
    await hoppers(mesh)
    document = json.dumps({"message_type": "Hop", "content": {"to": ["b"]}}).encode()
    headers = {"traceparent": FOREIGN[:-1] + "0"}
    await mesh.transport.request(mesh.subjects.mailbox("a"), document, timeout=10, headers=headers)
    assert spans == []


@pytest.mark.seed("A26")
async def test_spans_go_to_opentelemetry_and_those_of_the_handler_belong_to_them(nats_server: EmbeddedBroker) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    if not isinstance(trace.get_tracer_provider(), sdk.TracerProvider):
        trace.set_tracer_provider(sdk.TracerProvider())
    trace.get_tracer_provider().add_span_processor(export.SimpleSpanProcessor(exporter))

    class Own(Agent):
        @handler
        async def hop(self, request: Hop, ctx: Context) -> list[str]:
            with trace.get_tracer("mine").start_as_current_span("inside"):
                return [ctx.trace_id]

    options = TransportOptions(nats_server.url, tracing="otel")
    async with connect(nats_server.url, tenant=f"test-{new_id()}", transport=options) as mesh:
        await mesh.spawn(Own)
        (trace_id,) = await mesh.ask("own", Hop(to=[]))

    spans = {(span.name, span.kind.name): span for span in exporter.get_finished_spans()}
    inside, handled, asked = spans["inside", "INTERNAL"], spans["own Hop", "CONSUMER"], spans["own Hop", "CLIENT"]
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {trace_id}
    assert inside.parent.span_id == handled.context.span_id
    assert handled.parent.span_id == asked.context.span_id


async def test_spans_can_be_lines_of_the_log(nats_server: EmbeddedBroker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agentmesh.trace")
    options = TransportOptions(nats_server.url, tracing="log")
    async with connect(nats_server.url, tenant=f"test-{new_id()}", transport=options) as mesh:
        await hoppers(mesh)
        await mesh.ask("a", Hop(to=[]))
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if hasattr(record, "span")]
    assert [line["span"]["kind"] for line in lines] == ["consumer", "client"]


@given(st.text(max_size=60) | st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?\Z"))
def test_what_is_no_traceparent_is_ignored(text: str) -> None:
    envelope = Envelope("m", "Note", trace_id="mine")
    adopt(envelope, {"traceparent": text, "tracestate": "a=1", "baggage": "x\ny"})
    parent = parse(text.strip())
    assert envelope.baggage == ""
    assert envelope.trace_id == ("mine" if parent is None else parent.trace_id)
    assert bool(envelope.traceparent) == (parent is not None) == bool(envelope.tracestate)


@given(st.text(min_size=1, max_size=80))
def test_every_message_id_makes_a_trace_id_and_ours_stay_legible(message_id: str) -> None:
    assert parse(f"00-{trace_id_of(message_id)}-b7ad6b7169203331-01") is not None
    ours = new_id()
    assert trace_id_of(ours).endswith(ours)


@pytest.mark.seed("A30")
def test_a_line_for_programs_says_when_what_where_and_about_whom(lines: Lines) -> None:
    with about(tenant="other", request_id="r-1"):
        log.warning("text with \n and %s", "arguments")
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("failed")
    first, second = lines.lines
    assert first.pop("ts").endswith("Z")
    assert first == {
        "level": "WARNING",
        "logger": "test.trace",
        "message": "text with \n and arguments",
        "tenant": "other",
        "request_id": "r-1",
    }
    assert "ValueError: wrong" in second["traceback"]
    assert current() is None


class Shout(Request[str]): ...


class Caller(Agent):
    @handler
    async def shout(self, request: Shout, ctx: Context) -> str:
        await self.tools.call("loud", text="a")
        return ctx.trace_id


@tool(isolation="async")
async def loud(text: str) -> str:
    """Says it, and logs it."""
    log.warning("shouting")
    return text.upper()


@pytest.mark.seed("A26", "A30")
async def test_what_a_tool_logs_belongs_to_the_trace_of_who_called_it(mesh: Mesh, lines: Lines) -> None:
    async with ToolExecutor(mesh.transport, mesh.subjects, [loud]):
        await mesh.spawn(Caller)
        trace_id = await mesh.ask("caller", Shout())
    (line,) = lines.lines
    assert (line["trace_id"], line["tool"], line["agent"]) == (trace_id, "loud", "caller")
