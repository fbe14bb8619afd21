"""One simulated world: a model broker, and processes that run the product's own clients, workers and dispatchers."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import tenacity

from agentmesh import ids
from agentmesh.errors import AgentMeshError, BrokerError, QueueFullError, Reject, Retry
from agentmesh.messages import Task
from agentmesh.subjects import Subjects
from agentmesh.tasks import Chunk, Dispatcher, Job, Restarted, TaskClient, TaskContext, TaskWorker, records
from agentmesh.tasks.layout import RESULTS, TASKS
from agentmesh.transport import Transport, TransportOptions, connection
from tests.simulation.broker import EPOCH, Broker
from tests.simulation.history import History
from tests.simulation.link import Link
from tests.simulation.loop import DEAD, FROZEN, PROCESS, RUNNING, Process, SimLoop

ACK_WAIT = 2.0
AGENT = "worker"
TENANT = "t"


class Work(Task[str], max_attempts=3, backoff=0.3, time_limit=4.0):
    """Does in each attempt what its script says: `ok`, `raise`, `die`, `reject`, `retry`, `hang` or `stubborn`."""

    script: tuple[str, ...] = ("ok",)
    seconds: float = 0.1
    chunks: int = 0


class Once(Work, max_attempts=1):
    """The same, with one attempt."""


TYPES: dict[str, type[Task[Any]]] = {kind.__name__: kind for kind in (Work, Once)}


class Worker:
    """A worker process."""

    def __init__(self, process: Process, stop: asyncio.Event) -> None:
        self.process = process
        self.stop = stop


class World:
    """See the module. Use it inside `simulated`.

    Args:
        seed: Of everything that is drawn.
        shuffle: Whether callbacks that are ready at the same time run in an order that is drawn.
    """

    def __init__(self, seed: int, *, shuffle: bool = True) -> None:
        self.seed = seed
        self.history = History()
        self.loop = SimLoop(seed, shuffle=shuffle)
        self.loop.set_exception_handler(self._unhandled)
        self.broker = Broker(self.loop, seed ^ 0x5EED, self.tell)
        self.subjects = Subjects(TENANT)
        self.workers: dict[str, Worker] = {}
        self.processes: dict[str, Process] = {}
        self._count = itertools.count(1)

    def tell(self, kind: str, **details: Any) -> None:
        self.history.add(self.loop.time(), kind, details)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.tell("internal", what=context["message"], error=repr(context.get("exception")))

    # -- processes

    def process(self, name: str, main: Coroutine[Any, Any, None]) -> Process:
        """Start one; its name must be new."""
        process = self.processes[name] = Process(name)
        self.loop.spawn(process, self._guarded(process, main))
        return process

    async def _guarded(self, process: Process, main: Coroutine[Any, Any, None]) -> None:
        try:
            await main
        except BrokerError as error:
            self.tell("gave_up", who=process.name, error=type(error).__name__)
        except Exception as error:  # a bug of ours or of the product: nobody awaits this task
            self.tell("internal", what=f"{process.name} ended", error=repr(error))
        self._end(process)

    def crash(self, process: Process) -> None:
        """SIGKILL: nothing of it runs any more. What it wrote last is lost, or not."""
        if process.state != DEAD:
            self.tell("crash", who=process.name)
            self._end(process)

    def _end(self, process: Process) -> None:
        process.state = DEAD
        process.parked.clear()
        self.workers.pop(process.name, None)
        for link in self.links(process):
            if self.broker.random.random() < 0.5:
                link.generation += 1
            self.broker.forget(link)

    def links(self, process: Process) -> list[Link]:
        return [link for link in self.broker.links if link.process is process]

    def freeze(self, process: Process) -> None:
        if process.state == RUNNING:
            self.tell("freeze", who=process.name)
            process.state = FROZEN

    def resume(self, process: Process) -> None:
        if process.state == FROZEN:
            self.tell("resume", who=process.name)
            self.loop.resume(process)

    async def connect(self) -> Transport:
        """In a process."""
        process = PROCESS.get()
        assert process is not None
        return await Transport.connect(TransportOptions(url="nats://simulated:4222", name=process.name))

    # -- workers

    def start_worker(self, *, slots: int = 2, prefetch: int = 0) -> Process:
        name, stop = f"w{next(self._count)}", asyncio.Event()
        process = self.process(name, self._work(name, stop, slots, prefetch))
        self.workers[name] = Worker(process, stop)
        return process

    async def _work(self, name: str, stop: asyncio.Event, slots: int, prefetch: int) -> None:
        transport = await self.connect()
        worker = TaskWorker(
            transport, self.subjects, AGENT,
            types=TYPES, run=self._run, slots=slots, prefetch=prefetch, node=name, ack_wait=ACK_WAIT,
        )  # fmt: skip
        await worker.start()
        self.tell("ready", who=name)
        await stop.wait()
        await worker.stop(grace=0.5)
        await transport.close()
        self.tell("stopped", who=name)

    async def _run(self, task: Task[Any], ctx: TaskContext) -> str:
        """The handler."""
        process = PROCESS.get()
        assert process is not None
        assert isinstance(task, Work)
        self.tell("start", who=process.name, task=ctx.task_id, attempt=ctx.attempt)
        what = task.script[min(ctx.attempt, len(task.script)) - 1]
        for number in range(task.chunks):
            await ctx.chunk(f"{process.name}.{ctx.attempt}:{number} ")
            await asyncio.sleep(task.seconds / task.chunks)
        if not task.chunks:
            await asyncio.sleep(task.seconds)
        match what:
            case "raise":
                raise ValueError("no luck")
            case "die":
                self.crash(process)
                await asyncio.Event().wait()
            case "reject":
                raise Reject("cannot be done")
            case "retry":
                raise Retry(0.2, "later")
            case "hang":
                await asyncio.Event().wait()
            case "stubborn":
                await self._stubborn()
        self.tell("end", who=process.name, task=ctx.task_id, attempt=ctx.attempt)
        return f"{process.name}.{ctx.attempt}"

    async def _stubborn(self) -> None:
        until = self.loop.time() + 12.0
        while (left := until - self.loop.time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue

    # -- dispatchers

    def start_dispatcher(self) -> Process:
        name = f"d{next(self._count)}"
        return self.process(name, self._dispatch())

    async def _dispatch(self) -> None:
        async def locate(task_type: str) -> list[str]:
            return [AGENT] if task_type in TYPES else []

        dispatcher = Dispatcher(await self.connect(), self.subjects, locate, ack_wait=ACK_WAIT)
        await dispatcher.start()
        await asyncio.Event().wait()

    # -- what clients do; each tells what it learned

    async def submit(self, client: TaskClient, task: Task[str], task_id: str, **options: Any) -> Job[str]:
        """Until it is accepted."""
        while True:
            began = self.loop.time()
            try:
                job = await client.submit(task, task_id=task_id, **options)
            except QueueFullError:
                self.tell("full", task=task_id)
            except BrokerError as error:
                self.tell("unknown", task=task_id, waited=self.loop.time() - began, error=type(error).__name__)
            else:
                self.tell("accepted", task=task_id)
                return job
            await asyncio.sleep(0.5)

    async def cancel(self, client: TaskClient, task_id: str) -> bool:
        """Until it is known how it ended."""
        while True:
            try:
                won = await client.cancel(task_id, by="simulation")
            except BrokerError:
                await asyncio.sleep(0.5)
                continue
            self.tell("cancel", task=task_id, won=won)
            return won

    async def follow(self, job: Job[str]) -> None:
        """Wait for the decision."""
        outcome = await job.outcome()
        self.tell("told", task=job.id, status=outcome.status, by=outcome.by)

    async def read(self, job: Job[str]) -> None:
        """Read its chunks, as its reader puts them together."""
        text = ""
        async for event in job:
            if isinstance(event, Chunk):
                text += event.data
            elif isinstance(event, Restarted):
                text = ""
        outcome = await job.outcome()
        self.tell("read", task=job.id, text=text, status=outcome.status)

    # -- looking from outside

    def decided(self, task_id: str) -> bool:
        stream = self.broker.streams.get(RESULTS)
        return stream is not None and self.subjects.result(task_id) in stream.by_subject

    def queued(self) -> int:
        stream = self.broker.streams.get(TASKS)
        return len(stream.messages) if stream is not None else 0

    def close(self) -> None:
        self.loop.dispose()


@contextmanager
def simulated(seed: int, *, shuffle: bool = True) -> Iterator[World]:
    """A world, with the product's clock, ids, randomness and sockets in its hands."""
    world = World(seed, shuffle=shuffle)
    was_collecting = gc.isenabled()
    gc.disable()  # weak references must not depend on when the collector runs
    state = random.getstate()
    random.seed(seed)
    with _patched(world), _heard(world):
        try:
            yield world
        finally:
            world.close()
            random.setstate(state)
            if was_collecting:
                gc.enable()


@contextmanager
def _patched(world: World) -> Iterator[None]:
    clock = world.loop.time

    def now(zone: Any = None) -> datetime:
        return EPOCH + timedelta(seconds=clock())

    changes: list[tuple[Any, str, Any]] = [
        (connection, "NatsClient", lambda: Link(world.broker)),
        (ids, "time", SimpleNamespace(time_ns=lambda: int((EPOCH.timestamp() + clock()) * 1e9))),
        (ids, "datetime", SimpleNamespace(now=now)),
        (ids, "_prefix", "0badcafe"),
        (ids, "_count", itertools.count()),
        (tenacity, "time", SimpleNamespace(monotonic=clock)),
        (records, "time", SimpleNamespace(monotonic=clock)),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


class _Ear(logging.Handler):
    """Errors of ours in the log are part of the history."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, AgentMeshError):
            self._world.tell("internal", what=record.getMessage(), error=repr(error))


@contextmanager
def _heard(world: World) -> Iterator[None]:
    logger, ear = logging.getLogger("agentmesh"), _Ear(world)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(ear)
    try:
        yield
    finally:
        logger.removeHandler(ear)
        logger.propagate = propagate
