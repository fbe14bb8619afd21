"""Errors say what to do: who may have been meant, where the time went, which side has which version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from agentmesh import Agent, Event, Mesh, Request, config, connect, handler
from agentmesh.agent import CellOptions
from agentmesh.asking import CANCEL
from agentmesh.breaker import BreakerPolicy
from agentmesh.broker import EmbeddedBroker
from agentmesh.chaos import Server, TcpProxy
from agentmesh.cli.plan import make_plan
from agentmesh.errors import (
    CircuitOpenError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidMessageError,
    NoRespondersError,
    NoSuchAgentError,
    RemoteError,
)
from agentmesh.ids import new_id
from agentmesh.metrics import metrics_of, render
from agentmesh.transport import TransportOptions
from agentmesh.up.plan import dump
from agentmesh.up.plan import load as load_plan
from tests.harness.waiting import eventually
from tests.observe.test_metrics import read, value


class Wait(Request[str]): ...


class Occupy(Event): ...


class Wrong(Request[str]): ...


class Slow(Agent):
    """Does nothing, for ever."""

    begun: asyncio.Event

    @handler
    async def wait(self, request: Wait) -> str:
        type(self).begun.set()
        await asyncio.Event().wait()
        return ""

    @handler
    async def occupy(self, event: Occupy) -> None:
        type(self).begun.set()
        await asyncio.Event().wait()

    @handler
    async def wrong(self, request: Wrong) -> str:
        raise ValueError("wrong")


# ---------------------------------------------------------------- A34: who may have been meant


@pytest.mark.seed("A34")
async def test_nobody_listens_names_the_agents_and_subjects_that_may_have_been_meant(mesh: Mesh) -> None:
    await mesh.spawn(Slow, name="greeter")
    with pytest.raises(NoSuchAgentError, match="did you mean 'greeter'"):
        await mesh.ask("greter", Wait())
    subject = mesh.subjects.mailbox("greter")
    with pytest.raises(NoRespondersError, match="did you mean") as caught:
        await mesh.nats.request(subject, b"{}", timeout=5)
    assert mesh.subjects.mailbox("greeter") in caught.value.near
    with pytest.raises(NoRespondersError, match=r"^nobody listens on 'something\.else'$"):
        await mesh.nats.request("something.else", b"{}", timeout=5)


# ---------------------------------------------------------------- A35: where the time went


@pytest.mark.seed("A35")
async def test_a_deadline_that_passed_says_that_the_handler_was_running(mesh: Mesh) -> None:
    Slow.begun = asyncio.Event()
    await mesh.spawn(Slow)
    with pytest.raises(DeadlineExceededError, match=r"its handler at slow\.1 has been running for .* on client-"):
        await mesh.ask("slow", Wait(), timeout=0.2)


@pytest.mark.seed("A35")
async def test_a_deadline_that_passed_says_that_the_request_waited(mesh: Mesh) -> None:
    Slow.begun = asyncio.Event()
    await mesh.spawn(Slow)
    await mesh.tell("slow", Occupy(), timeout=5)
    await Slow.begun.wait()
    with pytest.raises(DeadlineExceededError, match=r"it waits in the mailbox of slow\.1, behind 1 others"):
        await mesh.ask("slow", Wait(), timeout=0.2)
    await mesh.kill("slow")


@pytest.mark.seed("A35")
async def test_a_deadline_that_passed_says_that_the_reply_was_lost(mesh: Mesh) -> None:
    await mesh.transport.subscribe(mesh.subjects.mailbox("mute"), lambda message: None)
    await mesh.transport.subscribe(mesh.subjects.control(CANCEL), lambda message: None)
    with pytest.raises(DeadlineExceededError, match="its reply was lost, or it did not arrive") as caught:
        await mesh.ask("mute", Wait(), timeout=0.2)
    assert caught.value.timeout == 0.2


# ---------------------------------------------------------------- A36: two versions of a message


def versions() -> tuple[Any, type[Agent]]:
    """What an older program sends, and a newer agent."""

    class Greet(Request[str]):
        nmae: str
        age: str = ""

    def newer() -> type[Agent]:
        class Greet(Request[int]):
            name: str
            age: int = 0

        class Greeter(Agent):
            @handler
            async def greet(self, request: Greet) -> int:
                return request.age

        return Greeter

    return Greet, newer()


@pytest.mark.seed("A36")
async def test_two_versions_of_a_message_are_told_apart_field_by_field(mesh: Mesh) -> None:
    older, greeter = versions()
    await mesh.spawn(greeter)
    with pytest.raises(InvalidMessageError) as caught:
        await mesh.ask("greeter", older(nmae="Ada"))
    said = str(caught.value)
    assert "greeter.1 on client-" in said
    assert "has another version of it: schema of Greet is" in said
    assert "'name' is only there, and required" in said
    assert "'nmae' is only here" in said
    assert "'age' is string here and integer there" in said
    assert "schema of reply to Greet is" in said


async def test_a_message_that_is_wrong_in_the_same_version_is_just_wrong(mesh: Mesh) -> None:
    await mesh.spawn(Slow)
    with pytest.raises(InvalidMessageError) as caught:
        await mesh.ask_raw("slow", "Wait", [1, 2])
    assert "version" not in str(caught.value)


# ---------------------------------------------------------------- A27: breakers of agents


@pytest.fixture
async def guarded(nats_server: EmbeddedBroker) -> AsyncIterator[Mesh]:
    """A mesh that does not ask agents which do not answer."""
    policy = BreakerPolicy(failures=2, window=60, cooldown=0.3, successes=1)
    options = TransportOptions(nats_server.url, breaker=policy)
    async with connect(nats_server.url, tenant=f"test-{new_id()}", transport=options) as mesh:
        yield mesh


@pytest.mark.seed("A27")
async def test_an_agent_that_does_not_answer_is_not_asked_for_a_while_and_then_again(guarded: Mesh) -> None:
    for _ in range(2):
        with pytest.raises(NoSuchAgentError):
            await guarded.ask("slow", Wait())
    with pytest.raises(CircuitOpenError) as caught:
        await guarded.ask("slow", Wrong())
    assert 0 < caught.value.retry_after <= 0.3
    found = read(render(metrics_of(guarded.transport).families()))
    assert value(found["agentmesh_breaker_state"], target="slow") == 2
    assert value(found["agentmesh_breaker_opened_total"], target="slow") == 1

    await guarded.spawn(Slow)
    breaker = guarded.transport.breakers.of(guarded.subjects.tenant, "slow")  # type: ignore[union-attr]
    await eventually(lambda: breaker.state == "half-open")
    for _ in range(3):  # what a handler raises is an answer
        with pytest.raises(RemoteError, match="wrong"):
            await guarded.ask("slow", Wrong())
    assert breaker.state == "closed"


@pytest.mark.seed("A27")
async def test_a_deadline_opens_the_breaker_of_that_agent_alone(guarded: Mesh) -> None:
    Slow.begun = asyncio.Event()
    await guarded.spawn(Slow, options=CellOptions(concurrency=8))
    await guarded.spawn(Slow, name="other")
    for _ in range(2):
        with pytest.raises(DeadlineExceededError):
            await guarded.ask("slow", Wait(), timeout=0.1)
    with pytest.raises(CircuitOpenError):
        await guarded.ask("slow", Wait(), timeout=0.1)
    with pytest.raises(RemoteError):
        await guarded.ask("other", Wrong())


async def test_a_policy_survives_the_way_to_another_process() -> None:
    options = TransportOptions(breaker=json.loads('{"failures": 3, "window": 9, "cooldown": 1}'))
    assert options.breaker == BreakerPolicy(3, 9, 1)


# ---------------------------------------------------------------- A32: while the broker is away


class Add(Request[int]):
    n: int


class Counter(Agent):
    """Says how often it was asked."""

    total = 0

    @handler
    async def add(self, request: Add) -> int:
        type(self).total += request.n
        return type(self).total


@pytest.mark.seed("A32")
async def test_an_ask_under_way_when_the_link_breaks_is_not_sent_again_unless_it_has_a_key(
    server: Server, proxy: TcpProxy
) -> None:
    Counter.total = 0
    url = f"nats://127.0.0.1:{proxy.port}"
    async with connect(server.url, name="home") as home, connect(url, name="away") as away:
        await home.spawn(Counter)
        states: list[str] = []
        away.transport.on_state(states.append)
        assert away.transport.state == "connected"

        asking = asyncio.create_task(away.ask("counter", Add(n=1), timeout=2.0))
        proxy.cut()
        with pytest.raises(DeadlineExceededError, match="no answer within"):
            await asking
        assert Counter.total <= 1
        await eventually(lambda: away.transport.state == "connected", timeout=20)
        assert states[0] == "reconnecting"
        before = Counter.total
        assert await away.ask("counter", Add(n=1), timeout=20, idempotency_key="once") == before + 1
        assert await away.ask("counter", Add(n=1), timeout=20, idempotency_key="once") == before + 1
    assert away.transport.state == "closed"


async def fill(mesh: Mesh) -> None:
    for _ in range(100):
        await mesh.transport.connection.publish("a.b", b"x" * 100_000, patience=0.3)


@pytest.mark.seed("A32")
async def test_what_waits_for_the_broker_is_bounded_and_a_figure(server: Server) -> None:
    async with connect(server.url, name="sender") as mesh:
        server.kill9()
        await eventually(lambda: mesh.transport.state == "reconnecting", timeout=20)
        with pytest.raises(ConnectionLostError, match="nothing was sent"):
            await fill(mesh)
        found = read(render(metrics_of(mesh.transport).families()))
        assert value(found["agentmesh_broker_state"], state="reconnecting") == 1
        assert 0 < value(found["agentmesh_broker_buffered_bytes"]) < 2 * 1024 * 1024
        assert mesh.transport.state == "reconnecting"


@pytest.mark.seed("A27")
def test_settings_give_breakers_and_tracing_to_every_process(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[breaker]\nenabled = true\nfailures = 3\ncooldown = "2s"\n[tracing]\nto = "log"\n')
    plan = load_plan(dump(make_plan(config.load(config=file))))

    options = TransportOptions(**json.loads(json.dumps(asdict(plan.transport("nats://127.0.0.1:1", "node-1")))))

    assert options.breaker == BreakerPolicy(failures=3, cooldown=2.0)
    assert options.tracing == "log"
    file.write_text("")
    assert make_plan(config.load(config=file)).breaker is None
