"""`agentmesh llm`, and the gateway as `agentmesh up` starts it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentmesh import Mesh, config
from agentmesh.agents.llm import CachePolicy, LLMGateway
from agentmesh.broker import EmbeddedBroker
from agentmesh.cli.plan import make_plan
from agentmesh.errors import ConfigError
from agentmesh.llmops import CostAlert, Operation, encode
from agentmesh.metrics import render
from agentmesh.tasks.layout import ALERTS, ensure
from tests.cli.conftest import Ran, run
from tests.llm.conftest import Ask, Serve, operations, route, served
from tests.llm.server import fails

Start = Callable[..., Awaitable[None]]
Cli = Callable[..., Awaitable[Ran]]

FILE = """
[models.small]
backend = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "gpt-small"
api_key = "${SMALL_KEY}"
timeout = "20s"
price = { prompt = 0.15, completion = 0.6 }
budget = { usd_per_day = 5, tokens_per_minute = 60000 }
fallbacks = ["default"]
[models.default]
[llm]
replicas = 2
tenants = { acme = { requests_per_minute = 10 } }
[llm.routes.quick]
models = ["small", "default"]
total = "5s"
cache = true
"""


@pytest.fixture
def cli(mesh: Mesh, nats_server: EmbeddedBroker, tmp_path: Path) -> Cli:
    async def call(*arguments: str) -> Ran:
        place = ("--nats", nats_server.url, "--tenant", mesh.subjects.tenant)
        return await run("llm", *arguments, *place, cwd=tmp_path)

    return call


@pytest.mark.seed("B40", "A27")
async def test_models_calls_and_costs_are_shown(serve: Serve, gateway: Start, ask: Ask, cli: Cli, mesh: Mesh) -> None:
    server = await serve(fails(503))
    models = {"a": served(server, fallbacks=["b"]), "b": {"price": {"prompt": 100.0, "completion": 100.0}}}
    await gateway(models, {**route("a", retries=0), "breaker": {"failures": 1}})
    await ask("Say yes")
    await ask("Say yes", cache=CachePolicy(tags=["x"]))
    await operations(mesh, 3)

    shown, costs, ops = await cli("ls"), await cli("cost", "--day", "today"), await cli("ops", "--json", "--model", "b")

    lines = {line.split()[0]: line.split() for line in shown.lines if line.strip()}
    assert (lines["a"][1:4], lines["b"][3]) == (["openai", "m-1", "open"], "closed")
    assert "b" in lines["a"]
    assert [line.split()[1:3] for line in costs.lines[1:]] == [["b", "2"], ["a", "1"]]
    assert [one["model"] for one in ops.json] == ["b", "b"]
    assert ops.json[0]["tokens"]["completion"] == 1
    (info,) = await mesh.agents("llm")
    assert info.remark == "left alone after failures: a"
    assert 'agentmesh_llm_breaker{model="a"} 2' in _figures(mesh)


def _figures(mesh: Mesh) -> str:
    from agentmesh.metrics import metrics_of

    return render(metrics_of(mesh.transport).families())


async def test_answers_are_voided_and_alerts_listed(gateway: Start, ask: Ask, cli: Cli, mesh: Mesh) -> None:
    await gateway()
    await ask(cache=CachePolicy(tags=["prices"]))
    assert (await ask(cache=CachePolicy(tags=["prices"]))).cached
    await ensure(mesh.transport, ALERTS)
    alert = CostAlert(alert_id="one", budget="tenant t", day="2026-01-01", threshold=0.5, limit=4.0, spent=2.0)
    await mesh.transport.publish_durable(mesh.subjects.cost_alert("one"), encode(alert))

    voided, listed = await cli("cache", "--tag", "prices"), await cli("alerts")

    assert (voided.code, voided.err.strip()) == (0, "every replica has been told")
    assert "50%" in listed.out
    assert not (await ask(cache=CachePolicy(tags=["prices"]))).cached


async def test_what_is_typed_wrongly_is_said(cli: Cli, mesh: Mesh) -> None:
    await mesh.llmops.log(Operation(operation_id="one", timestamp=Operation(operation_id="x").timestamp))
    wrong_day, nothing = await cli("ops", "--day", "tomorrowish"), await cli("cache")

    assert (wrong_day.code, nothing.code) == (2, 2)
    assert "expected a date" in wrong_day.err
    assert "--key, --prefix, --tag or --all" in nothing.err


def loaded(folder: Path, text: str, **environ: str) -> config.Settings:
    (folder / "mesh.toml").write_text(text)
    return config.load(directory=folder, environ={"SMALL_KEY": "sk-1234567", **environ})


def test_settings_make_the_agent_and_the_gateway_understands_them(tmp_path: Path) -> None:
    plan = make_plan(loaded(tmp_path, FILE), ready_made=True)

    agent = next(one for one in plan.agents if one.name == "llm")
    made = LLMGateway(**json.loads(json.dumps(agent.kwargs)))

    assert (agent.target, agent.replicas) == ("agentmesh.agents.llm:LLMGateway", 2)
    assert made._table.resolve("quick").models == ("small", "default")
    assert made._table.resolve("").models == ("default",)
    assert made._table.resolve("small").models == ("small", "default")
    assert made._table.models["small"].api_key == "sk-1234567"
    assert made._settings.tenants["acme"].requests_per_minute == 10


def test_keys_are_not_shown_and_do_not_belong_in_files(tmp_path: Path) -> None:
    settings = loaded(tmp_path, FILE)

    assert "1234567" not in repr([(entry.key, entry.value) for entry in settings.entries()])
    with pytest.raises(ConfigError, match="secrets do not belong in a file"):
        loaded(tmp_path, '[models.small]\napi_key = "sk-1234567"\n')


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[models.a]\nfallbacks = ["b"]\n', "there is no model 'b'"),
        ('[llm.routes.quick]\nmodels = ["nothing"]\n', "there is no model 'nothing'"),
        ("[llm.routes.quick]\n", "no model has that name"),
        ("[models.a]\nbackned = 1\n", "did you mean 'backend'"),
        ('[models."a b"]\n', "model"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        loaded(tmp_path, text)


def test_without_the_gateway_there_is_no_agent_and_ones_own_wins(tmp_path: Path) -> None:
    def llm(text: str) -> Any:
        plan = make_plan(loaded(tmp_path, text), ready_made=True)
        return [agent.target for agent in plan.agents if agent.name == "llm"]

    assert llm("[llm]\nenabled = false\n") == []
    assert llm('[agents.llm]\nclass = "mine:Gateway"\n') == ["mine:Gateway"]
    assert llm("") == ["agentmesh.agents.llm:LLMGateway"]
