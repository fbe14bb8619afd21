"""The faults the other tests rely on are real."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest

from tests.harness import Cluster, Server, TcpProxy, alive, eventually
from tests.harness.fixtures import SpawnProcess


class Wire:
    """A client by hand: what goes over the socket and nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, text: str) -> None:
        self.writer.write(text.encode())

    async def line(self, timeout: float = 5.0) -> str:
        async with asyncio.timeout(timeout):
            return (await self.reader.readline()).decode().rstrip("\r\n")

    async def ping(self) -> None:
        self.send("PING\r\n")
        assert await self.line() == "PONG"

    async def silent(self, seconds: float) -> bool:
        try:
            await self.line(seconds)
        except TimeoutError:
            return True
        return False


@contextlib.asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    client = Wire(*await asyncio.open_connection("127.0.0.1", port))
    try:
        assert (await client.line()).startswith("INFO ")
        client.send('CONNECT {"verbose":false,"headers":true}\r\n')
        yield client
    finally:
        client.writer.transport.abort()


async def test_a_killed_server_comes_back_on_its_port_with_its_store(server: Server) -> None:
    port, pid, marker = server.port, server.pid, server.store / "marker"
    marker.touch()

    server.kill9()
    assert not alive(pid)
    assert not server.running
    await server.start()

    assert (server.port, marker.exists()) == (port, True)
    async with wire(port) as client:
        await client.ping()


async def test_a_terminated_server_keeps_its_store_and_logs_its_end(server: Server) -> None:
    await server.restart()

    assert "Server Exiting" in server.log()
    assert server.log().count("Server is ready") == 2


async def test_a_paused_server_is_silent_until_it_is_resumed(server: Server) -> None:
    async with wire(server.port) as client:
        await client.ping()
        server.pause()
        client.send("PING\r\n")
        assert await client.silent(0.2)
        server.resume()
        assert await client.line() == "PONG"


async def test_a_paused_server_is_cleaned_up() -> None:
    server = Server()
    await server.start()
    pid = server.pid
    server.pause()

    await server.cleanup()

    assert not alive(pid)
    assert not server.store.exists()


async def test_a_blackhole_keeps_connections_and_delivers_later(proxy: TcpProxy) -> None:
    async with wire(proxy.port) as client:
        await client.ping()
        proxy.blackhole()
        client.send("PING\r\n")
        assert await client.silent(0.2)
        proxy.restore()
        assert await client.line() == "PONG"


async def test_a_cut_resets_connections_and_new_ones_are_welcome(proxy: TcpProxy) -> None:
    async with wire(proxy.port) as client:
        await client.ping()
        proxy.cut()
        with contextlib.suppress(ConnectionResetError):
            assert await client.line() == ""
    async with wire(proxy.port) as client:
        await client.ping()


async def test_a_refusing_proxy_resets_new_connections(proxy: TcpProxy) -> None:
    proxy.refuse = True
    client = Wire(*await asyncio.open_connection("127.0.0.1", proxy.port))
    with contextlib.suppress(ConnectionResetError):
        assert await client.line() == ""
    client.writer.close()


async def test_a_delay_is_added_each_way(proxy: TcpProxy) -> None:
    loop = asyncio.get_running_loop()
    async with wire(proxy.port) as client:
        await client.ping()
        proxy.delay = 0.1
        began = loop.time()
        await client.ping()
        assert loop.time() - began >= 0.2


async def test_a12_lost_messages_leave_the_stream_of_frames_in_step(proxy: TcpProxy) -> None:
    async with wire(proxy.port) as client:
        proxy.drop = lambda frame: b"lose\r\nme" in frame or frame.startswith(b"HMSG")
        client.send("SUB a 1\r\n")
        client.send("PUB a 8\r\nlose\r\nme\r\n")
        client.send("HPUB a 18 20\r\nNATS/1.0\r\nX: y\r\n\r\nhi\r\n")
        client.send("PUB a 4\r\nkeep\r\n")

        assert await client.line() == "MSG a 1 4"
        assert await client.line() == "keep"
        await client.ping()

    assert proxy.dropped == 2


