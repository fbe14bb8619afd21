"""Operations that write, and the transaction around a batch of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agentmesh.errors import RevisionConflictError, StoreError, StoreLimitError
from agentmesh.lane import Function, Outcome, failures
from agentmesh.memory import MemoryRequest, Removed, Written
from agentmesh.memory_store.index import Scope, index_some
from agentmesh.memory_store.limits import MAX_VALUE, list_length
from agentmesh.memory_store.reading import tags_column

REMEMBERED = 300.0
"""Seconds for which a repeated write is recognised by its id."""
SWEEP = 500
"""Rows removed in one transaction by housekeeping."""

_FIND = "SELECT id, revision, expires_at FROM records WHERE tenant = ? AND namespace = ? AND key = ?"
_PUT = """
INSERT INTO records (tenant, namespace, key, value, size, length, revision, created_at, updated_at, expires_at,
                     kind, tags, importance, indexed)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)
ON CONFLICT (tenant, namespace, key) DO UPDATE SET
    value = excluded.value, size = excluded.size, length = excluded.length, revision = excluded.revision,
    created_at = iif(expires_at <= excluded.updated_at, excluded.created_at, created_at),
    updated_at = excluded.updated_at, expires_at = excluded.expires_at,
    kind = excluded.kind, tags = excluded.tags, importance = excluded.importance, indexed = 0
