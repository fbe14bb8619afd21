"""The root process of `agentmesh up`: broker, services and nodes as one tree, and the chores of a supervisor.

    await Up(plan, listener).run()

It returns after Ctrl-C (SIGINT or SIGTERM), `stop`, or a control request, when everything has been drained and
stopped in reverse order; a second Ctrl-C kills instead. Nothing survives it, not even a SIGKILL of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from agentmesh import brokercheck, ports, runfile
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.errors import AgentMeshError
from agentmesh.ids import new_id, now
from agentmesh.local import dispatcher
from agentmesh.logs import JsonFormatter
from agentmesh.metrics import METRICS
from agentmesh.metrics import serve as serve_metrics
from agentmesh.presence import NodeMonitor, node_monitor
from agentmesh.subjects import Subjects
from agentmesh.supervisor import ChildSpec, RestartPolicy, Supervisor, SupervisorEvent
from agentmesh.tasks import Dispatcher, LaggingCopies, Mover, StuckSweep
from agentmesh.tasks.layout import bound_streams, ensure_streams
from agentmesh.transport import Transport
from agentmesh.up.chores import Chores
from agentmesh.up.door import MessageDoor
from agentmesh.up.events import BrokerReady, Elected, LogLine, Ready, Restarted, Stopped, Stopping, UpEvent, Warned
from agentmesh.up.fleet import Fleet
from agentmesh.up.logs import LogBook, LogForwarder
from agentmesh.up.members import BrokerChild, watched
from agentmesh.up.moving import reload
from agentmesh.up.operations import Operations
from agentmesh.up.plan import DEFAULT_PORT, UpPlan
from agentmesh.up.rundir import RunLock
from agentmesh.up.schedules import keep_schedules
from agentmesh.up.watching import Stamps, changes, stamps

log = logging.getLogger("agentmesh.up")

Listener = Callable[[UpEvent], None]


class Up:
    """See the module.

    Args:
        plan: What to run.
        listener: Called with every event, in the event loop of `run`; must not block.
        lock: Of the plan's folder, if it is held already.
    """

    def __init__(self, plan: UpPlan, listener: Listener, lock: RunLock | None = None) -> None:
        self.plan = plan
        self.started_at = now()
        self.url = ""
        """Of the broker, without credentials; known once connected."""
        self.fleet: Fleet | None = None
        self.transport: Transport | None = None
        self.book = LogBook(plan.folder / "logs", lambda source, text: self._emit(LogLine(source=source, text=text)))
        self._listener = listener
        self._lock = lock or RunLock(plan.folder)
        self._broker: EmbeddedBroker | None = None
        self._subjects = Subjects(plan.tenant)
        self._dispatcher: Dispatcher | None = None
        self._mover: Mover | None = None
        self._door: MessageDoor | None = None
        self.chores: Chores | None = None
        self.monitor: NodeMonitor | None = None
        self.id = new_id()
        """Of this run: names are not unique."""
        self._operations: Operations | None = None
        self._watching: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._why = ""
        self._asked = asyncio.Event()
        self._killed = False

    async def run(self) -> None:
        """Run the mesh until it is told to stop. Use it from the main thread.

        Raises:
            AlreadyRunningError: A mesh runs in this folder.
            BrokerStartError: The embedded broker cannot start; says why and what to do.
            BrokerUnavailableError: The broker named in the plan cannot be reached.
            BrokerTooOldError: It is older than what agentmesh needs.
            RestartIntensityError: The embedded broker failed again and again.
        """
        self._lock.acquire()
        try:
            self.book.open()
            with self._signals(), self._own_logs():
                await self._live()
        finally:
            self.book.close()
            self._lock.release()

    def stop(self, reason: str, *, force: bool = False) -> None:
        """Begin the orderly stop; asked again, or with `force`, everything is killed."""
        if force or self._asked.is_set():
            self._killed = True
            if self.fleet is not None:
                self.fleet.kill()
        self._why = self._why or reason
        self._asked.set()

    # ------------------------------------------------------------ life
    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        tree = Supervisor("up", policy=RestartPolicy(max_restarts=0))
        starting = loop.create_task(self._start(tree, loop.time()), name="up: start")
        asked = loop.create_task(self._asked.wait(), name="up: stop asked for")
        over = loop.create_task(tree.wait(), name="up: tree")
        try:
            await asyncio.wait({starting, asked, over}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await asyncio.wait({asked, over}, return_when=asyncio.FIRST_COMPLETED)
            if over.done() and (error := over.result().error) is not None:
                raise error
        finally:
            for waiting in (starting, asked, over):
                waiting.cancel()
            await asyncio.gather(starting, asked, over, return_exceptions=True)
            await self._end(tree)

    async def _start(self, tree: Supervisor, began: float) -> None:
        url = self.plan.broker.url or await self._start_broker(tree)
        self.transport = await Transport.connect(self.plan.transport(url, "up"))
        self.url = self.transport.url
        await serve_metrics(self.transport, self._subjects.control(METRICS), "up")
        self._tell_broker()
        if self.plan.queue_limit is not None or self.plan.mailbox_limit is not None:
            await ensure_streams(self.transport, self.plan.queue_limit, self.plan.mailbox_limit)
        await bound_streams(self.transport, self.plan.streams)
        suffix = self._suffix()
        self.fleet = Fleet(self.plan, self.transport, url, suffix=suffix, emit=self._emit, on_line=self.book.add)
        sources = await asyncio.to_thread(stamps, watched(self.plan))  # before anything of them is imported
        await asyncio.gather(self._steer(), self.fleet.start(tree, self._memory_path()))
        if self.plan.reload:
            watching = self._watch(self.fleet, sources)
            self._watching = asyncio.get_running_loop().create_task(watching, name="up: watch sources")
        if not self.plan.joined:
            self._write_runfile()
        ready, failed = self.fleet.count()
        seconds = asyncio.get_running_loop().time() - began
        self._emit(Ready(url=self.url, seconds=seconds, agents=ready, failed=failed))
        if not self.plan.joined:  # its supervisors say it
            self._checking = asyncio.get_running_loop().create_task(self._check_broker(), name="up: check the broker")

    async def _check_broker(self) -> None:
        """Warn of what would break a promise. Nobody waits for it."""
        assert self.transport is not None
        monitor = self._broker.monitor_url if self._broker else self.plan.broker.monitor
        try:
            for weakness in await brokercheck.weaknesses(self.transport, monitor=monitor):
                self._emit(Warned(source="broker", text=weakness.says, hint=weakness.fix))
        except AgentMeshError as error:
            log.debug("the broker could not be checked: %s", error)

    async def _start_broker(self, tree: Supervisor) -> str:
        broker = self._broker = EmbeddedBroker(self._broker_options())
        child = BrokerChild(broker)

        async def start() -> Supervisor:
            keeper = Supervisor("broker", policy=self.plan.process_policy, on_event=self._on_broker)
            await keeper.add(ChildSpec("broker", child.start))
            return keeper

        await tree.add(ChildSpec("broker", start, shutdown_timeout=broker.options.stop_grace + 5.0))
        return broker.url

    def _broker_options(self) -> BrokerOptions:
        wanted = self.plan.broker
        port = wanted.port
        if port is None:
            port = DEFAULT_PORT if ports.is_free(wanted.host, DEFAULT_PORT) else 0
            if not port:
                text = f"port {DEFAULT_PORT} is taken by {ports.listener(DEFAULT_PORT)}; the broker takes another one"
                self._emit(Warned(source="broker", text=text, hint="choose one with --port"))
        return BrokerOptions(
            host=wanted.host,
            port=port,
            store=wanted.store,
            sync_always=wanted.sync_always,
            max_payload=wanted.max_payload,
            log_file=self.plan.folder / "logs" / "broker.log",
        )

    def _suffix(self) -> str:
        """For the names of nodes, which must be unique at the broker."""
        if self.plan.broker.embedded:
            return ""
        place = re.sub(r"[^A-Za-z0-9]+", "-", f"-{socket.gethostname()}")[:20].rstrip("-") if self.plan.joined else ""
        return f"{place}-{secrets.token_hex(2)}"

    async def _steer(self) -> None:
        """What a mesh has besides its processes."""
        if self.plan.joined:
            return
        assert self.transport is not None
        assert self.fleet is not None
        self.monitor = await node_monitor(self.transport, self._subjects)
        self._operations = Operations(self, self.fleet, self.transport)
        await asyncio.gather(self._operations.start(), self._chores())

    async def _chores(self) -> None:
        """Route what is sent to the doors and what is due: it names an agent or a type of task, not a subject."""
        assert self.transport is not None
        self._door = MessageDoor(self.transport, self._subjects)
        self._dispatcher = dispatcher(self.transport, self._subjects)
        self._mover = Mover(self.transport, self._subjects)
        self.chores = Chores(
            self.transport, self._subjects, about=self.plan.name, ttl=self.plan.ttl, on_change=self._on_active
        )
        sweep = StuckSweep(self.transport, self._subjects, on_buried=self._on_buried, on_unhosted=self._on_unhosted)
        self.chores.add("stuck sweep", sweep.run)
        self.chores.add("lagging copies", LaggingCopies(self.transport, on_moved=self._on_moved).run)
        everywhere = (self._door.start(), self._dispatcher.start(), self._mover.start())
        await asyncio.gather(*everywhere, self.chores.start())
        if self.plan.schedules is not None:
            await keep_schedules(self.transport, self._subjects, self.plan.name, self.plan.schedules)

    async def _watch(self, fleet: Fleet, since: Stamps) -> None:
        async for files in changes(watched(self.plan), since):
            try:
                await reload(fleet, files)
            except AgentMeshError as error:
                self._emit(Warned(source="reload", text=str(error)))

    async def _end(self, tree: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._asked.set()  # from now on a signal kills
        if self.fleet is not None:
            self._emit(Stopping(reason=self._why or "a failure", grace=self.plan.grace))
        runfile.remove(self.plan.folder)
        for beside in (self._watching, self._checking):
            if beside is not None:
                beside.cancel()
                await asyncio.wait([beside])
        for chore in (self.chores, self._door, self._mover, self._dispatcher):
            if chore is not None:
                await chore.stop()
        if self.fleet is not None:
            await self.fleet.stop()
        if self._operations is not None:
            await self._operations.stop()
        if self.transport is not None:
            await self.transport.close()
        await tree.stop()
        if self._broker is not None:
            await self._broker.stop()
        if self.fleet is not None:
            self._emit(
                Stopped(
                    drained=self.fleet.finished,
                    given_back=self.fleet.given_back,
                    seconds=loop.time() - began,
                    killed=self._killed or self.fleet.forced,
                )
            )

    # ------------------------------------------------------------ parts
    def _memory_path(self) -> str:
        path = self.plan.memory.path
        if path is None:
            path = self._broker.store / "memory.db" if self._broker is not None else self.plan.folder / "memory.db"
        return str((self.plan.root / path).absolute())

    def _write_runfile(self) -> None:
        monitor = self._broker.monitor_url if self._broker else None
        http = (self.fleet.http_url if self.fleet else "") or None
        about = (self.url, self.plan.tenant, self.plan.name, os.getpid(), self.started_at)
        content = runfile.RunFile(*about, monitor=monitor, http=http)
        runfile.write(self.plan.folder, content)

    def _tell_broker(self) -> None:
        assert self.transport is not None
        broker, store = self._broker, self.plan.broker.store
        self._emit(
            BrokerReady(
                url=self.url,
                version=self.transport.server_version,
                embedded=broker is not None,
                monitor=broker.monitor_url if broker else None,
                store=str(Path(store).absolute()) if broker and store else "",
            )
        )

    def _on_active(self, active: bool) -> None:
        other = self.chores.holder if self.chores is not None else None
        if active:
            self._emit(Elected(active=True))
        elif other is not None and not other.seems_dead and other.pid != os.getpid():  # not our killed predecessor
            self._emit(Elected(active=False, supervisor=f"{other.about} (pid {other.pid} on {other.host})"))

    def _on_buried(self, task_id: str, reason: str) -> None:
        hint = f"see: agentmesh dead show {task_id}"
        self._emit(Warned(source="tasks", text=f"{task_id} was stuck and is a dead letter: {reason}", hint=hint))

    def _on_moved(self, stream: str, server: str, consumers: int) -> None:
        text = f"the copy of {stream} at server {server} does not catch up; {consumers} of its queues were moved away"
        self._emit(Warned(source="broker", text=text, hint="restart that server"))

    def _on_unhosted(self, agents: Mapping[str, int]) -> None:
        if agents:
            waiting = ", ".join(f"{name} ({count})" for name, count in sorted(agents.items()))
            text = f"tasks wait for agents that nobody hosts: {waiting}"
            self._emit(Warned(source="tasks", text=text, hint="start them, or cancel the tasks: agentmesh task ls"))

    def _on_broker(self, event: SupervisorEvent) -> None:
        if event.kind == "exited":
            self._emit(
                Warned(source="broker", text=event.detail, hint="it is started again on the same port and store")
            )
        elif event.kind == "started" and event.restarts:
            self._emit(Restarted(process="broker", reason="it ended", restarts=event.restarts))

    def _emit(self, event: UpEvent) -> None:
        try:
            self._listener(event)
        except Exception:  # whoever shows the events must not bring down what they are about
            log.exception("listener failed")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        reasons = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "the terminal was closed"}
        for number, reason in reasons.items():
            loop.add_signal_handler(number, self.stop, reason)
        try:
            yield
        finally:
            for number in reasons:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _own_logs(self) -> Iterator[None]:
        forwarder = LogForwarder(self.book, JsonFormatter(self.plan.tenant) if self.plan.log_format == "json" else None)
        logger = logging.getLogger("agentmesh")
        before = logger.level, logger.propagate
        logger.addHandler(forwarder)
        logger.setLevel(self.plan.log_level.upper())
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(forwarder)
            logger.level, logger.propagate = before
