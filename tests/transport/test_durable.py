"""Durable publishes and reading what is stored."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from agentmesh.errors import (
    BrokerError,
    ConnectionClosedError,
    PayloadTooLargeError,
    PublishTimeoutError,
    SequenceConflictError,
    StreamFullError,
)
from agentmesh.transport import StreamSpec, Transport, TransportOptions
from tests.harness import Server, TcpProxy
from tests.transport.conftest import Connect
from tests.transport.tools import Received, States, echo

EVENTS = StreamSpec("EVENTS", ("events.>",))


async def test_a_confirmed_publish_is_stored_and_its_id_stores_it_once(transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)

    first = await transport.publish_durable("events.a", b"x", msg_id="id-1")
    again = await transport.publish_durable("events.a", b"x", msg_id="id-1")

    assert (first.stream, first.sequence, first.duplicate) == ("EVENTS", 1, False)
    assert (again.sequence, again.duplicate) == (1, True)


async def test_the_callers_headers_are_stored_and_left_alone(transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)
    headers = {"X-Kind": "test"}

    await transport.publish_durable("events.a", b"x", headers=headers, msg_id="1", expect_last=0)

    assert headers == {"X-Kind": "test"}
    stored = await transport.last_message("EVENTS", "events.a")
    assert stored is not None
    assert stored.headers["X-Kind"] == "test"
    assert stored.time.tzinfo is not None
    assert abs(stored.time.timestamp() - time.time()) < 60


async def test_the_first_of_50_writers_wins(transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)

    outcomes = await asyncio.gather(
        *(transport.publish_durable("events.slot", b"%d" % i, expect_last=0) for i in range(50)), return_exceptions=True
    )

    lost = [outcome for outcome in outcomes if type(outcome) is SequenceConflictError]
    assert len(lost) == 49


async def test_a_full_stream_refuses_and_a_large_message_is_called_large(transport: Transport) -> None:
    spec = StreamSpec("Q", ("q.>",), retention="workqueue", discard_new_per_subject=True, max_msgs_per_subject=2,
                      max_msg_size=1000)  # fmt: skip
    await transport.ensure_stream(spec)
    await transport.publish_durable("q.a", b"1")
    await transport.publish_durable("q.a", b"2")

    with pytest.raises(StreamFullError, match=r"'q\.a' takes no more messages"):
        await transport.publish_durable("q.a", b"3")
    await transport.publish_durable("q.neighbour", b"1")
    with pytest.raises(PayloadTooLargeError, match="over the limit of 1000"):
        await transport.publish_durable("q.b", b"x" * 1100)


async def test_what_is_no_stream_is_not_taken_for_a_confirmation(transport: Transport) -> None:
    await echo(transport, "events.impostor")

    with pytest.raises(BrokerError, match="not a stream"):
        await transport.publish_durable("events.impostor", b"x")


async def test_without_a_stream_the_fate_is_unknown_after_the_timeout(transport: Transport) -> None:
    start = time.monotonic()

    with pytest.raises(PublishTimeoutError, match="repeat it with the same id"):
        await transport.publish_durable("nowhere", b"x", timeout=0.5)

    assert time.monotonic() - start < 1


async def test_a_publish_waits_for_a_stream_that_comes(transport: Transport) -> None:
    publishing = asyncio.create_task(transport.publish_durable("events.early", b"x"))
    await asyncio.sleep(0.05)

    await transport.ensure_stream(EVENTS)

    assert (await publishing).sequence == 1


async def test_lost_confirmations_store_every_message_once(proxy: TcpProxy, connect: Connect) -> None:
    transport = await connect(proxy.url)
    await transport.ensure_stream(EVENTS)
    seen = 0

    def third(frame: bytes) -> bool:
        nonlocal seen
        if frame.startswith((b"MSG _INBOX", b"HMSG _INBOX")):
            seen += 1
            return seen % 3 == 0
        return False

    proxy.drop = third
    acks = await asyncio.gather(*(transport.publish_durable(f"events.{i}", b"x") for i in range(30)))
    proxy.drop = None

    assert proxy.dropped > 5
    assert sorted(ack.sequence for ack in acks) == list(range(1, 31))
    info = await transport.stream_info("EVENTS")
    assert info is not None
    assert info.messages == 30


async def test_a_write_whose_confirmation_was_lost_does_not_conflict_with_itself(
    proxy: TcpProxy, connect: Connect
) -> None:
    transport = await connect(proxy.url)
    await transport.ensure_stream(EVENTS)
    dropped = 0

    def first(frame: bytes) -> bool:
        nonlocal dropped
        if b"EVENTS" in frame and dropped == 0:
            dropped += 1
            return True
        return False

    proxy.drop = first
    ack = await transport.publish_durable("events.slot", b"mine", msg_id="me", expect_last=0)

    assert dropped == 1
    assert (ack.sequence, ack.duplicate) == (1, True)
    with pytest.raises(SequenceConflictError):
        await transport.publish_durable("events.slot", b"other", msg_id="other", expect_last=0)


async def test_confirmed_messages_survive_kill_9_under_load_and_none_is_stored_twice(
    server: Server, transport: Transport
) -> None:
    await transport.ensure_stream(EVENTS)
    acknowledged: list[int] = []

    async def write(writer: int) -> None:
        for i in range(60):
            ack = await transport.publish_durable(f"events.{writer}", b"%d" % i)
            acknowledged.append(ack.sequence)

    writing = asyncio.gather(*(write(n) for n in range(8)))
    for _ in range(2):
        await asyncio.sleep(0.3)
        server.kill9()
        await server.start()
    await writing

    info = await transport.stream_info("EVENTS")
    assert info is not None
    assert info.messages == 8 * 60
    assert len(set(acknowledged)) == 8 * 60


async def test_a_publish_during_an_outage_is_confirmed_soon_after_it(server: Server, transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)
    states = States(transport)
    server.kill9()
    await states.reach("reconnecting")
    publishing = [asyncio.create_task(transport.publish_durable("events.a", b"x")) for _ in range(3)]
    await asyncio.sleep(0)

    await server.start()
    start = time.monotonic()

    assert sorted(ack.sequence for ack in await asyncio.gather(*publishing)) == [1, 2, 3]
    assert time.monotonic() - start < 2


async def test_after_closing_everything_fails_at_once(server: Server) -> None:
    transport = await Transport.connect(TransportOptions(url=server.url))
    await transport.ensure_stream(EVENTS)
    server.pause()
    waiting = asyncio.create_task(transport.publish_durable("events.a", b"x"))
    await asyncio.sleep(0)
    await transport.close()
    server.resume()
    start = time.monotonic()

    with pytest.raises(ConnectionClosedError):
        await waiting
    with pytest.raises(ConnectionClosedError):
        await transport.publish_durable("events.a", b"x")
    with pytest.raises(ConnectionClosedError):
        await transport.publish_durable("events.a", b"x", bulk=True)
    with pytest.raises(ConnectionClosedError):
        await transport.last_message("EVENTS", "events.a")
    with pytest.raises(ConnectionClosedError):
        await transport.ensure_stream(EVENTS)

    assert time.monotonic() - start < 0.5


async def test_more_publishes_than_the_window_all_get_through_and_cancelled_ones_give_their_place_back(
    transport: Transport,
) -> None:
    await transport.ensure_stream(EVENTS)
    tasks = [asyncio.create_task(transport.publish_durable("events.a", b"x")) for _ in range(2000)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()

    await asyncio.gather(*tasks[::2], return_exceptions=True)
    await asyncio.gather(*tasks[1::2])

    assert transport._publisher._free == 256
    assert transport.connection.inbox.pending == 0


async def test_the_bulk_line_is_a_connection_of_its_own(server: Server, transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)

    acks = await asyncio.gather(*(transport.publish_durable("events.a", b"x", bulk=True) for _ in range(10)))

    assert len(acks) == 10
    names = [connection["name"] for connection in (await server.monitor("connz"))["connections"]]
    assert sorted(names) == ["agentmesh", "agentmesh/bulk"]


async def test_stored_messages_are_read_by_subject_and_sequence(transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)
    for i in range(1, 31):
        await transport.publish_durable(f"events.{i % 3}", b"%d" % i, headers={"Status": "404", "X-I": str(i)})
    await transport.delete_message("EVENTS", 6)
    await transport.delete_message("EVENTS", 6)

    zero = await transport.messages("EVENTS", "events.0")
    some = await transport.messages("EVENTS", "events.*", start=10, limit=5)
    last = await transport.last_message("EVENTS", "events.2")

    assert [m.sequence for m in zero] == [3, 9, 12, 15, 18, 21, 24, 27, 30]
    assert [(m.sequence, m.data, m.headers["Status"]) for m in some] == [(i, b"%d" % i, "404") for i in range(10, 15)]
    assert last is not None
    assert (last.sequence, last.subject, last.headers["X-I"]) == (29, "events.2", "29")
    assert await transport.messages("EVENTS", "events.0", start=31) == []
    assert await transport.messages("EVENTS", "events.none") == []
    assert await transport.last_message("EVENTS", "events.none") is None
    assert await transport.get_message("EVENTS", 6) is None
    assert (await transport.get_message("EVENTS", 7)).data == b"7"  # type: ignore[union-attr]


async def test_a_long_read_is_complete_although_the_broker_sends_it_in_parts(transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)
    body = b"x" * 500_000
    await asyncio.gather(*(transport.publish_durable("events.big", body) for _ in range(80)))

    messages = await transport.messages("EVENTS", "events.big", limit=500)

    assert [m.sequence for m in messages] == list(range(1, 81))


async def test_pages_begin_small_and_hold_a_bounded_number_of_bytes(transport: Transport) -> None:
    """A reader of a long stream of large messages must not hold all of it."""
    await transport.ensure_stream(EVENTS)
    body = b"x" * 300_000
    await asyncio.gather(*(transport.publish_durable("events.big", body) for _ in range(60)))

    pages = [page async for page in transport.pages("EVENTS", "events.big", start=3)]
    none = [page async for page in transport.pages("EVENTS", "events.none")]

    assert [m.sequence for page in pages for m in page] == list(range(3, 61))
    assert len(pages[0]) <= 8
    assert max(sum(len(m.data) for m in page) for page in pages) <= 2 * 1024 * 1024 + len(body)
    assert none == []


async def test_pages_may_be_left_before_their_end(transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)
    await asyncio.gather(*(transport.publish_durable("events.a", b"x") for _ in range(30)))
    before = asyncio.all_tasks()
    async with aclosing(transport.pages("EVENTS", "events.a")) as pages:
        assert len(await anext(pages)) == 8
    assert asyncio.all_tasks() == before


async def test_reading_waits_for_a_server_that_restarts(server: Server, transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)
    await transport.publish_durable("events.a", b"x")
    server.kill9()
    reading = [
        asyncio.create_task(transport.messages("EVENTS", "events.a")),
        asyncio.create_task(transport.messages("EVENTS", "events.>")),
    ]
    last = asyncio.create_task(transport.last_message("EVENTS", "events.a"))

    await server.start()

    assert [[m.data for m in messages] for messages in await asyncio.gather(*reading)] == [[b"x"], [b"x"]]
    assert (await last).data == b"x"  # type: ignore[union-attr]


async def test_purging_counts_and_leaves_other_subjects(transport: Transport) -> None:
    await transport.ensure_stream(EVENTS)
    for i in range(6):
        await transport.publish_durable(f"events.{i % 2}", b"x")

    assert await transport.purge("EVENTS", "events.0") == 3
    assert await transport.subjects_of("EVENTS", "events.*") == {"events.1": 3}


async def test_a_republished_message_carries_its_sequence(transport: Transport) -> None:
    received = Received()
    await transport.subscribe("live.*", received)
    await transport.ensure_stream(StreamSpec("LIVE", ("stored.*",), republish=("stored.*", "live.{{wildcard(1)}}")))

    await transport.publish_durable("stored.a", b"x")

    (message,) = await received.count(1)
    assert message.headers is not None
    assert (message.headers["Nats-Subject"], message.headers["Nats-Sequence"]) == ("stored.a", "1")


async def test_a_deleted_stream_is_made_again_while_others_are_asked_for(connect: Connect, server: Server) -> None:
    transport, admin = await connect(server.url), await connect(server.url)
    await transport.ensure_stream(EVENTS)
    await admin.delete_stream("EVENTS")

    async def ask_for_others() -> None:
        for number in range(20):
            await transport.ensure_stream(StreamSpec(f"OTHER{number}", (f"other{number}.>",)))

    ack, _ = await asyncio.gather(transport.publish_durable("events.a", b"x"), ask_for_others())

    assert ack.stream == "EVENTS"
