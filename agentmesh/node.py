"""A node: one process that hosts agents. `python -m agentmesh.node` reads what to run from standard input, as JSON.

Each agent is loaded for itself: one that cannot be imported or started is reported, and the others run. SIGTERM
drains: messages are handled and tasks finished within the grace, the rest is given back; a second SIGTERM ends the
process at once. When no agent is left that could run, the node ends with `ESCALATED`, and its supervisor starts a
fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from agentmesh import host
from agentmesh.agent import Agent, AgentCell, CellOptions, cell
from agentmesh.client import Client
from agentmesh.errors import AgentMeshError, InvalidMessageError, NoSuchAgentError
from agentmesh.flight import FlightRecorder
from agentmesh.host import Host, load
from agentmesh.limits import Limit
from agentmesh.mailbox import Overflow
from agentmesh.subjects import Subjects
from agentmesh.supervisor import Exit, RestartPolicy
from agentmesh.supervisor.child import LogFormat, announce, begin, configure_logging, loop_factory
from agentmesh.supervisor.control import Arguments, ControlService, argument
from agentmesh.transport import Transport, TransportOptions

log = logging.getLogger("agentmesh.node")

ESCALATED = 70
"""Exit code: every agent has failed more often than its policy allows."""
NO_LOGIN = 77
"""Exit code: the broker does not let this process in any more."""
KILLED = 130
"""Exit code: somebody did not want to wait for the drain."""


class NodeAgent(msgspec.Struct, omit_defaults=True):
    """An agent of which this node hosts one or more replicas."""

    name: str
    target: str
    replicas: list[int] = msgspec.field(default_factory=lambda: [1])
    """Their numbers, from 1."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    concurrency: int | None = None
    prefetch: int | None = None
    mailbox_size: int | None = None
    overflow: Overflow | None = None
    restart: str | None = None
    limits: tuple[Limit, ...] = ()
    """Bounds on the tasks in its queue."""
    grouped: bool = False
    """A supervisor elsewhere starts it again, not this node."""

    def options(self, replica: int) -> CellOptions:
        """The options of one replica."""
        return CellOptions(
            name=self.name,
            replica=replica,
            concurrency=self.concurrency,
            prefetch=self.prefetch,
            mailbox_size=self.mailbox_size,
            overflow=self.overflow,
            limits=self.limits,
            restart="temporary" if self.grouped else self.restart,
            args=tuple(self.args),
            kwargs=self.kwargs,
        )


class NodeSpec(msgspec.Struct, omit_defaults=True):
    """Everything a node needs to know."""

    name: str
    transport: dict[str, Any]
    """Fields of `TransportOptions`."""
    tenant: str = "default"
    limits: tuple[Limit, ...] = ()
    """Bounds on all tasks of the tenant."""
    agents: list[NodeAgent] = []
    paths: list[str] = []
    """Folders to import modules from, before all others."""
    policy: dict[str, Any] = {}
    """Fields of `RestartPolicy`."""
    grace: float = 10.0
    watched: list[str] = []
    """Folders whose imported modules are told to the supervisor, which replaces the node when they change."""
    flight: str = ""
    """File in which to write down what is being handled; empty: nothing is."""
    log_format: LogFormat = "text"
    log_level: str = "INFO"


