"""Promises of tool executors and their clients, over a real broker."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agentmesh.context import Context, enter, leave
from agentmesh.errors import (
    AgentMeshError,
    DefinitionError,
    InvalidMessageError,
    InvalidNameError,
    NoSuchToolError,
    ToolArgumentsError,
    ToolBusyError,
    ToolCancelledError,
    ToolFailedError,
    ToolLimitError,
    ToolTimeoutError,
    error_from_wire,
)
from agentmesh.ids import now
from agentmesh.subjects import Subjects
from agentmesh.tooling import CANCEL, Tool, ToolClient, tool
from agentmesh.tools.executor import ToolExecutor
from agentmesh.transport import Message, Transport, TransportOptions
from tests.core.hostile import TOKENS
from tests.harness import Server, alive, eventually
from tests.tools import samples
from tests.tools.conftest import Marker

SUBJECTS = Subjects("acme")


class Gate:
    """An async tool that runs until it is told to end."""

    def __init__(self, isolation: str = "async") -> None:
        self.started = asyncio.Semaphore(0)
        self.open = asyncio.Event()
        self.cancelled = 0
        self.tool = tool(name="gate", timeout=20.0)(self._wait)

    async def _wait(self, number: int = 0) -> int:
        self.started.release()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number


@pytest.fixture
async def transport(server: Server) -> AsyncIterator[Transport]:
    async with await Transport.connect(TransportOptions(url=server.url)) as connected:
        yield connected


@pytest.fixture
def tools(transport: Transport) -> ToolClient:
    return ToolClient(transport, SUBJECTS)


Serve = Callable[..., Awaitable[ToolExecutor]]


@pytest.fixture
async def serve(server: Server) -> AsyncIterator[Serve]:
    """`await serve(tool, …)`: an executor with a connection of its own, stopped when the test ends."""
    async with AsyncExitStack() as stack:

        async def start(*served: Tool[..., Any], **options: Any) -> ToolExecutor:
            connection = await stack.enter_async_context(await Transport.connect(TransportOptions(url=server.url)))
            executor = ToolExecutor(connection, SUBJECTS, served, **options)
            await executor.start()
            stack.push_async_callback(executor.stop, 0.0)
            return executor

        yield start


async def raw(transport: Transport, subject: str, body: bytes) -> dict[str, Any]:
    """What a client in another language gets."""
    answer: dict[str, Any] = json.loads((await transport.request(subject, body, timeout=5)).data)
    return answer


def error_of(answer: dict[str, Any]) -> AgentMeshError:
    return error_from_wire(answer["error"], "test")


async def test_a_tool_is_called_by_name_or_by_function(tools: ToolClient, serve: Serve) -> None:
    await serve(samples.add, samples.slow_add, samples.thread_name, samples.mirror)

    assert await tools.call("add", a=1) == 3
    assert await tools.call(samples.add, a=1, b=3) == 4
    assert await tools.call(samples.slow_add, a=1, b=1) == 2
    assert await tools.call("thread_name") == "tool-thread_name"
    assert await tools.call(samples.mirror, point=samples.Point(x=1, y=2)) == samples.Point(x=2, y=1)
    assert await tools.call("mirror", point={"x": 1}) == {"x": 0, "y": 1}
    assert await tools.invoke(samples.add, samples.add.bind(2, 2)) == 4


async def test_bad_arguments_are_refused_before_anything_runs(tools: ToolClient, serve: Serve, tmp_path: Path) -> None:
    await serve(samples.touch)
    trace = tmp_path / "trace"

    for by in ("touch", samples.touch):
        with pytest.raises(ToolArgumentsError, match="count: Input should be a valid integer"):
            await tools.call(by, path=str(trace), count="many")
        with pytest.raises(ToolArgumentsError, match="size: there is no such argument"):
            await tools.call(by, path=str(trace), count=1, size=2)

    assert not trace.exists()
    assert await tools.call("touch", path=str(trace), count=1) == 1
    assert trace.exists()


async def test_errors_come_back_typed(tools: ToolClient, serve: Serve) -> None:
    await serve(samples.raises, samples.eats_memory, samples.floods, samples.big_result)

    with pytest.raises(ToolFailedError, match="ValueError: value"):
        await tools.call("raises", kind="value")
    with pytest.raises(ToolLimitError, match="memory"):
        await tools.call("eats_memory")
    with pytest.raises(ToolLimitError, match="output"):
        await tools.call("floods")
    with pytest.raises(ToolLimitError, match="1000 bytes"):
        await tools.call("big_result", size=5000)


async def test_a_result_over_the_brokers_limit_is_a_typed_error(tools: ToolClient, serve: Serve) -> None:
    @tool(output_bytes=10_000_000)
    async def huge() -> str:
        return "x" * 2_000_000

    await serve(huge)

    with pytest.raises(ToolLimitError, match="bytes in a message"):
        await tools.call("huge")


async def test_an_unknown_tool_is_an_error_at_once_that_names_near_misses(tools: ToolClient, serve: Serve) -> None:
    with pytest.raises(NoSuchToolError, match=r"no tool 'add' is served$"):
        await tools.call("add", a=1)
    await serve(samples.add, samples.slow_add)

    started = time.monotonic()
    with pytest.raises(NoSuchToolError, match="did you mean 'slow_add'") as raised:
        await tools.call("slow_ad", a=1)

    assert time.monotonic() - started < 0.5
    assert raised.value.near[0] == "slow_add"


@pytest.mark.parametrize("name", TOKENS)
async def test_g1_a_hostile_tool_name_sends_nothing(
    transport: Transport, tools: ToolClient, serve: Serve, name: str
) -> None:
    seen: list[Message] = []
    await transport.subscribe("ai.>", seen.append)
    with pytest.raises(InvalidNameError):
        await tools.call(name, a=1)

    await serve(samples.add)
    answer = await raw(transport, SUBJECTS.tool_door(), json.dumps({"tool": name}).encode())

    assert isinstance(error_of(answer), InvalidNameError)
    assert [message.subject for message in seen] == [SUBJECTS.tool_door()]


async def test_a_timeout_ends_the_tool_and_its_processes(tools: ToolClient, serve: Serve, marker: Marker) -> None:
    await serve(samples.sleeps_long)

    started = time.monotonic()
    with pytest.raises(ToolTimeoutError, match="sleeps_long"):
        await tools.call("sleeps_long", marker=str(marker.path), timeout=0.6)

    assert time.monotonic() - started < 2
    pids = await marker.pids()
    await eventually(lambda: not any(alive(pid) for pid in pids), 1.0)


async def test_cancelling_the_caller_ends_the_tool_and_its_processes(
    tools: ToolClient, serve: Serve, marker: Marker
) -> None:
    executor = await serve(samples.sleeps_long)
    call = asyncio.create_task(tools.call("sleeps_long", marker=str(marker.path)))
    pids = await marker.pids()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    await eventually(lambda: not any(alive(pid) for pid in pids), 1.0)
    await eventually(lambda: not executor.calls)


async def test_cancelling_works_through_the_executor_that_only_forwards(
    transport: Transport, serve: Serve, marker: Marker
) -> None:
    await serve(samples.add)
    door = await serve(samples.sleeps_long)
    body = {"tool": "sleeps_long", "call_id": "c1", "arguments": {"marker": str(marker.path)}}
    calls = [asyncio.create_task(raw(transport, SUBJECTS.tool_door(), json.dumps(body).encode()))]
    pids = await marker.pids()
    assert door.calls == ["c1"]
    await transport.publish(SUBJECTS.control(CANCEL), b'{"call_id": "c1"}')

    assert isinstance(error_of(await calls[0]), ToolCancelledError)
    await eventually(lambda: not any(alive(pid) for pid in pids), 1.0)


async def test_an_async_tool_is_cancelled_where_it_waits(tools: ToolClient, serve: Serve) -> None:
    gate = Gate()
    await serve(gate.tool)
    call = asyncio.create_task(tools.call("gate"))
    await gate.started.acquire()
    call.cancel()
    await asyncio.wait({call})

    await eventually(lambda: gate.cancelled == 1)
    with pytest.raises(ToolTimeoutError):
        await tools.call("gate", timeout=0.2)
    await eventually(lambda: gate.cancelled == 2)


async def test_d3_an_async_tool_that_raises_cancelled_error_fails_and_the_executor_lives(
    tools: ToolClient, serve: Serve
) -> None:
    @tool
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    await serve(cancels_itself, samples.slow_add)

    with pytest.raises(ToolFailedError, match="CancelledError"):
        await tools.call("cancels_itself")
    assert await tools.call("slow_add", a=1, b=1) == 2


async def test_an_async_tool_that_ignores_cancellation_does_not_keep_its_caller(
    tools: ToolClient, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    @tool(timeout=0.1)
    async def stubborn() -> int:
        while True:
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
            return 1

    await serve(stubborn)
    with pytest.raises(ToolTimeoutError, match=r"0\.1 s"):
        await tools.call("stubborn")

    assert "goes on although it was cancelled" in caplog.text
    release.set()


async def test_a_thread_that_hangs_is_answered_for_and_its_place_is_not_given_away(
    tools: ToolClient, serve: Serve
) -> None:
    import threading

    release = threading.Event()

    @tool(isolation="thread", timeout=0.2)
    def hangs() -> int:
        release.wait(20)
        return 1

    await serve(hangs, concurrency=1)
    for _ in range(2):  # the second one never gets a thread
        with pytest.raises(ToolTimeoutError):
            await tools.call("hangs")
    release.set()

    assert await tools.call("hangs", timeout=2) == 1


async def test_the_deadline_of_the_message_at_hand_is_the_deadline_of_the_call(tools: ToolClient, serve: Serve) -> None:
    gate = Gate()
    await serve(gate.tool)
    token = enter(Context("caller", "", "m1", "t1", deadline=now() + timedelta(seconds=0.3)))
    try:
        with pytest.raises(ToolTimeoutError):
            await tools.call("gate")
        with pytest.raises(ToolTimeoutError):
            await tools.call("gate", deadline=now() - timedelta(seconds=1))
    finally:
        leave(token)

    await eventually(lambda: gate.cancelled == 1)


async def test_calls_wait_for_their_turn_and_too_many_are_refused_at_once(tools: ToolClient, serve: Serve) -> None:
    gate = Gate()
    executor = await serve(gate.tool, concurrency=2, max_waiting=3)
    calls = [asyncio.create_task(tools.call("gate", number=number)) for number in range(5)]
    await eventually(lambda: len(executor.calls) == 5)

    started = time.monotonic()
    with pytest.raises(ToolBusyError, match="5 calls"):
        await tools.call("gate")

    assert time.monotonic() - started < 0.5
    gate.open.set()
    assert await asyncio.gather(*calls) == [0, 1, 2, 3, 4]


async def test_a_call_whose_deadline_passes_while_it_waits_is_not_run(tools: ToolClient, serve: Serve) -> None:
    gate = Gate()
    await serve(gate.tool, samples.slow_add, concurrency=1)
    first = asyncio.create_task(tools.call("gate"))
    await gate.started.acquire()
    with pytest.raises(ToolTimeoutError):
        await tools.call("gate", timeout=0.2)
    gate.open.set()
    await first

    assert gate.started.locked()  # the second one never started


async def test_two_executors_share_the_calls(tools: ToolClient, serve: Serve) -> None:
    @tool(name="who")
    async def first() -> int:
        return 1

    @tool(name="who")
    async def second() -> int:
        return 2

    await serve(first)
    await serve(second)

    assert {await tools.call("who") for _ in range(50)} == {1, 2}


async def test_executors_may_serve_different_tools_and_all_are_listed(tools: ToolClient, serve: Serve) -> None:
    assert await tools.list() == []
    await serve(samples.add, samples.slow_add)
    await serve(samples.mirror, samples.add)

    for _ in range(10):
        assert await tools.call("add", a=1) == 3
        assert await tools.call("mirror", point={"x": 1}) == {"x": 0, "y": 1}
    listed = await tools.list()

    assert [info.name for info in listed] == ["add", "mirror", "slow_add"]
    assert listed[0] == samples.add.info()
    assert listed[0].description == "Add two numbers."
    assert listed[0].parameters["required"] == ["a"]


async def test_the_door_takes_the_name_in_the_body_also_of_tools_that_others_serve(
    transport: Transport, serve: Serve
) -> None:
    await serve(samples.add)
    await serve(samples.slow_add)

    for _ in range(10):
        for name in ("add", "slow_add"):
            body = {"call_id": "c1", "tool": name, "arguments": {"a": 1, "b": 4}}
            answer = await raw(transport, SUBJECTS.tool_door(), json.dumps(body).encode())
            assert answer == {"call_id": "c1", "result": 5, "schema_version": "1.0"}
    answer = await raw(transport, SUBJECTS.tool_door(), b'{"tool": "slow_ad"}')
    assert "did you mean 'slow_add'" in str(error_of(answer))


async def test_a_foreign_client_needs_only_the_arguments(transport: Transport, serve: Serve) -> None:
    @tool
    async def nothing() -> None:
        pass

    await serve(samples.add, nothing)

    assert (await raw(transport, "ai.agent.tools.acme.add", b'{"arguments": {"a": 1}}'))["result"] == 3
    assert (await raw(transport, "ai.agent.tools.acme.nothing", b"{}"))["result"] is None


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "not a tool call"),
        (b"hello", "not a tool call"),
        (b"[1]", "not a tool call"),
        (b'{"arguments": {"a": 1}, "call_id": 7}', "not a tool call"),
        (b'{"deadline": "2026-01-01T00:00:00", "arguments": {"a": 1}}', "deadline"),
        (b'{"schema_version": "2.0", "arguments": {"a": 1}}', "schema_version"),
        (b'{"tool": "mirror", "arguments": {"a": 1}}', "came on the subject of 'add'"),
        (b'{"arguments": ' + b"[" * 100_000, "not a tool call"),
        (b"\xff\xfe", "not a tool call"),
    ],
)
async def test_bytes_that_are_no_call_are_answered_with_a_typed_error(
    transport: Transport, serve: Serve, body: bytes, problem: str
) -> None:
    await serve(samples.add)

    error = error_of(await raw(transport, "ai.agent.tools.acme.add", body))

    assert isinstance(error, InvalidMessageError)
    assert problem in str(error)
    assert (await raw(transport, "ai.agent.tools.acme.add", b'{"arguments": {"a": 1}}'))["result"] == 3


async def test_a_cancel_message_that_is_none_is_ignored(transport: Transport, tools: ToolClient, serve: Serve) -> None:
    await serve(samples.slow_add)
    for body in (b"", b"{}", b'{"call_id": "other"}', b"\xff"):
        await transport.publish(SUBJECTS.control(CANCEL), body)

    assert await tools.call("slow_add", a=1, b=1) == 2


async def test_a_call_id_that_is_running_is_refused(transport: Transport, serve: Serve) -> None:
    gate = Gate()
    await serve(gate.tool)
    body = b'{"call_id": "c1", "arguments": {}}'
    first = asyncio.create_task(raw(transport, "ai.agent.tools.acme.gate", body))
    await gate.started.acquire()

    assert "is running" in str(error_of(await raw(transport, "ai.agent.tools.acme.gate", body)))
    gate.open.set()
    assert (await first)["result"] == 0


async def test_another_tenant_sees_and_reaches_nothing(transport: Transport, serve: Serve) -> None:
    await serve(samples.add)
    other = ToolClient(transport, Subjects("other"))

    assert await other.list() == []
    with pytest.raises(NoSuchToolError):
        await other.call("add", a=1)


async def test_stopping_lets_calls_finish_and_answers_those_it_ends(tools: ToolClient, serve: Serve) -> None:
    gate = Gate()
    executor = await serve(gate.tool, concurrency=1)
    running = asyncio.create_task(tools.call("gate", number=1))
    await gate.started.acquire()
    waiting = asyncio.create_task(tools.call("gate", number=2))
    await eventually(lambda: len(executor.calls) == 2)

    async def nobody_serves() -> bool:
        return not await tools.list(stall=0.05)

    stopping = asyncio.create_task(executor.stop(grace=5.0))
    await eventually(nobody_serves)
    with pytest.raises(NoSuchToolError):
        await tools.call("gate")
    gate.open.set()
    await stopping

    assert (await running, await waiting) == (1, 2)


async def test_calls_that_outlast_the_grace_are_ended_and_answered(
    tools: ToolClient, serve: Serve, marker: Marker
) -> None:
    executor = await serve(samples.sleeps_long)
    call = asyncio.create_task(tools.call("sleeps_long", marker=str(marker.path)))
    pids = await marker.pids()
    await executor.stop(grace=0.1)

    with pytest.raises(ToolCancelledError):
        await call
    assert not any(alive(pid) for pid in pids)


async def test_calls_go_on_after_the_broker_was_restarted(server: Server, tools: ToolClient, serve: Serve) -> None:
    await serve(samples.add)
    assert await tools.call("add", a=1) == 3
    server.kill9()
    await server.start()

    async def answers() -> bool:
        try:
            return await tools.call(samples.add, a=1, timeout=1.0) == 3
        except (NoSuchToolError, ToolTimeoutError):
            return False

    await eventually(answers, 15.0)


async def test_h5_the_executor_serves_on_after_a_tool_killed_its_parent(
    tools: ToolClient, serve: Serve, marker: Marker
) -> None:
    await serve(samples.kills_parent, samples.add)
    with pytest.raises(ToolFailedError, match="SIGKILL"):
        await tools.call("kills_parent", marker=str(marker.path))

    assert await tools.call("add", a=1) == 3


async def test_two_tools_of_one_name_are_refused(transport: Transport) -> None:
    @tool(name="add")
    async def other() -> None:
        pass

    with pytest.raises(DefinitionError, match="two of this name"):
        ToolExecutor(transport, SUBJECTS, [samples.add, other])


async def test_a_failing_tool_on_the_loop_logs_its_traceback_and_sends_none(
    transport: Transport, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    @tool
    async def fails() -> None:
        raise ValueError("no")

    await serve(fails)
    with caplog.at_level(logging.WARNING, "agentmesh.tools"):
        answer = await raw(transport, "ai.agent.tools.acme.fails", b"{}")

    assert answer["error"]["type"] == "ToolFailedError"
    assert "Traceback" not in json.dumps(answer)
    assert "Traceback" in caplog.text
