"""What a connection survives: killed and frozen servers, cut and silent links, refused logins."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from nats.aio.client import Client

from agentmesh.errors import (
    AgentMeshError,
    ConnectionLostError,
    DeadlineExceededError,
    NoRespondersError,
    PayloadTooLargeError,
)
from agentmesh.transport import Transport, TransportOptions
from agentmesh.transport.client import NatsClient
from tests.harness import Server, TcpProxy, eventually
from tests.transport.conftest import Connect
from tests.transport.tools import Received, States, echo


async def publish_until(transport: Transport, subject: str, received: Received, timeout: float = 10.0) -> float:
    """Publish to ourselves until something comes back; seconds it took."""
    start = time.monotonic()
    before = len(received.messages)

    async def back() -> bool:
        try:
            await transport.publish(subject, b"anybody?")
        except ConnectionLostError:
            return False
        return len(received.messages) > before

    await eventually(back, timeout, what="a message comes back")
    return time.monotonic() - start


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits, where the real ones are tested elsewhere."""
    monkeypatch.setattr("agentmesh.transport.connection.STALL_TIMEOUT", 0.5)
    monkeypatch.setattr("agentmesh.transport.watchdog.LOOK_EVERY", 0.1)
    monkeypatch.setattr("agentmesh.transport.watchdog.PROBE_TIMEOUT", 0.3)


async def flood(transport: Transport) -> None:
    """Publish until it fails."""
    while True:
        await transport.publish("flood", b"x" * 60_000)


async def test_subscriptions_and_replies_survive_a_kill_9_of_the_server(server: Server, transport: Transport) -> None:
    received, states = Received(), States(transport)
    await transport.subscribe("mine", received)
    await echo(transport, "echo")

    server.kill9()
    await states.reach("reconnecting")
    await server.start()
    await states.reach("connected")

    assert await publish_until(transport, "mine", received) < 1
    assert (await transport.request("echo", b"again", timeout=2)).data == b"again"


async def test_what_is_published_while_the_server_restarts_is_sent_afterwards(
    server: Server, transport: Transport
) -> None:
    received, states = Received(), States(transport)
    await transport.subscribe("mine", received)
    server.kill9()
    await states.reach("reconnecting")

    await transport.publish("mine", b"meanwhile")
    await transport.subscribe("new", received)
    await server.start()

    await received.body(b"meanwhile")
    await publish_until(transport, "new", received)


async def test_d1_a_connection_whose_reading_ended_hears_again_within_5_s(transport: Transport) -> None:
    received = Received()
    await transport.subscribe("mailbox", received)
    reading = transport.connection.nc._reading_task
    assert reading is not None

    reading.cancel()
    await asyncio.wait({reading})

    assert await publish_until(transport, "mailbox", received) < 5


async def test_d1_a_server_that_answers_late_does_not_end_the_reading(server: Server, transport: Transport) -> None:
    received = Received()
    await transport.subscribe("mailbox", received)

    server.pause()
    assert not await transport.connection.nc.round_trip(0.3)
    server.resume()

    await publish_until(transport, "mailbox", received)
    assert not transport.connection.nc.is_deaf
    assert transport.connection.generation == 1


async def test_d2_an_exception_in_the_users_state_hook_changes_nothing(server: Server, transport: Transport) -> None:
    received, seen = Received(), []

    def hook(state: str) -> None:
        seen.append(state)
        raise ValueError("a bug in the hook")

    transport.on_state(hook)
    states = States(transport)
    await transport.subscribe("mailbox", received)

    server.kill9()
    await server.start()
    await eventually(lambda: "connected" in seen)
    await states.reach("connected")

    await publish_until(transport, "mailbox", received)
    assert seen == ["reconnecting", "connected"]


