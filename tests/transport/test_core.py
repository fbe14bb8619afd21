"""Events and requests over core NATS."""

from __future__ import annotations

import asyncio
import logging
import time

import nats
import pytest

from agentmesh.errors import (
    BrokerUnavailableError,
    DeadlineExceededError,
    InvalidMessageError,
    InvalidSubjectError,
    NoRespondersError,
    PayloadTooLargeError,
    PermissionDeniedError,
)
from agentmesh.transport import Message, Transport, is_no_responders
from tests.harness import Server
from tests.transport.conftest import Connect
from tests.transport.tools import Received, echo


async def test_a_subscriber_gets_body_headers_and_reply_subject(transport: Transport) -> None:
    received = Received()
    await transport.subscribe("news.*", received)

    await transport.publish("news.today", b"rain", reply="answers.here", headers={"X-From": "Zürich"})

    (message,) = await received.count(1)
    assert (message.subject, message.data, message.reply) == ("news.today", b"rain", "answers.here")
    assert message.headers == {"X-From": "Zürich"}


async def test_messages_come_in_order_and_none_is_dropped_by_a_burst(transport: Transport) -> None:
    received = Received()
    await transport.subscribe("burst", received)

    for i in range(20_000):
        await transport.publish("burst", b"%d" % i)

    await received.count(20_000)
    assert received.bodies == [b"%d" % i for i in range(20_000)]


async def test_one_of_a_queue_group_gets_each_message(server: Server, transport: Transport, connect: Connect) -> None:
    other = await connect(server.url)
    received = Received()
    await transport.subscribe("jobs", received, queue="workers")
    await other.subscribe("jobs", received, queue="workers")

    for i in range(50):
        await transport.publish("jobs", b"%d" % i)

    await received.count(50)
    assert sorted(received.bodies, key=int) == [b"%d" % i for i in range(50)]


async def test_nothing_comes_after_unsubscribing(transport: Transport) -> None:
    received, marker = Received(), Received()
    subscription = await transport.subscribe("a", received)
    await transport.subscribe("marker", marker)

    await subscription.unsubscribe()
    await transport.publish("a", b"late")
    await transport.publish("marker", b"")

    await marker.count(1)
    assert received.messages == []


