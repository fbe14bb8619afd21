"""What a task tells while it runs is read whole and in order, whatever happens to reader, server and worker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh.streams import StreamEvent, Streams
from agentmesh.tasks import Chunk, Job, Restarted
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Process, Server
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import Stage
from tests.tasks.workers import AGENT, Tale

ACK_WAIT = 1.0

StartWorker = Callable[[], Awaitable[Process]]


@pytest.fixture
def start_worker(spawn_process: SpawnProcess, own: Stage, server: Server, tmp_path: Path) -> StartWorker:
    """`process = await start_worker()`, working for the tenant of `own`."""

    async def start() -> Process:
        ledger = str(tmp_path / "ledger.db")
        process = await spawn_process(
            "tests.tasks.workers", server.url, own.subjects.tenant, ledger, "4", str(ACK_WAIT)
        )
        await process.line_matching("ready")
        return process

    return start


def told(attempt: int, words: int) -> list[str]:
    """Everything that an attempt tells."""
    return [f"{attempt}.{number} " for number in range(words)]


class Reading:
    """Reads the events of a job; can be waited on."""

    def __init__(self, job: Job[str]) -> None:
        self.parts: list[str] = []
        """The chunks of the current attempt."""
        self.attempts: list[int] = []
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(job))

    async def _read(self, job: Job[str]) -> None:
        async for event in job:
            if isinstance(event, Restarted):
                self.parts.clear()
                self.attempts.append(event.attempt)
            elif isinstance(event, Chunk):
                self.parts.append(event.data)
            self._changed.set()

    async def has(self, parts: int) -> None:
        """Wait until that many chunks of an attempt were read."""
        await self._until(lambda: len(self.parts) >= parts)

    async def restarts(self) -> None:
        """Wait until another attempt has spoken."""
        await self._until(lambda: bool(self.attempts))

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def end(self) -> None:
        async with asyncio.timeout(30):
            await self._task


async def test_f1_a_reader_that_reconnects_at_random_points_reads_the_same_text(
    own: Stage, start_worker: StartWorker, server: Server
) -> None:
    words, draw = 300, random.Random(7)
    await start_worker()
    job = await own.client.submit(Tale(words=words, pause=0.002), to=AGENT)
    points = sorted(draw.sample(range(1, words), 10))
    parts: list[str] = []
    last: StreamEvent | None = None

    for point in [*points, words]:
        async with await Transport.connect(TransportOptions(url=server.url)) as transport:
            events = chunks(Streams(transport, own.subjects).events(job.id, after=last))
            async for event in events:
                parts.append(event.value())
                last = event
                if len(parts) == point:
                    break

    assert parts == told(1, words)


async def chunks(events: AsyncIterator[StreamEvent]) -> AsyncIterator[StreamEvent]:
    async for event in events:
        if event.type == "chunk":
            yield event


async def test_f1_a_message_with_many_events_can_be_left_in_its_middle(own: Stage) -> None:
    await own.client.ensure()
    streams = Streams(own.transport, own.subjects)
    writer = streams.writer("s")
    for number in range(100):
        await writer.append("text", number)
    await writer.flush()
    seen: list[StreamEvent] = []

    while len(seen) < 100:
        events = streams.events("s", after=seen[-1] if seen else None, follow=False)
        seen += [await anext(events) for _ in range(4)]
        await events.aclose()

    assert [event.value() for event in seen] == list(range(100))
    assert len({event.sequence for event in seen}) < 20


@pytest.mark.slow
async def test_f2_a_server_killed_in_the_middle_changes_nothing_of_the_text(
    own: Stage, start_worker: StartWorker, server: Server
) -> None:
    await start_worker()
    job = await own.client.submit(Tale(words=150), to=AGENT)
    reading = Reading(job)
    await reading.has(20)

    server.kill9()
    await server.start()

    assert await job.result(30) == "told by attempt 1"
    await reading.end()
    assert (reading.attempts, reading.parts) == ([], told(1, 150))


async def test_f3_a_worker_killed_in_the_middle_is_told_as_a_new_attempt_and_nothing_is_mixed(
    own: Stage, start_worker: StartWorker
) -> None:
    victim = await start_worker()
    job = await own.client.submit(Tale(words=60), to=AGENT)
    reading = Reading(job)
    await reading.has(20)

    victim.kill9()
    await start_worker()

    assert await job.result(30) == "told by attempt 2"
    await reading.end()
    assert (reading.attempts, reading.parts) == ([2], told(2, 60))


@pytest.mark.slow
async def test_f6_what_a_frozen_worker_says_after_it_was_replaced_is_not_seen(
    own: Stage, start_worker: StartWorker
) -> None:
    zombie = await start_worker()
    job = await own.client.submit(Tale(words=120), to=AGENT)
    reading = Reading(job)
    await reading.has(20)

    zombie.pause()
    await start_worker()
    await reading.restarts()
    await reading.has(5)
    zombie.resume()

    await job.result(30)
    await reading.end()
    (attempt,) = reading.attempts  # the second delivery may have gone to the frozen worker, too
    assert reading.parts == told(attempt, 120)[: len(reading.parts)]
