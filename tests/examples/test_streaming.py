"""The founding examples of reliable streams run as they are written there, and end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from agentmesh import ports
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.streams import Config, Subscriber
from tests.examples.founding import LONG, ROOT, Start, finished, start
from tests.harness import Process, spawn_python

__all__ = ["start"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One for all: the examples name their conversations."""
    with EmbeddedBroker(BrokerOptions(store=tmp_path_factory.mktemp("broker"), sync_always=False)) as broker:
        yield broker


@pytest.mark.seed("D9", "D16", "D17", "D18", "A25")
async def test_the_short_examples_print_what_they_stream_and_end(broker: EmbeddedBroker, start: Start) -> None:
    quick, streamed, replay, later, failing = await asyncio.gather(
        start("quick_start.py", url=broker.url),
        start("async_streaming.py", url=broker.url),
        start("replay_from_offset.py", "replayed-1", url=broker.url),
        start("replay_from_offset.py", "replayed-2", "5", url=broker.url),
        start("error_handling.py", url=broker.url),
    )

    # The founding document's quick start never ends: nobody publishes an end. Here leaving the block does.
    assert await finished(quick) == ["0 text: Hello!", "1 error: aborted"]
    assert await finished(streamed) == ["Hello there! How can I help you? "]
    words = ["Streams", "can", "be", "read", "again", "from", "any", "point"]
    assert await finished(replay) == [f"Replayed: {word}" for word in [*words, ""]]
    assert await finished(later) == [f"Replayed: {word}" for word in [*words[5:], ""]]
    failed = await finished(failing)
    told = ["  text: Processing...", "  error: Something went wrong!"]
    assert [line for line in failed if line in ("chat-by-itself", "chat-by-hand", *told)] == [
        *("chat-by-itself", *told),
        *("chat-by-hand", *told),
    ]


@pytest.mark.seed("D7", "D13")
async def test_what_is_typed_at_the_chat_server_streams_to_every_client(broker: EmbeddedBroker, start: Start) -> None:
    early = await start("simple_get_stream_example/chat_client.py", url=broker.url)
    server = await start("simple_get_stream_example/chat_server.py", "--pause", "0.01", url=broker.url)
    await server.line_matching("^Chat server started", timeout=LONG)
    await server.write_line("hello to all of you")
    await early.line_matching(r"^\[Client-1\] hello to all of you $", timeout=LONG)
    late = await start("simple_get_stream_example/chat_client.py", "Client-2", url=broker.url)
    await server.write_line("and to you")

    for client, name in ((early, "Client-1"), (late, "Client-2")):
        await client.line_matching(rf"^\[{name}\] and to you $", timeout=LONG)
        assert client.lines == [
            f"{name} joined 'simple-chat'; Ctrl-C leaves",
            f"[{name}] hello to all of you ",
            f"[{name}] and to you ",
        ]
    for process in (early, late, server):
        process.interrupt()
    for process in (early, late, server):
        assert await process.wait(LONG) == 0
        assert "Traceback" not in process.output


@pytest.mark.seed("D14")
async def test_the_demo_runs_from_anywhere_and_frontends_replay_and_follow(
    broker: EmbeddedBroker, start: Start
) -> None:
    demo = await start("ai_server_client/demo.py", url=broker.url)
    lines = await finished(demo)

    assert lines[-1] == "Demo complete"
    assert "server   | AI server started, conversations conv-001, conv-002, conv-003" in lines
    lines = [line.removeprefix("frontend | ") for line in lines]
    assert "[conv-003] 17 * 23 = 391" in lines
    for name in ("conv-001", "conv-002", "conv-003"):
        (tokens,) = [line for line in lines if line.startswith(f"[{name}] tokens: ")]
        assert int(tokens.rpartition(" ")[2]) > 5
        assert [line for line in lines if re.fullmatch(rf"\[{name}\] finish \(\d+ chunks\)", line)]
    assert len({line.rpartition(" ")[2] for line in lines if "] tokens: " in line}) == 3  # counted

    again, interactive, waiting = await asyncio.gather(
        start("ai_server_client/frontend_client.py", "conv-003", url=broker.url),
        start("ai_server_client/frontend_client.py", "interactive", url=broker.url),
        start("ai_server_client/frontend_client.py", "conv-late", url=broker.url),
    )
    assert await finished(again) == [
        "Watching conv-003; Ctrl-C ends",
        "[conv-003] question: What is 17 * 23?",
        "17 * 23 = 391",
        "[conv-003] tokens: 14",
        "[conv-003] finish (8 chunks)",
    ]
    await interactive.write_line("conv-003 6")
    await interactive.line_matching(r"finish \(2 chunks\)$", timeout=LONG)
    await interactive.write_line("bad/name")
    await interactive.line_matching("is not allowed", timeout=LONG)
    await interactive.write_line("quit")
    assert await interactive.wait(LONG) == 0
    await waiting.line_matching("^Watching conv-late", timeout=LONG)
    waiting.interrupt()
    assert await waiting.wait(LONG) == 0
    assert "Traceback" not in waiting.output


