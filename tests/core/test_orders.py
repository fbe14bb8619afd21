"""Pauses and quarantines: what they hold back, for whom, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agentmesh import Agent, Event, Finish, Mesh, Request, Task, handler
from agentmesh.errors import AgentPausedError, QuarantinedError, UsageError
from agentmesh.happenings import recent
from agentmesh.orders import Orders
from agentmesh.tasks.dead import DeadLetters
from tests.harness import eventually


class Ping(Request[str]):
    pass


class Hold(Request[str]):
    pass


class Double(Task[int]):
    n: int


class Note(Event, durable=True):
    text: str


class Poke(Event):
    pass


class Login(Event, redact={"password"}):
    user: str
    password: str = ""


class Clerk(Agent):
    concurrency = 4

    def __init__(self, book: list[str], release: asyncio.Event | None = None) -> None:
        self.book = book
        self.release = release or asyncio.Event()

    @handler
    async def ping(self, message: Ping) -> str:
        return "pong"

    @handler
    async def hold(self, message: Hold) -> str:
        self.book.append("holding")
        await self.release.wait()
        return "released"

    @handler
    async def double(self, task: Double) -> int:
        return 2 * task.n

    @handler
    async def note(self, message: Note) -> None:
        self.book.append(message.text)

    @handler
    async def login(self, message: Login) -> None:
        if message.user == "mallory":
            raise ValueError(f"no entry for {message.user} at nats://me:secret@host")
        self.book.append(message.user)


async def test_a_paused_agent_finishes_what_runs_refuses_requests_and_lets_durable_work_wait(mesh: Mesh) -> None:
    book: list[str] = []
    release = asyncio.Event()
    await mesh.spawn(Clerk, book, release)
    holding = asyncio.create_task(mesh.ask("clerk", Hold()))
    await eventually(lambda: "holding" in book)

    assert await mesh.pause("clerk", reason="lunch") == [mesh.identity]

    with pytest.raises(AgentPausedError, match="lunch"):
        await mesh.ask("clerk", Ping(), timeout=2)
    with pytest.raises(AgentPausedError):
        await mesh.tell("clerk", Login(user="ada"), timeout=2)
    job = await mesh.submit(Double(n=2), to="clerk")
    await mesh.tell("clerk", Note(text="later"))
    assert [info.state for info in await mesh.agents("clerk")] == ["paused"]
    release.set()
    assert await holding == "released"
    assert (await job.status()).state == "waiting"
    assert "later" not in book

    await mesh.resume("clerk")

    assert await mesh.ask("clerk", Ping()) == "pong"
    assert await job.result(5) == 4
    await eventually(lambda: "later" in book)


async def test_a_pause_holds_for_agents_that_start_later_and_survives_restarts(mesh: Mesh) -> None:
    await mesh.pause("clerk")
    job = await mesh.submit(Double(n=1), to="clerk")

    await mesh.spawn(Clerk, [])
    with pytest.raises(AgentPausedError):
        await mesh.ask("clerk", Ping(), timeout=2)
    await mesh.stop("clerk")
    await mesh.spawn(Clerk, [])

    with pytest.raises(AgentPausedError):
        await mesh.ask("clerk", Ping(), timeout=2)
    assert (await job.status()).state == "waiting"
    await mesh.resume("clerk")
    assert await job.result(5) == 2


async def test_a_pause_of_all_is_taken_back_as_such_and_leaves_single_pauses(mesh: Mesh) -> None:
    await mesh.spawn(Clerk, [])
    await mesh.spawn(Clerk, [], name="other")
    await mesh.pause("other")
    await mesh.pause_all()
    orders = Orders(mesh.transport, mesh.subjects)

    for name in ("clerk", "other"):
        with pytest.raises(AgentPausedError):
            await mesh.ask(name, Ping(), timeout=2)
    assert [one.agent for one in await orders.pauses()] == ["", "other"]
    await mesh.resume_all()

    assert await mesh.ask("clerk", Ping()) == "pong"
    with pytest.raises(AgentPausedError):
        await mesh.ask("other", Ping(), timeout=2)


async def test_a_host_that_missed_the_prompt_learns_of_a_pause_by_itself(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.orders.LOOK_AGAIN", 0.2)
    await mesh.spawn(Clerk, [])
    silent = Orders(mesh.transport, mesh.subjects)
    monkeypatch.setattr(silent, "prompt", _nothing)

    await silent.pause("clerk")

    async def is_paused() -> bool:
        return (await mesh.agents("clerk"))[0].state == "paused"

    await eventually(is_paused)


async def _nothing() -> list[str]:
    return []


async def test_c11_what_ends_an_agent_three_times_is_quarantined_and_the_agent_lives(mesh: Mesh) -> None:
    book: list[str] = []
    await mesh.spawn(Clerk, book)
    for time in range(3):
        await mesh.tell("clerk", Login(user="mallory", password="x"), timeout=2)
        await eventually(_restarted(mesh, time + 1))

    with pytest.raises(QuarantinedError) as caught:
        await mesh.tell("clerk", Login(user="mallory", password="x"), timeout=2)

    await mesh.tell("clerk", Login(user="ada", password="x"), timeout=2)
    await eventually(lambda: book == ["ada"])
    orders = Orders(mesh.transport, mesh.subjects)
    (order,) = await eventually(orders.quarantines)
    assert (order.agent, order.message_type, order.failures) == ("clerk", "Login", 3)
    assert caught.value.quarantine_id == order.id
    letters = DeadLetters(mesh.transport, mesh.subjects)
    (letter,) = await eventually(letters.ls)
    assert letter.kind == "event"
    assert "ended clerk 3 times" in letter.reason


@pytest.mark.slow
async def test_a_quarantine_holds_for_every_replica_and_what_waits_until_it_is_released(mesh: Mesh) -> None:
    book: list[str] = []
    await mesh.spawn(Clerk, book)
    for time in range(3):
        await mesh.tell("clerk", Login(user="mallory"), timeout=2)
        await eventually(_restarted(mesh, time + 1))
    orders = Orders(mesh.transport, mesh.subjects)
    (order,) = await eventually(orders.quarantines)
    await mesh.stop("clerk")
    await mesh.spawn(Clerk, book)
    with pytest.raises(QuarantinedError):
        await mesh.tell("clerk", Login(user="mallory"), timeout=2)

    assert (await orders.release(order.id)).id == order.id

    await mesh.tell("clerk", Login(user="mallory"), timeout=2)
    await eventually(_restarted(mesh, 1))
    assert await orders.quarantines() == []
    with pytest.raises(UsageError):
        await orders.release(order.id)


async def test_replicas_count_together_what_ends_them(mesh: Mesh) -> None:
    orders, others = Orders(mesh.transport, mesh.subjects), Orders(mesh.transport, mesh.subjects)

    counts = await asyncio.gather(*(one.strike("abc") for one in (orders, others) for _ in range(5)))

    assert sorted(counts) == list(range(1, 11))
    await orders.forgive("abc")
    assert await others.strike("abc") == 1


async def test_a_crash_report_tells_all_but_secrets_and_only_in_the_events(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    await mesh.spawn(Clerk, [])
    await mesh.tell("clerk", Login(user="mallory", password="hunter2"), timeout=2)

    async def reported() -> list[object]:
        return list(await recent(mesh.transport, mesh.subjects, kind="crash", name="clerk"))

    await eventually(reported)
    (crash,) = await recent(mesh.transport, mesh.subjects, kind="crash", name="clerk")
    document = crash.document

    assert document["reason"] == "the handler of Login failed"
    assert document["error_type"] == "ValueError"
    assert document["error"] == "no entry for mallory at nats://***@host"
    assert "raise ValueError" in document["traceback"]
    assert document["message"]["type"] == "Login"
    assert document["message"]["body"] == '{"user":"mallory","password":"***"}'
    assert (document["replica"], document["node"], document["restarts"]) == (1, mesh.identity, 0)
    assert "secret" not in str(document)
    assert '"user"' not in caplog.text


async def test_giving_up_is_reported(mesh: Mesh) -> None:
    class Stubborn(Clerk):
        quarantine_after = 0

    await mesh.spawn(Stubborn, [])

    async def gave_up() -> list[object]:
        return list(await recent(mesh.transport, mesh.subjects, kind="gave-up"))

    async def poke() -> bool:
        await mesh.tell("stubborn", Login(user="mallory"))
        return bool(await gave_up())

    await eventually(poke, 20, period=0.1)
    (event,) = await recent(mesh.transport, mesh.subjects, kind="gave-up")
    assert event.name == "stubborn"
    assert "after 3 restarts" in event.document["reason"]
    assert await Orders(mesh.transport, mesh.subjects).quarantines() == []


def _restarted(mesh: Mesh, times: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        infos = await mesh.agents("clerk")
        return bool(infos) and infos[0].restarts >= times and infos[0].state == "ready"

    return check


class Errand(Event):
    pass


class Letter(Event, durable=True):
    pass


class Runner(Agent):
    restart = "transient"

    @handler
    async def ping(self, message: Ping) -> str:
        return "pong"

    @handler
    async def errand(self, event: Errand) -> None:
        raise Finish("done for today")

    @handler
    async def letter(self, event: Letter) -> None:
        raise Finish("delivered")


async def test_an_agent_that_finishes_ends_in_good_order_and_is_restarted_only_if_it_is_permanent(mesh: Mesh) -> None:
    class Eternal(Runner):
        restart = "permanent"

    for event in (Errand(), Letter()):
        await mesh.spawn(Runner)
        async with asyncio.timeout(5), mesh.watch("runner") as watch:
            await mesh.tell("runner", event, timeout=2)
            await anext(watch)
    eternal = await mesh.spawn(Eternal)
    await eternal.tell(Errand(), timeout=2)

    async def restarted() -> bool:
        return (await mesh.agents("eternal"))[0].restarts == 1

    await eventually(restarted)
    assert await eternal.ask(Ping()) == "pong"
    assert await recent(mesh.transport, mesh.subjects) == []
