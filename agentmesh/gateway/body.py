"""Bodies of requests: never more bytes, time or depth than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from agentmesh.codes import ErrorCode
from agentmesh.errors import HttpError
from agentmesh.gateway.errors import refused

MAX_DEPTH = 32
"""Arrays and objects within each other."""

LINGER_BYTES = 4 * 1024 * 1024
LINGER_SECONDS = 1.0
"""What is still read of a body that was refused: closing at once would destroy the answer on its way to a client that
still writes."""


class Body:
    """The body of one request, as `receive` gives it.

    Args:
        scope: Of the request.
        receive: Of the server.
        limit: Bytes.
        timeout: Seconds until all of it must be there.
    """

    def __init__(self, scope: Scope, receive: Receive, *, limit: int, timeout: float) -> None:
        self._scope = scope
        self._receive = receive
        self._limit = limit
        self._timeout = timeout
        self._size = 0
        self._ended_by = 0.0
        self._complete = False
        names = {name for name, value in scope["headers"] if value != b"0"}
        self._announced = next((name for name in (b"transfer-encoding", b"content-length") if name in names), b"")

    def check(self) -> None:
        """What its headers say about it.

        Raises:
            HttpError: 413, it is too large; 415, it is compressed, so nobody knows how large it is.
        """
        headers = dict(self._scope["headers"])
        coding = headers.get(b"content-encoding", b"identity").strip().lower()
        if coding != b"identity":
            raise refused(ErrorCode.INVALID_ARGUMENT, "compressed bodies are not taken", status=415)
        if int(headers.get(b"content-length", b"0")) > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next part.

        Raises:
            HttpError: 413, it is too large; 408, it does not come.
        """
        if self._complete:
            return await self._receive()
        loop = asyncio.get_running_loop()
        self._ended_by = self._ended_by or loop.time() + self._timeout
        try:
            async with asyncio.timeout_at(self._ended_by):
                message = await self._receive()
        except TimeoutError:
            text = f"the body was not there within {self._timeout:g} s"
            raise refused(ErrorCode.DEADLINE_EXCEEDED, text, status=408) from None
        if message["type"] == "http.disconnect":
            self._complete = True
            return message
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise self._too_large()
        self._complete = not message.get("more_body", False)
        return message

    @property
    def pending(self) -> bool:
        """Whether the client may still be writing."""
        return not self._complete and bool(self._announced)

    @property
    def endless(self) -> bool:
        """Whether nobody knows how much of it there still is."""
        return self.pending and self._announced == b"transfer-encoding"

    async def linger(self) -> None:
        """Read on for a moment, and forget it."""
        size = 0
        if any(name == b"expect" for name, _ in self._scope["headers"]):
            return  # it waits for our answer before it sends
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while size < LINGER_BYTES:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def _too_large(self) -> HttpError:
        text = f"the body is over {self._limit} bytes; send a reference (path, URL, key) instead"
        return refused(ErrorCode.INVALID_ARGUMENT, text, status=413, limit=self._limit)


async def read_json(request: Request, *, empty: Any = None) -> Any:
    """The JSON value in the body of a request.

    Args:
        request: The request.
        empty: What no body at all stands for; None: a body is needed.

    Raises:
        HttpError: 400, it is no JSON or nested too deeply; 415, it says it is something else.
    """
    data = await request.body()
    if not data and empty is not None:
        return empty
    check_media_type(request, "application/json")
    return decode_json(data)


async def read_object(request: Request, *, empty: dict[str, Any] | None = None) -> dict[str, Any]:
    """Like `read_json`, for what must be an object.

    Raises:
        HttpError: 400, it is something else.
    """
    value = await read_json(request, empty=empty)
    if not isinstance(value, dict):
        raise refused(ErrorCode.INVALID_ARGUMENT, f"the body is {_kind(value)}; expected a JSON object")
    return value


def media_type(request: Request) -> str:
    """What the body says it is; JSON unless it says something. curl's own default counts as nothing said."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return "application/json" if given in ("", "application/x-www-form-urlencoded") else given


def check_media_type(request: Request, *allowed: str) -> None:
    """Refuse bodies of other kinds.

    Raises:
        HttpError: 415.
    """
    given = media_type(request)
    if given not in allowed and not (given.endswith("+json") and "application/json" in allowed):
        text = f"Content-Type {given[:80]!r} is not taken here; expected {' or '.join(allowed)}"
        raise refused(ErrorCode.INVALID_ARGUMENT, text, status=415)


def decode_json(data: bytes) -> Any:
    """The value in `data`.

    Raises:
        HttpError: 400, it is no JSON or nested too deeply.
    """
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise refused(ErrorCode.INVALID_ARGUMENT, f"the body is not JSON: {error}") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise _too_deep()
    return value


def _too_deep() -> HttpError:
    return refused(ErrorCode.INVALID_ARGUMENT, f"the body is nested more than {MAX_DEPTH} levels deep")


def _depth_exceeds(value: Any, levels: int) -> bool:
    """Level by level, without recursion."""
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _inside(outer) if isinstance(inner, dict | list)]
    return bool(layer)


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
