"""Processes of the tree: each is kept running by a supervisor of its own, so that failures of one never count
against another."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

import msgspec

from agentmesh import version
from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import SupervisionError
from agentmesh.gateway.options import GatewayOptions
from agentmesh.gateway.spec import GatewaySpec, encoded
from agentmesh.ids import now
from agentmesh.node import NodeSpec
from agentmesh.supervisor import (
    ChildSpec,
    Exit,
    Launch,
    ProcessChild,
    RestartPolicy,
    Supervisor,
    SupervisorEvent,
)
from agentmesh.supervisor.process import Fields
from agentmesh.up.placement import NodePlan
from agentmesh.up.plan import UpPlan

Kind = Literal["memory", "tools", "node", "gateway"]

CONNECT_TIMEOUT = 25.0
"""Seconds a process waits for the broker when it starts: it may be restarting."""

ANSWERS = 0.5
"""Seconds beyond the grace in which the gateway passes on what agents say that were stopped."""

KILL_MARGIN = 2.0
"""Seconds beyond the grace until a process that should have drained is killed."""


class Member:
    """A process that is kept running.

    Args:
        kind: What it is.
        name: Its name.
        launch: How to start it, asked before each start.
        policy: How often it may be restarted.
        grace: Seconds it gets to stop.
        on_event: Told about starts, ends and giving up.
        on_started: Called with each process that is up.
    """

    def __init__(
        self,
        kind: Kind,
        name: str,
        launch: Callable[[], Launch],
        *,
        policy: RestartPolicy,
        grace: float,
        on_event: Callable[[Member, SupervisorEvent], None],
        on_started: Callable[[Member, ProcessChild], None],
    ) -> None:
        self.kind: Kind = kind
        self.name = name
        self.process: ProcessChild | None = None
        self.started_at: datetime | None = None
        self._launch = launch
        self._policy = policy
        self._grace = grace
        self._on_event = on_event
        self._on_started = on_started
        self._supervisor: Supervisor | None = None

    def spec(self, *, patient: bool = True) -> ChildSpec:
        """This member as a child of the tree. When it gives up, the tree goes on without it.

        Args:
            patient: A first start that fails is tried again as the policy says; otherwise it is an error.
        """

        async def start() -> Supervisor:
            supervisor = Supervisor(self.name, policy=self._policy, on_event=lambda event: self._on_event(self, event))
            self._supervisor = supervisor
            process = ChildSpec(self.name, self._start, shutdown_timeout=self._grace + KILL_MARGIN)
            await supervisor.add(process, patient=patient)
            return supervisor

        return ChildSpec(self.name, start, restart="temporary", shutdown_timeout=math.inf)

    async def restart(self) -> None:
        """Stop the process in good order and start a new one.

        Raises:
            SupervisionError: The new one cannot start.
        """
        if self._supervisor is None:
            raise SupervisionError(f"{self.name} was not started")
        await self._supervisor.restart_child(self.name)

    @property
    def state(self) -> str:
        """`running`, `restarting`, `starting` or `failed`."""
        children = self._supervisor.children() if self._supervisor else []
        return children[0].state if children else "failed"

    @property
    def restarts(self) -> int:
        children = self._supervisor.children() if self._supervisor else []
        return children[0].restarts if children else 0

    @property
    def pid(self) -> int:
        """0 while there is no process."""
        return self.process.pid if self.process is not None and self.process.alive else 0

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill_now()

    async def _start(self) -> ProcessChild:
        self.process = ProcessChild(self._launch())
        await self.process.begin()
        self.started_at = now()
        self._on_started(self, self.process)
        return self.process


class BrokerChild:
    """The embedded broker as a child of the tree. It comes back on its port and store."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker

    async def start(self) -> BrokerChild:
        """Start it; returns when it takes connections."""
        await self._broker.start()
        return self

    async def stop(self, timeout: float) -> None:
        """Stop it; it takes its own time, so that everything is on disk."""
        await self._broker.stop()

    async def wait(self) -> Exit:
        """Wait for its end."""
        code = await self._broker.wait()
        return Exit(SupervisionError(f"nats-server ended with code {code}\n{self._broker.log_tail(5)}"))


