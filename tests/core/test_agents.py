"""Agents on a real broker: order, answers, refusals, failures, streams, and the end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import pytest

from agentmesh import Agent, AgentRef, CellOptions, Context, Event, Mesh, Prompt, Request, Text, handler
from agentmesh.errors import (
    AgentStoppedError,
    CallDepthError,
    DeadlineExceededError,
    MailboxFullError,
    NoHandlerError,
    NoSuchAgentError,
    RemoteError,
    StreamIdleError,
)
from agentmesh.telling import Undelivered
from agentmesh.testing import Probe

Spawn = Callable[..., Awaitable[AgentRef]]
MakeProbe = Callable[[str], Awaitable[Probe]]


class Add(Request[int]):
    n: int


class Total(Request[int]): ...


class Numbers(Request[list[int]]): ...


class Note(Event):
    n: int


class Stored(Event, durable=True):
    n: int


class Adder(Agent):
    """Adds numbers."""

    def __init__(self, start: int = 0) -> None:
        self.total = start

    @handler
    async def add(self, request: Add) -> int:
        if request.n < 0:
            raise ValueError("only up")
        self.total += request.n
        return self.total


class Collector(Agent):
    def __init__(self) -> None:
        self.seen: list[int] = []

    @handler
    async def note(self, event: Note) -> None:
        self.seen.append(event.n)

    @handler
    async def numbers(self, request: Numbers) -> list[int]:
        return self.seen


class Gate(Agent):
    """Holds its first message until it is let go."""

    opened: ClassVar[asyncio.Event]
    entered: ClassVar[asyncio.Event]
    cancelled: ClassVar[asyncio.Event]
    handled: ClassVar[list[int]]

    @classmethod
    def reset(cls) -> None:
        cls.opened, cls.entered, cls.cancelled, cls.handled = asyncio.Event(), asyncio.Event(), asyncio.Event(), []

    async def _pass(self, n: int) -> None:
        type(self).entered.set()
        try:
            await type(self).opened.wait()
        except asyncio.CancelledError:
            type(self).cancelled.set()
            raise
        type(self).handled.append(n)

    @handler
    async def note(self, event: Note) -> None:
        await self._pass(event.n)

    @handler
    async def add(self, request: Add) -> int:
        await self._pass(request.n)
        return request.n


@pytest.fixture
def gate() -> type[Gate]:
    Gate.reset()
    return Gate


async def test_an_ask_returns_the_typed_reply_and_state_is_kept(spawn: Spawn) -> None:
    adder = await spawn(Adder, start=10)
    assert await adder.ask(Add(n=5)) == 15
    assert await adder.ask(Add(n=5)) == 20


async def test_messages_of_one_sender_are_handled_in_order_one_at_a_time(spawn: Spawn) -> None:
    collector = await spawn(Collector)
    for n in range(1000):
        await collector.tell(Note(n=n))
    assert await collector.ask(Numbers()) == list(range(1000))


async def test_a_handler_that_raises_answers_with_a_remote_error_and_lives(spawn: Spawn) -> None:
    adder = await spawn(Adder)
    await adder.ask(Add(n=1))
    with pytest.raises(RemoteError, match=r"adder: ValueError: only up"):
        await adder.ask(Add(n=-1))
    assert await adder.ask(Add(n=1)) == 2


async def test_d13_an_ask_nobody_hears_fails_at_once_and_names_near_misses(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(Adder)
    await mesh.agents()
    started = time.perf_counter()
    with pytest.raises(NoSuchAgentError, match="did you mean 'adder'"):
        await mesh.ask("addder", Add(n=1), timeout=10)
    assert time.perf_counter() - started < 1.0  # the promise is 100 ms; the margin is for a busy machine


async def test_a_message_without_a_handler_is_refused_with_what_is_taken(spawn: Spawn) -> None:
    adder = await spawn(Adder)
    with pytest.raises(NoHandlerError, match=r"no handler for Numbers \(it takes Add\)"):
        await adder.ask(Numbers())


async def test_a_deadline_ends_the_ask_and_the_handler(spawn: Spawn, gate: type[Gate]) -> None:
    ref = await spawn(gate)
    with pytest.raises(DeadlineExceededError):
        await ref.ask(Add(n=1), timeout=0.2)
    await gate.cancelled.wait()
    gate.opened.set()
    assert await ref.ask(Add(n=2)) == 2
    assert gate.handled == [2]


async def test_cancelling_an_ask_cancels_its_handler(spawn: Spawn, gate: type[Gate]) -> None:
    ref = await spawn(gate)
    asking = asyncio.create_task(ref.ask(Add(n=1)))
    await gate.entered.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await gate.cancelled.wait()
    gate.opened.set()
    assert await ref.ask(Add(n=2)) == 2
    assert gate.handled == [2]


async def test_what_is_left_of_the_deadline_is_handed_on(mesh: Mesh, spawn: Spawn) -> None:
    left: list[float | None] = []

    class Inner(Agent):
        @handler
        async def asked(self, request: Prompt, ctx: Context) -> str:
            left.append(ctx.remaining())
            return "ok"

    class Outer(Agent):
        @handler
        async def asked(self, request: Prompt) -> str:
            return await self.mesh.ask("inner", request, timeout=60)

    await spawn(Inner)
    outer = await spawn(Outer)
    assert await outer.ask(Prompt(text="x"), timeout=5) == "ok"
    assert left[0] is not None
    assert 0 < left[0] < 5


async def test_j7_agents_that_ask_each_other_for_ever_are_stopped(spawn: Spawn) -> None:
    class Loop(Agent):
        concurrency = 50

        @handler
        async def asked(self, request: Add) -> int:
            return await self.mesh.ask("loop", Add(n=request.n + 1))

    loop = await spawn(Loop)
    with pytest.raises(CallDepthError, match="8 agents deep"):
        await loop.ask(Add(n=0), timeout=5)


async def test_e1_the_message_after_a_full_mailbox_is_refused_and_none_is_lost(
    mesh: Mesh, spawn: Spawn, gate: type[Gate]
) -> None:
    ref = await spawn(gate, options=CellOptions(mailbox_size=50))
    refused: list[Undelivered] = []
    bounced = asyncio.Event()

    def on_undelivered(letter: Undelivered) -> None:
        refused.append(letter)
        bounced.set()

    mesh.on_undelivered = on_undelivered
    await ref.tell(Note(n=0), timeout=2)
    await gate.entered.wait()
    for n in range(1, 51):
        await ref.tell(Note(n=n), timeout=2)

    with pytest.raises(MailboxFullError, match="50 messages"):
        await ref.tell(Note(n=51), timeout=2)
    with pytest.raises(MailboxFullError):
        await ref.ask(Add(n=52))
    await ref.tell(Note(n=53))
    await bounced.wait()

    gate.opened.set()
    await ref.ask(Add(n=99))
    assert gate.handled == [*range(51), 99]
    assert [(type(letter.error), letter.agent) for letter in refused] == [(MailboxFullError, "gate")]


async def test_drop_oldest_tells_the_asker_whose_request_was_dropped(spawn: Spawn, gate: type[Gate]) -> None:
    ref = await spawn(gate, options=CellOptions(mailbox_size=1, overflow="drop_oldest"))
    await ref.tell(Note(n=0), timeout=2)
    await gate.entered.wait()
    oldest = asyncio.create_task(ref.ask(Add(n=1)))
    await asyncio.sleep(0)
    newest = asyncio.create_task(ref.ask(Add(n=2)))
    with pytest.raises(MailboxFullError):
        await oldest
    gate.opened.set()
    assert await newest == 2


async def test_block_holds_the_sender_until_there_is_room(spawn: Spawn, gate: type[Gate]) -> None:
    ref = await spawn(gate, options=CellOptions(mailbox_size=1, overflow="block"))
    await ref.tell(Note(n=0), timeout=2)
    await gate.entered.wait()
    await ref.tell(Note(n=1), timeout=2)
    held = asyncio.create_task(ref.tell(Note(n=2), timeout=5))
    done, _ = await asyncio.wait([held], timeout=0.1)
    assert not done
    gate.opened.set()
    await held
    await ref.ask(Add(n=3))
    assert gate.handled == [0, 1, 2, 3]


async def test_an_agent_whose_event_handler_fails_is_restarted_and_its_mailbox_survives(spawn: Spawn) -> None:
    lives: list[str] = []

    class Fragile(Agent):
        def __init__(self) -> None:
            self.count = 0

        async def on_start(self) -> None:
            lives.append("start")

        async def on_failure(self, error: BaseException, message: object) -> None:
            lives.append(f"failed: {error}")

        async def on_stop(self) -> None:
            lives.append("stop")

        @handler
        async def note(self, event: Note) -> None:
            if event.n == 0:
                raise ValueError("no zero")
            self.count += event.n

        @handler
        async def total(self, request: Total) -> int:
            return self.count

    ref = await spawn(Fragile)
    for n in (5, 0, 1, 2):
        await ref.tell(Note(n=n))
    assert await ref.ask(Total()) == 3  # the state of the first life is gone, the messages are not
    assert lives == ["start", "failed: no zero", "stop", "start"]


async def test_d3_a_cancelled_error_inside_a_handler_is_its_failure_and_not_the_end(spawn: Spawn) -> None:
    class Inner(Agent):
        @handler
        async def asked(self, request: Add) -> int:
            if request.n == 0:
                inner = asyncio.create_task(asyncio.sleep(10))
                inner.cancel()
                await inner
            return request.n

    ref = await spawn(Inner)
    with pytest.raises(RemoteError, match="CancelledError"):
        await ref.ask(Add(n=0))
    assert await ref.ask(Add(n=1)) == 1


async def test_stopping_an_agent_answers_everyone_who_still_waits(mesh: Mesh, spawn: Spawn, gate: type[Gate]) -> None:
    ref = await spawn(gate)
    running = asyncio.create_task(ref.ask(Add(n=1)))
    await gate.entered.wait()
    waiting = [asyncio.create_task(ref.ask(Add(n=n))) for n in range(2, 5)]
    await mesh.agents()  # the same connection: the requests are in the mailbox now
    await mesh.kill("gate")
    for asking in (running, *waiting):
        with pytest.raises(AgentStoppedError):
            await asking


async def test_a_clean_stop_finishes_what_waits(mesh: Mesh, spawn: Spawn) -> None:
    stopped: list[int] = []

    class Slow(Agent):
        @handler
        async def add(self, request: Add) -> int:
            await asyncio.sleep(0)
            return request.n

        async def on_stop(self) -> None:
            stopped.append(1)

    ref = await spawn(Slow)
    asking = [asyncio.create_task(ref.ask(Add(n=n))) for n in range(50)]
    await asyncio.sleep(0)  # all are sent, and on their way while the agent stops
    await mesh.stop("slow")
    assert await asyncio.gather(*asking) == list(range(50))
    assert stopped == [1]
    with pytest.raises(NoSuchAgentError):
        await ref.ask(Add(n=1))


async def test_replicas_share_the_work_and_each_message_is_handled_once(spawn: Spawn, mesh: Mesh) -> None:
    handled: list[tuple[int, int]] = []

    class Shared(Agent):
        @handler
        async def add(self, request: Add) -> int:
            handled.append((id(self), request.n))
            return request.n

    ref = await spawn(Shared, replicas=3)
    await asyncio.gather(*(ref.ask(Add(n=n)) for n in range(300)))
    assert sorted(n for _, n in handled) == list(range(300))
    assert len({one for one, _ in handled}) == 3


async def test_at_most_concurrency_messages_are_handled_at_once(spawn: Spawn) -> None:
    running = peak = 0

    class Busy(Agent):
        concurrency = 4

        @handler
        async def add(self, request: Add) -> int:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.001)
            running -= 1
            return request.n

    ref = await spawn(Busy)
    assert await asyncio.gather(*(ref.ask(Add(n=n)) for n in range(100))) == list(range(100))
    assert peak == 4


async def test_a_published_event_reaches_each_listening_agent_once(mesh: Mesh, spawn: Spawn) -> None:
    class Listener(Agent):
        def __init__(self) -> None:
            self.seen: list[int] = []

        @handler(topic="numbers.*")
        async def note(self, event: Note) -> None:
            self.seen.append(event.n)

        @handler
        async def numbers(self, request: Numbers) -> list[int]:
            return self.seen

    one = await spawn(Listener, name="one")
    two = await spawn(Listener, name="two")
    heard = mesh.listen("numbers.>")
    first = asyncio.ensure_future(anext(heard))
    await mesh.agents()
    await mesh.publish("numbers.even", Note(n=2))
    await mesh.publish("letters.a", Note(n=3))
    topic, envelope = await first
    assert (topic, envelope.message_type) == ("numbers.even", "Note")
    assert await one.ask(Numbers()) == [2]
    assert await two.ask(Numbers()) == [2]
    await heard.aclose()


async def test_plain_text_of_any_client_is_a_prompt(mesh: Mesh, spawn: Spawn) -> None:
    class Echo(Agent):
        @handler
        async def asked(self, request: Prompt, ctx: Context) -> str:
            return f"{ctx.sender}: {request.text}"

    await spawn(Echo)
    reply = await mesh.transport.request(
        mesh.subjects.mailbox("echo"), b"hello", timeout=2, headers={"source_agent_id": "shell"}
    )
    assert b'"content":"shell: hello"' in reply.data


async def test_an_answer_goes_to_who_asked_and_a_probe_can_answer(mesh: Mesh, probe: MakeProbe) -> None:
    desk = await probe("desk")
    asking = asyncio.create_task(mesh.ask("desk", Add(n=4)))
    assert (await desk.answer(Add, 8)).n == 4
    assert await asking == 8
    await mesh.tell("desk", Text(text="hi"))
    assert (await desk.expect(Text)).text == "hi"
    await desk.expect_nothing(0.02)


async def test_every_agent_is_a_nats_micro_service(mesh: Mesh, spawn: Spawn) -> None:
    ref = await spawn(Adder)
    await ref.ask(Add(n=1))
    (ping,) = await mesh.transport.request_many("$SRV.PING.adder", b"", timeout=1, stall=0.1)
    assert json.loads(ping.data)["type"] == "io.nats.micro.v1.ping_response"
    (info,) = await mesh.transport.request_many("$SRV.INFO.adder", b"", timeout=1, stall=0.1)
    assert json.loads(info.data)["endpoints"][0]["subject"] == mesh.subjects.mailbox("adder")
    (stats,) = await mesh.transport.request_many("$SRV.STATS.adder", b"", timeout=1, stall=0.1)
    assert json.loads(stats.data)["endpoints"][0]["num_requests"] == 1


async def test_the_registry_knows_capabilities_and_schemas(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(Adder, replicas=2)
    infos = await mesh.agents()
    assert [(info.name, info.replica, info.state) for info in infos] == [("adder", 1, "ready"), ("adder", 2, "ready")]
    (message,) = infos[0].messages
    assert (message.name, message.kind) == ("Add", "request")
    assert message.schema["properties"]["n"]["type"] == "integer"
    assert infos[0].description == "Adds numbers."


async def test_b17_a_durable_event_waits_for_its_agent_and_is_handled_in_order(mesh: Mesh, spawn: Spawn) -> None:
    for n in range(20):
        await mesh.tell("keeper", Stored(n=n))

    seen: list[int] = []
    all_seen = asyncio.Event()
    failed = False

    class Keeper(Agent):
        @handler
        async def stored(self, event: Stored) -> None:
            nonlocal failed
            if event.n == 3 and not failed:
                failed = True
                raise ValueError("once")
            seen.append(event.n)
            if len(seen) == 20:
                all_seen.set()

    await spawn(Keeper)
    async with asyncio.timeout(10):
        await all_seen.wait()
    assert seen == list(range(20))


class TestStreaming:
    async def test_chunks_come_in_order_and_without_a_gap(self, mesh: Mesh, spawn: Spawn) -> None:
        class Counter(Agent):
            @handler
            async def asked(self, request: Add) -> AsyncIterator[int]:
                for n in range(request.n):
                    yield n

        ref = await spawn(Counter)
        assert [n async for n in ref.stream(Add(n=5000))] == list(range(5000))

    async def test_a_plain_ask_gets_all_chunks_of_text_joined(self, spawn: Spawn) -> None:
        class Words(Agent):
            @handler
            async def asked(self, request: Prompt) -> AsyncIterator[str]:
                for word in request.text.split():
                    yield word

        ref = await spawn(Words)
        assert await ref.ask(Prompt(text="a b c")) == "abc"

    async def test_streaming_from_a_handler_that_does_not_stream_gives_one_chunk(self, spawn: Spawn) -> None:
        ref = await spawn(Adder)
        assert [n async for n in ref.stream(Add(n=3))] == [3]

    async def test_a_producer_that_falls_silent_is_given_up(self, spawn: Spawn) -> None:
        class Silent(Agent):
            @handler
            async def asked(self, request: Prompt) -> AsyncIterator[str]:
                yield "first"
                await asyncio.Event().wait()

        ref = await spawn(Silent)
        chunks = ref.stream(Prompt(text="x"), timeout=0.2)
        assert await anext(chunks) == "first"
        with pytest.raises(StreamIdleError):
            await anext(chunks)

    async def test_leaving_the_loop_stops_the_producer(self, spawn: Spawn) -> None:
        stopped = asyncio.Event()

        class Endless(Agent):
            @handler
            async def asked(self, request: Prompt) -> AsyncIterator[str]:
                try:
                    while True:
                        yield "x"
                        await asyncio.sleep(0)
                finally:
                    stopped.set()

        ref = await spawn(Endless)
        chunks: Any = ref.stream(Prompt(text="x"))
        async for _ in chunks:
            break
        await chunks.aclose()
        async with asyncio.timeout(2):
            await stopped.wait()
        with pytest.raises(NoHandlerError):
            await ref.ask(Add(n=1))  # alive

    async def test_a_slow_reader_holds_the_producer_to_one_window(self, spawn: Spawn) -> None:
        produced = 0

        class Fast(Agent):
            @handler
            async def asked(self, request: Add) -> AsyncIterator[int]:
                nonlocal produced
                for n in range(request.n):
                    produced += 1
                    yield n

        ref = await spawn(Fast)
        chunks: Any = ref.stream(Add(n=2000))
        await anext(chunks)
        with pytest.raises(DeadlineExceededError):
            await ref.ask(Add(n=0), timeout=0.3)
        assert produced <= 256 + 1
        assert [n async for n in chunks] == list(range(1, 2000))

    async def test_an_error_after_some_chunks_reaches_the_reader(self, spawn: Spawn) -> None:
        class Breaks(Agent):
            @handler
            async def asked(self, request: Prompt) -> AsyncIterator[str]:
                yield "one"
                raise ValueError("broken")

        ref = await spawn(Breaks)
        chunks = ref.stream(Prompt(text="x"))
        assert await anext(chunks) == "one"
        with pytest.raises(RemoteError, match="broken"):
            await anext(chunks)

    async def test_a_stream_nobody_serves_fails_at_once(self, mesh: Mesh) -> None:
        with pytest.raises(NoSuchAgentError):
            await anext(mesh.stream("nobody", Prompt(text="x")))
