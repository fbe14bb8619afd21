"""Reading stored messages: by direct get, which any replica answers, or from the leader of the stream."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import msgspec

from agentmesh.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    DeadlineExceededError,
    JetStreamUnavailableError,
    NoRespondersError,
)
from agentmesh.transport.api import CALL_TIMEOUT, TRANSIENT, JetStreamApi, patiently
from agentmesh.transport.inbox import Mux
from agentmesh.transport.wire import Message, ServerStatus, is_no_responders, parse_headers

T = TypeVar("T")

BATCH_SILENCE = 2.0


PAGE = 500
"""Messages of a page; the first ones are smaller, so that something is there soon."""

FIRST_PAGE = 8

PAGE_BYTES = 2 * 1024 * 1024
"""Bytes after which the broker ends a page: two of them are held for each reader."""


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as a stream holds it."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]
    stamp: str
    """When it was stored, as the broker writes it."""

    @property
    def time(self) -> datetime:
        """When it was stored; aware, UTC."""
        return parse_time(self.stamp)

    def __repr__(self) -> str:
        return f"StoredMessage({self.subject!r}, {self.sequence}, {len(self.data)} bytes)"


_Page = tuple[list[StoredMessage], bool]
"""Messages, and whether there are more."""


class Reader:
    """Direct gets over one connection.

    Args:
        inbox: Of the connection.
        nobody_has: Called with a stream that nobody answered for; see `Mender`.
    """

    def __init__(self, inbox: Mux, nobody_has: Callable[[str], Awaitable[None]]) -> None:
        self._inbox = inbox
        self._nobody_has = nobody_has

    async def last(self, stream: str, subject: str) -> StoredMessage | None:
        return await self._one(f"{stream}.{subject}", b"")

    async def latest(self, stream: str, subject: str) -> StoredMessage | None:
        """The last message on `subject` as the leader of the stream has it."""
        answer = await JetStreamApi(self._inbox).find(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        if answer is None:
            return None
        found = answer["message"]
        headers = dict(parse_headers(b64decode(found["hdrs"]))) if "hdrs" in found else {}
        data = b64decode(found.get("data", ""))
        return StoredMessage(found["subject"], found["seq"], data, headers, found["time"])

    async def at(self, stream: str, sequence: int) -> StoredMessage | None:
        return await self._one(stream, msgspec.json.encode({"seq": sequence}))

    async def _one(self, where: str, body: bytes) -> StoredMessage | None:
        async def attempt(seconds: float) -> StoredMessage | None:
            reply = await self._inbox.attempt("$JS.API.DIRECT.GET." + where, body, timeout=seconds)
            if reply.headers is not None and "Nats-Sequence" in reply.headers:
                return _stored(reply)
            if type(reply.headers) is ServerStatus and reply.headers.code == "404":
                return None
            raise JetStreamUnavailableError(f"direct get of {where}", f"it answered {dict(reply.headers or {})}")

        return await self._patiently(attempt, where)

    async def pages(self, stream: str, subject: str, start: int) -> AsyncGenerator[list[StoredMessage], None]:
        """All there is from `start` on, page by page; the next one is fetched while one is worked on."""
        limit = FIRST_PAGE
        fetching = self._fetch(stream, subject, start, limit)
        try:
            more = True
            while more:
                page, more = await fetching
                if not page:
                    return
                if more:
                    limit = min(PAGE, 4 * limit)
                    fetching = self._fetch(stream, subject, page[-1].sequence + 1, limit)
                yield page
        finally:
            if not fetching.done():
                fetching.cancel()
                await asyncio.wait([fetching])
            elif not fetching.cancelled():
                fetching.exception()  # of a page that nobody wants any more

    def _fetch(self, stream: str, subject: str, start: int, limit: int) -> asyncio.Task[_Page]:
        async def attempt(_: float) -> _Page:
            return await self._batch(stream, subject, start, limit, PAGE_BYTES)

        return asyncio.get_running_loop().create_task(self._patiently(attempt, stream), name=f"page of {stream}")

    async def many(self, stream: str, subject: str, start: int, limit: int) -> list[StoredMessage]:
        got: list[StoredMessage] = []
        more = True
        while more and len(got) < limit:  # the broker ends a batch early when its messages are large

            async def attempt(_: float) -> tuple[list[StoredMessage], bool]:
                return await self._batch(stream, subject, start, limit - len(got))  # noqa: B023  (awaited at once)

            batch, more = await self._patiently(attempt, stream)
            got += batch
            start = batch[-1].sequence + 1 if batch else start
            more = more and bool(batch)
        return got

    async def _batch(self, stream: str, subject: str, start: int, limit: int, max_bytes: int = 0) -> _Page:
        """One batched get, and whether there is more. Over with its status line, or when nothing is left."""
        wanted = {"seq": max(1, start), "next_by_subj": subject, "batch": limit}
        body = msgspec.json.encode({**wanted, "max_bytes": max_bytes} if max_bytes else wanted)
        got: list[StoredMessage] = []
        pending = "0"
        over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_message(message: Message) -> None:
            nonlocal pending
            headers = message.headers or {}
            pending = headers.get("Nats-Num-Pending", pending)
            if "Nats-Sequence" in headers:
                got.append(_stored(message))
                if len(got) < limit and pending != "0":
                    return
                code = "204"
            elif is_no_responders(message):
                code = "503"
            else:
                code = headers.get("Status", "")
            if not over.done():
                over.set_result(code)

        inbox = self._inbox.open(on_message)
        try:
            await self._inbox.send("$JS.API.DIRECT.GET." + stream, body, inbox.subject)
            seen = -1
            while not over.done() and len(got) > seen:
                seen = len(got)
                await asyncio.wait({over}, timeout=BATCH_SILENCE)
        finally:
            inbox.close()
        if not over.done():
            raise DeadlineExceededError(f"reading {stream}", BATCH_SILENCE)
        if over.result() == "503":
            raise NoRespondersError(f"direct get of {stream}")
        if over.result() not in ("204", "404"):
            raise JetStreamUnavailableError(f"direct get of {stream}", f"it answered {over.result()}")
        return got, pending != "0"

    async def _patiently(self, attempt: Callable[[float], Awaitable[T]], where: str) -> T:
        async def mending(seconds: float) -> T:
            try:
                return await attempt(seconds)
            except NoRespondersError:
                await self._nobody_has(where.partition(".")[0])
                raise

        try:
            return await patiently(mending, CALL_TIMEOUT)
        except ConnectionClosedError:
            raise
        except TRANSIENT as error:
            raise ConnectionLostError(f"cannot read {where}: {error}") from error


def _stored(message: Message) -> StoredMessage:
    headers = message.headers or {}
    subject = headers.pop("Nats-Subject")
    sequence = int(headers.pop("Nats-Sequence"))
    stamp = headers.pop("Nats-Time-Stamp")
    for key in ("Nats-Stream", "Nats-Num-Pending", "Nats-Last-Sequence", "Nats-UpTo-Sequence"):
        headers.pop(key, None)
    return StoredMessage(subject, sequence, message.data, headers, stamp)


def parse_time(stamp: str) -> datetime:
    """A time of the broker: `2026-11-21T07:10:00.123456789Z`; Python reads at most six digits."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")
