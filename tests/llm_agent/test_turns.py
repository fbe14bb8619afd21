"""An LLM agent that answers stored conversations: the answer survives its process, and can wait for a person."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from agentmesh import Job, Mesh
from agentmesh.agents.llm import LLMGateway, LLMPart, ModelCall
from agentmesh.chat import Turn, transcript
from agentmesh.errors import ModelError, TaskCancelledError, TaskDeadError
from agentmesh.ids import new_id
from agentmesh.streams import Chunk
from agentmesh.subjects import PRIORITIES
from agentmesh.tasks.layout import ensure_streams, task_consumer
from agentmesh.tools.executor import ToolExecutor
from tests.harness import Process, eventually
from tests.harness.fixtures import SpawnProcess
from tests.llm_agent.conftest import Spawn
from tests.llm_agent.node import Helper
from tests.llm_agent.puppet import Puppet, call, script

LIMIT = 60.0
"""Seconds after which a test has failed."""


async def say(mesh: Mesh, conversation: str, text: str, **params: Any) -> Job[str]:
    """Say something in a conversation, and have it answered."""
    run_id = new_id()
    async with mesh.streams.run(conversation, run_id=run_id, epoch=0, role="user", durable=True) as run:
        await run.send(text)
    turn = Turn(conversation_id=conversation, run_id=run_id, params=params)
    return await mesh.submit(turn, to="helper", task_id=run_id)


async def chunks_of(mesh: Mesh, conversation: str, run_id: str) -> list[Chunk]:
    """All chunks of the answer, up to its end."""
    async with asyncio.timeout(LIMIT), aclosing(mesh.streams.read(conversation, run_id=run_id)) as chunks:
        return [chunk async for chunk in chunks if chunk.role != "user"]


async def until(mesh: Mesh, job: Job[str], conversation: str, **wanted: Any) -> Chunk:
    """The first chunk of the answer with these values in its data."""
    async with asyncio.timeout(LIMIT), aclosing(mesh.streams.read(conversation, run_id=job.id)) as chunks:
        async for chunk in chunks:
            data = chunk.data if isinstance(chunk.data, dict) else {}
            if all(data.get(name) == value for name, value in wanted.items()):
                return chunk
    raise AssertionError(f"the answer has ended without {wanted}")


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


async def test_an_answer_is_stored_in_the_conversation_and_is_the_result(
    mesh: Mesh, spawn: Spawn, puppet: Puppet
) -> None:
    await spawn(Helper)
    job = await say(mesh, "talk", script({"say": "Wait.", "call": [call("add", a=2, b=2)]}, {"say": "It is 4."}))
    assert await job.result(LIMIT) == "Wait. \n\nIt is 4. "
    chunks = await chunks_of(mesh, "talk", job.id)
    assert [chunk.type for chunk in chunks if chunk.type != "text"] == ["tool_call", "tool_result", "usage", "finish"]
    assert "".join(chunk.content for chunk in chunks if chunk.type == "text") == "Wait. \n\nIt is 4. "
    assert {chunk.epoch for chunk in chunks} == {1}
    assert [step.name for step in await job.steps()] == ["history", "model 1", "tool c1_1", "model 2"]


async def test_the_model_gets_what_was_said_before(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper, max_history=3)
    for text in ("one", "two", "three"):
        await (await say(mesh, "talk", text)).result(LIMIT)
    said = [(message.role, message.content) for message in puppet.calls[-1].messages]
    assert said == [("system", "You are the helper."), ("user", "two"), ("assistant", "two "), ("user", "three")]


async def test_facts_are_recalled_in_a_later_turn(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper)
    job = await say(mesh, "talk", script({"call": [call("remember", fact="The cat is called Tom")]}, {"say": "ok"}))
    await job.result(LIMIT)
    job = await say(mesh, "talk", script({"call": [call("recall", query="cat")]}, {"say": "$results"}))
    assert "The cat is called Tom" in await job.result(LIMIT)


@pytest.mark.parametrize(
    ("signal", "mailed"),
    [
        (True, True),
        ("approve", True),
        ({"approved": True}, True),
        (False, False),
        ({"approved": "yes"}, False),
        (1, False),
    ],
)
async def test_a_person_allows_a_call_or_does_not(
    mesh: Mesh, spawn: Spawn, puppet: Puppet, tmp_path: Path, signal: Any, mailed: bool
) -> None:
    await spawn(Helper)
    ledger = tmp_path / "ledger"
    mail = call("send_mail", to="bob", ledger=str(ledger))
    job = await say(mesh, "talk", script({"call": [mail]}, {"say": "$results"}))
    asked = await until(mesh, job, "talk", status="approval")
    assert asked.type == "tool_call"
    assert asked.data["name"] == "send_mail"
    assert (asked.data["task_id"], asked.data["signal"]) == (job.id, "approve-c1_1")
    assert not ledger.exists()
    await job.signal(asked.data["signal"], signal)
    answer = await job.result(LIMIT)
    assert lines(ledger) == (["mail bob"] if mailed else [])
    assert ("sent to bob" in answer) == mailed
    assert ("ApprovalDenied" in answer) != mailed


async def test_silence_is_a_no(mesh: Mesh, spawn: Spawn, puppet: Puppet, tmp_path: Path) -> None:
    await spawn(Helper, approval_timeout=0.2)
    mail = call("send_mail", to="bob", ledger=str(tmp_path / "ledger"))
    job = await say(mesh, "talk", script({"call": [mail]}, {"say": "$results"}))
    assert "nobody allowed it within 0.2 s" in await job.result(LIMIT)
    assert not (tmp_path / "ledger").exists()


async def test_a_no_may_have_a_reason_which_the_model_gets(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper)
    job = await say(mesh, "talk", script({"call": [call("send_mail", to="bob")]}, {"say": "$results"}))
    await job.signal("approve-c1_1", {"approved": False, "reason": "Bob is on holiday"})
    assert "Bob is on holiday" in await job.result(LIMIT)


async def test_while_one_answer_waits_for_a_person_others_are_given(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    class Single(Helper):
        name = "helper"
        concurrency = 1

    await spawn(Single)
    waiting = await say(mesh, "one", script({"call": [call("send_mail", to="bob")]}, {"say": "done"}))
    await until(mesh, waiting, "one", status="approval")
    assert await (await say(mesh, "two", "hello")).result(LIMIT) == "hello "
    await waiting.signal("approve-c1_1", False)
    assert await waiting.result(LIMIT) == "done "


async def test_a_budget_ends_a_turn_with_its_reason(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper, max_steps=2)
    job = await say(mesh, "talk", script(*[{"say": "hm", "call": [call("add", a=1, b=1)]}] * 4))
    assert await job.result(LIMIT) == "hm \n\nhm "
    finish = (await chunks_of(mesh, "talk", job.id))[-1]
    assert finish.type == "finish"
    assert (finish.data["finish_reason"], finish.data["budget"]) == ("length", "steps")


class Flaky:
    """Fails in the middle of its first reply."""

    name = "flaky"

    def __init__(self, code: str) -> None:
        self.code = code
        self.calls = 0

    async def generate(self, call: ModelCall) -> AsyncIterator[LLMPart]:
        self.calls += 1
        yield LLMPart(content="The answer ")
        if self.calls == 1 or self.code == "INVALID_ARGUMENT":
            yield LLMPart(content="was ")
            raise ModelError(self.code, "the line is cut")
        yield LLMPart(content="is 42.")
        yield LLMPart(type="finish", data={"finish_reason": "stop", "usage": {"total_tokens": 1}})

    async def close(self) -> None:
        pass


async def test_a_reply_that_was_cut_off_is_asked_for_again_and_readers_forget_it(mesh: Mesh, spawn: Spawn) -> None:
    model: Any = Flaky("UNAVAILABLE")
    await spawn(LLMGateway, models={"default": model}, llm={"routes": {"default": {"retries": 0}}})
    await spawn(Helper)
    job = await say(mesh, "talk", "What is it?")
    assert await job.result(LIMIT) == "The answer is 42."
    kinds = [(chunk.type, chunk.content) for chunk in await chunks_of(mesh, "talk", job.id)]
    assert ("restarted", "") in kinds
    assert (await transcript(mesh.streams, "talk")).answer(job.id) == "The answer is 42."


async def test_an_answer_that_cannot_be_given_ends_with_an_error(mesh: Mesh, spawn: Spawn) -> None:
    model: Any = Flaky("INVALID_ARGUMENT")
    await spawn(LLMGateway, models={"default": model})
    await spawn(Helper)
    job = await say(mesh, "talk", "What is it?")
    with pytest.raises(TaskDeadError, match="the line is cut"):
        await job.result(LIMIT)
    last = (await chunks_of(mesh, "talk", job.id))[-1]
    assert (last.type, "the line is cut" in last.content) == ("error", True)


async def test_a_reader_who_cancels_ends_answer_and_task(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper)
    job = await say(mesh, "talk", script({"call": [call("send_mail", to="bob")]}, {"say": "done"}))
    await until(mesh, job, "talk", status="approval")
    assert await mesh.streams.cancel("talk", run_id=job.id)
    with pytest.raises(TaskCancelledError):
        await job.result(LIMIT)
    assert (await chunks_of(mesh, "talk", job.id))[-1].type == "cancelled"


async def test_a_task_that_is_cancelled_ends_its_answer(mesh: Mesh, spawn: Spawn, puppet: Puppet) -> None:
    await spawn(Helper)
    job = await say(mesh, "talk", script({"call": [call("send_mail", to="bob")]}, {"say": "done"}))
    await until(mesh, job, "talk", status="approval")
    await job.cancel()
    assert (await chunks_of(mesh, "talk", job.id))[-1].type == "cancelled"


# ---------------------------------------------------------------- processes that die


@pytest.fixture
async def node(mesh: Mesh, tools: ToolExecutor, spawn_process: SpawnProcess, tmp_path: Path) -> Any:
    """Starts nodes whose tasks are taken over a second after they died."""
    await ensure_streams(mesh.transport)
    for priority in PRIORITIES:
        await mesh.transport.ensure_consumer(task_consumer(mesh.subjects, "helper", priority, 1.0))

    async def start() -> Process:
        process = await spawn_process("tests.llm_agent.node", mesh.url, mesh.subjects.tenant, str(tmp_path / "ledger"))
        await process.line_matching("ready", timeout=LIMIT)
        return process

    return start


async def test_an_approval_survives_the_process_that_waits_for_it(mesh: Mesh, node: Any, tmp_path: Path) -> None:
    """Killed while it waits; asked for once, said once, mailed once."""
    ledger = tmp_path / "ledger"
    first = await node()
    mail = call("send_mail", to="bob", ledger=str(ledger))
    job = await say(
        mesh, "talk", script({"call": [call("search", text="bob", ledger=str(ledger)), mail]}, {"say": "Sent."})
    )
    await until(mesh, job, "talk", status="approval")
    first.kill9()
    await first.wait()
    await job.signal("approve-c1_2", True)  # nobody is there to hear it
    await node()
    assert await job.result(LIMIT) == "Sent. "
    assert lines(ledger) == ["model 1", "search bob", "mail bob", "model 2"]
    read = await transcript(mesh.streams, "talk")
    assert (read.answer(job.id), read.end(job.id), read.epoch(job.id)) == ("Sent. ", "finish", 2)


async def test_a_turn_killed_in_the_middle_repeats_nothing_that_was_finished(
    mesh: Mesh, node: Any, tmp_path: Path
) -> None:
    """Killed while the model speaks for the second time."""
    ledger = tmp_path / "ledger"
    await node()
    look = call("search", text="x", ledger=str(ledger))
    job = await say(
        mesh, "talk", script({"say": "First.", "call": [look]}, {"say": "Second.", "die": str(tmp_path / "died")})
    )
    await eventually((tmp_path / "died").exists, LIMIT, what="the node dies")
    await node()
    assert await job.result(LIMIT) == "First. \n\nSecond. "
    assert lines(ledger) == ["model 1", "search x", "model 2", "model 2"]
    assert (await transcript(mesh.streams, "talk")).answer(job.id) == "First. \n\nSecond. "
    last_take = [chunk for chunk in await chunks_of(mesh, "talk", job.id) if chunk.epoch == 2]
    kinds = [chunk.type for chunk in last_take]
    assert kinds[0] == "restarted"
    assert kinds.count("tool_result") == 1
    assert json.loads(json.dumps(last_take[-1].data))["steps"] == 2
