"""A gateway for the tests of this folder, and a server of models behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from agentmesh import Mesh
from agentmesh.agents.llm import LLMGateway, LLMRequest, LLMResponse
from agentmesh.llmops import Operation
from tests.harness.waiting import eventually
from tests.llm.server import Behaviour, ModelServer, serving

Serve = Callable[..., Awaitable[ModelServer]]
Ask = Callable[..., Awaitable[LLMResponse]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`server = await serve(fails(503), says("Hello"))`: a real HTTP server that does this, then that."""
    async with AsyncExitStack() as stack:

        async def start(*script: Behaviour) -> ModelServer:
            return await stack.enter_async_context(serving(ModelServer(*script)))

        yield start


@pytest.fixture
def ask(mesh: Mesh) -> Ask:
    """The whole answer of the gateway `llm` to a prompt."""

    async def ask(prompt: str = "Hello?", **more: Any) -> LLMResponse:
        parts = [part async for part in mesh.stream("llm", LLMRequest(prompt=prompt, **more), timeout=30)]
        return parts[-1].response()

    return ask


@pytest.fixture
async def gateway(mesh: Mesh) -> Callable[..., Awaitable[None]]:
    """`await gateway({"a": {...}}, {"routes": ...})`: the agent `llm` with these models and settings."""

    async def start(models: dict[str, Any] | None = None, llm: dict[str, Any] | None = None) -> None:
        await mesh.spawn(LLMGateway, models or {}, llm or {})

    return start


def served(server: ModelServer, **more: Any) -> dict[str, Any]:
    """Settings of a model behind that server."""
    return {"backend": "openai", "base_url": server.url, "api_key": "sk-secret-of-the-tests", "model": "m-1", **more}


async def operations(mesh: Mesh, count: int) -> list[Operation]:
    """The operations that were kept, when there are that many: those without a call are kept behind the answer."""

    async def enough() -> list[Operation]:
        kept = [one async for one in mesh.llmops.operations()]
        return kept if len(kept) >= count else []

    return await eventually(enough, 20)


def route(*models: str, **more: Any) -> dict[str, Any]:
    """Settings of a gateway with this default route."""
    return {"routes": {"default": {"models": list(models), "backoff": 0.01, **more}}}
