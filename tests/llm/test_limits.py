"""Limits and budgets over two replicas of the gateway, fair turns, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from agentmesh import Mesh, connect
from agentmesh.agents.llm import GenerationParameters, LLMGateway, LLMPart, LLMRequest, LLMResponse, Meta, ModelCall
from agentmesh.agents.llm.bounds import Bound, Meter, Need, Refusal, Taken
from agentmesh.agents.llm.turns import Line, Turn, Turns
from agentmesh.broker import EmbeddedBroker
from agentmesh.config import LLMSettings
from agentmesh.errors import ModelError
from agentmesh.llmops import CostAlert, RateLimited
from tests.harness.waiting import eventually


class Counting:
    """A backend that answers `ok` with ten tokens, and knows how many calls are under way."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.most = self.under_way = 0
        self.gate: asyncio.Event | None = None

    async def generate(self, call: ModelCall) -> AsyncIterator[LLMPart]:
        self.asked.append(call.messages[-1].content)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
            yield LLMPart(content="ok")
            yield LLMPart(type="finish", data={"usage": {"prompt_tokens": 5, "completion_tokens": 5}})
        finally:
            self.under_way -= 1

    async def close(self) -> None: ...


class Pair:
    """Two replicas on connections of their own, and one backend behind both."""

    def __init__(self, replicas: list[LLMGateway], backend: Counting) -> None:
        self.replicas = replicas
        self.backend = backend
        self.asked = 0

    async def ask(self, prompt: str = "Hello?", user: str = "", **more: Any) -> LLMResponse:
        """Each question goes to the other replica than the one before."""
        self.asked += 1
        replica = self.replicas[self.asked % 2]
        return await replica.respond(LLMRequest(prompt=prompt, meta=Meta(user_id=user), **more))


StartPair = Callable[..., Awaitable[Pair]]


@pytest.fixture
async def pair(mesh: Mesh, nats_server: EmbeddedBroker) -> AsyncIterator[StartPair]:
    """`await pair({"budget": {...}}, price={...})`: settings of the gateway, and of its one model."""
    started: list[LLMGateway] = []
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(
            connect(nats_server.url, tenant=mesh.subjects.tenant, own_thread=False)
        )

        async def start(llm: dict[str, Any], **model: Any) -> Pair:
            backend = Counting()
            for where in (mesh, second):
                replica = LLMGateway({"a": model}, {"coalesce": False, "doors": {"enabled": False}, **llm})
                replica._table.backends["a"] = backend
                replica.mesh = where
                await replica.on_start()
                started.append(replica)
            return Pair(started, backend)

        yield start
        for replica in started:
            await replica.on_stop()


def codes(responses: list[LLMResponse]) -> list[str]:
    return [one.error.code.value if one.error else "ok" for one in responses]


def listened(mesh: Mesh, kind: Any) -> tuple[list[Any], Callable[[Any], None]]:
    heard: list[Any] = []
    return heard, lambda message: heard.append(msgspec.json.decode(message.data, type=kind))


@pytest.mark.seed("B24")
async def test_requests_are_limited_over_all_replicas_and_the_limit_is_told(pair: StartPair, mesh: Mesh) -> None:
    events, on_event = listened(mesh, RateLimited)
    await mesh.transport.subscribe(f"ai.gateway.rate-limit.{mesh.subjects.tenant}", on_event)
    both = await pair({"budget": {"requests_per_minute": 3}})

    responses = [await both.ask() for _ in range(5)]

    assert codes(responses) == ["ok"] * 3 + ["RESOURCE_EXHAUSTED"] * 2
    error = responses[-1].error
    assert error is not None
    assert 30 < error.retry_after <= 61
    event = (await eventually(lambda: events, 20))[0]
    assert (event.limit, event.window, event.unit, event.waits) == (3, 60, "requests", False)
    assert 30 < event.retry_after <= 61
    assert event.scope == f"tenant {mesh.subjects.tenant}"


