"""Discovery, compared with what nats-py's own micro service answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats
import nats.micro
import pytest
from nats.micro.service import EndpointConfig

from agentmesh.transport import Endpoint, Message, Service, Transport
from tests.harness import Server


async def ask(transport: Transport, subject: str) -> list[dict[str, Any]]:
    replies: list[Message] = await transport.request_many(subject, b"", timeout=2, stall=0.15)
    return [json.loads(reply.data) for reply in replies]


@pytest.fixture
async def writer(transport: Transport) -> Service:
    endpoint = Endpoint("ask", "ai.agent.message.default.writer", "agent.writer", {"schema": "{}"})
    service = Service("writer", "1.2.3", "writes", {"tenant": "default"}, [endpoint])
    await transport.services.start()
    return transport.services.add(service)


async def test_every_service_answers_a_ping_and_each_only_its_own_name_and_id(
    transport: Transport, writer: Service
) -> None:
    reader, second = Service("reader"), Service("writer")
    transport.services.add(reader)
    transport.services.add(second)

    async def found(subject: str) -> list[str]:
        return sorted(service["id"] for service in await ask(transport, subject))

    everybody, writers, one, *nobody = await asyncio.gather(
        found("$SRV.PING"),
        found("$SRV.PING.writer"),
        found(f"$SRV.PING.writer.{second.id}"),
        found("$SRV.PING.nobody"),
        found(f"$SRV.PING.reader.{second.id}"),
        found("$SRV.SCHEMA"),
    )

    assert everybody == sorted([writer.id, reader.id, second.id])
    assert writers == sorted([writer.id, second.id])
    assert one == [second.id]
    assert nobody == [[], [], []]

    transport.services.remove(writer)
    assert await found("$SRV.PING.writer") == [second.id]


async def test_counters_show_in_the_stats(transport: Transport, writer: Service) -> None:
    writer.endpoints[0].count(0.002)
    writer.endpoints[0].count(0.004, "ValueError: no")

    (stats,) = await ask(transport, "$SRV.STATS.writer")

    (endpoint,) = stats["endpoints"]
    assert (endpoint["num_requests"], endpoint["num_errors"], endpoint["last_error"]) == (2, 1, "ValueError: no")
    assert (endpoint["processing_time"], endpoint["average_processing_time"]) == (6_000_000, 3_000_000)


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_answers_have_the_form_of_the_official_client(
    server: Server, transport: Transport, writer: Service, verb: str
) -> None:
    official = await nats.connect(server.url)
    service = await nats.micro.add_service(
        official, name="official", version="1.0.0", description="d", metadata={"a": "b"}
    )

    async def handler(request: Any) -> None:
        await request.respond(b"")

    await service.add_endpoint(EndpointConfig(name="ask", subject="official.ask", handler=handler, metadata={"k": "v"}))

    answers: dict[str, dict[str, Any]] = {}
    while len(answers) < 2:  # the official client's tasks take their time on a starved machine
        answers |= {answer["name"]: answer for answer in await ask(transport, f"$SRV.{verb}")}

    ours, theirs = answers["writer"], answers["official"]
    assert form(ours) == form(theirs)
    assert ours["type"] == theirs["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
    await service.stop()
    await official.close()


def form(value: Any) -> Any:
    """Field names and types, without values; contents of metadata are free, optional fields may be left out."""
    if isinstance(value, dict):
        return {
            key: "metadata" if key == "metadata" else form(part)
            for key, part in value.items()
            if part not in ({}, None)
        }
    if isinstance(value, list):
        return [form(part) for part in value]
    return type(value).__name__
