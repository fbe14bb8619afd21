"""`agentmesh up` with real processes: a new project starts, answers, is steered, and stops without a trace."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agentmesh.broker import EmbeddedBroker
from tests.cli.conftest import Cli, Ran, ended, run, start
from tests.harness import alive, eventually

GREETER = """
[agents.greeter]
class = "hello.agents:Greeter"
replicas = 2
"""
BROKEN = """
[agents.broken]
class = "hello.nothing:Broken"
"""


class Running:
    """An `agentmesh up` whose output can be awaited."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, wanted: Callable[[str], bool], timeout: float = 30.0) -> str:
        """The next line that is wanted."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            while text := await self.process.stdout.readline():
                self.lines.append(text.decode().rstrip("\n"))
                if wanted(self.lines[-1]):
                    return self.lines[-1]
        raise AssertionError("\n".join(self.lines))

    async def stop(self) -> Ran:
        """Ctrl-C, and what it left."""
        self.process.send_signal(signal.SIGINT)
        return await ended(self.process)


@pytest.fixture
async def project(tmp_path: Path) -> AsyncIterator[Path]:
    """A project made by `agentmesh init`; a mesh that was left running is killed."""
    assert (await run("init", "hello", cwd=tmp_path)).code == 0
    folder = tmp_path / "hello"
    yield folder
    await run("down", "--force", cwd=folder)


async def up(folder: Path, *arguments: str) -> Running:
    """Start it on a port of its own."""
    return Running(await start("up", "--port", "0", *arguments, cwd=folder))


@pytest.mark.seed("A1")
async def test_a_new_project_starts_answers_and_stops(project: Path) -> None:
    mesh = await up(project)
    ready = await mesh.line(lambda line: line.startswith("ready in "))
    shown = "\n".join(mesh.lines)

    assert 'agentmesh ask greeter "hi"' in ready
    assert "● broker     nats://127.0.0.1:" in shown
    assert "● storage    .agentmesh/" in shown
    assert ["greeter", "2/2", "shared", "ready", "Greet,", "Prompt*"] in [line.split() for line in mesh.lines]
    assert (await run("ask", "greeter", "hi", cwd=project / "tests")).out == "Hello! You said: hi \n"
    counted = await run(
        "submit", "CountWords", "--data", '{"text": "To be, or not to be!"}', "--wait", "--json", cwd=project
    )
    assert counted.json == {"words": 6, "longest": "not"}
    replicas = (await run("ps", "--json", cwd=project)).json
    assert [info["name"] for info in replicas] == ["counter", "greeter", "greeter"]
    doctor = await run("doctor", "--json", cwd=project)
    assert {f["what"]: f["state"] for f in doctor.json if f["what"] in ("up", "broker", "durability")} == {
        "up": "ok",
        "broker": "ok",
        "durability": "ok",
    }

    stopped = await mesh.stop()

    assert (stopped.code, stopped.err) == (0, "")
    assert "Data kept in .agentmesh/" in stopped.out
    assert [info["pid"] for info in replicas if alive(info["pid"])] == []
    (url,) = re.findall(r"nats://[\d.]+:\d+", shown)
    assert (await run("ask", "greeter", "hi", "--nats", url, cwd=project)).code == 3


async def test_a_mesh_in_the_background_is_scaled_restarted_read_and_stopped(project: Path) -> None:
    started = await run("up", "--detach", "--port", "0", "--json", cwd=project)
    assert started.code == 0, started.err
    assert {name: agent["ready"] for name, agent in started.json["agents"].items()} == {"greeter": 2, "counter": 1}

    async def greeters() -> set[tuple[int, int]]:
        ran = await run("ps", "greeter", "--json", cwd=project)
        return {(info["replica"], info["pid"]) for info in ran.json if info["state"] == "ready"}

    assert (await run("scale", "greeter=3", cwd=project)).code == 0
    before = await greeters()
    assert len(before) == 3
    assert (await run("restart", "greeter", cwd=project)).code == 0
    assert (await run("scale", "greter=3", cwd=project)).code == 4
    assert (await run("scale", "greeter", cwd=project)).code == 2
    assert len((await run("logs", "-n", "5", cwd=project)).lines) <= 5
    assert (await run("logs", "nobody", cwd=project)).code == 4
    again = await run("up", "--detach", "--port", "0", cwd=project)
    assert again.code == 1
    assert str(started.json["pid"]) in again.err

    down = await run("down", "--volumes", "--json", cwd=project / "tests")

    assert down.json == {"pid": started.json["pid"], "stopped": True, "killed": False}
    await eventually(lambda: not alive(started.json["pid"]))
    assert not (project / ".agentmesh" / "jetstream").exists()
    assert (await run("down", cwd=project)).code == 0


async def test_with_json_each_event_is_a_line_and_a_target_needs_no_settings(project: Path) -> None:
    (project / "mesh.toml").unlink()
    mesh = await up(project, "hello.agents:Greeter", "--replicas", "greeter=2", "--store", "memory", "--json")

    ready = json.loads(await mesh.line(lambda line: json.loads(line)["event"] == "ready"))
    stopped = await mesh.stop()

    events = [json.loads(line) for line in mesh.lines]
    assert events[0]["event"] == "broker_ready"
    assert (ready["agents"], ready["failed"]) == (1, 0)
    assert sum(event["event"] == "agent_state" and event["state"] == "ready" for event in events) >= 2
    assert json.loads(stopped.out.splitlines()[-1])["event"] == "stopped"
    assert (stopped.code, stopped.err) == (0, "")


async def test_a_broker_that_is_given_is_used_and_left_running(project: Path, nats_server: EmbeddedBroker) -> None:
    mesh = Running(await start("up", "--tenant", "guests", cwd=project, env={"NATS_URL": nats_server.url}))
    await mesh.line(lambda line: line.startswith("ready in "))

    assert f"● broker     {nats_server.url}" in "\n".join(mesh.lines)
    assert (await run("ask", "greeter", "hi", cwd=project, env={"NATS_URL": nats_server.url})).code == 4
    elsewhere = ("--nats", nats_server.url, "--tenant", "guests")
    assert (await run("ask", "greeter", "hi", *elsewhere, cwd=project.parent)).code == 0
    assert (await mesh.stop()).code == 0
    assert (await run("ps", "--json", *elsewhere, cwd=project.parent)).json == []


async def test_an_agent_that_cannot_be_imported_is_shown_and_the_others_run(project: Path) -> None:
    (project / "mesh.toml").write_text((project / "mesh.toml").read_text() + BROKEN)

    mesh = await up(project)
    await mesh.line(lambda line: line.startswith("ready in "))

    assert "No module named 'hello.nothing'" in "\n".join(mesh.lines)
    assert ["broken", "0/1", "shared", "failed"] in [line.split()[:4] for line in mesh.lines]
    assert (await run("ask", "greeter", "hi", cwd=project)).code == 0
    assert (await mesh.stop()).code == 0
    strict = await run("up", "--port", "0", "--strict", cwd=project)
    assert strict.code == 1
    assert "--strict: 1 agents cannot start" in strict.out


async def test_with_reload_a_changed_agent_answers_anew(project: Path) -> None:
    pytest.importorskip("watchfiles")
    agents = project / "hello" / "agents.py"
    mesh = await up(project, "--reload", "--only", "greeter")
    await mesh.line(lambda line: line.startswith("ready in "))
    assert (await run("ask", "greeter", "hi", cwd=project)).out == "Hello! You said: hi \n"

    agents.write_text(agents.read_text().replace("You said", "So you say"))

    assert (await mesh.line(lambda line: "changed" in line)).startswith("~ hello/agents.py changed → greeter restarted")
    assert (await run("ask", "greeter", "hi", cwd=project)).out == "Hello! So you say: hi \n"
    assert (await mesh.stop()).code == 0


async def test_a_port_in_use_ends_with_3_and_names_who_holds_it(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        ran = await run("up", "--port", str(holder.getsockname()[1]), cwd=project)

    assert ran.code == 3
    assert f"(pid {os.getpid()})" in ran.err
    assert "--port" in ran.err


async def test_what_a_stopped_mesh_logged_can_still_be_read(project: Path) -> None:
    agents = project / "hello" / "agents.py"
    agents.write_text(agents.read_text().replace("self.greeted = 0", "self.greeted = 0\n        print('born')"))
    mesh = await up(project, "--only", "greeter")
    await mesh.line(lambda line: "born" in line)
    await mesh.stop()

    ran = await run("logs", "--json", cwd=project)

    assert "born" in [json.loads(line)["text"] for line in ran.lines]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--only", "greter"),
        ("--replicas", "greeter"),
        ("--replicas", "greter=2"),
        ("hello.agents",),
        ("--nodes", "0"),
        ("--port", "70000"),
        ("--log-format", "xml"),
    ],
)
async def test_what_cannot_be_meant_ends_with_2_and_starts_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "mesh.toml").write_text(GREETER)

    ran = await run("up", *arguments, cwd=tmp_path)

    assert (ran.code, ran.out) == (2, "")
    assert not (tmp_path / ".agentmesh").exists()


async def test_show_config_says_where_each_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text(GREETER)

    ran = await run("up", "--show-config", "--json", "--store", "data", "--port", "0", cwd=tmp_path)

    settings: dict[str, Any] = ran.json
    assert settings["broker.store"] == {"value": str(tmp_path / "data"), "origin": "--store"}
    assert settings["broker.port"] == {"value": "0", "origin": "--port"}
    assert settings["agents.greeter.replicas"] == {"value": "2", "origin": "mesh.toml"}


async def test_a_node_without_agents_is_refused_and_says_how_to_name_some(cli: Cli) -> None:
    ran = await cli("node")

    assert ran.code == 2
    assert "no agents to host: name some as module:Class" in ran.err
