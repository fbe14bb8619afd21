"""A naming scheme of one's own: the guides' `get_topic`, end to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from agentmesh import Agent, Event, Mesh, Request, Task, TaskContext, connect, handler
from agentmesh.agents.llm import LLMGateway
from agentmesh.agents.llm.client import LLMClient
from agentmesh.errors import ConfigError
from agentmesh.local import LocalServices
from agentmesh.subjects import Subjects
from agentmesh.transport import Message
from tests.harness import Server


def get_topic(component: str, operation: str, tenant_id: str) -> str:
    """As in the guide."""
    return f"custom.{component}.{operation}.{tenant_id}"


@dataclass(frozen=True)
class Ours(Subjects):
    def name(self, component: str, operation: str, tenant: str) -> str:
        return get_topic(component, operation, tenant)

    def mailbox_group(self, agent: str) -> str:
        return "custom.worker.group"


class Ping(Request[str]):
    text: str


class Note(Event, durable=True):
    text: str


class News(Event):
    text: str


class Square(Task[int]):
    number: int


class Worker(Agent):
    def __init__(self, heard: asyncio.Queue[str]) -> None:
        self.heard = heard

    @handler
    async def ping(self, request: Ping) -> str:
        return f"{request.text} there"

    @handler
    async def note(self, event: Note) -> None:
        await self.memory.put(event.text, True)
        self.heard.put_nowait(event.text)

    @handler(topic="news.>")
    async def news(self, event: News) -> None:
        await self.memory.put(event.text, True)
        self.heard.put_nowait(event.text)

    @handler
    async def square(self, task: Square, ctx: TaskContext) -> int:
        await ctx.progress(0.5)
        return task.number**2


@pytest.fixture
async def mesh(server: Server) -> AsyncIterator[Mesh]:
    async with connect(server.url, subjects=Ours("tenant_123"), own_thread=False) as mesh:
        services = LocalServices(None)
        await services.start_services(mesh.transport, mesh.subjects)
        yield mesh
        await services.stop_services()
        await services.stop_broker()


@pytest.mark.seed("B12", "B48", "B49")
async def test_everything_works_under_a_scheme_and_a_queue_group_of_ones_own(mesh: Mesh) -> None:
    seen: list[Message] = []
    await mesh.transport.subscribe(">", seen.append)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await mesh.spawn(Worker, heard, replicas=2)

    assert await mesh.ask("worker", Ping(text="hi")) == "hi there"
    await mesh.tell("worker", Note(text="kept"))
    job = await mesh.submit(Square(number=7))  # no address: the dispatcher finds who takes it
    delayed = await mesh.submit(Square(number=3), delay=0.1)
    assert await job.result(timeout=20) == 49
    assert await delayed.result(timeout=20) == 9
    await mesh.publish("news.today", News(text="rain"))
    document = b'{"task_id": "by-hand", "task_type": "Square", "parameters": {"number": 5}}'
    await mesh.nats.publish(subject=get_topic("agent", "tasks", "tenant_123"), payload=document)
    assert await mesh.job("by-hand", Square).result(timeout=20) == 25

    async with mesh.streams.run("chat-1") as run:
        await run.send("stored")
        await run.finish()
    assert [chunk.content async for chunk in mesh.streams.read("chat-1", one_run=True)] == ["stored", ""]
    await mesh.spawn(LLMGateway)
    answer = await LLMClient(mesh).generate("What is 17 * 23?", timeout=20)
    assert answer.text == "17 * 23 = 391"

    async with asyncio.timeout(20):
        assert {await heard.get(), await heard.get()} == {"kept", "rain"}
    assert await mesh.memory("worker").get("rain")
    subjects = {message.subject for message in seen}
    assert {"custom.agent.message.tenant_123.worker", "custom.agent.topic.tenant_123.news.today"} <= subjects
    assert not {subject for subject in subjects if subject.startswith("ai.")}


async def test_streams_of_another_scheme_are_refused_and_not_changed(server: Server) -> None:
    async with connect(server.url, own_thread=False) as standard:
        await standard.tasks.ensure()
    async with connect(server.url, subjects=Ours("tenant_123"), own_thread=False) as other:
        with pytest.raises(ConfigError, match="subjects"):
            await other.tasks.ensure()
