"""Pulling work from durable consumers, and settling it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from agentmesh.errors import ConsumerGoneError
from agentmesh.transport import ConsumerSpec, Delivery, PullConsumer, StreamSpec, Transport
from tests.harness import Server, TcpProxy, eventually
from tests.transport.conftest import Connect
from tests.transport.tools import Received, States

TASKS = StreamSpec("TASKS", ("tasks.*",), retention="workqueue")
WORKERS = ConsumerSpec("TASKS", "workers", ("tasks.a",), ack_wait=2.0)


async def queue(transport: Transport, spec: ConsumerSpec = WORKERS) -> PullConsumer:
    await transport.ensure_stream(TASKS)
    await transport.ensure_consumer(spec)
    pull = transport.pull(spec.stream, spec.name)
    await pull.start()
    return pull


async def fill(transport: Transport, bodies: Sequence[bytes]) -> None:
    for body in bodies:
        await transport.publish_durable("tasks.a", body)


async def filled(transport: Transport, bodies: Sequence[bytes]) -> None:
    """Like `fill`; returns when the consumer has counted them, which the broker does a moment after it confirms."""
    await fill(transport, bodies)

    async def counted() -> bool:
        info = await transport.consumer_info("TASKS", "workers")
        return info is not None and info.pending == len(bodies)

    await eventually(counted)


async def next_one(pull: PullConsumer, timeout: float = 10.0) -> Delivery:
    """Arm and wait for one delivery."""
    pull.arm(1)
    async with asyncio.timeout(timeout):
        while True:
            pull.ready.clear()
            if deliveries := pull.received():
                return deliveries[0]
            await pull.ready.wait()


async def test_taking_gives_what_is_there_in_order_and_knows_when_it_is_all(transport: Transport) -> None:
    pull = await queue(transport)
    await filled(transport, [b"%d" % i for i in range(7)])
    start = time.monotonic()

    first = await pull.take(3)
    rest = await pull.take(100)

    assert time.monotonic() - start < 0.2
    assert [d.data for d in first + rest] == [b"%d" % i for i in range(7)]
    assert [(d.subject, d.attempt, d.sequence, d.pending) for d in first] == [
        ("tasks.a", 1, i, 7 - i) for i in (1, 2, 3)
    ]


async def test_pulling_before_start_says_what_is_missing(transport: Transport) -> None:
    with pytest.raises(RuntimeError, match=r"call start\(\)"):
        await transport.pull("TASKS", "workers").take(1)


async def test_taking_from_an_empty_queue_gives_nothing_soon(transport: Transport) -> None:
    pull = await queue(transport)
    start = time.monotonic()

    assert await pull.take(10) == []

    assert time.monotonic() - start < 0.3


async def test_taking_redeliveries_gives_all_of_them(transport: Transport) -> None:
    pull = await queue(transport)
    await fill(transport, [b"1", b"2", b"3", b"4"])
    for delivery in await pull.take(4):
        await transport.nak(delivery)

    again: list[Delivery] = []
    async with asyncio.timeout(5):
        while len(again) < 4:  # the broker works naks off beside pulls, so one look may come too early for some
            again += await pull.take(10)

    assert sorted((d.data, d.attempt) for d in again) == [(b"1", 2), (b"2", 2), (b"3", 2), (b"4", 2)]


async def test_a_consumer_at_its_limit_gives_what_is_left_and_no_more_later(transport: Transport) -> None:
    pull = await queue(transport, ConsumerSpec("TASKS", "two", ("tasks.a",), max_ack_pending=2))
    await fill(transport, [b"1", b"2", b"3"])

    assert [d.data for d in await pull.take(3)] == [b"1", b"2"]
    assert await pull.take(3) == []
    info = await transport.consumer_info("TASKS", "two")
    assert info is not None
    assert (info.waiting, info.ack_pending, info.pending) == (0, 2, 1)


async def test_many_takers_share_a_queue_without_losing_or_doubling(server: Server, connect: Connect) -> None:
    setup = await connect(server.url)
    await queue(setup)
    await asyncio.gather(*(setup.publish_durable("tasks.a", b"%d" % i) for i in range(500)))
    got: list[bytes] = []

    async def work() -> None:
        transport = await connect(server.url)
        pull = transport.pull("TASKS", "workers")
        await pull.start()
        while deliveries := await pull.take(7):
            for delivery in deliveries:
                assert await transport.ack(delivery)
                got.append(delivery.data)

    await asyncio.gather(*(work() for _ in range(4)))

    assert sorted(got, key=int) == [b"%d" % i for i in range(500)]


async def test_a_message_put_while_armed_arrives_at_once_and_only_as_many_as_asked_for(transport: Transport) -> None:
    pull = await queue(transport)
    pull.arm(2)
    assert pull.armed
    assert pull.received() == []
    start = time.monotonic()

    await fill(transport, [b"1", b"2", b"3"])
    await eventually(lambda: not pull.armed)

    assert time.monotonic() - start < 0.5
    assert [d.data for d in pull.received()] == [b"1", b"2"]
    info = await transport.consumer_info("TASKS", "workers")
    assert info is not None
    assert info.pending == 1


async def test_a_waiting_pull_outlives_its_expiry_without_being_doubled(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.transport.pull.EXPIRES", 1.1)
    pull = await queue(transport)
    pull.arm(1)
    await eventually(lambda: pull._waiting._count >= 3, what="the pull was renewed twice")

    await fill(transport, [b"1", b"2"])
    await asyncio.wait_for(pull.ready.wait(), 2)

    assert [d.data for d in pull.received()] == [b"1"]
    assert not pull.armed


async def test_several_queues_can_wake_one_worker(transport: Transport) -> None:
    await transport.ensure_stream(TASKS)
    ready = asyncio.Event()
    pulls = []
    for name in ("a", "b"):
        await transport.ensure_consumer(ConsumerSpec("TASKS", name, (f"tasks.{name}",)))
        pull = transport.pull("TASKS", name, ready=ready)
        await pull.start()
        pull.arm()
        pulls.append(pull)

    await transport.publish_durable("tasks.b", b"x")
    await asyncio.wait_for(ready.wait(), 2)

    assert [len(pull.received()) for pull in pulls] == [0, 1]


@pytest.mark.parametrize("status", ["100", "404", "408", "409", "500", "503"])
async def test_d4_a_users_status_header_does_not_hide_a_task(transport: Transport, status: str) -> None:
    pull = await queue(transport)
    headers = {"Status": status, "Description": "Consumer Deleted"}
    await transport.publish_durable("tasks.a", b"", headers=headers)
    await transport.publish_durable("tasks.a", b"after")

    taken = await pull.take(2)

    assert [d.data for d in taken] == [b"", b"after"]
    assert taken[0].headers is not None
    assert taken[0].headers["Status"] == status


@pytest.mark.parametrize("stop", ["kill9", "terminate"])
async def test_d5_an_open_pull_hears_of_new_work_soon_after_a_restart(
    server: Server, transport: Transport, connect: Connect, stop: str
) -> None:
    pull = await queue(transport)
    pull.arm(1)
    if stop == "kill9":
        server.kill9()
    else:
        await server.terminate()
    await server.start()
    start = time.monotonic()
    other = await connect(server.url)
    await other.publish_durable("tasks.a", b"new")

    await asyncio.wait_for(pull.ready.wait(), 10)

    assert time.monotonic() - start < 1.5
    assert [d.data for d in pull.received()] == [b"new"]
    assert not pull.armed


async def test_d5_a_lost_pull_is_renewed_even_if_the_connection_stays(proxy: TcpProxy, connect: Connect) -> None:
    transport = await connect(proxy.url)
    pull = await queue(transport)
    proxy.drop = lambda frame: b" tasks.a " in frame
    pull.arm(1)
    await transport.publish_durable("tasks.a", b"lost on the way")
    await eventually(lambda: proxy.dropped == 1)
    proxy.drop = None

    await asyncio.wait_for(pull.ready.wait(), 8)

    (delivery,) = pull.received()
    assert (delivery.data, delivery.attempt) == (b"lost on the way", 2)


async def test_taking_without_a_connection_ends_at_the_timeout(server: Server, transport: Transport) -> None:
    pull = await queue(transport)
    await fill(transport, [b"1"])
    server.kill9()
    await States(transport).reach("reconnecting")
    start = time.monotonic()

    assert await pull.take(5, timeout=0.3) == []

    assert time.monotonic() - start < 0.5
    await server.start()
    await States(transport).reach("connected")
    assert [d.data for d in await pull.take(5, timeout=5)] == [b"1"]


@pytest.mark.parametrize("how", ["take", "arm"])
async def test_d6_a_deleted_consumer_is_made_again(server: Server, connect: Connect, how: str) -> None:
    transport, admin = await connect(server.url), await connect(server.url)
    pull = await queue(transport)
    if how == "arm":
        pull.arm(1)
    await admin.delete_consumer("TASKS", "workers")
    await fill(admin, [b"after"])
    start = time.monotonic()

    got: list[Delivery] = []
    while not got and time.monotonic() - start < 5:
        if how == "take":
            got = await pull.take(1, timeout=1)
        else:
            got = [await next_one(pull)]

    assert [d.data for d in got] == [b"after"]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("what", ["consumer", "stream"])
async def test_d6_what_cannot_be_made_again_is_reported_not_silent(
    server: Server, connect: Connect, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.transport.pull.EXPIRES", 1.1)
    transport, admin = await connect(server.url), await connect(server.url)
    await queue(admin)
    worker = transport if what == "consumer" else admin
    pull = worker.pull("TASKS", "workers")
    await pull.start()
    pull.arm(1)

    if what == "consumer":
        await admin.delete_consumer("TASKS", "workers")
    else:
        await transport.delete_stream("TASKS")
        worker._mender.streams.clear()  # it was made by somebody else

    with pytest.raises(ConsumerGoneError, match="no consumer 'workers'"):
        await next_one(pull, timeout=15)


async def test_an_ack_is_confirmed_and_final_even_over_kill_9(server: Server, transport: Transport) -> None:
    pull = await queue(transport)
    await fill(transport, [b"%d" % i for i in range(20)])

    assert all([await transport.ack(delivery) for delivery in await pull.take(20)])
    server.kill9()
    await server.start()
    await States(transport).reach("connected")

    info = await transport.stream_info("TASKS")
    assert info is not None
    assert info.messages == 0
    assert await pull.take(20, timeout=3) == []


async def test_an_ack_without_an_answer_is_reported(server: Server, transport: Transport) -> None:
    pull = await queue(transport)
    await fill(transport, [b"1"])
    (delivery,) = await pull.take(1)
    server.pause()
    start = time.monotonic()

    assert not await transport.ack(delivery)

    assert time.monotonic() - start < 3.5
    server.resume()


async def test_a_delayed_nak_comes_back_after_its_delay_as_the_next_attempt(transport: Transport) -> None:
    pull = await queue(transport)
    await fill(transport, [b"1"])
    (delivery,) = await pull.take(1)
    start = time.monotonic()

    await transport.nak(delivery, 0.7)
    again = await next_one(pull)

    assert again.attempt == 2
    assert 0.6 < time.monotonic() - start < 1.5


async def test_in_progress_holds_a_delivery_beyond_its_ack_wait(transport: Transport) -> None:
    pull = await queue(transport, ConsumerSpec("TASKS", "slow", ("tasks.a",), ack_wait=0.6))
    await fill(transport, [b"1"])
    (delivery,) = await pull.take(1)

    for _ in range(6):
        await asyncio.sleep(0.2)
        await transport.in_progress(delivery)
    info = await transport.consumer_info("TASKS", "slow")

    assert info is not None
    assert info.redelivered == 0
    assert (await next_one(pull)).attempt == 2


async def test_a_terminated_delivery_never_comes_back_and_the_reason_is_told(transport: Transport) -> None:
    advisories = Received()
    await transport.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.TASKS.workers", advisories)
    pull = await queue(transport)
    await fill(transport, [b"poison"])
    (delivery,) = await pull.take(1)

    await transport.term(delivery, "it is poison")

    (advisory,) = await advisories.count(1)
    assert b"it is poison" in advisory.data
    assert await pull.take(1) == []


async def test_stopping_gives_back_at_once_what_nobody_got(server: Server, connect: Connect) -> None:
    transport, other = await connect(server.url), await connect(server.url)
    stopping, staying = await queue(transport), await queue(other)
    stopping.arm(3)
    await fill(other, [b"1", b"2"])
    await asyncio.wait_for(stopping.ready.wait(), 2)
    await eventually(lambda: len(stopping._queue) == 2)

    await stopping.stop()
    await fill(other, [b"3"])
    start = time.monotonic()
    got = [(await next_one(staying)).data for _ in range(3)]

    assert sorted(got) == [b"1", b"2", b"3"]
    assert time.monotonic() - start < 1


async def test_a_cancelled_take_loses_nothing(transport: Transport) -> None:
    pull = await queue(transport)
    taking = asyncio.create_task(pull.take(5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait({taking})

    await fill(transport, [b"1", b"2"])
    got = await pull.take(5)
    while len(got) < 2:
        got += await pull.take(5)

    assert [(d.data, d.attempt) for d in got] == [(b"1", 1), (b"2", 1)]


@pytest.mark.parametrize("flag", ["true", "false"])
async def test_d15_both_forms_of_ack_subjects_are_understood(connect: Connect, flag: str) -> None:
    async with Server(extra_config=f"feature_flags {{ js_ack_fc_v2: {flag} }}\n") as server:
        transport = await connect(server.url)
        pull = await queue(transport)
        await filled(transport, [b"1", b"2", b"3"])

        (first,) = await pull.take(1)
        rest = await pull.take(10)
        assert [(d.sequence, d.attempt, d.pending) for d in [first, *rest]] == [(1, 1, 2), (2, 1, 1), (3, 1, 0)]
        assert (len(first.reply.split(".")) > 9) == (flag == "true")
        assert await transport.ack(first)
        await transport.nak(rest[0])
        assert (await next_one(pull)).attempt == 2
        for delivery in rest:
            assert await transport.ack(delivery)

        info = await transport.stream_info("TASKS")
        assert info is not None
        assert info.messages == 0
