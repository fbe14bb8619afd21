"""The agent `llm`: what it takes, and what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from agentmesh import AgentRef, Mesh
from agentmesh.agents.llm import Generate, ListModels, LLMGateway, LLMPart, LLMRequest
from agentmesh.chat import Chat, ChatMessage, ChatPart
from agentmesh.errors import InvalidMessageError
from agentmesh.messages import Prompt

Spawn = Callable[..., Awaitable[AgentRef]]


async def test_a_request_is_answered_in_parts_and_the_last_one_is_the_whole(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(LLMGateway)

    parts: list[LLMPart] = [part async for part in mesh.stream("llm", LLMRequest(prompt="What is a frobnicator?"))]

    response = parts[-1].response()
    assert parts[-1].is_final
    assert response.text == "".join(part.content for part in parts[:-1] if part.type == "text")
    assert response.usage.completion_tokens == len(parts) - 1
    assert response.finish_reason == "stop"


async def test_chats_prompts_and_jobs_are_answered_too(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(LLMGateway)
    text = await mesh.ask("llm", Prompt(text="What is a frobnicator?"))
    chat = Chat(messages=[ChatMessage(role="user", content="What is a frobnicator?")])
    parts: list[ChatPart] = [part async for part in mesh.stream("llm", chat)]
    job = await mesh.submit(Generate(prompt="What is a frobnicator?"), to="llm")

    assert "".join(part.content for part in parts) == text
    assert [part.type for part in parts[-2:]] == ["usage", "finish"]
    assert (await job.result(timeout=30)).text == text


async def test_an_empty_prompt_is_refused(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(LLMGateway)
    with pytest.raises(InvalidMessageError, match="empty"):
        await mesh.ask("llm", Prompt(text="  "))


async def test_an_unknown_model_is_an_error_answer_that_names_those_there_are(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(LLMGateway, {"small": {}, "large": {}})

    parts = [part async for part in mesh.stream("llm", LLMRequest(prompt="Hi", model="smal"))]

    error = parts[-1].response().error
    assert error is not None
    assert (error.code, len(parts)) == ("NOT_FOUND", 1)
    assert "small" in error.message
    assert [model.name for model in await mesh.ask("llm", ListModels())] == ["small", "large"]
