"""A gateway with a puppet for a model, and tools in an executor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agentmesh import AgentRef, Mesh
from agentmesh.agents.llm import LLMGateway
from agentmesh.tools.executor import ToolExecutor
from tests.llm_agent.puppet import TOOLS, Puppet

Spawn = Callable[..., Awaitable[AgentRef]]


@pytest.fixture
async def tools(mesh: Mesh) -> AsyncIterator[ToolExecutor]:
    async with ToolExecutor(mesh.transport, mesh.subjects, TOOLS) as executor:
        yield executor


@pytest.fixture
async def puppet(mesh: Mesh, spawn: Spawn, tools: ToolExecutor) -> Puppet:
    model: Any = Puppet()
    await spawn(LLMGateway, models={"default": model})
    return model  # type: ignore[no-any-return]
