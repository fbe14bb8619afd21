"""Clients that do not read, and clients that wait for long: what they cost the gateway."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from agentmesh import Mesh
from agentmesh.gateway.options import GatewayOptions, KeyOptions
from agentmesh.gateway.spec import GatewaySpec, encoded
from tests.harness.fixtures import SpawnProcess
from tests.harness.process import Process
from tests.harness.waiting import eventually

MEGABYTE = 1024 * 1024

Opened = Callable[..., Awaitable[asyncio.StreamReader]]
StartGateway = Callable[..., Awaitable[tuple[Process, int]]]


@pytest.fixture
async def gateway_process(mesh: Mesh, spawn_process: SpawnProcess) -> StartGateway:
    """`process, port = await gateway_process(write_timeout=1.0)`."""

    async def start(**options: float) -> tuple[Process, int]:
        anonymous = KeyOptions("tests", streams=0, rate=0)
        wishes = GatewayOptions(port=0, anonymous=anonymous, access_log=False, **options)  # type: ignore[arg-type]
        spec = GatewaySpec({"url": mesh.transport.url, "name": "gateway"}, wishes, mesh.subjects.tenant)
        process = await spawn_process("agentmesh.gateway", *encoded(spec))
        ready = await process.line_matching(r"http ready: http://127.0.0.1:(\d+)", timeout=30)
        return process, int(ready[1])

    return start


def rss(process: Process) -> int:
    """Bytes of a process that are in memory."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """`reader = await opened(port, "/stream/a")`: connections that are closed with the test."""
    writers: list[asyncio.StreamWriter] = []

    async def start(port: int, path: str) -> asyncio.StreamReader:
        reader, writer = await connection(port, path)
        writers.append(writer)
        return reader

    yield start
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)


async def connection(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream, read as far as its headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@pytest.mark.slow
async def test_f4_a_client_that_does_not_read_costs_its_buffer_and_is_cut_off(
    mesh: Mesh, gateway_process: StartGateway, opened: Opened
) -> None:
    process, port = await gateway_process(write_timeout=3.0)
    reader = await opened(port, "/stream/slow")
    async with mesh.streams.run("slow") as run:  # warm: everything is loaded, and has been used
        await run.send("x" * 200_000)
        await run.finish()
    await asyncio.wait_for(reader.readuntil(b"event: end"), 30)
    before = rss(process)
    good = asyncio.create_task(_count(port, "/stream/slow?follow=true", 400))
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(b"GET /stream/slow?follow=true HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

        async with mesh.streams.run("slow") as run:
            for _ in range(400):
                await run.send("y" * 25_000)  # 10 MB
                await run.flush()
            await run.finish()

        assert await asyncio.wait_for(good, 30) == 400
        grown = rss(process) - before
        await eventually(lambda: _reads_a_byte(slow, port), 60, period=0.2)
    assert grown < 2 * MEGABYTE, f"{grown / MEGABYTE:.1f} MB"


async def _reads_a_byte(slow: socket.socket, port: int) -> bool:
    """Whether the gateway has no stream open any more; until then it is read from, slowly."""
    slow.recv(1)
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    return re.search(r"^agentmesh_http_open_streams\S* 0(\.0)?$", text, re.MULTILINE) is not None


async def _count(port: int, path: str, texts: int) -> int:
    reader, writer = await connection(port, path)
    count = 0
    while count < texts:
        count += (await reader.readuntil(b"\n\n")).count(b'"content":"y')
    writer.transport.abort()
    return count


@pytest.mark.slow
async def test_f5_five_hundred_idle_readers_are_kept_alive_in_less_than_100_mb(
    gateway_process: StartGateway, opened: Opened
) -> None:
    process, port = await gateway_process()

    readers = [await opened(port, f"/stream/idle-{number}") for number in range(500)]
    beats = await asyncio.gather(*(asyncio.wait_for(reader.readuntil(b": still here"), 60) for reader in readers))

    assert len(beats) == 500
    assert rss(process) < 100 * MEGABYTE
