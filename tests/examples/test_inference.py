"""The inference service and its clients print what the founding documents say, with numbers that are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.agents.llm.backends.offline import count_tokens
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from tests.examples.founding import LONG, Start, finished, start

__all__ = ["start"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One for all: the inference door has no tenant in its name."""
    with EmbeddedBroker(BrokerOptions(store=tmp_path_factory.mktemp("broker"), sync_always=False)) as broker:
        yield broker


@pytest.mark.seed("A16", "A17", "A18", "A25")
async def test_three_terminals_as_in_the_founding_document(broker: EmbeddedBroker, start: Start) -> None:
    service = await start("ai_integration_service.py", url=broker.url)
    await service.line_matching("^Listening on", timeout=LONG)
    client = await start("ai_integration_client.py", url=broker.url)
    streaming = await start("streaming_client.py", url=broker.url)
    longer = await start("streaming_client.py", "Tell me about subjects and streams, please", url=broker.url)

    assert service.lines == [
        "AI Integration Service started",
        "Listening on svc.ai.llm.v1.infer with queue group q.ai.llm.infer",
    ]
    prompt, answer = "Tell me about NATS messaging", "Response to: Tell me about NATS messaging"
    connected, sending, generation, output, tokens, reason = await finished(client)
    assert [connected, sending] == ["Connected to NATS", "Sending request to svc.ai.llm.v1.infer"]
    assert re.fullmatch(r"Generation ID: gen-\S+", generation)
    assert output == f"Output: {answer}"
    assert tokens == f"Tokens used: {count_tokens(prompt) + count_tokens(answer)}"
    assert reason == "Finish reason: stop"

    lines = await finished(streaming)
    assert lines[:5] == [
        "Connected to NATS",
        "Sending streaming request to svc.ai.llm.v1.infer",
        "This is a demo response...",
        "",
        "Generation complete",
    ]
    assert re.fullmatch(r"Generation ID: gen-\S+", lines[5])
    assert lines[6] == "Finish reason: stop"
    said, prompt = "This is a demo response...", "Tell me about subjects and streams, please"
    assert lines[7] == f"Total tokens: {count_tokens(f'Say: {said}') + count_tokens(said)}"
    lines = await finished(longer)
    assert lines[2] == f"Response to: {prompt}"
    assert lines[7] == f"Total tokens: {count_tokens(prompt) + count_tokens(f'Response to: {prompt}')}"

    service.interrupt()
    assert await service.wait(LONG) == 0
    assert "Traceback" not in service.output


async def test_without_a_service_the_client_says_what_to_start(
    broker: EmbeddedBroker, start: Start, tmp_path: Path
) -> None:
    with EmbeddedBroker(BrokerOptions(store=tmp_path / "empty", sync_always=False)) as empty:
        client = await start("ai_integration_client.py", url=empty.url)
        lines = await finished(client, code=1)
    assert "nobody listens on 'svc.ai.llm.v1.infer'" in lines[-2]
    assert lines[-1].startswith("Start the service first: python examples/ai_integration_service.py")
