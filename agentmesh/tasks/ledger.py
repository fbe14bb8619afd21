"""The submitter's ledger: what was submitted and is not decided yet, in a file of the submitter's own.

A broker keeps what it accepted, but not if its disk is damaged, its stream purged, or an old backup restored. A
submitter with a ledger writes each task down, on disk, before it submits it, and strikes it out when it is decided; the
reconciler (`reconcile`) submits again what the broker no longer has. Any number of processes may share a file.
"""

from __future__ import annotations

import inspect
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from agentmesh.errors import (
    InvalidNameError,
    JetStreamError,
    LedgerError,
    PayloadTooLargeError,
    PermissionDeniedError,
    PublishTimeoutError,
    ScheduleError,
    StoreError,
    StreamFullError,
)
from agentmesh.ids import new_id
from agentmesh.lane import Function, Lane, Outcome, failures, run_each
from agentmesh.transport import PubAck

log = logging.getLogger("agentmesh.ledger")

Stored = TypeVar("Stored", bound=PubAck | None)

PATIENCE = 35.0
"""Seconds an undecided task is left alone; longer than a submit may take, so that none under way is interfered with."""

WHAT = "the ledger"

APPLICATION_ID = 0x616D6C65  # "amle": tells our files from other people's SQLite databases
VERSION = 1

_SCHEMA = """
CREATE TABLE tasks (
    tenant TEXT NOT NULL,
    task_id TEXT NOT NULL,
    subject TEXT NOT NULL,
    body BLOB NOT NULL,          -- as it was, or would have been, published
    headers TEXT NOT NULL,       -- JSON
    state TEXT NOT NULL,         -- submitting, accepted, doubtful
    sequence INTEGER NOT NULL,   -- where the broker stored it; 0: unknown
    resubmitted INTEGER NOT NULL,
    owner TEXT NOT NULL,         -- who submitted it, or looked after it last
    created_at REAL NOT NULL,    -- seconds since 1970, like the other times
    seen_at REAL NOT NULL,       -- when it was known to be undecided
    look_at REAL NOT NULL,       -- when somebody shall look for it
    claimed_until REAL NOT NULL, -- until then its owner is at it, and nobody else
    PRIMARY KEY (tenant, task_id)
) WITHOUT ROWID
"""
_COLUMNS = "tenant, task_id, subject, body, headers, state, sequence, resubmitted, created_at, seen_at"

_NOTE = f"INSERT OR IGNORE INTO tasks ({_COLUMNS}, owner, look_at, claimed_until) VALUES ({'?, ' * 12}0)"
_ACCEPT = "UPDATE tasks SET state = 'accepted', sequence = ? WHERE tenant = ? AND task_id = ?"
_REFUSE = "DELETE FROM tasks WHERE tenant = ? AND task_id = ? AND state = 'submitting' AND owner = ?"
_STRIKE = "DELETE FROM tasks WHERE tenant = ? AND task_id = ?"
_UPDATE = """
UPDATE tasks SET state = ?, sequence = ?, resubmitted = ?, seen_at = ?, claimed_until = 0
WHERE tenant = ? AND task_id = ?
"""
_CLAIM = f"""
UPDATE tasks SET owner = ?, look_at = ?, claimed_until = ? WHERE (tenant, task_id) IN (
    SELECT tenant, task_id FROM tasks WHERE tenant = ? AND (owner = ? OR claimed_until <= ?) AND (
        (state != 'doubtful' AND look_at <= ?) OR (state = 'accepted' AND look_at < ?)
        OR (state = 'doubtful' AND look_at < ?)
    ) ORDER BY look_at LIMIT ?
) RETURNING {_COLUMNS}
"""

_REFUSALS = (
    StreamFullError,
    PayloadTooLargeError,
    JetStreamError,
    PermissionDeniedError,
    InvalidNameError,
    ScheduleError,
)
"""What says that a task was not accepted; with anything else its fate is unknown."""


@dataclass
class Entry:
    """A task in the ledger."""

    tenant: str
    task_id: str
    subject: str
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    state: str = "submitting"
    """`submitting`: never confirmed; `accepted`; `doubtful`: gone from the broker, and decided or not, nobody knows."""
    sequence: int = 0
    resubmitted: int = 0
    """How often it was submitted again."""
    created_at: float = 0.0
    seen_at: float = 0.0


