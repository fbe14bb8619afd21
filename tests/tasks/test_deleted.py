"""D6: streams and consumers that an administrator deletes are made again, or it is told; never silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from agentmesh import Agent, Event, connect, handler
from agentmesh.errors import StreamGapError
from agentmesh.streams import StreamReader, StreamWriter
from agentmesh.tasks.layout import MAILBOX, RESULTS, SPECS, STREAMS, TASKS
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Double, Hold

SOON = 5.0


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[Transport]:
    """Somebody else, who may do everything."""
    async with await Transport.connect(TransportOptions(url=server.url, name="admin")) as transport:
        yield transport


@pytest.mark.parametrize("what", ["consumer", "stream"])
async def test_d6_tasks_go_on_when_their_queue_is_deleted(
    own: Stage, admin: Transport, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await own.work()
    assert await (await own.client.submit(Double(n=1), to="worker")).result(5) == 2

    if what == "consumer":
        await admin.delete_consumer(TASKS, own.subjects.task_consumer("worker", "normal"))
    else:
        await admin.delete_stream(TASKS)

    async with asyncio.timeout(SOON):
        assert await (await own.client.submit(Double(n=2), to="worker")).result() == 4
    assert "was deleted" in caplog.text


async def test_d6_results_are_stored_although_their_stream_was_deleted(
    own: Stage, admin: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    await own.work()
    job = await own.client.submit(Hold(), to="worker")
    await own.handlers.has_started()

    await admin.delete_stream(RESULTS)
    own.handlers.release.set()

    assert await job.result(SOON) == "released"
    assert "stream RESULTS was deleted, with everything that was in it" in caplog.text
    assert await (await own.client.submit(Double(n=2), to="worker")).result(SOON) == 4


async def test_d6_a_reader_whose_stream_was_deleted_goes_on_or_is_told(own: Stage, admin: Transport) -> None:
    await own.client.ensure()
    writer = StreamWriter(own.transport, own.subjects, "s")
    for number in range(3):
        await writer.append("text", number)
        await writer.flush()
    events = StreamReader(own.transport, own.subjects, "s").events()
    assert [(await anext(events)).value() for _ in range(3)] == [0, 1, 2]
    following = asyncio.ensure_future(anext(events))

    await admin.delete_stream(STREAMS)
    async with asyncio.timeout(SOON):
        await writer.append("text", "after")
        await writer.flush()
        assert (await following).value() == "after"  # it had read everything

    late = StreamReader(own.transport, own.subjects, "s").events()
    assert (await anext(late)).value() == "after"
    following = asyncio.ensure_future(anext(late))
    await admin.delete_stream(STREAMS)
    async with asyncio.timeout(SOON):
        await own.transport.ensure_stream(next(spec for spec in SPECS if spec.name == STREAMS))  # from 1 on
        await writer.append("text", "unseen")
        await writer.flush()
        with pytest.raises(StreamGapError):
            await following


class Note(Event, durable=True):
    n: int


class Keeper(Agent):
    def __init__(self, seen: asyncio.Queue[int]) -> None:
        self.seen = seen

    @handler
    async def keep(self, note: Note) -> None:
        self.seen.put_nowait(note.n)


@pytest.mark.parametrize("what", ["consumer", "stream"])
async def test_d6_durable_events_arrive_when_their_mailbox_was_deleted(
    server: Server, admin: Transport, what: str
) -> None:
    seen: asyncio.Queue[int] = asyncio.Queue()
    async with connect(server.url) as mesh:
        ref = await mesh.spawn(Keeper, seen, name="keeper")
        await ref.tell(Note(n=1))
        assert await asyncio.wait_for(seen.get(), SOON) == 1

        if what == "consumer":
            await admin.delete_consumer(MAILBOX, mesh.subjects.mailbox_consumer("keeper"))
        else:
            await admin.delete_stream(MAILBOX)
        await ref.tell(Note(n=2))

        async with asyncio.timeout(SOON):
            while await seen.get() != 2:
                pass  # the first one again: its acknowledgement went to the consumer that was deleted
