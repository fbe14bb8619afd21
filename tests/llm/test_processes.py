"""Replicas of the gateway in processes of their own, and the gateway behind our own HTTP door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh import Mesh
from agentmesh.agents.llm import Generate, LLMGateway
from agentmesh.broker import EmbeddedBroker
from agentmesh.gateway import Gateway, GatewayOptions, HttpServer
from agentmesh.messages import Prompt
from tests.cli.conftest import run, start
from tests.harness.fixtures import SpawnProcess
from tests.llm.conftest import Ask, Serve, operations
from tests.llm.server import hangs, says

Start = Callable[..., Awaitable[None]]


@pytest.mark.slow
async def test_a_job_survives_the_replica_that_is_killed_while_its_model_answers(
    serve: Serve, spawn_process: SpawnProcess, mesh: Mesh, nats_server: EmbeddedBroker
) -> None:
    models = await serve(hangs(), says("Answered by the other one"))
    place = (nats_server.url, mesh.subjects.tenant, models.url)
    replicas = {name: await spawn_process("tests.llm.replica", *place, name) for name in ("one", "two")}
    for replica in replicas.values():
        await replica.line_matching("ready", timeout=60)

    job = await mesh.submit(Generate(prompt="Hello?"), to="llm")
    async with asyncio.timeout(60):
        await models.arrived.wait()
    asked = models.seen[0].body["model"]
    replicas[asked].kill9()

    result = await job.result(timeout=120)

    assert result.text == "Answered by the other one"
    assert result.model == models.seen[-1].body["model"] != asked
    kept = await operations(mesh, 1)
    assert [one.status for one in kept] == ["ok"]


async def test_a_gateway_can_stand_behind_another_one_over_http(mesh: Mesh, ask: Ask) -> None:
    """`llm` asks `inner` through our own `/v1/chat/completions`, as any server that speaks the OpenAI API."""
    await mesh.spawn(LLMGateway, {}, {"doors": {"enabled": False}}, name="inner")
    http = HttpServer(Gateway(GatewayOptions(port=0, access_log=False), mesh.transport, mesh.subjects.tenant))
    await http.start()
    outer = {"backend": "openai", "base_url": f"{http.url}/v1", "model": "inner"}
    await mesh.spawn(LLMGateway, {"default": outer}, {})

    answer = await ask("What is 6 * 7?")
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    filled = await ask("Ada is 36 years old.", response_format=wanted)
    adding = {"name": "calculator", "description": "Evaluate an expression", "parameters": {
        "type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}}  # fmt: skip
    called = await ask("What is 6 * 7?", tools=[{"type": "function", "function": adding}])

    assert (answer.text, answer.backend, answer.error) == ("6 * 7 = 42", "default", None)
    assert answer.usage.completion_tokens == 5
    assert filled.text == '{"age": 36}'
    calls = called.messages[0].tool_calls or []
    assert (calls[0]["function"], called.finish_reason) == (
        {"name": "calculator", "arguments": '{"expression": "6 * 7"}'},
        "tool_calls",
    )
    await http.stop(2.0)


async def test_agentmesh_up_brings_a_model_that_answers_without_any_key(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text("[http]\nenabled = false\n[node]\ncount = 1\n")
    process = await start("up", "--port", "0", "--detach", cwd=tmp_path, env={"AGENTMESH_LLM_ENABLED": "true"})
    try:
        out, err = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == 0, (out, err)

        answered = await run("ask", "llm", "What is 6 * 7?", cwd=tmp_path)
        shown = await run("llm", "ls", "--json", cwd=tmp_path)

        assert answered.out.strip() == "6 * 7 = 42"
        assert [(model["name"], model["backend"]) for model in shown.json] == [("default", "offline")]
    finally:
        await run("down", "--force", cwd=tmp_path)


async def test_a_prompt_is_answered_by_whichever_replica(mesh: Mesh) -> None:
    await mesh.spawn(LLMGateway, {}, {"doors": {"enabled": False}}, replicas=2)

    answers = await asyncio.gather(*(mesh.ask("llm", Prompt(text=f"What is {n} + 1?")) for n in range(20)))

    assert answers == [f"{n} + 1 = {n + 1}" for n in range(20)]
