"""The API of the seed: `Publisher`, `Subscriber`, `Chunk` and `Config`, in plain code and with an event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import (
    BrokerUnavailableError,
    ConfigError,
    InvalidMessageError,
    InvalidNameError,
    PublishTimeoutError,
    RunCancelledError,
    StreamIdleError,
)
from agentmesh.ids import new_id
from agentmesh.streams import KINDS, TERMINAL, AsyncPublisher, AsyncSubscriber, Chunk, Config, Publisher, Subscriber
from agentmesh.streams.chunk import decode_chunks
from agentmesh.transport import Transport, TransportOptions
from tests.harness import eventually
from tests.harness.fixtures import SpawnProcess

SOON = 15.0


@pytest.fixture
def config(nats_server: EmbeddedBroker) -> Config:
    return Config(bootstrap_servers=nats_server.url, tenant=f"t-{new_id()}")


@pytest.fixture
def publisher(config: Config) -> Iterator[Publisher]:
    with Publisher(config) as connected:
        yield connected


@pytest.fixture
def subscriber(config: Config) -> Iterator[Subscriber]:
    with Subscriber(config) as connected:
        yield connected


def say(publisher: Publisher, chat: str, *words: str) -> None:
    for word in words:
        publisher.publish(Chunk(conversation_id=chat, content=word))
    publisher.publish(Chunk(conversation_id=chat, type="finish"))


# ---------------------------------------------------------------- publisher and subscriber


@pytest.mark.seed("D9", "D22", "D23")
def test_the_quick_start_ends(config: Config) -> None:
    with Publisher(config) as pub:
        chunk = Chunk(conversation_id="chat-123", content="Hello!", type="text")
        pub.publish(chunk)

    with Subscriber(config) as sub:
        told = [(chunk.type, chunk.content) for chunk in sub.subscribe("chat-123")]

    assert told == [("text", "Hello!"), ("error", "aborted")]


@pytest.mark.seed("D10", "D21", "D22", "D23")
def test_publishing_and_reading_in_plain_code(config: Config) -> None:
    publisher, subscriber = Publisher(config), Subscriber(config)
    publisher.connect()
    subscriber.connect()
    try:
        stored = [publisher.publish(Chunk(conversation_id="c", content=word, data={"n": 1})) for word in "abc"]
        publisher.publish(Chunk(conversation_id="c", type="finish"))
        say(publisher, "c", "second turn")

        assert [(chunk.offset, chunk.content, chunk.data) for chunk in stored] == [
            *((0, "a", {"n": 1}), (1, "b", {"n": 1}), (2, "c", {"n": 1})),
        ]
        whole = list(subscriber.subscribe("c"))
        assert [chunk.content for chunk in whole] == ["a", "b", "c", "", "second turn", ""]
        assert [chunk.id for chunk in whole[:3]] == [chunk.id for chunk in stored]
        assert [chunk.content for chunk in subscriber.subscribe("c", one_run=True)] == ["a", "b", "c", ""]
        assert [chunk.offset for chunk in subscriber.subscribe("c", from_offset=4)] == [4, 5]
    finally:
        publisher.disconnect()
        publisher.disconnect()
        subscriber.disconnect()
        subscriber.disconnect()


@pytest.mark.seed("D6", "D7")
def test_several_threads_read_with_one_subscriber_while_it_is_written(
    publisher: Publisher, subscriber: Subscriber
) -> None:
    copies: list[list[str]] = [[] for _ in range(5)]

    def read(copy: list[str]) -> None:
        copy += [chunk.content for chunk in subscriber.subscribe("c")]

    threads = [threading.Thread(target=read, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    say(publisher, "c", *map(str, range(50)))
    for thread in threads:
        thread.join(SOON)

    assert copies == [[*map(str, range(50)), ""]] * 5


def test_a_long_conversation_is_read_in_plain_code_and_left_early(publisher: Publisher, subscriber: Subscriber) -> None:
    async def words() -> AsyncIterator[str]:
        for number in range(5000):
            yield str(number)

    asyncio.run(publisher.publish_stream("c", words()))

    assert [chunk.content for chunk in subscriber.subscribe("c")] == [*map(str, range(5000)), ""]
    reading = subscriber.subscribe("c")
    assert next(reading).content == "0"
    reading.close()  # type: ignore[attr-defined]


@pytest.mark.seed("D9")
def test_plain_code_gives_up_waiting(subscriber: Subscriber) -> None:
    with pytest.raises(StreamIdleError):
        next(iter(subscriber.subscribe("nobody", idle_timeout=0.2)))


async def hello() -> AsyncIterator[Chunk]:
    for word in ("Hello ", "there! "):
        yield Chunk(conversation_id="demo-123", content=word, type="text")
    yield Chunk(conversation_id="demo-123", content="", type="finish")


@pytest.mark.seed("D16", "D22")
async def test_a_stream_is_published_from_a_plain_block_in_async_code(config: Config) -> None:
    with Publisher(config) as publisher:
        await publisher.publish_stream("demo-123", hello())

    async with Subscriber(config) as subscriber:
        assert [chunk.content async for chunk in subscriber.subscribe("demo-123")] == ["Hello ", "there! ", ""]


@pytest.mark.seed("D5", "D16")
async def test_an_async_block_publishes_and_reads(config: Config) -> None:
    async with Publisher(config) as publisher, AsyncSubscriber(config) as subscriber:
        assert isinstance(publisher, AsyncPublisher)
        await publisher.publish_stream("demo-123", hello())
        await publisher.publish(Chunk(conversation_id="demo-123", content="And?"))
        await publisher.publish(Chunk(conversation_id="demo-123", type="finish"))

        read = [chunk.content async for chunk in subscriber.subscribe("demo-123")]

    assert read == ["Hello ", "there! ", "", "And?", ""]


async def breaking() -> AsyncIterator[str]:
    yield "Hel"
    raise ValueError("no such model")


@pytest.mark.seed("D18")
@pytest.mark.parametrize("plain", [True, False])
async def test_an_exception_in_the_generator_is_told_to_readers(
    config: Config, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Publisher(config) as publisher:
        async with publisher as async_publisher:
            chosen = publisher if plain else async_publisher
            with pytest.raises(ValueError, match="no such model"):
                await chosen.publish_stream("c", breaking())

    async with AsyncSubscriber(config) as subscriber:
        told = [(chunk.type, chunk.content) async for chunk in subscriber.subscribe("c")]
    assert told == [("text", "Hel"), ("error", "no such model")]
    assert "Traceback" in caplog.text


@pytest.mark.seed("D18")
def test_an_error_chunk_of_ones_own_ends_the_run(publisher: Publisher, subscriber: Subscriber) -> None:
    publisher.publish(Chunk(conversation_id="chat-123", content="Processing...", type="text"))
    publisher.publish(Chunk(conversation_id="chat-123", content="Something went wrong!", type="error"))

    told = [(chunk.type, chunk.content) for chunk in subscriber.subscribe("chat-123")]

    assert told == [("text", "Processing..."), ("error", "Something went wrong!")]


@pytest.mark.seed("D30")
@pytest.mark.parametrize("plain", [True, False])
async def test_a_cancel_stops_the_generator(config: Config, plain: bool) -> None:
    stopped = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            yield "Hel"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    with Publisher(config) as publisher:
        async with publisher as async_publisher:
            chosen = publisher if plain else async_publisher
            producing = asyncio.create_task(chosen.publish_stream("c", endless()))
            _, streams, _ = opened = await config.connect()
            await anext(streams.read("c"))
            assert await streams.cancel("c")
            async with asyncio.timeout(SOON):
                with pytest.raises(RunCancelledError):
                    await producing
            await opened[0].close()
    assert stopped.is_set()


@pytest.mark.seed("D29")
async def test_a_chunk_published_again_after_a_lost_confirmation_is_stored_once(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_durable = Transport.publish_durable
    lose = True

    async def losing(self: Transport, subject: str, *arguments: object, **options: object) -> object:
        nonlocal lose
        answer = await publish_durable(self, subject, *arguments, **options)  # type: ignore[arg-type]
        if lose and subject.startswith("ai.stream."):
            lose = False
            raise PublishTimeoutError(subject, 0.0)
        return answer

    monkeypatch.setattr(Transport, "publish_durable", losing)
    chunk = Chunk(conversation_id="c", content="once")
    async with AsyncPublisher(config) as publisher:
        with pytest.raises(PublishTimeoutError):
            await publisher.publish(chunk)
        assert (await publisher.publish(chunk)).offset == 0
        await publisher.publish(Chunk(conversation_id="c", type="finish"))

    async with AsyncSubscriber(config) as subscriber:
        assert [one.content async for one in subscriber.subscribe("c")] == ["once", ""]


# ---------------------------------------------------------------- named readers


@pytest.mark.seed("D1", "D23")
def test_a_named_reader_goes_on_where_it_was_and_others_do_not_care(config: Config, publisher: Publisher) -> None:
    say(publisher, "c", "a", "b")

    def read(group: str | None, leave_at: str = "") -> list[str]:
        told: list[str] = []
        with Subscriber(config, group_id=group) as subscriber:
            for chunk in subscriber.subscribe("c"):
                told.append(chunk.content or chunk.type)
                if told[-1] in (leave_at, "finish") and leave_at:
                    break
        return told

    assert read("app", leave_at="b") == ["a", "b"]
    assert read("app", leave_at="finish") == ["b", "finish"]  # it never asked for what comes behind b
    assert read("other") == ["a", "b", "finish"]
    say(publisher, "c", "d")
    assert read("app", leave_at="finish") == ["d", "finish"]
    assert read(None) == ["a", "b", "finish", "d", "finish"]
    with Subscriber(config, group_id="app") as subscriber:
        assert [chunk.content for chunk in subscriber.subscribe("c", from_offset=0)][:2] == ["a", "b"]


@pytest.mark.seed("D3")
async def test_a_named_reader_that_is_killed_loses_nothing(
    config: Config, chat: str, spawn_process: SpawnProcess
) -> None:
    async with AsyncPublisher(config) as publisher:
        for number in range(20):
            await publisher.publish(Chunk(conversation_id=chat, content=str(number)))
        await publisher.publish(Chunk(conversation_id=chat, content="end", type="finish"))
    arguments = (config.servers or "", config.tenant or "", chat, "app")
    handled: list[str] = []

    for count in ("5", "999"):
        process = await spawn_process("tests.streams.reader", *arguments, count)
        await process.wait(SOON)
        handled.append(" ".join(re.findall(r"handled (\w+)", process.output)))

    words = [*map(str, range(20)), "end"]
    first, second = (text.split() for text in handled)
    assert first == words[:5]
    assert second == words[21 - len(second) :]
    assert len(second) >= 16  # what it was handling comes again


# ---------------------------------------------------------------- chunks


@pytest.mark.seed("D4", "D24")
def test_a_chunk_has_the_fields_of_the_seed() -> None:
    chunk = Chunk(conversation_id="chat-123", content="Hello", type="text")

    assert chunk.timestamp.tzinfo is UTC
    assert re.fullmatch(r"[0-9a-f]{20,}", chunk.id)
    document = chunk.to_json()
    assert document.startswith(b'{"id":"' + chunk.id.encode() + b'","conversation_id":"chat-123","type":"text",')
    assert Chunk.from_json(document) == chunk
    assert {"finish", "error", "cancelled"} == TERMINAL < set(KINDS)
    assert [kind for kind in KINDS if Chunk(type=kind).is_final] == ["finish", "error", "cancelled"]


texts = st.text(max_size=20)


@pytest.mark.seed("D4", "D24")
@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Chunk,
        id=texts.filter(bool),
        conversation_id=texts,
        type=st.one_of(st.sampled_from(KINDS), texts.filter(lambda kind: kind not in ("", "chunk"))),
        content=texts,
        timestamp=st.datetimes(timezones=st.just(UTC)),
        role=texts,
        data=st.recursive(
            st.none() | st.booleans() | st.integers(-(2**50), 2**50) | texts,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
            max_leaves=5,
        ),
        run_id=texts,
        epoch=st.integers(1, 9),
        index=st.integers(0, 10**6),
        offset=st.integers(-1, 10**6),
        owner=texts,
    )
)
def test_every_chunk_survives_json_whatever_its_kind(chunk: Chunk) -> None:
    assert Chunk.from_json(chunk.to_json()) == chunk
    assert Chunk.from_json(chunk.to_json().replace(b"{", b'{"from_later":[1],', 1)) == chunk


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just("0001-01-01T00:00:00+23:59"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
FIELDS = ("id", "conversation_id", "type", "content", "timestamp", "role", "data", "run_id", "epoch", "index", "offset")


@pytest.mark.seed("D4")
@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), anything), min_size=1, max_size=3), st.integers(0, 9))
def test_whatever_is_stored_is_read_as_numbered_chunks_or_passed_over(documents: list[Any], offset: int) -> None:
    data = json.dumps(documents).encode()

    chunks = decode_chunks(data, 7, offset)

    assert len(chunks) <= len(documents)
    for number, chunk in enumerate(chunks):
        assert chunk.sequence == 7 or (chunk.offset, chunk.sequence) == (offset + number, 0)
        assert Chunk.from_json(chunk.to_json()).content == chunk.content
    assert decode_chunks(data[:-1], 7, offset) == []


@pytest.mark.seed("D24")
@pytest.mark.parametrize("document", [b"", b"[]", b"7", b"\xff", b"{", b"[" * 100_000])
def test_what_is_no_chunk_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidMessageError):
        Chunk.from_json(document)


@pytest.mark.seed("D24")
def test_a_chunk_of_the_seeds_own_program_is_understood() -> None:
    chunk = Chunk.from_json(
        b'{"id":"6f1d","conversation_id":"c","content":"Hi","type":"text","timestamp":"2024-05-01T10:00:00"}'
    )

    assert (chunk.id, chunk.timestamp.utcoffset()) == ("6f1d", timedelta(0))


# ---------------------------------------------------------------- settings


@pytest.mark.seed("D11", "D25")
def test_the_settings_of_the_seed_are_taken() -> None:
    config = Config(
        bootstrap_servers="localhost:4333",
        topic_prefix="ai-stream",
        num_partitions=1,
        replication_factor=1,
        retention_hours=168,
        compression=True,
        sasl_username="ada",
        sasl_password="secret",
    )

    assert config.bootstrap_servers == config.servers == "localhost:4333"
    assert config.nats_config() == {
        "servers": ["nats://localhost:4333"],
        "name": "agentmesh-stream",
        "user": "ada",
        "password": "secret",
    }
    assert "secret" not in repr(config)


@pytest.mark.seed("D12", "D25")
def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BOOTSTRAP_SERVERS": "one:1,two:2",
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISM": "SCRAM-SHA-256",
        "SASL_USERNAME": "ada",
        "SASL_PASSWORD": "secret",
        "TOPIC_PREFIX": "my-app",
        "NUM_PARTITIONS": "3",
        "REPLICATION_FACTOR": "3",
        "RETENTION_HOURS": "24",
        "COMPRESSION": "true",
    }.items():
        monkeypatch.setenv(f"AGENTMESH_STREAM_{name}", value)

    config = Config(retention_hours=1)

    assert (config.servers, config.replication_factor, config.retention_hours) == ("one:1,two:2", 3, 1.0)
    assert config.nats_config()["servers"] == ["tls://one:1", "tls://two:2"]
    assert config.nats_config()["tls_handshake_first"] is True
    assert (config.stream_id("chat"), Config(topic_prefix="ai-stream").stream_id("chat")) == ("my-app-chat", "chat")
    assert Config(servers=["a:1", "b:2"]).servers == "a:1,b:2"
    with pytest.raises(InvalidNameError):
        config.stream_id("no spaces")


@pytest.mark.seed("D12")
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="retention_hours"):
        Config(retention_hours=0)
    with pytest.raises(ConfigError, match="retentoin"):
        Config(retentoin=0)
    monkeypatch.setenv("AGENTMESH_STREAM_COMPRESSION", "perhaps")
    with pytest.raises(ConfigError, match="AGENTMESH_STREAM_COMPRESSION"):
        Config()


@pytest.mark.seed("D11", "D25")
async def test_more_copies_than_servers_are_warned_of_and_work(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    wanted = Config(servers=config.servers, tenant=config.tenant, replication_factor=3, retention_hours=1000)
    async with AsyncPublisher(wanted) as publisher:
        await publisher.publish(Chunk(conversation_id="c", type="finish"))

    assert "replication_factor=3, but there are 1 copies on 1 servers" in caplog.text
    assert "retention_hours=1000, but the stream keeps everything for 168 hours only" in caplog.text


@pytest.mark.seed("D12", "D27")
async def test_a_shorter_retention_is_kept_per_chunk(config: Config) -> None:
    short = Config(servers=config.servers, tenant=config.tenant, retention_hours=1 / 3600)
    async with AsyncPublisher(short) as publisher, AsyncSubscriber(config) as subscriber:
        await publisher.publish(Chunk(conversation_id="c", content="brief"))
        await publisher.publish(Chunk(conversation_id="c", type="finish"))
        _, streams, _ = opened = await config.connect()

        async def is_gone() -> bool:
            return await streams.state("c") is None

        await eventually(is_gone, SOON, what="it is gone")
        await opened[0].close()
        del subscriber


@pytest.mark.seed("D28")
def test_without_a_broker_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh.streams.config.TransportOptions", partial(TransportOptions, connect_timeout=0.2))
    with pytest.raises(BrokerUnavailableError, match="agentmesh up"):
        Publisher(Config(servers="127.0.0.1:1")).connect()


@pytest.mark.seed("D11")
async def test_without_settings_the_broker_of_the_environment_is_used(
    nats_server: EmbeddedBroker, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", nats_server.url)
    async with AsyncPublisher() as publisher:
        await publisher.publish(Chunk(conversation_id=chat, type="finish"))

    async with await Transport.connect(TransportOptions(url=nats_server.url)) as transport:
        assert await transport.last_message("STREAMS", f"ai.stream.default.{chat}") is not None
    assert sys.version_info >= (3, 11)
