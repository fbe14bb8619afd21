"""Group commit for SQLite files: everything that waits for a connection runs together, in one visit to its thread.

aiosqlite gives every connection a thread and visits it once per statement, at about 100 to 250 us a visit. A lane
collects operations while a visit is under way and takes all of them along on the next one: with 64 callers that is one
visit, and for the writer one transaction and one disk sync, for up to 64 operations.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import aiosqlite

from agentmesh.errors import AgentMeshError, StoreBusyError, StoreError

log = logging.getLogger("agentmesh.lane")

CAPACITY = 8192
"""Operations that may wait; more are refused at once."""
CAPACITY_BYTES = 64 * 1024 * 1024
MAX_BATCH = 512

MEMORY = "the memory store"

Function = Callable[[sqlite3.Connection], Any]
Outcome = Any
"""What the function returned, or the exception it raised."""
Work = tuple[Function, Callable[[Outcome], None], int]
"""What to run, whom to give the outcome, and the bytes it keeps alive while it waits."""
Runner = Callable[[sqlite3.Connection, Sequence[Function]], list[Outcome]]


class BatchConnection(sqlite3.Connection):
    """A connection whose `commit` first runs the batch that was put on it.

    aiosqlite has no public way to run a function on a connection's thread. But sqlite3 lets its users choose the class
    of a connection, aiosqlite passes that choice on, and `commit` is a public method that it runs on the thread and
    that needs no arguments. So a whole batch costs one visit, without touching anybody's private parts.
    """

    batch: Callable[[sqlite3.Connection], None] | None = None

    def commit(self) -> None:
        batch, self.batch = self.batch, None
        if batch is None:
            super().commit()
        else:
            batch(self)


class Lane:
    """One connection and those who wait for it. Made by `open`.

    Args:
        connection: Open.
        database: What `connection` has inside.
        run: Runs the functions of a batch, in order, on the connection's thread, and returns an outcome for each.
        what: Whose file it is, for errors.
    """

    def __init__(
        self, connection: aiosqlite.Connection, database: BatchConnection, run: Runner, what: str = MEMORY
    ) -> None:
        self.last_batch = 0
        """Operations that went along on the last visit to the thread."""
        self._connection = connection
        self._database = database
        self.run = run
        self._what = what
        self._waiting: deque[Work] = deque()
        self._bytes = 0
        self._closing = False
        self._wake = asyncio.Event()
        self._server = asyncio.get_running_loop().create_task(self._serve(), name=f"lane of {what}")

    @classmethod
    async def open(cls, uri: str, run: Runner, what: str = MEMORY) -> Lane:
        """Open a database by its SQLite URI.

        Raises:
            sqlite3.Error: It cannot be opened.
        """
        # Tried here first: an aiosqlite connection that cannot be opened leaves its thread behind.
        sqlite3.connect(uri, uri=True).close()
        made: list[BatchConnection] = []

        def factory(*args: Any, **kwargs: Any) -> BatchConnection:
            made.append(BatchConnection(*args, **{**kwargs, "factory": BatchConnection}))
            return made[0]

        connection = await _on_daemon_thread(
            partial(aiosqlite.connect, uri, uri=True, isolation_level=None, factory=factory)
        )
        return cls(connection, made[0], run, what)

    @property
    def waiting(self) -> int:
        """Operations that wait for the next visit."""
        return len(self._waiting)

    def submit(self, function: Function, done: Callable[[Outcome], None], size: int = 0) -> None:
        """Have `function(database)` run on the thread and `done(outcome)` called here, in the event loop.

        Args:
            function: Its turn comes in the order of submission.
            done: Must not raise.
            size: Bytes it keeps alive while it waits.

        Raises:
            StoreBusyError: Too many wait.
            StoreError: The store is closed.
        """
        if self._closing:
            raise StoreError(f"{self._what} is closed")
        if len(self._waiting) >= CAPACITY or self._bytes + size > CAPACITY_BYTES:
            raise StoreBusyError(len(self._waiting))
        self._waiting.append((function, done, size))
        self._bytes += size
        self._wake.set()

    async def call(self, function: Function, size: int = 0) -> Any:
        """`submit` and wait: returns what it returns, raises what it raises. When cancelled it may still be done."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(function, partial(settle, future), size)
        return await future

    async def close(self) -> None:
        """Do what waits, take nothing more, and close the connection."""
        self._closing = True
        self._wake.set()
        await self._server
        await self._connection.close()

    async def _serve(self) -> None:
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._visit()
                await asyncio.sleep(0)  # those who were just answered may have more, and come along on the next visit

    async def _visit(self) -> None:
        """Take along what waits."""
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        functions, callbacks, sizes = zip(*batch, strict=True)
        self._bytes -= sum(sizes)
        outcomes: list[Outcome] = []
        self._database.batch = lambda database: outcomes.extend(self.run(database, functions))
        try:
            await self._connection.commit()
        except Exception as error:  # the edge: nobody in the batch may wait for ever
            outcomes = failures(error, len(batch), self._what)
        self.last_batch = len(batch)
        for done, outcome in zip(callbacks, outcomes, strict=True):
            done(outcome)


def run_each(database: sqlite3.Connection, functions: Sequence[Function]) -> list[Outcome]:
    """A `Runner` for reading: each on its own."""
    return [attempt(database, function) for function in functions]


def attempt(database: sqlite3.Connection, function: Function) -> Outcome:
    """The outcome of one function; a failure never spreads to its neighbours in the batch."""
    try:
        return function(database)
    except AgentMeshError as error:
        return error
    except Exception as error:  # the edge: whoever waits gets it, and the connection goes on
        return failures(error, 1)[0]


def failures(error: Exception, count: int, what: str = MEMORY) -> list[Outcome]:
    """What `count` callers see of an error that none of them caused or nobody foresaw; the rest is in the log."""
    if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
        problem = f"another program keeps the file of {what} locked for writing; nothing was done, try again later"
    else:
        problem = f"{what} failed, nothing was done: {type(error).__name__}: {error}"
    log.error("%d operations failed: %s", count, problem, exc_info=error)
    return [StoreError(problem) for _ in range(count)]


def settle(future: asyncio.Future[Any], outcome: Outcome) -> None:
    """A `done` that hands the outcome to a future."""
    if future.done():  # cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def _on_daemon_thread(make: Callable[[], aiosqlite.Connection]) -> aiosqlite.Connection:
    """Open a connection whose thread does not keep the process alive when somebody forgets to close it.

    A thread is a daemon if the thread that made it is one. To end in the middle of anything is what a WAL is for.
    """
    made: list[aiosqlite.Connection] = []
    maker = threading.Thread(target=lambda: made.append(make()), daemon=True)
    maker.start()
    maker.join()
    return await made[0]
