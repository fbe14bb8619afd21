"""`agentmesh doctor`: each problem is found, and comes with its fix."""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentmesh import runfile
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.cli import doctor
from tests.cli.conftest import Cli, Ran, run


def finding(ran: Ran, what: str) -> dict[str, Any]:
    """The last line about `what`."""
    found: dict[str, Any] = [line for line in ran.json if line["what"] == what][-1]
    return found


def write_run_file(folder: Path, url: str, *, pid: int, monitor: str | None = None) -> None:
    content = runfile.RunFile(url, "default", "hello", pid, datetime.now(UTC), monitor)
    runfile.write(folder / runfile.RUN_DIR, content)


async def test_an_empty_folder_is_fine(alone: Cli) -> None:
    ran = await alone("doctor")

    assert ran.code == 0
    assert "✓ nats-server" in ran.out
    assert "✗" not in ran.out


async def test_a_wrong_setting_is_found_and_ends_with_1(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text("nmae = 'x'\n")

    ran = await alone("doctor", "--json")

    assert ran.code == 1
    assert finding(ran, "settings")["state"] == "wrong"
    assert "did you mean 'name'?" in finding(ran, "settings")["says"]


async def test_a_port_in_use_is_found_with_the_process_that_holds_it(alone: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        (tmp_path / "mesh.toml").write_text(f"[broker]\nport = {port}\n")

        ran = await alone("doctor", "--json")

    assert ran.code == 1
    assert f"(pid {os.getpid()})" in finding(ran, "port")["says"]


async def test_a_run_file_of_a_dead_process_is_found_and_strict_ends_with_1(alone: Cli, tmp_path: Path) -> None:
    dead = await asyncio.create_subprocess_exec("true")
    await dead.wait()
    write_run_file(tmp_path, "nats://127.0.0.1:1", pid=dead.pid)

    ran = await alone("doctor", "--json")

    assert ran.code == 0
    assert finding(ran, "up")["state"] == "warning"
    assert finding(ran, "up")["fix"].startswith("rm ")
    assert (await alone("doctor", "--strict")).code == 1


async def test_a_variable_that_only_looks_like_a_setting_is_found(alone: Cli) -> None:
    ran = await alone("doctor", "--json", env={"AGENTMESH_TENNANT": "x"})

    assert finding(ran, "environment")["fix"] == "did you mean AGENTMESH_TENANT?"


async def test_a_store_that_cannot_be_written_is_found(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text("[broker]\nstore = '/proc/agentmesh'\n")

    ran = await alone("doctor", "--json")

    assert ran.code == 1
    assert "/proc is not writable" in finding(ran, "store")["says"]


async def test_an_unreachable_broker_is_found(alone: Cli) -> None:
    ran = await alone("doctor", "--json", "--nats", "nats://127.0.0.1:1")

    assert ran.code == 1
    assert finding(ran, "broker")["state"] == "wrong"


@pytest.mark.seed("A33")
@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("nats://127.0.0.1:1", "nothing listens on 127.0.0.1:1 (from $NATS_URL); start a broker there: nats-server"),
        ("nats://no-such-host.invalid:4222", "the name 'no-such-host.invalid' cannot be resolved"),
    ],
)
async def test_why_nothing_answers_is_found_out_and_the_fix_is_a_command(alone: Cli, url: str, fix: str) -> None:
    ran = await alone("doctor", "--json", env={"NATS_URL": url})

    assert ran.code == 1
    assert fix in finding(ran, "broker")["fix"], finding(ran, "broker")


@pytest.mark.seed("A33")
async def test_a_host_that_says_nothing_hints_at_a_firewall(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    assert doctor._way_to("nats://10.0.0.1:4222", "--nats") == (
        "nothing answers at 10.0.0.1:4222 (from --nats): a firewall, or the wrong host; try: nc -vz 10.0.0.1 4222"
    )


async def test_a_broker_of_somebody_else_may_lose_writes_and_that_is_said(alone: Cli, tmp_path: Path) -> None:
    with EmbeddedBroker(BrokerOptions(store=tmp_path / "store")) as broker:
        ran = await alone("doctor", "--json", "--nats", broker.url)

    assert ran.code == 0
    assert finding(ran, "broker")["state"] == "ok"
    assert finding(ran, "jetstream")["state"] == "ok"
    assert finding(ran, "durability")["state"] == "warning"
    assert "sync_interval: always" in finding(ran, "durability")["fix"]


async def test_whether_the_broker_of_this_folder_syncs_every_write_is_read_from_it(tmp_path: Path) -> None:
    async def durability(sync_always: bool) -> str:
        with EmbeddedBroker(BrokerOptions(sync_always=sync_always)) as broker:
            write_run_file(tmp_path, broker.url, pid=os.getpid(), monitor=broker.monitor_url)
            ran = await run("doctor", "--json", cwd=tmp_path)
        return str(finding(ran, "durability")["state"])

    assert await durability(True) == "ok"
    assert await durability(False) == "warning"


async def test_a4_a_broker_that_does_not_sync_is_a_warning_and_strict_ends_with_1(alone: Cli, tmp_path: Path) -> None:
    with EmbeddedBroker(BrokerOptions(sync_always=False)) as broker:
        (tmp_path / "mesh.toml").write_text(f"[broker]\nurl = '{broker.url}'\nmonitor = '{broker.monitor_url}'\n")
        ran = await alone("doctor", "--json")
        strict = await alone("doctor", "--strict")

    assert ran.code == 0
    assert finding(ran, "durability")["says"] == "a power failure loses the writes of the last two minutes"
    assert strict.code == 1


async def test_show_config_prints_every_setting_with_its_origin(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text("tenant = 'acme'\n")

    ran = await alone("doctor", "--show-config", "--json", env={"NATS_URL": "nats://me:pw@h:4222"})

    assert ran.json["tenant"] == {"value": "acme", "origin": "mesh.toml"}
    assert ran.json["broker.url"] == {"value": "nats://***@h:4222", "origin": "$NATS_URL"}
    assert ran.json["node.count"]["origin"] == "default"
