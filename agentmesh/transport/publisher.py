"""Durable publishes: confirmed by the stream, repeated with the same id until they are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from agentmesh.errors import (
    BrokerError,
    ConnectionClosedError,
    JetStreamUnavailableError,
    NoRespondersError,
    PayloadTooLargeError,
    PublishTimeoutError,
    SequenceConflictError,
    StreamFullError,
)
from agentmesh.ids import new_id
from agentmesh.transport.api import ATTEMPT_TIMEOUT, TRANSIENT, JetStreamApi, is_transient, patiently, refusal
from agentmesh.transport.connection import Connection
from agentmesh.transport.wire import Message

WINDOW = 256
"""Publishes in flight on one connection; more gain nothing, fewer cost throughput."""

_FULL, _TOO_LARGE, _CONFLICT = 10077, 10054, (10071, 10164)


class PubAck(msgspec.Struct, frozen=True):
    """Where a message is stored. `duplicate`: it was there already, under the same id."""

    stream: str
    sequence: int = msgspec.field(name="seq")
    duplicate: bool = False
    total: int | None = None
    """On a stream of counters: the subject's total with this message. None if the message was there already."""


class _Refusal(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    val: str = ""
    error: _Refusal | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class Publisher:
    """Durable publishes over one connection.

    Args:
        connection: Which.
        nobody_on: Called with a subject that no stream took; see `Mender`.
    """

    def __init__(self, connection: Connection, nobody_on: Callable[[str], Awaitable[None]]) -> None:
        self._nobody_on = nobody_on
        self._connection = connection
        self._inbox = connection.inbox
        self._loop = asyncio.get_running_loop()
        self._free = WINDOW
        self._queue: deque[asyncio.Future[None]] = deque()

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str = "",
        headers: dict[str, str] | None = None,
        expect_last: int | None = None,
        timeout: float = 30.0,
    ) -> PubAck:
        """Store a message and return where. See `Transport.publish_durable`."""
        sent = dict(headers) if headers else {}
        if expect_last is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect_last)
        if msg_id or expect_last is None:
            sent["Nats-Msg-Id"] = msg_id or new_id()  # a repetition must not be stored twice
        start = self._loop.time()
        if self._free > 0 and not self._queue:
            self._free -= 1
        else:
            await self._take_slot(subject, timeout)
        try:
            try:
                left = timeout - (self._loop.time() - start)
                return await self._attempt(subject, data, sent, min(left, ATTEMPT_TIMEOUT))
            except TRANSIENT as error:
                left = timeout - (self._loop.time() - start)
                return await self._again(subject, data, sent, left, timeout, error)
        finally:
            self._give_slot()

    async def _attempt(self, subject: str, data: bytes, headers: dict[str, str], timeout: float) -> PubAck:
        reply = await self._inbox.attempt(subject, data, timeout=timeout, headers=headers or None)
        try:
            answer = _decode(reply.data)
        except msgspec.DecodeError as error:
            raise BrokerError(f"{subject!r} was answered by something that is not a stream") from error
        if answer.error is None:
            return PubAck(answer.stream, answer.seq, answer.duplicate, int(answer.val) if answer.val else None)
        raise await self._refused(subject, data, headers, answer.error, answer.stream)

    async def _refused(
        self, subject: str, data: bytes, headers: dict[str, str], error: _Refusal, stream: str
    ) -> BrokerError:
        code, description = error.err_code, error.description
        if code in _CONFLICT:
            return SequenceConflictError(subject, int(headers.get("Nats-Expected-Last-Subject-Sequence", 0)), stream)
        if code == _TOO_LARGE:
            return PayloadTooLargeError(len(data), await self._limit(stream))
        if code == _FULL and "maximum" in description:
            return StreamFullError(subject, description)
        if code == _FULL:  # the disk failed or is full: the message is not stored, the next attempt may work
            return JetStreamUnavailableError(f"publish on {subject!r}", f"{description} ({code})")
        return refusal(f"publish on {subject!r}", msgspec.to_builtins(error))

    async def _limit(self, stream: str) -> int:
        """The largest message the stream takes, headers included; of the broker, if the stream does not say."""
        try:
            info = await JetStreamApi(self._inbox).once(f"STREAM.INFO.{stream}", b"", ATTEMPT_TIMEOUT)
        except (*TRANSIENT, BrokerError):  # this user may not ask
            return self._connection.max_payload
        return int(info["config"].get("max_msg_size", self._connection.max_payload))

    async def _again(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        left: float,
        timeout: float,
        first: BaseException,
    ) -> PubAck:
        """Repeat with the same id. An earlier attempt may be stored already, with only its confirmation lost."""

        async def attempt(seconds: float) -> PubAck:
            try:
                return await self._attempt(subject, data, headers, seconds)
            except NoRespondersError:
                await self._nobody_on(subject)
                raise

        try:
            if left <= 0 or not is_transient(first):
                raise first
            if isinstance(first, NoRespondersError):
                await self._nobody_on(subject)
            return await patiently(attempt, left)
        except ConnectionClosedError:
            raise
        except TRANSIENT as error:
            raise PublishTimeoutError(subject, timeout) from error
        except SequenceConflictError as conflict:
            ours = await self._stored(conflict.stream, subject, headers.get("Nats-Msg-Id", ""))
            if ours is None:
                raise
            return ours

    async def _stored(self, stream: str, subject: str, msg_id: str) -> PubAck | None:
        """Our own message, when it is the last one on the subject: then the conflict is with ourselves."""
        if not msg_id or not stream:
            return None
        try:
            last: Message = await self._inbox.attempt(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout=2.0)
        except (*TRANSIENT, BrokerError):
            return None
        headers = last.headers or {}
        if "Nats-Sequence" not in headers or headers.get("Nats-Msg-Id") != msg_id:
            return None
        return PubAck(stream, int(headers["Nats-Sequence"]), duplicate=True)

    # -- the window

    async def _take_slot(self, subject: str, timeout: float) -> None:
        slot: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(slot)
        try:
            async with asyncio.timeout(timeout):
                await slot
        except BaseException as error:
            if slot.done() and not slot.cancelled():
                self._give_slot()
            elif slot in self._queue:
                self._queue.remove(slot)
            if isinstance(error, TimeoutError):
                raise PublishTimeoutError(subject, timeout) from error
            raise

    def _give_slot(self) -> None:
        while self._queue:
            slot = self._queue.popleft()
            if not slot.done():
                slot.set_result(None)
                return
        self._free += 1
