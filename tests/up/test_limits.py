"""Limits and bounds written in mesh.toml hold in the processes of `agentmesh up`."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh import config
from agentmesh.cli.plan import make_plan
from agentmesh.errors import ConfigError
from agentmesh.limits import Limit
from agentmesh.tasks import layout
from agentmesh.up.plan import AgentPlan, dump, load
from tests.up.conftest import StartMesh

FILE = """
[tasks]
queue_limit = 50
[streams]
max_age = "24h"
max_bytes = "2GB"
max_chunks = 5000
compression = false
[limits]
tenant = [{concurrency = 20}, {rate = 100, period = "1m"}]
[agents.fetcher]
class = "hello.agents:Fetcher"
limits = [{concurrency = 4}, {rate = 10, period = 60, key = "host"}, {concurrency = 2, name = "model"}]
"""


def test_limits_in_the_file_become_limits_in_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "mesh.toml"
    path.write_text(FILE)

    plan = make_plan(config.load(config=path, environ={}))

    assert plan.limits == (Limit(concurrency=20), Limit(rate=100, period=60.0))
    assert plan.agents[0].limits == (
        Limit(concurrency=4),
        Limit(rate=10, period=60.0, key="host"),
        Limit(concurrency=2, name="model"),
    )
    assert plan.queue_limit == 50
    assert plan.streams == layout.StreamBounds(86_400.0, 2 * 1024**3, 5000, False)
    assert load(dump(plan)) == plan


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ("[{}]", "give concurrency or rate"),
        ("[{concurrency = 1, period = 0}]", "period must be"),
        ("[{rates = 1}]", "rates"),
        ("[{concurrency = 1}, {concurrency = 2}]", "two limits"),
    ],
)
def test_a_limit_in_the_file_that_cannot_be_names_its_place(tmp_path: Path, limits: str, problem: str) -> None:
    path = tmp_path / "mesh.toml"
    path.write_text(f"[limits]\ntenant = {limits}\n")

    with pytest.raises(ConfigError, match=problem) as caught:
        make_plan(config.load(config=path, environ={}))

    assert caught.value.key.startswith("limits.tenant")


@pytest.mark.seed("D8", "D27")
async def test_the_limits_of_the_plan_are_those_of_its_workers(start_mesh: StartMesh) -> None:
    adder = AgentPlan("adder", "swarm:Adder", limits=(Limit(rate=9, period=5.0),))
    bounds = layout.StreamBounds(max_age=3600.0, max_bytes=10**8, max_chunks=88, compression=False)
    mesh = await start_mesh(adder, limits=(Limit(concurrency=2),), queue_limit=77, streams=bounds)
    client = await mesh.client()

    body = b'{"task_id":"t1","task_type":"Add","parameters":{"a":1,"b":2}}'
    await client.transport.publish_durable(client.subjects.tasks("adder", "normal"), body)
    assert await client.job("t1").result(10) == 3

    uses = {(use.scope, use.owner, use.allowed) for use in await client.limits.ls()}
    assert uses == {("tenant", "all", 2), ("agent", "adder", 9)}
    info = await client.transport.stream_info(layout.TASKS)
    assert info is not None
    assert info.config["max_msgs_per_subject"] == 77
    info = await client.transport.stream_info(layout.STREAMS)
    assert info is not None
    names = ("max_age", "max_bytes", "max_msgs_per_subject", "compression", "allow_msg_ttl")
    assert [info.config[name] for name in names] == [3600 * 10**9, 10**8, 88, "none", True]