async def test_tokens_are_reserved_before_and_put_right_after_a_call(pair: StartPair) -> None:
    both = await pair({"budget": {"tokens_per_minute": 100}})
    params = GenerationParameters(max_tokens=80)

    first = await both.ask(params=params)  # takes some 85, and then uses 10

    assert codes([first]) == ["ok"]
    async with asyncio.timeout(20):
        while codes([second := await both.ask(params=params)]) != ["ok"]:
            pass
    assert second.usage.total_tokens == 10
    assert codes([await both.ask(params=GenerationParameters(max_tokens=95))]) == ["RESOURCE_EXHAUSTED"]


async def test_users_have_limits_of_their_own(pair: StartPair) -> None:
    both = await pair({"user_budget": {"requests_per_minute": 1}})

    said = [await both.ask(user=user) for user in ("ann", "ann", "bob")]

    assert codes(said) == ["ok", "RESOURCE_EXHAUSTED", "ok"]


async def test_at_a_limit_of_the_model_its_fallback_answers(mesh: Mesh) -> None:
    gateway = LLMGateway({"a": {"budget": {"requests_per_minute": 1}, "fallbacks": ["b"]}, "b": {}})
    gateway.mesh = mesh
    await gateway.on_start()

    backends = [(await gateway.respond(LLMRequest(prompt=f"Say {n}"))).backend for n in range(2)]

    assert backends == ["a", "b"]
    await gateway.on_stop()


@pytest.mark.seed("B10")
async def test_money_is_limited_over_all_replicas_and_each_threshold_is_told_once(pair: StartPair, mesh: Mesh) -> None:
    alerts, on_alert = listened(mesh, CostAlert)
    await mesh.transport.subscribe(f"ai.llmops.cost-alerts.{mesh.subjects.tenant}", on_alert)
    # A call costs $1: ten tokens of $100,000 a million.
    both = await pair(
        {"budget": {"usd_per_day": 4, "alerts": [0.25, 0.5, 1.0]}}, price={"prompt": 1e5, "completion": 1e5}
    )
    params = GenerationParameters(max_tokens=2)

    async def spend() -> list[str]:
        return codes(list(await asyncio.gather(*(both.ask(params=params) for _ in range(4)))))

    first = await spend()
    async with asyncio.timeout(30):
        while len(both.backend.asked) < 4:
            await both.ask(params=params)

    async def all_told() -> bool:
        return {one.threshold for one in await mesh.llmops.alerts()} == {0.25, 0.5, 1.0}

    await eventually(all_told, 20)
    assert "ok" in first
    assert codes([await both.ask(params=params) for _ in range(3)]) == ["RESOURCE_EXHAUSTED"] * 3
    assert len(both.backend.asked) == 4
    assert [one.threshold for one in sorted(alerts, key=lambda one: one.threshold)] == [0.25, 0.5, 1.0]
    assert {(one.limit, one.budget) for one in alerts} == {(4.0, f"tenant {mesh.subjects.tenant}")}
    (day,) = await mesh.llmops.cost()
    assert (day.calls - day.errors, round(day.cost, 6)) == (4, 4.0)


async def test_what_a_killed_replica_had_set_aside_is_free_again(mesh: Mesh) -> None:
    bound = Bound("tenant", "t", "usd", 100)
    lost, there = Meter(mesh.transport, LLMSettings(), -9.8), Meter(mesh.transport, LLMSettings(), -9.8)
    tenant = mesh.subjects.tenant
    assert isinstance(await lost.take(tenant, [bound], Need(1, 1e-7)), Taken)
    assert isinstance(await there.take(tenant, [bound], Need(1, 1e-7)), Refusal)

    async def again() -> bool:
        return isinstance(await there.take(tenant, [bound], Need(1, 1e-7)), Taken)

    await eventually(again, 20)


