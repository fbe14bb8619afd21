"""TLS before anything else, other servers than we need, and a cluster that loses its leader."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh import ports
from agentmesh.errors import BrokerTooOldError, BrokerUnavailableError, MissingExtraError
from agentmesh.transport import StreamSpec, Transport, TransportOptions
from tests.harness import Server, eventually
from tests.transport.conftest import Connect
from tests.transport.tools import echo


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl command")
    return cert, key


@contextlib.asynccontextmanager
async def peer(*says: bytes) -> AsyncIterator[tuple[str, bytearray]]:
    """Somebody on a port who says these lines, one per line it hears, and remembers what it heard."""
    heard, writers = bytearray(), []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        for line in says:
            writer.write(line)
            with contextlib.suppress(OSError):
                await writer.drain()
            with contextlib.suppress(OSError):
                heard.extend(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_tls_is_spoken_before_anything_else(certificate: tuple[Path, Path], connect: Connect) -> None:
    cert, key = certificate
    tls = f'tls {{ cert_file: "{cert}", key_file: "{key}", handshake_first: true }}\n'
    server = Server(extra_config=tls)
    try:
        with contextlib.suppress(Exception):  # its own readiness check may not speak TLS
            await server.start()

        transport = await connect(server.url.replace("nats://", "tls://"), tls_ca=str(cert))
        await echo(transport, "echo")

        assert (await transport.request("echo", b"private", timeout=2)).data == b"private"
        with pytest.raises(BrokerUnavailableError):
            await connect(server.url.replace("nats://", "tls://"), connect_timeout=1)  # an unknown issuer
    finally:
        await server.cleanup()


async def test_a_password_is_never_said_in_plain_text_when_tls_was_asked_for() -> None:
    info = b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true,"auth_required":true}\r\n'
    async with peer(info, b"PONG\r\n", b"PONG\r\n") as (address, heard):
        options = TransportOptions(url=f"tls://{address}", user="u", password="sekret", connect_timeout=1)

        with pytest.raises(BrokerUnavailableError):
            await Transport.connect(options)

        assert b"sekret" not in heard


async def test_an_older_broker_is_refused_with_both_versions() -> None:
    info = b'INFO {"server_id":"x","version":"2.13.9","max_payload":1048576,"headers":true}\r\n'
    async with peer(info, b"PONG\r\n", b"") as (address, _):
        with pytest.raises(BrokerTooOldError, match=r"2\.13\.9 is too old: agentmesh needs 2\.14"):
            await Transport.connect(TransportOptions(url=f"nats://{address}"))


async def test_what_is_no_nats_server_is_told_in_time() -> None:
    async with peer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (address, _):
        with pytest.raises(BrokerUnavailableError):
            await Transport.connect(TransportOptions(url=f"nats://{address}", connect_timeout=1))


async def test_a_credentials_file_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(MissingExtraError, match=r"agentmesh-nats\[auth\]"):
        await connect("nats://127.0.0.1:1", creds="user.creds")


def member(name: str, routes: list[int], mine: int) -> Server:
    """One server of a cluster of three."""
    peers = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    cluster = f'cluster {{ name: three, listen: "127.0.0.1:{mine}", routes: [{peers}] }}\n'
    return Server(name=name, extra_config=cluster)


@pytest.mark.slow
async def test_a5_a_cluster_keeps_three_copies_and_confirms_again_soon_after_losing_a_leader(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reserved = [ports.reserve() for _ in range(3)]
    routes = [each.port for each in reserved]
    servers = [member(f"n{i}", routes, routes[i]) for i in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.cleanup)
        await asyncio.gather(*(server.start() for server in servers))
        transport = await connect([server.url for server in servers])
        await eventually(lambda: transport.replicas == 3, 15, what="the cluster is complete")
        await transport.ensure_stream(StreamSpec("SAFE", ("safe.>",)))
        found = await transport._api.call("STREAM.INFO.SAFE")
        assert found["config"]["num_replicas"] == 3
        leader = next(server for i, server in enumerate(servers) if f"n{i}" == found["cluster"]["leader"])
        stored, longest = 0, 0.0

        async def publish() -> None:
            nonlocal stored, longest
            while True:
                start = time.monotonic()
                await transport.publish_durable("safe.a", b"x")
                stored, longest = stored + 1, max(longest, time.monotonic() - start)

        publishing = asyncio.create_task(publish())
        await eventually(lambda: stored > 50)
        leader.kill9()
        await eventually(lambda: stored > 50 and longest > 0.3, 20, what="a pause, and confirmations after it")
        before = stored
        await eventually(lambda: stored > before + 50, 10)
        publishing.cancel()
        await asyncio.wait({publishing})

        info = await transport.stream_info("SAFE")
        assert info is not None
        assert longest < 15
        assert stored <= info.messages <= stored + 1
