"""What a callback gets, and the answers that are errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from agentmesh.errors import RemoteError

ERROR_CODE, ERROR_TEXT = "Nats-Service-Error-Code", "Nats-Service-Error"
"""Headers of an answer that is an error, as NATS micro services send it."""

Payload = bytes | bytearray | memoryview | str

Send = Callable[[str, Payload, Mapping[str, str] | None], Awaitable[None]]


class Incoming:
    """One message as it came, unpacked if it was compressed."""

    __slots__ = ("_send", "answered", "attempt", "data", "headers", "reply", "subject")

    def __init__(
        self, subject: str, data: bytes, headers: dict[str, str], reply: str, send: Send, attempt: int = 1
    ) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        """All of them as they were sent, your own too; empty if there were none."""
        self.reply = reply
        """Where an answer goes; empty if nobody waits for one."""
        self.attempt = attempt
        """How often it was delivered, from 1: counted by the broker, whatever a `retry_count` header says."""
        self.answered = False
        self._send = send

    async def respond(self, payload: Payload = b"", headers: Mapping[str, str] | None = None) -> None:
        """Answer the request; does nothing when nobody waits for an answer."""
        self.answered = True
        if self.reply:
            await self._send(self.reply, payload, headers)

    def __repr__(self) -> str:
        return f"Incoming({self.subject!r}, {len(self.data)} bytes)"


def error_headers(error: Exception) -> dict[str, str]:
    """Headers of the answer that says what went wrong, without a traceback."""
    text = f"{type(error).__name__}: {error}".replace("\r", " ").replace("\n", " ")
    return {ERROR_CODE: "500", ERROR_TEXT: text[:1000]}


def raise_if_error(subject: str, headers: Mapping[str, str]) -> None:
    """Raise RemoteError if the headers of an answer say that it is an error."""
    if ERROR_CODE in headers:
        said = headers.get(ERROR_TEXT, "")
        kind, colon, text = said.partition(": ")
        if not colon or not kind.isidentifier():
            kind, text = f"error {headers[ERROR_CODE]}", said
        raise RemoteError(subject, kind, text)
