"""What a handler's outcome does: each cell of the table in docs/agents.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ClassVar

import pytest

from agentmesh import Agent, AgentRef, Event, Mesh, Prompt, Request, Task, handler
from agentmesh.errors import (
    AgentStoppedError,
    NoSuchAgentError,
    PayloadTooLargeError,
    Reject,
    RemoteError,
    Retry,
    TaskDeadError,
)
from tests.harness.waiting import eventually

Spawn = Callable[..., Awaitable[AgentRef]]

RAISED: dict[str, Callable[[], BaseException]] = {
    "Retry": lambda: Retry(0.0),
    "Reject": lambda: Reject("never"),
    "ValueError": lambda: ValueError("broken"),
    "SystemExit": lambda: SystemExit(3),
    "CancelledError": lambda: asyncio.CancelledError(),
    "KeyError": lambda: KeyError("a\udcff"),  # half a character: no JSON text
}


class Do(Request[str]):
    what: str


class Happened(Event):
    what: str


class Kept(Event, durable=True):
    what: str


class Work(Task[str], max_attempts=2, backoff=0.0, max_backoff=0.0):
    what: str


class Worker(Agent):
    """Does what the message says: raise that error, hang, or return."""

    lives: ClassVar[int] = 0
    handled: ClassVar[list[str]] = []
    busy: ClassVar[asyncio.Event]

    async def on_start(self) -> None:
        type(self).lives += 1

    async def _do(self, what: str) -> str:
        type(self).handled.append(what)
        if what == "hang":
            type(self).busy.set()
            await asyncio.Event().wait()
        if what in RAISED:
            raise RAISED[what]()
        return what

    @handler
    async def asked(self, request: Do) -> str:
        return await self._do(request.what)

    @handler
    async def told(self, event: Happened) -> None:
        await self._do(event.what)

    @handler
    async def kept(self, event: Kept) -> None:
        await self._do(event.what)

    @handler
    async def work(self, task: Work) -> str:
        return await self._do(task.what)


@pytest.fixture
async def worker(spawn: Spawn) -> AgentRef:
    Worker.lives, Worker.handled, Worker.busy = 0, [], asyncio.Event()
    return await spawn(Worker)


@pytest.mark.parametrize("kind", RAISED)
async def test_a_request_whose_handler_raises_is_answered_and_the_agent_lives(worker: AgentRef, kind: str) -> None:
    with pytest.raises(RemoteError) as caught:
        await worker.ask(Do(what=kind))
    assert caught.value.error_type == kind
    assert await worker.ask(Do(what="fine")) == "fine"
    assert Worker.lives == 1


@pytest.mark.parametrize("kind", RAISED)
async def test_an_event_whose_handler_raises_restarts_the_agent_and_its_mailbox_survives(
    worker: AgentRef, kind: str
) -> None:
    await worker.tell(Happened(what=kind))
    for n in range(20):
        await worker.tell(Happened(what=str(n)))
    assert await worker.ask(Do(what="last")) == "last"
    assert Worker.lives == 2
    assert Worker.handled == [kind, *map(str, range(20)), "last"]  # in order over the restart


async def test_an_event_handler_that_asks_a_stopped_agent_has_failed_as_with_any_error(spawn: Spawn) -> None:
    lives = 0

    class Asks(Agent):
        async def on_start(self) -> None:
            nonlocal lives
            lives += 1

        @handler
        async def told(self, event: Happened) -> None:
            raise AgentStoppedError("somebody-else")

        @handler
        async def asked(self, request: Prompt) -> str:
            return "here"

    ref = await spawn(Asks)
    await ref.tell(Happened(what="x"))
    assert await ref.ask(Prompt(text="")) == "here"
    assert lives == 2


@pytest.mark.parametrize("kind", ["ValueError", "Retry", "SystemExit", "CancelledError"])
async def test_a_task_whose_handler_raises_is_tried_again_and_then_a_dead_letter(worker: AgentRef, kind: str) -> None:
    job = await worker.submit(Work(what=kind))
    with pytest.raises(TaskDeadError, match=kind if kind != "Retry" else "retry"):
        await job.result(timeout=10)
    assert Worker.handled == [kind, kind]
    assert Worker.lives == 1


async def test_a_rejected_task_is_a_dead_letter_at_once(worker: AgentRef) -> None:
    job = await worker.submit(Work(what="Reject"))
    with pytest.raises(TaskDeadError, match="never"):
        await job.result(timeout=10)
    assert Worker.handled == ["Reject"]


@pytest.mark.parametrize(("kind", "attempts"), [("Reject", 1), ("Retry", 5)])
async def test_a_durable_event_is_tried_again_and_then_a_dead_letter_and_those_behind_it_follow(
    mesh: Mesh, worker: AgentRef, kind: str, attempts: int
) -> None:
    await worker.tell(Kept(what=kind))
    await worker.tell(Kept(what="next"))
    await eventually(lambda: "next" in Worker.handled, 10)
    assert Worker.handled == [kind] * attempts + ["next"]
    assert Worker.lives == 1
    (dead,) = await mesh.tasks.dead.ls()
    assert dead.attempts == attempts


async def test_a_stop_tells_the_asker_and_gives_the_task_back_at_once(mesh: Mesh, worker: AgentRef) -> None:
    asking = asyncio.create_task(worker.ask(Do(what="hang")))
    await Worker.busy.wait()
    await mesh.stop("worker", grace=0.0)
    with pytest.raises(AgentStoppedError):
        await asking

    Worker.busy.clear()
    again = await mesh.spawn(Worker)
    job = await again.submit(Work(what="hang"))
    await Worker.busy.wait()
    Worker.busy.clear()
    await mesh.stop("worker", grace=0.0)
    await mesh.spawn(Worker)
    async with asyncio.timeout(3):  # much less than the 10 s after which it would be given up for lost
        await Worker.busy.wait()
    assert await job.cancel()


async def test_a_task_that_runs_while_its_agent_is_restarted_is_done_soon_after(mesh: Mesh, worker: AgentRef) -> None:
    job = await worker.submit(Work(what="hang"))
    await Worker.busy.wait()
    Worker.busy.clear()
    assert mesh._host is not None
    await mesh._host.restart_agent("worker")
    async with asyncio.timeout(3):
        await Worker.busy.wait()
    assert await job.cancel()
    assert await worker.ask(Do(what="free again")) == "free again"


async def test_an_error_too_large_to_be_sent_is_shortened(spawn: Spawn) -> None:
    class Loud(Agent):
        @handler
        async def asked(self, request: Prompt) -> str:
            raise ValueError("x" * 3_000_000)

    ref = await spawn(Loud)
    with pytest.raises(RemoteError, match="xxx") as caught:
        await ref.ask(Prompt(text=""), timeout=5)
    assert len(caught.value.message) < 10_000


async def test_a_reply_too_large_to_be_sent_is_an_error_that_says_so(spawn: Spawn) -> None:
    class Big(Agent):
        @handler
        async def asked(self, request: Prompt) -> str:
            return "x" * 3_000_000

    ref = await spawn(Big)
    with pytest.raises(PayloadTooLargeError):
        await ref.ask(Prompt(text=""), timeout=5)


async def test_an_agent_that_asks_nobody_is_not_taken_for_nobody_itself(spawn: Spawn) -> None:
    class Asks(Agent):
        @handler
        async def asked(self, request: Prompt) -> AsyncIterator[str]:
            yield await self.mesh.ask("nowhere", request)

    ref = await spawn(Asks)
    with pytest.raises(NoSuchAgentError) as caught:
        async for _ in ref.stream(Prompt(text="")):
            pass
    assert caught.value.agent == "nowhere"
