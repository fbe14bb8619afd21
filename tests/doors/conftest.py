"""A gateway whose model does what the prompt says, and every way in to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.aio.client import Client as NatsClient

from agentmesh import AgentRef, Mesh, connect
from agentmesh.agents.llm import LLMGateway, LLMPart, ModelCall
from agentmesh.broker import EmbeddedBroker
from agentmesh.context import current
from agentmesh.errors import ModelError
from agentmesh.ids import new_id
from tests.doors.ways import HttpWay, InferWay, RequestsWay, Way, jsons, msgpacks, protobufs
from tests.gateway.conftest import StartGateway, start_gateway

__all__ = ["start_gateway"]

Spawn = Callable[..., Awaitable[AgentRef]]
OpenHouse = Callable[..., Awaitable["Model"]]

WAYS = ("protobuf", "json", "requests", "http")


class Model:
    """A model that does what it is told.

    `say A B C` says `A`, ` B` and ` C`; `count N` says N numbers; `wait X` says nothing until `go` is set; `then wait`
    at the end of what it says makes it wait there; `fail CODE` fails with that code, `fail CODE after N` on the way.
    """

    name = "told"

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self.traces: list[str] = []
        self.said = 0
        self.under_way = 0
        self.waiting = 0
        self.cancelled = asyncio.Event()
        self.go = asyncio.Event()
        self.arrived = asyncio.Condition()

    async def generate(self, call: ModelCall) -> AsyncIterator[LLMPart]:
        self.calls.append(call)
        here = current()
        self.traces.append("" if here is None else here.trace_id)
        self.under_way += 1
        finished = False
        try:
            async for word in self._words(call.messages[-1].content):
                self.said += 1
                yield LLMPart(content=word)
            count = self.said
            usage = {"prompt_tokens": len(call.messages), "completion_tokens": count}
            finished = True
            yield LLMPart(type="finish", data={"finish_reason": "stop", "usage": usage, "model": call.model})
        except (asyncio.CancelledError, GeneratorExit):
            if not finished:  # else only the end of the iteration
                self.cancelled.set()
            raise
        finally:
            self.under_way -= 1

    async def _words(self, prompt: str) -> AsyncIterator[str]:
        self.said = 0
        verb, _, rest = prompt.partition(" ")
        if verb == "wait":
            await self._wait()
            yield rest
        elif verb == "fail":
            code, _, count = rest.partition(" after ")
            for number in range(int(count or 0)):
                yield f"{number} "
            raise ModelError(code, "as told")
        elif verb == "count":
            for number in range(int(rest)):
                if number % 100 == 0:
                    await asyncio.sleep(0)
                yield f"{number} "
        else:
            words, found, _ = rest.partition(" then wait")
            for number, word in enumerate(words.split(" ")):
                yield f" {word}" if number else word
            if found:
                await self._wait()

    async def _wait(self) -> None:
        async with self.arrived:
            self.waiting += 1
            self.arrived.notify_all()
        await self.go.wait()

    async def until_waiting(self, count: int) -> None:
        """So many calls wait at the same time."""
        async with asyncio.timeout(20), self.arrived:
            await self.arrived.wait_for(lambda: self.waiting >= count)

    async def close(self) -> None:
        pass


@pytest.fixture
async def mesh(nats_server: EmbeddedBroker) -> AsyncIterator[Mesh]:
    """A tenant of its own, without the services that these tests do not need."""
    async with connect(nats_server.url, tenant=f"test-{new_id()}", own_thread=False) as connected:
        yield connected


@pytest.fixture
async def house(mesh: Mesh, spawn: Spawn) -> OpenHouse:
    """`model = await house(capacity=2)`: a gateway with its doors open; the arguments are those of `[llm.doors]`."""

    async def start(name: str = "llm", model: Model | None = None, **doors: Any) -> Model:
        told = model or Model()
        settings = {"doors": {"shared": True, **doors}, "coalesce": False, "routes": {"default": {"retries": 0}}}
        await spawn(LLMGateway, {"default": told}, settings, name=name)
        return told

    return start


@pytest.fixture
async def model(house: OpenHouse) -> Model:
    """That of a gateway as it is by default."""
    return await house()


@pytest.fixture
async def nc(mesh: Mesh) -> AsyncIterator[NatsClient]:
    """A plain client of the same broker, as anybody may write it."""
    client = await nats.connect(mesh.url)
    yield client
    await client.close()


@pytest.fixture(params=WAYS)
async def way(request: pytest.FixtureRequest, mesh: Mesh, nc: NatsClient, start_gateway: StartGateway) -> Way:
    """Each way in, in turn."""
    return await way_named(request.param, mesh, nc, start_gateway)


async def way_named(name: str, mesh: Mesh, nc: NatsClient, start: StartGateway) -> Way:
    if name == "http":
        return HttpWay((await start()).http)
    if name == "requests":
        return RequestsWay(nc, mesh.subjects.tenant)
    return InferWay(nc, {"protobuf": protobufs, "json": jsons, "msgpack": msgpacks}[name])