async def test_what_a_client_sends_can_be_lost_too(proxy: TcpProxy) -> None:
    async with wire(proxy.port) as client:
        proxy.drop_sent = lambda frame: frame.startswith(b"PUB $JS.ACK.")
        client.send("SUB > 1\r\n")
        client.send("PUB $JS.ACK.x 4\r\n+ACK\r\nPUB a 4\r\nk\r\ne\r\n")

        assert await client.line() == "MSG a 1 4"
        assert (await client.line(), await client.line()) == ("k", "e")
        await client.ping()

    assert proxy.dropped == 1


async def test_a_proxy_counts_its_connections(proxy: TcpProxy) -> None:
    async with wire(proxy.port):
        assert proxy.connections == 1
    await eventually(lambda: proxy.connections == 0)


async def test_a_cluster_forms_and_survives_the_loss_of_one() -> None:
    async with Cluster() as cluster:
        for server in cluster.servers:
            await has_routes_to(server, 2)
        cluster.named("n2").kill9()
        await has_routes_to(cluster.named("n1"), 1)


async def has_routes_to(server: Server, others: int) -> None:
    async def connected() -> bool:
        page = await server.monitor("routez")
        return len({route["remote_name"] for route in page["routes"]}) == others

    await eventually(connected, timeout=10)


async def test_lines_of_a_process_can_be_awaited_in_order(spawn_process: SpawnProcess) -> None:
    process = await spawn_process("""
        import sys
        print("ready 1")
        print("ready 2", file=sys.stderr)
        print("echo", sys.stdin.readline())
    """)
    assert (await process.line_matching(r"ready (\d)", nth=2))[1] == "2"
    assert (await process.line_matching(r"ready (\d)"))[1] == "1"
    await process.write_line("hello")
    await process.line_matching("echo hello")
    assert await process.wait() == 0


async def test_a_process_that_ends_without_the_line_shows_what_it_printed(spawn_process: SpawnProcess) -> None:
    process = await spawn_process("raise SystemExit('out of luck')")

    with pytest.raises(AssertionError, match=r"(?s)ended with 1.*out of luck"):
        await process.line_matching("ready")


async def test_a_process_that_stays_silent_is_an_error_after_the_timeout(spawn_process: SpawnProcess) -> None:
    process = await spawn_process("import time; print('thinking'); time.sleep(600)")
    await process.line_matching("thinking")

    with pytest.raises(AssertionError, match=r"(?s)still running after 0\.1 s.*thinking"):
        await process.line_matching("ready", timeout=0.1)
    with pytest.raises(AssertionError, match=r"(?s)still runs after 0\.1 s.*thinking"):
        await process.wait(timeout=0.1)

    process.terminate()
    assert await process.wait() == -signal.SIGTERM


async def test_cleanup_takes_the_whole_family(spawn_process: SpawnProcess) -> None:
    process = await spawn_process("""
        import subprocess
        child = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
        print("ready", flush=True)
        child.wait()
    """)
    await process.line_matching("ready")
    await eventually(lambda: len(process.family()) == 3)

    await process.cleanup()

    assert process.family() == []


async def test_the_orphans_of_a_process_are_known_and_cleaned_up(spawn_process: SpawnProcess) -> None:
    process = await spawn_process("""
        import subprocess
        orphan = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print("orphan", orphan.pid, flush=True)
        orphan.wait()
    """)
    orphan = int((await process.line_matching(r"orphan (\d+)"))[1])
    process.kill9()
    await process.wait()
    await eventually(lambda: process.family() == [orphan])

    await process.cleanup()

    assert not alive(orphan)


async def test_eventually_names_what_did_not_happen() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: the moon -> 0"):
        await eventually(lambda: 0, timeout=0.05, what="the moon")