async def test_spending_twice_under_one_reservation_counts_once(mesh: Mesh) -> None:
    bound, tenant = Bound("tenant", "t", "usd", 10**9), mesh.subjects.tenant
    meter = Meter(mesh.transport, LLMSettings(), 60)
    taken = await meter.take(tenant, [bound], Need(1, 0.5))
    assert isinstance(taken, Taken)
    repeated = Taken(taken.mark, tenant, dict(taken.at), dict(taken.amounts))

    first, second = await meter.settle(taken, 1, 0.25), await meter.settle(repeated, 1, 0.25)

    assert first[bound] == second[bound] == 0.25


async def test_who_leaves_while_limits_are_read_gives_its_slot_back(mesh: Mesh) -> None:
    meter, tenant = Meter(mesh.transport, LLMSettings(), 60), mesh.subjects.tenant
    bounds = [Bound("model", "a", "slots", 1), Bound("model", "a", "requests", 10)]
    leaves = asyncio.create_task(meter.take(tenant, bounds, Need(1, 0)))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait({leaves})

    assert leaves.cancelled()
    assert isinstance(await meter.take(tenant, bounds, Need(1, 0)), Taken)


async def test_whoever_wants_to_wait_gets_a_turn_instead_of_an_error(pair: StartPair) -> None:
    both = await pair({}, concurrency=1)
    both.backend.gate = asyncio.Event()
    replica = both.replicas[0]
    first = asyncio.create_task(replica.respond(LLMRequest(prompt="first")))
    await eventually(lambda: both.backend.under_way, 20)

    refused = await replica.respond(LLMRequest(prompt="now or never"))
    waiting = [asyncio.create_task(replica.respond(LLMRequest(prompt=f"{n}", wait=True))) for n in range(3)]
    await eventually(lambda: replica._pipeline.models()[0].waiting == 3, 20)
    both.backend.gate.set()

    assert codes([refused]) == ["RESOURCE_EXHAUSTED"]
    assert codes([await first, *[await task for task in waiting]]) == ["ok"] * 4
    assert both.backend.asked == ["first", "0", "1", "2"]
    assert both.backend.most == 1


async def test_a_wait_ends_when_its_time_is_over_or_the_line_is_full(pair: StartPair) -> None:
    both = await pair({"wait": 0.3, "user_queue": 1}, concurrency=1)
    both.backend.gate = asyncio.Event()
    replica = both.replicas[0]
    first = asyncio.create_task(replica.respond(LLMRequest(prompt="first")))
    await eventually(lambda: both.backend.under_way, 20)

    waits = asyncio.create_task(replica.respond(LLMRequest(prompt="waits", wait=True)))
    await eventually(lambda: len(replica._pipeline._turns), 20)
    full = await replica.respond(LLMRequest(prompt="no room", wait=True))

    assert codes([full, await waits]) == ["RESOURCE_EXHAUSTED"] * 2
    assert full.error is not None
    assert full.error.message == "1 requests wait already"
    both.backend.gate.set()
    assert codes([await first]) == ["ok"]
    assert len(replica._pipeline._turns) == 0


async def test_a_wait_that_would_be_in_vain_is_refused_at_once(pair: StartPair) -> None:
    both = await pair({"budget": {"requests_per_minute": 1}, "wait": 5})
    assert codes([await both.ask(wait=True), await both.ask(wait=True)]) == ["ok", "RESOURCE_EXHAUSTED"]


# ---------------------------------------------------------------- turns, without a gateway


def turn(caller: str, priority: str = "normal") -> Turn:
    async def never() -> Taken | Refusal:
        raise AssertionError

    return Turn(caller, priority, never, asyncio.get_running_loop().create_future())


async def test_callers_take_turns_whatever_number_of_requests_they_have() -> None:
    line = Line()
    for caller in "aaaaabbc":
        line.append(turn(caller))

    assert [line.pop().caller for _ in range(8)] == list("abcabaaa")


