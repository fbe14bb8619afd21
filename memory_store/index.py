"""Full text: what of a record is searched, how a user's words become a query, and how the index follows the records.

A write only marks its record; the words are taken up a little later, when the writer has nothing else to do, or before
a search of that namespace. So writers do not pay for them, a record rewritten ten times in a row is indexed once, and
a search still sees every write that was answered before it.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from typing import Any

import msgspec

STEP = 1024
"""Records indexed in one transaction, about 15 ms: more than the writes of one batch, so that a search of a namespace
with any number of writers catches up."""
STEP_BYTES = 4 * 1024 * 1024
MAX_WORDS = 32

Scope = tuple[str, str]
"""Tenant and namespace."""

_WORD = re.compile(r"\w+")


def query_of(words: str, scope: Scope) -> str | None:
    """The FTS5 query for a user's words, any of which may match; None if there is none.

    A parameter does not protect MATCH, which has a language of its own: each word is quoted, and only letters, digits
    and underscores get in.
    """
    quoted = [f'"{word}"' for word in _WORD.findall(words)[:MAX_WORDS]]
    return f'scope : "{_scope_word(scope)}" AND text : ({" OR ".join(quoted)})' if quoted else None


def index_some(database: sqlite3.Connection, scope: Scope) -> bool:
    """Take up the words of a few records of a namespace; whether there may be more."""
    cursor = database.execute(
        "SELECT id, key, tags, value FROM records WHERE tenant = ? AND namespace = ? AND indexed = 0", scope
    )
    rows: list[tuple[int, str, str, str]] = []
    room = STEP_BYTES
    for row in cursor:
        rows.append(row)
        room -= len(row[3])
        if len(rows) == STEP or room < 0:
            break
    more = cursor.fetchone() is not None
    cursor.close()
    word = _scope_word(scope)
    ids = [(row[0],) for row in rows]
    database.executemany("DELETE FROM words WHERE rowid = ?", ids)
    database.executemany(
        "INSERT INTO words (rowid, scope, text) VALUES (?, ?, ?)",
        [(id_, word, f"{key}\n{tags}\n{_text(value)}") for id_, key, tags, value in rows],
    )
    database.executemany("UPDATE records SET indexed = 1 WHERE id = ?", ids)
    return more


def unindexed(database: sqlite3.Connection) -> list[Scope]:
    """Namespaces with records whose words are not taken up yet."""
    return database.execute("SELECT DISTINCT tenant, namespace FROM records WHERE indexed = 0").fetchall()


def _scope_word(scope: Scope) -> str:
    """One word per namespace, so that the index of one is not slowed down by the others. Equal words for two of them
    do no harm: a search compares tenant and namespace of what it finds."""
    return "n" + hashlib.blake2s("/".join(scope).encode(), digest_size=8).hexdigest()


def _text(value: str) -> str:
    """Every string in a JSON value, in order."""
    found: list[str] = []
    stack: list[Any] = [msgspec.json.decode(value)]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            stack.extend(reversed(item))
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
    return "\n".join(found)
