"""Bodies too large, connections too slow, requests that can be read in two ways: refused, while others are served."""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentmesh.broker import EmbeddedBroker
from agentmesh.gateway import server
from agentmesh.gateway.body import LINGER_BYTES
from tests.gateway.conftest import Running, StartGateway, raw
from tests.harness.fixtures import SpawnProcess

ASK = "/api/v1/agents/a/ask"
MB = 1024 * 1024


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_i3_bodies_that_are_too_large_or_compressed_are_refused_early(gateway: Running) -> None:
    large = b'{"text": "' + b"x" * 600_000 + b'"}'
    bomb = {"Content-Encoding": "gzip"}

    assert error(await gateway.http.post(ASK, content=large)) == (413, "INVALID_ARGUMENT")
    assert error(await gateway.http.post(ASK, content=b"\x1f\x8b" + b"\0" * 200_000, headers=bomb)) == (
        415,
        "INVALID_ARGUMENT",
    )
    assert error(await gateway.http.post(ASK, json={"text": "x" * 400_000})) == (404, "NOT_FOUND")
    announced = await raw(
        gateway.port,
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
        % ASK.encode(),
    )
    assert announced.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in announced


async def test_i3_of_an_endless_body_only_a_little_is_read(gateway: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"POST {ASK} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    sent = 0

    async def send() -> None:
        nonlocal sent
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        try:
            while sent < 1000 * MB:
                writer.write(chunk)
                await writer.drain()
                sent += 65536
        except ConnectionError:
            return

    sending = asyncio.create_task(send())
    async with asyncio.timeout(30):
        head = await reader.readuntil(b"\r\n\r\n")
        await sending
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head.lower()
    assert sent < LINGER_BYTES + 16 * MB  # what the kernel holds on both sides comes on top
    assert (await gateway.http.get("/health")).status_code == 200


async def test_bodies_that_are_nested_too_deeply_or_no_json_are_400(gateway: Running) -> None:
    for body in ("[" * 33 + "]" * 33, '{"a":' * 40 + "1" + "}" * 40, "[" * 100_000, '{"data":', "\ud800", "NaN", ""):
        answer = await gateway.http.post(ASK, content=body.encode(errors="surrogatepass"))
        assert error(answer) == (400, "INVALID_ARGUMENT"), body[:40]


async def test_bodies_that_are_something_else_are_415(gateway: Running) -> None:
    for kind in ("application/xml", "multipart/form-data", "application/octet-stream"):
        answer = await gateway.http.post(ASK, content="{}", headers={"Content-Type": kind})
        assert error(answer) == (415, "INVALID_ARGUMENT")


SMUGGLED = {
    "two lengths": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "other lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "folded line": b"X-Any: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"X-Any: a\nContent-Length: 0\r\n\r\n",
    "bare LF at the end": b"Content-Length: 0\r\n\n",
    "space before the colon": b"Content-Length : 0\r\n\r\n",
    "other coding": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "hidden coding": b"Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n",
    "coding twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "too old for chunks": b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "sign": b"Content-Length: +5\r\n\r\nhello",
    "NUL": b"X-Any: a\0b\r\nContent-Length: 0\r\n\r\n",
    "CR": b"X-Any: a\rb\r\nContent-Length: 0\r\n\r\n",
    "chunk size": b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Any: a\n b\r\n\r\n",
}


async def test_i7_requests_that_can_be_read_in_two_ways_are_400(gateway: Running) -> None:
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

    for case, fields in SMUGGLED.items():
        version = b"1.0" if case == "too old for chunks" else b"1.1"
        head = b"POST /health HTTP/" + version + b"\r\nHost: localhost\r\n"
        answer = await raw(gateway.port, head + fields + hidden)

        assert answer.startswith(b"HTTP/1.1 400 "), (case, answer)
        assert answer.count(b"HTTP/1.1 ") == 1, case  # the hidden request is never answered
        assert b'"code": "INVALID_ARGUMENT"' in answer, case


async def test_i7_a_request_behind_another_is_read_as_strictly(gateway: Running) -> None:
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

    answer = await raw(gateway.port, first + b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Any: a\r\n b\r\n\r\n")

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"400"]


async def test_headers_over_16_kb_are_refused(gateway: Running) -> None:
    for size in (17_000, 60_000, 1_000_000):
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Any: " + b"x" * size + b"\r\n\r\n"

        assert (await raw(gateway.port, head)).split()[1] in (b"400", b"431"), size


async def test_i4_two_hundred_connections_that_never_finish_their_headers_hold_up_nobody(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(header_timeout=2.0)
    ends: list[bytes] = []

    async def slow() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.3)
                writer.write(b"X")

        dripping = asyncio.create_task(drip())
        ends.append(await reader.read())
        dripping.cancel()
        writer.close()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(slow())
        for _ in range(50):
            assert (await gateway.http.get("/health")).status_code == 200
    assert len(ends) == 200
    assert {end.partition(b"\r\n")[0] for end in ends} == {b"HTTP/1.1 408 Request Timeout"}


async def test_a_body_that_does_not_come_and_an_idle_connection_are_ended(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(body_timeout=0.2, idle_timeout=0.2)
    head = f"POST {ASK} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123".encode()

    late, idle = await asyncio.gather(
        raw(gateway.port, head), raw(gateway.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    )

    assert late.startswith(b"HTTP/1.1 408 ")
    assert b"DEADLINE_EXCEEDED" in late
    assert idle.startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = asyncio.Event()

    async def endless(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.create_task(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        over.set()

    monkeypatch.setattr(server, "make_app", lambda gateway: endless)
    gateway = await start_gateway(write_timeout=0.3)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")

    async with asyncio.timeout(20):
        await over.wait()
    writer.close()


async def test_methods_and_paths_that_are_not_there_are_typed_errors(gateway: Running) -> None:
    assert error(await gateway.http.get("/nothing")) == (404, "NOT_FOUND")
    wrong = await gateway.http.delete("/health")
    assert error(wrong) == (405, "UNIMPLEMENTED")
    assert "GET" in wrong.headers["allow"]
    assert error(await gateway.http.request("BREW", "/health")) == (405, "UNIMPLEMENTED")


async def test_errors_of_every_kind_have_a_status() -> None:
    from agentmesh import errors
    from agentmesh.codes import ErrorCode
    from agentmesh.gateway.errors import STATUS, TABLE

    assert set(STATUS) == set(ErrorCode)
    assert set(STATUS.values()) == {400, 401, 403, 404, 409, 412, 429, 500, 501, 503, 504}
    assert all(issubclass(kind, errors.AgentMeshError) for kind in TABLE)


async def test_i3_the_memory_of_a_gateway_stays_flat_whatever_is_thrown_at_it(
    nats_server: EmbeddedBroker, spawn_process: SpawnProcess
) -> None:
    process = await spawn_process("agentmesh.gateway", "--nats", nats_server.url, "--http", "127.0.0.1:0")
    port = int((await process.line_matching(r"http ready: http://127\.0\.0\.1:(\d+)", timeout=60))[1])

    def resident() -> float:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * resource.getpagesize() / MB

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:

        async def throw() -> None:
            bomb = {"Content-Encoding": "gzip"}
            for body, headers in ((b"x" * 4 * MB, {}), (b"[" * 500_000, {}), (b"\x1f\x8b" * 100_000, bomb)):
                assert (await http.post(ASK, content=body, headers=headers)).status_code in (400, 413, 415)

        await throw()  # what is allocated once
        before = resident()
        await asyncio.gather(*(throw() for _ in range(10)))
        grown = resident() - before
    assert grown < 5
