"""Durable mailboxes: bounded, in order, one at a time, over crashes; told twice, stored once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from agentmesh import Agent, AgentRef, Event, Mesh, Text, connect, handler
from agentmesh.errors import DefinitionError, InvalidNameError, MailboxFullError, PublishTimeoutError
from agentmesh.ids import new_id
from agentmesh.tasks.layout import MAILBOX, ensure_streams, mailbox_consumer
from tests.core.mailboxes import Entry
from tests.harness import Process, Server, TcpProxy, eventually
from tests.harness.fixtures import SpawnProcess

ACK_WAIT = 1.0

Spawn = Callable[..., Awaitable[AgentRef]]


class Note(Event, durable=True):
    n: int


class Noted(Agent):
    name = "noted"

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    @handler
    async def note(self, event: Note) -> None:
        self.seen.append(event.n)


@pytest.fixture
async def own(server: Server) -> AsyncIterator[Mesh]:
    """A mesh on a server of this test's own."""
    async with connect(server.url, tenant=f"t-{new_id()}", own_thread=False) as mesh:
        yield mesh


async def stored(mesh: Mesh) -> int:
    counts = await mesh.transport.subjects_of(MAILBOX, "ai.agent.mailbox.>")
    return sum(counts.values())


async def test_e1_the_event_after_a_full_durable_mailbox_is_refused_and_none_is_lost(own: Mesh) -> None:
    await ensure_streams(own.transport, mailbox_limit=50)
    for n in range(50):
        await own.tell("noted", Note(n=n))
    waits = []
    for n in range(50, 55):
        began = time.monotonic()
        with pytest.raises(MailboxFullError, match=r"'noted' is full \(50 messages\)"):
            await own.tell("noted", Note(n=n))
        waits.append(time.monotonic() - began)
    await own.tell("another", Note(n=0))  # the bound is each agent's own

    seen: list[int] = []
    await own.spawn(Noted, seen)
    await eventually(lambda: len(seen) == 50, 10)
    await own.tell("noted", Note(n=50))
    await eventually(lambda: len(seen) == 51)

    assert seen == list(range(51))
    assert min(waits) < 0.1


async def test_the_bound_holds_for_those_who_connect_later_too(own: Mesh, server: Server) -> None:
    await ensure_streams(own.transport, mailbox_limit=1)
    async with connect(server.url, tenant=own.subjects.tenant, own_thread=False) as other:
        await other.tell("noted", Note(n=0))
        with pytest.raises(MailboxFullError, match="1 messages"):
            await other.tell("noted", Note(n=1))


async def test_an_event_told_again_after_an_unknown_outcome_is_stored_once(own: Mesh, server: Server) -> None:
    async with TcpProxy(server.port) as proxy:
        url = f"nats://127.0.0.1:{proxy.port}"
        async with connect(url, tenant=own.subjects.tenant, own_thread=False) as sender:
            await sender.tell("noted", Note(n=0))
            proxy.drop = lambda frame: b'"stream":"MAILBOX"' in frame
            with pytest.raises(PublishTimeoutError):
                await sender.tell("noted", Note(n=1), message_id="n-1", timeout=0.5)
            proxy.drop = None
            for _ in range(2):
                await sender.tell("noted", Note(n=1), message_id="n-1")
            await sender.tell("other", Note(n=1), message_id="n-1")  # an id is the agent's

    assert await stored(own) == 3
    seen: list[int] = []
    await own.spawn(Noted, seen)
    await eventually(lambda: len(seen) == 2)
    assert seen == [0, 1]


async def test_ids_are_for_durable_events_and_checked(mesh: Mesh) -> None:
    with pytest.raises(DefinitionError, match="only a durable event"):
        await mesh.tell("noted", Text(text="hi"), message_id="x")
    with pytest.raises(InvalidNameError):
        await mesh.tell("noted", Note(n=1), message_id="a.b")


async def test_those_behind_a_failing_event_wait_until_it_is_given_up_and_then_follow_in_order(
    mesh: Mesh, spawn: Spawn
) -> None:
    seen: list[int] = []

    class Picky(Agent):
        name = "noted"

        @handler
        async def note(self, event: Note) -> None:
            seen.append(event.n)
            if event.n == 1:
                raise ValueError("not this one")

    for n in range(4):
        await mesh.tell("noted", Note(n=n))
    await spawn(Picky, replicas=2)
    await eventually(lambda: 3 in seen, 20)

    assert seen == [0, 1, 1, 1, 1, 1, 2, 3]
    (letter,) = await mesh.tasks.dead_ls()
    assert letter.kind == "event"
    assert "not this one" in letter.reason


@pytest.mark.slow
async def test_e10_a_thousand_events_stay_in_order_over_two_killed_replicas(
    own: Mesh, server: Server, spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    book = tmp_path / "book"
    book.touch()

    def entries() -> list[tuple[int, int]]:
        lines = (line.split() for line in book.read_text().splitlines())
        return [(int(n), int(pid)) for n, pid in lines]

    def reached(number: int) -> bool:
        return len(entries()) >= number

    async def start(replica: int) -> Process:
        process = await spawn_process("tests.core.mailboxes", server.url, own.subjects.tenant, str(book), str(replica))
        await process.line_matching("ready", timeout=30)
        return process

    await own.tasks.ensure()
    await own.transport.ensure_consumer(mailbox_consumer(own.subjects, "ledger-keeper", ACK_WAIT))
    workers = {process.pid: process for process in await asyncio.gather(start(1), start(2))}

    async def tell_all() -> None:
        for n in range(1000):
            await own.tell("ledger-keeper", Entry(n=n))

    telling = asyncio.create_task(tell_all())
    for replica, target in enumerate(sorted(dice.sample(range(50, 900), 2)), start=3):
        await eventually(partial(reached, target), 60, period=0.005)
        victim = workers.pop(entries()[-1][1])
        victim.kill9()
        await victim.wait()
        late = await start(replica)
        workers[late.pid] = late
    await telling
    await eventually(lambda: entries() and entries()[-1][0] == 999, 60)

    numbers = [n for n, _ in entries()]
    again = [n for n, before in zip(numbers[1:], numbers, strict=False) if n == before]
    assert [n for index, n in enumerate(numbers) if index == 0 or n != numbers[index - 1]] == list(range(1000))
    assert len(again) <= 2  # at most the one at hand when its process was killed
    assert len({pid for _, pid in entries()}) >= 2
    await eventually(lambda: stored_is_empty(own))


async def stored_is_empty(mesh: Mesh) -> bool:
    return await stored(mesh) == 0
