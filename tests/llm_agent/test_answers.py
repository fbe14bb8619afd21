"""An LLM agent that is asked and answers at once: tools, their bounds, budgets, memory."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentmesh import Agent, Mesh, Prompt, handler
from agentmesh.agents.llm import LLMAgent, LLMGateway, LLMPart, LLMRequest, LLMResponse
from agentmesh.chat import Chat, ChatMessage, ChatPart
from agentmesh.errors import BudgetExceededError, DefinitionError, InvalidMessageError, NoSuchAgentError
from agentmesh.tooling import tool
from agentmesh.tools.executor import ToolExecutor
from tests.harness import eventually
from tests.llm_agent.conftest import Spawn
from tests.llm_agent.puppet import Puppet, call, script, search


class Helper(LLMAgent):
    """Helps."""

    system_prompt = "You are the helper."
    tools = (search, "add", "read_*")
    approve = ("send_mail",)


def chat(text: str, conversation: str = "", **params: Any) -> Chat:
    return Chat(messages=[ChatMessage(role="user", content=text)], conversation_id=conversation, params=params)


async def parts_of(mesh: Mesh, agent: str, request: Chat) -> list[ChatPart]:
    return [part async for part in mesh.stream(agent, request)]


def text_of(parts: list[ChatPart]) -> str:
    return "".join(part.content for part in parts if part.type == "text")


def results_of(parts: list[ChatPart]) -> list[tuple[str, str]]:
    return [(part.data["status"], part.content) for part in parts if part.type == "tool_result"]


async def test_the_model_uses_tools_until_it_has_an_answer(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    helper = await spawn(Helper)
    text = script(
        {"call": [call("search", text="holidays"), call("add", a=2, b=3)]}, {"say": "Let me see."}, {"say": "unused"}
    )
    assert await helper.ask(Prompt(text=text)) == "Let me see. "
    first, second = puppet.calls
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "tool", "tool"]
    assert [message.content for message in second.messages if message.role == "tool"] == ["found holidays", "5"]
    assert [message.tool_call_id for message in second.messages if message.role == "tool"] == ["c1_1", "c1_2"]
    offered = {entry["function"]["name"]: entry["function"] for entry in first.tools or ()}
    assert set(offered) == {"search", "add", "read_page", "send_mail"}
    assert offered["add"]["parameters"]["properties"]["a"]["type"] == "integer"


async def test_a_chat_gets_text_calls_and_results_as_they_come(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper)
    parts = await parts_of(
        mesh, "helper", chat(script({"say": "One moment.", "call": [call("search", text="x")]}, {"say": "It is x."}))
    )
    kinds = [part.type for part in parts]
    assert kinds == ["text", "text", "tool_call", "tool_result", "text", "text", "text", "usage", "finish"]
    assert text_of(parts) == "One moment. \n\nIt is x. "
    assert parts[2].data == {"id": "c1_1", "name": "search", "arguments": {"text": "x"}, "status": "running"}
    assert (parts[3].content, parts[3].data) == (
        "found x",
        {"id": "c1_1", "name": "search", "status": "ok", "is_error": False},
    )
    assert parts[-2].data == {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    assert parts[-1].data == {"finish_reason": "stop", "steps": 2, "cost": parts[-1].data["cost"]}


async def test_j6_a_poisoned_page_reaches_no_tool_that_the_agent_has_not(
    mesh: Mesh, spawn: Spawn, puppet: Puppet, caplog: pytest.LogCaptureFixture
) -> None:
    """The model falls for it, and the executor does not."""
    await spawn(LLMAgent, name="reader", system_prompt="You read pages.", tools=["read_page"])
    text = script({"call": [call("read_page", page="1")]}, {"call": [call("send_mail", to="eve")]}, {"say": "$results"})
    with caplog.at_level(logging.WARNING, "agentmesh.tools"):
        parts = await parts_of(mesh, "reader", chat(text))
    (_, page), (status, refusal) = results_of(parts)
    assert (status, json.loads(refusal)["error"]["type"]) == ("refused", "ToolNotAllowedError")
    assert "agent 'reader' may not call tool 'send_mail'" in caplog.text
    # What the page says is data: it stands in a message of its own, and never in the instructions.
    assert "ignore your instructions" in page
    for asked in puppet.calls:
        (system,) = [message.content for message in asked.messages if message.role == "system"]
        assert system == "You read pages."


async def test_what_is_wrong_with_a_call_is_told_to_the_model(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(LLMAgent, name="wild", tools=["*"])
    calls = [
        call("nonsense"),
        call("add", a="two", b=3),
        ["add", "{not json"],
        ["add", "[1, 2]"],
        call("ai.agent.tools.>"),
        call("add", a=1, b=1),
    ]
    parts = await parts_of(mesh, "wild", chat(script({"call": calls}, {"say": "well"})))
    results = results_of(parts)
    assert [status for status, _ in results] == ["error"] * 5 + ["ok"]
    kinds = [json.loads(content)["error"]["type"] for _, content in results[:5]]
    assert kinds == ["NoSuchToolError", *["ToolArgumentsError"] * 3, "InvalidNameError"]
    assert text_of(parts) == "well "


async def test_many_calls_at_once_are_bounded(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper)
    parts = await parts_of(mesh, "helper", chat(script({"call": [call("add", a=1, b=1)] * 20}, {"say": "ok"})))
    assert [status for status, _ in results_of(parts)] == ["ok"] * 16
    tools = [message for message in puppet.calls[1].messages if message.role == "tool"]
    assert len(tools) == 20
    assert len({message.tool_call_id for message in tools}) == 20


async def test_a_tool_that_needs_approval_is_refused_where_nobody_can_be_asked(
    mesh: Mesh, spawn: Spawn, puppet: Puppet
) -> None:
    await spawn(Helper)
    text = script({"call": [call("send_mail", to="bob")]}, {"say": "$results"})
    parts = await parts_of(mesh, "helper", chat(text))
    ((status, told),) = results_of(parts)
    assert status == "denied"
    assert "needs the approval of a person" in told
    assert "use a conversation" in told


class Accountant(Agent):
    """A gateway of one's own: every reply calls a tool, and costs a cent."""

    @handler
    async def on_request(self, request: LLMRequest) -> AsyncIterator[LLMPart]:
        yield LLMPart(content="hm ")
        calls = [{"id": "", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 1}'}}]
        message = ChatMessage(role="assistant", content="hm ", tool_calls=calls)
        answer = LLMResponse(text="hm ", messages=[message], finish_reason="tool_calls", cost=0.01)
        yield LLMPart(type="finish", data=answer.model_dump(mode="json"))


BUDGETS: dict[str, dict[str, Any]] = {
    "steps": {"max_steps": 2},
    "tokens": {"max_tokens": 30},
    "cost": {"max_cost": 0.02, "gateway": "accountant"},
}


@pytest.mark.parametrize("limit", BUDGETS)
async def test_an_answer_ends_when_a_budget_is_used_up_and_says_which(
    mesh: Mesh, spawn: Spawn, puppet: Puppet, limit: str
) -> None:
    await spawn(Accountant)
    frugal = await spawn(LLMAgent, name="frugal", tools=["add"], **BUDGETS[limit])
    entry = {"say": "hm", "call": [call("add", a=1, b=1)]}
    text = script(*[entry] * 5)
    parts = await parts_of(mesh, "frugal", chat(text))
    assert text_of(parts) == "hm \n\nhm "
    finish = parts[-1].data
    assert (finish["finish_reason"], finish["budget"], finish["steps"]) == ("length", limit, 2)
    assert "is used up" in finish["reason"]
    with pytest.raises(BudgetExceededError) as exceeded:
        await frugal.ask(Prompt(text=text))
    assert (exceeded.value.limit, exceeded.value.owner) == (limit, "frugal")
    assert f"the budget of {next(iter(BUDGETS[limit].values())):g}" in str(exceeded.value)


async def test_a_reply_may_be_no_longer_than_the_tokens_that_are_left(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(LLMAgent, name="frugal", tools=["add"], max_tokens=100, params={"temperature": 0.5})
    await parts_of(mesh, "frugal", chat(script({"call": [call("add", a=1, b=1)]}, {"say": "ok"}), max_tokens=90, n=1))
    await parts_of(mesh, "frugal", chat("hi", max_completion_tokens=7, temperature=None))
    assert [asked.params.max_tokens for asked in puppet.calls] == [90, 85, 7]
    assert puppet.calls[0].params.temperature == 0.5


async def test_what_a_model_costs_is_counted_by_its_price(mesh: Mesh, spawn: Spawn) -> None:
    price = {"backend": "offline", "price": {"prompt": 1e6, "completion": 0.0}}  # a dollar a token
    await spawn(LLMGateway, models={"default": price})
    await spawn(LLMAgent, name="rich")
    parts = await parts_of(mesh, "rich", chat("Say hello"))
    assert parts[-1].data["cost"] == parts[-2].data["prompt_tokens"] > 0


async def test_an_answer_ends_when_its_time_is_up(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(LLMAgent, name="hasty", tools=["slow"], max_seconds=0.3)

    @tool
    async def slow() -> str:
        await asyncio.sleep(60)
        return "late"

    async with ToolExecutor(mesh.transport, mesh.subjects, [slow]):
        parts = await parts_of(mesh, "hasty", chat(script(*[{"say": "hm", "call": [call("slow")]}] * 3)))
    assert parts[-1].data["budget"] == "seconds"
    assert parts[-1].data["steps"] == 1


async def test_what_was_remembered_in_a_conversation_is_recalled_in_it_and_in_no_other(
    mesh: Mesh, spawn: Spawn, puppet: Puppet
) -> None:
    await spawn(LLMAgent, name="friend", memory=True)
    remember = script({"call": [call("remember", fact="Ada likes tea")]}, {"say": "noted"})
    recall = script({"call": [call("recall", query="tea")]}, {"say": "$results"})
    for _ in range(2):
        assert text_of(await parts_of(mesh, "friend", chat(remember, "chat-1"))) == "noted "
    assert "Ada likes tea" in text_of(await parts_of(mesh, "friend", chat(recall, "chat-1")))
    for other in ("chat-2", "chat", "chat-1/x", ""):
        assert "Ada" not in text_of(await parts_of(mesh, "friend", chat(recall, other)))
    within = chat(script({"call": [call("remember", fact="Eve likes cake")]}, {"say": "noted"}), "chat-1/x")
    await parts_of(mesh, "friend", within)
    assert "Eve" not in text_of(
        await parts_of(
            mesh, "friend", chat(script({"call": [call("recall", query="cake")]}, {"say": "$results"}), "chat-1")
        )
    )
    assert len((await mesh.memory("friend").list("facts/chat-1/", tags=["chat-1"])).records) == 1, (
        "told twice, kept once"
    )
    names = {entry["function"]["name"] for entry in puppet.calls[0].tools or ()}
    assert names == {"remember", "recall"}


async def test_without_a_conversation_there_is_no_memory(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    friend = await spawn(LLMAgent, name="friend", memory=True)
    assert await friend.ask(Prompt(text="hello")) == "hello "
    assert puppet.calls[0].tools is None


async def test_everything_can_be_said_in_the_settings(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper, name="other", system_prompt="Something else.", tools=["add"], approve=[], max_steps=1)
    await parts_of(mesh, "other", chat("hi"))
    assert puppet.calls[0].messages[0].content == "Something else."
    assert [entry["function"]["name"] for entry in puppet.calls[0].tools or ()] == ["add"]


@pytest.mark.parametrize("args", [{"tools": "search"}, {"tools": [1]}, {"max_steps": 0}, {"max_cost": -1.0}])
def test_settings_that_cannot_work_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Helper(**args)


async def test_a_conversation_that_asks_nothing_is_refused(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper)
    with pytest.raises(InvalidMessageError, match="no user message"):
        await parts_of(mesh, "helper", Chat(messages=[ChatMessage(role="assistant", content="hi")]))
    with pytest.raises(InvalidMessageError, match=r"params\.temperature"):
        await parts_of(mesh, "helper", chat("hi", temperature="hot"))


async def test_without_a_gateway_the_asker_is_told(mesh: Mesh, spawn: Spawn) -> None:
    helper = await spawn(Helper)
    with pytest.raises(NoSuchAgentError, match="llm"):
        await helper.ask(Prompt(text="hi"))


async def test_an_asker_who_leaves_ends_the_answer(
    mesh: Mesh, spawn: Spawn, puppet: Puppet, tools: ToolExecutor
) -> None:
    """Tool calls included."""
    begun, ended = asyncio.Event(), asyncio.Event()

    @tool
    async def waits() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    await spawn(LLMAgent, name="patient", tools=["waits"])
    async with ToolExecutor(mesh.transport, mesh.subjects, [waits]):
        stream = mesh.stream("patient", chat(script({"call": [call("waits")]})))
        assert (await anext(stream)).type == "tool_call"
        async with asyncio.timeout(20):
            await begun.wait()
            await stream.aclose()
            await ended.wait()
    await eventually(lambda: not tools.calls)