async def test_priorities_share_the_turns_and_nobody_starves() -> None:
    line = Line()
    for priority in ("low", "normal", "high"):
        for _ in range(20):
            line.append(turn("x", priority))

    first = [line.pop().priority for _ in range(20)]

    assert (first.count("high"), first.count("normal"), first.count("low")) == (12, 6, 2)
    assert {line.pop().priority for _ in range(40)} == {"low", "normal", "high"}
    assert len(line) == 0


async def test_who_finds_no_room_is_the_next_again() -> None:
    line = Line()
    turns = [turn("a"), turn("b"), turn("c", "high")]
    for one in turns:
        line.append(one)

    for _ in range(3):
        first = line.pop()
        line.give_back(first)

    assert [line.pop() is one for one in (turns[2], turns[0], turns[1])] == [True] * 3


async def test_newcomers_stand_behind_those_who_wait_and_who_leaves_is_forgotten() -> None:
    bound = Bound("model", "m", "slots", 1)
    free, released, taken = 0, [], []

    async def release(one: Taken) -> None:
        released.append(one.mark)

    turns = Turns(10, 10, release)

    def wish(name: str) -> asyncio.Task[Any]:
        async def attempt() -> Taken | Refusal:
            nonlocal free
            if not free:
                return Refusal(bound, 0.01)
            free -= 1
            taken.append(name)
            return Taken(name, "t")

        return asyncio.create_task(
            turns.take([bound.path], attempt, caller=name, priority="normal", wait=20, on_refused=lambda *_: None)
        )

    tasks = [wish(name) for name in "abc"]
    await eventually(lambda: len(turns) == 3, 20)
    tasks[1].cancel()
    await asyncio.wait({tasks[1]})
    free = 3
    late = wish("d")
    await asyncio.gather(tasks[0], tasks[2], late)

    assert (taken, released, len(turns)) == (["a", "c", "d"], [], 0)
    await turns.close()


async def test_too_many_who_wait_are_refused() -> None:
    bound = Bound("model", "m", "slots", 1)

    async def full() -> Taken | Refusal:
        return Refusal(bound, 0.01)

    async def release(one: Taken) -> None: ...

    turns = Turns(1, 1, release)
    waits = asyncio.create_task(
        turns.take([bound.path], full, caller="a", priority="normal", wait=20, on_refused=lambda *_: None)
    )
    await eventually(lambda: len(turns) == 1, 20)

    with pytest.raises(ModelError, match="RESOURCE_EXHAUSTED"):
        await turns.take([bound.path], full, caller="b", priority="high", wait=20, on_refused=lambda *_: None)
    waits.cancel()
    await asyncio.wait({waits})
    await turns.close()


async def test_at_a_busy_model_users_take_turns_and_priorities_count(pair: StartPair) -> None:
    both = await pair({}, concurrency=1)
    both.backend.gate = asyncio.Event()
    replica = both.replicas[0]
    first = asyncio.create_task(replica.respond(LLMRequest(prompt="first")))
    await eventually(lambda: both.backend.under_way, 20)
    tasks = []
    for number, (user, priority) in enumerate(
        [("ann", "normal")] * 3 + [("bob", "normal"), ("cid", "low"), ("dan", "high")], 1
    ):
        request = LLMRequest(prompt=f"{user} {number}", meta=Meta(user_id=user), priority=priority, wait=True)  # type: ignore[arg-type]
        tasks.append(asyncio.create_task(replica.respond(request)))
        await eventually(lambda number=number: len(replica._pipeline._turns) == number, 20)  # type: ignore[misc]

    both.backend.gate.set()
    await asyncio.gather(first, *tasks)

    order = [one.split()[0] for one in both.backend.asked[1:]]
    assert order[0] == "dan"
    assert order.index("bob") < [n for n, user in enumerate(order) if user == "ann"][1]
    assert sorted(order) == ["ann", "ann", "ann", "bob", "cid", "dan"]
