"""`ps`, `agents` and `memory` against real agents and the real memory service."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh import Agent, AgentRef, Mesh, Prompt, Task, handler
from tests.cli.conftest import Cli, Ran, run

Spawn = Callable[..., Awaitable[AgentRef]]


class CountWords(Task[int]):
    text: str
    minimum: int = 1


class Clerk(Agent):
    """Counts words.

    And more.
    """

    @handler
    async def talk(self, message: Prompt) -> str:
        return message.text

    @handler
    async def count(self, task: CountWords) -> int:
        return len(task.text.split())


async def test_ps_lists_the_replicas_of_agents(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk, replicas=2)

    ran = await cli("ps")
    as_json = await cli("ps", "--json")

    assert ran.code == 0
    assert ran.lines[0].split()[:3] == ["AGENT", "REPLICA", "STATE"]
    assert [line.split()[:3] for line in ran.lines[1:]] == [["clerk", "1", "ready"], ["clerk", "2", "ready"]]
    assert [(info["name"], info["state"]) for info in as_json.json] == [("clerk", "ready")] * 2


async def test_ps_nodes_lists_the_processes_that_host_agents(cli: Cli, spawn: Spawn, mesh: Mesh) -> None:
    await spawn(Clerk, replicas=2)

    ran = await cli("ps", "--nodes")
    as_json = await cli("ps", "--nodes", "--json")

    assert ran.lines[0].split()[:4] == ["NODE", "STATE", "HOST", "PID"]
    assert ran.lines[1].split()[:2] == [mesh.identity, "up"]
    (node,) = as_json.json["nodes"]
    assert (node["state"], node["pid"], node["agents"], node["replicas"]) == ("up", os.getpid(), ["clerk"], 2)
    assert as_json.json["supervisors"] == []


async def test_ps_without_agents_says_how_to_start_some(cli: Cli) -> None:
    ran = await cli("ps")

    assert (ran.code, ran.out) == (0, "")
    assert "agentmesh up" in ran.err
    assert (await cli("ps", "--json")).json == []


async def test_ps_of_a_wrong_name_ends_with_4_and_near_misses(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk)

    ran = await cli("ps", "clark")

    assert ran.code == 4
    assert "did you mean 'clerk'?" in ran.err


async def test_agents_ls_says_what_each_takes_and_does(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk, replicas=2)

    ran = await cli("agents", "ls")

    assert ran.lines[1].split(maxsplit=2) == ["clerk", "2/2", "Prompt, CountWords  Counts words."]


async def test_describe_shows_messages_with_fields_and_with_json_their_schemas(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk)

    ran = await cli("agents", "describe", "clerk")
    as_json = await cli("agents", "describe", "clerk", "--json")

    assert "text: string, minimum: integer?" in ran.out
    messages = {message["name"]: message for message in as_json.json["messages"]}
    assert messages["CountWords"]["kind"] == "task"
    assert messages["CountWords"]["schema"]["properties"]["text"] == {"title": "Text", "type": "string"}


async def test_describe_of_a_wrong_name_ends_with_4_and_near_misses(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk)

    ran = await cli("agents", "describe", "clark")

    assert ran.code == 4
    assert "did you mean 'clerk'?" in ran.err


async def test_tenants_do_not_see_each_other(cli: Cli, spawn: Spawn, mesh: Mesh, tmp_path: Path) -> None:
    await spawn(Clerk)

    ran = await run("ps", "--json", "--nats", mesh.url, "--tenant", "somebody-else", cwd=tmp_path)

    assert ran.json == []


@pytest.fixture
async def remembered(mesh: Mesh, cli: Cli) -> Cli:
    """A mesh with two records."""
    memory = mesh.memory("clerk")
    await memory.put("runs/1", {"found": 3, "note": "flaky tests"}, tags=["nightly"])
    await memory.put("greeting", "hello")
    return cli


async def test_memory_ls_lists_namespaces_and_records(remembered: Cli) -> None:
    def columns(ran: Ran) -> list[list[str]]:
        return [line.split() for line in ran.lines]

    assert columns(await remembered("memory", "ls"))[1][:2] == ["clerk", "2"]
    assert [row[0] for row in columns(await remembered("memory", "ls", "clerk"))[1:]] == ["greeting", "runs/1"]
    assert [row[0] for row in columns(await remembered("memory", "ls", "clerk", "--prefix", "runs/"))[1:]] == ["runs/1"]


async def test_memory_get_prints_the_value_and_with_json_the_record(remembered: Cli) -> None:
    assert (await remembered("memory", "get", "clerk", "greeting")).out == "hello\n"
    record = (await remembered("memory", "get", "clerk", "runs/1", "--json")).json
    assert (record["value"]["found"], record["tags"]) == (3, ["nightly"])


async def test_a_record_that_is_not_there_ends_with_1(remembered: Cli) -> None:
    ran = await remembered("memory", "get", "clerk", "nothing")

    assert (ran.code, ran.out) == (1, "")
    assert "no record 'nothing'" in ran.err


async def test_memory_search_finds_words(remembered: Cli) -> None:
    ran = await remembered("memory", "search", "clerk", "flaky", "--json")

    assert [record["key"] for record in ran.json] == ["runs/1"]
