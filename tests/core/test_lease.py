"""Leases on a real broker, with holders that are killed, frozen, cut off and robbed."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from agentmesh.errors import ConfigError
from agentmesh.ids import new_id
from agentmesh.lease import Lease, clock, holders
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import LEASES
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Process, Server, TcpProxy, eventually
from tests.harness.fixtures import SpawnProcess

Open = Callable[..., Awaitable[Transport]]

SLACK = 1.5
"""Seconds that a busy machine may add."""

HOLDER = """
import asyncio, sys
from agentmesh.lease import Lease, clock
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport, TransportOptions

async def main(url, ttl):
    def gained():
        print("gained", lease.token, flush=True)
    def lost(reason):
        print("lost", clock(), reason, flush=True)
    async with await Transport.connect(TransportOptions(url=url)) as transport:
        async with Lease(transport, Subjects(), "it", ttl=float(ttl), on_gained=gained, on_lost=lost) as lease:
            while True:
                if lease.held:
                    print("act", clock(), flush=True)
                await asyncio.sleep(0.02)

asyncio.run(main(*sys.argv[1:]))
"""


def acts(process: Process) -> list[float]:
    """When the process acted as the holder; the clock is that of the machine."""
    return [float(line.split()[1]) for line in process.lines if line.startswith("act ")]


@pytest.fixture
async def connect() -> AsyncIterator[Open]:
    opened: list[Transport] = []

    async def open_one(url: str) -> Transport:
        opened.append(await Transport.connect(TransportOptions(url=url)))
        return opened[-1]

    yield open_one
    for transport in opened:
        await transport.close()


async def test_one_has_it_and_when_it_lets_go_the_next_one_takes_it_at_once(server: Server, connect: Open) -> None:
    subjects, told = Subjects(), list[str]()
    first = Lease(await connect(server.url), subjects, "it", ttl=30, about="the first", on_lost=told.append)
    second = Lease(await connect(server.url), subjects, "it", ttl=30)
    await first.start()
    token = await first.gained()
    async with second:
        found = (await holders(await connect(server.url), subjects))["it"]
        assert (found.about, found.token, found.ttl) == ("the first", token, 30.0)
        assert not second.held

        began = clock()
        await first.stop()
        async with asyncio.timeout(10):
            assert await second.gained() > token

        assert clock() - began < 0.5 + SLACK
        assert not first.held
        assert told == ["let go"]


@pytest.mark.slow
async def test_a_killed_holder_is_replaced_within_ttl_and_half_a_second(
    server: Server, connect: Open, spawn_process: SpawnProcess
) -> None:
    holder = await spawn_process(HOLDER, server.url, "1")
    await holder.line_matching("act", nth=30)
    lease = Lease(await connect(server.url), Subjects(), "it", ttl=1)
    async with lease:
        holder.kill9()
        killed = clock()
        token = await asyncio.wait_for(lease.gained(), 10)

        assert clock() - killed < 1.5 + SLACK
        assert token > int((await holder.line_matching(r"gained (\d+)"))[1])


async def test_a_frozen_holder_finds_its_next_renewal_refused_and_never_acted_beside_its_successor(
    server: Server, connect: Open, spawn_process: SpawnProcess
) -> None:
    frozen = await spawn_process(HOLDER, server.url, "1")
    await frozen.line_matching("act", nth=30)
    standby = await spawn_process(HOLDER, server.url, "1")

    frozen.pause()
    await standby.line_matching("act", nth=50)  # a second or more, after the one that the lease took to end
    frozen.resume()
    resumed = clock()
    lost = await frozen.line_matching(r"lost ([\d.]+) (.*)")
    acted = len(acts(standby))
    await standby.line_matching("act", nth=acted + 20)

    assert float(lost[1]) - resumed < SLACK
    assert "gained" not in "\n".join(frozen.lines[2:])
    assert max(acts(frozen)) < min(acts(standby))


async def test_the_renewal_after_somebody_else_took_it_is_refused(server: Server, connect: Open) -> None:
    transport, told = await connect(server.url), list[str]()
    lost = asyncio.Event()

    def on_lost(reason: str) -> None:
        told.append(reason)
        lost.set()

    async with Lease(transport, Subjects(), "it", ttl=1, on_lost=on_lost) as lease:
        await lease.gained()
        thief = b'{"holder": "thief", "since": "2026-01-01T00:00:00Z", "host": "elsewhere", "pid": 7}'
        await transport.publish_durable(Subjects().lease("it"), thief, headers={"Nats-TTL": "1s"})
        await asyncio.wait_for(lost.wait(), 10)

        assert told == ["the renewal was refused: pid 7 on elsewhere has it"]
        assert not lease.held
        await asyncio.wait_for(lease.gained(), 10)  # when the other one's has ended


@pytest.mark.slow
async def test_a_holder_that_is_cut_off_stops_before_its_lease_ends_and_comes_back(
    server: Server, connect: Open
) -> None:
    async with TcpProxy(server.port) as proxy:
        lost = asyncio.Event()
        lease = Lease(await connect(proxy.url), Subjects(), "it", ttl=2, on_lost=lambda reason: lost.set())
        watcher = await connect(server.url)
        async with lease:
            first = await lease.gained()
            proxy.blackhole()
            await asyncio.wait_for(lost.wait(), 10)
            still = await watcher.last_message(LEASES.name, Subjects().lease("it"))
            proxy.restore()

            assert still is not None  # nobody else could have had it while this one acted
            assert await asyncio.wait_for(lease.gained(), 20) > first


async def test_a_lease_survives_a_broker_that_is_killed(server: Server, connect: Open) -> None:
    async with Lease(await connect(server.url), Subjects(), "it", ttl=5) as lease:
        first = await lease.gained()
        server.kill9()
        await server.start()

        async with asyncio.timeout(20):
            assert await lease.gained() >= first
            other = Lease(await connect(server.url), Subjects(), "other", ttl=1)
            async with other:
                assert await other.gained() > first  # sequences go on


async def test_no_two_of_many_contenders_act_at_once(server: Server, connect: Open) -> None:
    chance = random.Random(7)
    subjects, transport = Subjects(), await connect(server.url)
    spans: list[tuple[int, float, float]] = []

    async def contend(turns: int) -> None:
        for _ in range(turns):
            async with Lease(transport, subjects, "it", ttl=2) as lease:
                token, began = await lease.gained(), clock()
                await asyncio.sleep(chance.uniform(0.0, 0.05))
                spans.append((token, began, clock()))

    async with asyncio.timeout(60):
        await asyncio.gather(*(contend(3) for _ in range(5)))

    spans.sort()
    assert len({token for token, _, _ in spans}) == 15
    assert all(end <= began for (_, _, end), (_, began, _) in itertools.pairwise(spans))


async def test_a_crowd_is_let_in_one_by_one_and_nothing_of_it_stays(server: Server, connect: Open) -> None:
    transport = await connect(server.url)
    async with Lease(transport, Subjects(), new_id(), ttl=1):
        pass

    async def none() -> bool:
        return not await holders(transport, Subjects())

    await eventually(none, what="no lease is left")


@pytest.mark.parametrize("ttl", [0.5, 1.5, 0, -1])
async def test_a_ttl_the_broker_cannot_count_is_refused(server: Server, connect: Open, ttl: float) -> None:
    with pytest.raises(ConfigError, match="whole seconds, 1 or more"):
        Lease(await connect(server.url), Subjects(), "it", ttl=ttl)


async def test_a_lease_that_is_refused_says_why_and_is_had_when_that_ends(
    server: Server, connect: Open, caplog: pytest.LogCaptureFixture
) -> None:
    transport = await connect(server.url)
    await transport.ensure_stream(dataclasses.replace(LEASES, retention="workqueue"))
    async with Lease(transport, Subjects(), "it", ttl=1) as lease:
        await eventually(lambda: lease.problem, what="it is refused")
        assert "retention" in lease.problem
        assert "lease it cannot be had" in caplog.text

        await transport.delete_stream(LEASES.name)
        async with asyncio.timeout(10):
            await lease.gained()
        assert lease.problem == ""
