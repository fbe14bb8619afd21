"""Readers of one conversation over one connection share what the broker sends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from agentmesh import Mesh
from agentmesh.errors import BrokerError
from agentmesh.ids import new_id
from agentmesh.streams.live import Live, live_of
from agentmesh.transport import Message, Transport
from tests.harness import eventually


async def test_a_hundred_readers_hear_everything_over_one_subscription(mesh: Mesh) -> None:
    conversation = new_id()
    subject = mesh.subjects.live_stream(conversation)

    async def read() -> list[str]:
        async with aclosing(mesh.streams.read(conversation, one_run=True)) as chunks:
            return [chunk.content async for chunk in chunks]

    reading = [asyncio.create_task(read()) for _ in range(100)]
    await eventually(lambda: live_of(mesh.transport).subjects == [subject], 20.0)
    leaving = asyncio.create_task(read())
    async with mesh.streams.run(conversation) as run:
        for number in range(20):
            await run.send(f"{number} ")
            await run.flush()
            if number == 10:
                leaving.cancel()  # takes nothing from the others
        await run.finish()

    for told in await asyncio.wait_for(asyncio.gather(*reading), 60.0):
        assert told == [*(f"{number} " for number in range(20)), ""]
    await eventually(lambda: not live_of(mesh.transport).subjects, 20.0, what="nobody listens any more")


async def test_a_subscription_that_fails_leaves_nothing_behind(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live(mesh.transport)

    async def refuse(*_: object, **__: object) -> None:
        raise BrokerError("no")

    monkeypatch.setattr(Transport, "subscribe", refuse)
    for _ in range(2):
        with pytest.raises(BrokerError):
            await live.join("a.b", lambda _: None)
    assert live.subjects == []


async def test_who_is_cancelled_while_joining_keeps_nobody_else_from_it(mesh: Mesh) -> None:
    live, heard = Live(mesh.transport), asyncio.Event()

    def take(message: Message) -> None:
        heard.set()

    first = asyncio.create_task(live.join("some.where", lambda _: None))
    second = asyncio.create_task(live.join("some.where", take))
    await asyncio.sleep(0)
    first.cancel()
    await second
    await mesh.transport.publish("some.where", b"x")
    await asyncio.wait_for(heard.wait(), 20.0)
    await live.leave("some.where", take)
    assert live.subjects == []
