"""Agents that the tests of the gateway call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agentmesh import Agent, Event, Prompt, Reject, Request, Task, Text, handler

SECRET = "password-hunter2"


class Greet(Request[dict[str, str]]):
    name: str
    title: str = "Dr."


class Fail(Request[str]):
    """Fails in its handler."""


class Refuse(Request[str]):
    """Is refused by its handler."""


class Hang(Request[str]):
    """Is never answered."""


class Tokens(Request[str]):
    """Is answered in parts."""

    count: int


class Note(Event, durable=True):
    text: str


class Add(Task[int]):
    a: int
    b: int


class Break(Task[int], max_attempts=1):
    """Fails in its handler."""


class Wait(Task[str]):
    """Takes until it is cancelled."""


class Greeter(Agent):
    """Says hello."""

    concurrency = 64
    runs = 0

    def __init__(self, made: list[Greeter] | None = None) -> None:
        if made is not None:
            made.append(self)
        self.hung = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.heard: list[str] = []
        self.told = asyncio.Event()

    @handler
    async def greet(self, message: Greet) -> dict[str, str]:
        return {"text": f"Hello {message.title} {message.name}"}

    @handler
    async def prompt(self, message: Prompt) -> str:
        Greeter.runs += 1
        return f"You said: {message.text}"

    @handler
    async def fail(self, message: Fail) -> str:
        raise ValueError(SECRET)

    @handler
    async def refuse(self, message: Refuse) -> str:
        raise Reject("not on Sundays")

    @handler
    async def hang(self, message: Hang) -> str:
        self.hung.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return ""

    @handler
    async def tokens(self, message: Tokens) -> AsyncIterator[str]:
        for number in range(message.count):
            yield f"{number} "

    @handler
    async def text(self, message: Text) -> None:
        self.heard.append(message.text)
        self.told.set()

    @handler
    async def note(self, message: Note) -> None:
        self.heard.append(message.text)
        self.told.set()


class Adder(Agent):
    """Adds."""

    runs = 0

    @handler
    async def add(self, task: Add) -> int:
        Adder.runs += 1
        return task.a + task.b

    @handler
    async def break_(self, task: Break) -> int:
        raise ValueError(SECRET)

    @handler
    async def wait(self, task: Wait) -> str:
        await asyncio.Event().wait()
        return ""
