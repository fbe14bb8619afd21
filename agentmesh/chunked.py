"""Answers in pieces for clients of any kind: plain messages to a reply subject, in whatever format the door speaks.

`streaming` does the same between agents. Here the other end may be any NATS client, which sees numbered messages, the
last one marked, and may leave it at that. A client that knows more does more:

* Every piece has a **reply subject**, the control subject of this stream. To it a client may publish `cancel`, or how
  many pieces it has consumed so far.
* A client that sent the header `Window: n` must do the latter: there are never more than n pieces under way, so nothing
  can be lost at a slow reader, and it is never the reader who is too slow.
* Without a window pieces are paced, `BURST` of them and then a pause: a client of nats-py with its default limits
  (524,288 messages) holds a long answer, even if it does not read at all. The numbers tell if something was lost.
* A client that unsubscribes or loses its connection is noticed at the next piece: the broker says that nobody listens.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime, timedelta

from agentmesh.context import current
from agentmesh.errors import (
    BrokerError,
    DeadlineExceededError,
    InvalidMessageError,
    NoRespondersError,
    StreamGapError,
    StreamIdleError,
)
from agentmesh.ids import now
from agentmesh.trace import headers_of, outside
from agentmesh.transport import Message, Transport, is_no_responders

CONTENT_TYPE = "Content-Type"
DEADLINE = "Deadline"
"""When the caller stops waiting: a time with a zone, as in RFC 3339."""
TIMEOUT = "Timeout"
"""Instead: seconds from now."""
IDLE_TIMEOUT = "Idle-Timeout"
"""Seconds without any piece after which the caller gives up."""
WINDOW = "Window"
"""Pieces that may be under way unconfirmed."""

CANCEL = b"cancel"
"""What a client sends to the control subject of a stream to stop it."""

CANCEL_CONTROL = "cancel-infer"
"""Control subject of the model doors: whoever made the request whose id is the body has gone."""

BURST = 64
"""Pieces that are sent to a client without a window before a pause."""
PAUSE = 0.005
"""Seconds of that pause: 12,800 pieces a second, which no model reaches and any reader does."""

LARGEST_WINDOW = 65_536
CREDIT_TIMEOUT = 30.0
"""Seconds a producer waits for a client with a window that has stopped confirming."""

DEFAULT_WINDOW = 256


def header(headers: Mapping[str, str] | None, name: str, default: str = "") -> str:
    """The value of a header, whatever the case of its name."""
    if not headers:
        return default
    if name in headers:
        return headers[name]
    wanted = name.lower()
    return next((value for key, value in headers.items() if key.lower() == wanted), default)


def trace_headers() -> dict[str, str]:
    """The headers with which what is sent now belongs to the trace at hand, if somebody traces."""
    here = current() or outside()
    return {} if here is None else headers_of(here)


def trace_at_hand() -> str:
    """Id of the trace that what is sent now belongs to; empty outside of handlers and requests."""
    here = current() or outside()
    return "" if here is None else here.trace_id


def seconds_of(headers: Mapping[str, str] | None, name: str) -> float | None:
    """The seconds in a header; None without it.

    Raises:
        InvalidMessageError: It is no number above 0.
    """
    text = header(headers, name)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise InvalidMessageError(f"header {name}: {text!r:.40} is not a number of seconds above 0")
    return seconds


def deadline_of(headers: Mapping[str, str] | None) -> datetime | None:
    """When the caller stops waiting: what `Deadline` and `Timeout` say, the earlier one; None without both.

    Raises:
        InvalidMessageError: One of them cannot be read.
    """
    seconds = seconds_of(headers, TIMEOUT)
    times = [] if seconds is None else [now() + timedelta(seconds=min(seconds, 10 * 365 * 86_400))]
    if text := header(headers, DEADLINE):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidMessageError(f"header {DEADLINE}: {text!r:.40} is not a time as in RFC 3339") from None
        times.append(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
    return min(times, default=None)


def window_of(headers: Mapping[str, str] | None) -> int:
    """The window a client asks for; 0 without one.

    Raises:
        InvalidMessageError: It is no number from 1 to 65,536.
    """
    text = header(headers, WINDOW)
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= LARGEST_WINDOW:
        raise InvalidMessageError(f"header {WINDOW}: {text!r:.40} is not a number from 1 to {LARGEST_WINDOW}")
    return int(text)


class ChunkSender:
    """The producer's end of one answer.

    Args:
        transport: The connection.
        subject: Where the client listens.
        window: What it allows to be under way; 0: it will not confirm.
        on_end: Called, once, when the client cancels (`True`) or is found to be gone (`False`). Must not block.
    """

    def __init__(self, transport: Transport, subject: str, window: int, on_end: Callable[[bool], None]) -> None:
        self._transport = transport
        self._subject = subject
        self._window = window
        self._on_end: Callable[[bool], None] | None = on_end
        self._control = transport.open_inbox(self._on_control)
        self._confirmed = 0
        self._room: asyncio.Future[None] | None = None
        self.sent = 0
        """Pieces sent so far: the number of the next one."""

    def close(self) -> None:
        self._on_end = None
        self._control.close()

    def _on_control(self, message: Message) -> None:
        if is_no_responders(message) or message.data.strip() == CANCEL:
            end, self._on_end = self._on_end, None
            if end is not None:
                end(bool(message.data))
            return
        text = message.data.strip()
        if text.isdigit():
            self._confirmed = min(max(self._confirmed, int(text[:12])), self.sent)
            if self._room is not None and not self._room.done():
                self._room.set_result(None)

    async def send(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Send one piece; waits for room in the window, or for the pace.

        Raises:
            StreamIdleError: The client confirmed nothing for `CREDIT_TIMEOUT` seconds; it is taken for dead.
        """
        if self._window:
            while self.sent - self._confirmed >= self._window:
                await self._wait_for_credit()
        elif self.sent and self.sent % BURST == 0:
            await asyncio.sleep(PAUSE)
        await self.send_last(data, headers)

    async def send_last(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Send the piece after which nothing comes, whether there is room or not."""
        await self._transport.publish(self._subject, data, self._control.subject, headers)
        self.sent += 1

    async def _wait_for_credit(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CREDIT_TIMEOUT):
                await self._room
        except TimeoutError:
            raise StreamIdleError("the client of a stream", CREDIT_TIMEOUT) from None
        finally:
            self._room = None


class ChunkReader:
    """The client's end of one answer: `async for message in ChunkReader(...)`, in order and without a gap.

    Leaving the loop early, and closing the generator, stops the producer.

    Args:
        transport: The connection.
        subject: The door.
        position: Tells the number of a piece, and whether it is the last one; may raise.
        idle_timeout: Seconds without any piece after which it is given up.
        timeout: Seconds for all of it; None: as long as pieces come.
        window: Pieces that may be under way.
    """

    def __init__(
        self,
        transport: Transport,
        subject: str,
        position: Callable[[Message], tuple[int, bool]],
        *,
        idle_timeout: float,
        timeout: float | None = None,
        window: int = DEFAULT_WINDOW,
    ) -> None:
        self._transport = transport
        self._subject = subject
        self._position = position
        self._idle_timeout = idle_timeout
        self._timeout = timeout
        self._window = window
        self._arrived: deque[Message] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._control = ""
        self.finished = False
        """The last piece came: there is nothing to cancel."""

    async def ask(self, data: bytes, headers: Mapping[str, str]) -> AsyncGenerator[Message, None]:
        """Send the request and yield the pieces, the last one included.

        Raises:
            NoRespondersError: Nobody serves the door.
            StreamGapError: A piece was lost.
            StreamIdleError: Nothing came for `idle_timeout` seconds.
            DeadlineExceededError: It took longer than `timeout` seconds.
        """
        inbox = self._transport.open_inbox(self._on_message)
        said = {**trace_headers(), **headers, WINDOW: str(self._window), IDLE_TIMEOUT: f"{self._idle_timeout:g}"}
        loop = asyncio.get_running_loop()
        end = math.inf
        if self._timeout is not None:
            end = loop.time() + self._timeout
            said[DEADLINE] = (now() + timedelta(seconds=self._timeout)).isoformat()
        try:
            await self._transport.publish(self._subject, data, inbox.subject, said)
            expected = 0
            while not self.finished:
                message = await self._next(end)
                index, self.finished = self._position(message)
                if index != expected:
                    self.finished = False
                    raise StreamGapError(self._subject, expected, index)
                expected += 1
                if not self.finished and expected % max(1, self._window // 2) == 0 and message.reply:
                    await self._transport.publish(message.reply, str(expected).encode())
                yield message
        finally:
            inbox.close()
            if not self.finished:
                await self._cancel()

    def _on_message(self, message: Message) -> None:
        self._arrived.append(message)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _next(self, end: float) -> Message:
        loop = asyncio.get_running_loop()
        if not self._arrived:
            left = end - loop.time()
            self._waiting = loop.create_future()
            try:
                async with asyncio.timeout(min(self._idle_timeout, max(0.0, left))):
                    await self._waiting
            except TimeoutError:
                if left <= self._idle_timeout:
                    raise DeadlineExceededError(self._subject, self._timeout or 0.0) from None
                raise StreamIdleError(self._subject, self._idle_timeout) from None
            finally:
                self._waiting = None
        message = self._arrived.popleft()
        if is_no_responders(message):
            self.finished = True
            raise NoRespondersError(self._subject)
        self._control = message.reply or self._control
        return message

    async def _cancel(self) -> None:
        """If no piece has come yet there is nobody to tell: the producer hears of it by the id of the request."""
        if self._control and self._transport.is_connected:
            try:
                await self._transport.publish(self._control, CANCEL)
            except BrokerError:
                return  # then it hears of it when the window is used up

    @property
    def has_begun(self) -> bool:
        """Whether the producer was heard of, so that it can be told to stop."""
        return bool(self._control)
