"""A process that submits, asks, tells and cancels, and records what it was told: `python -m agentmesh.chaos.submitter`.

It reads its options from standard input. SIGTERM ends the submitting; the process ends when all it submitted is
decided. With `read` among its options it only reads what was decided about those tasks, as another process would.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

import msgspec

from agentmesh.chaos import agents, failpoints
from agentmesh.chaos.history import Recorder, watch_loop
from agentmesh.chaos.load import Planned, planned
from agentmesh.client import Client
from agentmesh.errors import AgentMeshError, BrokerUnavailableError, PublishTimeoutError
from agentmesh.subjects import Subjects
from agentmesh.supervisor.child import begin, configure_logging
from agentmesh.tasks.job import Job
from agentmesh.transport import Transport, TransportOptions

ASK_TIMEOUT = 3.0
UNDER_WAY = 64
"""Things done at the same time; while the broker is away they wait here."""


class Options(msgspec.Struct):
    """What a submitter is told."""

    role: str
    history: str
    urls: list[str]
    tenant: str
    seed: int = 0
    number: int = 0
    life: int = 0
    rate: float = 10.0
    replicas: int = 1
    without: list[str] = []
    read: list[str] = []
    """Tasks whose outcome is to be read, instead of submitting."""


class Submitter:
    """See the module."""

    def __init__(self, options: Options, client: Client, record: Recorder) -> None:
        self._options = options
        self._client = client
        self._record = record
        self._stopping = asyncio.Event()
        self._room = asyncio.Semaphore(UNDER_WAY)
        self._work: set[asyncio.Task[None]] = set()
        self._notes: asyncio.Queue[Planned] = asyncio.Queue()

    async def run(self) -> None:
        """Submit until SIGTERM, then wait until everything is decided."""
        options = self._options
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopping.set)
        watching = asyncio.get_running_loop().create_task(watch_loop(self._record))
        self._begin(self._tell_notes())
        for step in planned(options.seed, options.number, options.life, options.rate):
            if await self._stops_within(step.pause):
                break
            if step.step == "note":
                self._notes.put_nowait(step)
                continue
            await self._room.acquire()
            self._begin(self._ask(step) if step.step == "ask" else self._submit(step))
        while self._work:
            await asyncio.wait(self._work)
        watching.cancel()

    async def read(self, task_ids: list[str]) -> None:
        """Read what was decided about each."""
        for task_id in task_ids:
            await self._decided(self._client.job(task_id))

    async def _stops_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._record.write("broken", error=repr(error))

    # ------------------------------------------------------------ tasks

    async def _submit(self, step: Planned) -> None:
        task_id = f"{self._options.role}-{self._options.life}-{step.n}"
        try:
            job = await self._accepted(step, task_id)
        finally:
            self._room.release()
        if job is None:
            return
        if step.cancel_after is not None:
            self._begin(self._cancel(task_id, step.cancel_after))
        await self._decided(job)

    async def _accepted(self, step: Planned, task_id: str) -> Job[int] | None:
        """Submit, and again under the same id while the outcome is unknown."""
        task = (
            agents.Doomed(n=step.n)
            if step.step == "doomed"
            else agents.Work(n=step.n, seconds=step.seconds, failures=step.failures)
        )
        to = agents.NAME if step.addressed else None
        self._record.write(
            "submitting",
            task=task_id,
            step=step.step,
            deadline=step.deadline,
            delay=step.delay,
            copied=not step.addressed or step.delay is not None,
        )
        began = time.monotonic()
        while True:
            try:
                job = await self._client.tasks.submit(
                    task, to=to, task_id=task_id, priority=step.priority, deadline=step.deadline, delay=step.delay
                )
            except PublishTimeoutError as error:
                self._record.write("unknown", task=task_id, error=str(error), seconds=time.monotonic() - began)
            except AgentMeshError as error:
                self._record.write("refused", task=task_id, error=repr(error), seconds=time.monotonic() - began)
                return None
            else:
                self._record.write("accepted", task=task_id, seconds=round(time.monotonic() - began, 4))
                return job

    async def _decided(self, job: Job[Any]) -> None:
        body = await job.outcome()
        self._record.write("decided", task=job.id, status=body.status, by=body.by)

    async def _cancel(self, task_id: str, after: float) -> None:
        await asyncio.sleep(after)
        while True:
            try:
                won = await self._client.tasks.cancel(task_id)
            except AgentMeshError as error:
                self._record.write("uncancelled", task=task_id, error=repr(error))
                await asyncio.sleep(0.2)
            else:
                self._record.write("cancelled", task=task_id, won=won)
                return

    # ------------------------------------------------------------ requests and events

    async def _ask(self, step: Planned) -> None:
        began = time.monotonic()
        outcome = "a reply"
        try:
            answer = await self._client.ask(
                agents.NAME, agents.Echo(n=step.n, seconds=step.seconds), timeout=ASK_TIMEOUT
            )
            if answer != step.n:
                outcome = f"the wrong reply {answer!r}"
        except AgentMeshError as error:
            outcome = type(error).__name__
        finally:
            self._room.release()
        seconds = time.monotonic() - began
        self._record.write("asked", n=step.n, outcome=outcome, seconds=round(seconds, 3), timeout=ASK_TIMEOUT)

    async def _tell_notes(self) -> None:
        """Tell durable events one after the other: their order is promised. One of unknown fate is not repeated."""
        sender = f"{self._options.role}-{self._options.life}"
        while not (self._stopping.is_set() and self._notes.empty()):
            try:
                async with asyncio.timeout(0.2):
                    step = await self._notes.get()
            except TimeoutError:
                continue
            try:
                await self._client.tell(agents.NAME, agents.Note(sender=sender, n=step.n))
            except AgentMeshError as error:
                self._record.write("untold", sender=sender, n=step.n, error=repr(error))
            else:
                self._record.write("told", sender=sender, n=step.n)


async def main(options: Options) -> None:
    record = Recorder(options.history, options.role)
    failpoints.switch_off(options.without)
    transport = await _connect(options)
    record.write("ready")
    async with transport:
        submitter = Submitter(options, Client(transport, Subjects(options.tenant), options.role), record)
        await (submitter.read(options.read) if options.read else submitter.run())
    record.write("finished")


async def _connect(options: Options) -> Transport:
    while True:
        try:
            return await Transport.connect(
                TransportOptions(url=options.urls, name=options.role, replicas=options.replicas)
            )
        except BrokerUnavailableError:
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    given = msgspec.json.decode(begin(), type=Options)
    configure_logging("text", "INFO")
    sys.exit(asyncio.run(main(given)))
