"""The agent and the measurements of `agentmesh bench`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from agentmesh.agent import Agent, handler
from agentmesh.client import Client
from agentmesh.messages import Event, Request, Task

Measured = tuple[int, float, list[float]]
"""How many, in how many seconds, and the seconds of each."""

_ANSWER = 1_000
"""Chunks of a long answer."""

_BURST = 256
"""Events sent before waiting until they are handled; well under a mailbox."""


class Note(Event):
    """Carries text; nobody answers."""

    text: str


class Echo(Request[str]):
    """Wants its text back."""

    text: str


class EchoTask(Task[str]):
    """Wants its text as the result."""

    text: str


class Words(Request[str]):
    """Wants its text back so many times, as a stream."""

    text: str
    count: int


class Bench(Agent):
    """Does as little as possible, so that the way to it is what is measured."""

    concurrency = 64
    told = 0

    @handler
    async def note(self, message: Note) -> None:
        Bench.told += 1

    @handler
    async def echo(self, message: Echo) -> str:
        return message.text

    @handler
    async def words(self, message: Words) -> AsyncIterator[str]:
        for _ in range(message.count):
            yield message.text

    @handler
    async def work(self, task: EchoTask) -> str:
        return task.text


class Measures:
    """Each method runs one measurement for about `seconds`."""

    def __init__(self, mesh: Client, seconds: float, text: str) -> None:
        self._mesh = mesh
        self._ref = mesh.ref("bench")
        self._seconds = seconds
        self._text = text

    async def tell(self) -> Measured:
        """Events in bursts; each burst is confirmed by a request behind it."""
        before, start = Bench.told, time.perf_counter()
        while time.perf_counter() - start < self._seconds:
            for _ in range(_BURST):
                await self._ref.tell(Note(text=self._text))
            await self._ref.ask(Echo(text=""))
        return Bench.told - before, time.perf_counter() - start, []

    async def ask(self, callers: int) -> Measured:
        """Requests by callers who wait for each answer."""
        return await self._repeat(lambda: self._ref.ask(Echo(text=self._text)), callers)

    async def first_chunk(self) -> Measured:
        """Streaming answers of one chunk, one after the other: the time until it is there."""

        async def one() -> None:
            async with aclosing(self._ref.stream(Words(text=self._text, count=1))) as chunks:
                await anext(chunks)

        return await self._repeat(one, 1)

    async def chunks(self) -> Measured:
        """Chunks of long answers."""
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < self._seconds:
            async for _ in self._ref.stream(Words(text=self._text, count=_ANSWER)):
                count += 1
        return count, time.perf_counter() - start, []

    async def task(self, callers: int) -> Measured:
        """Tasks by callers who wait for each result."""

        async def one() -> None:
            job = await self._ref.submit(EchoTask(text=self._text))
            await job.result()

        await one()  # makes the streams
        return await self._repeat(one, callers)

    async def _repeat(self, work: Callable[[], Awaitable[object]], callers: int) -> Measured:
        latencies: list[float] = []
        start = time.perf_counter()

        async def caller() -> None:
            while (began := time.perf_counter()) - start < self._seconds:
                await work()
                latencies.append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
        return len(latencies), time.perf_counter() - start, latencies
