"""`agentmesh check`: what would not do what it says is found, where it stands, with what to write instead."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentmesh import Agent, Mesh, Request, handler, runfile
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.facade import NATSClient
from agentmesh.subjectlint import Use, misuse, uses
from agentmesh.transport import StreamSpec, Transport, TransportOptions
from tests.cli.conftest import Cli, Ran

PROJECT = """
from typing import Any
from agentmesh import Agent, Request, handler

class Greet(Request[str]):
    name: str

class Anything(Request[Any]):
    text: str

class Greeter(Agent):
    @handler
    async def greet(self, request: Greet) -> str:
        return f"Hello, {request.name}!"

class Vague(Agent):
    @handler
    async def anything(self, request: Anything) -> Any:
        return request.text

class Idle(Agent):
    pass
"""

GUIDE = """
async def subscriptions(nats_client, tenant_id, agent_id, handler):
    await nats_client.subscribe(subject=f"ai.agent.message.{tenant_id}", callback=handler, queue=f"agent.{agent_id}")
    await nats_client.subscribe(subject=f"ai.agent.tasks.{tenant_id}", callback=handler, queue="agent.workers")
    await nats_client.subscribe(subject=f"ai.gateway.cache.invalidate.{tenant_id}", callback=handler, queue="cache")
    await nats_client.subscribe(subject=f"ai.gateway.requests.{tenant_id}", callback=handler)
    await nats_client.request(subject=f"ai.gateway.responses.{tenant_id}", payload=b"", timeout=60.0)