"""
_LIST = "SELECT value, length, expires_at FROM records WHERE id = ?"
_APPEND = """
UPDATE records SET value = ?, size = ?, length = ?, revision = ?, updated_at = ?, expires_at = ?, indexed = 0
WHERE id = ?
"""

Operation = Callable[[sqlite3.Connection, str, MemoryRequest], Any]


class Writer:
    """What the one writing connection does. Lives on that connection's thread.

    Args:
        clock: Seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.commits = 0
        """Transactions so far."""
        self.unindexed: set[Scope] = set()
        """Namespaces whose words are not all taken up. The event loop looks, this thread changes it."""
        self._clock = clock
        self._now = clock()
        self._revisions: dict[str, int] = {}
        # What the open transaction changes: it counts only after its commit.
        self._new_revisions: dict[str, int] = {}
        self._new_scopes: dict[Scope, bool] = {}
        self._operations: dict[str, tuple[Operation, type[Any]]] = {
            "put": (self._put, Written),
            "append": (self._append, Written),
            "delete": (self._delete, Removed),
            "forget": (self._forget, Removed),
        }

    # ------------------------------------------------------------ transactions
    def run(self, database: sqlite3.Connection, functions: Sequence[Function]) -> list[Outcome]:
        """One transaction for all. If the database refuses something in it, one each, so that only that one fails."""
        try:
            return self._transaction(database, functions)
        except Exception as error:  # the edge: whoever waits gets it, and the connection goes on
            if len(functions) == 1 or _concerns_all(error):
                return failures(error, len(functions))
        return [outcome for function in functions for outcome in self.run(database, [function])]

    def _transaction(self, database: sqlite3.Connection, functions: Sequence[Function]) -> list[Outcome]:
        self._now = self._clock()
        self._new_revisions, self._new_scopes = {}, {}
        database.execute("BEGIN IMMEDIATE")
        try:
            outcomes = _each(database, functions)
            database.executemany(
                "INSERT INTO revisions (tenant, revision) VALUES (?, ?)"
                " ON CONFLICT (tenant) DO UPDATE SET revision = excluded.revision",
                self._new_revisions.items(),
            )
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self.commits += 1
        self._revisions.update(self._new_revisions)
        for scope, complete in self._new_scopes.items():
            (self.unindexed.discard if complete else self.unindexed.add)(scope)
        return outcomes

    # ------------------------------------------------------------ operations
    def apply(self, database: sqlite3.Connection, operation: str, tenant: str, request: MemoryRequest) -> Any:
        """Do a write, or find out that it was done before.

        Raises:
            StoreError: Refused; nothing was written.
        """
        function, kind = self._operations[operation]
        if not request.op_id:
            return function(database, tenant, request)
        known = database.execute(
            "SELECT outcome FROM outcomes WHERE tenant = ? AND op_id = ?", (tenant, request.op_id)
        ).fetchone()
        if known is not None:
            return msgspec.json.decode(known[0], type=kind)
        outcome = function(database, tenant, request)
        database.execute(
            "INSERT INTO outcomes (tenant, op_id, outcome, at) VALUES (?, ?, ?, ?)",
            (tenant, request.op_id, msgspec.json.encode(outcome).decode(), self._now),
        )
        return outcome

    def _put(self, database: sqlite3.Connection, tenant: str, request: MemoryRequest) -> Written:
        if request.expect is not None:
            self._find(database, tenant, request)
        raw = bytes(request.value).strip()
        return self._store(database, tenant, request, raw, list_length(raw))

    def _append(self, database: sqlite3.Connection, tenant: str, request: MemoryRequest) -> Written:
        id_ = self._find(database, tenant, request)
        value, length, expires_at = ("[]", 0, None) if id_ is None else database.execute(_LIST, (id_,)).fetchone()
        if length is None:
            raise StoreError(f"record {request.namespace}/{request.key} is not a list; put a list there first")
        raw, length = _appended(value.encode(), length, bytes(request.value), request.keep)
        if len(raw) > MAX_VALUE:
            raise StoreLimitError("the list (bytes of JSON)", len(raw), MAX_VALUE)
        if id_ is None:
            return self._store(database, tenant, request, raw, length)
        if request.ttl is not None:
            expires_at = self._now + request.ttl
        revision = self._next_revision(database, tenant)
        database.execute(_APPEND, (raw.decode(), len(raw), length, revision, self._now, expires_at, id_))
        self._new_scopes[tenant, request.namespace] = False
        return Written(revision, length)

    def _delete(self, database: sqlite3.Connection, tenant: str, request: MemoryRequest) -> Removed:
        id_ = self._find(database, tenant, request)
        if id_ is None:
            return Removed(0)
        _remove(database, [(id_,)])
        return Removed(1)

    def _forget(self, database: sqlite3.Connection, tenant: str, request: MemoryRequest) -> Removed:
        scope = (tenant, request.namespace)
        alive = "(expires_at IS NULL OR expires_at > ?)"
        (count,) = database.execute(
            f"SELECT COUNT(*) FROM records WHERE tenant = ? AND namespace = ? AND {alive}", (*scope, self._now)
        ).fetchone()
        ids = database.execute("SELECT id FROM records WHERE tenant = ? AND namespace = ?", scope).fetchall()
        _remove(database, ids)
        return Removed(count)

    # ------------------------------------------------------------ housekeeping
    def index_some(self, database: sqlite3.Connection, scope: Scope) -> bool:
        """Take up the words of a few records; whether there may be more."""
        more = index_some(database, scope)
        self._new_scopes[scope] = not more
        return more

    def sweep_some(self, database: sqlite3.Connection) -> bool:
        """Remove a few records that expired, and outcomes nobody will ask for; whether there may be more."""
        ids = database.execute(
            "SELECT id FROM records WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (self._now, SWEEP)
        ).fetchall()
        _remove(database, ids)
        forgotten = database.execute(
            "DELETE FROM outcomes WHERE at < ? AND id IN (SELECT id FROM outcomes ORDER BY id LIMIT ?)",
            (self._now - REMEMBERED, SWEEP),
        ).rowcount
        return len(ids) == SWEEP or forgotten == SWEEP

    # ------------------------------------------------------------ parts
    def _find(self, database: sqlite3.Connection, tenant: str, request: MemoryRequest) -> int | None:
        """The id of the record, None if there is none (or it expired), once `expect` was compared with it.

        Raises:
            RevisionConflictError: They differ.
        """
        row = database.execute(_FIND, (tenant, request.namespace, request.key)).fetchone()
        if row is not None and row[2] is not None and row[2] <= self._now:
            row = None
        actual = 0 if row is None else row[1]
        if request.expect is not None and request.expect != actual:
            raise RevisionConflictError(request.namespace, request.key, request.expect, actual)
        return None if row is None else int(row[0])

    def _store(
        self, database: sqlite3.Connection, tenant: str, request: MemoryRequest, raw: bytes, length: int | None
    ) -> Written:
        """Write a whole record over what is there."""
        revision = self._next_revision(database, tenant)
        now = self._now
        expires_at = None if request.ttl is None else now + request.ttl
        scope = (tenant, request.namespace)
        times = (now, now, expires_at)
        about = (request.kind, tags_column(request.tags), request.importance)
        database.execute(_PUT, (*scope, request.key, raw.decode(), len(raw), length, revision, *times, *about))
        self._new_scopes[scope] = False
        return Written(revision, length)

    def _next_revision(self, database: sqlite3.Connection, tenant: str) -> int:
        last = self._new_revisions.get(tenant) or self._revisions.get(tenant)
        if last is None:
            row = database.execute("SELECT revision FROM revisions WHERE tenant = ?", (tenant,)).fetchone()
            last = int(row[0]) if row else 0
        self._new_revisions[tenant] = last + 1
        return last + 1


def _each(database: sqlite3.Connection, functions: Sequence[Function]) -> list[Outcome]:
    """A refusal comes before anything was written, and concerns one operation; any other error ends the batch."""
    outcomes: list[Outcome] = []
    for function in functions:
        try:
            outcomes.append(function(database))
        except StoreError as error:
            outcomes.append(error)
    return outcomes


def _concerns_all(error: Exception) -> bool:
    """Locked, full, unreadable, damaged: trying each alone would only take longer to fail."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _remove(database: sqlite3.Connection, ids: Sequence[tuple[int]]) -> None:
    database.executemany("DELETE FROM words WHERE rowid = ?", ids)
    database.executemany("DELETE FROM records WHERE id = ?", ids)


def _appended(raw: bytes, length: int, item: bytes, keep: int | None) -> tuple[bytes, int]:
    """A JSON list with an item more, without parsing it unless its beginning has to go."""
    if keep is not None and length >= keep:
        items = msgspec.json.decode(raw, type=list[msgspec.Raw])[length - keep + 1 :]
        return b"[" + b",".join([*map(bytes, items), item]) + b"]", len(items) + 1
    if length == 0:
        return b"[" + item + b"]", 1
    return raw.rstrip()[:-1] + b"," + item + b"]", length + 1
