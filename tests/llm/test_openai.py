"""The backend for OpenAI-compatible servers, against a real HTTP server."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agentmesh.agents.llm import GenerationParameters, LLMPart, ModelCall
from agentmesh.agents.llm.backends import make_backend
from agentmesh.agents.llm.backends.chat_completions import retry_after
from agentmesh.chat import ChatMessage
from agentmesh.config import ModelSettings
from agentmesh.errors import ConfigError, MissingExtraError, ModelError
from tests.llm.conftest import Serve, served
from tests.llm.server import ModelServer, fails, says

SECRET = "sk-secret-of-the-tests"


async def parts(server: ModelServer, settings: dict[str, Any] | None = None, **call: Any) -> list[LLMPart]:
    backend = make_backend("a", ModelSettings.model_validate(served(server, **(settings or {}))))
    messages = call.pop("messages", [ChatMessage(role="user", content="Hello?")])
    try:
        return [part async for part in backend.generate(ModelCall("m-1", messages, **call))]
    finally:
        await backend.close()


async def test_an_answer_is_streamed_with_its_usage(serve: Serve) -> None:
    server = await serve(says("one two three"))

    said = await parts(server)

    assert [part.content for part in said[:-1]] == ["one ", "two ", "three"]
    assert said[-1].data == {
        "finish_reason": "stop",
        "model": "m-1",
        "id": "c1",
        "usage": {"prompt_tokens": 2, "completion_tokens": 3},
    }


async def test_everything_that_is_asked_reaches_the_server_and_nothing_that_was_not_said(serve: Serve) -> None:
    server = await serve(says("yes"))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    params = GenerationParameters(temperature=0, max_tokens=5, stop=["x"], seed=7, top_k=3)

    await parts(
        server,
        params=params,
        tools=tools,
        tool_choice="auto",
        response_format={"type": "json_object"},
        context={"doc": "the text"},
    )

    body = server.seen[0].body
    assert body["messages"][-1] == {"role": "user", "content": "Hello?"}
    assert "the text" in body["messages"][0]["content"]
    rest = {key: value for key, value in body.items() if key != "messages"}
    assert rest == {
        "model": "m-1",
        "temperature": 0,
        "max_tokens": 5,
        "stop": ["x"],
        "seed": 7,
        "top_k": 3,
        "tools": tools,
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert server.seen[0].headers["authorization"] == f"Bearer {SECRET}"


async def test_calls_of_tools_are_put_together_from_their_pieces(serve: Serve) -> None:
    calls = [
        {"index": 0, "id": "call_1", "function": {"name": "add", "arguments": '{"a": '}},
        {"index": 1, "id": "call_2", "function": {"name": "sub", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]
    server = await serve(says("", tool_calls=calls))

    said = await parts(server)

    assert [part.data for part in said[:-1]] == [
        {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
    ]
    assert said[-1].data["finish_reason"] == "tool_calls"


async def test_a_server_that_cannot_stream_is_asked_for_the_whole(serve: Serve) -> None:
    server = await serve(says("all at once"))

    said = await parts(server, {"options": {"stream": False, "headers": {"X-Team": "blue"}}})

    assert [part.content for part in said] == ["all at once", ""]
    assert "stream" not in server.seen[0].body
    assert server.seen[0].headers["x-team"] == "blue"


@pytest.mark.parametrize(
    ("behaviour", "code", "wait"),
    [
        (fails(400, "bad"), "INVALID_ARGUMENT", 0),
        (fails(400, "long", code="context_length_exceeded"), "OUT_OF_RANGE", 0),
        (fails(401, f"Incorrect API key provided: {SECRET}"), "UNAUTHENTICATED", 0),
        (fails(403), "PERMISSION_DENIED", 0),
        (fails(404), "NOT_FOUND", 0),
        (fails(429, headers={"retry-after": "7"}), "RESOURCE_EXHAUSTED", 7),
        (fails(429, headers={"retry-after-ms": "250"}), "RESOURCE_EXHAUSTED", 0.25),
        (fails(429, code="insufficient_quota"), "RESOURCE_EXHAUSTED", 3600),
        (fails(500), "INTERNAL", 0),
        (fails(503), "UNAVAILABLE", 0),
        (says("one two", cut=1), "UNAVAILABLE", 0),
    ],
)
async def test_an_error_has_a_code_and_says_nothing_secret(
    serve: Serve, behaviour: Any, code: str, wait: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentmesh")
    server = await serve(behaviour)

    with pytest.raises(ModelError) as caught:
        await parts(server)

    assert (caught.value.code, caught.value.retry_after, caught.value.backend) == (code, wait, "a")
    assert "secret" not in str(caught.value) + repr(caught.value.args) + caplog.text


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    nowhere = ModelServer()
    nowhere.url = "http://127.0.0.1:9/v1"

    with pytest.raises(ModelError, match="UNAVAILABLE"):
        await parts(nowhere)


async def test_leaving_an_answer_ends_the_request(serve: Serve) -> None:
    server = await serve(says("one two", gate=asyncio.Event()))
    backend = make_backend("a", ModelSettings.model_validate(served(server)))
    answer = backend.generate(ModelCall("m-1", [ChatMessage(role="user", content="Hello?")]))

    assert (await anext(answer)).content == "one "
    await answer.aclose()  # type: ignore[attr-defined]

    async with asyncio.timeout(20):
        await server.seen[0].gone.wait()
    await backend.close()


def test_when_to_come_back_may_be_a_date() -> None:
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}) > 1e9
    assert retry_after({"retry-after": "soon"}) == 0


def test_a_backend_that_cannot_be_says_why() -> None:
    with pytest.raises(ConfigError, match=r"models\.a\.backend: .*expected offline, openai, litellm"):
        make_backend("a", ModelSettings(backend="gpt"))
    with pytest.raises(ConfigError, match="cannot be imported"):
        make_backend("a", ModelSettings(backend="nowhere:Nothing"))
    with pytest.raises(ConfigError, match=r"options\.temprature"):
        make_backend("a", ModelSettings(backend="openai", options={"temprature": 1}))


def test_without_litellm_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"agentmesh-nats\[litellm\]"):
        make_backend("a", ModelSettings(backend="litellm"))
