"""The agents of one process: spawned, supervised, found, and stopped together.

Each agent replica is the child of a supervisor of its own: a cell (mailbox and instance), the worker that pulls its
tasks, and its durable mailbox. The host answers who is here, tells when agents come and go, cancels requests whose
asker has gone, and registers every agent as a NATS micro service, so that any client can list, ping and inspect it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from agentmesh import registry
from agentmesh.agent import Agent, AgentCell, CellOptions
from agentmesh.agent.barrier import Barrier
from agentmesh.agent.durable import DurableMailbox
from agentmesh.asking import CANCEL
from agentmesh.client import Client
from agentmesh.crashes import Crashes, recorded
from agentmesh.errors import AgentMeshError, AgentStoppedError, ConfigError, Finish
from agentmesh.figures import agent_families
from agentmesh.flight import FlightRecorder
from agentmesh.limits import Limit
from agentmesh.metrics import METRICS, Family, metrics_of
from agentmesh.metrics import serve as serve_metrics
from agentmesh.orders import StandingOrders
from agentmesh.presence import Heart
from agentmesh.registry import AgentInfo, MessageInfo, near_misses
from agentmesh.supervisor import ChildSpec, Exit, RestartPolicy, Supervisor
from agentmesh.tasks import TaskWorker
from agentmesh.transport import Endpoint, Message, Service, Subscription
from agentmesh.version import __version__

log = logging.getLogger("agentmesh.host")

OVERDUE_PERIOD = 0.25
"""Seconds between looks for handlers whose asker has stopped waiting."""

REPLACE_GRACE = 5.0
"""Seconds an agent gets to finish when another one takes its name and replica number."""

REPORT_TIMEOUT = 1.0
"""Seconds that a stopping host gives itself to write crash reports."""

BLOCKED = 1.0
"""Seconds the event loop must stand still to be worth a warning."""


F = TypeVar("F", TaskWorker, DurableMailbox)


class Hosted:
    """One replica with everything that feeds it; a child of a supervisor of its own."""

    def __init__(self, host: Host, cell: AgentCell) -> None:
        self.cell = cell
        self.key = (cell.name, cell.replica)
        self.begun = asyncio.Event()
        """The first start is over, well or badly."""
        self._host = host
        self._supervisor: Supervisor | None = None
        self._worker: TaskWorker | None = None
        self._durable: DurableMailbox | None = None
        self._registered: Service | None = None
        self._stopped = False
        if host.recorder is not None:
            cell.record = recorded(cell, host.recorder)
        cell.on_crash = lambda crash: host.crashes.crashed(cell, crash)
        self.obey()

    def obey(self) -> None:
        """Hold to the standing orders."""
        cell, orders = self.cell, self._host.orders
        pause, quarantines = orders.pause_of(cell.name), orders.quarantined(cell.name)
        cell.barrier = Barrier(cell.name, pause, quarantines) if pause or quarantines else None
        for feed in (self._worker, self._durable):
            if feed is not None:
                feed.pause() if pause else feed.resume()

    async def start(self) -> Hosted:
        """Start, or start again after a failure: a new instance, the same mailbox."""
        cell = self.cell
        try:
            await cell.start()
        finally:
            await self._host.announce(self)
        if self._worker is None and cell.behaviour.tasks:
            self._worker = await self._fed_by(self._task_worker())
        if self._durable is None and cell.behaviour.durable_events:
            self._durable = await self._fed_by(DurableMailbox(cell))
        if self._registered is None:
            self._registered = self._host.services.add(self._service())
        self.obey()  # what changed while it was starting
        return self

    async def _fed_by(self, feed: F) -> F:
        try:
            if self._host.orders.pause_of(self.cell.name):
                feed.pause()
            await feed.start()
            if self._stopped:  # in the middle of this
                raise AgentStoppedError(self.cell.name)
        except BaseException:
            await feed.stop(0.0)
            raise
        return feed

    def _task_worker(self) -> TaskWorker:
        cell = self.cell
        return TaskWorker(
            cell.client.transport,
            cell.client.subjects,
            cell.name,
            types=cell.behaviour.tasks,
            run=cell.run_task,
            slots=cell.concurrency,
            prefetch=cell.prefetch,
            node=self._host.node,
            client=cell.client.tasks,
            limits=cell.limits,
            tenant_limits=self._host.limits,
        )

    def supervise(self, policy: RestartPolicy, on_escalation: Callable[[BaseException], None]) -> None:
        """Have it started again when it fails: one agent's failures never count against another's."""
        name = f"{self.cell.name}.{self.cell.replica}"
        supervisor = Supervisor(name, policy=policy, on_escalation=on_escalation)
        supervisor.adopt(ChildSpec(name, self.start, restart=self.cell.restart_type), self)
        self._supervisor = supervisor

    async def wait(self) -> Exit:
        """Wait for the end of this life."""
        error = await asyncio.shield(self.cell.failed)
        exit = Exit(detail=str(error)) if isinstance(error, Finish) else Exit(error)
        self._host.on_exit(self.cell.name, exit)
        return exit

    async def stop(self, timeout: float) -> None:
        """Stop taking messages and tasks, and finish or give back what is under way. For the supervisor."""
        await self._end(timeout)

    async def end(self, grace: float, *, kill: bool = False) -> None:
        """Stop for good. A killed agent is not asked to clean up."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            await supervisor.release()
        await self._end(0.0 if kill else grace, hooks=not kill)

    async def _end(self, grace: float, *, hooks: bool = True) -> None:
        self._stopped = True
        if self._registered is not None:
            self._host.services.remove(self._registered)
        await asyncio.gather(self._stop_feeding(grace), self.cell.stop(grace, hooks=hooks))
        await self._host.announce(self)

    async def _stop_feeding(self, grace: float) -> None:
        worker, self._worker = self._worker, None
        durable, self._durable = self._durable, None
        await asyncio.gather(*(feed.stop(grace) for feed in (worker, durable) if feed is not None))

    def info(self, brief: bool) -> AgentInfo:
        """What others see of this replica."""
        cell = self.cell
        info = AgentInfo(
            name=cell.name,
            node=self._host.node,
            replica=cell.replica,
            state="paused" if cell.state == "ready" and cell.barrier and cell.barrier.pause else cell.state,
            mailbox=len(cell.mailbox),
            in_flight=cell.in_flight,
            handled=cell.counters.handled,
            failed=cell.counters.failed,
            restarts=cell.counters.restarts,
            started_at=cell.started_at,
            pid=os.getpid(),
            host=self._host.hostname,
            problem=cell.problem,
            remark=cell.remark,
            life=self._host.heart.life,
        )
        if not brief:
            info.description = cell.behaviour.description
            info.messages = [msgspec.convert(entry, MessageInfo) for entry in cell.behaviour.describe()]
        return info

    @property
    def worker(self) -> TaskWorker | None:
        """What takes its tasks, if it takes any."""
        return self._worker

    def _service(self) -> Service:
        cell = self.cell
        subjects = cell.client.subjects
        messages = Endpoint(
            name="messages",
            subject=subjects.mailbox(cell.name),
            queue_group=subjects.mailbox_group(cell.name),
            metadata={"messages": ", ".join(cell.behaviour.handlers)},
        )
        return AgentService(
            name=cell.name,
            version=__version__,
            description=cell.behaviour.description,
            metadata={"agentmesh.node": self._host.node, "agentmesh.tenant": subjects.tenant},
            endpoints=[messages],
            counts=False,
            cell=cell,
        )