@pytest.mark.slow  # it looks for a broker for some seconds
async def test_without_a_broker_a_client_says_what_to_start(start: Start) -> None:
    client = await start("simple_get_stream_example/chat_client.py", url="nats://127.0.0.1:1")
    assert (await finished(client, code=1))[-1].startswith("Start the server first: python examples/simple_get")


# ------------------------------------------------------------ FastAPI


@pytest.fixture
async def web(broker: EmbeddedBroker) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    port = ports.reserve().port
    env = {"NATS_URL": broker.url}
    process = await spawn_python("uvicorn", "examples.fastapi_app:app", "--port", str(port), env=env)
    await process.line_matching("Uvicorn running", timeout=LONG)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LONG, trust_env=False) as client:
        yield process, client
    await process.cleanup()


def events(text: str) -> list[dict[str, Any]]:
    """The data of each event of a stream."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines() if ": " in line) for block in text.split("\n\n")]
    return [{**json.loads(block["data"]), "id": block["id"]} for block in blocks if block.get("id")]


@pytest.mark.seed("D15")
async def test_the_fastapi_example_streams_to_many_and_resumes(
    web: tuple[Process, httpx.AsyncClient], broker: EmbeddedBroker
) -> None:
    process, client = web
    early = asyncio.create_task(client.get("/stream/test-123"))  # before the conversation is there
    started = await client.post("/chat", params={"conversation_id": "test-123", "message": "Hello again"})
    assert started.json() == {"conversation_id": "test-123"}

    first = await early
    assert first.headers["content-type"].startswith("text/event-stream")
    got = events(first.text)
    assert "".join(event["content"] for event in got) == "You said: Hello again "
    assert got[-1]["type"] == "finish"
    assert [event["id"] for event in got] == [str(number) for number in range(5)]
    assert first.text.endswith("event: end\ndata: \n\n")

    readers = await asyncio.gather(*(client.get("/stream/test-123") for _ in range(5)))
    assert {reader.text for reader in readers} == {first.text}
    assert events((await client.get("/stream/test-123?from_offset=3")).text) == got[3:]
    resumed = await client.get("/stream/test-123", headers={"Last-Event-ID": "1"})
    assert events(resumed.text) == got[2:]
    assert (await client.get("/stream/test-123", headers={"Last-Event-ID": "4"})).status_code == 204
    assert (await client.get("/stream/bad.name")).status_code == 400

    # A server that stops takes nobody with it: who reads is told, and the answer has an end.
    await client.post("/chat", params={"conversation_id": "long", "message": "word " * 2000})
    async with client.stream("GET", "/stream/long") as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)) == "id: 0"
        process.interrupt()
    assert await process.wait(LONG) in (0, -signal.SIGINT, 130)
    async with Subscriber(Config(servers=broker.url)) as subscriber:
        last = [chunk async for chunk in subscriber.subscribe("long", idle_timeout=LONG)][-1]
    assert last.type == "error"


def test_the_founding_commands_are_on_the_page_of_examples() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    for command in (
        "python examples/ai_integration_service.py",
        "python examples/ai_integration_client.py",
        "python examples/streaming_client.py",
        "python examples/simple_get_stream_example/chat_server.py",
        "python examples/simple_get_stream_example/chat_client.py Client-2",
        "python examples/ai_server_client/ai_server.py",
        "python examples/ai_server_client/frontend_client.py conv-001 conv-002 conv-003",
        "python examples/ai_server_client/frontend_client.py interactive",
        "python examples/ai_server_client/demo.py",
        "uvicorn examples.fastapi_app:app",
    ):
        assert command in page