class Node:
    """See the module."""

    def __init__(self, spec: NodeSpec, transport: Transport) -> None:
        self.spec = spec
        self._policy = RestartPolicy(**spec.policy)
        self._transport = transport
        subjects = Subjects(spec.tenant)
        self._host = Host(Client(transport, subjects, spec.name), spec.name, policy=self._policy, limits=spec.limits)
        self._host.on_escalation = self._gave_up
        self._host.on_exit = self._on_exit
        if spec.flight:
            self._host.recorder = FlightRecorder(Path(spec.flight))
        self._agents = {agent.name: agent for agent in spec.agents}
        self._cells: dict[tuple[str, int], AgentCell] = {}
        self._problems: dict[str, str] = {}
        self._trying: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        operations = {
            "ping": self._ping,
            "describe": self._describe,
            "spawn": self._spawn,
            "stop": self._stop_agent,
            "restart": self._restart,
            "drain": self._drain,
        }
        self._control = ControlService(transport, subjects.node_control(spec.name), operations)
        transport.on_state(self._on_connection)

    async def run(self) -> int:
        """Host the agents until the process is told to stop; the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_terminate)
        await self._host.start()
        await asyncio.gather(*(self._begin(agent) for agent in self.spec.agents))
        await self._control.start()
        announce(
            event="ready",
            name=self.spec.name,
            pid=os.getpid(),
            agents=self._host.infos(),
            problems=self._problems,
            files=sorted(_imported(self.spec.watched)),
        )
        code = await self._stop
        await self._end(code)
        return code

    # ------------------------------------------------------------ agents
    async def _begin(self, agent: NodeAgent) -> None:
        """Load an agent and start its replicas. What goes wrong is reported and does not concern the others."""
        try:
            agent_class = load(agent.target)
        except (Exception, SystemExit) as error:  # user code, at import
            self._report(agent.name, error)
            return
        await asyncio.gather(*(self._begin_replica(agent, agent_class, replica) for replica in agent.replicas))

    async def _begin_replica(self, agent: NodeAgent, agent_class: type[Agent], replica: int, failures: int = 0) -> None:
        try:
            started = await self._host.spawn(agent_class, agent.options(replica))
        except Exception as error:  # user code: the constructor or on_start
            self._report(agent.name, error)
            if not agent.grouped and failures < self._policy.max_restarts:
                retry = self._later(self._policy.delay(failures + 1), agent, agent_class, replica, failures + 1)
                task = asyncio.get_running_loop().create_task(retry, name=f"start {agent.name}.{replica}")
                self._trying.add(task)
                task.add_done_callback(self._trying.discard)
            return
        self._problems.pop(agent.name, None)
        self._cells[agent.name, replica] = started

    async def _later(
        self, delay: float, agent: NodeAgent, agent_class: type[Agent], replica: int, failures: int
    ) -> None:
        await asyncio.sleep(delay)
        if self._agents.get(agent.name) is agent and replica in agent.replicas:
            await self._begin_replica(agent, agent_class, replica, failures)

    def _report(self, name: str, error: BaseException) -> None:
        brief = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self._host.report_broken(name, brief)
        self._host.crashes.not_started(name, error)
        self._problems[name] = user_traceback(error)
        log.error("%s cannot start:\n%s", name, self._problems[name])
        announce(event="agent", name=name, state="failed", problem=brief)

    def _on_exit(self, name: str, exit: Exit) -> None:
        """A life of an agent is over: whoever supervises its group decides what is next."""
        agent = self._agents.get(name)
        if agent is not None and agent.grouped:
            announce(event="exit", name=name, failed=exit.error is not None, detail=str(exit))

    def _gave_up(self, name: str, error: BaseException) -> None:
        self._problems[name] = str(error)
        announce(event="agent", name=name, state="failed", problem=str(error))
        if all(info.state == "failed" for info in self._host.infos(brief=True)):
            log.error("no agent is left on %s", self.spec.name)
            self._finish(ESCALATED)

    # ------------------------------------------------------------ control
    async def _ping(self, arguments: Arguments) -> Arguments:
        return {"node": self.spec.name, "pid": os.getpid(), "agents": sorted(self._agents)}

    async def _describe(self, arguments: Arguments) -> Arguments:
        infos = [msgspec.to_builtins(info) for info in self._host.infos()]
        return {"node": self.spec.name, "pid": os.getpid(), "agents": infos, "problems": self._problems}

    async def _spawn(self, arguments: Arguments) -> Arguments:
        """Start replicas of an agent, beside those that are here."""
        agent: NodeAgent = argument(arguments, "agent", NodeAgent)
        async with self._changing:
            here = self._agents.get(agent.name)
            merged = msgspec.structs.replace(
                agent, replicas=sorted({*(here.replicas if here else []), *agent.replicas})
            )
            self._agents[agent.name] = merged
            await self._begin(agent)
        return {"problem": self._problems.get(agent.name, "")}

    async def _stop_agent(self, arguments: Arguments) -> Arguments:
        """Stop one replica of an agent, or all."""
        name: str = argument(arguments, "name", str)
        replica: int | None = argument(arguments, "replica", int | None)
        async with self._changing:
            here = self._known(name)
            here.replicas = [number for number in here.replicas if replica not in (None, number)]
            stopped = await self._host.stop_agent(name, grace=self.spec.grace, replica=replica)
            for key in [key for key in self._cells if key[0] == name and key[1] not in here.replicas]:
                del self._cells[key]
        return {"stopped": stopped}

    async def _restart(self, arguments: Arguments) -> Arguments:
        """Start the replicas of an agent anew: those that run keep their mailbox, those that failed get a new one."""
        name: str = argument(arguments, "name", str)
        async with self._changing:
            here = self._known(name)
            states = {info.state for info in self._host.infos(name, brief=True)}
            if states and "failed" not in states:
                await self._host.restart_agent(name)
            else:
                await self._begin(here)
        return {"problem": self._problems.get(name, "")}

    async def _drain(self, arguments: Arguments) -> Arguments:
        self._finish(0)
        return {}

    def _known(self, name: str) -> NodeAgent:
        here = self._agents.get(name)
        if here is None:
            raise NoSuchAgentError(name, sorted(self._agents))
        return here

    # ------------------------------------------------------------ the end
    def _on_terminate(self) -> None:
        if self._stop.done():
            os._exit(KILLED)
        self._finish(0)

    def _on_connection(self, state: str) -> None:
        if state == "closed" and self._transport.closed_because:
            log.error("node %s ends: %s", self.spec.name, self._transport.closed_because)
            self._finish(NO_LOGIN)

    def _finish(self, code: int) -> None:
        if not self._stop.done():
            self._stop.set_result(code)

    async def _end(self, code: int) -> None:
        """Drain, and say what became of the work that was here."""
        for trying in self._trying:
            trying.cancel()
        before = [(one, one.in_flight + len(one.mailbox), _concluded(one)) for one in self._cells.values()]
        await self._host.drain(self.spec.grace if self._transport.is_connected else 0.0)
        await self._control.stop()
        finished = [min(work, _concluded(one) - then) for one, work, then in before]
        left = sum(work for _, work, _ in before) - sum(finished)
        announce(event="drained", finished=sum(finished), given_back=left)
        await self._transport.close()


def user_traceback(error: BaseException) -> str:
    """The traceback of an error without the frames of agentmesh and of Python's import machinery before the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = (__file__, host.__file__, cell.__file__)
    while frames and (frames[0].filename in ours or "importlib" in frames[0].filename):
        frames.pop(0)
    lines = traceback.format_exception_only(error)
    if frames:
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames), *lines]
    return "".join(lines).rstrip()


def _concluded(one: AgentCell) -> int:
    return one.counters.handled + one.counters.failed


def _imported(folders: Iterable[str]) -> Iterable[str]:
    """Source files of the modules imported so far that lie in `folders`, installed packages left out."""
    roots = tuple(f"{Path(folder).resolve()}{os.sep}" for folder in folders)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if roots and file and "site-packages" not in file:
            path = str(Path(file).resolve())
            if path.startswith(roots):
                yield path


async def serve(spec: NodeSpec) -> int:
    """Connect, and run the node; its exit code."""
    transport = await Transport.connect(TransportOptions(**spec.transport))
    try:
        return await Node(spec, transport).run()
    finally:
        with contextlib.suppress(AgentMeshError):
            await transport.close()


def main() -> int:
    """Exit code 0 after an orderly stop."""
    try:
        spec = msgspec.json.decode(begin(), type=NodeSpec)
    except msgspec.MsgspecError as error:
        print(f"node: {InvalidMessageError(str(error))}", file=sys.stderr)
        return 2
    configure_logging(spec.log_format, spec.log_level, spec.tenant)
    sys.path[:0] = spec.paths
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(serve(spec))
    except AgentMeshError as error:
        print(f"node {spec.name}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