class Launches:
    """How the processes of a plan are started.

    Args:
        plan: The plan.
        url: Of the broker.
        on_line: Called with the process and each line it prints.
        on_fields: Called with the process and each message of it.
    """

    def __init__(
        self,
        plan: UpPlan,
        url: str,
        on_line: Callable[[str, str], None],
        on_fields: Callable[[str, Fields], None],
    ) -> None:
        self._plan = plan
        self._url = url
        self._on_line = on_line
        self._on_fields = on_fields

    def memory(self, name: str, path: str) -> Launch:
        """The memory service."""
        arguments = [*self._service_arguments(), "--tenant", self._plan.tenant, "--path", path]
        return self._service(name, "agentmesh.memory_store", arguments, ready_text="memory ready")

    def tools(self, name: str) -> Launch:
        """A tool executor."""
        tools = self._plan.tools
        settings = [part for key, value in tools.settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        rules = [part for agent, names in tools.allow.items() for part in ("--allow", f"{agent}={','.join(names)}")]
        names = ["--tenant", self._plan.tenant, "--name", name]
        arguments = [*self._service_arguments(), *names, *settings, *rules, *tools.targets]
        return self._service(name, "agentmesh.tools", arguments, ready_text="tools ready")

    def gateway(self, name: str, options: GatewayOptions) -> Launch:
        """The HTTP gateway, on the port in `options`."""
        plan = self._plan
        spec = GatewaySpec(
            self._transport(name),
            options,
            plan.tenant,
            tuple(agent.name for agent in plan.agents if agent.replicas),
            plan.grace + ANSWERS,
            plan.log_format,
            plan.log_level,
        )
        return self._service(name, "agentmesh.gateway", encoded(spec), ready_text="http ready")

    def node(self, node: NodePlan, flight: str = "") -> Launch:
        """A node; `flight` is the file in which it writes down what it handles, empty: none."""
        plan = self._plan
        spec = NodeSpec(
            name=node.name,
            transport=self._transport(node.name),
            tenant=plan.tenant,
            limits=plan.limits,
            agents=node.agents,
            paths=[str(plan.root.absolute())],
            policy=plan.policy.model_dump(),
            grace=plan.grace,
            watched=[str(folder) for folder in watched(plan)],
            flight=flight,
            log_format=plan.log_format,
            log_level=plan.log_level,
        )
        # With sources that change several times a second, compiled files are not told from outdated ones.
        env = {"PYTHONDONTWRITEBYTECODE": "1", **node.env} if plan.reload else node.env
        return self._launch(node.name, ["agentmesh.node"], env=env, stdin=msgspec.json.encode(spec))

    def _transport(self, name: str) -> dict[str, Any]:
        """Fields of `TransportOptions` for a process."""
        return {**asdict(self._plan.transport(self._url, name)), "connect_timeout": CONNECT_TIMEOUT}

    def _service_arguments(self) -> list[str]:
        creds = self._plan.broker.creds
        nats = ["--nats", self._plan.broker.with_credentials(self._url), *(["--creds", creds] if creds else [])]
        return [*nats, "--log-format", self._plan.log_format]

    def _service(self, name: str, module: str, arguments: list[str], ready_text: str) -> Launch:
        command = ["agentmesh.supervisor.service", module]
        return self._launch(name, command, stdin=msgspec.json.encode(arguments), ready_text=ready_text)

    def _launch(self, name: str, command: list[str], env: Mapping[str, str] | None = None, **more: Any) -> Launch:
        return Launch(
            name,
            [sys.executable, "-m", *command],
            cwd=str(self._plan.root.absolute()),
            env={"PYTHONPATH": _python_path(), **(env or {})},
            on_line=lambda line: self._on_line(name, line),
            on_fields=lambda fields: self._on_fields(name, fields),
            **more,
        )


def watched(plan: UpPlan) -> list[str]:
    """Folders whose sources are watched; none unless reloading is on."""
    return [str(folder.absolute()) for folder in (plan.root, *plan.watch)] if plan.reload else []


def _python_path() -> str:
    """`PYTHONPATH` as absolute paths, since a child runs elsewhere, and where this process found agentmesh itself."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    found = [os.path.abspath(entry) for entry in entries if entry]
    own = os.path.dirname(os.path.dirname(os.path.abspath(version.__file__)))
    return os.pathsep.join([*found, own])
