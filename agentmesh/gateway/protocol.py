"""HTTP/1.1 on a connection: uvicorn's protocol, strict about what may smuggle a request, and with time limits.

h11 forgives line ends without CR and folded header lines, for old clients; a proxy in front of us may read the same
bytes otherwise, so they are refused here.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentmesh.gateway.body import LINGER_BYTES, LINGER_SECONDS
from agentmesh.gateway.options import GatewayOptions
from agentmesh.ids import new_id

_LOOSE = re.compile(rb"(?<!\r)\n|\n[ \t]")
"""A line end without CR, or a line that continues the one before."""

REASONS = {400: b"Bad Request", 408: b"Request Timeout", 503: b"Service Unavailable"}


class StrictBuffer(ReceiveBuffer):
    """What came in and was not read yet."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head, or of the trailers of a body, once all are there.

        Raises:
            RemoteProtocolError: They can be read in two ways.
        """
        before = bytes(self._data)
        lines: list[bytearray] | None = super().maybe_extract_lines()
        if lines is not None and _LOOSE.search(before[: len(before) - len(self._data)]):
            raise h11.RemoteProtocolError("bare LF or folded line in the headers")
        return lines


def protocol(options: GatewayOptions, max_connections: int) -> type[H11Protocol]:
    """The protocol with the limits of a gateway."""
    return type("Protocol", (Protocol,), {"options": options, "max_connections": max_connections})


class Protocol(H11Protocol):
    """One connection."""

    options: GatewayOptions
    max_connections: int

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.conn._receive_buffer = StrictBuffer()
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._forgotten = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request is waited for from now on."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._answer(503, "UNAVAILABLE", "too many connections")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Of a head that does not come to its end, each further byte changes nothing about when it must."""
        if self._refused:
            self._forget(len(data))
            return
        if self._in_head:
            self._await_head()
        super().data_received(data)
        if not self._in_head and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        """The client does not take what is written."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.options.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It took some."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def shutdown(self) -> None:
        """The server stops."""
        if self._refused:  # there is nothing left to say
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as a request at all."""
        self._answer(400, "INVALID_ARGUMENT", msg)

    @property
    def _in_head(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.options.header_timeout, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            text = f"the headers were not there within {self.options.header_timeout:g} s"
            self._answer(408, "DEADLINE_EXCEEDED", text)

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._write_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = self._linger_timer = None

    def _answer(self, status: int, code: str, message: str) -> None:
        """A typed refusal before there is a request, and the end of the connection."""
        self._stop_timers()
        document = {"error": {"code": code, "message": message, "details": {}, "request_id": new_id()}}
        body = json.dumps(document).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=REASONS[status]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            try:
                self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:  # an answer has begun already, such as one to a body that went wrong
                break
        self._linger()

    def _linger(self) -> None:
        """Let the client read its answer: closing while it still writes would destroy that on its way."""
        self._refused = True
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _forget(self, size: int) -> None:
        self._forgotten += size
        if self._forgotten > LINGER_BYTES:
            self.transport.abort()
