"""The agents of one process: spawned, supervised, found, and stopped together.

Each agent replica is a child of one supervisor: a cell (mailbox and instance), the worker that pulls its tasks, and
its durable mailbox. The host answers who is here, tells when agents come and go, cancels requests whose asker has
gone, and registers every agent as a NATS micro service, so that any client can list, ping and inspect it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from agentmesh import registry
from agentmesh.agent import Agent, AgentCell, CellOptions
from agentmesh.agent.durable import DurableMailbox
from agentmesh.client import CANCEL, Client
from agentmesh.errors import AgentMeshError, ConfigError
from agentmesh.registry import AgentInfo, MessageInfo
from agentmesh.supervisor import ChildSpec, Exit, RestartPolicy, Supervisor
from agentmesh.tasks import TaskWorker
from agentmesh.transport import Endpoint, Message, Service, Subscription
from agentmesh.version import __version__

log = logging.getLogger("agentmesh.host")

OVERDUE_PERIOD = 0.25
"""Seconds between looks for handlers whose asker has stopped waiting."""


class Hosted:
    """One replica with everything that feeds it; a child of the host's supervisor."""

    def __init__(self, host: Host, cell: AgentCell) -> None:
        self.cell = cell
        self._host = host
        self._worker: TaskWorker | None = None
        self._durable: DurableMailbox | None = None
        self._registered: Service | None = None

    async def start(self) -> Hosted:
        """Start, or start again after a failure: a new instance, the same mailbox."""
        try:
            await self.cell.start()
        finally:
            await self._host.announce(self.cell)
        if self._worker is None and self.cell.behaviour.tasks:
            worker = TaskWorker(
                self.cell.client.transport,
                self.cell.client.subjects,
                self.cell.name,
                types=self.cell.behaviour.tasks,
                run=self.cell.run_task,
                slots=self.cell.concurrency,
                prefetch=self.cell.prefetch,
                node=self._host.node,
            )
            await worker.start()
            self._worker = worker
        if self._durable is None and self.cell.behaviour.durable_events:
            durable = DurableMailbox(self.cell)
            await durable.start()
            self._durable = durable
        if self._registered is None:
            self._registered = self._host.services.add(self._service())
        return self

    async def wait(self) -> Exit:
        """Wait for the failure of this life."""
        return Exit(await asyncio.shield(self.cell.failed))

    async def stop(self, timeout: float) -> None:
        """Stop taking messages and tasks, and finish or give back what is under way."""
        if self._registered is not None:
            self._host.services.remove(self._registered)
        if self._durable is not None:
            await self._durable.stop()
        worker = self._worker.stop(timeout) if self._worker is not None else asyncio.sleep(0)
        await asyncio.gather(worker, self.cell.stop(timeout))
        await self._host.announce(self.cell)

    def info(self, brief: bool) -> AgentInfo:
        """What others see of this replica."""
        cell = self.cell
        info = AgentInfo(
            name=cell.name,
            node=self._host.node,
            replica=cell.replica,
            state=cell.state,
            mailbox=len(cell.mailbox),
            in_flight=cell.in_flight,
            handled=cell.counters.handled,
            failed=cell.counters.failed,
            restarts=cell.counters.restarts,
            started_at=cell.started_at,
            pid=os.getpid(),
            host=self._host.hostname,
            problem=cell.problem,
        )
        if not brief:
            info.description = cell.behaviour.description
            info.messages = [msgspec.convert(entry, MessageInfo) for entry in cell.behaviour.describe()]
        return info

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
    """

    def __init__(self, client: Client, node: str, *, policy: RestartPolicy | None = None) -> None:
        self.client = client
        self.node = node
        self.hostname = socket.gethostname()
        self.services = client.transport.services
        self.on_escalation: Callable[[str, BaseException], None] | None = None
        self._policy = policy or RestartPolicy()
        self._hosted: dict[tuple[str, int], Hosted] = {}
        self._supervisors: dict[tuple[str, int], Supervisor] = {}
        self._broken: dict[str, AgentInfo] = {}
        self._subscriptions: list[Subscription] = []
        self._overdue: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to answer. Agents come with `spawn`."""
        subjects, transport = self.client.subjects, self.client.transport
        self._subscriptions = [
            await transport.subscribe(subjects.control(registry.WHO), self._on_who),
            await transport.subscribe(subjects.control(CANCEL), self._on_cancel),
        ]
        await self.services.start()
        self._overdue = asyncio.get_running_loop().create_task(self._watch_overdue(), name="overdue requests")

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
            Exception: Whatever the constructor or `on_start` raises the first time.
        """
        chosen = options or CellOptions()
        make = factory or (lambda: agent_class(*chosen.args, **chosen.kwargs))
        cell = AgentCell(self.client, agent_class, make, chosen)
        key = (cell.name, cell.replica)
        if key in self._hosted:
            await self._stop(key, 5.0)
        hosted = self._hosted[key] = Hosted(self, cell)
        try:
            await hosted.start()
        except BaseException:
            await self._stop(key, 0.0)
            raise
        self._broken.pop(cell.name, None)
        self._supervise(key, hosted)
        return cell

    def _supervise(self, key: tuple[str, int], hosted: Hosted) -> None:
        """Give the running replica a supervisor of its own: one agent's failures never count against another's."""
        name = f"{key[0]}.{key[1]}"
        supervisor = Supervisor(name, policy=self._policy, on_escalation=lambda error: self._gave_up(key, error))
        supervisor.adopt(ChildSpec(name, hosted.start, restart=hosted.cell.restart), hosted)
        self._supervisors[key] = supervisor

    def _gave_up(self, key: tuple[str, int], error: BaseException) -> None:
        log.error("%s stays down: %s", key[0], error)
        hosted = self._hosted.get(key)
        if hosted is not None:
            hosted.cell.state, hosted.cell.problem = "failed", str(error)
        if self.on_escalation is not None:
            self.on_escalation(key[0], error)

    def report_broken(self, name: str, problem: str) -> None:
        """Show an agent that could not even be made, for example because its module cannot be imported."""
        self._broken[name] = AgentInfo(
            name=name, node=self.node, state="failed", problem=problem, pid=os.getpid(), host=self.hostname
        )

    async def stop_agent(self, name: str, *, grace: float = 10.0, replica: int | None = None) -> int:
        """Stop the replicas of an agent here, or one of them; returns how many there were."""
        keys = [key for key in self._hosted if key[0] == name and replica in (None, key[1])]
        await asyncio.gather(*(self._stop(key, grace) for key in keys))
        return len(keys)

    async def restart_agent(self, name: str, *, grace: float = 10.0) -> int:
        """Start the replicas of an agent here anew, one after the other; the mailboxes stay."""
        cells = [hosted.cell for key, hosted in self._hosted.items() if key[0] == name]
        for cell in cells:
            await cell.start()
        return len(cells)

    async def drain(self, grace: float) -> None:
        """Stop every agent, last spawned first, and stop answering. Tasks not done in time are given back."""
        if self._overdue is not None:
            self._overdue.cancel()
        await asyncio.gather(*(self._stop(key, grace) for key in reversed(list(self._hosted))))
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()

    async def kill(self) -> None:
        """End every agent at once."""
        await self.drain(0.0)

    def infos(self, name: str = "", brief: bool = False) -> list[AgentInfo]:
        """The replicas here."""
        running = [hosted.info(brief) for hosted in self._hosted.values()]
        return [info for info in (*running, *self._broken.values()) if name in ("", info.name)]

    async def announce(self, cell: AgentCell) -> None:
        """Say that the state of a replica changed."""
        hosted = self._hosted.get((cell.name, cell.replica))
        if hosted is not None and self.client.transport.is_connected:
            body = registry.encode([hosted.info(brief=True)])
            await self.client.transport.publish(self.client.subjects.control(registry.PRESENCE), body)

    async def _stop(self, key: tuple[str, int], grace: float) -> None:
        supervisor = self._supervisors.pop(key, None)
        hosted = self._hosted.get(key)
        if supervisor is not None:
            await supervisor.release()
        if hosted is not None:
            await hosted.stop(grace)
            self._hosted.pop(key, None)

    # ------------------------------------------------------------ control
    def _on_who(self, message: Message) -> None:
        try:
            question = msgspec.json.decode(message.data, type=registry.Who) if message.data else registry.Who()
        except msgspec.MsgspecError:
            return
        infos = self.infos(question.name, question.brief)
        if message.reply and infos:
            self._answer(message.reply, registry.encode(infos))

    def _answer(self, subject: str, data: bytes) -> None:
        answer = asyncio.get_running_loop().create_task(self.client.transport.publish(subject, data))
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
            if hosted.cell.cancel(request_id):
                return

    async def _watch_overdue(self) -> None:
        while True:
            await asyncio.sleep(OVERDUE_PERIOD)
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
    found: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise ConfigError(target, f"{attribute} in {module_name} is not an Agent class")
    return found
