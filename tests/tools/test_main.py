"""Promises of `python -m agentmesh.tools`."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from agentmesh.errors import ConfigError, DefinitionError, ToolArgumentsError
from agentmesh.subjects import Subjects
from agentmesh.tooling import ToolClient
from agentmesh.tools.loading import configure, load, load_all
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server, alive, children, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tools import samples
from tests.tools.conftest import Marker


async def test_the_process_serves_says_so_and_ends_in_order(
    server: Server, spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    process = await spawn_process(
        "agentmesh.tools",
        *("--nats", server.url, "--tenant", "acme", "--set", f"root={tmp_path}", "--set", 'commands=["echo"]'),
        *("agentmesh.tools.builtin", "tests.tools.samples:add"),
    )
    ready = await process.line_matching("tools ready: (.*) on nats://")
    assert ready[1].split(", ") == sorted(
        ["add", "list_files", "python_metrics", "radon_complexity", "read_file", "ruff_check", "run_command"]
    )
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        tools = ToolClient(transport, Subjects("acme"))
        assert await tools.call("read_file", path="a.txt") == "alpha"
        assert (await tools.call("run_command", argv=["echo", "hi"]))["stdout"] == "hi\n"
        assert await tools.call("add", a=1) == 3
        with pytest.raises(ToolArgumentsError, match="outside the root"):
            await tools.call("read_file", path="/etc/passwd")

    (keeper,) = children(process.pid)
    process.terminate()
    assert await process.wait() == 0
    await eventually(lambda: not alive(keeper))


async def test_running_calls_finish_before_the_process_ends(
    server: Server, spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    process = await spawn_process(
        """
        import asyncio, os, sys, pathlib
        from agentmesh.tooling import tool
        from agentmesh.tools.__main__ import main
        import types

        module = sys.modules["handmade"] = types.ModuleType("handmade")

        @tool
        async def slow(started: str, go_on: str) -> str:
            pathlib.Path(started).touch()
            while not pathlib.Path(go_on).exists():
                await asyncio.sleep(0.01)
            return "done"

        module.slow = slow
        sys.exit(main(sys.argv[1:]))
        """,
        *("--nats", server.url, "handmade"),
    )
    await process.line_matching("tools ready: slow")
    started, go_on = tmp_path / "started", tmp_path / "go"
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        tools = ToolClient(transport, Subjects())
        call = asyncio.create_task(tools.call("slow", started=str(started), go_on=str(go_on)))
        await eventually(started.exists)
        process.signal(signal.SIGTERM)

        go_on.touch()
        assert await call == "done"
    assert await process.wait() == 0


async def test_a_broken_module_is_reported_and_the_others_are_served(
    server: Server, spawn_process: SpawnProcess
) -> None:
    process = await spawn_process(
        "agentmesh.tools", "--nats", server.url, "no.such.module", "tests.tools.samples:add", "tests.tools.samples:no"
    )
    await process.line_matching("tools ready: add on")

    assert "no.such.module: cannot be imported: ModuleNotFoundError" in process.output
    assert "tests.tools.samples:no: is not a tool" in process.output


async def test_without_any_tool_or_broker_it_says_why_and_ends(spawn_process: SpawnProcess) -> None:
    nothing = await spawn_process("agentmesh.tools", "no.such.module")
    lonely = await spawn_process("agentmesh.tools", "--nats", "nats://127.0.0.1:1", "tests.tools.samples:add")
    wrong = await spawn_process("agentmesh.tools", "--set", "rot=/", "agentmesh.tools.files")

    assert list(await asyncio.gather(nothing.wait(30), lonely.wait(30), wrong.wait(30))) == [1, 1, 1]
    assert "there is no tool to serve" in nothing.output
    assert "cannot reach the broker at nats://127.0.0.1:1" in lonely.output
    assert "rot: no tool has this setting (there are: root)" in wrong.output


async def test_nothing_is_left_when_the_process_that_started_it_is_killed(
    server: Server, spawn_process: SpawnProcess, marker: Marker
) -> None:
    parent = await spawn_process(
        """
        import subprocess, sys, time
        from agentmesh.lifeline import spawn_kwargs

        child = subprocess.Popen([sys.executable, "-m", "agentmesh.tools", *sys.argv[1:]], **spawn_kwargs())
        print("executor", child.pid, flush=True)
        child.wait()
        """,
        *("--nats", server.url, "--grace", "0.1", "tests.tools.samples:sleeps_long"),
    )
    executor = int((await parent.line_matching(r"executor (\d+)"))[1])
    await parent.line_matching("tools ready")
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        call = asyncio.create_task(ToolClient(transport, Subjects()).call("sleeps_long", marker=str(marker.path)))
        pids = await marker.pids()
        parent.kill9()

        await eventually(lambda: not any(alive(pid) for pid in [executor, *pids]), 5.0)
        call.cancel()
        await asyncio.wait({call})


def test_targets_are_tools_or_modules_and_each_tool_comes_once() -> None:
    tools, broken = load_all(["agentmesh.tools.files", "agentmesh.tools.files:read_file", "tests.tools.samples:add"])

    assert [tool.name for tool in tools] == ["read_file", "list_files", "add"]
    assert broken == []
    assert load("tests.tools.samples:add") is samples.add
    with pytest.raises(DefinitionError, match=r"did you forget @tool\?"):
        load("tests.tools.samples:SLEEPER")
    assert "has no tools" in str(load_all(["json"])[1][0])


def test_settings_go_to_the_tools_that_have_them() -> None:
    tools, _ = load_all(["agentmesh.tools.builtin"])

    configured = {tool.name: tool for tool in configure(tools, {"root": "/srv"})}

    assert all(tool.settings["root"] == Path("/srv") for tool in configured.values())
    with pytest.raises(ConfigError, match="rot"):
        configure(tools, {"rot": "/"})
    with pytest.raises(DefinitionError, match="commands"):
        configure(tools, {"commands": "echo"})