@pytest.mark.parametrize(
    "fatal",
    [b"PUB big 4000\r\n" + b"x" * 4000 + b"\r\n", b"PUB a." + b"b" * 5000 + b" 1\r\nx\r\n", b"NONSENSE\r\n"],
    ids=["too large", "long subject", "protocol error"],
)
async def test_a_connection_the_server_closes_for_good_is_built_anew(connect: Connect, fatal: bytes) -> None:
    async with Server(max_payload="2048") as server:
        transport = await connect(server.url)
        received, states = Received(), States(transport)
        await transport.subscribe("mailbox", received)
        await echo(transport, "echo")

        transport.connection.nc._buffer(fatal)
        await states.reach("reconnecting")
        await states.reach("connected")

        await publish_until(transport, "mailbox", received)
        assert (await transport.request("echo", b"again", timeout=2)).data == b"again"
        assert transport.connection.generation == 2


async def test_a_request_keeps_its_deadline_while_the_client_is_built_anew(
    server: Server, transport: Transport
) -> None:
    states = States(transport)
    server.kill9()
    await states.reach("reconnecting")
    transport.connection.rebuild("to see what requests do")
    await transport.connection.nc.close()
    start = time.monotonic()

    with pytest.raises((ConnectionLostError, DeadlineExceededError)):
        await transport.request("anything", b"", timeout=0.3)

    assert time.monotonic() - start < 0.6
    await server.start()
    await states.reach("connected")


LOGIN = "authorization {{ users = [ {{user: worker, password: {password}}} ] }}\n"


async def test_d8_a_rotated_password_is_asked_for_again_and_subscriptions_live(connect: Connect) -> None:
    current = "one"
    async with Server(extra_config=LOGIN.format(password="one")) as server:
        transport = await connect(server.url, user="worker", password=lambda: current)
        received, states = Received(), States(transport)
        await transport.subscribe("mailbox", received)

        current = "two"
        config = server.store / "nats.conf"
        config.write_text(config.read_text().replace("password: one", "password: two"))
        server.reload()
        start = time.monotonic()
        await states.reach("reconnecting")
        await states.reach("connected")

        await publish_until(transport, "mailbox", received)
        assert time.monotonic() - start < 5


async def test_d10_a_publish_to_a_stalled_server_ends_with_an_error(server: Server, transport: Transport) -> None:
    server.pause()
    start = time.monotonic()

    with pytest.raises(ConnectionLostError):
        await flood(transport)

    assert time.monotonic() - start < 5.5
    server.resume()


async def test_d10_cancelling_a_publish_to_a_stalled_server_works_at_once(server: Server, transport: Transport) -> None:
    server.pause()
    flooding = asyncio.create_task(flood(transport))
    await eventually(lambda: transport.connection.nc.buffered > 1024 * 1024)

    flooding.cancel()
    done, _ = await asyncio.wait({flooding}, timeout=0.5)

    assert done
    assert flooding.cancelled()
    server.resume()


async def test_a_fast_publisher_is_slowed_down_and_loses_nothing(transport: Transport) -> None:
    received = Received()
    await transport.subscribe("flood", received)

    for i in range(400):
        await transport.publish("flood", b"%06d" % i + b"x" * 60_000)

    await received.count(400, timeout=20)
    assert [body[:6] for body in received.bodies] == [b"%06d" % i for i in range(400)]


async def test_d11_10000_failing_requests_leave_nothing_behind(transport: Transport) -> None:
    big = b"x" * 2_000_000
    for _ in range(5000):
        with pytest.raises(NoRespondersError):
            await transport.request("no.body", b"", timeout=5)
        with pytest.raises(PayloadTooLargeError):
            await transport.request("no.body", big, timeout=5)

    assert transport.connection.inbox.pending == 0
    assert transport.connection.nc._resp_map == {}


async def test_d12_an_idle_transport_closes_within_a_second(server: Server) -> None:
    transport = await Transport.connect(TransportOptions(url=server.url))
    start = time.monotonic()

    await transport.close()
    await transport.close()

    assert time.monotonic() - start < 1
    assert transport.state == "closed"
    with pytest.raises(ConnectionLostError):
        await transport.publish("a", b"")
    with pytest.raises(ConnectionLostError):
        await transport.subscribe("a", lambda message: None)


