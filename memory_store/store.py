"""The store: one SQLite file, one connection that writes, two that read, nothing that blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import msgspec

from agentmesh.errors import InvalidMessageError, StoreBusyError, StoreError
from agentmesh.lane import Lane, Outcome, run_each, settle
from agentmesh.memory import Found, Kind, MemoryRequest, Namespaces, Record, Removed, Written, to_raw
from agentmesh.memory_store import limits, reading, schema
from agentmesh.memory_store.index import Scope, unindexed
from agentmesh.memory_store.lock import FileLock
from agentmesh.memory_store.writing import Writer

log = logging.getLogger("agentmesh.memory_store")

INDEX_PERIOD = 0.5
"""Seconds after which words are taken up even while the writer is busy."""
SWEEP_PERIOD = 30.0
"""Seconds between removals of what expired; it is invisible at once."""

WRITES = frozenset({"put", "append", "delete", "forget"})
READS: dict[str, Callable[[sqlite3.Connection, str, MemoryRequest, float], Any]] = {
    "get": reading.get,
    "list": reading.list_,
    "search": reading.search,
    "namespaces": reading.namespaces,
}
OPERATIONS = WRITES | READS.keys()


class Store:
    """Records by (tenant, namespace, key).

        async with Store(Path("memory.db")) as store:
            await store.put("acme", "reviewer", "runs/1", {"found": 3})

    A write is on disk when its call returns. Refusals (`StoreBusyError`, `StoreLimitError`, `RevisionConflictError` …)
    come before anything is written.

    Args:
        path: Made with its folder if need be.
        clock: Seconds since 1970.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock
        self._lock = FileLock(self.path)
        self._work = Writer(clock)
        self._open = False
        self._writer: Lane
        self._gets: Lane
        self._scans: Lane
        self._housekeeper: asyncio.Task[None]
        self._written = asyncio.Event()

    # ------------------------------------------------------------ opening and closing
    async def open(self) -> Self:
        """Open the file; an older one is brought up to date.

        Raises:
            StoreLockedError: Another process has it open.
            StoreVersionError: A newer agentmesh wrote it.
            StoreError: It is not a memory file, or the disk refuses.
        """
        self._lock.acquire()
        try:
            await self._open_lanes()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"cannot open {self.path}: {error}") from error
            raise
        self._open = True
        if self._work.unindexed:
            self._written.set()
        self._housekeeper = asyncio.get_running_loop().create_task(self._keep_house(), name="memory store housekeeper")
        return self

    async def _open_lanes(self) -> None:
        uri = f"file:{quote(str(self.path.absolute()))}"
        opened = [await Lane.open(uri, run_each)]
        try:
            await opened[0].call(lambda database: schema.prepare(database, self.path))
            self._work.unindexed.update(await opened[0].call(unindexed))
            opened[0].run = self._work.run
            for _ in range(2):
                opened.append(await Lane.open(f"{uri}?mode=ro", run_each))
                await opened[-1].call(schema.prepare_reader)
        except BaseException:
            for lane in opened:
                await lane.close()
            raise
        # Gets have a connection of their own: they never wait behind a long search.
        self._writer, self._gets, self._scans = opened

    async def close(self) -> None:
        """Finish what waits, refuse what comes, close the file. May be called again."""
        if not self._open:
            return
        self._open = False
        self._housekeeper.cancel()
        await asyncio.wait([self._housekeeper])
        # The writer last: the last connection that closes folds the write-ahead log into the file.
        try:
            for lane in (self._gets, self._scans, self._writer):
                await lane.close()
        finally:
            self._lock.release()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------ operations
    async def put(
        self,
        tenant: str,
        namespace: str,
        key: str,
        value: Any,
        *,
        ttl: float | None = None,
        expect: int | None = None,
        kind: Kind = "",
        tags: tuple[str, ...] = (),
        importance: float = 0.0,
        op_id: str = "",
    ) -> Written:
        """Write a record over what is there; see `agentmesh.memory.Memory.put`."""
        request = MemoryRequest(
            namespace=namespace,
            key=key,
            value=to_raw(value),
            ttl=ttl,
            expect=expect,
            kind=kind,
            tags=tags,
            importance=importance,
            op_id=op_id,
        )
        outcome: Written = await self.run("put", tenant, request)
        return outcome

    async def append(
        self, tenant: str, namespace: str, key: str, item: Any, *, keep: int | None = None, op_id: str = ""
    ) -> Written:
        """Add an item to a list, made if there is none; see `agentmesh.memory.Memory.append`."""
        request = MemoryRequest(namespace=namespace, key=key, value=to_raw(item), keep=keep, op_id=op_id)
        outcome: Written = await self.run("append", tenant, request)
        return outcome

    async def get(self, tenant: str, namespace: str, key: str) -> Record | None:
        """The record, or None."""
        record: Record | None = await self.run("get", tenant, MemoryRequest(namespace=namespace, key=key))
        return record and _parsed(record)

    async def delete(self, tenant: str, namespace: str, key: str, *, expect: int | None = None) -> bool:
        """Remove a record; whether there was one."""
        outcome: Removed = await self.run("delete", tenant, MemoryRequest(namespace=namespace, key=key, expect=expect))
        return outcome.records > 0

    async def list(self, tenant: str, namespace: str, prefix: str = "", **options: Any) -> Found:
        """Records in the order of their keys; `options` are those of `agentmesh.memory.Memory.list`."""
        request = MemoryRequest(namespace=namespace, prefix=prefix, **options)
        return _all_parsed(await self.run("list", tenant, request))

    async def search(self, tenant: str, namespace: str, query: str, **options: Any) -> Found:
        """Records with these words, best first; `options` are those of `agentmesh.memory.Memory.search`."""
        request = MemoryRequest(namespace=namespace, query=query, **options)
        return _all_parsed(await self.run("search", tenant, request))

    async def namespaces(self, tenant: str) -> Namespaces:
        """Every namespace of the tenant that has records."""
        found: Namespaces = await self.run("namespaces", tenant, MemoryRequest())
        return found

    async def forget(self, tenant: str, namespace: str) -> int:
        """Remove every record of a namespace in one transaction; returns how many there were."""
        outcome: Removed = await self.run("forget", tenant, MemoryRequest(namespace=namespace))
        return outcome.records

    async def integrity_check(self) -> tuple[str, ...]:
        """What is wrong with the file; empty if nothing is. Reads all of it, while no write gets through."""
        return tuple(await self._writer.call(schema.integrity_check))

    async def sweep(self) -> None:
        """Remove what expired, and outcomes of writes nobody will repeat any more. Done every half a minute anyway."""
        while await self._writer.call(self._work.sweep_some):
            pass

    @property
    def commits(self) -> int:
        """Transactions so far; many writes share one."""
        return self._work.commits

    @property
    def waiting(self) -> int:
        """Operations whose turn has not come."""
        return sum(lane.waiting for lane in (self._writer, self._gets, self._scans)) if self._open else 0

    # ------------------------------------------------------------ one way in
    async def run(self, operation: str, tenant: str, request: MemoryRequest) -> Any:
        """Do an operation by name. When cancelled it may still be done."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(operation, tenant, request, partial(settle, future))
        return await future

    def submit(
        self, operation: str, tenant: str, request: MemoryRequest, done: Callable[[Outcome], None], *, size: int = 0
    ) -> None:
        """Have an operation done; `done` gets what it returns or the error it ends with, in the event loop.

        Values of records come as `msgspec.Raw`.

        Args:
            operation: One of `OPERATIONS`.
            tenant: Whose records.
            request: What exactly.
            done: Must not raise.
            size: Bytes that the request keeps in memory.

        Raises:
            StoreBusyError: Too many wait; nothing will be done.
            InvalidMessageError: The request makes no sense; nothing will be done.
            StoreLimitError: Something in it is too large; nothing will be done.
        """
        if operation not in OPERATIONS:
            known = ", ".join(sorted(OPERATIONS))
            raise InvalidMessageError(f"no memory operation {operation[:80]!r}; there are {known}")
        if not self._open:
            raise StoreError("the memory store is closed")
        limits.check(operation, tenant, request)
        if operation in WRITES:
            self._write(operation, tenant, request, done, size)
        elif operation == "search":
            self._search(tenant, request, done)
        else:
            self._read(operation, tenant, request, done)

    def _write(
        self, operation: str, tenant: str, request: MemoryRequest, done: Callable[[Outcome], None], size: int
    ) -> None:
        self._writer.submit(
            partial(self._work.apply, operation=operation, tenant=tenant, request=request),
            done,
            size or len(bytes(request.value)),
        )
        self._written.set()

    def _read(self, operation: str, tenant: str, request: MemoryRequest, done: Callable[[Outcome], None]) -> None:
        function, now = READS[operation], self._clock()
        lane = self._gets if operation == "get" else self._scans
        lane.submit(lambda database: function(database, tenant, request, now), done)

    def _search(self, tenant: str, request: MemoryRequest, done: Callable[[Outcome], None]) -> None:
        """Take up the words of what was written before, a step at a time, then search."""
        scope = (tenant, request.namespace)

        def indexed(more: Outcome) -> None:
            try:
                if isinstance(more, BaseException):
                    done(more)
                elif more:
                    self._writer.submit(step, indexed)
                else:
                    self._read("search", tenant, request, done)
            except StoreError as error:
                done(error)

        step = partial(self._work.index_some, scope=scope)
        if scope in self._work.unindexed:
            self._writer.submit(step, indexed)
        else:
            self._read("search", tenant, request, done)

    # ------------------------------------------------------------ housekeeping
    async def _keep_house(self) -> None:
        """Take up words soon after a write, remove what expired every now and then."""
        swept = self._clock()
        while True:
            try:
                async with asyncio.timeout(SWEEP_PERIOD):
                    await self._written.wait()
                    await asyncio.sleep(INDEX_PERIOD)
            except TimeoutError:
                pass
            self._written.clear()
            try:
                for scope in list(self._work.unindexed):
                    await self._index(scope)
                if self._clock() - swept >= SWEEP_PERIOD:
                    swept = self._clock()
                    await self.sweep()
            except StoreBusyError:
                self._written.set()
            except StoreError as error:  # a full disk, say: whoever writes is told, and it may pass
                log.warning("housekeeping of %s failed, trying again later: %s", self.path, error)

    async def _index(self, scope: Scope) -> None:
        """One step even if the writer is busy, all of them if it is not."""
        while await self._writer.call(partial(self._work.index_some, scope=scope)):
            if self._writer.last_batch > 1:  # somebody else was along
                self._written.set()  # the rest comes with the next round
                return


def _parsed(record: Record) -> Record:
    if isinstance(record.value, msgspec.Raw):
        record.value = msgspec.json.decode(record.value)
    return record


def _all_parsed(found: Found) -> Found:
    for record in found.records:
        _parsed(record)
    return found
