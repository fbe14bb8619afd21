"""The way in and out: which mesh `connect` finds, and that closing leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentmesh import Agent, Prompt, SyncMesh, connect, handler, runfile
from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import AgentMeshError, BrokerUnavailableError, ConnectionClosedError
from agentmesh.ids import new_id
from agentmesh.local import LocalServices
from agentmesh.mesh import ConnectOptions
from agentmesh.runfile import RunFile
from agentmesh.transport import TransportOptions


class Echo(Agent):
    @handler
    async def asked(self, request: Prompt) -> AsyncIterator[str]:
        for word in request.text.split():
            yield word


def _run_file(folder: Path, url: str, pid: int, tenant: str) -> None:
    runfile.write(folder / runfile.RUN_DIR, RunFile(url, tenant, "test", pid, datetime.now(UTC)))


async def test_connect_takes_the_address_then_the_environment_then_the_nearest_live_mesh(
    nats_server: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.delenv("AGENTMESH_BROKER_URL", raising=False)
    _run_file(inner, "nats://127.0.0.1:1", 2**30, "stale")  # its process is dead
    _run_file(tmp_path, nats_server.url, os.getpid(), "found")
    async with connect() as mesh:
        assert (mesh.url, mesh.subjects.tenant) == (nats_server.url, "found")
    async with connect(tenant="mine") as mesh:
        assert (mesh.url, mesh.subjects.tenant) == (nats_server.url, "mine")

    monkeypatch.setenv("NATS_URL", nats_server.url)
    async with connect() as mesh:
        assert mesh.subjects.tenant == "default"
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    async with connect(nats_server.url) as mesh:
        assert mesh.url == nats_server.url
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"):
        await connect(transport=TransportOptions(connect_timeout=0.5))


@pytest.mark.parametrize("pid", [0, -1, 10**30])
def test_a_run_file_with_an_impossible_pid_is_stale(tmp_path: Path, pid: int) -> None:
    _run_file(tmp_path, "nats://127.0.0.1:1", 1, "x")
    path = tmp_path / runfile.RUN_DIR / runfile.NAME
    path.write_text(path.read_text().replace('"pid": 1,', f'"pid": {pid},'))
    assert runfile.find(tmp_path) is None


async def test_two_embedded_meshes_live_side_by_side_and_closing_twice_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.delenv("AGENTMESH_BROKER_URL", raising=False)
    one, two = await asyncio.gather(connect(), connect())
    assert one.url != two.url
    await asyncio.gather(one.spawn(Echo), two.spawn(Echo))
    assert await one.ask("echo", Prompt(text="a")) == "a"
    await asyncio.gather(one.close(), one.close())
    await one.close()
    assert await two.ask("echo", Prompt(text="b")) == "b"
    await two.close()
    await two.close()
    with pytest.raises(ConnectionClosedError):
        await two.ask("echo", Prompt(text="b"))
    with pytest.raises(AgentMeshError):
        await two.spawn(Echo)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_a_connect_that_fails_half_way_leaves_no_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[LocalServices] = []

    async def fail(self: LocalServices, transport: object, subjects: object) -> None:
        started.append(self)
        raise OSError("no")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.delenv("AGENTMESH_BROKER_URL", raising=False)
    monkeypatch.setattr(LocalServices, "start_services", fail)
    with pytest.raises(OSError, match="no"):
        await connect()
    (local,) = started
    assert local._broker is not None
    assert local._broker.pid is None
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def test_the_facade_may_be_closed_twice_and_says_so_when_used_after(nats_server: EmbeddedBroker) -> None:
    mesh = SyncMesh(ConnectOptions(url=nats_server.url, tenant=f"sync-{new_id()}"))
    mesh.close()
    mesh.close()
    with pytest.raises(ConnectionClosedError):
        mesh.agents()
    assert not [thread for thread in threading.enumerate() if thread.name == "agentmesh"]


class Hangs(Agent):
    cancelled = threading.Event()

    @handler
    async def asked(self, request: Prompt) -> AsyncIterator[str]:
        yield "first"
        try:
            await asyncio.Event().wait()
        finally:
            type(self).cancelled.set()


def _interrupt_soon() -> None:
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident or 0, signal.SIGINT))
    timer.daemon = True
    timer.start()


@pytest.mark.parametrize("call", ["ask", "stream"])
def test_an_interrupt_ends_the_call_and_its_handler_and_the_facade_lives(
    nats_server: EmbeddedBroker, call: str
) -> None:
    Hangs.cancelled.clear()
    with SyncMesh(ConnectOptions(url=nats_server.url, tenant=f"sync-{new_id()}")) as mesh:
        mesh.spawn(Hangs)
        mesh.spawn(Echo)
        _interrupt_soon()
        calls: dict[str, Callable[[], object]] = {
            "ask": lambda: mesh.ask("hangs", Prompt(text="")),
            "stream": lambda: list(mesh.stream("hangs", Prompt(text=""))),
        }
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
        assert Hangs.cancelled.wait(2)
        assert mesh.ask("echo", Prompt(text="a b")) == "ab"
