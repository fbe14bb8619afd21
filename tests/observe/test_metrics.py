"""Figures: counted, put together from all processes, and read by an independent parser."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentmesh import Agent, AgentRef, Event, Mesh, Request, Task, handler
from agentmesh.agent import CellOptions
from agentmesh.errors import DefinitionError
from agentmesh.metrics import Family, Metrics, Sample, collect, gather, metrics_of, render, serve
from agentmesh.metrics.mesh import METRICS
from agentmesh.metrics.registry import MOST_LABELS
from agentmesh.tooling import tool
from agentmesh.tools.executor import ToolExecutor


class Note(Event):
    text: str


class Ping(Request[str]):
    text: str


class Count(Task[int]):
    text: str


class Held(Event): ...


class Worker(Agent):
    def __init__(self) -> None:
        self.gate = asyncio.Event()

    @handler
    async def note(self, event: Note) -> None: ...

    @handler
    async def ping(self, request: Ping) -> str:
        if request.text == "bad":
            raise ValueError("bad")
        return request.text

    @handler
    async def count(self, task: Count) -> int:
        return len(task.text)


class Stuck(Agent):
    """Holds its first message until it is let go, so that others wait."""

    let_go: asyncio.Event

    @handler
    async def held(self, event: Held) -> None:
        await type(self).let_go.wait()


@tool
async def shout(text: str) -> str:
    """Say it loud."""
    return text.upper()


def read(text: str) -> dict[str, list[Any]]:
    """Samples by name, as prometheus_client reads them."""
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def value(samples: Iterable[Any], **labels: str) -> float:
    """The only sample with these labels."""
    (one,) = [sample for sample in samples if labels.items() <= sample.labels.items()]
    return float(one.value)


@pytest.mark.seed("A29", "B52")
async def test_all_figures_of_a_mesh_are_read_by_the_parser_of_prometheus(
    mesh: Mesh, spawn: Callable[..., Awaitable[AgentRef]]
) -> None:
    worker = await spawn(Worker)
    assert await worker.ask(Ping(text="hi")) == "hi"
    with pytest.raises(Exception, match="bad"):
        await worker.ask(Ping(text="bad"))
    assert await (await mesh.submit(Count(text="four"), to="worker")).result() == 4
    await mesh.submit(Count(text="nobody takes it"), to="elsewhere", task_id="waits")
    await mesh.memory("notes").put("a", {"b": 1})

    found = read(await collect(mesh.transport, mesh.subjects))

    assert value(found["agentmesh_handled_total"], agent="worker") == 2
    assert value(found["agentmesh_failed_total"], agent="worker") == 1
    assert value(found["agentmesh_restarts_total"], agent="worker") == 0
    assert value(found["agentmesh_in_flight"], agent="worker") == 0
    assert value(found["agentmesh_agent_state"], agent="worker", state="ready") == 1
    assert value(found["agentmesh_handling_seconds_count"], agent="worker") == 2
    assert value(found["agentmesh_queue_seconds_count"], agent="worker", kind="message") == 2
    assert value(found["agentmesh_queue_seconds_count"], agent="worker", kind="task") == 1
    assert value(found["agentmesh_task_queue_messages"], agent="elsewhere", priority="normal") == 1
    assert value(found["agentmesh_task_queue_lag"], agent="elsewhere", priority="normal") == 1
    assert value(found["agentmesh_broker_state"], state="connected") == 1
    assert value(found["agentmesh_broker_reconnects_total"]) == 0
    assert value(found["agentmesh_service_requests_total"], service="memory", endpoint="put") == 1
    assert value(found["agentmesh_stream_messages"], stream="TASKS") >= 1
    assert value(found["process_resident_memory_bytes"]) > 1_000_000
    assert {sample.labels["process"] for sample in found["agentmesh_info"]} == {mesh.identity}


@pytest.mark.seed("B52")
async def test_the_depth_of_every_mailbox_is_a_figure(mesh: Mesh, spawn: Callable[..., Awaitable[AgentRef]]) -> None:
    Stuck.let_go = asyncio.Event()
    stuck = await spawn(Stuck, options=CellOptions(mailbox_size=3))
    for _ in range(3):
        await stuck.tell(Held(), timeout=5)

    found = read(await collect(mesh.transport, mesh.subjects))
    Stuck.let_go.set()

    assert value(found["agentmesh_mailbox_messages"], agent="stuck") == 2
    assert value(found["agentmesh_in_flight"], agent="stuck") == 1
    assert value(found["agentmesh_mailbox_capacity"], agent="stuck") == 3


async def test_calls_of_tools_are_counted_where_they_run(mesh: Mesh) -> None:
    async with ToolExecutor(mesh.transport, mesh.subjects, [shout]):
        assert await mesh.tools.call("shout", text="a") == "A"
        with pytest.raises(Exception, match="text"):
            await mesh.tools.call("shout", wrong=1)
    found = read(metrics_text(metrics_of(mesh.transport)))
    assert value(found["agentmesh_tool_seconds_count"], tool="shout") == 2
    assert value(found["agentmesh_tool_failures_total"], tool="shout") == 1


def metrics_text(metrics: Metrics) -> str:
    return render(metrics.families())


@pytest.mark.seed("A29")
async def test_a_plain_nats_client_gets_the_text_of_a_process(mesh: Mesh) -> None:
    await mesh.spawn(Worker)
    reply = await mesh.transport.request(mesh.subjects.control(METRICS), b"", timeout=5)
    found = read(reply.data.decode())
    assert value(found["agentmesh_mailbox_messages"], agent="worker", process=mesh.identity) == 0


async def test_processes_of_one_name_are_told_apart_and_large_answers_come_in_parts(mesh: Mesh) -> None:
    metrics = metrics_of(mesh.transport)
    for number in range(MOST_LABELS):
        metrics.gauge("wide", "Wide.", label=f"{number}-{'x' * 1_000}").set(number)
    subject = mesh.subjects.control(METRICS)
    subscriptions = [await serve(mesh.transport, subject, "same") for _ in range(2)]

    reports = await gather(mesh.transport, mesh.subjects)
    found = read(await collect(mesh.transport, mesh.subjects))

    assert [report.process for report in reports] == ["same", "same"]
    for report in reports:
        assert sum(len(family.samples) for family in report.families if family.name == "wide") == MOST_LABELS
    assert {sample.labels["process"] for sample in found["wide"]} == {f"same@{reports[0].host}:{reports[0].pid}"}
    for subscription in subscriptions:
        assert subscription is not None
        await subscription.unsubscribe()


def test_figures_are_written_as_prometheus_wants_them() -> None:
    metrics = Metrics()
    metrics.counter("orders_total", 'Of "all"\nshops.', shop='a"b\\c\nd').inc(3)
    metrics.gauge("level", "Now.").set(-1.5)
    histogram = metrics.histogram("seconds", "How long.", bounds=(0.1, 1.0), kind="x")
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    found = read(metrics_text(metrics))
    assert value(found["orders_total"], shop='a"b\\c\nd') == 3
    assert value(found["level"]) == -1.5
    assert [sample.value for sample in found["seconds_bucket"]] == [2, 3, 4]
    assert value(found["seconds_sum"]) == pytest.approx(7.65)
    assert (histogram.count, histogram.quantile(0.5), histogram.quantile(0.99)) == (4, 0.1, float("inf"))


def test_a_name_that_cannot_be_or_means_two_things_is_refused() -> None:
    metrics = Metrics()
    metrics.counter("a_total", "A.", x="1")
    wrongs: list[Callable[[], object]] = [
        lambda: metrics.counter("a", "No _total."),
        lambda: metrics.gauge("1a", "A digit first."),
        lambda: metrics.gauge("b", "A label of ours.", process="p"),
        lambda: metrics.gauge("a_total", "Another kind.", x="1"),
        lambda: metrics.counter("a_total", "Other labels.", y="1"),
    ]
    for wrong in wrongs:
        with pytest.raises(DefinitionError):
            wrong()


def test_labels_without_end_and_a_failing_source_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    for number in range(MOST_LABELS + 50):
        metrics.counter("a_total", "A.", user=number).inc()

    def broken() -> list[Family]:
        raise RuntimeError("broken")

    stop = metrics.add_source(broken)
    metrics.add_source(lambda: [Family("b", "gauge", "B.", [Sample({}, 1.0)])])
    (a, b) = metrics.families()
    assert len(a.samples) == MOST_LABELS + 1
    assert a.samples[-1] == Sample({"user": "(other)"}, 50.0)
    assert b.samples == [Sample({}, 1.0)]
    assert "a source of metrics failed" in caplog.text
    stop()
    caplog.clear()
    metrics.families()
    assert not caplog.records
