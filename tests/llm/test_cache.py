"""Answers that are given again: stored ones, and those that are being made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentmesh import Mesh, connect
from agentmesh.agents.llm import CachePolicy, GenerationParameters, LLMGateway, LLMRequest, LLMResponse
from agentmesh.agents.llm.cache import AnswerCache, digest_of
from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import DefinitionError
from agentmesh.llmops import Invalidation
from tests.llm.conftest import Ask, Serve, operations, route, served
from tests.llm.server import ModelServer, fails, says

Start = Callable[..., Awaitable[None]]

CACHED: dict[str, Any] = {"cache": CachePolicy()}


async def test_an_equal_question_gets_the_stored_answer_without_the_model(
    serve: Serve, gateway: Start, ask: Ask, mesh: Mesh
) -> None:
    server = await serve(says("one"), says("two"))
    await gateway({"a": served(server, price={"prompt": 1, "completion": 10})}, route("a"))

    first = await ask(**CACHED)
    again, other = await ask(**CACHED), await ask("Something else?", **CACHED)

    assert (first.text, first.cached, first.cost > 0) == ("one", False, True)
    assert (again.text, again.cached, again.cost, again.usage) == ("one", True, 0.0, first.usage)
    assert (other.text, len(server.seen)) == ("two", 2)
    assert again.cache_key == first.cache_key != ""
    assert again.request_id != first.request_id
    kept = await operations(mesh, 3)
    assert [one.cached for one in kept].count(True) == 1


async def test_without_a_policy_nothing_is_stored_unless_the_route_says_so(
    serve: Serve, gateway: Start, ask: Ask
) -> None:
    server = await serve(says("one"), says("two"))
    routes = {"default": {"models": ["a"]}, "kept": {"models": ["a"], "cache": True}}
    await gateway({"a": served(server)}, {"routes": routes})

    assert [(await ask()).text, (await ask()).text] == ["one", "two"]
    assert len({(await ask(model="kept")).request_id for _ in range(3)}) == 3
    assert len(server.seen) == 3


async def test_errors_are_not_stored(serve: Serve, gateway: Start, ask: Ask) -> None:
    server = await serve(fails(400), says("fine"))
    await gateway({"a": served(server)}, route("a"))

    assert (await ask(**CACHED)).error is not None
    assert (await ask(**CACHED)).text == "fine"


async def test_a_policy_may_skip_what_is_stored_and_store_nothing(serve: Serve, gateway: Start, ask: Ask) -> None:
    server = await serve(says("one"), says("two"), says("three"))
    await gateway({"a": served(server)}, route("a"))

    unstored = await ask(cache=CachePolicy(write=False))
    fresh = await ask(**CACHED)
    newer = await ask(cache=CachePolicy(read=False))

    assert [unstored.text, fresh.text, newer.text, (await ask(**CACHED)).text] == ["one", "two", "three", "three"]


@pytest.mark.seed("B25")
async def test_every_replica_loses_what_is_voided_by_key_prefix_or_tag(
    serve: Serve, mesh: Mesh, nats_server: EmbeddedBroker
) -> None:
    server = await serve(says("an answer"))
    replicas = [LLMGateway({"a": served(server)}, route("a")) for _ in range(2)]
    async with connect(nats_server.url, tenant=mesh.subjects.tenant, own_thread=False) as second:
        for replica, where in zip(replicas, (mesh, second), strict=True):
            replica.mesh = where
            await replica.on_start()

        async def both(**policy: Any) -> list[LLMResponse]:
            request = LLMRequest(prompt="Hello?", cache=CachePolicy(**policy))
            return [await replica.respond(request) for replica in replicas]

        stored = await both(key="faq/1", tags=["prices"])
        assert [one.cached for one in await both(key="faq/1", tags=["prices"])] == [True, True]
        orders: list[dict[str, Any]] = [
            {"keys": [stored[0].cache_key]},
            {"prefixes": ["faq/"]},
            {"tags": ["prices"]},
            {"everything": True},
        ]
        for order in orders:
            await mesh.llmops.invalidate(**order)
            await _told(mesh, second)  # the very next message that reaches a replica comes after the order
            assert [len(replica._pipeline.cache) for replica in replicas] == [0, 0], order
            assert [one.cached for one in await both(key="faq/1", tags=["prices"])] == [False, False]
        await mesh.llmops.invalidate(tags=["other"], keys=["none"], prefixes=["unknown/"])
        await _told(mesh, second)
        assert [one.cached for one in await both(key="faq/1", tags=["prices"])] == [True, True]
        for replica in replicas:
            await replica.on_stop()


async def _told(*meshes: Mesh) -> None:
    """What was sent before has arrived everywhere: messages to one connection keep their order."""
    for mesh in meshes:
        arrived = asyncio.Event()
        inbox = mesh.transport.open_inbox(lambda message, arrived=arrived: arrived.set())  # type: ignore[misc]
        await meshes[0].transport.publish(inbox.subject, b"")
        async with asyncio.timeout(20):
            await arrived.wait()
        inbox.close()


class Deaf(AnswerCache):
    """A cache that misses every message."""

    def _heard(self, name: str, message: Any) -> None: ...


@pytest.mark.seed("B25")
async def test_an_invalidation_that_was_missed_is_found_before_the_next_answer(mesh: Mesh) -> None:
    time = [100.0]
    cache = Deaf(mesh.transport, 10_000, clock=lambda: time[0])
    tenant = mesh.subjects.tenant
    version = await cache.version(tenant)
    assert cache.put(tenant, "d", "a/1", (), {"text": "old"}, 3600, version)
    await mesh.llmops.invalidate(prefixes=["a/"])

    assert await cache.get(tenant, "d") is not None  # it was verified less than a second ago
    time[0] += 1.0
    assert await cache.get(tenant, "d") is None
    await cache.close()


async def test_an_answer_that_was_begun_before_it_was_voided_is_not_stored(mesh: Mesh) -> None:
    cache, tenant = AnswerCache(mesh.transport, 10_000), mesh.subjects.tenant
    version = await cache.version(tenant)
    await mesh.llmops.invalidate(tags=["prices"])
    await _told(mesh)

    assert not cache.put(tenant, "d", "a/1", ("prices",), {}, 60, version)
    assert cache.put(tenant, "d", "a/1", ("names",), {}, 60, version)
    await cache.close()


async def test_the_cache_keeps_to_its_size_and_its_times(mesh: Mesh) -> None:
    time = [100.0]
    cache, tenant = AnswerCache(mesh.transport, 3000, clock=lambda: time[0]), mesh.subjects.tenant
    version = await cache.version(tenant)
    for name in "abc":
        assert cache.put(tenant, name, f"m/{name}", (), {"text": "x" * 400}, 60, version)
        assert cache.size <= 3000
    await cache.get(tenant, "b")
    assert not cache.put(tenant, "large", "m/large", (), {"text": "x" * 4000}, 60, version)
    assert cache.put(tenant, "d", "m/d", (), {"text": "x" * 400}, 60, version)

    assert [name for name in "abcd" if await cache.get(tenant, name)] == ["b", "c", "d"]
    time[0] += 60
    assert await cache.get(tenant, "b") is None
    await cache.close()


async def test_other_tenants_have_their_own_answers(mesh: Mesh) -> None:
    cache = AnswerCache(mesh.transport, 10_000)
    cache.put("one", "d", "a/1", (), {}, 60, await cache.version("one"))

    assert await cache.get("two", "d") is None
    await cache.close()


def test_what_makes_another_question() -> None:
    def digest(prompt: str = "Hello?", tenant: str = "t", **more: Any) -> str:
        return digest_of(LLMRequest(prompt=prompt, **more), tenant, "default")

    same = {digest(), digest(priority="high", wait=True, cache=CachePolicy(key="x")), digest(context={})}
    other = [
        digest("Hello!"),
        digest(tenant="u"),
        digest(params=GenerationParameters(max_tokens=1)),
        digest(params=GenerationParameters(temperature=0)),
        digest(context={"a": 1}),
        digest(tools=[{}]),
        digest(response_format={"type": "json_object"}),
    ]
    assert len(same) == 1
    assert len({*same, *other}) == 8


async def test_an_invalidation_says_something(mesh: Mesh) -> None:
    for nothing in ({}, {"prefixes": [""]}, {"tags": ["a", ""]}):
        with pytest.raises(DefinitionError):
            await mesh.llmops.invalidate(**nothing)  # type: ignore[arg-type]


@pytest.mark.seed("B25")
async def test_a_foreign_client_voids_answers_with_a_plain_message(
    serve: Serve, gateway: Start, ask: Ask, mesh: Mesh
) -> None:
    server = await serve(says("one"), says("two"))
    await gateway({"a": served(server)}, route("a"))
    await ask(cache=CachePolicy(tags=["prices"]))

    subject = f"ai.gateway.cache.invalidate.{mesh.subjects.tenant}"
    await mesh.transport.publish(subject, json.dumps({"tag": "prices"}).encode())
    await _told(mesh)

    assert (await ask(cache=CachePolicy(tags=["prices"]))).text == "two"
    assert Invalidation(key="k").fits("k", ())


# ---------------------------------------------------------------- equal requests at the same time


async def together(server: ModelServer, ask: Ask, gate: asyncio.Event, count: int, **more: Any) -> list[LLMResponse]:
    """Answers to equal questions, the later ones asked while the first one is being answered."""
    first = asyncio.ensure_future(ask(**more))
    async with asyncio.timeout(20):
        await server.arrived.wait()
    others = [asyncio.ensure_future(ask(**more)) for _ in range(count - 1)]
    # Every question has arrived when one that is asked after them, and needs no model, is answered.
    await ask("What is 1 + 1?", model="offline")
    gate.set()
    return list(await asyncio.gather(first, *others))


@pytest.mark.seed("B35")
async def test_equal_requests_at_the_same_time_are_one_call(serve: Serve, gateway: Start, ask: Ask) -> None:
    gate = asyncio.Event()
    server = await serve(says("one two", gate=gate))
    await gateway({"a": served(server, price={"completion": 1}), "offline": {}}, route("a"))

    responses = await together(server, ask, gate, 5)

    assert {one.text for one in responses} == {"one two"}
    assert len(server.seen) == 1
    assert sorted(one.cached for one in responses) == [False, True, True, True, True]
    assert sum(one.cost > 0 for one in responses) == 1
    assert len({one.request_id for one in responses}) == 5


async def test_samples_are_not_shared(serve: Serve, gateway: Start, ask: Ask) -> None:
    gate = asyncio.Event()
    server = await serve(says("one two", gate=gate))
    await gateway({"a": served(server), "offline": {}}, route("a"))

    await together(server, ask, gate, 3, params=GenerationParameters(temperature=0.7))

    assert len(server.seen) == 3


async def test_one_who_leaves_takes_nothing_from_the_others(serve: Serve, gateway: Start, mesh: Mesh) -> None:
    gate = asyncio.Event()
    server = await serve(says("one two", gate=gate))
    await gateway({"a": served(server)}, route("a"))
    first, second = (mesh.stream("llm", LLMRequest(prompt="Hello?")) for _ in range(2))
    assert [(await anext(first)).content, (await anext(second)).content] == ["one ", "one "]

    await first.aclose()
    gate.set()

    assert [part.content async for part in second] == ["two", ""]
    assert len(server.seen) == 1


async def test_when_the_last_one_leaves_the_call_ends(serve: Serve, gateway: Start, mesh: Mesh) -> None:
    server = await serve(says("one two", gate=asyncio.Event()))
    await gateway({"a": served(server)}, route("a"))
    answers = [mesh.stream("llm", LLMRequest(prompt="Hello?")) for _ in range(2)]
    for answer in answers:
        await anext(answer)
    for answer in answers:
        await answer.aclose()

    async with asyncio.timeout(20):
        await server.seen[0].gone.wait()
