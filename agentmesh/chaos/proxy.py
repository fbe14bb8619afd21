"""A link to the server that can fail in the ways real links do."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from agentmesh import ports


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
        """Seconds added to every chunk or frame, each way."""
        self.refuse = False
        """Reset new connections at once."""
        self.drop: Callable[[bytes], bool] | None = None
        """Asked about every frame from the server (`b"MSG subject sid reply n\\r\\npayload\\r\\n"`); True loses it."""
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
        up = asyncio.create_task(self._pump(chunks(reader), far_writer, lossy=False))
        down = asyncio.create_task(self._pump(frames(far_reader), writer, lossy=True))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _pump(self, pieces: AsyncIterator[bytes], writer: asyncio.StreamWriter, *, lossy: bool) -> None:
        async for piece in pieces:
            await self._open.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            if lossy and self.drop is not None and self.drop(piece):
                self.dropped += 1
                continue
            writer.write(piece)
            await writer.drain()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What arrives, as it arrives."""
    while data := await reader.read(65536):
        yield data


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What a NATS server sends, one operation at a time; chunks if it does not begin as the protocol does."""
    start = await reader.readexactly(5)
    if start != b"INFO ":
        yield start
        async for chunk in chunks(reader):
            yield chunk
        return
    while line := start + await reader.readuntil(b"\r\n"):
        start = b""
        # MSG subject sid [reply] bytes, HMSG subject sid [reply] header-bytes bytes: the body follows.
        body = re.match(rb"H?MSG .* (\d+)\r\n$", line)
        yield line + await reader.readexactly(int(body[1]) + 2) if body else line
