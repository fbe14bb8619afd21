"""Work of every kind for an agent, without a break, and a check that none of it was lost or done twice."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from agentmesh.client import Client
from agentmesh.messages import Event, Request, Task
from agentmesh.tasks import Job
from tests.harness import eventually

MODULE = """
import asyncio, os, pathlib
from agentmesh import Agent, Event, Request, Task, TaskContext, handler

BOOK = pathlib.Path("BOOK_FOLDER")
VERSION = "v1"


class Ask(Request[str]):
    n: int


class Work(Task[str], max_attempts=10):
    n: int


class Note(Event, durable=True):
    n: int


def write(book: str, line: str) -> None:
    with open(BOOK / book, "a") as file:
        file.write(line + "\\n")


class Busy(Agent):
    concurrency = 4

    @handler
    async def ask(self, message: Ask) -> str:
        await asyncio.sleep(0.01)
        return VERSION

    @handler
    async def work(self, task: Work, ctx: TaskContext) -> str:
        await asyncio.sleep(0.02)
        write("effects", ctx.key("effect"))
        return VERSION

    @handler
    async def note(self, message: Note) -> None:
        write("notes", str(message.n))
"""


class Ask(Request[str]):
    n: int


class Work(Task[str], max_attempts=10):
    n: int


class Note(Event, durable=True):
    n: int


class Load:
    """`async with Load(client, folder) as load: ...; await load.settled()`.

    Args:
        client: Who sends.
        folder: Where the agents of `MODULE` write their books.
        agent: To whom.
    """

    def __init__(self, client: Client, folder: Path, agent: str = "busy") -> None:
        self.answers: list[str] = []
        self.problems: list[Exception] = []
        self._client = client
        self._folder = folder
        self._agent = agent
        self._jobs: list[Job[str]] = []
        self._notes = 0
        self._over = asyncio.Event()
        self._senders: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        kinds = (self._ask, self._ask, self._submit, self._note)
        self._senders = [asyncio.create_task(self._go_on(kind)) for kind in kinds]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        await asyncio.gather(*self._senders)

    async def more(self, answers: int = 20) -> None:
        """Wait until so many more requests were answered."""
        wanted = len(self.answers) + answers
        await eventually(lambda: len(self.answers) >= wanted or self.problems, 20, what=f"{wanted} answers")

    async def settled(self) -> dict[str, int]:
        """Check, when all is over, that nothing was lost or had its effect twice; how much it was."""
        assert self.problems == []
        results = [await job.result(30) for job in self._jobs]
        await eventually(lambda: len(set(self._book("notes"))) == self._notes, 20, what="all durable events")
        effects = collections.Counter(self._book("effects"))
        assert len(effects) == len(self._jobs)
        repeated = sum(count - 1 for count in effects.values())
        return {
            "requests": len(self.answers),
            "tasks": len(results),
            "repeated effects of one key": repeated,
            "durable events": self._notes,
        }

    async def _go_on(self, step: Callable[[], Awaitable[None]]) -> None:
        while not self._over.is_set():
            try:
                await step()
            except Exception as error:  # whatever fails is what the test is about
                self.problems.append(error)
                return

    async def _ask(self) -> None:
        self.answers.append(await self._client.ask(self._agent, Ask(n=len(self.answers)), timeout=10))

    async def _submit(self) -> None:
        self._jobs.append(await self._client.submit(Work(n=len(self._jobs)), to=self._agent))
        await asyncio.sleep(0.01)

    async def _note(self) -> None:
        self._notes += 1
        await self._client.tell(self._agent, Note(n=self._notes))
        await asyncio.sleep(0.02)

    def _book(self, name: str) -> list[str]:
        path = self._folder / name
        return path.read_text().split() if path.exists() else []
