"""The processes of a mesh and the agents in them: started, kept running, restarted, and watched."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import msgspec

from agentmesh.errors import (
    AgentMeshError,
    ConfigError,
    NoRespondersError,
    SupervisionError,
)
from agentmesh.gateway.options import DEFAULT_PORT, GatewayOptions, address
from agentmesh.ports import Reserved, is_free, listener, reserve
from agentmesh.registry import PRESENCE, AgentInfo
from agentmesh.subjects import Subjects
from agentmesh.supervisor import ChildSpec, Exit, Launch, ProcessChild, RestartPolicy, Supervisor, SupervisorEvent
from agentmesh.supervisor.control import call
from agentmesh.supervisor.process import Fields
from agentmesh.transport import Message, Subscription, Transport
from agentmesh.up.events import Restarted, ServiceReady, UpEvent, Warned
from agentmesh.up.groups import Groups, failure
from agentmesh.up.keeper import MemoryKeeper
from agentmesh.up.members import Kind, Launches, Member
from agentmesh.up.placement import NodePlan, place
from agentmesh.up.plan import UpPlan
from agentmesh.up.postmortem import PostMortem, how
from agentmesh.up.scaling import GroupStage
from agentmesh.up.states import AgentStates

BETWEEN = ("starting", "restarting")
"""States of processes that will be up again."""

CONTROL_TIMEOUT = 30.0
"""Seconds a node gets to start or stop a replica."""

GATEWAY: Literal["gateway"] = "gateway"

MEMORY_GRACE = 10.0
TOOLS_GRACE = 10.0
"""Seconds for what is under way when they stop."""

_infos = msgspec.json.Decoder(list[AgentInfo])


class Fleet:
    """See the module.

    Args:
        plan: What is to run.
        transport: The connection of the root process.
        url: Of the broker, for the processes.
        suffix: Added to the names of nodes, which must be unique at the broker.
        emit: Called with everything that happens.
        on_line: Called with the process and each line it prints.
    """

    def __init__(
        self,
        plan: UpPlan,
        transport: Transport,
        url: str,
        *,
        suffix: str,
        emit: Callable[[UpEvent], None],
        on_line: Callable[[str, str], None],
    ) -> None:
        self.plan = plan
        self.emit = emit
        self._reserved: Reserved | None = None
        self.agents = {a.name: replace(a, grouped=bool(plan.group_of(a.name))) for a in plan.agents}
        self.members: dict[str, Member] = {}
        self.nodes: dict[str, NodePlan] = {}
        self.http = plan.http if plan.http is None else replace(plan.http, port=self._free_port(plan.http))
        """The gateway with its port: the same one after each restart."""
        self.finished = 0
        """Messages and tasks that were finished by nodes which were told to stop."""
        self.given_back = 0
        """Those that were not."""
        self._transport = transport
        self._subjects = Subjects(plan.tenant)
        self.suffix = suffix
        self._launches = Launches(plan, url, on_line, self._on_fields)
        self._groups = {
            kind: Supervisor(kind, policy=RestartPolicy(max_restarts=0), parallel=True) for kind in ("tools", "nodes")
        }
        self.states = AgentStates(self.agents, emit)
        self._problems: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._retired: set[str] = set()
        self._candidates: set[str] = set()
        """Nodes with new code that have not proved yet that they can replace the old ones: nobody hears of them."""
        self._presence: Subscription | None = None
        self._memory: MemoryKeeper | None = None
        self._post_mortem = PostMortem(transport, self._subjects, plan.folder / "flight")
        self._tree = Supervisor("fleet")
        self._news = asyncio.Event()
        """Set when something has happened to a process."""
        self.groups = Groups(plan, GroupStage(self), emit, self._post_mortem.record)
        self.changing = asyncio.Lock()
        """Held by whoever changes what runs where."""
        self.stopping = False
        """No change is begun any more."""

    # ------------------------------------------------------------ start and stop
    async def start(self, tree: Supervisor, memory_path: str) -> None:
        """Start everything at once, as children of `tree`. What cannot start is reported, and the rest runs."""
        self._tree = tree
        self._presence = await self._transport.subscribe(self._subjects.control(PRESENCE), self._on_presence)
        starts = []
        if self.plan.memory.enabled:
            self._memory = MemoryKeeper(
                self._transport,
                self._subjects,
                memory_path,
                ttl=self.plan.ttl,
                begin=lambda: self._begin_memory(memory_path),
                end=self._end_memory,
                emit=self.emit,
            )
            starts.append(self._memory.start())
        tools = [
            self._member("tools", f"tools-{number}", partial(self._launches.tools, f"tools-{number}"))
            for number in range(1, self.plan.tools.executors + 1)
            if self.plan.tools.targets
        ]
        starts.append(tree.add(self._group("tools", tools)))
        if self.http is not None:
            options = self.http
            gateway = self._member(GATEWAY, GATEWAY, lambda: self._launches.gateway(GATEWAY, options))
            starts.append(tree.add(gateway.spec()))
        for node in place(self.plan, self.suffix):
            self._node(node)
        nodes = [member for member in self.members.values() if member.kind == "node"]
        starts.append(tree.add(self._group("nodes", nodes)))
        await asyncio.gather(*starts)
        await self.groups.start()

    async def stop(self) -> None:
        """Stop everything in the reverse order: nodes first, so that what they finish finds its tools and memory.

        The gateway with them: it takes no more requests, and passes on what the agents still answer.
        """
        self.stopping = True
        self._news.set()
        for name in self._candidates:
            self.members[name].kill()
        await self.groups.stop()
        self._retired.update(self.members)
        await asyncio.gather(self._remove(GATEWAY), self._remove("nodes"))
        for name in ("tools", "memory"):
            await self._remove(name)
        if self._memory is not None:
            await self._memory.stop()
        if self._presence is not None:
            await self._presence.unsubscribe()

    async def _remove(self, name: str) -> None:
        if any(child.name == name for child in self._tree.children()):
            await self._tree.remove(name)

    async def _begin_memory(self, path: str) -> None:
        memory = self._member("memory", "memory", lambda: self._launches.memory("memory", path))
        await self._tree.add(memory.spec())

    async def _end_memory(self) -> None:
        self._retired.add("memory")
        await self._remove("memory")
        self.members.pop("memory", None)
        self._retired.discard("memory")

    def kill(self) -> None:
        """End every process at once."""
        for member in self.members.values():
            member.kill()

    @property
    def forced(self) -> bool:
        """Whether a process had to be killed because it did not stop."""
        return any(member.process is not None and member.process.forced for member in self.members.values())

    def _group(self, kind: str, members: list[Member]) -> ChildSpec:
        async def start() -> Supervisor:
            group = self._groups[kind]
            try:
                await asyncio.gather(*(group.add(member.spec()) for member in members))
            except BaseException:
                await group.stop()  # some of them may be up already
                raise
            return group

        return ChildSpec(kind, start, shutdown_timeout=math.inf)

    def _member(self, kind: Kind, name: str, launch: Callable[[], Any], policy: RestartPolicy | None = None) -> Member:
        graces = {"memory": MEMORY_GRACE, "tools": TOOLS_GRACE, "node": self.plan.grace, "gateway": self.plan.grace}
        member = self.members[name] = Member(
            kind,
            name,
            launch,
            policy=policy or self.plan.process_policy,
            grace=graces[kind],
            on_event=self._on_event,
            on_started=self._on_started,
        )
        return member

    def _node(self, node: NodePlan) -> Member:
        self.nodes[node.name] = node
        policy = RestartPolicy(max_restarts=0) if self._is_of_group(node) else None

        def launch() -> Launch:
            return self._launches.node(self.nodes[node.name], self._post_mortem.flight(node.name))

        return self._member("node", node.name, launch, policy)

    def _is_of_group(self, node: NodePlan) -> bool:
        """Whether it is a process of its own for an agent of a group, which decides whether it comes back."""
        return not node.shared and any(self.agents[entry.name].grouped for entry in node.agents)

    def _free_port(self, options: GatewayOptions) -> int:
        """The port that was asked for, or else the usual one, or else a free one that nobody takes meanwhile.

        Raises:
            ConfigError: The address is not one of this machine.
        """
        if options.port:
            return options.port
        try:
            if options.port is None and is_free(options.host, DEFAULT_PORT):
                return DEFAULT_PORT
            self._reserved = reserve(options.host)
        except OSError as error:
            raise ConfigError("http.host", f"{options.host!r} is no address of this machine: {error}") from error
        if options.port is None:
            text = f"port {DEFAULT_PORT} is taken by {listener(DEFAULT_PORT)}; the gateway takes {self._reserved.port}"
            self.emit(Warned(source="http", text=text, hint="choose one with --http HOST:PORT"))
        return self._reserved.port

    @property
    def http_url(self) -> str:
        """Where the gateway is; empty without one."""
        return "" if self.http is None else address(self.http.host, self.http.port or DEFAULT_PORT)

    # ------------------------------------------------------------ what is there
    def count(self) -> tuple[int, int]:
        """Agents with a replica that is ready, and agents without one though some are wanted."""
        ready = self.states.ready()
        wanted = {name for name in self.agents if self.wanted(name)}
        return len(ready), len(wanted - ready)

    def wanted(self, agent: str) -> int:
        """How many replicas there are to be: also of an agent whose group is down, which is not to be so."""
        is_down = self.agents[agent].grouped and self.groups.state_of(agent) == "down"
        return self.agents[agent].replicas if is_down else len(self.replicas(agent))

    def replicas(self, agent: str) -> dict[int, str]:
        """Where each replica of an agent is to run."""
        return {replica: node.name for node in self.nodes.values() for replica in node.replicas(agent)}

    def table(self) -> list[dict[str, Any]]:
        """The processes."""
        return [
            {
                "name": member.name,
                "kind": member.kind,
                "pid": member.pid,
                "state": member.state,
                "restarts": member.restarts,
                "started_at": member.started_at,
                "agents": {e.name: e.replicas for e in self.nodes[name].agents} if name in self.nodes else {},
            }
            for name, member in self.members.items()
        ]

    # ------------------------------------------------------------ for whoever changes what runs where
    @contextlib.asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """One change at a time.

        Raises:
            SupervisionError: The mesh stops.
        """
        async with self.changing:
            self._refuse_if_stopping()
            yield

    def _refuse_if_stopping(self) -> None:
        if self.stopping:
            raise SupervisionError("the mesh is stopping")

    async def add_node(self, node: NodePlan, *, patient: bool) -> None:
        """Start a node; a first start that fails is tried again if `patient`, and else an error."""
        await self._groups["nodes"].add(self._node(node).spec(patient=patient))

    def problem_of(self, agent: str) -> str:
        """What went wrong when an agent was last started; empty if nothing did."""
        return self._problems.get(agent, "")

    def forget_problem(self, agent: str) -> None:
        """It is to be told again if it still is one."""
        self._problems.pop(agent, None)

    async def until_up(self, where: str) -> None:
        """Wait for a node that is being restarted: its process may have been told an older plan, and not listen yet.

        Raises:
            SupervisionError: It does not come up, or the mesh stops.
        """
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT):
                while self.members[where].state in BETWEEN:
                    self._refuse_if_stopping()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise SupervisionError(f"{where} is still being started after {CONTROL_TIMEOUT:g} s; try again") from None

    async def tell_node(self, node: str, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask a node to do something. One that has just died comes back with its new plan: that does it too."""
        member = self.members[node]
        if member.state != "running" or member.process is None:
            return {}
        subject = self._subjects.node_control(node)
        loop = asyncio.get_running_loop()
        asking = loop.create_task(call(self._transport, subject, op, timeout=CONTROL_TIMEOUT, **arguments))
        ending = loop.create_task(member.process.wait())
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else {}
        except NoRespondersError:  # it has just died, and that is not known yet
            return {}
        finally:
            asking.cancel()
            ending.cancel()

    def _leave_to_groups(self, where: str, detail: str) -> None:
        """A process has ended: members of groups that were in it come back when their groups say so."""
        node = self.nodes.get(where)
        for entry in list(node.agents) if node is not None else ():
            if node is not None and self.agents[entry.name].grouped:
                if node.shared:
                    node.agents.remove(entry)
                self.groups.ended(entry.name, failure(f"its process ended: {how(detail, where)}"))

    # ------------------------------------------------------------ restart
    async def restart(self, member: Member) -> None:
        """Stop a process in good order and start it anew, also one that had failed.

        Raises:
            SupervisionError: It cannot start.
        """
        self._reasons[member.name] = "asked for"
        if member.state != "failed":
            await member.restart()
            return
        group = {"node": self._groups["nodes"], "tools": self._groups["tools"]}.get(member.kind, self._tree)
        await group.add(member.spec(patient=False))

    # ------------------------------------------------------------ other processes for the same agents
    async def try_out(self, node: NodePlan) -> dict[str, str]:
        """Start a node of which nobody hears until it is promoted; what went wrong with its agents, by agent.

        Raises:
            AgentMeshError: It cannot start at all, and is forgotten.
        """
        member = self._node(node)
        self._candidates.add(node.name)
        try:
            await self._groups["nodes"].add(member.spec(patient=False))
        except AgentMeshError:
            self._forget(node.name)
            raise
        return problems_of(member.process)

    def forget_problems(self) -> None:
        """What went wrong with agents before is to be told again if it still does."""
        self._problems.clear()

    def promote(self, name: str) -> None:
        """A node that was tried out is one like the others from now on."""
        member = self.members[name]
        self._candidates.discard(name)
        if member.process is not None:
            self._on_started(member, member.process)

    async def retire(self, name: str) -> None:
        """Drain a node and forget it."""
        self._retired.add(name)
        if any(child.name == name for child in self._groups["nodes"].children()):
            await self._groups["nodes"].remove(name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self.states.forget_node(name)
        self._candidates.discard(name)
        self._retired.discard(name)  # another one may get the name: its end is news again
        self.nodes.pop(name, None)
        self.members.pop(name, None)

    # ------------------------------------------------------------ what the processes tell
    def _on_event(self, member: Member, event: SupervisorEvent) -> None:
        self._news.set()
        if event.kind == "exited" and member.kind == "node" and member.process is not None:
            self._post_mortem.tell(member.name, member.process.pid, event.detail)
        if member.name in self._candidates:
            return
        if event.kind == "exited" and member.name not in self._retired:
            self._reasons[member.name] = event.detail
            if member.started_at is None:
                self.emit(Warned(source=member.name, text=event.detail, hint="it is tried again"))
            self._note_all(member.name, "restarting", event.detail.splitlines()[0])
            self._post_mortem.ended(member, event, self.nodes.get(member.name))
            self._leave_to_groups(member.name, event.detail)
        elif event.kind == "started" and event.restarts:
            reason = self._reasons.pop(member.name, "")
            self.emit(Restarted(process=member.name, reason=reason, restarts=event.restarts))
        elif event.kind == "gave_up" and not (member.name in self.nodes and self._is_of_group(self.nodes[member.name])):
            self._post_mortem.gave_up(member, event)
            hint = f"fix it, then: agentmesh restart {member.name}"
            text = f"failed more often than {self.plan.process_policy.max_restarts} times: {event.detail}"
            self.emit(Warned(source=member.name, text=text, hint=hint))
            self._note_all(member.name, "failed", event.detail.splitlines()[0])

    def _on_started(self, member: Member, process: ProcessChild) -> None:
        if member.name in self._candidates:
            return
        url = self.http_url if member.kind == GATEWAY else ""
        self.emit(ServiceReady(service=member.kind, process=member.name, pid=process.pid, url=url))
        for entry in msgspec.convert(process.said.get("agents", []), list[AgentInfo]):
            self.states.learn(entry)
            self._note_info(entry)
        for agent, problem in problems_of(process).items():
            if self._problems.get(agent) != problem:
                self._problems[agent] = problem
                self.emit(Warned(source=agent, text=problem, hint=f"fix it, then: agentmesh restart {agent}"))

    def _on_fields(self, name: str, fields: Fields) -> None:
        if fields.get("event") == "drained":
            self.finished += int(str(fields.get("finished", 0)))
            self.given_back += int(str(fields.get("given_back", 0)))
        elif fields.get("event") == "exit" and name in self.nodes and name not in self._retired:
            detail = str(fields.get("detail"))
            self.groups.ended(str(fields.get("name")), failure(detail) if fields.get("failed") else Exit(detail=detail))
        elif fields.get("event") == "agent" and name in self.nodes and name not in self._candidates:
            agent = str(fields.get("name"))
            for replica in self.nodes[name].replicas(agent):
                self.states.note(agent, replica, name, str(fields.get("state")), str(fields.get("problem", "")))

    def _on_presence(self, message: Message) -> None:
        try:
            infos = _infos.decode(message.data)
        except msgspec.MsgspecError:
            return  # somebody else's; those of our nodes are well-formed
        for info in infos:
            member = self.members.get(info.node)
            known = info.node in self.nodes and info.node not in self._candidates
            if known and member and member.process and member.process.said:
                self._note_info(info)  # before that its ready line will tell more

    def _note_info(self, info: AgentInfo) -> None:
        broken = info.state == "failed" and not info.started_at  # it could not even be made: none of its replicas
        replicas = self.nodes[info.node].replicas(info.name) if broken else [info.replica]
        for replica in replicas:
            self.states.note(info.name, replica, info.node, info.state, info.problem)

    def _note_all(self, node: str, state: str, problem: str) -> None:
        for entry in self.nodes[node].agents if node in self.nodes else ():
            for replica in entry.replicas:
                self.states.note(entry.name, replica, node, state, problem)


def problems_of(process: ProcessChild | None) -> dict[str, str]:
    """What went wrong with agents when the node started, by agent."""
    problems = process.said.get("problems") if process is not None else None
    return {str(agent): str(text) for agent, text in problems.items()} if isinstance(problems, dict) else {}
