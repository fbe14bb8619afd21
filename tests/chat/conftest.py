"""A gateway with agents that can be chatted with, in the process of the test."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from agentmesh import Mesh
from agentmesh.agents.chat import Conversations
from agentmesh.gateway import Gateway, GatewayOptions, HttpServer
from agentmesh.streams import Chunk
from tests.chat.agents import Counter


@dataclass
class Event:
    """A server-sent event."""

    id: str = ""
    name: str = "message"
    data: str = ""

    @property
    def chunk(self) -> Chunk:
        return Chunk.from_json(self.data)


async def events(response: httpx.Response, comments: list[str] | None = None) -> AsyncIterator[Event]:
    """The events of an answer, as the standard reads them."""
    event = Event()
    data: list[str] = []
    async for line in response.aiter_lines():
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                event.data = "\n".join(data)
                yield event
            event, data = Event(), []
        elif not name:
            if comments is not None:
                comments.append(value)
        elif name == "data":
            data.append(value)
        elif name == "id":
            event.id = value
        elif name == "event":
            event.name = value


def text_of(chunks: list[Chunk]) -> str:
    """The answer that the chunks of one run come to."""
    text, epoch = "", 0
    for chunk in chunks:
        if chunk.epoch > epoch:
            text, epoch = "", chunk.epoch
        if chunk.type == "text" and chunk.role != "user" and chunk.epoch == epoch:
            text += chunk.content
    return text


@dataclass
class Door:
    """A gateway, and what a client does with it."""

    gateway: Gateway
    server: HttpServer
    http: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def streams(self) -> int:
        """How many are open."""
        return self.gateway.holder(self.gateway.options.anonymous).usage.streams

    async def say(self, message: str, **more: Any) -> dict[str, Any]:
        """`POST /chat`."""
        response = await self.http.post("/chat", json={"message": message, **more})
        assert response.status_code == 202, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def read(self, address: str, **headers: str) -> list[Event]:
        """All events, until the stream ends."""
        async with self.http.stream("GET", address, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            return [event async for event in events(response)]

    async def answer(self, said: dict[str, Any]) -> list[Chunk]:
        """The chunks that answer what was said."""
        return [event.chunk for event in await self.read(said["stream"]) if event.name == "message"]


StartDoor = Callable[..., Awaitable[Door]]


@pytest.fixture
async def start_door(mesh: Mesh) -> AsyncIterator[StartDoor]:
    """`door = await start_door(keys=(…,))`: fields of `GatewayOptions`."""
    started: list[Door] = []

    async def start(**options: Any) -> Door:
        wishes = GatewayOptions(**{"port": 0, "access_log": False, **options})
        gateway = Gateway(wishes, mesh.transport, mesh.subjects.tenant)
        server = HttpServer(gateway)
        await server.start()
        client = httpx.AsyncClient(base_url=server.url, timeout=30.0, trust_env=False)
        started.append(Door(gateway, server, client))
        return started[-1]

    yield start
    for door in started:
        await door.http.aclose()
        await door.server.stop(2.0)


@pytest.fixture
async def door(mesh: Mesh, start_door: StartDoor) -> Door:
    """A gateway without keys, the relay, and the agent `counter`."""
    await mesh.spawn(Conversations)
    await mesh.spawn(Counter)
    return await start_door()


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()
