"""What a seed makes happen: which tasks are submitted, and which faults come when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from agentmesh.errors import BrokerError
from agentmesh.tasks import TaskClient
from agentmesh.transport import Transport
from tests.simulation.link import Link
from tests.simulation.loop import DEAD
from tests.simulation.world import AGENT, Once, Work, World

FAULTS_UNTIL = 10.0
"""Seconds; then everything is mended, and what was accepted has to be decided."""

PATIENCE = 120.0
"""Seconds after which a world whose faults are over must be at rest."""

_SCRIPTS = (
    ("ok",), ("ok",), ("ok",), ("ok",), ("raise", "ok"), ("die", "ok"), ("die",), ("raise",), ("retry", "ok"),
    ("reject",), ("hang",), ("stubborn",), ("raise", "die", "ok"),
)  # fmt: skip


@dataclass
class Plan:
    """One task, and what its clients do about it."""

    task_id: str
    task: Work
    at: float
    to: str | None
    priority: str
    deadline: float | None
    client: int
    again: list[tuple[float, int]] = field(default_factory=list)
    """When it is submitted again, and by which client."""
    cancel_at: float | None = None


Errand = Callable[[TaskClient, Plan], Awaitable[None]]


@dataclass
class Scenario:
    """All of a seed."""

    seed: int
    workers: int
    slots: int
    prefetch: int
    clients: int
    plans: list[Plan]
    faults: list[str]
    """Kinds of faults; empty: a calm world."""
    rate: float
    """Faults per second."""
    shuffle: bool
    """Whether what is ready at the same time runs in an order that is drawn."""

    @property
    def is_calm(self) -> bool:
        return not self.faults


KINDS = (
    "crash", "crash", "step", "freeze", "cut", "hole", "stall", "kill", "restart", "election", "full", "again",
    "leave", "client", "lag", "weather",
)  # fmt: skip


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rnd = random.Random(seed)
    clients = rnd.choice((1, 2))
    plans = [_plan(rnd, number, clients) for number in range(rnd.randint(4, 10))]
    calm = rnd.random() < 0.1
    kinds = [] if calm else sorted(set(rnd.choices(KINDS, k=rnd.choice((1, 2, 3, 6, 12)))))
    return Scenario(
        seed,
        workers=rnd.choice((1, 2, 2, 3)),
        slots=rnd.choice((1, 2, 4)),
        prefetch=rnd.choice((0, 0, 2)),
        clients=clients,
        plans=plans,
        faults=kinds,
        rate=rnd.choice((0.3, 1.0, 2.0)),
        shuffle=rnd.random() < 0.8,
    )


def _plan(rnd: random.Random, number: int, clients: int) -> Plan:
    kind = Once if rnd.random() < 0.1 else Work
    chunks = rnd.choice((0, 0, 0, 5))
    task = kind(script=rnd.choice(_SCRIPTS), seconds=rnd.choice((0.0, 0.01, 0.2, 1.0, 3.0)), chunks=chunks)
    plan = Plan(
        f"task-{number}",
        task,
        at=rnd.uniform(0.0, FAULTS_UNTIL * 0.8),
        to=AGENT if rnd.random() < 0.7 else None,
        priority=rnd.choice(("high", "normal", "normal", "low")),
        deadline=rnd.uniform(0.5, 6.0) if rnd.random() < 0.15 else None,
        client=rnd.randrange(clients),
    )
    if rnd.random() < 0.25:
        later = [plan.at + rnd.choice((0.0, 0.01, 1.0, 6.0)) for _ in range(rnd.randint(1, 2))]
        plan.again = [(at, rnd.randrange(clients)) for at in later]
    if rnd.random() < 0.2:
        plan.cancel_at = plan.at + rnd.choice((-0.5, 0.0, 0.05, 0.5, 2.0))
    return plan


class Play:
    """Makes a scenario happen in a world."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world = world
        self.scenario = scenario
        self.random = random.Random(scenario.seed ^ 0xC4A05)
        self._undo: list[Callable[[], None]] = []
        self._left = {number: len(self._errands(number)) for number in range(scenario.clients)}
        """Errands that are not done, by client."""

    # -- the course of events

    def run(self) -> None:
        self.world.loop.run_until_complete(self._run())

    async def _run(self) -> None:
        world, scenario = self.world, self.scenario
        for _ in range(scenario.workers):
            self._start_worker()
        dispatcher = world.start_dispatcher()
        for number in range(scenario.clients):
            world.process(f"c{number}", self._client(number))
        if not scenario.is_calm:
            await self._chaos()
            self._mend()
            if dispatcher.state == DEAD:
                world.start_dispatcher()
        await self._rest()

    def _start_worker(self) -> None:
        self.world.start_worker(slots=self.scenario.slots, prefetch=self.scenario.prefetch)

    async def _rest(self) -> None:
        """Wait until everything is done, with as many workers as ever."""
        world = self.world
        give_up = max(world.loop.time(), FAULTS_UNTIL) + PATIENCE
        while not self._is_done():
            if world.loop.time() > give_up:
                world.tell("restless", queued=world.queued(), errands=sum(self._left.values()))
                break
            self._staff()
            await asyncio.sleep(0.25)
        await asyncio.sleep(1.0)
        world.tell("rest", queued=world.queued(), pending=self._pending())

    def _is_done(self) -> bool:
        return not any(self._left.values()) and self.world.queued() == 0 and self.world.loop.time() > FAULTS_UNTIL

    def _pending(self) -> int:
        return sum(len(consumer.pending) for consumer in self.world.broker.consumers.values())

    def _staff(self) -> None:
        """What a supervisor does."""
        while len(self.world.workers) < self.scenario.workers:
            self._start_worker()

    # -- clients

    def _errands(self, number: int) -> list[tuple[float, Errand, Plan]]:
        """What a client does, and when."""
        errands: list[tuple[float, Errand, Plan]] = []
        for plan in self.scenario.plans:
            if plan.client == number:
                errands.append((plan.at, self._follow, plan))
                if plan.cancel_at is not None:
                    errands.append((plan.cancel_at, self._cancel, plan))
            errands += [(at, self._follow, plan) for at, client in plan.again if client == number]
        return errands

    async def _client(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        client = TaskClient(await self._connected(), self.world.subjects)
        errands = [self._run_errand(number, client, *errand) for errand in self._errands(number)]
        await asyncio.gather(*map(loop.create_task, errands))
        await asyncio.Event().wait()

    async def _connected(self) -> Transport:
        while True:
            try:
                return await self.world.connect()
            except BrokerError:
                await asyncio.sleep(0.5)

    async def _run_errand(self, number: int, client: TaskClient, at: float, errand: Errand, plan: Plan) -> None:
        await asyncio.sleep(max(0.0, at - self.world.loop.time()))
        await errand(client, plan)
        self._left[number] -= 1

    async def _follow(self, client: TaskClient, plan: Plan) -> None:
        world = self.world
        world.tell("submit", task=plan.task_id)
        job = await world.submit(
            client, plan.task, plan.task_id, to=plan.to, priority=plan.priority, deadline=plan.deadline
        )
        if plan.task.chunks:
            await world.read(job)
        await world.follow(job)

    async def _cancel(self, client: TaskClient, plan: Plan) -> None:
        await self.world.cancel(client, plan.task_id)

    # -- faults

    async def _chaos(self) -> None:
        loop, scenario = self.world.loop, self.scenario
        if "weather" in scenario.faults:
            faults = self.world.broker.faults
            faults.lose_replies = self.random.choice((0.0, 0.05, 0.3))
            faults.lose_events = self.random.choice((0.0, 0.1, 0.5))
            faults.lose_sent = self.random.choice((0.0, 0.02, 0.1))
        if "lag" in scenario.faults:
            self.world.broker.faults.lag = 0.5
        kinds = [kind for kind in scenario.faults if kind not in ("weather", "lag")]
        while (left := FAULTS_UNTIL - loop.time()) > 0:
            await asyncio.sleep(min(left, self.random.expovariate(scenario.rate)))
            if kinds and loop.time() < FAULTS_UNTIL:
                self._fault(self.random.choice(kinds))
            if self.random.random() < 0.5:
                self._staff()

    def _fault(self, kind: str) -> None:
        world, rnd, loop = self.world, self.random, self.world.loop
        self.world.tell("fault", what=kind)
        pause = rnd.choice((0.1, 0.5, 2.0, 5.0))
        workers = list(world.workers.values())
        victim = rnd.choice(workers).process if workers else None
        match kind:
            case "crash" if victim is not None:
                world.crash(victim)
            case "step" if victim is not None:
                process = victim
                process.on_last_step = lambda: world.crash(process)
                process.steps_left = rnd.choice((5, 20, 60, 200))
            case "freeze" if victim is not None:
                world.freeze(victim)
                self._later(pause, lambda p=victim: world.resume(p))  # type: ignore[misc]
            case "cut":
                lost = rnd.random() < 0.5
                self._on_a_link(lambda link: link.cut(pause, lose_buffered=lost))
            case "hole":
                self._on_a_link(lambda link: setattr(link, "hole_until", loop.time() + pause))
            case "stall":
                for link in world.broker.links:
                    link.hole_until = loop.time() + pause
            case "kill" | "restart" if world.broker.is_up:
                world.broker.stop(kill=kind == "kill")
                self._later(pause, world.broker.start)
            case "election":
                world.broker.has_jetstream = False
                self._later(pause, self._elected)
            case "full":
                self._fill(pause)
            case "again":
                self._deliver_again()
            case "leave" if workers:
                leaving = rnd.choice(workers)
                world.tell("leave", who=leaving.process.name)
                world.workers.pop(leaving.process.name, None)
                leaving.stop.set()
            case "client":
                self._lose_client()

    def _later(self, pause: float, undo: Callable[[], None]) -> None:
        self._undo.append(undo)
        self.world.loop.call_later(pause, undo)

    def _on_a_link(self, do: Callable[[Link], None]) -> None:
        links = list(self.world.broker.links)
        if links:
            do(self.random.choice(links))

    def _elected(self) -> None:
        self.world.broker.has_jetstream = True

    def _fill(self, pause: float) -> None:
        streams = list(self.world.broker.streams.values())
        if streams:
            stream = self.random.choice(streams)
            stream.full = True
            self._later(pause, lambda: setattr(stream, "full", False))

    def _deliver_again(self) -> None:
        consumers = [consumer for consumer in self.world.broker.consumers.values() if consumer.pending]
        if consumers:
            consumer = self.random.choice(consumers)
            consumer.deliver_again(self.random.choice(list(consumer.pending)))

    def _lose_client(self) -> None:
        """The second one may die; what it had accepted is decided all the same."""
        if 1 in self._left:
            self._left[1] = 0
            self.world.crash(self.world.processes["c1"])

    def _mend(self) -> None:
        world = self.world
        for undo in self._undo:
            undo()
        world.broker.faults = type(world.broker.faults)()
        for link in world.broker.links:
            link.hole_until = 0.0
        for worker in list(world.workers.values()):
            worker.process.steps_left = -1
        world.tell("mended")


def play(world: World, scenario: Scenario) -> None:
    """Make it happen."""
    Play(world, scenario).run()