class Ledger:
    """See the module. Made by `open`.

    Args:
        path: The file; made if need be.
        patience: Seconds an undecided task is left alone.
        clock: Seconds since 1970.
    """

    def __init__(self, path: Path | str, *, patience: float = PATIENCE, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self.patience = patience
        self.undecided: set[tuple[str, str]] = set()
        """Tenant and id of what this process submitted or looked after, and does not know to be decided."""
        self.under_way: set[tuple[str, str]] = set()
        """… of what it is just submitting."""
        self.commits = 0
        """Transactions so far; many tasks share one."""
        self._clock = clock
        self._owner = new_id()
        self._lane: Lane

    # ------------------------------------------------------------ opening and closing

    async def open(self) -> Self:
        """Open the file.

        Raises:
            LedgerError: It is no ledger, damaged, written by a newer agentmesh, or the disk refuses.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lane = await Lane.open(f"file:{quote(str(self.path.absolute()))}", run_each, WHAT)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(str(self.path), f"cannot be opened: {error}") from error
        try:
            await self._call(lambda database: _prepare(database, str(self.path)))
        except BaseException:
            await self._lane.close()
            raise
        self._lane.run = self._run
        return self

    async def close(self) -> None:
        """Write what waits, and close the file."""
        await self._lane.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------ the submitter

    async def submit(self, entry: Entry, stored: Awaitable[Stored]) -> Stored:
        """Write a task down, then await `stored`, which submits it; it is struck out again if it is refused.

        Whatever else happens in between, also that the process ends, leaves it in the file: it will be submitted.

        Raises:
            PublishTimeoutError: It was refused, but another process has submitted it meanwhile.
            LedgerError: It cannot be written down; it was not submitted.
        """
        key = (entry.tenant, entry.task_id)
        self.under_way.add(key)
        try:
            await self._note(entry)
            self.undecided.add(key)
            where = await stored
        except _REFUSALS as refusal:
            if not await self._refused(key):
                raise PublishTimeoutError(entry.subject, 0.0) from refusal
            self.undecided.discard(key)
            raise
        finally:
            self.under_way.discard(key)
            if inspect.iscoroutine(stored):
                stored.close()  # it was not begun, if the task could not be written down
        # Not waited for: if that gets lost, the task is looked for all the same.
        self._later(_ACCEPT, (where.sequence if where is not None else 0, *key))
        return where

    def decided(self, tenant: str, task_id: str) -> None:
        """Strike out a task, if it is ours; called with whatever is decided in the tenant. Not waited for."""
        if (tenant, task_id) in self.undecided:
            self.undecided.discard((tenant, task_id))
            self._later(_STRIKE, (tenant, task_id))

    def entry(
        self, tenant: str, task_id: str, subject: str, body: bytes, headers: dict[str, str] | None = None
    ) -> Entry:
        """A task that is to be submitted; what is published, and where."""
        return Entry(tenant, task_id, subject, body, headers or {})

    async def _note(self, entry: Entry) -> None:
        now = self._clock()
        entry.created_at = entry.seen_at = now
        await self._call(_changing(_NOTE, (*_row(entry), self._owner, now + self.patience)))

    async def _refused(self, key: tuple[str, str]) -> bool:
        return bool(await self._call(_changing(_REFUSE, (*key, self._owner))))

    # ------------------------------------------------------------ the reconciler

    def now(self) -> float:
        """The time by the ledger's clock."""
        return self._clock()

    async def claim(
        self, tenant: str, limit: int, *, began: float, early: bool = False, doubtful: bool = False
    ) -> list[Entry]:
        """Take up to `limit` tasks that it is time to look for. Nobody else gets them until our patience is over.

        Args:
            tenant: Whose.
            limit: The most.
            began: When this look through the ledger began: what was taken since then is not taken again.
            early: Also what was accepted just now, or looked for. What is not confirmed may be under way in another
                process, and is left alone.
            doubtful: Also those.
        """
        now = self._clock()
        until = now + self.patience
        before = began + self.patience
        times = (now, before if early else 0.0, before if doubtful else 0.0)
        given = (self._owner, until, until, tenant, self._owner, now, *times, limit)
        rows = await self._call(lambda database: database.execute(_CLAIM, given).fetchall())
        entries = [entry for row in rows if ((entry := _entry(row)).tenant, entry.task_id) not in self.under_way]
        self.undecided.update((entry.tenant, entry.task_id) for entry in entries)
        return entries

    async def update(self, entry: Entry) -> None:
        """Write down what is known about a task that was looked for."""
        entry.seen_at = entry.seen_at if entry.state == "doubtful" else self._clock()
        given = (entry.state, entry.sequence, entry.resubmitted, entry.seen_at, entry.tenant, entry.task_id)
        await self._call(_changing(_UPDATE, given))

    def age(self, entry: Entry) -> float:
        """Seconds since it was known to be undecided."""
        return self._clock() - entry.seen_at

    async def ls(self, limit: int = 1000) -> list[Entry]:
        """Up to `limit` tasks of all tenants, oldest first."""
        query = f"SELECT {_COLUMNS} FROM tasks ORDER BY created_at LIMIT ?"
        rows = await self._call(lambda database: database.execute(query, (limit,)).fetchall())
        return [_entry(row) for row in rows]

    # ------------------------------------------------------------ the file

    async def _call(self, function: Function) -> Any:
        try:
            return await self._lane.call(function)
        except StoreError as error:
            raise LedgerError(str(self.path), error.problem) from error

    def _later(self, statement: str, given: tuple[Any, ...]) -> None:
        try:
            self._lane.submit(_changing(statement, given), partial(_heard, self.path))
        except StoreError as error:  # it is looked for later, and found
            log.debug("%s: %s", self.path, error)

    def _run(self, database: sqlite3.Connection, functions: Sequence[Function]) -> list[Outcome]:
        """One transaction, and one disk sync, for all that waits."""
        try:
            database.execute("BEGIN IMMEDIATE")
            outcomes = [function(database) for function in functions]
            database.execute("COMMIT")
            self.commits += 1
        except sqlite3.Error as error:  # nobody who waits may take for written what is not
            if database.in_transaction:
                database.execute("ROLLBACK")
            return failures(error, len(functions), WHAT)
        return outcomes


def _changing(statement: str, given: tuple[Any, ...]) -> Function:
    """What executes the statement, and returns how many rows it changed: cursors stay on their thread."""
    return lambda database: database.execute(statement, given).rowcount


def _heard(path: Path, outcome: Outcome) -> None:
    if isinstance(outcome, BaseException):
        log.warning("%s could not be brought up to date: %s", path, outcome)


def _prepare(database: sqlite3.Connection, path: str) -> None:
    """Make the tables of a new file; refuse what is no ledger."""
    try:
        database.execute(f"PRAGMA busy_timeout = {10_000}")
        found = database.execute("PRAGMA user_version").fetchone()[0]
        ours = database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        if not ours and database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise LedgerError(path, "is a SQLite database of something else; give the ledger a file of its own")
        if found > VERSION:
            raise LedgerError(path, f"was written by a newer agentmesh (version {found}); upgrade agentmesh-nats")
        problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise LedgerError(path, f"is damaged ({problem}); move it away, and submit again what it held")
        # A task that is said to be written down is on disk: WAL with a sync at every commit.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN IMMEDIATE")  # several processes may make the same file
        if database.execute("PRAGMA user_version").fetchone()[0] == 0:
            database.execute(_SCHEMA)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        raise LedgerError(path, f"is no ledger, or damaged: {error}") from error


def _row(entry: Entry) -> tuple[Any, ...]:
    headers = msgspec.json.encode(entry.headers).decode()
    return (
        *(entry.tenant, entry.task_id, entry.subject, entry.body, headers, entry.state, entry.sequence),
        *(entry.resubmitted, entry.created_at, entry.seen_at),
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    tenant, task_id, subject, body, headers, *rest = row
    return Entry(tenant, task_id, subject, bytes(body), msgspec.json.decode(headers), *rest)