async def test_d3_a_callback_that_fails_or_is_cancelled_gets_the_next_message(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    received = Received()

    def fragile(message: Message) -> None:
        if message.data == b"bug":
            raise ValueError("a bug in the callback")
        if message.data == b"cancelled":
            raise asyncio.CancelledError
        received(message)

    await transport.subscribe("fragile", fragile)

    for body in (b"1", b"bug", b"cancelled", b"2"):
        await transport.publish("fragile", body)

    await received.body(b"2")
    assert received.bodies == [b"1", b"2"]
    assert caplog.text.count("handling a message on b'fragile' failed") == 2


async def test_a_request_returns_the_reply_without_the_requests_headers(transport: Transport) -> None:
    await echo(transport, "echo")

    reply = await transport.request("echo", b"hello", timeout=2, headers={"Authorization": "secret"})

    assert reply.data == b"hello"
    assert reply.headers is None


async def test_many_requests_in_flight_get_their_own_replies(transport: Transport) -> None:
    await echo(transport, "echo")

    replies = await asyncio.gather(*(transport.request("echo", b"%d" % i, timeout=5) for i in range(500)))

    assert [reply.data for reply in replies] == [b"%d" % i for i in range(500)]


async def test_d13_a_request_nobody_listens_to_fails_within_100_ms(transport: Transport) -> None:
    start = time.monotonic()

    with pytest.raises(NoRespondersError, match=r"nobody listens on 'no\.body'"):
        await transport.request("no.body", b"", timeout=5)

    assert time.monotonic() - start < 0.1


@pytest.mark.parametrize("timeout", [0.03, 0.4])
async def test_a_request_without_a_reply_ends_at_its_deadline(transport: Transport, timeout: float) -> None:
    await transport.subscribe("silent", lambda message: None)
    start = time.monotonic()

    with pytest.raises(DeadlineExceededError):
        await transport.request("silent", b"", timeout=timeout)

    assert timeout - 0.01 <= time.monotonic() - start < timeout + 0.3


async def test_a_short_deadline_is_not_delayed_by_a_long_one(transport: Transport) -> None:
    await transport.subscribe("silent", lambda message: None)
    long = asyncio.create_task(transport.request("silent", b"", timeout=60))
    await asyncio.sleep(0)
    start = time.monotonic()

    with pytest.raises(DeadlineExceededError):
        await transport.request("silent", b"", timeout=0.2)

    assert time.monotonic() - start < 0.5
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long


async def test_everybodys_reply_is_gathered_until_it_is_quiet(transport: Transport) -> None:
    for _ in range(3):
        await echo(transport, "roll.call")
    start = time.monotonic()

    replies = await transport.request_many("roll.call", b"here", timeout=5, stall=0.2)

    assert [reply.data for reply in replies] == [b"here"] * 3
    assert time.monotonic() - start < 1
    assert await transport.request_many("no.body", b"", timeout=5, stall=0.2) == []


async def test_an_inbox_gets_every_reply_until_it_is_closed(transport: Transport) -> None:
    received, marker = Received(), Received()
    inbox = transport.open_inbox(received)

    await transport.publish(inbox.subject, b"1")
    await transport.publish(inbox.subject, b"2")
    await received.count(2)
    inbox.close()
    await transport.publish(inbox.subject, b"3")
    await transport.subscribe("marker", marker)
    await transport.publish("marker", b"")
    await marker.count(1)

    assert received.bodies == [b"1", b"2"]


async def test_an_inbox_hears_that_nobody_listens(transport: Transport) -> None:
    received = Received()

    await transport.publish("no.body", b"", reply=transport.open_inbox(received).subject)

    (message,) = await received.count(1)
    assert is_no_responders(message)


@pytest.mark.parametrize("status", ["404", "408", "409", "500", "503"])
async def test_d4_a_users_status_header_is_data_in_events_and_replies(transport: Transport, status: str) -> None:
    received = Received()
    await transport.subscribe("event", received)
    await echo(transport, "echo", headers={"Status": status})

    await transport.publish("event", b"", headers={"Status": status})
    reply = await transport.request("echo", b"", timeout=2)

    (event,) = await received.count(1)
    assert reply.headers == event.headers == {"Status": status}
    assert not is_no_responders(reply)


BAD_SUBJECTS = [
    "", ".", "a..b", ".a", "a.", "a b", "a\tb", "a\r\nPUB x 0\r\n\r\n", "a\x00b", "a\x0bb", "ünï", "a\u2028b",
    "a\u00a0b",
    "w.*", "w.>", ">", "*", "a." + "b" * 512, "a." + "b" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("subject", BAD_SUBJECTS, ids=ascii)
async def test_d7_a_malformed_subject_is_refused_before_the_wire(transport: Transport, subject: str) -> None:
    with pytest.raises(InvalidSubjectError):
        await transport.publish(subject, b"")
    with pytest.raises(InvalidSubjectError):
        await transport.request(subject, b"", timeout=1)
    if subject:
        with pytest.raises(InvalidSubjectError):
            await transport.publish("good", b"", reply=subject)

    assert transport.connection.generation == 1
    assert transport.is_connected


@pytest.mark.parametrize("pattern", ["a.*.b", "a.>", ">", "*", "a", "$SRV.>"])
async def test_wildcards_are_for_subscribing(transport: Transport, pattern: str) -> None:
    await transport.subscribe(pattern, lambda message: None)


@pytest.mark.parametrize("pattern", ["", "a.>.b", "a*", "a.b>", "a b", "a..b", ">.a", "a.", ".>"])
async def test_a_malformed_pattern_is_refused(transport: Transport, pattern: str) -> None:
    with pytest.raises(InvalidSubjectError):
        await transport.subscribe(pattern, lambda message: None)


@pytest.mark.parametrize(
    "headers",
    [{"K\r\nX": "v"}, {"K": "v\r\nInjected: yes"}, {"K": "v\nx"}, {"": "v"}, {"a b": "v"}, {"a:b": "v"}, {"ü": "v"}],
    ids=ascii,
)
async def test_a_header_that_could_forge_another_is_refused(transport: Transport, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidMessageError):
        await transport.publish("a", b"", headers=headers)


async def test_d7_body_and_headers_over_the_limit_are_refused_and_the_connection_stays(
    connect: Connect,
) -> None:
    async with Server(max_payload="8192") as server:
        transport = await connect(server.url)
        received = Received()
        await transport.subscribe("a", received)

        with pytest.raises(PayloadTooLargeError, match="over the limit of 7168"):
            await transport.publish("a", b"x" * 7169)
        with pytest.raises(PayloadTooLargeError):
            await transport.publish("a", b"x" * 7000, headers={"X-Long": "v" * 300})
        await transport.publish("a", b"x" * transport.max_payload)

        await received.count(1)
        assert transport.connection.generation == 1


async def test_d7_an_account_limit_below_the_servers_can_be_told(server: Server, connect: Connect) -> None:
    transport = await connect(server.url, max_payload=4096)

    with pytest.raises(PayloadTooLargeError):
        await transport.publish("a", b"x" * 4000)


USERS = """
authorization { users = [
  { user: boss, password: b }
  { user: agent, password: a, permissions: { publish: ["Allowed.>"], subscribe: ["_INBOX_agent.>", "Mine"] } }
] }
"""


async def test_a_denied_request_or_subscription_is_told_at_once(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async with Server(extra_config=USERS) as server:
        transport = await connect(server.url, user="agent", password="a")
        start = time.monotonic()

        with pytest.raises(PermissionDeniedError, match=r"denies publish on 'Secret\.Door'"):
            await transport.request("Secret.Door", b"", timeout=5)
        with pytest.raises(PermissionDeniedError, match="denies subscribe on 'Theirs'"):
            await transport.subscribe("Theirs", lambda message: None)
        await transport.subscribe("Mine", lambda message: None)

        assert time.monotonic() - start < 1
        assert transport.is_connected


async def test_a_wrong_login_is_refused_at_once_and_the_password_is_not_shown(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Server(extra_config=USERS) as server:
        url = server.url.replace("nats://", "nats://boss:sekret@")
        start = time.monotonic()

        with pytest.raises(BrokerUnavailableError, match="refused the login") as refused:
            await connect(url)

        assert time.monotonic() - start < 2
        assert "sekret" not in str(refused.value) + caplog.text
        right = await connect(server.url.replace("nats://", "nats://boss:b@"))
        assert "b@" not in right.url
        assert "boss:b" not in repr(right.connection.nc.servers)


async def test_nobody_there_is_told_within_the_timeout(connect: Connect) -> None:
    start = time.monotonic()

    with pytest.raises(BrokerUnavailableError, match="is it running"):
        await connect("nats://127.0.0.1:1", connect_timeout=0.5)

    assert time.monotonic() - start < 1


async def test_foreign_clients_and_bytes_that_are_not_text_do_no_harm(server: Server, transport: Transport) -> None:
    received = Received()
    await transport.subscribe("foreign.>", received)
    foreign = await nats.connect(server.url)

    foreign._transport.write(b"PUB foreign.\xff\xfe 2\r\nhi\r\n")  # type: ignore[union-attr]
    foreign._transport.write(b"HPUB foreign.x 18 20\r\nNATS/1.0\r\na\xff:b\r\n\r\nhi\r\n")  # type: ignore[union-attr]
    await foreign.publish("foreign.plain", b"hello")

    await received.body(b"hello")
    assert transport.connection.generation == 1
    await foreign.close()
