"""L3 in simulated worlds: a tree of tasks ends completely, whatever dies, freezes or gets lost while it does."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable

import pytest

from agentmesh.messages import Task
from agentmesh.tasks import TaskClient, TaskContext
from agentmesh.tasks.layout import RESULTS
from agentmesh.transport import Transport
from tests.simulation.loop import PROCESS
from tests.simulation.world import ACK_WAIT, AGENT, TYPES, Work, World, simulated

SEEDS = 25
TROUBLE = 8.0
"""Seconds of faults; in the middle of them the root is cancelled."""

QUIET = 4 * ACK_WAIT
"""Seconds after the faults within which everything below the root has ended: a redelivery for each level."""

LEVELS, FAN = 2, 2


class Tree(Work, max_attempts=1000, time_limit=1000.0, backoff=0.05):
    """Submits `FAN` trees that are one level lower, and has an effect every 0.1 s, for ever."""

    level: int = LEVELS


class Orchard:
    """Grows one tree in a world, and breaks things around it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = random.Random(world.seed)
        self.transports: dict[str, Transport] = {}
        self.connect = world.connect
        self.undo: list[Callable[[], None]] = []
        world.connect = self._connect  # type: ignore[method-assign]
        world._run = self._grow  # type: ignore[method-assign]

    async def _connect(self) -> Transport:
        process = PROCESS.get()
        assert process is not None
        transport = self.transports[process.name] = await self.connect()
        return transport

    async def _grow(self, task: Task[str], ctx: TaskContext) -> str:
        process = PROCESS.get()
        assert process is not None
        assert isinstance(task, Tree)
        world, level = self.world, task.level
        world.tell("start", who=process.name, task=ctx.task_id, level=level)
        client = TaskClient(self.transports[process.name], world.subjects)
        for _ in range(FAN if level else 0):
            await client.submit(Tree(level=level - 1), to=AGENT)
        while True:
            world.tell("effect", who=process.name, task=ctx.task_id)
            await asyncio.sleep(0.1)

    def run(self) -> None:
        self.world.loop.run_until_complete(self._run())

    async def _run(self) -> None:
        world = self.world
        world.process("c1", self._client())
        while world.loop.time() < TROUBLE:
            self._staff()
            await asyncio.sleep(self.random.expovariate(1.5))
            self._fault()
        for undo in self.undo:
            undo()
        world.broker.faults = type(world.broker.faults)()
        while world.loop.time() < TROUBLE + QUIET or world.queued():
            self._staff()
            await asyncio.sleep(0.25)
            if world.loop.time() > TROUBLE + 120.0:
                break
        world.tell("quiet")
        await asyncio.sleep(2.0)

    def _staff(self) -> None:
        while len(self.world.workers) < 2:
            self.world.start_worker(slots=20)

    async def _client(self) -> None:
        client = TaskClient(await self.world.connect(), self.world.subjects)
        await self.world.submit(client, Tree(), "root", to=AGENT)
        await asyncio.sleep(self.random.uniform(0.0, TROUBLE))
        await self.world.cancel(client, "root")
        await asyncio.Event().wait()

    def _fault(self) -> None:
        world, rnd = self.world, self.random
        victim = rnd.choice(list(world.workers.values())).process if world.workers else None
        pause = rnd.choice((0.1, 0.5, 2.0))
        match rnd.choice(("crash", "freeze", "deaf", "cut", "kill")):
            case "crash" if victim is not None:
                world.crash(victim)
            case "freeze" if victim is not None:
                world.freeze(victim)
                self._later(pause, lambda: world.resume(victim))
            case "deaf":
                world.broker.faults.lose_events = 1.0  # prompts get lost
            case "cut" if world.broker.links:
                rnd.choice(list(world.broker.links)).cut(pause, lose_buffered=rnd.random() < 0.5)
            case "kill" if world.broker.is_up:
                world.broker.stop(kill=True)
                self._later(pause, world.broker.start)

    def _later(self, pause: float, undo: Callable[[], None]) -> None:
        self.undo.append(undo)
        self.world.loop.call_later(pause, undo)


def broken(world: World) -> list[str]:
    """What of the tree's end is not as promised."""
    events = world.history
    started = {event["task"] for event in events.of("start")}
    decided = {}
    for event in events.of("store"):
        if event["stream"] == RESULTS:
            decided[event["subject"].rpartition(".")[2]] = json.loads(event["data"])["status"]
    quiet = next(event.time for event in events.of("quiet"))
    late = {event["task"] for event in events.of("start", "effect") if event.time > quiet}
    return [
        *(f"internal error: {event['error']}" for event in events.of("internal")),
        *(f"{task} is {decided.get(task)}" for task in sorted(started) if decided.get(task) != "cancelled"),
        *(f"{task} goes on" for task in sorted(late)),
        *([f"{world.queued()} tasks are left in the queue"] if world.queued() else []),
    ]


@pytest.fixture(autouse=True)
def _trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TYPES, "Tree", Tree)


def play(seed: int) -> list[str]:
    """What is broken in the world of this seed."""
    with simulated(seed) as world:
        Orchard(world).run()
        return broken(world)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_t3_a_tree_ends_whatever_happens_meanwhile(seed: int) -> None:
    assert play(seed) == []


def test_a_worker_that_does_not_look_at_the_parent_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh.tasks.pulse._LOOK_EVERY", 10**9)

    assert any(play(seed) for seed in range(SEEDS))


def test_a_worker_that_knows_no_parents_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh.tasks.wire.TaskBody.master_id", "")

    assert any(play(seed) for seed in range(SEEDS))
