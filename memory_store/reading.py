"""Operations that only look. Each gets a database, whose records they are, a request that was checked, and the time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from agentmesh.memory import Found, MemoryRequest, NamespaceInfo, Record
from agentmesh.memory_store.index import query_of
from agentmesh.memory_store.limits import MAX_REPLY

_OVERHEAD = 512
"""Bytes an answer has for each record beside its value, about."""

_FIELDS = "key, value, revision, created_at, updated_at, expires_at, kind, tags, importance, length, size"
_OUTLINE = _FIELDS.replace("value", "NULL", 1)
_ALIVE = "tenant = ? AND namespace = ? AND (expires_at IS NULL OR expires_at > ?)"


def get(database: sqlite3.Connection, tenant: str, request: MemoryRequest, now: float) -> Record | None:
    row = database.execute(
        f"SELECT {_FIELDS} FROM records WHERE {_ALIVE} AND key = ?", (tenant, request.namespace, now, request.key)
    ).fetchone()
    return None if row is None else _record(row)


def list_(database: sqlite3.Connection, tenant: str, request: MemoryRequest, now: float) -> Found:
    limit = request.limit or 100
    where, parameters = _filters(request)
    rows = database.execute(
        f"SELECT {_FIELDS if request.values else _OUTLINE} FROM records"
        f" WHERE {_ALIVE} AND key >= ? AND key > ? AND key < ?{where} ORDER BY key LIMIT ?",
        (
            *(tenant, request.namespace, now),
            *(request.prefix, request.cursor, _after(request.prefix)),
            *parameters,
            limit + 1,
        ),
    )
    records, more = _fitting(rows, limit)
    return Found(records, cursor=records[-1].key if more else "")


def search(database: sqlite3.Connection, tenant: str, request: MemoryRequest, now: float) -> Found:
    query = query_of(request.query, (tenant, request.namespace))
    if query is None:
        return Found([])
    limit = request.limit or 10
    where, parameters = _filters(request)
    rows = database.execute(
        f"SELECT {_FIELDS} FROM words JOIN records ON records.id = words.rowid"
        f" WHERE words MATCH ? AND {_ALIVE}{where} ORDER BY bm25(words, 0.0, 1.0), records.id LIMIT ?",
        (query, tenant, request.namespace, now, *parameters, limit),
    )
    return Found(_fitting(rows, limit)[0])


def namespaces(database: sqlite3.Connection, tenant: str, request: MemoryRequest, now: float) -> list[NamespaceInfo]:
    rows = database.execute(
        "SELECT namespace, COUNT(*), SUM(size) FROM records"
        " WHERE tenant = ? AND (expires_at IS NULL OR expires_at > ?) GROUP BY namespace ORDER BY namespace",
        (tenant, now),
    )
    return [NamespaceInfo(*row) for row in rows]


def tags_column(tags: Iterable[str]) -> str:
    """Each tag between two line feeds, which no tag contains."""
    return "".join(f"\n{tag}" for tag in tags) + "\n" if tags else ""


def _filters(request: MemoryRequest) -> tuple[str, list[Any]]:
    """The conditions for kind, tags and importance, and their parameters."""
    where, parameters = "", list[Any]()
    if request.kind:
        where += " AND kind = ?"
        parameters.append(request.kind)
    for tag in request.tags:
        where += " AND instr(tags, ?) > 0"
        parameters.append(f"\n{tag}\n")
    if request.importance > 0:
        where += " AND importance >= ?"
        parameters.append(request.importance)
    return where, parameters


def _fitting(rows: Iterable[tuple[Any, ...]], limit: int) -> tuple[list[Record], bool]:
    """As many records as are wanted and fit in an answer, at least one; and whether there are more."""
    records: list[Record] = []
    room = MAX_REPLY
    for row in rows:
        record = _record(row)
        room -= _OVERHEAD + len(record.key) + (record.size if record.value is not None else 0)
        if len(records) == limit or (room < 0 and records):
            return records, True
        records.append(record)
    return records, False


def _record(row: tuple[Any, ...]) -> Record:
    """The value stays the JSON it is stored as, and goes to the client unparsed."""
    key, value, revision, created_at, updated_at, expires_at, kind, tags, importance, length, size = row
    return Record(
        key=key,
        value=None if value is None else msgspec.Raw(value.encode()),
        revision=revision,
        created_at=datetime.fromtimestamp(created_at, UTC),
        updated_at=datetime.fromtimestamp(updated_at, UTC),
        expires_at=None if expires_at is None else datetime.fromtimestamp(expires_at, UTC),
        kind=kind,
        tags=tuple(tags.strip("\n").split("\n")) if tags else (),
        importance=importance,
        length=length,
        size=size,
    )


def _after(prefix: str) -> str | bytes:
    """What sorts right after every key that starts with `prefix`. SQLite sorts text by its UTF-8 bytes, and any blob
    after any text."""
    for end in range(len(prefix) - 1, -1, -1):
        if prefix[end] < "\U0010ffff":
            following = ord(prefix[end]) + 1
            return prefix[:end] + chr(0xE000 if following == 0xD800 else following)
    return b""