"""


def says(ran: Ran, state: str) -> list[str]:
    found: list[dict[str, Any]] = ran.json
    return [finding["says"] for finding in found if finding["state"] == state]


@pytest.mark.seed("B51")
async def test_a_project_is_checked_from_settings_to_code(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROJECT)
    (tmp_path / "guide.py").write_text(GUIDE)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "ignored.py").write_text(GUIDE)
    (tmp_path / "mesh.toml").write_text(
        "tenant = 'acme'\n[agents.greeter]\nclass = 'shop:Greeter'\n[agents.vague]\nclass = 'shop:Vague'\n"
        "[agents.idle]\nclass = 'shop:Idle'\n"
    )

    ran = await alone("check", "--json", env={"AGENTMESH_NODE_COUNT": "3"})

    assert ran.code == 0
    assert {"tenant = acme  (mesh.toml)", "node.count = 3  ($AGENTMESH_NODE_COUNT)"} <= set(says(ran, "note"))
    assert "greeter: Greet" in says(ran, "ok")
    warnings = says(ran, "warning")
    assert [line.partition(": ")[0] for line in warnings] == ["vague", "idle takes no messages"] + [
        f"guide.py:{line}" for line in (3, 5, 6, 7)
    ]
    assert "every agent is a group of its own" in warnings[2]
    assert (await alone("check", "--strict")).code == 1
    assert "→ leave the queue out" in (await alone("check")).out


async def test_a_project_without_fault_passes_strictly(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROJECT)
    (tmp_path / "mesh.toml").write_text("[agents.greeter]\nclass = 'shop:Greeter'\n")

    ran = await alone("check", "--strict")

    assert ran.code == 0, ran.out
    assert "✓ code         subjects in 1 file" in ran.out


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("nmae = 'x'\n", "did you mean 'name'?"),
        ("[agents.greeter]\nclass = 'shop:Greetr'\n", "did you mean Greeter?"),
        ("[agents.greeter]\nclass = 'nowhere:Greeter'\n", "No module named 'nowhere'"),
        ("[tools]\ntargets = ['nowhere']\n", "No module named 'nowhere'"),
    ],
)
async def test_what_cannot_work_ends_with_1(alone: Cli, tmp_path: Path, settings: str, problem: str) -> None:
    (tmp_path / "shop.py").write_text(PROJECT)
    (tmp_path / "mesh.toml").write_text(settings)

    ran = await alone("check", "--json")

    assert ran.code == 1
    assert problem in " ".join(says(ran, "wrong"))


async def test_a_path_that_is_not_there_is_a_usage_error(alone: Cli) -> None:
    assert (await alone("check", "nowhere")).code == 2


class Hello(Request[str]):
    pass


class Greeter(Agent):
    @handler
    async def hello(self, request: Hello) -> str:
        return "hello"


async def test_a_running_mesh_of_ours_has_no_fault(cli: Cli, mesh: Mesh, nats_server: EmbeddedBroker) -> None:
    await mesh.spawn(Greeter)

    ran = await cli("check", "--json", env={"AGENTMESH_BROKER_MONITOR": str(nats_server.monitor_url)})

    assert ran.code == 0
    assert says(ran, "warning") == []
    assert "none captures a subject of requests" in says(ran, "ok")
    assert "queue groups fit the subjects they are on" in says(ran, "ok")


@pytest.mark.seed("B51")
async def test_a_broker_is_asked_for_streams_that_answer_and_groups_that_do_not_fit(alone: Cli, tmp_path: Path) -> None:
    with EmbeddedBroker(BrokerOptions(store=tmp_path / "store")) as broker:
        content = runfile.RunFile(broker.url, "default", "x", os.getpid(), datetime.now(UTC), broker.monitor_url)
        runfile.write(tmp_path / runfile.RUN_DIR, content)
        async with (
            await Transport.connect(TransportOptions(url=broker.url)) as transport,
            NATSClient(broker.url) as nats_client,
        ):
            await transport.ensure_stream(StreamSpec("EVERYTHING", ("ai.gateway.>", "svc.ai.>")))
            await nats_client.subscribe(
                subject="ai.gateway.cache.invalidate.default", callback=print, queue="gateway.workers"
            )
            ran = await alone("check", "--json")

    assert ran.code == 1
    (captured,) = says(ran, "wrong")
    assert captured.startswith("stream EVERYTHING captures ai.gateway.> (ai.gateway.requests.*)")
    assert [line.partition(" with ")[0] for line in says(ran, "warning")] == [
        "nats-client: ai.gateway.cache.invalidate.default"
    ]


@pytest.mark.parametrize(
    ("use", "wrong"),
    [
        (Use("subscribe", "ai.agent.topic.acme.news", "q"), "only one member"),
        (Use("subscribe", "ai.agent.topic.acme.news", None), "only one member"),
        (Use("subscribe", "ai.agent.topic.acme.news", "agent.reader"), ""),
        (Use("subscribe", "ai.agent.topic.acme.news", ""), ""),
        (Use("subscribe", "ai.agent.message.acme", "agent.*"), "every agent is a group"),
        (Use("subscribe", "ai.agent.message.acme", "workers"), "any one member"),
        (Use("subscribe", "ai.agent.message.acme", "doors"), ""),  # of agentmesh up
        (Use("subscribe", "ai.agent.message.acme", ""), ""),
        (Use("subscribe", "ai.agent.message.acme.writer", "agent.writer"), ""),
        (Use("subscribe", "ai.agent.message.acme.writer", "others"), "handled twice"),
        (Use("subscribe", "ai.agent.message.acme.*", "agent.*"), ""),
        (Use("subscribe", "svc.ai.llm.v1.infer", ""), "without a queue group"),
        (Use("subscribe", "svc.ai.llm.v1.infer", "q.ai.llm.infer"), ""),
        (Use("subscribe", "*.*.*", "q"), ""),
        (Use("subscribe", "ai.rag.queries.>", ""), ""),  # whoever watches everything is no worker
        (Use("request", "ai.rag.status.acme"), "nobody answers"),
        (Use("publish", "ai.rag.status.acme"), ""),
    ],
)
def test_a_group_fits_or_not(use: Use, wrong: str) -> None:
    found = misuse(use)
    assert (found is not None and wrong in found.says) if wrong else found is None


def test_code_that_cannot_be_read_has_no_uses() -> None:
    assert list(uses("def f(:")) == []
    assert list(uses("x.subscribe(name, callback=f)\nx.publish()\nx.request(1)")) == []
    (use,) = uses('nc.publish_with_retry(f"a.{b}c.{d}", b"")')
    assert use == Use("publish", "a.*.*", "", 1)
