"""What about a broker would break a promise is found, and named with its fix."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from agentmesh.brokercheck import Weakness, weaknesses
from agentmesh.streams.positions import CURSORS
from agentmesh.subjects import may_overlap
from agentmesh.tasks.layout import ALERTS, CACHE_LOG, OPERATIONS, SPECS
from agentmesh.transport import StreamSpec, Transport, TransportOptions, streams
from tests.harness import Server

TASKS = next(spec for spec in SPECS if spec.name == "TASKS")


@pytest.fixture
async def transport(server: Server) -> AsyncIterator[Transport]:
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        yield transport


async def look(transport: Transport, server: Server) -> list[Weakness]:
    return await weaknesses(transport, monitor=server.broker.monitor_url)


async def test_a_broker_of_ours_has_no_weakness(transport: Transport, server: Server) -> None:
    for spec in (*SPECS, OPERATIONS, ALERTS, CACHE_LOG, CURSORS):
        await transport.ensure_stream(spec)

    assert await look(transport, server) == []


@pytest.mark.parametrize(("ahead", "says"), [(5.0, "5.0 s ahead of"), (-3.0, "3.0 s behind"), (0.5, "")])
async def test_a_clock_that_differs_from_the_brokers_is_a_weakness(
    transport: Transport, server: Server, monkeypatch: pytest.MonkeyPatch, ahead: float, says: str
) -> None:
    await transport.ensure_stream(TASKS)
    monkeypatch.setattr(streams, "time", SimpleNamespace(time=lambda: time.time() + ahead))

    found = await look(transport, server)

    assert [weakness.what for weakness in found] == (["clock"] if says else [])
    assert not says or says in found[0].says


async def test_without_the_monitoring_page_nobody_knows_whether_it_syncs(transport: Transport) -> None:
    (found,) = await weaknesses(transport)

    assert found.what == "durability"
    assert "broker.monitor" in found.fix


@pytest.mark.parametrize("page", ["http://127.0.0.1:1", "ftp://x", "nonsense"])
async def test_a_monitoring_page_that_cannot_be_read_is_a_weakness(transport: Transport, page: str) -> None:
    (found,) = await weaknesses(transport, monitor=page)

    assert found.what == "durability"
    assert "cannot be read" in found.says


async def test_a_stream_that_was_made_before_the_cluster_was_complete_is_found(server: Server) -> None:
    async with await Transport.connect(TransportOptions(url=server.url)) as early:
        await early.ensure_stream(TASKS)
    async with await Transport.connect(TransportOptions(url=server.url, replicas=3)) as later:
        (found,) = await look(later, server)

    assert found.what == "replicas"
    assert "TASKS" in found.says


async def test_a_smaller_bound_is_found_and_a_larger_one_is_not(transport: Transport, server: Server) -> None:
    await transport.ensure_stream(dataclasses.replace(TASKS, max_bytes=1024 * 1024, max_msg_size=0))

    (found,) = await look(transport, server)

    assert found.what == "limits"
    assert "max_bytes = 1048576" in found.says


@pytest.mark.parametrize("subject", ["ai.agent.message.>", "ai.agent.tools.default.*", "ai.>"])
async def test_a_stream_that_answers_requests_itself_is_found(
    transport: Transport, server: Server, subject: str
) -> None:
    await transport.ensure_stream(StreamSpec("EVERYTHING", (subject,)))

    (found,) = await look(transport, server)

    assert found.what == "streams"
    assert "EVERYTHING" in found.says


async def test_a_queue_that_is_nearly_full_is_found(transport: Transport, server: Server) -> None:
    await transport.ensure_stream(dataclasses.replace(TASKS, max_bytes=100_000))
    await transport.publish_durable("ai.agent.tasks.default", b"x" * 90_000)

    found = await look(transport, server)

    assert [weakness.what for weakness in found] == ["limits", "room"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.*", True),
    ],
)
def test_subjects_overlap_when_one_message_can_be_on_both(one: str, other: str, expected: bool) -> None:
    assert may_overlap(one, other) is expected
    assert may_overlap(other, one) is expected
