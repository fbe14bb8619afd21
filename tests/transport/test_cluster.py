"""A connection to a cluster: which server it goes to, whom it asks for the latest, what a lost quorum means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from agentmesh.chaos import Cluster
from agentmesh.errors import PublishTimeoutError
from agentmesh.transport import StreamSpec, Transport, TransportOptions
from tests.harness import eventually

STREAM = StreamSpec("S", ("s.*",))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as running:
        yield running


@pytest.fixture
async def connected(cluster: Cluster) -> AsyncIterator[Transport]:
    options = TransportOptions(url=cluster.urls, replicas=3)
    async with await Transport.connect(options) as transport:
        yield transport


async def test_a_server_that_was_given_up_is_the_last_one_to_be_tried_again(connected: Transport) -> None:
    nc = connected.connection.nc
    for _ in range(8):
        before, generation = connected.url, connected.connection.generation

        nc.abort()
        await nc.force_reconnect()
        await eventually(partial(came_back, connected, generation))

        assert connected.url != before


def came_back(transport: Transport, after: int) -> bool:
    return transport.is_connected and transport.connection.generation > after


async def test_the_leader_tells_the_latest_of_a_subject(connected: Transport) -> None:
    await connected.ensure_stream(STREAM)
    assert await connected.last_message("S", "s.a", latest=True) is None
    await connected.publish_durable("s.a", b"\x00first", msg_id="1")
    stored = await connected.publish_durable("s.a", b"second", msg_id="2", headers={"X-Note": "a: b"})

    latest = await connected.last_message("S", "s.a", latest=True)

    assert latest is not None
    assert (latest.subject, latest.sequence, latest.data) == ("s.a", stored.sequence, b"second")
    assert latest.headers == {"Nats-Msg-Id": "2", "X-Note": "a: b"}
    plain = await eventually(lambda: connected.last_message("S", "s.a"))
    assert plain == latest


@pytest.mark.slow
async def test_a_publish_without_a_quorum_is_unknown_and_never_refused(cluster: Cluster) -> None:
    async with await Transport.connect(TransportOptions(url=cluster.urls, replicas=3)) as first:
        await first.ensure_stream(STREAM)
        info = await first._api.call("STREAM.INFO.S")
        leader = cluster.named(info["cluster"]["leader"])
    async with await Transport.connect(TransportOptions(url=leader.url, replicas=3)) as transport:
        await transport.publish_durable("s.a", b"1", msg_id="1")
        for server in cluster.servers:
            if server is not leader:
                await asyncio.to_thread(server.kill9)

        with pytest.raises(PublishTimeoutError):
            await transport.publish_durable("s.a", b"2", msg_id="2", timeout=4.5)

        for server in cluster.servers:
            if server is not leader:
                await server.start()
        again = await transport.publish_durable("s.a", b"2", msg_id="2")
        messages = await transport.messages("S", "s.a")
        assert [message.data for message in messages] == [b"1", b"2"]
        assert again.sequence == messages[-1].sequence
