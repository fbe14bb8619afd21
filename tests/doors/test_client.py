"""`LLMClient`: the gateway as a program sees it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from agentmesh import Agent, Context, Mesh, Request, handler
from agentmesh.agents.llm import LLMRequest
from agentmesh.agents.llm.client import GENERATE_TIMEOUT, LLMClient
from agentmesh.config import DoorSettings
from agentmesh.errors import DeadlineExceededError, InvalidMessageError, ModelError, NoRespondersError
from agentmesh.proto import inference_request
from tests.doors.conftest import Model, Spawn

LONG = 20.0
PAGE = Path(__file__).resolve().parents[2] / "docs" / "doors.md"


class Relay(Request[str]):
    by: str


class Asker(Agent):
    """Asks a model, and answers with the trace it did that in."""

    @handler
    async def on_relay(self, relay: Relay, ctx: Context) -> str:
        if relay.by == "door":
            await LLMClient(self.mesh).generate("say a")
        else:
            await LLMClient(self.mesh).infer(inference_request("say b"))
        return ctx.trace_id


@pytest.mark.seed("A4", "B31")
async def test_one_request_is_one_answer_in_a_private_reply(mesh: Mesh, model: Model) -> None:
    llm = LLMClient(mesh)

    by_prompt = await llm.generate("say one two", temperature=0.0, context={"a": 1})
    by_messages = await llm.generate(messages=[{"role": "user", "content": "say three"}])
    by_request = await llm.generate(LLMRequest(prompt="say four"))

    assert [one.text for one in (by_prompt, by_messages, by_request)] == ["one two", "three", "four"]
    assert by_prompt.usage.total_tokens == 3
    assert model.calls[0].params.temperature == 0.0
    assert model.calls[0].context == {"a": 1}


async def test_a_key_is_the_same_answer(mesh: Mesh, model: Model) -> None:
    llm = LLMClient(mesh)

    first, again = [await llm.generate("say a", idempotency_key="k") for _ in range(2)]

    assert (again.text, again.generation_id) == (first.text, first.generation_id)
    assert len(model.calls) == 1


async def test_a_stream_ends_with_the_whole_and_leaving_it_stops_the_model(mesh: Mesh, model: Model) -> None:
    llm = LLMClient(mesh)

    parts = [part async for part in llm.stream("say one two")]
    async with aclosing(llm.stream("say a then wait")) as left:
        async for _ in left:
            break

    assert [part.content for part in parts[:-1]] == ["one", " two"]
    assert parts[-1].response().text == "one two"
    async with asyncio.timeout(LONG):
        await model.cancelled.wait()


@pytest.mark.seed("B31")
async def test_a_job_is_found_again_by_its_id(mesh: Mesh, model: Model) -> None:
    job = await LLMClient(mesh).submit("say done", request_id="novel-1")

    assert job.id == "novel-1"
    assert (await job.result(timeout=LONG)).text == "done"
    assert (await mesh.job("novel-1").result(timeout=LONG))["text"] == "done"


@pytest.mark.seed("B32")
async def test_a_job_waits_in_the_lane_of_its_priority(mesh: Mesh, model: Model) -> None:
    await LLMClient(mesh).submit("wait a", request_id="low-1", priority="low")
    await model.until_waiting(1)

    stored = await mesh.transport.messages("TASKS", mesh.subjects.tasks("llm", "low"))
    model.go.set()

    assert [b'"low-1"' in one.data for one in stored] == [True]


async def test_errors_are_raised_with_their_code(mesh: Mesh, model: Model) -> None:
    llm = LLMClient(mesh)

    with pytest.raises(ModelError, match="as told") as generated:
        await llm.generate("fail FAILED_PRECONDITION")
    with pytest.raises(ModelError, match="as told") as streamed:
        _ = [part async for part in llm.stream("fail FAILED_PRECONDITION")]

    assert generated.value.code == streamed.value.code == "FAILED_PRECONDITION"


async def test_what_cannot_be_asked_is_refused_here(mesh: Mesh) -> None:
    llm = LLMClient(mesh)

    with pytest.raises(InvalidMessageError, match=r"'temprature'.*'temperature'"):
        await llm.generate("say a", temprature=0.5)
    with pytest.raises(InvalidMessageError, match="empty"):
        await llm.generate("")
    with pytest.raises(InvalidMessageError, match="one of them"):
        await llm.generate("say a", messages=[{"role": "user", "content": "say b"}])


@pytest.mark.seed("B33")
async def test_an_answer_has_sixty_seconds_unless_told_otherwise(mesh: Mesh, model: Model) -> None:
    assert GENERATE_TIMEOUT == DoorSettings().timeout == 60.0

    with pytest.raises((DeadlineExceededError, ModelError)) as late:
        await LLMClient(mesh).generate("wait for ever", timeout=0.2)

    assert getattr(late.value, "code", "DEADLINE_EXCEEDED") == "DEADLINE_EXCEEDED"
    assert model.under_way == 0


async def test_giving_up_stops_the_model_unless_others_may_wait_for_the_same_key(mesh: Mesh, model: Model) -> None:
    llm = LLMClient(mesh)
    alone = asyncio.create_task(llm.generate("wait alone"))
    await model.until_waiting(1)
    alone.cancel()
    async with asyncio.timeout(LONG):
        await model.cancelled.wait()
    model.cancelled.clear()

    first, second = (asyncio.create_task(llm.generate("wait here", idempotency_key="k")) for _ in range(2))
    await model.until_waiting(2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    model.go.set()

    assert (await second).text == "here"
    assert len(model.calls) == 2
    assert not model.cancelled.is_set()


async def test_without_a_gateway_it_is_told_at_once(mesh: Mesh) -> None:
    with pytest.raises(NoRespondersError):
        await LLMClient(mesh).generate("say a")


@pytest.mark.seed("A5")
async def test_what_an_agent_asks_belongs_to_the_trace_of_its_message(mesh: Mesh, model: Model, spawn: Spawn) -> None:
    await spawn(Asker)

    first = await mesh.ask("asker", Relay(by="door"))
    second = await mesh.ask("asker", Relay(by="protobuf"))

    assert model.traces == [first, second]
    assert first != second


async def test_the_program_of_the_page_runs(mesh: Mesh, model: Model) -> None:
    code = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"__name__": "doors", "print": lambda *_, **__: None}

    exec(code, names)
    await names["use"](mesh)

    assert [call.messages[0].content for call in model.calls][:2] == ["Tell me about NATS", "Tell me more"]
