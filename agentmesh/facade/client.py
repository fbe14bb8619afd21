"""`NATSClient`: publish, subscribe and request with the keywords of the guides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import msgspec

from agentmesh import runfile
from agentmesh.errors import (
    BatchPublishError,
    BrokerUnavailableError,
    CapturedSubjectError,
    ConnectionLostError,
    DeadlineExceededError,
    DefinitionError,
    InvalidMessageError,
    JetStreamUnavailableError,
    NatsConnectionError,
    NatsTimeoutError,
    NoRespondersError,
    NoStreamError,
    PublishTimeoutError,
    QueueFullError,
    StreamFullError,
)
from agentmesh.facade.compression import MAX_UNPACKED, packed, unpacked
from agentmesh.facade.message import Incoming, Payload, raise_if_error
from agentmesh.facade.subscriptions import GRACE, Callback, FacadeSubscription, Passing
from agentmesh.facade.working import Working
from agentmesh.ids import new_id
from agentmesh.registry import nobody_on
from agentmesh.subjects import Subjects, may_overlap
from agentmesh.tasks.layout import CACHE_LOG, OPERATIONS, SPECS, TASKS, ensure, ensure_streams, named, use_scheme
from agentmesh.tasks.pressure import IMPATIENT, Pressure
from agentmesh.transport import PubAck, StreamSpec, Transport, TransportOptions
from agentmesh.transport.wire import check_pattern, check_subject

log = logging.getLogger("agentmesh.facade")

REQUEST_TIMEOUT = 300.0
"""Seconds a request waits unless told otherwise: the longest time-out of the guides, so that none of them is cut
short."""

PUBLISH_TIMEOUT = 5.0
"""Seconds a publish waits for a connection."""

STORE_TIMEOUT = 30.0
"""Seconds a durable publish waits for its confirmation."""

CONCURRENCY = 16
"""Callbacks of a subscription that run side by side, unless told otherwise."""

BATCH = 512
"""Durable messages of a batch under way at a time."""

_KNOWN = 1024

_CORE = frozenset(spec.name for spec in SPECS)
_NAMED = {spec.name: spec for spec in (*SPECS, OPERATIONS, CACHE_LOG)}
"""Streams that keep what programs of any kind send, by name."""

Headers = Mapping[str, Any] | None


class NATSClient:
    """See the package. Connects at its first use; `async with`, or `close()`, ends it.

    Args:
        url: The broker; else `$NATS_URL`, the `agentmesh up` of this folder, or port 4222 here.
        tenant: In whose name dead letters are kept.
        subjects: A naming scheme of your own, instead of `tenant`.
        options: Credentials, TLS and the like.
        compress_over: Bodies larger than this are sent compressed, with `Content-Encoding: deflate`. None: none are,
            since a receiver that is not agentmesh would have to know that header.
        max_unpacked: Bytes a compressed body may have when it is unpacked; what would be larger is refused.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        tenant: str = "default",
        subjects: Subjects | None = None,
        options: TransportOptions | None = None,
        compress_over: int | None = None,
        max_unpacked: int = MAX_UNPACKED,
    ) -> None:
        self.compress_over = compress_over
        self.max_unpacked = max_unpacked
        self._url = url
        self._options = options
        self._subjects = subjects or Subjects(tenant)
        self._shared: Transport | None = None
        self._own: Transport | None = None
        self._connecting = asyncio.Lock()
        self._pressure: Pressure | None = None
        self._kept: dict[str, str] = {}
        self._subscriptions: dict[FacadeSubscription, None] = {}

    @classmethod
    def on(cls, transport: Transport, subjects: Subjects) -> NATSClient:
        """On a connection that somebody else opened and closes."""
        client = cls(subjects=subjects)
        client._shared = transport
        return client

    # ------------------------------------------------------------ the connection

    async def connect(self) -> Self:
        """Connect now instead of at the first use.

        Raises:
            NatsConnectionError: There is no broker.
        """
        await self._transport()
        return self

    async def close(self, *, grace: float = GRACE) -> None:
        """End the subscriptions, callbacks that run more than `grace` seconds included, and the connection if it is
        ours."""
        await asyncio.gather(*(one.unsubscribe(grace=grace) for one in list(self._subscriptions)))
        own, self._own, self._pressure = self._own, None, None
        if own is not None:
            await own.close()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_connected(self) -> bool:
        transport = self._shared or self._own
        return transport is not None and transport.is_connected

    async def _transport(self) -> Transport:
        if self._shared is not None:
            return self._shared
        async with self._connecting:
            if self._own is None:
                options = self._options or TransportOptions(
                    url=self._url or runfile.broker_address(), name="nats-client", connect_timeout=PUBLISH_TIMEOUT
                )
                try:
                    self._own = await Transport.connect(options)
                except BrokerUnavailableError as error:
                    raise NatsConnectionError(str(error)) from error
                use_scheme(self._own, self._subjects)
            return self._own

    # ------------------------------------------------------------ publish

    async def publish(
        self,
        subject: str,
        payload: Payload = b"",
        headers: Headers = None,
        *,
        durable: bool | None = None,
        message_id: str = "",
        compress: bool | None = None,
        timeout: float | None = None,
    ) -> PubAck | None:
        """Send a message.

        Args:
            subject: Where to.
            payload: What; text is sent as UTF-8.
            headers: Of your own, as they are. `Nats-Msg-Id` is the same as `message_id`.
            durable: True: return when a stream has stored it. False: at most once. None: durable where a stream of
                agentmesh keeps what is sent, such as tasks, since what it does not confirm may be lost.
            message_id: Stored once, when durable and sent again with it within the stream's window of duplicates.
            compress: Whether to compress; None: if it is larger than `compress_over`.
            timeout: Seconds to wait for a connection (5), and when durable for the confirmation (30).

        Returns:
            Where it is stored; None if it is not durable.

        Raises:
            NatsConnectionError: No connection; nothing was sent.
            QueueFullError: The queue of tasks takes no more now; says when to try again.
            StreamFullError: The same of another stream.
            PayloadTooLargeError: Over the limit, which it names; nothing was sent.
            NoStreamError: Durable, and no stream keeps the subject.
            PublishTimeoutError: Durable, and not confirmed: its fate is unknown. Send it again with the same
                `message_id`.
        """
        with translated():
            transport = await self._transport()
            check_subject(subject)
            stream = await self._keeper(transport, subject, durable)
            if not transport.is_connected:
                await transport.connection.until_usable(PUBLISH_TIMEOUT if timeout is None else timeout)
            data, sent = self._body(payload, headers, compress)
            if not stream:
                await transport.publish(subject, data, headers=sent or None)
                return None
            msg_id = message_id or sent.pop("Nats-Msg-Id", "") or new_id()
            seconds = STORE_TIMEOUT if timeout is None else timeout

            async def store() -> PubAck:
                return await transport.publish_durable(
                    subject, data, msg_id=msg_id, headers=sent or None, timeout=seconds
                )

            if stream != TASKS:
                return await store()
            if self._pressure is None:
                self._pressure = Pressure(transport, self._subjects)
            return await self._pressure.patiently(store, subject, len(data), IMPATIENT)

    async def publish_many(
        self,
        subject: str,
        payloads: Iterable[Payload],
        headers: Headers = None,
        *,
        durable: bool | None = None,
        compress: bool | None = None,
        timeout: float | None = None,
    ) -> list[PubAck | None]:
        """Send many messages to one subject, without waiting for each; in order, unless one has to be sent again.

        Raises:
            BatchPublishError: Some were not sent; its `errors` says which, the others were.
            NatsConnectionError, NoStreamError: As of `publish`; nothing was sent.
        """
        with translated():  # once and first: those of a batch must not wait for it in any order
            await self._keeper(await self._transport(), subject, durable)
        results: list[PubAck | BaseException | None] = []
        batch: list[Payload] = []

        async def flush() -> None:
            sending = (
                self.publish(subject, payload, headers, durable=durable, compress=compress, timeout=timeout)
                for payload in batch
            )
            results.extend(await asyncio.gather(*sending, return_exceptions=True))
            batch.clear()

        for payload in payloads:
            batch.append(payload)
            if len(batch) >= BATCH:
                await flush()
        await flush()
        return _all_sent(results)

    async def publish_with_retry(
        self,
        subject: str,
        payload: Payload = b"",
        max_retries: int = 3,
        *,
        headers: Headers = None,
        durable: bool | None = None,
        backoff: float = 1.0,
        timeout: float | None = None,
    ) -> PubAck | None:
        """Publish, up to `max_retries` times in all, when the connection or the broker is away; the last error is
        raised.

        All tries are one message: they have one id, so a stream stores it once.

        Args:
            subject: Where to.
            payload: What.
            max_retries: Tries in all.
            headers: Of your own.
            durable: See `publish`.
            backoff: Pauses are random, up to this many seconds, then twice that, and so on.
            timeout: Seconds for each try.
        """
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

        message_id = new_id()
        async for trial in AsyncRetrying(
            retry=retry_if_exception(self._is_worth_another_try),
            wait=wait_random_exponential(multiplier=backoff, max=30.0),
            stop=stop_after_attempt(max(1, max_retries)),
            reraise=True,
        ):
            with trial:
                return await self.publish(
                    subject, payload, headers, durable=durable, message_id=message_id, timeout=timeout
                )
        raise AssertionError("unreachable: the last error was raised")

    def _is_worth_another_try(self, error: BaseException) -> bool:
        transport = self._shared or self._own
        if transport is not None and transport.state == "closed":
            return False
        return isinstance(error, (NatsConnectionError, PublishTimeoutError, JetStreamUnavailableError))

    async def publish_with_backpressure(
        self,
        subject: str,
        payload: Payload = b"",
        *,
        patience: float = 30.0,
        headers: Headers = None,
        durable: bool | None = None,
    ) -> PubAck | None:
        """Publish, waiting for room in a full queue for up to `patience` seconds; then the refusal is raised.

        Between tries it waits as long as the queue says that draining takes.
        """
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            wanted = error.retry_after if isinstance(error, QueueFullError) else 0.1 * 2 ** min(state.attempt_number, 5)
            return min(wanted, 2.0)

        message_id = new_id()
        async for trial in AsyncRetrying(
            retry=retry_if_exception_type((QueueFullError, StreamFullError)),
            wait=pause,
            stop=stop_after_delay(patience),
            reraise=True,
        ):
            with trial:
                return await self.publish(subject, payload, headers, durable=durable, message_id=message_id)
        raise AssertionError("unreachable: the last error was raised")

    # ------------------------------------------------------------ subscribe

    async def subscribe(
        self,
        subject: str,
        callback: Callback,
        queue: str = "",
        *,
        concurrency: int = CONCURRENCY,
        durable: bool | None = None,
        max_attempts: int = 5,
        limit: int = 10_000,
    ) -> FacadeSubscription:
        """Call `callback(message)` for each message; a coroutine function, or a plain one that does not block.

        Callbacks begin in order and run side by side, see `FacadeSubscription`. What one raises is logged, and answers
        the request it was called for; the subscription goes on, also over reconnects.

        Args:
            subject: May have wildcards: `*` for one token, a final `>` for the rest.
            callback: What to call.
            queue: Of all who subscribe with the same name, one gets each message. Leave it out where everybody is to
                get
                it: topics, broadcasts, invalidations.
            concurrency: Callbacks that may run side by side; 1 for one after the other.
            durable: Take what a stream keeps, also what was sent before: acknowledged when the callback returns,
                brought again when it raises, a dead letter after `max_attempts`. It needs a queue. None: so where
                agentmesh keeps work (tasks, durable mailboxes) and a queue is given.
            max_attempts: See above.
            limit: Messages that may wait here when not durable; one more is dropped, and a warning logged.

        Raises:
            NatsConnectionError: No connection.
            NoStreamError: Durable, and no stream keeps the subject.
            DefinitionError: Durable, and others take it already, or no queue is given.
        """
        if concurrency < 1 or limit < 1 or max_attempts < 1:
            raise DefinitionError("subscribe", "concurrency, limit and max_attempts must be 1 or more")
        with translated():
            transport = await self._transport()
            check_pattern(subject)
            if durable is None:
                durable = bool(queue) and any(_is_work(spec, subject) for spec in _ours(transport, subject))
            subscription: Passing | Working
            if durable:
                subscription = await self._working(transport, subject, callback, queue, concurrency, max_attempts)
                await subscription.start()
            else:
                subscription = Passing(subject, queue, callback, concurrency, limit, self._answer, self.max_unpacked)
                await subscription.start(transport)
        self._subscriptions[subscription] = None
        subscription.on_end = lambda ended: self._subscriptions.pop(ended, None)
        return subscription

    async def _working(
        self, transport: Transport, subject: str, callback: Callback, queue: str, concurrency: int, max_attempts: int
    ) -> Working:
        if not queue:
            raise DefinitionError(subject, "a durable subscription needs queue=: by it workers share the messages")
        stream = await self._keeper(transport, subject, True)
        await ensure_streams(transport)  # dead letters have a place then
        return Working(
            *(stream, subject, queue, callback, concurrency, max_attempts),
            transport=transport,
            subjects=self._subjects,
            send=self._answer,
            max_unpacked=self.max_unpacked,
        )

    # ------------------------------------------------------------ request

    async def request(
        self,
        subject: str,
        payload: Payload = b"",
        timeout: float = REQUEST_TIMEOUT,
        headers: Headers = None,
        *,
        compress: bool | None = None,
    ) -> Incoming:
        """Send a request and wait for its answer.

        Args:
            subject: Where whoever answers subscribes.
            payload: What.
            timeout: Seconds to wait. The time given here is the time that counts.
            headers: Of your own, as they are.
            compress: As in `publish`.

        Raises:
            NoRespondersError: Nobody subscribes there; known at once, and names near misses.
            NatsTimeoutError: No answer in time; it is a built-in `TimeoutError`, too.
            NatsConnectionError: No connection; nothing was sent.
            RemoteError: The callback at the other end raised.
            CapturedSubjectError: A stream keeps the subject, and answered itself.
        """
        with translated():
            transport = await self._transport()
            if not transport.is_connected:
                await transport.connection.until_usable(min(PUBLISH_TIMEOUT, timeout))
            data, sent = self._body(payload, headers, compress)
            try:
                reply = await transport.request(subject, data, timeout=timeout, headers=sent or None)
            except NoRespondersError:
                raise await nobody_on(transport, subject) from None
            got = dict(reply.headers or {})
            raise_if_error(subject, got)
            if (stream := _confirmed_by(reply.data)) and not got:
                raise CapturedSubjectError(subject, stream)
            body = unpacked(reply.data, got, self.max_unpacked)
            return Incoming(reply.subject, body, got, reply.reply, self._answer)

    async def _answer(self, subject: str, payload: Payload, headers: Mapping[str, str] | None) -> None:
        with translated():
            transport = await self._transport()
            data, sent = self._body(payload, headers, None)
            await transport.publish(subject, data, headers=sent or None)

    # ------------------------------------------------------------ parts

    def _body(self, payload: Payload, headers: Headers, compress: bool | None) -> tuple[bytes, dict[str, str]]:
        if isinstance(payload, str):
            data = payload.encode()
        elif isinstance(payload, (bytes, bytearray, memoryview)):
            data = bytes(payload)
        else:
            kind = type(payload).__name__
            raise InvalidMessageError(f"a payload is bytes or text, not {kind}; encode it: CodecSerializer().encode(…)")
        sent = {str(name): str(value) for name, value in (headers or {}).items()}
        if compress is None:
            compress = self.compress_over is not None and len(data) > self.compress_over
        return packed(data, sent) if compress else (data, sent)

    async def _keeper(self, transport: Transport, subject: str, durable: bool | None) -> str:
        """The stream that is to keep what is sent to the subject; empty if none is."""
        if durable is False:
            return ""
        known = self._kept.get(subject)
        if known is None:
            known = ""
            for spec in _ours(transport, subject):
                await (ensure_streams(transport) if spec.name in _CORE else ensure(transport, _NAMED[spec.name]))
                known = spec.name
            self._remember(subject, known)
        if known or durable is None:
            return known
        for info in await transport.streams():
            if any(may_overlap(subject, pattern) for pattern in info.config.get("subjects") or ()):
                self._remember(subject, info.name)
                return info.name
        raise NoStreamError(subject)

    def _remember(self, subject: str, stream: str) -> None:
        if len(self._kept) >= _KNOWN:
            self._kept.clear()
        self._kept[subject] = stream


