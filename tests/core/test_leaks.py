"""What is closed is gone: nothing of the runtime keeps connections, agents and workers alive."""

from __future__ import annotations

import asyncio
import gc
import weakref

from agentmesh import Agent, Prompt, connect, handler
from agentmesh.agent import AgentCell
from agentmesh.client import Client
from agentmesh.limits import Limit
from agentmesh.messages import Task
from agentmesh.tasks import TaskWorker
from agentmesh.transport import Transport
from agentmesh.transport.connection import Connection
from tests.harness import Server, eventually

MANY = 50
AT_ONCE = 10

KINDS = (Transport, Connection, Client, AgentCell, TaskWorker)


class Shout(Task[str], limits=[Limit(concurrency=100)]):
    text: str


class Echo(Agent):
    @handler
    async def prompt(self, message: Prompt) -> str:
        return message.text

    @handler
    async def shout(self, message: Shout) -> str:
        return message.text.upper()


def alive() -> weakref.WeakSet[object]:
    gc.collect()
    return weakref.WeakSet(found for found in gc.get_objects() if isinstance(found, KINDS))


async def come_and_go(url: str, number: int) -> None:
    name = f"echo-{number}"
    async with connect(url, tenant="leaks") as mesh:
        ref = await mesh.spawn(Echo, name=name)
        await mesh.watch(name)  # and never closed
        assert await ref.ask(Prompt(text="a")) == "a"
        job = await mesh.submit(Shout(text="b"), to=name)
        assert await job.result() == "B"
        await mesh.schedule(Shout(text="c"), to=name, every=3600.0)
        assert await mesh.nodes()


async def test_nothing_of_a_closed_connection_stays_in_memory(server: Server) -> None:
    await come_and_go(server.url, 0)  # caches of classes are filled
    before = set(map(id, alive()))

    for first in range(1, MANY, AT_ONCE):
        await asyncio.gather(*(come_and_go(server.url, number) for number in range(first, first + AT_ONCE)))

    def left() -> list[str]:
        return sorted(type(found).__name__ for found in alive() if id(found) not in before)

    try:
        await eventually(lambda: not left(), 10)  # timers that are over soon hold some for a moment
    except AssertionError:
        raise AssertionError(f"they stay: {left()}") from None
