"""Runs whose producers are gone are ended by whoever waits for them, once; those of a task by the task's decision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentmesh import Agent, Mesh, Task, TaskContext, connect, handler
from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import RunEndedError, RunReplacedError
from agentmesh.streams import Chunk, Patience
from agentmesh.streams.care import GONE
from tests.harness import Process, eventually
from tests.harness.fixtures import SpawnProcess
from tests.streams.answering import Answer as AnswerElsewhere

SOON = 15.0

CALM = Patience(silence=0.2, asks=5, every=3.0)

HASTE = Patience(silence=0.2, asks=2, every=0.2)


async def types(chunks: AsyncIterator[Chunk]) -> list[tuple[str, str]]:
    return [(chunk.type, chunk.content) async for chunk in chunks]


@pytest.mark.seed("D9")
async def test_the_run_of_a_producer_that_was_killed_is_ended_once_however_many_wait(
    mesh: Mesh, nats_server: EmbeddedBroker, chat: str, spawn_process: SpawnProcess
) -> None:
    mesh.streams.patience = HASTE
    producer = await spawn_process("tests.streams.producer", nats_server.url, mesh.subjects.tenant, chat)
    await producer.line_matching("speaking")
    async with connect(nats_server.url, tenant=mesh.subjects.tenant) as other:
        other.streams.patience = HASTE
        readers = [
            asyncio.create_task(types(one.streams.read(chat, one_run=True))) for one in (mesh, mesh, other, other)
        ]
        producer.kill9()

        async with asyncio.timeout(SOON):
            copies = [await reader for reader in readers]

    assert copies[0][-1] == ("error", GONE)
    assert [kind for kind, _ in copies[0]].count("error") == 1
    assert all(copy == copies[0] for copy in copies)


async def test_a_producer_that_is_silent_but_alive_is_left_alone(mesh: Mesh, chat: str) -> None:
    mesh.streams.patience = CALM
    asked: list[str] = []
    async with mesh.streams.run(chat) as run:
        await run.send("thinking")
        reading = asyncio.create_task(types(mesh.streams.read(chat, one_run=True)))
        subscription = await mesh.transport.subscribe(
            mesh.subjects.stream_control(chat), lambda message: asked.append(message.subject)
        )
        await eventually(lambda: len(asked) >= 3, SOON, what="it was asked")
        await run.finish("done")
        await subscription.unsubscribe()

    assert await asyncio.wait_for(reading, SOON) == [("text", "thinking"), ("finish", "done")]


@pytest.mark.seed("D29")
async def test_a_producer_that_was_taken_for_dead_is_told_so(mesh: Mesh, chat: str) -> None:
    mesh.streams.patience = HASTE
    mute = mesh.streams.run(chat)  # not in a block: it does not hear whether it is alive
    await mute.send("Hel")
    assert (await asyncio.wait_for(types(mesh.streams.read(chat, one_run=True)), SOON))[-1] == ("error", GONE)

    await mute.send("lo")
    with pytest.raises(RunEndedError):
        await mute.flush()


class Answer(Task[str], max_attempts=2, backoff=0.01):
    """Answers in a conversation; the first attempt fails in the middle."""

    conversation_id: str
    give_up: bool = False


class Answerer(Agent):
    @handler
    async def answer(self, task: Answer, ctx: TaskContext) -> str:
        run = self.mesh.streams.run(
            task.conversation_id, run_id="answer", epoch=ctx.attempt, owner=ctx.task_id, role="assistant"
        )
        async with run:
            await run.send(f"take {ctx.attempt}")
            if ctx.attempt == 1 or task.give_up:
                raise RuntimeError("the model went away")
            await run.finish()
        return "answered"


async def test_a_run_that_a_task_owns_goes_on_with_the_next_attempt(mesh: Mesh, chat: str) -> None:
    await mesh.spawn(Answerer)

    job = await mesh.submit(Answer(conversation_id=chat), to="answerer")

    assert await job.result(SOON) == "answered"
    assert await types(mesh.streams.read(chat, to_end=True)) == [
        *(("text", "take 1"), ("restarted", ""), ("text", "take 2"), ("finish", "")),
    ]


async def test_a_run_that_a_task_owns_ends_when_the_task_is_given_up(mesh: Mesh, chat: str) -> None:
    mesh.streams.patience = HASTE
    await mesh.spawn(Answerer)
    await mesh.submit(Answer(conversation_id=chat, give_up=True), to="answerer")

    told = await asyncio.wait_for(types(mesh.streams.read(chat, one_run=True)), SOON)

    assert told[:3] == [("text", "take 1"), ("restarted", ""), ("text", "take 2")]
    assert [kind for kind, _ in told[3:]] == ["error"]
    assert "the model went away" in told[-1][1]


async def test_a_durable_run_is_ended_by_nobody_else(mesh: Mesh, chat: str) -> None:
    mesh.streams.patience = HASTE
    async with mesh.streams.run(chat, run_id="r", durable=True) as run:
        await run.send("Hel")
    reading = asyncio.create_task(types(mesh.streams.read(chat, one_run=True)))
    done, _ = await asyncio.wait([reading], timeout=1.0)
    assert not done

    async with mesh.streams.run(chat, run_id="r", epoch=2, durable=True) as run:
        await run.finish("Hello")

    assert await asyncio.wait_for(reading, SOON) == [("text", "Hel"), ("restarted", ""), ("finish", "Hello")]


class Tell(Task[str]):
    words: int


class Teller(Agent):
    @handler
    async def tell(self, task: Tell, ctx: TaskContext) -> str:
        for number in range(task.words):
            await ctx.chunk(f"word {number} ")
        if task.words:
            await ctx.progress(1.0, "told")
            await ctx.chunk({"words": task.words})
        return "told"


@pytest.mark.seed("D4")
@pytest.mark.parametrize("words", [0, 3])
async def test_what_a_task_tells_is_read_as_chunks_up_to_its_decision(mesh: Mesh, words: int) -> None:
    mesh.streams.patience = HASTE
    await mesh.spawn(Teller)
    job = await mesh.submit(Tell(words=words), to="teller")

    async with asyncio.timeout(SOON):
        live = [chunk async for chunk in mesh.streams.read(job.id, one_run=True)]
        await job.result()
        later = [chunk async for chunk in mesh.streams.read(job.id, from_offset=1, follow=False)]

    told: list[tuple[str, str, object]] = [("text", f"word {number} ", None) for number in range(words)]
    if words:
        told += [("progress", "told", {"fraction": 1.0, "text": "told"}), ("data", "", {"words": words})]
    assert [(chunk.type, chunk.content, chunk.data) for chunk in live] == [*told, ("finish", "", None)]
    assert {chunk.run_id for chunk in live} == {job.id}
    assert [chunk.offset for chunk in live] == list(range(len(live)))
    if words:
        assert [chunk.content for chunk in later] == [chunk.content for chunk in live[1:]]


async def test_f6_what_a_frozen_producer_says_after_it_was_replaced_is_not_seen(
    mesh: Mesh, nats_server: EmbeddedBroker, chat: str, spawn_process: SpawnProcess
) -> None:
    zombie = await spawn_process("tests.streams.producer", nats_server.url, mesh.subjects.tenant, chat, "r", "1")
    await zombie.line_matching("speaking")
    zombie.pause()
    async with mesh.streams.run(chat, run_id="r", epoch=2) as run:
        await run.send("2.0")
        await run.flush()
        zombie.resume()
        await zombie.line_matching(RunReplacedError.__name__)
        await run.send("2.1")
        await run.finish()

    chunks = [chunk async for chunk in mesh.streams.read(chat, one_run=True)]
    restarted = next(number for number, chunk in enumerate(chunks) if chunk.type == "restarted")
    assert [chunk.content for chunk in chunks[restarted:]] == ["", "2.0", "2.1", ""]
    assert {chunk.epoch for chunk in chunks[:restarted]} == {1}


@pytest.mark.slow
async def test_f3_a_worker_killed_in_the_middle_is_followed_by_another_and_no_text_is_mixed(
    mesh: Mesh, nats_server: EmbeddedBroker, chat: str, spawn_process: SpawnProcess
) -> None:
    async def start() -> Process:
        process = await spawn_process("tests.streams.answering", nats_server.url, mesh.subjects.tenant)
        await process.line_matching("ready")
        return process

    victim = await start()
    reading = asyncio.create_task(types(mesh.streams.read(chat, one_run=True)))
    job = await mesh.submit(AnswerElsewhere(conversation_id=chat), to="answerer")
    await victim.line_matching("speaking 1")

    victim.kill9()
    await start()

    assert await job.result(60) == "answered by attempt 2"
    told = await asyncio.wait_for(reading, SOON)
    restarted = told.index(("restarted", ""))
    assert 10 < restarted < 100
    assert told[:restarted] == [("text", f"1.{number} ") for number in range(restarted)]
    assert told[restarted + 1 :] == [*(("text", f"2.{number} ") for number in range(100)), ("finish", "")]
