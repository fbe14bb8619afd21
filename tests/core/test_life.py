"""The life of an agent: starts, restarts, stops and kills that come at the worst moment."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import pytest

from agentmesh import Agent, AgentRef, CellOptions, Event, Mesh, Prompt, Request, Task, connect, handler
from agentmesh.agent import cell
from agentmesh.broker import EmbeddedBroker
from agentmesh.context import current
from agentmesh.errors import AgentStoppedError, DeadlineExceededError, DefinitionError, NoSuchAgentError
from agentmesh.ids import new_id
from agentmesh.telling import KNOWN_RECEIVERS
from tests.harness.waiting import eventually

Spawn = Callable[..., Awaitable[AgentRef]]


class Echo(Request[int]):
    n: int


class Fail(Event): ...


class Note(Event):
    n: int


class Kept(Event, durable=True):
    n: int


class Long(Task[int], time_limit=30.0):
    n: int


class Slow(Agent):
    """Answers when it is let go; fails when told to."""

    concurrency = 3
    gate: ClassVar[asyncio.Event]
    entered: ClassVar[asyncio.Semaphore]
    log: ClassVar[list[str]]

    @classmethod
    def reset(cls) -> None:
        cls.gate, cls.entered, cls.log = asyncio.Event(), asyncio.Semaphore(0), []

    async def on_start(self) -> None:
        type(self).log.append("start")

    async def on_stop(self) -> None:
        type(self).log.append("stop")

    async def on_failure(self, error: BaseException, message: object) -> None:
        type(self).log.append(f"failure {type(message).__name__}")

    @handler
    async def echo(self, request: Echo) -> int:
        type(self).entered.release()
        await type(self).gate.wait()
        return request.n

    @handler
    async def fail(self, event: Fail) -> None:
        raise ValueError("told to")

    @handler
    async def long(self, task: Long) -> int:
        type(self).entered.release()
        await type(self).gate.wait()
        return task.n


@pytest.fixture
def slow() -> type[Slow]:
    Slow.reset()
    return Slow


async def test_handlers_that_run_beside_a_failing_one_are_told_that_the_agent_stopped(
    spawn: Spawn, slow: type[Slow]
) -> None:
    ref = await spawn(slow)
    asking = [asyncio.create_task(ref.ask(Echo(n=n))) for n in range(2)]
    for _ in asking:
        await slow.entered.acquire()
    await ref.tell(Fail())
    for one in asking:
        with pytest.raises(AgentStoppedError):
            await one
    slow.gate.set()
    assert await ref.ask(Echo(n=7)) == 7
    assert slow.log == ["start", "failure Fail", "stop", "start"]


async def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_the_next_life(spawn: Spawn) -> None:
    release, stubborn = asyncio.Event(), asyncio.Event()

    class Stubborn(Agent):
        concurrency = 2

        @handler
        async def asked(self, request: Prompt) -> str:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    stubborn.set()
            return "at last"

        @handler
        async def fail(self, event: Fail) -> None:
            raise ValueError("told to")

        @handler
        async def echo(self, request: Echo) -> int:
            return request.n

    ref = await spawn(Stubborn)
    asking = asyncio.create_task(ref.ask(Prompt(text="")))
    await asyncio.sleep(0)
    await ref.tell(Fail())
    await stubborn.wait()
    assert await asyncio.gather(*(ref.ask(Echo(n=n), timeout=10) for n in range(5))) == list(range(5))
    release.set()
    assert await asking == "at last"


async def test_after_a_restart_by_command_a_failure_is_still_noticed(
    mesh: Mesh, spawn: Spawn, slow: type[Slow]
) -> None:
    ref = await spawn(slow)
    slow.gate.set()
    assert mesh._host is not None
    await mesh._host.restart_agent("slow")
    await ref.tell(Fail())
    assert await ref.ask(Echo(n=1)) == 1
    assert slow.log.count("start") == 3


async def test_a_stop_ends_an_agent_that_hangs_while_it_starts(mesh: Mesh) -> None:
    starting = asyncio.Event()

    class Hangs(Agent):
        async def on_start(self) -> None:
            starting.set()
            await asyncio.Event().wait()

    spawning = asyncio.create_task(mesh.spawn(Hangs))
    await starting.wait()
    async with asyncio.timeout(2):
        await mesh.stop("hangs")
        with pytest.raises(AgentStoppedError):
            await spawning
    assert await mesh.agents() == []


async def test_the_same_name_spawned_many_times_at_once_is_one_agent(mesh: Mesh, slow: type[Slow]) -> None:
    slow.gate.set()
    refs = await asyncio.gather(*(mesh.spawn(slow) for _ in range(5)))
    assert {ref.name for ref in refs} == {"slow"}
    assert len(await mesh.agents("slow")) == 1
    assert slow.log.count("start") - slow.log.count("stop") == 1
    assert await refs[0].ask(Echo(n=1)) == 1


async def test_an_on_start_whose_wait_is_cancelled_is_a_failure_and_tried_again(spawn: Spawn) -> None:
    starts = 0

    class Unlucky(Agent):
        async def on_start(self) -> None:
            nonlocal starts
            starts += 1
            if starts == 2:
                inner = asyncio.ensure_future(asyncio.Event().wait())
                inner.cancel()
                await inner

        @handler
        async def fail(self, event: Fail) -> None:
            raise ValueError("told to")

        @handler
        async def echo(self, request: Echo) -> int:
            return request.n

    ref = await spawn(Unlucky)
    await ref.tell(Fail())
    assert await ref.ask(Echo(n=1), timeout=10) == 1
    assert starts == 3


@pytest.mark.parametrize("where", ["constructor", "on_start"])
async def test_an_agent_that_cannot_start_leaves_nothing_behind(mesh: Mesh, where: str) -> None:
    class Broken(Agent):
        def __init__(self) -> None:
            if where == "constructor":
                raise ValueError("no")

        async def on_start(self) -> None:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await mesh.spawn(Broken)
    with pytest.raises(NoSuchAgentError):
        await mesh.ask("broken", Echo(n=1))
    assert await mesh.agents() == []


async def test_a_replica_that_cannot_start_takes_the_others_of_its_spawn_along(mesh: Mesh) -> None:
    made = 0

    class Third(Agent):
        def __init__(self) -> None:
            nonlocal made
            made += 1
            if made == 3:
                raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        await mesh.spawn(Third, replicas=3)
    assert await mesh.agents() == []


async def test_spawning_fewer_replicas_stops_the_others(mesh: Mesh, slow: type[Slow]) -> None:
    await mesh.spawn(slow, replicas=3)
    await mesh.spawn(slow, replicas=1)
    assert [info.replica for info in await mesh.agents("slow")] == [1]


async def test_replacing_a_replica_loses_no_request_that_another_one_can_take(mesh: Mesh, slow: type[Slow]) -> None:
    slow.gate.set()
    ref = await mesh.spawn(slow, replicas=2)
    asking = [asyncio.create_task(ref.ask(Echo(n=n))) for n in range(1000)]
    await asyncio.sleep(0)
    await mesh.spawn(slow, replicas=2)
    assert await asyncio.gather(*asking) == list(range(1000))


async def test_a_slot_given_to_a_task_that_is_cancelled_in_that_moment_is_free_again(
    mesh: Mesh, slow: type[Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await mesh.spawn(slow, options=CellOptions(concurrency=1))
    assert mesh._host is not None
    (hosted,) = mesh._host._replicas("slow")
    replica = hosted.cell
    holds = asyncio.create_task(replica.run_task(Long(n=1), None))
    await slow.entered.acquire()
    waits = asyncio.create_task(replica.run_task(Long(n=2), None))
    release = replica._release

    def cancel_whom_it_is_given_to(life: Any) -> None:
        release(life)
        waits.cancel()

    monkeypatch.setattr(replica, "_release", cancel_whom_it_is_given_to)
    await asyncio.sleep(0)
    slow.gate.set()
    await holds
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert replica.in_flight == 0
    assert await ref.ask(Echo(n=5), timeout=2) == 5


async def test_tasks_and_messages_take_turns(mesh: Mesh) -> None:
    order: list[str] = []
    gate, entered = asyncio.Event(), asyncio.Event()

    class Both(Agent):
        @handler
        async def note(self, event: Note) -> None:
            entered.set()
            await gate.wait()
            order.append("message")

        @handler
        async def long(self, task: Long) -> int:
            order.append("task")
            return task.n

    ref = await mesh.spawn(Both)
    assert mesh._host is not None
    replica = mesh._host._replicas("both")[0].cell
    for n in range(4):
        await ref.tell(Note(n=n), timeout=2)
    await entered.wait()
    tasks = [asyncio.create_task(replica.run_task(Long(n=n), None)) for n in range(3)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*tasks)
    await eventually(lambda: len(order) == 7)
    assert order == ["message", "task"] * 3 + ["message"]


async def test_a_stop_waits_for_all_messages_also_when_a_task_comes_between(mesh: Mesh) -> None:
    seen: list[int] = []
    entered, gate = asyncio.Event(), asyncio.Event()

    class Both(Agent):
        @handler
        async def note(self, event: Note) -> None:
            entered.set()
            await gate.wait()
            seen.append(event.n)

        @handler
        async def long(self, task: Long) -> int:
            return task.n

    ref = await mesh.spawn(Both)
    for n in range(10):
        await ref.tell(Note(n=n), timeout=2)
    await entered.wait()
    assert mesh._host is not None
    replica = mesh._host._replicas("both")[0].cell
    task = asyncio.create_task(replica.run_task(Long(n=1), None))
    stopping = asyncio.create_task(mesh.stop("both"))
    await asyncio.sleep(0)
    gate.set()
    await stopping
    assert await task == 1
    assert seen == list(range(10))


async def test_a_blocked_sender_is_told_when_the_agent_stops(mesh: Mesh, slow: type[Slow]) -> None:
    ref = await mesh.spawn(slow, options=CellOptions(concurrency=1, mailbox_size=1, overflow="block"))
    asking = [asyncio.create_task(ref.ask(Echo(n=n))) for n in range(4)]
    await slow.entered.acquire()
    await mesh.agents()
    await mesh.kill("slow")
    for one in asking:
        with pytest.raises(AgentStoppedError):
            await one


async def test_drop_oldest_never_drops_a_durable_event(mesh: Mesh) -> None:
    kept: list[int] = []
    entered, gate = asyncio.Event(), asyncio.Event()

    class Keeper(Agent):
        @handler
        async def note(self, event: Note) -> None:
            entered.set()
            await gate.wait()

        @handler
        async def stored(self, event: Kept) -> None:
            kept.append(event.n)

    ref = await mesh.spawn(Keeper, options=CellOptions(mailbox_size=1, overflow="drop_oldest"))
    await ref.tell(Note(n=0))
    await entered.wait()
    for n in range(3):
        await ref.tell(Kept(n=n))
    for n in range(20):
        await ref.tell(Note(n=n), timeout=2)
    gate.set()
    await eventually(lambda: kept == [0, 1, 2])


async def test_an_event_confirmed_by_the_mailbox_is_handled_after_the_sender_stopped_waiting(mesh: Mesh) -> None:
    seen: list[int] = []
    entered, gate = asyncio.Event(), asyncio.Event()

    class Late(Agent):
        @handler
        async def note(self, event: Note) -> None:
            entered.set()
            await gate.wait()
            seen.append(event.n)

    ref = await mesh.spawn(Late)
    await ref.tell(Note(n=1), timeout=0.1)
    await ref.tell(Note(n=2), timeout=0.1)
    await entered.wait()
    await asyncio.sleep(0.5)  # both deadlines pass, and the look for overdue requests comes by
    gate.set()
    await eventually(lambda: seen == [1, 2])


async def test_a_handler_is_cancelled_once_and_may_clean_up_in_peace(spawn: Spawn) -> None:
    cleaned = asyncio.Event()

    class Cleans(Agent):
        @handler
        async def asked(self, request: Prompt) -> str:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.6)  # longer than two looks for overdue requests
                cleaned.set()
            return ""

    ref = await spawn(Cleans)
    with pytest.raises(DeadlineExceededError):
        await ref.ask(Prompt(text=""), timeout=0.1)
    async with asyncio.timeout(3):
        await cleaned.wait()


async def test_on_stop_that_hangs_does_not_hang_the_stop(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "HOOK_TIMEOUT", 0.1)

    class Hangs(Agent):
        async def on_stop(self) -> None:
            await asyncio.Event().wait()

    await mesh.spawn(Hangs)
    async with asyncio.timeout(2):
        await mesh.stop("hangs")


async def test_a_killed_agent_is_not_asked_to_clean_up(mesh: Mesh, slow: type[Slow]) -> None:
    await mesh.spawn(slow)
    assert await mesh.kill("slow") == 1
    assert slow.log == ["start"]


async def test_hooks_know_nothing_of_the_message_whose_handler_spawned_the_agent(mesh: Mesh) -> None:
    seen: list[object] = []

    class Child(Agent):
        async def on_start(self) -> None:
            seen.append(current())

    class Parent(Agent):
        @handler
        async def echo(self, request: Echo) -> int:
            await mesh.spawn(Child)
            return request.n

    ref = await mesh.spawn(Parent)
    await ref.ask(Echo(n=1))
    assert seen == [None]


async def test_ten_thousand_cancelled_asks_leave_nothing_behind(mesh: Mesh, slow: type[Slow]) -> None:
    ref = await mesh.spawn(slow, options=CellOptions(mailbox_size=100))
    holding = [asyncio.create_task(ref.ask(Echo(n=n))) for n in range(3)]
    for _ in holding:
        await slow.entered.acquire()
    mux = mesh.transport.connection.inbox
    inboxes = len(mux._inboxes)
    for _ in range(10):
        asking = [asyncio.create_task(ref.ask(Echo(n=n))) for n in range(1000)]
        await asyncio.sleep(0)
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    # The chores of the mesh ask, too, now and then; what a cancelled ask left would stay.
    await eventually(lambda: (mux.pending, len(mux._inboxes)) == (3, inboxes))
    slow.gate.set()
    await asyncio.gather(*holding)
    assert await ref.ask(Echo(n=1)) == 1
    assert mesh._host is not None
    replica = mesh._host._replicas("slow")[0].cell
    assert (replica.in_flight, len(replica.mailbox), len(replica._gone)) == (0, 0, 0)
    await eventually(lambda: mux.pending == 0)


async def test_streams_left_early_and_events_refused_leave_no_inbox_behind(mesh: Mesh) -> None:
    class Words(Agent):
        @handler
        async def asked(self, request: Prompt) -> AsyncIterator[str]:
            while True:
                yield "word"

    ref = await mesh.spawn(Words)
    mux = mesh.transport.connection.inbox
    before = len(mux._inboxes)
    for _ in range(50):
        async for _ in ref.stream(Prompt(text="")):
            break
    gc.collect()
    await eventually(lambda: len(mux._inboxes) == before)

    for n in range(KNOWN_RECEIVERS + 50):
        await mesh.tell(f"nobody-{n}", Note(n=n))
    assert len(mux._inboxes) <= before + KNOWN_RECEIVERS
    mesh.forget_receivers()
    await eventually(lambda: len(mux._inboxes) == before)


async def test_an_agent_that_ends_takes_its_inboxes_along(mesh: Mesh) -> None:
    class Teller(Agent):
        @handler
        async def echo(self, request: Echo) -> int:
            await self.mesh.tell("nobody", Note(n=request.n))
            return request.n

    mux = mesh.transport.connection.inbox
    before = len(mux._inboxes)
    for n in range(5):
        ref = await mesh.spawn(Teller)
        await ref.ask(Echo(n=n))
    await mesh.stop("teller")
    await eventually(lambda: len(mux._inboxes) == before)


async def test_d12_a_mesh_with_endless_streams_is_closed_within_two_seconds(nats_server: EmbeddedBroker) -> None:
    class Endless(Agent):
        concurrency = 5

        @handler
        async def asked(self, request: Prompt) -> AsyncIterator[str]:
            while True:
                yield "x"
                await asyncio.sleep(0.01)

    async with connect(nats_server.url, tenant=f"t-{new_id()}") as reader:
        mesh = await connect(nats_server.url, tenant=reader.subjects.tenant)
        await mesh.spawn(Endless)
        streams = [reader.stream("endless", Prompt(text="")) for _ in range(5)]
        for stream in streams:
            await anext(stream)
        started = time.perf_counter()
        await mesh.close()
        assert time.perf_counter() - started < 2.0
        for stream in streams:
            with pytest.raises(AgentStoppedError):
                async for _ in stream:
                    pass


async def test_a_handler_that_blocks_the_loop_is_reported(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    class Blocks(Agent):
        @handler
        async def echo(self, request: Echo) -> int:
            time.sleep(1.5)  # noqa: ASYNC251
            return request.n

    ref = await mesh.spawn(Blocks)
    assert await ref.ask(Echo(n=1)) == 1
    await eventually(lambda: "a handler blocks" in caplog.text)


async def test_each_handler_of_a_shared_or_overlapping_topic_gets_its_events(mesh: Mesh) -> None:
    class Created(Event):
        n: int

    class Cancelled(Event):
        n: int

    class Anything(Event):
        n: int

    seen: list[str] = []

    class Orders(Agent):
        @handler(topic="orders.*")
        async def created(self, event: Created) -> None:
            seen.append(f"created {event.n}")

        @handler(topic="orders.*")
        async def cancelled(self, event: Cancelled) -> None:
            seen.append(f"cancelled {event.n}")

        @handler(topic="orders.>")
        async def anything(self, event: Anything) -> None:
            seen.append(f"anything {event.n}")

        @handler
        async def echo(self, request: Echo) -> int:
            return request.n

    ref = await mesh.spawn(Orders)
    for n in range(20):
        await mesh.publish("orders.a", Created(n=n))
        await mesh.publish("orders.a", Cancelled(n=n))
        await mesh.publish("orders.a", Anything(n=n))
        await mesh.publish("orders.a.b", Created(n=-1))  # not where that one is listened for
    await ref.ask(Echo(n=1))
    assert seen == [f"{what} {n}" for n in range(20) for what in ("created", "cancelled", "anything")]


async def test_a_thousand_agents_of_a_process_are_all_found(mesh: Mesh) -> None:
    class Described(Agent):
        @handler
        async def echo(self, request: Echo) -> int:
            return request.n

    Described._behaviour = type(Described._behaviour)("described", "x" * 20_000, Described._behaviour.handlers)
    await asyncio.gather(*(mesh.spawn(Described, name=f"agent-{n}") for n in range(100)))  # 2 MB of descriptions
    assert len(await mesh.agents()) == 100


@pytest.mark.parametrize("wrong", [Agent, Slow(), "slow", int])
async def test_only_an_agent_class_can_be_spawned(mesh: Mesh, wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="subclass of Agent"):
        await mesh.spawn(wrong)


@pytest.mark.parametrize(
    "settings", [{"concurrency": 0}, {"mailbox_size": 0}, {"overflow": "x"}, {"restart": "x"}, {"prefetch": -1}]
)
async def test_settings_that_cannot_work_are_refused_before_anything_starts(
    mesh: Mesh, slow: type[Slow], settings: dict[str, Any]
) -> None:
    with pytest.raises(DefinitionError):
        await mesh.spawn(slow, options=CellOptions(**settings))
    with pytest.raises(DefinitionError):
        await mesh.spawn(slow, replicas=0)
    assert slow.log == []


async def test_an_agent_that_stays_down_answers_those_who_wait(mesh: Mesh) -> None:
    class Hopeless(Agent):
        restart = "temporary"

        @handler
        async def fail(self, event: Fail) -> None:
            raise ValueError("told to")

        @handler
        async def echo(self, request: Echo) -> int:
            return request.n

    ref = await mesh.spawn(Hopeless)
    await ref.tell(Fail())
    with pytest.raises((AgentStoppedError, NoSuchAgentError)):
        await ref.ask(Echo(n=1), timeout=5)


async def test_sending_the_wrong_kind_of_message_says_which_verb_to_use(mesh: Mesh) -> None:
    wrong: Any = Note(n=1)
    with pytest.raises(DefinitionError, match="Request"):
        await mesh.ask("a", wrong)
    with pytest.raises(DefinitionError, match="Request"):
        mesh.stream("a", wrong)
    other: Any = Echo(n=1)
    with pytest.raises(DefinitionError, match="Event"):
        await mesh.tell("a", other)
    with pytest.raises(DefinitionError, match="durable"):
        await mesh.publish("a", Kept(n=1))
