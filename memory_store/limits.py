"""What a request may ask for: checked before it waits, so that what reaches the database can be done."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec

from agentmesh.errors import InvalidMessageError, StoreLimitError
from agentmesh.memory import MemoryRequest
from agentmesh.subjects import token

MAX_KEY = 512
"""Bytes."""
MAX_VALUE = 256 * 1024
"""Bytes as JSON."""
MAX_DEPTH = 100
"""Levels of lists and objects in a value: readers in any language must be able to parse it."""
MAX_TAGS = 16
MAX_TAG = 64
MAX_QUERY = 4096
"""Characters."""
MAX_LIMIT = 1000
MAX_REPLY = 384 * 1024
"""Bytes of records in one answer; NATS messages are limited to 1 MiB by default."""
MAX_TTL = 100 * 366 * 86400.0
MAX_INTEGER = 2**63 - 1

_OF_A_KEY = frozenset({"put", "get", "delete", "append"})
_OF_A_VALUE = frozenset({"put", "append"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def check(operation: str, tenant: str, request: MemoryRequest) -> None:
    """Refuse what cannot be done.

    Raises:
        InvalidNameError: The tenant, namespace or operation id is not a name.
        InvalidMessageError: A field is missing or makes no sense.
        StoreLimitError: A field is too large.
    """
    _check_scope(tenant, "any" if operation == "namespaces" else request.namespace)
    if request.op_id:
        token("operation id", request.op_id)
    if operation in _OF_A_KEY:
        _check_text("key", request.key, MAX_KEY)
        if not request.key:
            raise InvalidMessageError("a record needs a key")
    if operation in _OF_A_VALUE:
        _check_value(bytes(request.value))
    if request.tags:
        _check_tags(request.tags)
    _check_numbers(request)
    _check_text("prefix", request.prefix, MAX_KEY)
    _check_text("cursor", request.cursor, MAX_KEY)
    if len(request.query) > MAX_QUERY:
        raise StoreLimitError("the query", len(request.query), MAX_QUERY)


@lru_cache(maxsize=4096)
def _check_scope(tenant: str, namespace: str) -> None:
    """Remembers good names; a bad one raises every time."""
    token("tenant", tenant)
    token("namespace", namespace)


def list_length(raw: bytes) -> int | None:
    """Items of a JSON list without space before it; None for anything else."""
    return len(msgspec.json.decode(raw)) if raw[:1] == b"[" else None


def _check_text(what: str, text: str, limit: int) -> None:
    if len(text) <= limit and text.isascii() and text.isprintable():  # nearly always
        return
    if _CONTROL.search(text):
        raise InvalidMessageError(f"the {what} {text[:80]!r} contains a control character or half a character")
    if len(text.encode()) > limit:
        raise StoreLimitError(f"the {what} (in bytes)", len(text.encode()), limit)


def _check_value(raw: bytes) -> None:
    if not raw:
        raise InvalidMessageError("a value is missing (null is one)")
    if len(raw) > MAX_VALUE:
        raise StoreLimitError("the value (bytes of JSON)", len(raw), MAX_VALUE)
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidMessageError(f"the value is not JSON: {error}") from error
    # Brackets inside strings count too, so this only says that a look is needed.
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and (depth := _depth(value)) > MAX_DEPTH:
        raise StoreLimitError("the nesting of the value", depth, MAX_DEPTH)


def _depth(value: Any) -> int:
    """Levels of lists and objects in a value; by level instead of by recursion, which has a limit of its own."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _check_numbers(request: MemoryRequest) -> None:
    if request.ttl is not None and not 0 < request.ttl <= MAX_TTL:
        raise InvalidMessageError(f"ttl must be a number of seconds above 0, not {request.ttl}")
    if request.expect is not None and not 0 <= request.expect <= MAX_INTEGER:
        raise InvalidMessageError(f"expect must be a revision, or 0 for no record, not {request.expect}")
    if not 0 <= request.importance <= 1:  # nor is NaN
        raise InvalidMessageError(f"importance must be between 0.0 and 1.0, not {request.importance}")
    if request.keep is not None and not 1 <= request.keep <= MAX_INTEGER:
        raise InvalidMessageError(f"keep must be 1 or more, not {request.keep}")
    if request.limit is not None and not 1 <= request.limit <= MAX_LIMIT:
        raise InvalidMessageError(f"limit must be between 1 and {MAX_LIMIT}, not {request.limit}")


def _check_tags(tags: tuple[str, ...]) -> None:
    if len(tags) > MAX_TAGS:
        raise StoreLimitError("the number of tags", len(tags), MAX_TAGS)
    for tag in tags:
        if not tag:
            raise InvalidMessageError("a tag is empty")
        _check_text("tag", tag, MAX_TAG)