@pytest.mark.parametrize("fault", ["frozen", "killed", "flooded"])
async def test_closing_takes_a_second_at_most_whatever_the_server_does(
    server: Server, fault: str, impatient: None
) -> None:
    transport = await Transport.connect(TransportOptions(url=server.url))
    pending = asyncio.create_task(transport.request("silent", b"", timeout=60))
    await transport.subscribe("silent", lambda message: None)
    if fault == "killed":
        server.kill9()
        await States(transport).reach("reconnecting")
    else:
        server.pause()
    if fault == "flooded":
        with pytest.raises(ConnectionLostError):
            await flood(transport)
    start = time.monotonic()

    await transport.close()

    assert time.monotonic() - start < 1.1
    with pytest.raises(AgentMeshError):
        await pending
    if fault != "killed":
        server.resume()


async def test_everything_published_before_close_arrives(server: Server, connect: Connect) -> None:
    listener = await connect(server.url)
    received = Received()
    await listener.subscribe("last.words", received)
    transport = await Transport.connect(TransportOptions(url=server.url))

    for i in range(1000):
        await transport.publish("last.words", b"%d" % i)
    await transport.close()

    await received.count(1000)


@pytest.mark.slow
async def test_d14_a_silent_hole_is_noticed_within_15_s(proxy: TcpProxy, connect: Connect) -> None:
    transport = await connect(proxy.url)
    states = States(transport)
    start = time.monotonic()

    proxy.blackhole()
    await states.reach("reconnecting", timeout=15)
    noticed = time.monotonic() - start
    proxy.restore()
    await states.reach("connected")

    assert noticed < 15


async def test_d14_without_jetstream_too_and_with_unsent_bytes(
    proxy: TcpProxy, connect: Connect, impatient: None
) -> None:
    transport = await connect(proxy.url, jetstream=False)
    states = States(transport)
    proxy.blackhole()

    with pytest.raises(ConnectionLostError):
        await flood(transport)
    await states.reach("reconnecting", timeout=15)
    proxy.restore()

    await states.reach("connected")


async def test_a_frozen_server_that_thaws_is_used_again(server: Server, transport: Transport, impatient: None) -> None:
    received = Received()
    await transport.subscribe("mailbox", received)

    server.pause()
    await States(transport).reach("reconnecting", timeout=15)
    server.resume()

    await publish_until(transport, "mailbox", received)


async def test_a_server_that_comes_up_late_is_waited_for(server: Server, connect: Connect) -> None:
    server.kill9()
    connecting = asyncio.create_task(connect(server.url))
    await asyncio.sleep(0.1)

    await server.start()

    assert (await connecting).is_connected


async def test_nothing_an_outage_says_contains_credentials(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Server(extra_config=LOGIN.format(password="sekret")) as server:
        transport = await connect(server.url.replace("nats://", "nats://worker:sekret@"))
        states = States(transport)

        server.kill9()
        await states.reach("reconnecting")
        await server.start()
        await states.reach("connected")

        shown = caplog.text + transport.url + repr(transport.options) + transport.options.shown
        assert "sekret" not in shown


async def test_the_parts_of_the_client_we_replace_are_as_we_know_them() -> None:
    client = Client()

    for private in ("_pending", "_pending_data_size", "_flush_queue", "_pongs", "_subs", "_sid", "_reading_task",
                    "_reconnection_task", "_server_info", "_current_server", "_transport"):  # fmt: skip
        assert hasattr(client, private), private
    for method in ("_process_msg", "_attempt_reconnect"):
        assert asyncio.iscoroutinefunction(getattr(Client, method))
        assert getattr(NatsClient, method) is not getattr(Client, method)
