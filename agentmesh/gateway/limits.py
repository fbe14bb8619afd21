"""What one key may use: requests per second, requests at the same time, and open streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from agentmesh.codes import ErrorCode
from agentmesh.errors import HttpError
from agentmesh.gateway.errors import refused
from agentmesh.gateway.options import KeyOptions

STREAM_RETRY = 10.0
"""Seconds after which it is worth trying to open another stream."""


class Usage:
    """What a key uses now."""

    def __init__(self, key: KeyOptions) -> None:
        self.running = 0
        self.streams = 0
        self._key = key
        self._full = max(1.0, key.rate)
        self._tokens = self._full
        self._filled_at = 0.0

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """One request.

        Raises:
            HttpError: 429, with the time until there is room.
        """
        if self._key.rate and (pause := self._take()):
            raise _too_many(f"more than {self._key.rate:g} requests per second", pause)
        if self._key.concurrency and self.running >= self._key.concurrency:
            raise _too_many(f"{self.running} requests are under way already", 1.0)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """The request at hand stays open as a stream, and counts as one instead.

        Raises:
            HttpError: 429, too many are open.
        """
        if self._key.streams and self.streams >= self._key.streams:
            raise _too_many(f"{self.streams} streams are open already", STREAM_RETRY)
        self.streams += 1
        self.running -= 1
        try:
            yield
        finally:
            self.running += 1
            self.streams -= 1

    def _take(self) -> float:
        """Take a token; else the seconds until there is one."""
        now = asyncio.get_running_loop().time()
        if self._filled_at:
            self._tokens = min(self._full, self._tokens + (now - self._filled_at) * self._key.rate)
        self._filled_at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._key.rate
        self._tokens -= 1
        return 0.0


def _too_many(what: str, pause: float) -> HttpError:
    return refused(ErrorCode.RESOURCE_EXHAUSTED, f"too many requests for this key: {what}", retry_after=pause)
