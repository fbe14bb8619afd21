"""Memory of agents: durable JSON records in namespaces, kept by the memory service.

    memory = mesh.memory("reviewer")                       # an agent has its own: self.memory
    revision = await memory.put("runs/1", {"found": 3}, ttl=86400.0, tags=["nightly"])
    record = await memory.get("runs/1")                    # a Record, or None
    await memory.put("runs/1", {"found": 4}, expect=revision)   # RevisionConflictError if somebody was faster
    await memory.append("log", "reviewed a.py")            # a list that grows
    for record in await memory.search("flaky tests"): ...  # full text, best first

A write is on disk when its call returns, and every read that starts later sees it. What goes over the wire is here
too, so that the service and other clients share it: JSON requests to `ai.agent.memory.T.<operation>`, answered with
`{"ok": …}` or `{"error": {"type", "message", "fields"}}`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
from pydantic import BaseModel

from agentmesh import codec
from agentmesh.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    InvalidMessageError,
    NoRespondersError,
    StoreBusyError,
    StoreUnavailableError,
    error_from_wire,
)
from agentmesh.ids import new_id
from agentmesh.subjects import Subjects, token

if TYPE_CHECKING:
    from agentmesh.transport import Transport

T = TypeVar("T")

Kind = Literal["", "short_term", "long_term", "episodic", "semantic"]
"""What a record is to its agent; only a label to filter by."""

ATTEMPT_TIMEOUT = 2.0
"""Seconds until an unanswered request is repeated; writes carry an id, so they are applied once."""
PATIENCE = 1.0
"""Seconds to wait for a service that was never heard of: as long as a restart takes. One that has answered before is
waited for until the timeout."""

NO_VALUE = msgspec.Raw()


class MemoryRequest(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """One operation as it goes over the wire. The tenant is never in it: it is in the subject."""

    operation: str = ""
    """Only for the bare subject `ai.agent.memory.T`; elsewhere it is the last token of the subject."""
    namespace: str = ""
    op_id: str = ""
    """Id of a write: repeated with the same id within five minutes it is not done again, and has the same outcome."""
    key: str = ""
    value: msgspec.Raw = NO_VALUE
    """What `put` stores or `append` adds."""
    ttl: float | None = None
    expect: int | None = None
    kind: Kind = ""
    tags: tuple[str, ...] = ()
    importance: float = 0.0
    keep: int | None = None
    prefix: str = ""
    query: str = ""
    limit: int | None = None
    cursor: str = ""
    values: bool = True


class Record(msgspec.Struct, kw_only=True):
    """A record as it was when it was read."""

    key: str
    value: Any
    """None when only the outlines were asked for."""
    revision: int
    """Grows with every write in the tenant; never used twice, so an equal revision means an unchanged record."""
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    kind: Kind = ""
    tags: tuple[str, ...] = ()
    importance: float = 0.0
    length: int | None = None
    """Items, if the value is a list."""
    size: int = 0
    """Bytes of the value as JSON."""

    def read_as(self, kind: type[T]) -> T:
        """The value as an instance of a pydantic model, dataclass or any other type.

        Raises:
            InvalidMessageError: It does not fit.
        """
        value: T = codec.decode_body(kind, msgspec.json.encode(self.value))
        return value


class Written(msgspec.Struct, omit_defaults=True):
    """Outcome of `put` and `append`."""

    revision: int
    length: int | None = None
    """Items the list has now, after an append."""


class Removed(msgspec.Struct):
    """Outcome of `delete` and `forget`."""

    records: int


class Found(msgspec.Struct, omit_defaults=True):
    """Outcome of `list` and `search`."""

    records: list[Record]
    cursor: str = ""
    """Give it to `list` for what follows; empty at the end."""


class NamespaceInfo(msgspec.Struct):
    """One line of `namespaces`."""

    namespace: str
    records: int
    size: int
    """Bytes of the values as JSON."""


class _Reply(msgspec.Struct):
    ok: msgspec.Raw = NO_VALUE
    error: dict[str, Any] | None = None


Records = list[Record]
Namespaces = list[NamespaceInfo]


class Memory:
    """The records of one namespace.

    Every call raises `StoreUnavailableError` when no memory service answers in time, and other `StoreError`s when it
    refuses.

    Args:
        transport: The connection.
        subjects: Whose memory.
        namespace: Usually an agent's name.
        timeout: Seconds a call may take, repetitions included; a write repeated for more than five minutes might be
            done twice.
    """

    def __init__(self, transport: Transport, subjects: Subjects, namespace: str, *, timeout: float = 5.0) -> None:
        self.name = token("namespace", namespace)
        self.timeout = timeout
        self._transport = transport
        self._subjects = subjects
        self._answered = False

    def namespace(self, name: str) -> Memory:
        """The records of another namespace of the tenant."""
        return Memory(self._transport, self._subjects, name, timeout=self.timeout)

    async def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | None = None,
        expect: int | None = None,
        kind: Kind = "",
        tags: Iterable[str] = (),
        importance: float = 0.0,
    ) -> int:
        """Write a record, replacing what is there; returns its revision.

        Args:
            key: Up to 512 bytes, without control characters.
            value: Anything JSON can say, or a pydantic model; up to 256 KiB as JSON.
            ttl: Seconds until it disappears; None keeps it.
            expect: Write only if the record is at this revision; 0: only if there is none.
            kind: A label to filter by.
            tags: Up to 16 more of them.
            importance: 0.0 to 1.0, to filter by.

        Raises:
            RevisionConflictError: `expect` does not hold; nothing was written.
            StoreLimitError: Too large; nothing was written.
        """
        outcome = await self._write(
            "put",
            Written,
            key=key,
            value=to_raw(value),
            ttl=ttl,
            expect=expect,
            kind=kind,
            tags=tuple(tags),
            importance=importance,
        )
        return outcome.revision

    async def get(self, key: str) -> Record | None:
        """The record, or None."""
        record: Record | None = await self._call("get", Record | None, MemoryRequest(namespace=self.name, key=key))
        return record

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Remove a record; whether there was one.

        Raises:
            RevisionConflictError: The record is not at revision `expect`; it stays.
        """
        outcome = await self._write("delete", Removed, key=key, expect=expect)
        return outcome.records > 0

    async def append(
        self,
        key: str,
        item: Any,
        *,
        keep: int | None = None,
        ttl: float | None = None,
        expect: int | None = None,
        kind: Kind = "",
        tags: Iterable[str] = (),
        importance: float = 0.0,
    ) -> Written:
        """Add an item to the end of a list, made if there is none; returns the revision and the length.

        Args:
            key: The list.
            item: Anything JSON can say, or a pydantic model.
            keep: Only the last `keep` items stay; None keeps all, until the list is as large as a value may be.
            ttl: Seconds until the list disappears, counted anew; None leaves that as it was.
            expect: As in `put`.
            kind: As in `put`; like tags and importance used when the list is made.
            tags: As in `put`.
            importance: As in `put`.

        Raises:
            StoreError: The record is no list.
            StoreLimitError: The list would be too large; nothing was written.
        """
        return await self._write(
            "append",
            Written,
            key=key,
            value=to_raw(item),
            keep=keep,
            ttl=ttl,
            expect=expect,
            kind=kind,
            tags=tuple(tags),
            importance=importance,
        )

    async def list(
        self,
        prefix: str = "",
        *,
        limit: int = 100,
        cursor: str = "",
        values: bool = True,
        kind: Kind = "",
        tags: Iterable[str] = (),
        importance: float = 0.0,
    ) -> Found:
        """Records in the order of their keys.

        Args:
            prefix: How the keys start.
            limit: The most to return, up to 1000; fewer come when they are large.
            cursor: Of the page before; empty starts at the beginning.
            values: False leaves the values out.
            kind: Only records of this kind.
            tags: Only records with all of these tags.
            importance: Only records at least as important.
        """
        request = MemoryRequest(
            namespace=self.name,
            prefix=prefix,
            limit=limit,
            cursor=cursor,
            values=values,
            kind=kind,
            tags=tuple(tags),
            importance=importance,
        )
        found: Found = await self._call("list", Found, request)
        return found

    async def scan(self, prefix: str = "", *, values: bool = True) -> AsyncIterator[Record]:
        """All records whose key starts with `prefix`, fetched page by page."""
        cursor = ""
        while True:
            page = await self.list(prefix, cursor=cursor, values=values)
            for record in page.records:
                yield record
            cursor = page.cursor
            if not cursor:
                return

    async def search(
        self, query: str, *, limit: int = 10, kind: Kind = "", tags: Iterable[str] = (), importance: float = 0.0
    ) -> Records:
        """Records that contain words of `query` in their key, tags or texts, best first.

        Every word is taken literally: nothing in `query` is an operator. English word endings do not matter.

        Args:
            query: Words; the first 32 count.
            limit: The most to return, up to 1000; fewer come when they are large.
            kind: Only records of this kind.
            tags: Only records with all of these tags.
            importance: Only records at least as important.
        """
        request = MemoryRequest(
            namespace=self.name, query=query, limit=limit, kind=kind, tags=tuple(tags), importance=importance
        )
        found: Found = await self._call("search", Found, request)
        return found.records

    async def namespaces(self) -> Namespaces:
        """Every namespace of the tenant that has records."""
        namespaces: Namespaces = await self._call("namespaces", Namespaces, MemoryRequest())
        return namespaces

    async def forget(self) -> int:
        """Remove every record of this namespace; returns how many there were."""
        outcome = await self._write("forget", Removed)
        return outcome.records

    # ------------------------------------------------------------ the wire
    async def _write(self, operation: str, outcome_type: type[T], /, **fields: Any) -> T:
        request = MemoryRequest(namespace=self.name, op_id=new_id(), **fields)
        outcome: T = await self._call(operation, outcome_type, request)
        return outcome

    async def _call(self, operation: str, kind: Any, request: MemoryRequest) -> Any:
        """Ask until there is an answer or the time is up. Safe to repeat: see `op_id`."""
        loop = asyncio.get_running_loop()
        subject, body = self._subjects.memory(operation), msgspec.json.encode(request)
        began, pause = loop.time(), 0.02
        while True:
            left = began + self.timeout - loop.time()
            try:
                return await self._once(subject, body, kind, min(ATTEMPT_TIMEOUT, max(left, 0.01)))
            except (NoRespondersError, DeadlineExceededError, ConnectionLostError, StoreBusyError) as error:
                absent = isinstance(error, NoRespondersError) and not self._answered
                left = began + (min(PATIENCE, self.timeout) if absent else self.timeout) - loop.time()
                if left <= pause:
                    if isinstance(error, StoreBusyError):
                        raise
                    problem = f"{_SAID[type(error)]} within {loop.time() - began:.1f} s"
                    raise StoreUnavailableError(self._subjects.tenant, problem) from error
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(0.25, pause * 2)

    async def _once(self, subject: str, body: bytes, kind: Any, timeout: float) -> Any:
        # `attempt`, not `request`: nothing piles up in the write buffer while there is no connection.
        message = await self._transport.connection.inbox.attempt(subject, body, timeout=timeout)
        self._answered = True
        try:
            reply = msgspec.json.decode(message.data, type=_Reply)
            if reply.error is None:
                return msgspec.json.decode(reply.ok, type=kind)
        except msgspec.MsgspecError as error:
            raise InvalidMessageError(f"the memory service sent an answer that is none: {error}") from error
        raise error_from_wire(reply.error, "memory")


_SAID: dict[type[BaseException], str] = {
    NoRespondersError: "nobody listens",
    DeadlineExceededError: "no answer",
    ConnectionLostError: "no connection to the broker",
}


def to_raw(value: Any) -> msgspec.Raw:
    """The JSON of a value; what is `msgspec.Raw` already is taken as it is.

    Raises:
        InvalidMessageError: JSON cannot say it.
    """
    try:
        return value if isinstance(value, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(value, enc_hook=_plain))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidMessageError(f"a {type(value).__name__} cannot be stored as JSON: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is neither JSON nor a pydantic model")
