"""Producers: what is sent is stored once, in order, in few messages, and by nobody who was replaced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentmesh import Mesh
from agentmesh.errors import (
    InvalidMessageError,
    PayloadTooLargeError,
    RunCancelledError,
    RunEndedError,
    RunReplacedError,
    SequenceConflictError,
)
from agentmesh.streams import STREAM, Chunk, Run
from agentmesh.transport import Transport
from tests.harness import eventually

SOON = 10.0


async def stored(mesh: Mesh, chat: str) -> list[Chunk]:
    return [chunk async for chunk in mesh.streams.read(chat, follow=False)]


async def produce(run: Run, text: str) -> None:
    """A block that says one thing and waits until it is stored."""
    async with run:
        await run.send(text)
        await run.flush()


@pytest.mark.seed("D5")
async def test_what_is_sent_is_stored_in_order_with_dense_numbers_and_in_few_messages(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat) as run:
        for number in range(3000):
            await run.send(str(number))
        await run.finish()

    chunks = await stored(mesh, chat)
    assert [chunk.content for chunk in chunks] == [*map(str, range(3000)), ""]
    assert [chunk.offset for chunk in chunks] == [chunk.index for chunk in chunks] == list(range(3001))
    assert {(chunk.run_id, chunk.epoch, chunk.role) for chunk in chunks} == {(run.run_id, 1, "assistant")}
    counts = await mesh.transport.subjects_of(STREAM, mesh.subjects.stream(chat))
    assert sum(counts.values()) < 300


async def test_a_lone_chunk_is_not_held_back(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat) as run:
        await run.send("first")
        assert (await asyncio.wait_for(anext(mesh.streams.read(chat)), SOON)).content == "first"
        await run.finish()


async def test_the_second_run_goes_on_where_the_first_one_ended(mesh: Mesh, chat: str) -> None:
    for text in ("one", "two"):
        async with mesh.streams.run(chat, role="user") as run:
            await run.send(text)
            await run.finish()

    chunks = await stored(mesh, chat)
    assert [(chunk.offset, chunk.index, chunk.content) for chunk in chunks] == [
        *((0, 0, "one"), (1, 1, ""), (2, 0, "two"), (3, 1, "")),
    ]


async def test_two_producers_at_once_share_a_conversation(mesh: Mesh, chat: str) -> None:
    async def speak(name: str) -> None:
        async with mesh.streams.run(chat) as run:
            for number in range(30):
                await run.send(f"{name}{number}")
                await run.flush()
            await run.finish()

    async with asyncio.timeout(30):
        await asyncio.gather(*(speak(name) for name in "abc"))

    chunks = await stored(mesh, chat)
    assert [chunk.offset for chunk in chunks] == list(range(93))
    for name in "abc":
        assert [chunk.content for chunk in chunks if chunk.content[:1] == name] == [f"{name}{n}" for n in range(30)]


@pytest.mark.seed("D9")
async def test_leaving_the_block_early_ends_the_run_with_an_error(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat) as run:
        await run.send("Hel")

    last = (await stored(mesh, chat))[-1]
    assert (last.type, last.content) == ("error", "aborted")


@pytest.mark.seed("D18")
async def test_an_exception_in_the_block_is_told_to_readers_by_its_message_only(
    mesh: Mesh, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def produce() -> None:
        async with mesh.streams.run(chat) as run:
            await run.send("Hel")
            raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        await produce()

    last = (await stored(mesh, chat))[-1]
    assert (last.type, last.content, last.data) == ("error", "no such model", {"error_type": "ValueError"})
    assert "Traceback" in caplog.text


async def test_a_run_that_has_ended_takes_nothing_more(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat) as run:
        await run.finish()
        with pytest.raises(RunEndedError):
            await run.send("more")


async def test_what_is_no_json_and_what_is_too_large_is_refused_and_the_run_goes_on(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat) as run:
        with pytest.raises(InvalidMessageError):
            await run.send(data=object())
        with pytest.raises(PayloadTooLargeError):
            await run.send("\x00" * 90_000)  # six bytes each
        await run.send("\x00" * 60_000)
        for _ in range(3):
            await run.send("ä" * 200_000)
        await run.finish()

    assert [len(chunk.content) for chunk in await stored(mesh, chat)] == [60_000, 200_000, 200_000, 200_000, 0]


@pytest.mark.seed("D29")
async def test_f6_a_producer_that_was_replaced_adds_nothing_more(mesh: Mesh, chat: str) -> None:
    zombie = mesh.streams.run(chat, run_id="r1")
    await zombie.send("old")
    await zombie.flush()

    async with mesh.streams.run(chat, run_id="r1", epoch=2) as run:
        await run.send("new")
        await run.flush()
        await zombie.send("zombie")
        with pytest.raises(RunReplacedError):
            await zombie.flush()
        await run.finish()

    for again in (zombie.send("zombie"), zombie.finish(), zombie.fail("zombie")):
        with pytest.raises(RunReplacedError):
            await again
    assert [(chunk.type, chunk.content) for chunk in await stored(mesh, chat)] == [
        *(("text", "old"), ("restarted", ""), ("text", "new"), ("finish", "")),
    ]


async def test_a_producer_that_is_replaced_before_its_first_chunk_is_refused_too(mesh: Mesh, chat: str) -> None:
    late = mesh.streams.run(chat, run_id="r1", interrupt=False)
    async with mesh.streams.run(chat, run_id="r1", epoch=2) as run:
        await run.send("new")
        await run.finish()

    with pytest.raises(RunReplacedError):
        await produce(late, "old")


async def test_of_two_producers_of_the_same_take_only_the_first_is_heard(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat, run_id="r1") as first:
        await first.send("first")
        await first.flush()
        with pytest.raises(RunReplacedError):
            await produce(mesh.streams.run(chat, run_id="r1"), "second")
        await first.finish()

    assert [chunk.content for chunk in await stored(mesh, chat)] == ["first", ""]


async def test_a_run_that_was_finished_is_not_taken_over(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat, run_id="r1") as run:
        await run.finish()

    with pytest.raises(RunEndedError):
        async with mesh.streams.run(chat, run_id="r1", epoch=2):
            pass


@pytest.mark.seed("D30")
async def test_a_cancel_by_a_reader_stops_the_producer(mesh: Mesh, chat: str) -> None:
    stopped = asyncio.Event()

    async def produce() -> None:
        try:
            async with mesh.streams.run(chat) as run:
                await run.send("Hel")
                await asyncio.Event().wait()
        finally:
            stopped.set()

    producer = asyncio.create_task(produce())
    reading = mesh.streams.read(chat, one_run=True)
    assert (await anext(reading)).content == "Hel"

    assert await mesh.streams.cancel(chat, reason="enough")

    assert [(chunk.type, chunk.content) async for chunk in reading] == [("cancelled", "enough")]
    async with asyncio.timeout(SOON):
        await stopped.wait()
        with pytest.raises(RunCancelledError):
            await producer
    assert not await mesh.streams.cancel(chat)
    assert not await mesh.streams.cancel("nothing")


@pytest.mark.seed("D30")
async def test_a_producer_that_missed_the_prompt_is_refused_at_its_next_chunk(
    mesh: Mesh, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.streams.run.Run.prompted", lambda self, op: None)
    heard: list[bool] = []
    run = mesh.streams.run(chat)
    run.on_cancel(lambda: heard.append(True))
    await run.send("Hel")
    await run.flush()

    assert await mesh.streams.cancel(chat, run_id=run.run_id)

    with pytest.raises(RunCancelledError):
        await produce(run, "lo")

    assert heard == [True]
    assert [chunk.type for chunk in await stored(mesh, chat)] == ["text", "cancelled"]


async def test_a_prompt_without_a_stored_cancel_changes_nothing(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat) as run:
        await run.send("Hel")
        await run.flush()
        await mesh.transport.publish(mesh.subjects.stream_control(chat), b'{"op":"cancel"}')
        await mesh.transport.publish(mesh.subjects.stream_control(chat), b"\xff")
        await eventually(lambda: run._looking is None, SOON, what="it has looked")
        await run.send("lo")
        await run.finish()

    assert [chunk.content for chunk in await stored(mesh, chat)] == ["Hel", "lo", ""]


async def test_prompts_while_it_is_sending_do_not_confuse_a_producer(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat, run_id="r") as run:
        for number in range(100):
            await mesh.transport.publish(mesh.subjects.stream_control(chat), b'{"op":"cancel"}')
            await run.send(str(number))
            await asyncio.sleep(0.0005 * (number % 4))
        await run.finish()

    assert [chunk.content for chunk in await stored(mesh, chat)] == [*map(str, range(100)), ""]


async def test_a_cancel_gets_through_to_a_producer_at_full_speed(mesh: Mesh, chat: str) -> None:
    async def produce() -> None:
        async with mesh.streams.run(chat) as run:
            while True:
                await run.send("token ")
                await asyncio.sleep(0)

    producer = asyncio.create_task(produce())
    await anext(mesh.streams.read(chat))

    async with asyncio.timeout(SOON):
        assert await mesh.streams.cancel(chat)
        with pytest.raises(RunCancelledError):
            await producer

    chunks = await stored(mesh, chat)
    assert [chunk.type for chunk in chunks].index("cancelled") == len(chunks) - 1
    assert [chunk.offset for chunk in chunks] == list(range(len(chunks)))


@pytest.mark.seed("D29")
async def test_a_chunk_whose_confirmation_was_lost_is_stored_once_although_others_went_on(
    mesh: Mesh, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_durable, lose = Transport.publish_durable, True

    async def losing(self: Transport, subject: str, *arguments: Any, **options: Any) -> Any:
        nonlocal lose
        answer = await publish_durable(self, subject, *arguments, **options)
        if lose:
            lose = False
            async with mesh.streams.run(chat) as other:
                await other.finish("meanwhile")
            raise SequenceConflictError(subject, 0, STREAM)  # what the repetition of the publish comes to
        return answer

    monkeypatch.setattr(Transport, "publish_durable", losing)
    async with mesh.streams.run(chat, run_id="r") as run:
        await run.send("once")
        await run.flush()
        assert run.last is not None
        assert run.last.offset == 0
        await run.finish()

    assert [(chunk.offset, chunk.content) for chunk in await stored(mesh, chat)] == [
        *((0, "once"), (1, "meanwhile"), (2, "")),
    ]
