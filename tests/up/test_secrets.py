"""K6: whatever goes wrong, no log has what only the two ends of a message, or a login, may know."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh import AgentRef, Event, Request, Task, connect
from agentmesh.errors import AgentMeshError
from agentmesh.node import NodeAgent
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.transport.tools import States
from tests.up.test_node import said, spec, started

PASSWORD, PAYLOAD, HEADER, TOKEN = "hunter2-password", "hunter2-payload", "hunter2-header", "hunter2-token"

LOGIN = f"authorization {{ users = [ {{user: worker, password: {PASSWORD}}} ] }}\n"

CODE = """
from agentmesh import Agent, Event, Request, Task, handler

class Tell(Event):
    text: str

class Ask(Request[str]):
    text: str
    number: int = 0

class Keep(Event, durable=True):
    text: str

class Do(Task[str], max_attempts=2, backoff=0.05):
    text: str
    number: int = 0

class Vault(Agent):
    @handler
    async def told(self, event: Tell) -> None:
        raise ValueError("no")

    @handler
    async def asked(self, request: Ask) -> str:
        if request.number:
            raise ValueError("no")
        return request.text

    @handler
    async def keep(self, event: Keep) -> None:
        raise ValueError("no")

    @handler
    async def do(self, task: Do) -> str:
        if task.number:
            raise ValueError("no")
        return task.text
"""


class Tell(Event):
    text: str


class Ask(Request[str]):
    text: str
    number: object = 0


class Keep(Event, durable=True):
    text: str


class Do(Task[str]):
    text: str
    number: object = 0


async def test_k6_no_log_has_a_secret(
    spawn_process: SpawnProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "vaults.py").write_text(CODE)
    async with Server(extra_config=LOGIN) as server:
        url = server.url.replace("nats://", f"nats://worker:{PASSWORD}@")
        given = spec(url, tmp_path, NodeAgent("vault", "vaults:Vault", replicas=[1]), log_level="DEBUG")
        node = await started(spawn_process, given)
        await said(node, "ready")
        async with connect(url) as mesh:
            await everything(mesh.transport, server)
            vault = mesh.ref("vault")
            for number in (0, 1, PAYLOAD):  # it works, it fails, it does not fit
                with contextlib.suppress(AgentMeshError):
                    await vault.ask(Ask(text=PAYLOAD, number=number), timeout=5)
                with contextlib.suppress(AgentMeshError):
                    await (await mesh.submit(Do(text=PAYLOAD, number=number), to="vault")).result(5)
            await vault.tell(Tell(text=PAYLOAD))
            await vault.tell(Keep(text=PAYLOAD))
            with contextlib.suppress(AgentMeshError):
                await mesh.ask("nobody", Ask(text=PAYLOAD), timeout=1)

            server.kill9()
            await States(mesh.transport).reach("reconnecting")
            await server.start()
            await States(mesh.transport).reach("connected")
            await eventually(lambda: answers(vault), 10)  # the node may come back later than we
        node.terminate()
        await node.wait()
        logs = {"client": caplog.text, "node": node.output, "server": server.log()}

    assert "ValueError: no" in logs["node"]
    assert [(name, line) for name, log in logs.items() for line in log.splitlines() if "hunter2" in line] == []


async def answers(vault: AgentRef) -> bool:
    with contextlib.suppress(AgentMeshError):
        return await vault.ask(Ask(text=PAYLOAD), timeout=5) == PAYLOAD
    return False


async def everything(transport: Transport, server: Server) -> None:
    """Hostile and wrong: garbage, headers, a login that is refused."""
    garbage = PAYLOAD.encode() + b"\xff"
    for subject in ("ai.agent.message.default.vault", "ai.agent.message.default", "ai.agent.control.default.cancel"):
        await transport.publish(subject, garbage, headers={"X-Secret": HEADER})
    with contextlib.suppress(AgentMeshError):
        await transport.publish_durable("ai.agent.tasks.default.vault.normal", garbage, headers={"X-Secret": HEADER})
    wrong = TransportOptions(url=server.url, connect_timeout=1)
    for login in (replace(wrong, token=TOKEN), replace(wrong, user="worker", password=TOKEN)):
        with pytest.raises(AgentMeshError) as refused:
            await Transport.connect(login)
        assert TOKEN not in str(refused.value)
