"""A link to the server that can fail in the ways real links do."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from agentmesh import ports

# MSG subject sid [reply] bytes, HMSG subject sid [reply] header-bytes bytes, PUB and HPUB alike: the body follows.
_BODY = re.compile(rb"H?(?:MSG|PUB) .* (\d+)\r\n$")


class TcpProxy:
    """Stands between clients and a server on loopback.

        async with TcpProxy(server.port) as proxy:
            proxy.blackhole()                                       # a silent hole: nothing comes through, nothing ends
            proxy.restore()
            proxy.drop = lambda frame: frame.startswith(b"MSG _INBOX")  # lose replies, keep the stream in step
            proxy.cut()                                             # reset every connection now

    Speaks enough of the protocol to lose whole frames from the server; TLS connections pass as they are.
    """

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self._reserved = ports.reserve()
        self.port = self._reserved.port
        self.delay = 0.0
        """Seconds added to every chunk, each way."""
        self.refuse = False
        """Reset new connections at once."""
        self.drop: Callable[[bytes], bool] | None = None
        """Asked about every frame from the server (`b"MSG subject sid reply n\\r\\npayload\\r\\n"`); True loses it."""
        self.drop_sent: Callable[[bytes], bool] | None = None
        """The same for frames from a client (`b"PUB subject reply n\r\npayload\r\n"`)."""
        self.dropped = 0
        """Frames lost so far."""
        self._target = (target_host, target_port)
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected through it now."""
        return len(self._connections)

    def blackhole(self) -> None:
        """Keep all connections, and accept new ones, but let nothing through until `restore`."""
        self._open.clear()

    @property
    def is_blackhole(self) -> bool:
        return not self._open.is_set()

    def restore(self) -> None:
        """End a blackhole; what was held back is delivered."""
        self._open.set()

    def cut(self) -> None:
        """Reset every connection now, as a dying machine's peers see it. New ones are welcome."""
        for writer in self._writers:
            writer.transport.abort()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self.cut()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._server.wait_closed()
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            async with self._tracked(writer):
                if self.refuse:
                    writer.transport.abort()
                    return
                far_reader, far_writer = await asyncio.open_connection(*self._target, limit=2**24)
                async with self._tracked(far_writer):
                    await self._pump_both(reader, writer, far_reader, far_writer)

    @contextlib.asynccontextmanager
    async def _tracked(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pump_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        up = asyncio.create_task(self._pump(reader, Frames(b"CONNECT "), far_writer, lambda: self.drop_sent))
        down = asyncio.create_task(self._pump(far_reader, Frames(b"INFO "), writer, lambda: self.drop))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        frames: Frames,
        writer: asyncio.StreamWriter,
        dropping: Callable[[], Callable[[bytes], bool] | None],
    ) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            pieces = frames.feed(data)
            if (drop := dropping()) is not None:
                kept = [piece for piece in pieces if not drop(piece)]
                self.dropped += len(pieces) - len(kept)
                pieces = kept
            writer.write(b"".join(pieces))
            await writer.drain()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


class Frames:
    """Cuts what a NATS server or client sends into operations; a stream without its greeting stays as it comes."""

    def __init__(self, greeting: bytes) -> None:
        self._greeting = greeting
        self._known = False
        self._foreign = False
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """What is complete now. What is not is kept for the next time."""
        self._rest += data
        if not self._known:
            begin = self._rest[: len(self._greeting)]
            self._known = len(begin) == len(self._greeting) or not self._greeting.startswith(begin)
            self._foreign = self._known and begin != self._greeting
        if self._foreign:
            whole, self._rest = [self._rest], b""
            return whole
        found = []
        while frame := self._first():
            found.append(frame)
            self._rest = self._rest[len(frame) :]
        return found

    def _first(self) -> bytes:
        """The first operation, empty while it is not complete."""
        line = self._rest[: self._rest.find(b"\r\n") + 2]
        body = _BODY.match(line)
        size = len(line) + (int(body[1]) + 2 if body else 0)
        return self._rest[:size] if self._known and len(line) > 1 and len(self._rest) >= size else b""