def _ours(transport: Transport, subject: str) -> list[StreamSpec]:
    """The streams of agentmesh that keep what is sent to the subject."""
    return [
        spec
        for spec in (named(transport, spec) for spec in _NAMED.values())
        if any(may_overlap(subject, pattern) for pattern in spec.subjects)
    ]


def _is_work(spec: StreamSpec, subject: str) -> bool:
    """Whether the subject is about what waits in that stream to be done, and not about whatever passes by."""
    tokens = subject.split(".")
    return spec.retention == "workqueue" and any(
        all(theirs in ("*", ours) for theirs, ours in zip(pattern.split("."), tokens, strict=False))
        for pattern in spec.subjects
        if may_overlap(pattern, subject)
    )


def _all_sent(results: list[PubAck | BaseException | None]) -> list[PubAck | None]:
    errors = {number: result for number, result in enumerate(results) if isinstance(result, BaseException)}
    if errors:
        first = min(errors)
        failure = BatchPublishError(len(errors), len(results), first, str(errors[first]))
        failure.errors = errors
        raise failure from errors[first]
    return [result for result in results if not isinstance(result, BaseException)]


class _Ack(msgspec.Struct, forbid_unknown_fields=True):
    """The confirmation of a stream, and nothing else."""

    stream: str
    seq: int
    domain: str = ""
    duplicate: bool = False


def _confirmed_by(data: bytes) -> str:
    """The stream whose confirmation this is; empty if it is an answer."""
    try:
        return msgspec.json.decode(data, type=_Ack).stream
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


@contextmanager
def translated() -> Iterator[None]:
    """Errors that are built-in ones, too, for code that catches those."""
    try:
        yield
    except (NatsConnectionError, NatsTimeoutError):
        raise
    except ConnectionLostError as error:
        raise NatsConnectionError(error.problem) from error
    except DeadlineExceededError as error:
        raise NatsTimeoutError(error.what, error.timeout) from error
