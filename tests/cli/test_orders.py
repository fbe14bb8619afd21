"""`pause`, `resume`, `quarantine` and `events` against a real mesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from agentmesh import Agent, AgentRef, Event, Mesh, Prompt, handler
from agentmesh.happenings import recent
from agentmesh.orders import Orders
from tests.cli.conftest import Cli
from tests.harness import eventually

Spawn = Callable[..., Awaitable[AgentRef]]


class Poison(Event, redact={"secret"}):
    secret: str


class Clerk(Agent):
    quarantine_after = 1

    @handler
    async def talk(self, message: Prompt) -> str:
        return message.text

    @handler
    async def swallow(self, message: Poison) -> None:
        raise ValueError("bitter")


async def test_pause_and_resume_one_agent(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk)

    paused = await cli("pause", "clerk", "--reason", "tired", "--json")
    refused = await cli("ask", "clerk", "hi")

    assert paused.code == 0
    assert [entry["agent"] for entry in paused.json] == ["clerk"]
    assert len(paused.json[0]["nodes"]) == 1
    assert refused.code == 1
    assert "is paused (tired)" in refused.err
    assert (await cli("ps")).lines[1].split()[:3] == ["clerk", "1", "paused"]
    assert [one["agent"] for one in (await cli("pause", "--json")).json] == ["clerk"]
    assert (await cli("resume", "clerk")).code == 0
    assert (await cli("ask", "clerk", "hi")).out == "hi\n"


async def test_pause_takes_names_or_all(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk)

    assert (await cli("resume")).code == 2
    assert (await cli("pause", "clerk", "--all")).code == 2
    assert (await cli("pause", "--all")).code == 0
    assert (await cli("ask", "clerk", "hi")).code == 1
    assert (await cli("resume", "--all")).code == 0
    assert (await cli("ask", "clerk", "hi")).code == 0


async def test_events_and_quarantine_show_and_release_what_ended_an_agent(cli: Cli, spawn: Spawn, mesh: Mesh) -> None:
    await spawn(Clerk)
    await mesh.tell("clerk", Poison(secret="hunter2"), timeout=2)

    async def told() -> bool:
        return len(await recent(mesh.transport, mesh.subjects)) == 2

    await eventually(told)

    plain, full, as_json, listed = await asyncio.gather(
        cli("events"), cli("events", "--full"), cli("events", "--kind", "crash", "--json"), cli("quarantine", "ls")
    )
    assert [line.split()[2:4] for line in plain.lines] == [["crash", "clerk"], ["quarantine", "clerk"]]
    assert "ValueError: bitter" in plain.lines[0]
    assert "hunter2" not in full.out
    assert 'raise ValueError("bitter")' in full.out
    assert json.loads(as_json.out)["document"]["message"]["body"] == '{"secret":"***"}'
    (order,) = await Orders(mesh.transport, mesh.subjects).quarantines()
    assert listed.lines[1].split()[:4] == [order.id, "clerk", "Poison", "1"]
    assert (await cli("quarantine", "release", order.id)).code == 0
    assert (await cli("quarantine", "ls", "--json")).json == []
    assert (await cli("quarantine", "release", order.id)).code == 2


async def test_a_slip_in_the_name_of_an_agent_is_told(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk)

    paused = await cli("pause", "clark")
    resumed = await cli("resume", "clark")
    again = await cli("resume", "clark")

    assert paused.code == 0
    assert "no agent 'clark' runs now" in paused.err
    assert "did you mean clerk? Take it back: agentmesh resume clark" in paused.err
    assert "clark is no longer paused" in resumed.err
    assert "clark was not paused" in again.err


async def test_resume_says_that_everybody_is_paused_still(cli: Cli, spawn: Spawn) -> None:
    await spawn(Clerk)
    await cli("pause", "clerk")
    await cli("pause", "--all")

    resumed = await cli("resume", "clerk")

    assert "clerk is no longer paused" in resumed.err
    assert "agentmesh resume --all" in resumed.err


async def test_events_that_are_none_say_which_kinds_there_are(cli: Cli) -> None:
    nothing = await cli("events", "--kind", "crush", "--name", "clerk")

    assert nothing.code == 0
    assert "no events of kind 'crush' about 'clerk'" in nothing.err
    assert "crash, gave-up, quarantine, group-ended, failover" in nothing.err
