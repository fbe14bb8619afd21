"""What `mesh.nats` promises."""

from __future__ import annotations

import asyncio
import zlib
from pathlib import Path

import pytest

from agentmesh import Agent, Event, Mesh, handler
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.errors import (
    BatchPublishError,
    CapturedSubjectError,
    DefinitionError,
    InvalidMessageError,
    NatsTimeoutError,
    NoRespondersError,
    NoStreamError,
    PayloadTooLargeError,
    QueueFullError,
    Reject,
    RemoteError,
)
from agentmesh.facade import Incoming, NATSClient
from agentmesh.facade.compression import packed, unpacked
from agentmesh.transport import StreamSpec, TransportOptions
from tests.harness import Server, eventually

TIMEOUT = 20.0


class Box:
    """Collects what callbacks get."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Incoming] = asyncio.Queue()

    def __call__(self, message: Incoming) -> None:
        self.queue.put_nowait(message)

    async def next(self) -> Incoming:
        async with asyncio.timeout(TIMEOUT):
            return await self.queue.get()


# ------------------------------------------------------------ subscriptions


@pytest.mark.seed("A7")
async def test_callbacks_of_one_subscription_run_side_by_side(nats_client: NATSClient) -> None:
    together = asyncio.Barrier(5)

    async def answer(message: Incoming) -> None:
        await together.wait()  # nobody passes before all five are in
        await message.respond(message.data.upper())

    await nats_client.subscribe(subject="side.by.side", callback=answer)
    replies = await asyncio.gather(
        *(nats_client.request(subject="side.by.side", payload=f"n{i}", timeout=TIMEOUT) for i in range(5))
    )

    assert [reply.data for reply in replies] == [b"N0", b"N1", b"N2", b"N3", b"N4"]


async def test_with_a_concurrency_of_one_each_ends_before_the_next_begins(nats_client: NATSClient) -> None:
    seen: list[str] = []
    done = asyncio.Event()

    async def work(message: Incoming) -> None:
        seen.append(f"begin {message.data.decode()}")
        await asyncio.sleep(0)
        seen.append(f"end {message.data.decode()}")
        if message.data == b"2":
            done.set()

    await nats_client.subscribe(subject="one.by.one", callback=work, concurrency=1)
    await nats_client.publish_many("one.by.one", ["0", "1", "2"])
    async with asyncio.timeout(TIMEOUT):
        await done.wait()

    assert seen == [f"{what} {number}" for number in range(3) for what in ("begin", "end")]


async def test_a_callback_that_raises_is_logged_and_ends_nothing(
    nats_client: NATSClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def divide(message: Incoming) -> None:
        await message.respond(str(10 // int(message.data)))

    await nats_client.subscribe(subject="divide", callback=divide)

    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await nats_client.request(subject="divide", payload="0", timeout=TIMEOUT)
    assert (await nats_client.request(subject="divide", payload="2", timeout=TIMEOUT)).data == b"5"
    assert "a callback of 'divide' failed" in caplog.text


async def test_messages_that_find_no_room_are_dropped_and_said(
    nats_client: NATSClient, caplog: pytest.LogCaptureFixture
) -> None:
    free = asyncio.Event()
    seen: list[bytes] = []

    async def slow(message: Incoming) -> None:
        seen.append(message.data)
        await free.wait()

    subscription = await nats_client.subscribe(subject="slow", callback=slow, concurrency=1, limit=2)
    await nats_client.publish_many("slow", [str(number) for number in range(6)])
    await eventually(lambda: getattr(subscription, "dropped", 0) == 3, TIMEOUT)
    free.set()
    await eventually(lambda: seen == [b"0", b"1", b"2"], TIMEOUT)
    assert "1 messages were dropped so far" in caplog.text


async def test_unsubscribing_waits_for_the_callbacks_that_run(nats_client: NATSClient) -> None:
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(message: Incoming) -> None:
        begun.set()
        await go_on.wait()
        ended.set()

    subscription = await nats_client.subscribe(subject="ending", callback=work)
    await nats_client.publish(subject="ending")
    async with asyncio.timeout(TIMEOUT):
        await begun.wait()
    ending = asyncio.create_task(subscription.unsubscribe())
    go_on.set()
    await ending

    assert ended.is_set()
    with pytest.raises(NoRespondersError):
        await nats_client.request(subject="ending", timeout=TIMEOUT)


class Heard(Event):
    text: str


class Listener(Agent):
    """Subscribes by itself; an event ends it, and it starts again."""

    def __init__(self, box: Box) -> None:
        self.box = box

    async def on_start(self) -> None:
        await self.mesh.nats.subscribe(subject=f"{self.mesh.subjects.tenant}.raw", callback=self.box)

    @handler
    async def heard(self, event: Heard) -> None:
        raise RuntimeError(event.text)


async def test_what_an_agent_subscribes_to_ends_with_its_life(mesh: Mesh) -> None:
    box = Box()
    await mesh.spawn(Listener, box)
    await mesh.tell("listener", Heard(text="end"))
    await eventually(lambda: _restarted(mesh), TIMEOUT)

    await mesh.nats.publish(subject=f"{mesh.subjects.tenant}.raw", payload="once")
    await mesh.nats.publish(subject=f"{mesh.subjects.tenant}.raw", payload="end")

    assert [(await box.next()).data, (await box.next()).data] == [b"once", b"end"]
    await mesh.stop("listener")
    with pytest.raises(NoRespondersError):
        await mesh.nats.request(subject=f"{mesh.subjects.tenant}.raw", timeout=TIMEOUT)


async def _restarted(mesh: Mesh) -> bool:
    infos = await mesh.agents("listener")
    return bool(infos) and infos[0].restarts == 1 and infos[0].state == "ready"


# ------------------------------------------------------------ time and errors


@pytest.mark.seed("B42")
async def test_the_time_given_is_the_time_that_counts(nats_client: NATSClient) -> None:
    """The client library gives up after half a second unless told otherwise; no limit around it changes that."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slowly(message: Incoming) -> None:
        asked.set()
        await answered.wait()
        await message.respond("late but in time")

    await nats_client.subscribe(subject="slowly", callback=slowly)

    async def request_with_timeout(subject: str, payload: bytes, timeout: float) -> Incoming:
        return await asyncio.wait_for(nats_client.request(subject=subject, payload=payload), timeout=timeout)

    waiting = asyncio.create_task(request_with_timeout("slowly", b"", 60.0))
    await asked.wait()
    done, _ = await asyncio.wait({waiting}, timeout=0.6)  # longer than the half second
    assert not done
    answered.set()
    assert (await waiting).data == b"late but in time"

    answered.clear()
    with pytest.raises(asyncio.TimeoutError):
        await request_with_timeout("slowly", b"", 0.05)
    with pytest.raises(NatsTimeoutError) as caught:
        await nats_client.request(subject="slowly", timeout=0.1)
    assert isinstance(caught.value, TimeoutError)
    answered.set()


