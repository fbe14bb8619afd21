"""The model broker answers as the real one does: the same calls, through the same transport, with the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentmesh.errors import AgentMeshError, NoRespondersError
from agentmesh.ids import new_id
from agentmesh.transport import ConsumerSpec, Delivery, Message, PullConsumer, StreamSpec, Transport, TransportOptions
from tests.harness import Server
from tests.simulation.world import World, simulated

ACK_WAIT = 0.6

Script = Callable[[Transport, str], Awaitable[list[Any]]]


async def outcome(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except AgentMeshError as error:
        return type(error).__name__


def seen(deliveries: list[Delivery]) -> list[tuple[bytes, int, int]]:
    return [(one.data, one.sequence, one.attempt) for one in deliveries]


async def make(
    transport: Transport, name: str, *, queue: bool = True, acks: int = 0, **bounds: Any
) -> tuple[str, PullConsumer]:
    """A stream of its own with a consumer; its stem and a pull."""
    await transport.ensure_stream(
        StreamSpec(name, (f"{name}.*",), retention="workqueue" if queue else "limits", discard="new", **bounds)
    )
    await transport.ensure_consumer(ConsumerSpec(name, "workers", ack_wait=ACK_WAIT, max_ack_pending=acks))
    pull = transport.pull(name, "workers")
    await pull.start()
    return name, pull


async def storing(transport: Transport, name: str) -> list[Any]:
    stem, _ = await make(transport, name, queue=False, max_msgs_per_subject=2, discard_new_per_subject=True)

    async def put(subject: str, data: bytes = b"x", **options: Any) -> Any:
        stored = await outcome(transport.publish_durable(f"{stem}.{subject}", data, **options))
        return stored if isinstance(stored, str) else (stored.sequence, stored.duplicate)

    found = [
        await put("a", msg_id="1"),
        await put("a", msg_id="1"),
        await put("b", msg_id="1"),
        await put("a", expect_last=0),
        await put("a", expect_last=1, msg_id="2"),
        await put("a", expect_last=1, msg_id="2"),
        await put("a", msg_id="2"),
        await put("a"),
        await put("b", expect_last=0),
        await put("b", expect_last=0),
        await outcome(transport.publish_durable("nobody.here", b"x", timeout=0.2)),
    ]
    last = await transport.last_message(stem, f"{stem}.a")
    found += [
        last and (last.subject, last.sequence, last.data, last.headers),
        await transport.last_message(stem, f"{stem}.c"),
        [(m.subject, m.sequence) for m in await transport.messages(stem, f"{stem}.*")],
        [(m.subject, m.sequence) for m in await transport.messages(stem, f"{stem}.*", start=2, limit=1)],
        await transport.messages(stem, f"{stem}.c"),
        await transport.get_message(stem, 99),
        await transport.subjects_of(stem, f"{stem}.*"),
    ]
    await transport.delete_message(stem, 1)
    found += [await transport.purge(stem, f"{stem}.b"), await transport.get_message(stem, 1)]
    info = await transport.stream_info(stem)
    assert info is not None
    found += [info.messages, info.first_sequence, info.last_sequence, info.subjects]
    return found


async def pulling(transport: Transport, name: str) -> list[Any]:
    stem, pull = await make(transport, name)
    found: list[Any] = [seen(await pull.take(5))]
    for number in range(4):
        await transport.publish_durable(f"{stem}.a", str(number).encode())
    while (info := await transport.consumer_info(stem, "workers")) is None or info.pending < 4:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # it counts a moment after it confirms
    first = await pull.take(2)
    rest = await pull.take(5)
    found += [seen(first), [one.pending for one in first], seen(rest), seen(await pull.take(5))]
    await transport.nak(first[0])
    again = await pull.take(5)
    found += [seen(again), await transport.ack(first[0]), await transport.ack(again[0]), seen(await pull.take(1))]
    await transport.nak(first[1], 1.0)
    found += [await transport.ack(rest[0]), seen(await pull.take(1))]
    pull.arm()
    await arrival(pull)
    found.append(seen(pull.received()))
    await transport.term(rest[1], "no")
    await transport.publish_durable(f"{stem}.a", b"last")
    pull.arm()
    await arrival(pull)
    found.append(seen(pull.received()))
    info = await transport.consumer_info(stem, "workers")
    state = await transport.stream_info(stem)
    assert info is not None
    assert state is not None
    found += [info.pending, info.ack_pending, info.redelivered, info.floor, state.messages]
    return found


async def arrival(pull: PullConsumer) -> None:
    async with asyncio.timeout(5):
        await pull.ready.wait()
        pull.ready.clear()


async def silence(transport: Transport, name: str) -> list[Any]:
    """Redelivery after `ack_wait`; signs of life put it off; an answer to an older delivery counts."""
    stem, pull = await make(transport, name)
    await transport.publish_durable(f"{stem}.a", b"x")
    loop = asyncio.get_running_loop()
    (first,) = await pull.take(1)
    began = loop.time()
    for _ in range(4):
        await asyncio.sleep(ACK_WAIT / 2)
        await transport.in_progress(first)
    pull.arm()
    await arrival(pull)
    after = loop.time() - began
    second = pull.received()
    found = [seen(second), 2.9 < after / ACK_WAIT < 6.0, await transport.ack(first)]
    await asyncio.sleep(1.5 * ACK_WAIT)
    return [*found, seen(await pull.take(1))]


async def one_at_a_time(transport: Transport, name: str) -> list[Any]:
    stem, pull = await make(transport, name, acks=1)
    for number in range(2):
        await transport.publish_durable(f"{stem}.a", str(number).encode())
    first = await pull.take(2)
    found = [seen(first), seen(await pull.take(2)), await transport.ack(first[0]), seen(await pull.take(2))]
    return found


async def gone(transport: Transport, name: str) -> list[Any]:
    """A consumer that is deleted under its workers is made again."""
    stem, pull = await make(transport, name)
    pull.arm()
    await asyncio.sleep(0.1)
    await transport._admin.delete_consumer(stem, "workers")
    await transport.publish_durable(f"{stem}.a", b"x")
    await arrival(pull)
    return [seen(pull.received()), await outcome(transport.publish_durable(f"{stem}.a", b"y"))]


async def core(transport: Transport, name: str) -> list[Any]:
    heard: list[tuple[str, bytes]] = []

    def answer(message: Message) -> None:
        heard.append((message.subject, message.data))
        if message.reply:
            transport.connection.send(message.reply, b"pong")

    subscription = await transport.subscribe(f"{name}.>", answer)
    reply = await transport.request(f"{name}.a.b", b"ping", timeout=1.0)
    many = await transport.request_many(f"{name}.c", b"all", timeout=1.0, stall=0.1)
    await subscription.unsubscribe()
    await transport.ensure_stream(
        StreamSpec(name, (f"{name}s.*",), republish=(f"{name}s.*", f"{name}.{{{{wildcard(1)}}}}"))
    )
    live: list[Any] = []
    await transport.subscribe(f"{name}.x", lambda m: live.append(headers_of(m)))
    for _ in range(2):
        await transport.publish_durable(f"{name}s.x", b"x", msg_id=new_id())
    await asyncio.sleep(0.1)
    nobody = await outcome(transport.request(f"{name}.none", b"", timeout=1.0))
    return [reply.data, len(many), [data for _, data in heard], live, nobody == NoRespondersError.__name__]


def headers_of(message: Message) -> list[str | None]:
    headers = message.headers or {}
    return [headers.get(key) for key in ("Nats-Subject", "Nats-Sequence", "Nats-Last-Sequence")]


async def forever() -> None:
    await asyncio.Event().wait()


async def real(server: Server, script: Script) -> list[Any]:
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        return await asyncio.wait_for(script(transport, "script"), 20)


def in_simulation(script: Script) -> list[Any]:
    with simulated(1) as world:
        process = world.process("p", forever())

        async def main() -> list[Any]:
            return await script(await world.connect(), "script")

        return list(world.loop.run_until_complete(world.loop.spawn(process, main())))


@pytest.mark.parametrize("script", [storing, pulling, silence, one_at_a_time, gone, core])
async def test_k1_the_model_answers_like_the_server(server: Server, script: Script) -> None:
    really = await real(server, script)

    assert await asyncio.to_thread(in_simulation, script) == really


async def test_k1_a_restart_of_the_model_forgets_what_a_restart_of_the_server_does(server: Server) -> None:
    async def before(transport: Transport) -> list[Any]:
        stem, pull = await make(transport, "script")
        for number in range(3):
            await transport.publish_durable(f"{stem}.a", b"x", msg_id=str(number))
        for delivery in await pull.take(2):
            await transport.ack(delivery)
        return []

    async def after(transport: Transport) -> list[Any]:
        again = [await transport.publish_durable("script.a", b"x", msg_id=str(number)) for number in range(3)]
        return [(stored.sequence, stored.duplicate) for stored in again]

    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        await before(transport)
        server.kill9()
        await server.start()
        really = await asyncio.wait_for(after(transport), 20)

    def simulate() -> list[Any]:
        with simulated(1) as world:
            return _with_restart(world, before, after)

    assert await asyncio.to_thread(simulate) == really == [(4, False), (5, False), (3, True)]


def _with_restart(
    world: World,
    before: Callable[[Transport], Awaitable[list[Any]]],
    after: Callable[[Transport], Awaitable[list[Any]]],
) -> list[Any]:
    process = world.process("p", forever())

    async def main() -> list[Any]:
        transport = await world.connect()
        await before(transport)
        await asyncio.sleep(1.0)
        world.broker.stop(kill=True)
        await asyncio.sleep(0.5)
        world.broker.start()
        return await after(transport)

    return list(world.loop.run_until_complete(world.loop.spawn(process, main())))
