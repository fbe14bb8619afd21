"""Retries, fallbacks, breakers and time-outs, with real HTTP servers that fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from agentmesh import Mesh
from agentmesh.agents.llm import Generate, ListModels, LLMGateway, LLMPart, LLMRequest, ModelCall
from agentmesh.errors import ModelError
from agentmesh.messages import Prompt
from tests.harness.waiting import eventually
from tests.llm.conftest import Ask, Serve, operations, route, served
from tests.llm.server import fails, hangs, says

Start = Callable[..., Awaitable[None]]


@pytest.mark.seed("B35")
async def test_what_may_pass_is_tried_again(serve: Serve, gateway: Start, ask: Ask, mesh: Mesh) -> None:
    server = await serve(fails(503), fails(500), says("At last"))
    await gateway({"a": served(server)}, route("a"))

    response = await ask()

    assert (response.text, response.error, len(server.seen)) == ("At last", None, 3)
    (operation,) = [one async for one in mesh.llmops.operations()]
    assert (operation.status, operation.attempts) == ("ok", 3)


async def test_what_does_not_pass_is_not_tried_again_and_is_an_error_answer(
    serve: Serve, gateway: Start, ask: Ask, mesh: Mesh
) -> None:
    server = await serve(fails(400, "bad field"))
    await gateway({"a": served(server, fallbacks=["b"]), "b": {}}, route("a"))

    response = await ask()

    assert response.error is not None
    assert (response.error.code, len(server.seen), response.finish_reason) == ("INVALID_ARGUMENT", 1, "error")
    with pytest.raises(ModelError, match="bad field"):
        await mesh.ask("llm", Prompt(text="Hello?"))


async def test_a_server_that_says_when_to_come_back_is_left_alone_until_then(
    serve: Serve, gateway: Start, ask: Ask
) -> None:
    server = await serve(fails(429, headers={"retry-after-ms": "300"}), says("Now"))
    await gateway({"a": served(server)}, route("a"))
    loop = asyncio.get_running_loop()
    began = loop.time()

    assert (await ask()).text == "Now"

    assert loop.time() - began >= 0.3


async def test_when_that_is_too_long_another_model_is_asked_at_once(serve: Serve, gateway: Start, ask: Ask) -> None:
    busy, other = await serve(fails(429, headers={"retry-after": "50"})), await serve(says("From the other"))
    await gateway({"a": served(busy), "b": served(other)}, route("a", "b"))

    response = await ask()

    assert (response.text, response.backend, len(busy.seen)) == ("From the other", "b", 1)


@pytest.mark.seed("B35")
@pytest.mark.parametrize("status", [401, 403, 404, 503])
async def test_a_model_that_cannot_is_replaced_by_its_fallback(
    serve: Serve, gateway: Start, ask: Ask, status: int, mesh: Mesh
) -> None:
    server = await serve(fails(status))
    await gateway({"a": served(server, fallbacks=["b"]), "b": {}}, route("a", retries=0))

    response = await ask("Say yes")

    assert (response.text, response.backend) == ("yes", "b")
    assert {(one.model, one.status) for one in await operations(mesh, 2)} == {("a", "error"), ("b", "ok")}


async def test_an_answer_that_has_begun_is_not_begun_again_by_another_model(
    serve: Serve, gateway: Start, mesh: Mesh
) -> None:
    server = await serve(says("one two three", cut=2))
    await gateway({"a": served(server), "b": {}}, route("a", "b"))

    parts = [part async for part in mesh.stream("llm", LLMRequest(prompt="Hello?"))]

    response = parts[-1].response()
    assert [part.content for part in parts[:-1]] == ["one ", "two "]
    assert response.error is not None
    assert (response.error.code, len(server.seen)) == ("UNAVAILABLE", 1)


@pytest.mark.seed("A27")
async def test_a_model_that_fails_again_and_again_is_left_alone_and_then_tried(
    serve: Serve, gateway: Start, ask: Ask, mesh: Mesh
) -> None:
    server = await serve(*[fails(503)] * 2, says("Fine again"))
    breaker = {"failures": 2, "cooldown": 0.3}
    await gateway({"a": served(server)}, {**route("a", retries=0), "breaker": breaker})

    broken = [(await ask()).error for _ in range(3)]

    assert [error and (error.code, error.details.get("breaker")) for error in broken] == [
        ("UNAVAILABLE", None),
        ("UNAVAILABLE", None),
        ("UNAVAILABLE", "open"),
    ]
    assert len(server.seen) == 2
    (status,) = await mesh.ask("llm", ListModels())
    assert (status.state, status.failed) == ("open", 2)
    await eventually(lambda: _answered(ask, "Fine again"), 20, period=0.05)
    await ask()
    (status,) = await mesh.ask("llm", ListModels())
    assert status.state == "closed"


async def _answered(ask: Ask, text: str) -> bool:
    return (await ask()).text == text


@pytest.mark.parametrize(
    ("setting", "message"), [("first_token", "no answer began within"), ("total", "no answer began within")]
)
async def test_a_silent_model_is_given_up(serve: Serve, gateway: Start, ask: Ask, setting: str, message: str) -> None:
    server = await serve(hangs())
    await gateway({"a": served(server)}, route("a", retries=0, **{setting: 0.2}))

    response = await ask()

    assert response.error is not None
    assert response.error.code == "DEADLINE_EXCEEDED"
    assert message in response.error.message
    async with asyncio.timeout(20):
        await server.seen[0].gone.wait()


async def test_a_model_that_stops_in_the_middle_is_given_up(serve: Serve, gateway: Start, ask: Ask) -> None:
    server = await serve(says("one two", gate=asyncio.Event()))
    await gateway({"a": served(server)}, route("a", idle=0.2))

    response = await ask()

    assert response.error is not None
    assert response.error.message == "no answer went on within 0.2 s"


async def test_leaving_an_answer_cancels_the_call_of_the_model(serve: Serve, gateway: Start, mesh: Mesh) -> None:
    server = await serve(says("one two", gate=asyncio.Event()))
    await gateway({"a": served(server)}, route("a"))

    answer = mesh.stream("llm", LLMRequest(prompt="Hello?"))
    await anext(answer)
    await answer.aclose()

    async with asyncio.timeout(20):
        await server.seen[0].gone.wait()
    (kept,) = await operations(mesh, 1)
    assert (kept.status, kept.tokens.completion > 0) == ("cancelled", True)


class Strange:
    """A backend with an error of its own, and an answer without a finish."""

    name = "strange"

    async def generate(self, call: ModelCall) -> AsyncIterator[LLMPart]:
        if "fail" in call.messages[-1].content:
            raise ZeroDivisionError("the secret")
        yield LLMPart(content="one two")

    async def close(self) -> None: ...


async def test_a_backend_of_ones_own_may_be_wrong(
    mesh: Mesh, gateway: Start, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    await mesh.spawn(LLMGateway, {"a": Strange()}, route("a", retries=0))

    good, bad = await ask("Hello"), await ask("fail")

    assert (good.text, good.finish_reason, good.usage.completion_tokens) == ("one two", "stop", 2)
    assert bad.error is not None
    assert (bad.error.code, bad.error.message) == ("INTERNAL", "its backend failed: ZeroDivisionError")


@pytest.mark.seed("B35")
async def test_a_job_is_tried_again_until_the_model_is_back(serve: Serve, gateway: Start, mesh: Mesh) -> None:
    server = await serve(fails(503), fails(503), says("Done"))
    await gateway({"a": served(server)}, route("a", retries=0))

    job = await mesh.submit(Generate(prompt="Hello?"), to="llm")

    assert (await job.result(timeout=60)).text == "Done"
    assert len(server.seen) == 3


async def test_nothing_secret_is_logged(
    serve: Serve, gateway: Start, ask: Ask, mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentmesh")
    server = await serve(fails(401, "bad key sk-secret-of-the-tests"), says("the answer is confidential"))
    await gateway({"a": served(server)}, route("a", retries=0))

    refused = await ask("a confidential question")
    await ask("a confidential question")

    kept = str([one async for one in mesh.llmops.operations()])
    for text in (caplog.text, kept, str(refused)):
        assert "secret" not in text
        assert "confidential" not in text
