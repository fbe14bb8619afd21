"""Readers: replay from anywhere, then live, without gap and without repetition, whoever else reads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from agentmesh import Mesh, connect
from agentmesh.errors import InvalidMessageError, StreamGapError, StreamIdleError
from agentmesh.metrics import metrics_of
from agentmesh.streams import STREAM, Chunk
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server, eventually

SOON = 10.0


async def texts(chunks: AsyncIterator[Chunk]) -> list[str]:
    return [chunk.content async for chunk in chunks]


async def say(mesh: Mesh, chat: str, words: list[str], *, each: bool = False, role: str = "assistant") -> None:
    """A finished run; `each` stores every word in a message of its own."""
    async with mesh.streams.run(chat, role=role) as run:
        for word in words:
            await run.send(word)
            if each:
                await run.flush()
        await run.finish()


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.seed("D2", "D17")
async def test_reading_starts_at_every_offset(mesh: Mesh, chat: str) -> None:
    await say(mesh, chat, numbers(40))
    await say(mesh, chat, [str(number) for number in range(41, 60)], each=True)

    for offset in range(61):
        chunks = [chunk async for chunk in mesh.streams.read(chat, from_offset=offset, follow=False)]
        assert [chunk.offset for chunk in chunks] == list(range(offset, 61))


@pytest.mark.seed("D2")
async def test_an_offset_is_found_in_a_few_gets_however_long_the_conversation(
    mesh: Mesh, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.streams.reading._NEAR", 2)
    draw = random.Random(3)
    other = mesh.streams.run(f"{chat}-other")
    async with mesh.streams.run(chat) as run:
        for number in range(600):  # uneven messages, between those of another conversation
            await run.send(str(number))
            if draw.random() < 0.4:
                await run.flush()
                for _ in range(draw.choice([0, 0, 1, 5])):
                    await other.send("noise")
                    await other.flush()
        await run.finish()
    gets: list[int] = []
    messages = mesh.transport.messages

    async def counting(*arguments: object, **options: object) -> object:
        gets.append(1)
        return await messages(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mesh.transport, "messages", counting)

    most = 0
    for offset in draw.sample(range(600), 60):
        gets.clear()
        chunk = await anext(mesh.streams.read(chat, from_offset=offset, follow=False))
        assert (chunk.offset, chunk.content) == (offset, str(offset))
        most = max(most, len(gets))
    assert most < 25


@pytest.mark.seed("D2")
async def test_reading_goes_on_behind_every_cursor(mesh: Mesh, chat: str) -> None:
    await say(mesh, chat, numbers(30))
    whole = [chunk async for chunk in mesh.streams.read(chat, follow=False)]

    for chunk in whole:
        rest = [one async for one in mesh.streams.read(chat, cursor=chunk.cursor, follow=False)]
        assert rest == whole[chunk.offset + 1 :]
    for cursor in ("x", "1", "-1-2", "1-2-3", "9" * 50):
        with pytest.raises(InvalidMessageError):
            await anext(mesh.streams.read(chat, cursor=cursor))


@pytest.mark.seed("D3")
async def test_reading_takes_nothing_away(mesh: Mesh, chat: str) -> None:
    await say(mesh, chat, numbers(20))

    first = await texts(mesh.streams.read(chat, to_end=True))
    second = await texts(mesh.streams.read(chat, to_end=True))

    assert first == second == [*numbers(20), ""]


@pytest.mark.seed("D6")
async def test_f1_readers_that_join_at_any_moment_miss_nothing_and_see_nothing_twice(mesh: Mesh, chat: str) -> None:
    words, draw = 4000, random.Random(11)
    readers: list[asyncio.Task[list[int]]] = []

    async def read(offset: int) -> list[int]:
        return [chunk.offset async for chunk in mesh.streams.read(chat, from_offset=offset, one_run=True)]

    joins = sorted(draw.sample(range(words), 50))
    wanted: list[int] = []
    async with mesh.streams.run(chat) as run:
        for number in range(words):
            await run.send(str(number))
            while joins and joins[0] == number:
                joins.pop(0)
                wanted.append(draw.randint(0, number))
                readers.append(asyncio.create_task(read(wanted[-1])))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await run.finish()

    async with asyncio.timeout(30):
        for offset, reader in zip(wanted, readers, strict=True):
            assert await reader == list(range(offset, words + 1))


@pytest.mark.seed("D7")
async def test_fifty_readers_get_the_same_bytes(mesh: Mesh, chat: str) -> None:
    async def read() -> bytes:
        return b"\n".join([chunk.to_json() async for chunk in mesh.streams.read(chat, one_run=True)])

    readers = [asyncio.create_task(read()) for _ in range(50)]
    await say(mesh, chat, numbers(300), each=True)

    async with asyncio.timeout(30):
        copies = {await reader for reader in readers}
    assert len(copies) == 1
    assert copies.pop().count(b"\n") == 300


async def test_a_conversation_is_waited_for(mesh: Mesh, chat: str) -> None:
    reading = asyncio.create_task(texts(mesh.streams.read(chat, one_run=True)))
    await say(mesh, chat, ["Hello"])

    assert await asyncio.wait_for(reading, SOON) == ["Hello", ""]


@pytest.mark.seed("D10")
@pytest.mark.parametrize("kind", ["finish", "error", "cancelled"])
async def test_every_terminal_kind_ends_the_reading_of_a_run_but_not_of_a_conversation(
    mesh: Mesh, chat: str, kind: str
) -> None:
    async with mesh.streams.run(chat) as run:
        await run.send("one")
        await run.send("end", type=kind)
    await say(mesh, chat, ["two"])

    assert await texts(mesh.streams.read(chat, one_run=True)) == ["one", "end"]
    assert await texts(mesh.streams.read(chat, run_id=run.run_id)) == ["one", "end"]
    assert await texts(mesh.streams.read(chat, to_end=True)) == ["one", "end", "two", ""]


async def test_one_run_passes_over_what_the_user_said(mesh: Mesh, chat: str) -> None:
    await say(mesh, chat, ["question"], role="user")
    await say(mesh, chat, ["answer"])

    assert await texts(mesh.streams.read(chat, one_run=True)) == ["answer", ""]


@pytest.mark.seed("D9")
async def test_silence_ends_the_reading_if_wanted(mesh: Mesh, chat: str) -> None:
    reading = mesh.streams.read(chat, idle_timeout=0.2)
    with pytest.raises(StreamIdleError):
        await anext(reading)

    async with mesh.streams.run(chat) as run:
        await run.send("Hel")
        reading = mesh.streams.read(chat, idle_timeout=0.2)
        assert (await anext(reading)).content == "Hel"
        with pytest.raises(StreamIdleError):
            await anext(reading)
        await run.finish()


async def test_a_slow_reader_loses_nothing_and_slows_nobody(
    mesh: Mesh, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.streams.follow.WAITING", 20)
    slow = mesh.streams.read(chat, one_run=True)
    first = asyncio.ensure_future(anext(slow))
    async with mesh.streams.run(chat) as run:
        await run.send("0")
        await run.flush()
        seen = [(await first).content]
        for number in range(1, 200):
            await run.send(str(number))
            await run.flush()  # each in a message of its own, while the reader stands still
        await run.finish()
    assert await texts(mesh.streams.read(chat, one_run=True)) == [*numbers(200), ""]

    seen += await texts(slow)

    assert seen == [*numbers(200), ""]


@pytest.mark.seed("D8")
async def test_one_conversation_is_purged_and_the_others_stay(mesh: Mesh, chat: str) -> None:
    for name in (chat, f"{chat}-2"):
        await say(mesh, name, ["Hello"])

    assert await mesh.streams.purge(chat) > 0

    assert await texts(mesh.streams.read(chat, follow=False)) == []
    assert await texts(mesh.streams.read(f"{chat}-2", follow=False)) == ["Hello", ""]
    await say(mesh, chat, ["again"])
    assert [chunk.offset async for chunk in mesh.streams.read(chat, follow=False)] == [0, 1]


async def test_a_run_goes_on_when_its_conversation_is_purged_and_so_does_its_reader(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat) as run:
        await run.send("one")
        await run.flush()
        reading = mesh.streams.read(chat, one_run=True)
        assert (await anext(reading)).content == "one"
        await mesh.streams.purge(chat)
        await run.send("two")
        await run.finish()

    assert [(chunk.offset, chunk.content) async for chunk in reading] == [(1, "two"), (2, "")]


@pytest.mark.seed("D8")
async def test_what_is_not_kept_any_more_is_passed_over_and_told_by_the_offset(mesh: Mesh, chat: str) -> None:
    await say(mesh, chat, numbers(5), each=True)
    first = [stored.sequence for stored in await mesh.transport.messages(STREAM, mesh.subjects.stream(chat))][:3]
    cursor = (await anext(mesh.streams.read(chat))).cursor
    for sequence in first:
        await mesh.transport.delete_message(STREAM, sequence)

    for reading in (
        mesh.streams.read(chat, follow=False),
        mesh.streams.read(chat, from_offset=1, follow=False),
        mesh.streams.read(chat, cursor=cursor, follow=False),
    ):
        assert [chunk.offset async for chunk in reading] == [3, 4, 5]


async def test_a_hole_in_what_is_kept_is_noticed(mesh: Mesh, chat: str) -> None:
    await say(mesh, chat, numbers(5), each=True)
    stored = await mesh.transport.messages(STREAM, mesh.subjects.stream(chat))
    await mesh.transport.delete_message(STREAM, stored[2].sequence)

    with pytest.raises(StreamGapError):
        await texts(mesh.streams.read(chat, follow=False))


@pytest.mark.seed("D4")
async def test_what_other_programs_write_is_read_and_counted(mesh: Mesh, chat: str) -> None:
    subject = mesh.subjects.stream(chat)
    seed = b'{"id":"a","conversation_id":"c","content":"Hi","type":"text","timestamp":"2024-01-01T00:00:00.000001"}'
    for body in (
        seed,
        b"\xff",
        b"[]",
        b"7",
        b'{"type":"step"}',
        b'[{"content":"x"},{"type":"poem","content":{"a":1},"role":3}]',
    ):
        await mesh.transport.publish_durable(subject, body)
    await say(mesh, chat, ["Hello"])
    await mesh.transport.publish_durable(subject, b'{"content":"y","type":"finish"}')

    chunks = [chunk async for chunk in mesh.streams.read(chat, follow=False)]

    assert [(chunk.offset, chunk.type, chunk.content) for chunk in chunks] == [
        *((0, "text", "Hi"), (1, "text", "x"), (2, "poem", ""), (3, "text", "Hello"), (4, "finish", "")),
        (5, "finish", "y"),
    ]
    assert (chunks[0].timestamp.isoformat(), chunks[2].data) == ("2024-01-01T00:00:00.000001+00:00", {"a": 1})
    hostile = f'{{"id":"w-{"9" * 5000}","type":[],"offset":1e300,"content":"z"}}'
    await mesh.transport.publish_durable(f"{subject}-2", hostile.encode())
    assert await texts(mesh.streams.read(f"{chat}-2", follow=False)) == ["z"]
    assert [event async for event in mesh.streams.events(f"{chat}-2", follow=False)] == []
    for chunk in chunks:
        rest = mesh.streams.read(chat, cursor=chunk.cursor, follow=False)
        assert [one.offset async for one in rest] == list(range(chunk.offset + 1, 6))


async def test_reading_to_the_end_is_not_held_up_by_what_other_programs_left_open(mesh: Mesh, chat: str) -> None:
    subject = mesh.subjects.stream(chat)
    await mesh.transport.publish_durable(subject, b'{"content":"x"}')
    reading = asyncio.create_task(texts(mesh.streams.read(chat, to_end=True)))
    await mesh.transport.publish_durable(subject, b'{"content":"","type":"finish"}')
    assert await asyncio.wait_for(reading, SOON) == ["x", ""]

    await mesh.transport.publish_durable(subject, b'{"content":"left open"}')
    await say(mesh, chat, ["Hello"])

    async with asyncio.timeout(SOON):
        assert await texts(mesh.streams.read(chat, to_end=True)) == ["x", "", "left open", "Hello", ""]


async def test_the_state_of_conversations(mesh: Mesh, chat: str) -> None:
    assert await mesh.streams.state(chat) is None
    await say(mesh, chat, numbers(5))
    async with mesh.streams.run(f"{chat}-2") as run:
        await run.send("open")
        await run.flush()
        await say(mesh, f"{chat}-2", ["meanwhile"], role="user")

        state = await mesh.streams.state(f"{chat}-2")
        assert state is not None
        assert (state.chunks, state.first_offset, state.last_offset, state.open_runs) == (3, 0, 2, (run.run_id,))
        assert [one.conversation_id for one in await mesh.streams.ls()] == [f"{chat}-2", chat]
        assert [one.conversation_id for one in await mesh.streams.ls(1)] == [f"{chat}-2"]
        await run.finish()


@pytest.mark.seed("D1", "D26")
async def test_a_phone_that_was_offline_goes_on_where_it_was(mesh: Mesh, chat: str) -> None:
    text, cursor = "", ""
    async with mesh.streams.run(chat) as run:
        await run.send("Once upon ")
        await run.flush()
        reading = mesh.streams.read(chat)
        chunk = await anext(reading)
        text, cursor = text + chunk.content, chunk.cursor
        await reading.aclose()  # gone: the train is in a tunnel
        for number in range(500):
            await run.send(f"{number} ")
        await run.finish()
    await say(mesh, chat, ["And then?"], role="user")
    await say(mesh, chat, ["The end."])

    async with connect(mesh.url, tenant=mesh.subjects.tenant) as again:
        rest = await texts(again.streams.read(chat, cursor=cursor, to_end=True))

    assert [text, *rest] == await texts(mesh.streams.read(chat, follow=False))
    assert len(rest) == 505


@pytest.mark.seed("D5", "D6")
async def test_a_stream_of_100000_tokens_is_complete(mesh: Mesh, chat: str) -> None:
    async def count() -> list[int]:
        return [chunk.offset async for chunk in mesh.streams.read(chat, one_run=True)]

    live = asyncio.create_task(count())
    async with mesh.streams.run(chat) as run:
        for _ in range(100_000):
            await run.send("token ")
        await run.finish()

    async with asyncio.timeout(60):
        assert await live == await count() == list(range(100_001))


@pytest.mark.slow
@pytest.mark.seed("D6", "D8")
async def test_a_stream_of_100000_tokens_is_complete_with_one_in_each_message(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat) as run:
        for _ in range(100_000):
            await run.send("token ")
            await run.flush()
        await run.finish()

    assert [chunk.offset async for chunk in mesh.streams.read(chat, follow=False)] == list(range(100_001))
    for offset in (1, 49_999, 77_777, 100_000):
        assert (await anext(mesh.streams.read(chat, from_offset=offset))).offset == offset


@pytest.mark.seed("D27")
async def test_what_a_process_does_with_streams_is_counted(mesh: Mesh, chat: str) -> None:
    def figures() -> list[float]:
        names = ("chunks_stored_total", "chunks_read_total", "producers", "readers", "backlog_messages")
        found = {family.name: family.samples[0].value for family in metrics_of(mesh.transport).families()}
        return [found[f"agentmesh_conversation_{name}"] for name in names]

    async with mesh.streams.run(chat) as run:
        await run.send("Hel")
        await run.flush()
        reading = mesh.streams.read(chat)
        await anext(reading)
        assert figures() == [1, 1, 1, 1, 0]
        await run.finish()
        await eventually(lambda: figures()[-1] == 1, SOON, what="it was heard")
    await reading.aclose()
    assert figures() == [2, 1, 0, 0, 0]


@pytest.mark.seed("D1", "D3")
async def test_f2_a_server_killed_in_the_middle_changes_nothing_of_the_text(server: Server, chat: str) -> None:
    async with connect(server.url) as mesh:
        reading = asyncio.create_task(texts(mesh.streams.read(chat, one_run=True)))
        async with mesh.streams.run(chat) as run:
            for number in range(100):
                await run.send(str(number))
                if number == 50:
                    await run.flush()
                    server.kill9()
                    await server.start()
            await run.finish()

        assert await asyncio.wait_for(reading, 30) == [*numbers(100), ""]
        assert await texts(mesh.streams.read(chat, to_end=True)) == [*numbers(100), ""]
        await eventually(lambda: mesh.transport.is_connected, SOON, what="the connection is back")


async def test_d6_a_conversation_goes_on_when_an_administrator_deletes_the_stream(server: Server, chat: str) -> None:
    async with connect(server.url) as mesh, await Transport.connect(TransportOptions(url=server.url)) as admin:
        async with mesh.streams.run(chat) as run:
            await run.send("before")
            await run.flush()
            reading = mesh.streams.read(chat, one_run=True)
            assert (await anext(reading)).content == "before"

            await admin.delete_stream(STREAM)
            async with asyncio.timeout(SOON):
                await run.send("after")
                await run.finish()
                assert await texts(reading) == ["after", ""]

        assert await texts(mesh.streams.read(chat, to_end=True)) == ["after", ""]
