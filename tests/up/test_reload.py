"""`agentmesh up --reload`: new code without a lost message, and old code as long as the new is broken."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from agentmesh.up import AgentState, BrokerPlan, LogLine, Reloaded, Warned
from agentmesh.up.moving import reload
from agentmesh.up.watching import changes, polled, stamps
from tests.up.conftest import ADDER, GREETER, SWARM, StartMesh


async def edited(project: Path, old: str, new: str) -> None:
    text = (project / "swarm.py").read_text()
    assert old in text
    (project / "swarm.py").write_text(text.replace(old, new))


async def test_an_edit_replaces_the_node_and_loses_no_message(start_mesh: StartMesh, project: Path) -> None:
    mesh = await start_mesh(GREETER, reload=True)
    before = await mesh.raw("greeter", "Where")
    answers: list[str] = []
    enough = asyncio.Event()

    async def ask_all_the_time() -> None:
        while not enough.is_set():
            answers.append(await mesh.raw("greeter", "Hi", name="Ada"))

    asking = [asyncio.create_task(ask_all_the_time()) for _ in range(8)]
    await edited(project, 'f"{self.greeting} {message.name}"', 'f"{self.greeting}, {message.name}!"')
    reloaded = await mesh.event(Reloaded)
    await asyncio.sleep(0.1)  # a few more with the new code
    enough.set()
    await asyncio.gather(*asking)

    assert reloaded.problem == ""
    assert (reloaded.nodes, reloaded.agents) == (("node-1-r2",), ("greeter",))
    assert set(answers) == {"Hello Ada", "Hello, Ada!"}
    assert answers[-1] == "Hello, Ada!"
    assert await mesh.raw("greeter", "Where") != before
    assert set(await mesh.pids()) == {"node-1-r2"}
    assert not mesh.all(Warned, source="reload")


async def test_a_message_being_handled_is_finished_by_the_old_code(start_mesh: StartMesh, project: Path) -> None:
    mesh = await start_mesh(GREETER, reload=True)
    slow = asyncio.create_task(mesh.raw("greeter", "Slow", seconds=1.5))
    await mesh.event(LogLine, text="slow begins")

    await edited(project, 'return "done"', 'return "done by the new code"')

    assert await slow == "done"
    await mesh.event(Reloaded)
    assert await mesh.raw("greeter", "Slow", seconds=0) == "done by the new code"


async def test_a_broken_edit_keeps_the_old_code_and_shows_the_error(start_mesh: StartMesh, project: Path) -> None:
    mesh = await start_mesh(GREETER, reload=True)
    before = await mesh.raw("greeter", "Where")

    await edited(project, "class Greeter(Agent):", "class Greeter(Agnet):")
    reloaded = await mesh.event(Reloaded)

    assert reloaded.nodes == ()
    assert "NameError: name 'Agnet' is not defined" in reloaded.problem
    assert await mesh.raw("greeter", "Where") == before
    assert set(await mesh.pids()) == {"node-1"}
    assert not mesh.all(AgentState, state="failed")
    assert not mesh.all(Warned, source="reload")

    mesh.events.clear()
    await edited(project, "class Greeter(Agnet):", "class Greeter(Agent):")
    assert (await mesh.event(Reloaded)).problem == ""
    assert await mesh.raw("greeter", "Where") != before


async def test_an_agent_that_was_broken_comes_up_when_it_is_mended(start_mesh: StartMesh, project: Path) -> None:
    text = (project / "swarm.py").read_text()
    (project / "swarm.py").write_text("import nothing_like_this\n" + text)
    mesh = await start_mesh(GREETER, reload=True)
    await mesh.event(AgentState, name="greeter", state="failed")

    (project / "swarm.py").write_text(text)

    await mesh.event(AgentState, name="greeter", state="ready")
    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"


async def test_code_that_no_agent_uses_replaces_nothing(start_mesh: StartMesh, project: Path) -> None:
    mesh = await start_mesh(GREETER, ADDER, reload=True)
    before = await mesh.pids()

    assert mesh.up.fleet is not None
    assert await reload(mesh.up.fleet, {str(project / "other.py")}) is None
    assert await mesh.pids() == before


async def test_a_reload_can_be_asked_for(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)

    answer = await mesh.ask("reload")

    assert (answer["nodes"], answer["problem"]) == (["node-1-r2"], "")
    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"
    assert (await mesh.ask("reload"))["nodes"] == ["node-1-r3"]


async def test_durable_tasks_are_done_once_over_a_reload(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(ADDER, broker=BrokerPlan(port=0))
    client = await mesh.client()
    await client.tasks.ensure()
    for number in range(40):
        task = {"task_id": f"t{number}", "agent_id": "adder", "task_type": "Add"}
        body = json.dumps({**task, "parameters": {"a": number, "b": 1, "seconds": 0.02}}).encode()
        await client.transport.publish_durable(client.subjects.task_door(), body)
    await mesh.event(LogLine, text="adding 0")

    await mesh.ask("reload")

    assert [await client.job(f"t{number}").result(timeout=20) for number in range(40)] == list(range(1, 41))
    done = [event.text for event in mesh.all(LogLine) if event.text.startswith("adding ")]
    assert len(done) == len(set(done))


@pytest.mark.parametrize("how", [changes, polled])
async def test_changes_of_sources_are_seen_and_others_are_not(project: Path, how: object) -> None:
    (project / ".hidden").mkdir()
    folders = [str(project)]
    seen = changes(folders, stamps(folders)) if how is changes else polled(folders, stamps(folders), 0.02)
    first = asyncio.ensure_future(anext(seen))
    while not first.done():
        (project / "notes.txt").write_text("x")
        (project / ".hidden" / "x.py").write_text(os.urandom(4).hex())
        (project / "swarm.py").write_text(SWARM + f"# {os.urandom(4).hex()}")
        await asyncio.sleep(0.05)  # until the watcher has begun to look

    assert first.result() == {str(project / "swarm.py")}
    assert isinstance(seen, AsyncGenerator)
    await seen.aclose()


async def test_an_edit_made_before_the_watch_begins_is_not_missed(project: Path) -> None:
    folders = [str(project)]
    since = stamps(folders)
    await edited(project, 'return "done"', 'return "edited"')
    seen = changes(folders, since)
    async with asyncio.timeout(10):
        assert await anext(seen) == {str((project / "swarm.py").resolve())}
    await seen.aclose()  # type: ignore[attr-defined]