@pytest.mark.seed("B41", "C5")
async def test_a_lost_connection_is_a_connection_error_and_retrying_gets_through(server: Server) -> None:
    async with NATSClient(server.url) as nats_client:
        box = Box()
        await nats_client.subscribe(subject="news", callback=box)
        server.kill9()
        await eventually(lambda: not nats_client.is_connected, TIMEOUT)

        tries = 0

        async def publish_with_retry(subject: str, payload: bytes, max_retries: int = 3) -> None:
            """As in the guide, with shorter pauses."""
            nonlocal tries
            for attempt in range(max_retries):
                try:
                    tries += 1
                    await nats_client.publish(subject=subject, payload=payload, timeout=0.05)
                    return
                except ConnectionError:
                    if attempt == max_retries - 1:
                        raise
                    await asyncio.sleep(0.01 * 2**attempt)

        with pytest.raises(ConnectionError):
            await publish_with_retry("news", b"lost")
        assert tries == 3

        sending = asyncio.create_task(
            nats_client.publish_with_retry("news", b"found", max_retries=1000, backoff=0.01, timeout=5.0)
        )
        await server.start()
        await asyncio.wait_for(sending, TIMEOUT)
        assert (await box.next()).data == b"found"


async def test_without_a_broker_there_is_a_connection_error_that_says_what_to_do() -> None:
    options = TransportOptions("nats://127.0.0.1:1", connect_timeout=0.3)
    with pytest.raises(ConnectionError, match="is it running"):
        await NATSClient(options=options).publish(subject="x")


