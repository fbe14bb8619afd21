"""What ends a process again and again is given up, and the rest goes on; pauses outlive processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from agentmesh.errors import AgentPausedError, QuarantinedError
from agentmesh.happenings import recent
from agentmesh.messages import Event
from agentmesh.orders import Orders
from agentmesh.supervisor import RestartPolicy
from agentmesh.tasks.dead import DeadLetters
from agentmesh.tasks.layout import ensure_streams, mailbox_consumer
from agentmesh.up import AgentPlan, Restarted
from tests.harness import eventually
from tests.up.conftest import ADDER, GREETER, StartMesh

CRASH = b'{"message_type":"Crash","message_id":"1","source_agent_id":"mallory","content":{}}'

DEADLY = """
import os, pathlib, signal
from agentmesh import Agent, Event, handler


class Letter(Event, durable=True):
    text: str


class Reader(Agent):
    @handler
    async def read(self, event: Letter) -> None:
        with open("read", "a") as file:
            file.write(event.text + "\\n")
        if event.text == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
"""


class Letter(Event, durable=True):
    text: str


@pytest.mark.slow
async def test_c12_a_durable_event_that_kills_its_process_is_buried_and_those_behind_it_are_read(
    start_mesh: StartMesh, project: Path
) -> None:
    (project / "deadly.py").write_text(DEADLY)
    patient = RestartPolicy(max_restarts=20, period=60.0, max_backoff=0.2)
    mesh = await start_mesh(AgentPlan("reader", "deadly:Reader", replicas=0), process_policy=patient)
    client = await mesh.client()
    await ensure_streams(client.transport)
    await client.transport.ensure_consumer(mailbox_consumer(client.subjects, "reader", ack_wait=1.0))
    await mesh.ask("scale", agent="reader", replicas=1)
    for text in ("before", "poison", "after"):
        await client.tell("reader", Letter(text=text))

    read = project / "read"
    await eventually(lambda: read.exists() and "after" in read.read_text(), 30)

    assert read.read_text().split() == ["before", *["poison"] * 4, "after"]
    (letter,) = await DeadLetters(client.transport, client.subjects).ls()
    assert letter.kind == "event"
    assert "ended before it did" in letter.reason
    crashes = await recent(client.transport, client.subjects, kind="crash", name="node-1")
    assert [crash.document["reason"] for crash in crashes] == ["SIGKILL"] * 4
    assert crashes[0].document["agents"] == {"reader": [1]}


@pytest.mark.slow
async def test_c14_a_message_that_kills_its_process_is_refused_before_the_process_stays_down(
    start_mesh: StartMesh,
) -> None:
    mesh = await start_mesh(AgentPlan("greeter", "swarm:Greeter"), ADDER)
    client = await mesh.client()
    for death in range(1, 5):
        await client.transport.publish(client.subjects.mailbox("greeter"), CRASH)
        await mesh.event(Restarted, restarts=death)
        assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"
    orders = Orders(client.transport, client.subjects)
    (order,) = await eventually(orders.quarantines, 10)

    with pytest.raises(QuarantinedError):
        await client.ask_raw("greeter", "Crash", {})

    assert (order.agent, order.message_type, order.failures, order.sender) == ("greeter", "Crash", 3, "mallory")
    crashes = await recent(client.transport, client.subjects, kind="crash", name="node-1")
    assert [crash.document["message"] and crash.document["message"]["type"] for crash in crashes] == [None] + [
        "Crash"
    ] * 3
    assert not mesh.all(Restarted, restarts=5)


async def test_c13_a_pause_outlives_the_process_and_reaches_replicas_that_join_later(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER, ADDER, nodes=2)
    client = await mesh.client()
    assert set(await client.pause("greeter")) == {"node-1", "node-2"}
    pid = (await mesh.pids())["node-1"]

    os.kill(pid, signal.SIGKILL)
    await mesh.ask("scale", agent="greeter", replicas=3)

    async def all_back() -> bool:
        return [info.state for info in await mesh.agents() if info.name == "greeter"] == ["paused"] * 3

    await eventually(all_back, 15)
    for _ in range(6):
        with pytest.raises(AgentPausedError):
            await mesh.raw("greeter", "Hi", name="Ada")
    assert set(await client.resume("greeter")) == {"node-1", "node-2"}
    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"
