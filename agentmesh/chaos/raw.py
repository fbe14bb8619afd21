"""NATS by hand, for the checker: a socket and the few words of the protocol that reading a stream takes.

It shares nothing with the client that agentmesh uses, so that a bug there cannot hide itself from the checker.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

from agentmesh.errors import BrokerError

PATIENCE = 2.0
"""Seconds to wait for one answer."""


@dataclass(frozen=True)
class Stored:
    """A message as the stream has it."""

    sequence: int
    subject: str
    data: bytes
    at: float
    """When it was stored: the broker's time of day, seconds."""


def status_of(stored: Stored) -> str:
    """How a stored result decided its task."""
    return str(json.loads(stored.data).get("status"))


class RawClient:
    """One connection, one question at a time. A lost connection is made again with the next question."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._inbox = f"_chaos.{uuid4().hex}"
        self._count = 0

    async def call(self, operation: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask `$JS.API.<operation>`; an error of JetStream is in the answer.

        Raises:
            BrokerError: No answer, or nobody there.
        """
        body = b"" if question is None else json.dumps(question).encode()
        try:
            async with asyncio.timeout(PATIENCE):
                answer: dict[str, Any] = json.loads(await self._ask(f"$JS.API.{operation}", body))
                return answer
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            await self.close()
            raise BrokerError(f"{operation}: {error or type(error).__name__}") from error

    async def _ask(self, subject: str, body: bytes) -> bytes:
        reader, writer = await self._connected()
        self._count += 1
        writer.write(f"PUB {subject} {self._inbox}.{self._count} {len(body)}\r\n".encode() + body + b"\r\n")
        while True:
            words = (await reader.readuntil(b"\r\n")).split()
            if words[0] == b"PING":
                writer.write(b"PONG\r\n")
            if words[0] not in (b"MSG", b"HMSG"):
                continue
            payload = (await reader.readexactly(int(words[-1]) + 2))[:-2]
            if words[0] == b"HMSG":
                payload = payload[int(words[-2]) :]
            if words[1].decode() == f"{self._inbox}.{self._count}":
                return payload

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._address.hostname, self._address.port, limit=2**24
            )
            await self._reader.readuntil(b"\r\n")
            self._writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
            self._writer.write(f"SUB {self._inbox}.* 1\r\n".encode())
        return self._reader, self._writer

    async def messages(self, stream: str, subject: str, start: int = 1) -> AsyncIterator[Stored]:
        """Every message on `subject` (wildcards allowed) from sequence `start`, as the stream's leader has it."""
        while True:
            answer = await self.call(f"STREAM.MSG.GET.{stream}", {"seq": start, "next_by_subj": subject})
            if "message" not in answer:
                if answer.get("error", {}).get("code") != 404:
                    raise BrokerError(f"{stream}: {answer.get('error')}")
                return
            found = answer["message"]
            at = datetime.fromisoformat(found["time"][:26].rstrip("Z") + "+00:00").timestamp()
            yield Stored(found["seq"], found["subject"], base64.b64decode(found.get("data", "")), at)
            start = found["seq"] + 1

    async def count(self, stream: str, subject: str) -> int:
        """Messages on `subject` in the stream."""
        answer = await self.call(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
        if "error" in answer:
            raise BrokerError(f"{stream}: {answer['error']}")
        return sum((answer["state"].get("subjects") or {}).values())

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
