"""Events, requests and streams while the broker is paused, stopped and started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from agentmesh import Agent, Event, Mesh, Prompt, Request, connect, handler
from agentmesh.chaos import Server
from agentmesh.errors import (
    DeadlineExceededError,
    DeliveryError,
    NoSuchAgentError,
    StreamGapError,
    StreamIdleError,
)
from agentmesh.telling import Undelivered
from agentmesh.transport import Message
from tests.transport.tools import States


class Double(Request[int]):
    n: int


class Note(Event):
    n: int


class Counter(Request[int]):
    n: int


class Worker(Agent):
    concurrency = 10

    @handler
    async def double(self, request: Double) -> int:
        return request.n * 2

    @handler
    async def count(self, request: Counter) -> AsyncIterator[int]:
        for n in range(request.n):
            yield n
            await asyncio.sleep(0.001)


async def test_d13_an_event_told_to_nobody_is_reported_within_100_ms(mesh: Mesh) -> None:
    await mesh.agents()  # the way there is warm
    undelivered: asyncio.Future[Undelivered] = asyncio.get_running_loop().create_future()
    mesh.on_undelivered = undelivered.set_result
    started = time.perf_counter()
    await mesh.tell("nobody", Note(n=1))
    letter = await undelivered
    assert time.perf_counter() - started < 0.5  # the promise is 100 ms; the margin is for a busy machine
    assert letter.agent == "nobody"
    assert isinstance(letter.error, NoSuchAgentError)


async def test_d10_an_ask_ends_at_its_deadline_while_the_broker_is_paused_and_later_ones_work(server: Server) -> None:
    async with connect(server.url) as mesh:
        ref = await mesh.spawn(Worker)
        assert await ref.ask(Double(n=1)) == 2
        server.pause()
        started = time.perf_counter()
        with pytest.raises(DeadlineExceededError):
            await ref.ask(Double(n=2), timeout=0.5)
        assert time.perf_counter() - started < 1.5
        cancelled = asyncio.create_task(ref.ask(Double(n=3)))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        server.resume()
        assert await ref.ask(Double(n=4), timeout=10) == 8


async def test_asks_in_flight_over_a_restart_of_the_broker_end_well_or_typed_and_later_ones_work(
    server: Server,
) -> None:
    async with connect(server.url) as mesh:
        states = States(mesh.transport)
        ref = await mesh.spawn(Worker)
        asking = [asyncio.create_task(ref.ask(Double(n=n), timeout=2)) for n in range(200)]
        await asyncio.sleep(0)
        server.kill9()
        await states.reach("reconnecting")
        during = asyncio.create_task(ref.ask(Double(n=7), timeout=10))
        await server.start()
        for n, answer in enumerate(await asyncio.gather(*asking, return_exceptions=True)):
            assert answer == n * 2 or isinstance(answer, DeliveryError)
        await states.reach("connected")
        with_luck = (await asyncio.gather(during, return_exceptions=True))[0]
        assert with_luck == 14 or isinstance(with_luck, DeliveryError)
        assert await ref.ask(Double(n=5), timeout=5) == 10


async def test_a_stream_over_a_restart_of_the_broker_goes_on_or_breaks_and_is_never_shorter(server: Server) -> None:
    async with connect(server.url) as mesh:
        states = States(mesh.transport)
        ref = await mesh.spawn(Worker)
        got: list[int] = []
        problem: Exception | None = None
        try:
            async for n in ref.stream(Counter(n=1000), timeout=2):
                got.append(n)
                if n == 100:
                    server.kill9()
                    await server.start()
        except (StreamGapError, StreamIdleError) as error:
            problem = error
        assert got == list(range(len(got)))
        assert (len(got) == 1000) != (problem is not None)
        await states.reach("connected")
        assert [n async for n in ref.stream(Counter(n=10))] == list(range(10))


async def test_a_stream_that_breaks_stops_its_producer(mesh: Mesh) -> None:
    stopped = asyncio.Event()

    class Skips(Agent):
        @handler
        async def asked(self, request: Prompt) -> AsyncIterator[str]:
            try:
                for _ in range(100):
                    yield "x"
                await asyncio.Event().wait()
            finally:
                stopped.set()

    ref = await mesh.spawn(Skips)
    lossy = mesh.transport.connection.inbox
    dispatch = lossy.dispatch
    seen = 0

    def lose_one(message: Message) -> None:
        nonlocal seen
        if b'"chunk"' in message.data:
            seen += 1
            if seen == 5:
                return
        dispatch(message)

    (subscription,) = [s for s in mesh.transport.connection._subscriptions if s.callback == dispatch]
    assert subscription._live is not None
    mesh.transport.connection.nc._sinks[subscription._live._id] = lose_one
    with pytest.raises(StreamGapError, match="chunk 4 is missing"):
        async for _ in ref.stream(Prompt(text=""), timeout=5):
            pass
    async with asyncio.timeout(2):
        await stopped.wait()


async def test_closing_a_mesh_whose_broker_is_gone_is_quick_and_quiet(server: Server) -> None:
    stopped: list[str] = []

    class Tidy(Agent):
        async def on_stop(self) -> None:
            stopped.append(self.name)

    mesh = await connect(server.url)
    await mesh.spawn(Tidy)
    server.kill9()
    started = time.perf_counter()
    await mesh.close()
    assert time.perf_counter() - started < 4.0
    assert stopped == ["tidy"]


async def test_a_paused_broker_does_not_hold_up_the_end_of_a_mesh(server: Server) -> None:
    mesh = await connect(server.url)
    await mesh.spawn(Worker)
    server.pause()
    started = time.perf_counter()
    await mesh.close()
    assert time.perf_counter() - started < 6.0
    server.resume()
