"""Replayable streams: in order, without gap or repetition, live and later."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from agentmesh.errors import InvalidMessageError, PayloadTooLargeError
from agentmesh.streams import STREAM, StreamEvent, Streams, StreamWriter
from tests.harness import Server
from tests.tasks.conftest import Stage


async def values(events: AsyncIterator[StreamEvent]) -> list[object]:
    return [event.value() async for event in events]


async def fill(writer: StreamWriter, count: int) -> None:
    for number in range(count):
        await writer.append("text", number)
    await writer.append("finish", "")
    await writer.flush()


def is_end(event: StreamEvent) -> bool:
    return event.type == "finish"


@pytest.fixture
async def streams(stage: Stage) -> Streams:
    await stage.client.ensure()
    return Streams(stage.transport, stage.subjects)


async def test_a_stream_that_does_not_exist_is_empty(streams: Streams) -> None:
    assert await values(streams.events("none", follow=False)) == []


async def test_what_was_appended_is_read_in_order(streams: Streams) -> None:
    await fill(streams.writer("s"), 3000)

    assert await values(streams.events("s", until=is_end)) == [*range(3000), ""]


async def test_readers_that_join_in_the_middle_miss_nothing(streams: Streams) -> None:
    writer = streams.writer("s")
    readers = [asyncio.create_task(values(streams.events("s", until=is_end)))]
    for number in range(200):
        await writer.append("text", number)
        if number % 40 == 0:
            await writer.flush()
            readers.append(asyncio.create_task(values(streams.events("s", until=is_end))))
    await writer.append("finish", "")
    await writer.flush()

    for reader in readers:
        assert await asyncio.wait_for(reader, 5) == [*range(200), ""]


async def test_events_that_come_fast_are_stored_together_and_a_lone_one_at_once(stage: Stage, streams: Streams) -> None:
    await fill(streams.writer("fast"), 2000)
    counts = await stage.transport.subjects_of(STREAM, stage.subjects.stream("fast"))
    assert sum(counts.values()) < 200

    reading = streams.events("slow")
    waiting = asyncio.ensure_future(anext(reading))
    await streams.writer("slow").append("text", "one")
    assert (await asyncio.wait_for(waiting, 1.0)).value() == "one"
    await reading.aclose()


async def test_a_reader_goes_on_where_it_stopped(streams: Streams) -> None:
    writer = streams.writer("s")
    for number in range(20):
        await writer.append("text", number)
        await writer.flush()
    seen: list[object] = []
    start = 1

    while len(seen) < 20:
        events = streams.events("s", start)
        async for event in events:
            seen.append(event.value())
            start = event.sequence + 1
            if len(seen) % 3 == 0:
                break
        await events.aclose()
        if len(seen) == 18:
            seen += await values(streams.events("s", start, follow=False))

    assert seen == list(range(20))


async def test_d9_a_reader_slower_than_the_stream_gets_everything(
    stage: Stage, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.streams.follow.WAITING", 50)
    writer = streams.writer("s")
    events = streams.events("s", until=is_end)
    first = asyncio.ensure_future(anext(events))
    await writer.append("text", 0)
    await writer.flush()
    seen = [(await first).value()]
    for number in range(1, 300):
        await writer.append("text", number)
        await writer.flush()  # each in a message of its own, while the reader stands still
    await writer.append("finish", "")
    await writer.flush()

    seen += await values(events)

    assert seen == [*range(300), ""]


async def test_a_lost_live_message_is_read_from_the_store(stage: Stage, streams: Streams) -> None:
    writer = streams.writer("s")
    await fill_one(writer, 0)
    events = streams.events("s", until=is_end)
    assert (await anext(events)).value() == 0
    (subscription,) = [one for one in stage.transport.connection._subscriptions if ".live." in one.subject]
    hear, lost = subscription.callback, itertools.count()
    nc = stage.transport.connection.nc
    nc._sinks[subscription._live._id] = lambda message: hear(message) if next(lost) else None  # type: ignore[union-attr]

    for number in (1, 2):
        await fill_one(writer, number)
    await writer.append("finish", "")

    assert await values(events) == [1, 2, ""]


async def fill_one(writer: StreamWriter, number: int) -> None:
    await writer.append("text", number)
    await writer.flush()


async def test_two_writers_share_a_stream(streams: Streams) -> None:
    first, second = streams.writer("s"), streams.writer("s")
    await first.append("text", "a")
    await first.flush()
    await second.append("text", "b")
    await second.flush()
    await first.append("finish", "")

    events = [event async for event in streams.events("s", until=is_end)]

    assert [event.value() for event in events] == ["a", "b", ""]
    assert events[0].writer == events[2].writer != events[1].writer


async def test_f2_a_stream_survives_the_death_of_the_server(own: Stage, server: Server) -> None:
    await own.client.ensure()
    streams = Streams(own.transport, own.subjects)
    reading = asyncio.create_task(values(streams.events("s", until=is_end)))
    writer = streams.writer("s")
    for number in range(100):
        await writer.append("text", number)
        if number == 50:
            await writer.flush()
            server.kill9()
            await server.start()
    await writer.append("finish", "")
    await writer.flush()

    assert await asyncio.wait_for(reading, 15) == [*range(100), ""]


async def test_what_is_no_json_and_what_is_too_large_is_refused(streams: Streams) -> None:
    writer = streams.writer("s")

    with pytest.raises(InvalidMessageError):
        await writer.append("text", object())
    with pytest.raises(PayloadTooLargeError):
        await writer.append("text", "x" * 600_000)
    await fill(writer, 1)

    assert await values(streams.events("s", until=is_end)) == [0, ""]


async def test_a_foreign_message_in_a_stream_is_passed_over(stage: Stage, streams: Streams) -> None:
    await stage.transport.publish_durable(stage.subjects.stream("s"), b"\xff\xfe")
    await fill(streams.writer("s"), 1)

    assert await values(streams.events("s", until=is_end)) == [0, ""]
