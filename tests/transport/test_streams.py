"""Making streams and consumers, and noticing that they are not what we want."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from agentmesh.errors import ConfigError, JetStreamError
from agentmesh.transport import ConsumerSpec, StreamSpec, Transport
from tests.harness import Server
from tests.transport.conftest import Connect

FULL = StreamSpec(
    "FULL",
    ("full.>",),
    retention="workqueue",
    max_age=3600.5,
    max_bytes=1 << 20,
    max_msgs=1000,
    max_msgs_per_subject=10,
    max_msg_size=5000,
    discard_new_per_subject=True,
    duplicate_window=600,
    allow_msg_ttl=True,
    allow_atomic=True,
    republish=("full.>", "copy.>"),
    deny_delete=True,
    deny_purge=True,
    max_consumers=5000,
    description="everything set",
)
CONSUMER = ConsumerSpec(
    "FULL", "c", ("full.a", "full.b"), ack_wait=1.5, max_deliver=7, max_ack_pending=5, inactive_threshold=60
)


async def test_every_setting_reaches_the_broker_and_making_it_again_finds_no_difference(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    await transport.ensure_stream(FULL)
    await transport.ensure_consumer(CONSUMER)
    await transport.ensure_stream(FULL)
    await transport.ensure_consumer(CONSUMER)

    stream, consumer = await transport.stream_info("FULL"), await transport.consumer_info("FULL", "c")
    assert stream is not None
    assert consumer is not None
    for key, value in FULL.config(1).items():
        assert stream.config.get(key, False) == value, key  # the broker leaves out what is off
    for key, value in CONSUMER.config().items():
        assert consumer.config[key] == value, key
    assert "used as it is" not in caplog.text


async def test_the_defaults_find_no_difference_either(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        await transport.ensure_stream(StreamSpec("PLAIN", ("plain",)))
        await transport.ensure_consumer(ConsumerSpec("PLAIN", "c"))

    assert "used as it is" not in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"subjects": ("full.a",)},
        {"retention": "limits"},
        {"storage": "memory"},
        {"discard_new_per_subject": False, "discard": "new"},
        {"allow_direct": False},
        {"republish": None},
    ],
    ids=str,
)
async def test_a_stream_that_promises_something_else_is_refused(
    transport: Transport, change: dict[str, object]
) -> None:
    await transport.ensure_stream(FULL)

    with pytest.raises(ConfigError, match=f"stream FULL, {next(iter(change))}"):
        await transport.ensure_stream(dataclasses.replace(FULL, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"max_age": 60.0}, {"max_msgs_per_subject": 20}, {"max_msg_size": 1}], ids=str)
async def test_another_bound_is_only_logged(
    transport: Transport, caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    caplog.set_level(logging.WARNING)
    await transport.ensure_stream(FULL)

    await transport.ensure_stream(dataclasses.replace(FULL, **change))  # type: ignore[arg-type]

    assert f"stream FULL exists with {next(iter(change))} = " in caplog.text


async def test_a_consumer_with_another_filter_is_refused_and_another_ack_wait_logged_not_changed(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    await transport.ensure_stream(FULL)
    await transport.ensure_consumer(CONSUMER)

    with pytest.raises(ConfigError, match="filters"):
        await transport.ensure_consumer(dataclasses.replace(CONSUMER, filter_subjects=("full.a",)))
    await transport.ensure_consumer(dataclasses.replace(CONSUMER, ack_wait=99))

    assert "ack_wait" in caplog.text
    info = await transport.consumer_info("FULL", "c")
    assert info is not None
    assert info.config["ack_wait"] == 1_500_000_000


async def test_ten_processes_that_start_at_once_make_one_stream(server: Server, connect: Connect) -> None:
    transports = await asyncio.gather(*(connect(server.url) for _ in range(10)))

    await asyncio.gather(*(t.ensure_stream(FULL) for t in transports))
    await asyncio.gather(*(t.ensure_consumer(CONSUMER) for t in transports))

    info = await transports[0].stream_info("FULL")
    assert info is not None
    assert info.consumers == 1


async def test_streams_can_be_made_while_the_server_restarts(server: Server, transport: Transport) -> None:
    server.kill9()
    making = asyncio.create_task(transport.ensure_stream(FULL))

    await server.start()

    await making
    assert await transport.stream_info("FULL") is not None


async def test_what_does_not_exist_is_none_and_may_be_deleted(transport: Transport) -> None:
    assert await transport.stream_info("NONE") is None
    assert await transport.consumer_info("NONE", "c") is None
    await transport.delete_consumer("NONE", "c")
    await transport.delete_stream("NONE")


async def test_a_refusal_of_the_broker_is_told_with_its_code(transport: Transport) -> None:
    await transport.ensure_stream(StreamSpec("ONE", ("x.>",)))

    with pytest.raises(JetStreamError, match=r"overlap.*\(10065\)"):
        await transport.ensure_stream(StreamSpec("TWO", ("x.a",)))


async def test_one_server_means_one_replica_unless_configured(server: Server, connect: Connect) -> None:
    assert (await connect(server.url)).replicas == 1
    assert (await connect(server.url, replicas=5)).replicas == 5