@dataclass(kw_only=True)
class AgentService(Service):
    """The micro service of one replica; its statistics are those of the cell."""

    cell: AgentCell

    def answer(self, verb: str) -> dict[str, Any]:
        counters, (messages,) = self.cell.counters, self.endpoints
        messages.requests, messages.errors = counters.handled + counters.failed, counters.failed
        messages.processing_time, messages.last_error = counters.busy, self.cell.problem
        return super().answer(verb)


class Host:
    """See the module.

    Args:
        client: The connection.
        node: Name of this process.
        policy: How often a failing agent is started again; then it stays down, and `on_escalation` is called.
        limits: Bounds on all tasks of the tenant, as far as they are run here.
    """

    def __init__(
        self, client: Client, node: str, *, policy: RestartPolicy | None = None, limits: tuple[Limit, ...] = ()
    ) -> None:
        self.client = client
        self.node = node
        self.hostname = socket.gethostname()
        self.heart = Heart(client.transport, client.subjects, node)
        self.services = client.transport.services
        self.on_escalation: Callable[[str, BaseException], None] | None = None
        self.limits = limits
        """Of all tasks of the tenant."""
        self.recorder: FlightRecorder | None = None
        """Set before agents come, in a process whose predecessor died."""
        self.on_exit: Callable[[str, Exit], None] = lambda name, exit: None
        """Called with the name of an agent here whose life has ended by itself."""
        self._policy = policy or RestartPolicy()
        self.orders = StandingOrders(client.transport, client.subjects, node, self._obey)
        self.crashes = Crashes(client, node, self.orders)
        self._hosted: dict[tuple[str, int], Hosted] = {}
        self._closed = False
        self._broken: dict[str, AgentInfo] = {}
        self._subscriptions: list[Subscription] = []
        self._overdue: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._forget_metrics: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Begin to answer. Agents come with `spawn`."""
        subjects, transport = self.client.subjects, self.client.transport
        self._subscriptions = [
            await transport.subscribe(subjects.control(registry.WHO), self._on_who),
            await transport.subscribe(subjects.control(CANCEL), self._on_cancel),
        ]
        self._forget_metrics = metrics_of(transport).add_source(self._families)
        answers = await serve_metrics(transport, subjects.control(METRICS), self.node)
        self._subscriptions += [answers] if answers is not None else []
        await self.orders.start()
        await self.services.start()
        await self.heart.start()
        self._overdue = asyncio.get_running_loop().create_task(self._watch_overdue(), name="overdue requests")

    def _obey(self) -> None:
        for hosted in self._hosted.values():
            hosted.obey()
            self._later(self.announce(hosted))

    async def spawn(
        self,
        agent_class: type[Agent],
        options: CellOptions | None = None,
        *,
        factory: Callable[[], Agent] | None = None,
    ) -> AgentCell:
        """Start one replica and supervise it.

        Args:
            agent_class: The agent.
            options: Name, replica number and settings that differ from the class's; an agent of the same name and
                replica number is replaced.
            factory: Makes the instance; by default the class is called with the options' arguments.

        Raises:
            DefinitionError: The agent or a setting cannot work.
            AgentStoppedError: It was stopped while it started.
            Exception: Whatever the constructor or `on_start` raises the first time.
        """
        chosen = options or CellOptions()
        make = factory or (lambda: agent_class(*chosen.args, **chosen.kwargs))
        hosted = Hosted(self, AgentCell(self.client, agent_class, make, chosen))
        while (old := self._hosted.get(hosted.key)) is not None:
            await old.begun.wait()
            await self._end(old, REPLACE_GRACE)
        if self._closed:
            raise AgentStoppedError(hosted.cell.name)
        self._hosted[hosted.key] = hosted
        try:
            await hosted.start()
            hosted.supervise(self._policy, lambda error: self._gave_up(hosted, error))
        except BaseException:
            await self._end(hosted, 0.0)
            raise
        finally:
            hosted.begun.set()
        self._broken.pop(hosted.cell.name, None)
        return hosted.cell

    def _gave_up(self, hosted: Hosted, error: BaseException) -> None:
        log.error("%s stays down: %s", hosted.cell.name, error)
        hosted.cell.state, hosted.cell.problem = "failed", str(error)
        self.crashes.gave_up(hosted.cell, error)
        if self.on_escalation is not None:
            self.on_escalation(hosted.cell.name, error)

    def report_broken(self, name: str, problem: str) -> None:
        """Show an agent that could not even be made, for example because its module cannot be imported."""
        self._broken[name] = AgentInfo(
            name=name,
            node=self.node,
            state="failed",
            problem=problem,
            pid=os.getpid(),
            host=self.hostname,
            life=self.heart.life,
        )

    async def stop_agent(self, name: str, *, grace: float = 10.0, replica: int | None = None) -> int:
        """Stop the replicas of an agent here, or one of them; returns how many there were."""
        self._broken.pop(name, None)
        return await self._end_all(self._replicas(name, replica), grace)

    async def kill_agent(self, name: str) -> int:
        """End the replicas of an agent here at once, without `on_stop`; those who wait are told."""
        return await self._end_all(self._replicas(name), 0.0, kill=True)

    async def restart_agent(self, name: str) -> int:
        """Start the replicas of an agent here anew, one after the other; the mailboxes stay."""
        replicas = self._replicas(name)
        for hosted in replicas:
            await hosted.cell.restart()
        return len(replicas)

    def _replicas(self, name: str, replica: int | None = None) -> list[Hosted]:
        return [one for key, one in self._hosted.items() if key[0] == name and replica in (None, key[1])]

    async def drain(self, grace: float) -> None:
        """Stop every agent and stop answering. Tasks not done in time are given back. No agent comes after that."""
        self._closed = True
        await self._end_all(list(self._hosted.values()), grace)
        await self.heart.stop()
        if self._overdue is not None:
            self._overdue.cancel()
        await self.orders.stop()
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()
        self._forget_metrics()
        await self.crashes.flush(REPORT_TIMEOUT if self.client.transport.is_connected else 0.0)

    def infos(self, name: str = "", brief: bool = False) -> list[AgentInfo]:
        """The replicas here."""
        running = [hosted.info(brief) for hosted in self._hosted.values()]
        return [info for info in (*running, *self._broken.values()) if name in ("", info.name)]

    async def announce(self, hosted: Hosted) -> None:
        """Say that the state of a replica changed."""
        if self._hosted.get(hosted.key) is hosted:
            await self.heart.changed(hosted.info(brief=True))

    async def _end_all(self, ending: list[Hosted], grace: float, *, kill: bool = False) -> int:
        """Stop them at the same time; one that cannot be stopped does not keep the others."""
        results = await asyncio.gather(*(self._end(one, grace, kill=kill) for one in ending), return_exceptions=True)
        for one, problem in zip(ending, results, strict=True):
            if problem is not None:
                log.error("%s could not be stopped in good order", one.cell.name, exc_info=problem)
        return len(ending)

    async def _end(self, hosted: Hosted, grace: float, *, kill: bool = False) -> None:
        try:
            await hosted.end(grace, kill=kill)
        finally:
            if self._hosted.get(hosted.key) is hosted:
                del self._hosted[hosted.key]

    def _families(self) -> list[Family]:
        """What the agents here have counted, whenever somebody wants to know."""
        return agent_families((hosted.info(brief=True), hosted.cell, hosted.worker) for hosted in self._hosted.values())

    # ------------------------------------------------------------ control
    def _on_who(self, message: Message) -> None:
        try:
            question = msgspec.json.decode(message.data, type=registry.Who) if message.data else registry.Who()
        except msgspec.MsgspecError:
            return
        if message.reply:
            infos = self.infos(question.name, question.brief)
            for part in registry.encode_in_parts(infos, self.client.transport.max_payload):
                self._answer(message.reply, part)

    def _answer(self, subject: str, data: bytes) -> None:
        self._later(self.client.transport.publish(subject, data))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        answer = asyncio.get_running_loop().create_task(work)
        self._answers.add(answer)
        answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Task[None]) -> None:
        self._answers.discard(answer)
        if not answer.cancelled():
            with contextlib.suppress(AgentMeshError):  # whoever asked gets the answers of the others
                answer.result()

    def _on_cancel(self, message: Message) -> None:
        request_id = message.data.decode("ascii", "replace")
        for hosted in self._hosted.values():
            if message.reply and (where := hosted.cell.whereabouts(request_id)):
                self._answer(message.reply, f"{where}, on {self.node}".encode())
            if hosted.cell.cancel(request_id):
                return

    async def _watch_overdue(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(OVERDUE_PERIOD)
            late = loop.time() - began - OVERDUE_PERIOD
            if late > BLOCKED:
                log.warning(
                    "no agent here could run for %.1f s: a handler blocks; use asyncio.to_thread, or a tool", late
                )
            for hosted in self._hosted.values():
                hosted.cell.cancel_overdue()


def load(target: str) -> type[Agent]:
    """The agent class that `module:Class` names.

    Raises:
        ConfigError: It does not name one; errors while the module is imported come as they are.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ConfigError(target, "write it as module:Class, for example hello.agents:Greeter")
    module: Any = importlib.import_module(module_name)
    found = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        agents = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Agent)]
        near = near_misses(attribute, agents)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(target, f"{attribute} in {module_name} is not an Agent class{hint}")
    return found