async def test_without_an_address_it_is_the_one_of_the_environment(
    nats_server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", nats_server.url)
    nats_client = NATSClient()  # as in the guide: nothing connects it but its first use
    try:
        await nats_client.publish(subject="anything", payload=b"")
        assert nats_client.is_connected
    finally:
        await nats_client.close()


async def test_a_request_that_a_stream_answers_says_so(server: Server) -> None:
    async with NATSClient(server.url) as nats_client:
        transport = await nats_client._transport()
        await transport.ensure_stream(StreamSpec("CAPTIVE", ("captive.>",)))
        with pytest.raises(CapturedSubjectError, match=r"CAPTIVE keeps 'captive\.question'"):
            await nats_client.request(subject="captive.question", timeout=TIMEOUT)


async def test_a_body_over_the_limit_is_refused_with_the_limit(nats_client: NATSClient) -> None:
    with pytest.raises(PayloadTooLargeError, match=r"over the limit of \d+"):
        await nats_client.publish(subject="big", payload=b"x" * (2 << 20))
    with pytest.raises(InvalidMessageError, match="CodecSerializer"):
        await nats_client.publish(subject="big", payload={"not": "bytes"})  # type: ignore[arg-type]


# ------------------------------------------------------------ compression


@pytest.mark.seed("B46")
async def test_large_bodies_are_compressed_on_the_wire_and_plain_for_the_callback(nats_client: NATSClient) -> None:
    nats_client.compress_over = 1000
    box, raw = Box(), Box()
    await nats_client.subscribe(subject="packed", callback=box)
    transport = await nats_client._transport()
    await transport.subscribe("packed", raw)  # type: ignore[arg-type]

    await nats_client.publish(subject="packed", payload=b"a" * 5000, headers={"X-Mine": "kept"})
    await nats_client.publish(subject="packed", payload=b"a" * 500)

    got, wire = await box.next(), await raw.next()
    assert got.data == b"a" * 5000
    assert got.headers["X-Mine"] == "kept"
    assert wire.headers["Content-Encoding"] == "deflate"
    assert len(wire.data) < 100
    assert zlib.decompress(wire.data) == got.data
    assert (await box.next()).headers == {}


@pytest.mark.seed("B46")
async def test_a_bomb_is_not_unpacked(nats_client: NATSClient, caplog: pytest.LogCaptureFixture) -> None:
    nats_client.max_unpacked = 1 << 20
    box = Box()
    await nats_client.subscribe(subject="bomb", callback=box)
    bomb = zlib.compress(b"\0" * (64 << 20))
    assert len(bomb) < 100_000

    with pytest.raises(RemoteError, match="over the limit of 1048576"):
        await nats_client.request(
            subject="bomb", payload=bomb, headers={"Content-Encoding": "deflate"}, timeout=TIMEOUT
        )

    await nats_client.publish(subject="bomb", payload=b"alive")
    assert (await box.next()).data == b"alive"


def test_what_the_header_says_is_checked() -> None:
    data, headers = packed(b"a" * 1000, {})
    assert unpacked(data, headers, 1000) == b"a" * 1000
    with pytest.raises(PayloadTooLargeError):
        unpacked(data, headers, 999)
    with pytest.raises(InvalidMessageError, match="cut off"):
        unpacked(data[:-5], headers, 1000)
    with pytest.raises(InvalidMessageError, match="is not deflate"):
        unpacked(b"plain", headers, 1000)
    with pytest.raises(InvalidMessageError, match="'br' is not understood"):
        unpacked(b"plain", {"Content-Encoding": "br"}, 1000)
    assert packed(b"short", {}) == (b"short", {})
    assert packed(b"a" * 1000, {"Content-Encoding": "gzip"})[0] == b"a" * 1000


# ------------------------------------------------------------ what streams keep


@pytest.mark.seed("B41", "B46")
async def test_a_durable_batch_is_stored_in_order_when_publish_many_returns(server: Server) -> None:
    async with NATSClient(server.url) as nats_client:
        transport = await nats_client._transport()
        await transport.ensure_stream(StreamSpec("LOG", ("log.>",)))

        stored = await nats_client.publish_many("log.a", [str(number) for number in range(1500)], durable=True)

        kept = [entry for start in (1, 501, 1001) for entry in await transport.messages("LOG", "log.>", start=start)]
        assert [ack.sequence for ack in stored if ack is not None] == list(range(1, 1501))
        assert [int(entry.data) for entry in kept] == list(range(1500))

        with pytest.raises(BatchPublishError, match="1 of 3 messages were not published; number 1") as caught:
            await nats_client.publish_many("log.a", [b"fine", b"x" * (2 << 20), b"fine"], durable=True)
        assert list(caught.value.errors) == [1]

        with pytest.raises(NoStreamError, match="no stream keeps 'nowhere'"):
            await nats_client.publish(subject="nowhere", durable=True)


@pytest.mark.seed("B43")
async def test_a_full_queue_is_said_and_waiting_for_room_gets_through(tmp_path: Path) -> None:
    with EmbeddedBroker(BrokerOptions(store=tmp_path, sync_always=False)) as broker:
        async with NATSClient(broker.url, tenant="acme") as nats_client:
            door = "ai.agent.tasks.acme"
            await nats_client.publish(subject=door, payload=b'{"task_type":"Count","task_id":"t0"}')
            transport = await nats_client._transport()
            await transport.edit_stream("TASKS", max_msgs_per_subject=10)

            refused: list[float] = []
            for number in range(1, 100):  # ten times what there is room for
                try:
                    await nats_client.publish(subject=door, payload=f'{{"task_type":"Count","task_id":"t{number}"}}')
                except QueueFullError as error:
                    refused.append(error.retry_after)
            assert len(refused) == 90  # and what was not refused is stored
            assert min(refused) > 0
            info = await transport.stream_info("TASKS")
            assert info is not None
            assert info.messages == 10

            waiting = asyncio.create_task(
                nats_client.publish_with_backpressure(door, b'{"task_type":"Count","task_id":"late"}', patience=TIMEOUT)
            )
            counted = Box()
            await nats_client.subscribe(subject=door, callback=counted, queue="agent.workers")
            assert await waiting is not None
            assert {(await counted.next()).data for _ in range(11)} >= {b'{"task_type":"Count","task_id":"late"}'}


async def test_a_worker_that_raises_gets_it_again_and_a_hopeless_message_is_a_dead_letter(
    nats_client: NATSClient, mesh: Mesh
) -> None:
    """With a stream of one's own; `attempt` counts, whatever the sender's `retry_count` says."""
    tenant = mesh.subjects.tenant
    worker = NATSClient(mesh.url, tenant=tenant)
    await mesh.transport.ensure_stream(StreamSpec(f"ORDERS-{tenant}", (f"orders.{tenant}.*",), retention="workqueue"))
    seen: list[tuple[bytes, int]] = []
    settled = asyncio.Event()

    async def work(message: Incoming) -> None:
        seen.append((message.data, message.attempt))
        if message.data == b"bad":
            raise Reject("nobody can eat that")
        if message.attempt == 1:
            raise RuntimeError("not today")
        settled.set()

    await mesh.nats.publish(subject=f"orders.{tenant}.a", payload=b"good", headers={"retry_count": "0"}, durable=True)
    await mesh.nats.publish(subject=f"orders.{tenant}.b", payload=b"bad", durable=True)
    async with worker:
        await worker.subscribe(subject=f"orders.{tenant}.*", callback=work, queue="cooks", durable=True, concurrency=1)
        async with asyncio.timeout(TIMEOUT):
            await settled.wait()
        (letter,) = await mesh.tasks.dead.ls()

    assert seen == [(b"good", 1), (b"bad", 1), (b"good", 2)]
    assert letter.reason == "nobody can eat that"
    assert letter.original() == b"bad"


async def test_a_durable_subscription_says_what_it_lacks(mesh: Mesh) -> None:
    tenant = mesh.subjects.tenant
    with pytest.raises(DefinitionError, match="needs queue="):
        await mesh.nats.subscribe(subject=f"ai.agent.tasks.{tenant}", callback=print, durable=True)
    with pytest.raises(NoStreamError):
        await mesh.nats.subscribe(subject="no.stream.here", callback=print, queue="q", durable=True)
    with pytest.raises(DefinitionError, match="dispatcher of agentmesh up"):
        await mesh.nats.subscribe(subject=f"ai.agent.tasks.{tenant}", callback=print, queue="agent.workers")


async def test_a_group_that_listens_to_everything_takes_no_work(mesh: Mesh) -> None:
    box = Box()
    await mesh.nats.subscribe(subject=">", callback=box, queue="monitors")
    await mesh.nats.publish(subject=f"{mesh.subjects.tenant}.passing", payload=b"by")
    while (message := await box.next()).subject != f"{mesh.subjects.tenant}.passing":
        pass
    assert message.data == b"by"
