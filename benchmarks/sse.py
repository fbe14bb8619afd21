"""The HTTP side of chats: fan-out to many readers, memory of idle ones, and the time to the first token.

    python benchmarks/sse.py [--readers 100] [--tokens 1000] [--idle 500]

The broker, the gateway, and this program with the producer, the relay, the agent and all readers are three processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from agentmesh import Agent, Mesh, connect, handler
from agentmesh.agents.chat import Conversations
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.chat import Chat, ChatPart
from agentmesh.local import LocalServices


class Quick(Agent):
    """Answers at once."""

    @handler
    async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
        """One word."""
        yield ChatPart(content="yes")


async def get(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An open stream, read as far as its headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def rss(pid: int) -> float:
    """Megabytes that a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def fan_out(mesh: Mesh, port: int, pid: int, readers: int, tokens: int, pace: float) -> None:
    """One producer, many readers; the lag is from the chunk's timestamp to its arrival."""
    name = f"fan{time.monotonic_ns()}"
    opened = [await get(port, f"/stream/{name}") for _ in range(readers)]
    lags: list[float] = []

    async def read(reader: asyncio.StreamReader) -> int:
        count = 0
        while line := await reader.readline():
            if line.startswith(b"event: end"):
                break
            if line.startswith(b"data: "):
                count += 1
                if count % 10 == 1:
                    stamp = json.loads(line[6:])["timestamp"]
                    lags.append(time.time() - _seconds(stamp))
        return count

    reading = [asyncio.create_task(read(reader)) for reader, _ in opened]
    before, began = cpu(pid), time.perf_counter()
    async with mesh.streams.run(name) as run:
        for number in range(tokens):
            await run.send(f"token {number} ")
            if pace:
                await asyncio.sleep(pace)
        await run.finish()
    counts = await asyncio.gather(*reading)
    took = time.perf_counter() - began
    for _, writer in opened:
        writer.close()
    assert set(counts) == {tokens + 1}, set(counts)
    lags.sort()
    print(
        f"{readers} readers, {tokens} tokens, {'one each ' + format(pace * 1000, 'g') + ' ms' if pace else 'at once'}: "
        f"{readers * tokens / took:,.0f} events/s, lag p50 {lags[len(lags) // 2] * 1000:.1f} ms, "
        f"p95 {lags[int(len(lags) * 0.95)] * 1000:.1f} ms; gateway {cpu(pid) - before:.2f} s of CPU in {took:.2f} s"
    )


def _seconds(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


async def idle(port: int, pid: int, readers: int) -> None:
    """Streams on which nothing happens."""
    before = rss(pid)
    opened = [await get(port, f"/stream/idle{number}") for number in range(readers)]
    await asyncio.sleep(3)
    used, after = cpu(pid), rss(pid)
    await asyncio.sleep(16)
    share = (cpu(pid) - used) / 16
    beats = [await asyncio.wait_for(reader.readuntil(b": still here"), 20) for reader, _ in opened]
    print(
        f"{readers} idle readers: {after:.1f} MB in all ({after - before:+.1f} MB), {share:.1%} of a core; "
        f"{len(beats)} were told that it lives"
    )
    for _, writer in opened:
        writer.close()


async def first_token(port: int, times: int) -> None:
    """From the first byte of `POST /chat` to the first token on a stream opened with its answer."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"message": "hi", "agent": "quick"}'
        head = f"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        headers = await reader.readuntil(b"\r\n\r\n")
        length = int(headers.lower().partition(b"content-length:")[2].split()[0])
        said = json.loads(await reader.readexactly(length))
        stream, other = await get(port, said["stream"])
        while not (await stream.readline()).startswith(b"data: "):
            pass
        took.append(time.perf_counter() - began)
        writer.close()
        other.close()
    took.sort()
    print(
        f"POST /chat to the first token: p50 {statistics.median(took) * 1000:.1f} ms, "
        f"p95 {took[int(len(took) * 0.95)] * 1000:.1f} ms ({times} times)"
    )


async def main() -> None:
    """All three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broker = EmbeddedBroker(BrokerOptions(store=Path(folder) / "store", sync_always=False))
        await broker.start()
        async with connect(broker.url, own_thread=False) as mesh:
            services = LocalServices(Path(folder))
            await services.start_services(mesh.transport, mesh.subjects)
            await mesh.spawn(Conversations)
            await mesh.spawn(Quick)
            gateway, port = await start_gateway(broker.url)
            try:
                await first_token(port, 100)
                await fan_out(mesh, port, gateway.pid, given.readers, given.tokens // 4, 0.02)
                await fan_out(mesh, port, gateway.pid, given.readers, given.tokens, 0.0)
                await idle(port, gateway.pid, given.idle)
            finally:
                gateway.terminate()
                await gateway.wait()
            await services.stop_services()
        await broker.stop()


async def start_gateway(url: str) -> tuple[asyncio.subprocess.Process, int]:
    """The gateway in a process of its own."""
    from agentmesh.gateway.options import GatewayOptions, KeyOptions
    from agentmesh.gateway.spec import GatewaySpec, encoded

    options = GatewayOptions(port=0, anonymous=KeyOptions("bench", streams=0, rate=0), access_log=False)
    spec = GatewaySpec({"url": url, "name": "gateway"}, options)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentmesh.gateway", *encoded(spec)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    return process, int(line.split("http://127.0.0.1:")[1].split()[0])


if __name__ == "__main__":
    asyncio.run(main())
