"""Conversations when processes die: the worker that answers, the agent it asks, the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agentmesh import Mesh
from agentmesh.chat import RELAY
from agentmesh.streams import Chunk
from agentmesh.subjects import PRIORITIES
from agentmesh.tasks.layout import ensure_streams, task_consumer
from tests.chat.agents import Counter, tokens
from tests.chat.conftest import Door, StartDoor, events, text_of
from tests.harness.fixtures import SpawnProcess
from tests.harness.process import Process

ACK_WAIT = 1.5
"""Seconds until a task of a killed worker is given to another one; 10 by default."""

Node = Callable[..., Awaitable[Process]]


@pytest.fixture
async def node(mesh: Mesh, spawn_process: SpawnProcess) -> Node:
    """`await node("relay", "counter")`: a process with those agents; turns of a killed one are soon given away."""
    await ensure_streams(mesh.transport)
    for priority in PRIORITIES:
        await mesh.transport.ensure_consumer(task_consumer(mesh.subjects, RELAY, priority, ACK_WAIT))

    async def start(*agents: str) -> Process:
        process = await spawn_process("tests.chat.node", mesh.transport.url, mesh.subjects.tenant, *agents)
        await process.line_matching("ready", timeout=30)
        return process

    return start


async def read_and_kill(door: Door, address: str, victim: Process, after: int) -> list[Chunk]:
    """All chunks of a stream; when that many texts came, the process is killed."""
    chunks: list[Chunk] = []
    async with door.http.stream("GET", address) as response:
        async for event in events(response):
            if event.name == "message":
                chunks.append(event.chunk)
            if len(chunks) == after:
                victim.kill9()
    return chunks


@pytest.mark.seed("D1")
async def test_f3_a_worker_killed_in_the_middle_is_replaced_and_no_text_is_mixed(
    mesh: Mesh, node: Node, start_door: StartDoor
) -> None:
    await mesh.spawn(Counter)
    first = await node("relay")
    door = await start_door()
    said = await door.say("tokens=60 hold=20", agent="counter")
    await node("relay")  # takes over

    chunks = await read_and_kill(door, said["stream"], first, 10)

    kinds = [chunk.type for chunk in chunks]
    assert kinds.count("restarted") == 1
    restarted = kinds.index("restarted")
    assert {chunk.epoch for chunk in chunks[:restarted]} == {1}
    assert {chunk.epoch for chunk in chunks[restarted:]} == {2}
    assert text_of(chunks) == "".join(tokens(60))
    assert kinds[-1] == "finish"


@pytest.mark.slow
async def test_an_agent_killed_in_the_middle_of_its_answer_is_asked_again(node: Node, start_door: StartDoor) -> None:
    await node("relay")
    first = await node("counter")
    door = await start_door()
    said = await door.say("tokens=60 pace=20", agent="counter")
    reading = asyncio.create_task(read_and_kill(door, said["stream"], first, 10))
    await first.wait(30)
    await node("counter")

    chunks = await reading

    assert text_of(chunks) == "".join(tokens(60))
    assert "restarted" in [chunk.type for chunk in chunks]
