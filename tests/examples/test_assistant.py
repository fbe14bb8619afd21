"""The example answers from its notes and calculates, and its letters wait for a person."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh import AgentRef, Mesh, Prompt, config
from agentmesh.agents.llm import LLMGateway
from agentmesh.chat import Turn
from agentmesh.host import load
from agentmesh.ids import new_id
from agentmesh.tools.executor import ToolExecutor
from agentmesh.tools.loading import load_all

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "assistant"
Spawn = Callable[..., Awaitable[AgentRef]]


async def test_the_assistant_searches_calculates_and_asks_before_it_sends(
    mesh: Mesh, spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = tmp_path / "outbox"
    monkeypatch.syspath_prepend(str(EXAMPLE))
    settings = config.load(config=EXAMPLE / "mesh.toml", environ={})
    module = importlib.import_module("assistant")
    tools, broken = load_all(settings.tools.targets)
    assert not broken
    tools = [one.configure(outbox=outbox) if one.name == "send_letter" else one for one in tools]
    await spawn(LLMGateway)
    assistant = await spawn(load(settings.agents["assistant"].target))
    assert assistant.name == "assistant"
    async with ToolExecutor(mesh.transport, mesh.subjects, tools, allow=settings.tools.allow):
        answer = await assistant.ask(Prompt(text="Search the notes for holidays"))
        assert "30 days of holidays" in answer
        assert "20" in await assistant.ask(Prompt(text="Calculate (2 + 3) * 4"))

        run_id = new_id()
        async with mesh.streams.run("office", run_id=run_id, epoch=0, role="user", durable=True) as run:
            await run.send("Send a letter that says: see you on Monday")
        job = await mesh.submit(Turn(conversation_id="office", run_id=run_id), to="assistant", task_id=run_id)
        asked = None
        async for chunk in mesh.streams.read("office", run_id=run_id):
            if chunk.type == "tool_call":
                asked = chunk
                break
        assert asked is not None
        assert asked.data["status"] == "approval"
        assert not outbox.exists()
        await job.signal(asked.data["signal"], True)
        await job.result(30)
    (letter,) = outbox.iterdir()
    assert "see you on Monday" in letter.read_text()
    with pytest.raises(ValueError, match="only numbers"):
        module.calculate.function("__import__('os')")
