"""Who may call which tool is decided by the executor."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh import Agent, AgentRef, Mesh, Prompt, handler
from agentmesh.config import load
from agentmesh.errors import ConfigError, ToolNotAllowedError
from agentmesh.tooling import ToolClient, tool
from agentmesh.tools.__main__ import _allowed
from agentmesh.tools.executor import ToolExecutor

Spawn = Callable[..., Awaitable[AgentRef]]


@tool
async def search(text: str) -> str:
    """Search."""
    return f"found {text}"


@tool
async def read_file(path: str) -> str:
    """Read."""
    return f"read {path}"


@tool
async def send_mail(to: str) -> str:
    """Send."""
    return f"sent to {to}"


TOOLS = (search, read_file, send_mail)


class Caller(Agent):
    """Calls the tool it is told."""

    @handler
    async def call(self, request: Prompt) -> str:
        name, _, argument = request.text.partition(" ")
        key = {"search": "text", "read_file": "path", "send_mail": "to"}[name]
        return str(await self.tools.invoke(name, {key: argument}))


@pytest.fixture
async def ruled(mesh: Mesh) -> AsyncIterator[None]:
    rules = {"helper": ["search", "read_*"], "*": ["search"]}
    async with ToolExecutor(mesh.transport, mesh.subjects, TOOLS, allow=rules):
        yield


@pytest.mark.usefixtures("ruled")
async def test_an_agent_calls_what_its_rule_has_and_nothing_else(
    mesh: Mesh, spawn: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    helper = await spawn(Caller, name="helper")
    assert await helper.ask(Prompt(text="search x")) == "found x"
    assert await helper.ask(Prompt(text="read_file x")) == "read x"
    with caplog.at_level(logging.WARNING, "agentmesh.tools"), pytest.raises(ToolNotAllowedError) as refused:
        await helper.ask(Prompt(text="send_mail x"))
    assert (refused.value.tool, refused.value.caller, refused.value.said_by) == ("send_mail", "helper", "executor")
    assert "agent 'helper' may not call tool 'send_mail'" in caplog.text


@pytest.mark.usefixtures("ruled")
async def test_who_is_not_named_has_what_everybody_has(mesh: Mesh, spawn: Spawn) -> None:
    other = await spawn(Caller, name="other")
    assert await other.ask(Prompt(text="search x")) == "found x"
    with pytest.raises(ToolNotAllowedError):
        await other.ask(Prompt(text="read_file x"))
    with pytest.raises(ToolNotAllowedError):
        await mesh.tools.call("send_mail", to="x")


async def test_without_a_rule_for_everybody_the_unnamed_may_call_nothing(mesh: Mesh) -> None:
    async with ToolExecutor(mesh.transport, mesh.subjects, TOOLS, allow={"helper": ["search"]}):
        with pytest.raises(ToolNotAllowedError):
            await mesh.tools.call("search", text="x")


async def test_a_call_at_the_door_of_all_tools_is_held_to_the_same_rules(mesh: Mesh) -> None:
    body = b'{"tool": "send_mail", "arguments": {"to": "x"}, "source_agent_id": "helper"}'
    async with ToolExecutor(mesh.transport, mesh.subjects, TOOLS, allow={"helper": ["search"]}):
        answer = await mesh.transport.request(mesh.subjects.tool_door(), body, timeout=5)
    assert b"ToolNotAllowedError" in answer.data


async def test_the_executor_holds_to_the_list_that_a_caller_gave_itself(mesh: Mesh) -> None:
    async with ToolExecutor(mesh.transport, mesh.subjects, TOOLS):
        mine: ToolClient = mesh.tools.only(["search", "read_*"])
        assert await mine.call("read_file", path="x") == "read x"
        with pytest.raises(ToolNotAllowedError) as refused:
            await mine.call("send_mail", to="x")
        assert refused.value.said_by == "caller"
        wider = mine.only(["search", "send_mail"])
        assert await wider.call("search", text="x") == "found x"
        with pytest.raises(ToolNotAllowedError):
            await wider.call("send_mail", to="x")


def test_the_rules_come_from_the_settings_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[tools]\nallow = { helper = ["search", "read_*"], "*" = [] }\n')
    assert load(config=file).tools.allow == {"helper": ["search", "read_*"], "*": []}
    file.write_text('[tools]\nallow = { helper = ["a,b"] }\n')
    with pytest.raises(ConfigError, match="pattern such as"):
        load(config=file)
    assert _allowed(["helper=search, read_*", "*="]) == {"helper": ["search", "read_*"], "*": []}
    assert _allowed([]) is None
    with pytest.raises(ConfigError, match="AGENT=TOOL"):
        _allowed(["search"])
