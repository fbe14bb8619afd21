"""The database: its tables, how a file is opened, and how an older one is brought up to date.

records     the records; (tenant, namespace, key) is unique, `id` only ties a record to its words
words       full-text index of records; brought up to date after the write, see `index`
revisions   the last revision given out, per tenant
outcomes    ids of recent writes and how they ended, so that a repeated write is done once
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from agentmesh.errors import StoreError, StoreVersionError

APPLICATION_ID = 0x616D656D  # "amem": tells our files from other people's SQLite databases

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another program, such as the sqlite3 shell, that keeps the file locked."""

_FIRST = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,         -- JSON
    size INTEGER NOT NULL,       -- bytes of the value
    length INTEGER,              -- items, if the value is a list
    revision INTEGER NOT NULL,
    created_at REAL NOT NULL,    -- seconds since 1970, like the other times
    updated_at REAL NOT NULL,
    expires_at REAL,
    kind TEXT NOT NULL,
    tags TEXT NOT NULL,          -- each between two line feeds, so that one can be looked for as a whole
    importance REAL NOT NULL,
    indexed INTEGER NOT NULL,    -- whether `words` has this state of the record
    UNIQUE (tenant, namespace, key)
);
CREATE INDEX records_expiring ON records (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX records_unindexed ON records (tenant, namespace) WHERE indexed = 0;
CREATE VIRTUAL TABLE words USING fts5 (scope, text, tokenize = 'porter unicode61 remove_diacritics 2');
CREATE TABLE revisions (tenant TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE outcomes (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    op_id TEXT NOT NULL,
    outcome TEXT NOT NULL,       -- JSON
    at REAL NOT NULL,
    UNIQUE (tenant, op_id)
);
"""


def _statements(script: str) -> Callable[[sqlite3.Connection], None]:
    def step(database: sqlite3.Connection) -> None:
        for statement in script.split(";\n"):
            database.execute(statement)  # not executescript, which would commit what was done so far

    return step


MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = [_statements(_FIRST)]
"""Step n takes a file from version n to n + 1. Steps are never changed, only added."""

SCHEMA_VERSION = len(MIGRATIONS)


def prepare(database: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file, bring an older one up to date, refuse others.

    Raises:
        StoreVersionError: It was written by a newer agentmesh; it was not touched.
        StoreError: It is not a memory file, or damaged.
    """
    try:
        found = _pragma(database, "user_version")
        ours = _pragma(database, "application_id") == APPLICATION_ID
        empty = not database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if not ours and not empty:
            raise StoreError(f"{path} is a SQLite database of something else; give the memory service its own file")
        if found > SCHEMA_VERSION:
            raise StoreVersionError(str(path), found, SCHEMA_VERSION)
        # What is answered "ok" is on disk: WAL with a sync at every commit.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
        database.execute("PRAGMA journal_size_limit = 67108864")
        _migrate(database, found)
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} cannot be opened as a memory file: {error}") from error


def prepare_reader(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
    database.execute("PRAGMA query_only = ON")


def integrity_check(database: sqlite3.Connection) -> list[str]:
    """What is wrong with the file, tables and full-text index; empty if nothing is."""
    problems = [str(row[0]) for row in database.execute("PRAGMA integrity_check") if row[0] != "ok"]
    try:
        database.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    except sqlite3.DatabaseError as error:
        problems.append(f"full-text index: {error}")
    return problems


def _migrate(database: sqlite3.Connection, found: int) -> None:
    if found == SCHEMA_VERSION:
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        for step in MIGRATIONS[found:]:
            step(database)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])
