"""Token streams: agentmesh against the same work on raw nats-py, side by side in one run.

    python -m benchmarks.streams [--pairs 7] [--quick] [--json FILE] [--sync always|default] [CASE ...]

This process produces, a child reads (in the cases about reading, this one reads). Both sides use the same two
processes, the same broker, and tokens of the same text; "raw" stores one message for each token with `publish_async`,
and reads with an ordered consumer. The goals are those of the design; see docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy, RePublish, StreamConfig
from nats.js.client import JetStreamContext

from agentmesh import Mesh, connect
from agentmesh.gateway import Gateway, GatewayOptions, HttpServer
from agentmesh.ids import new_id
from agentmesh.lifeline import die_with_parent
from benchmarks import raw
from benchmarks.compare import Bench, Chunks
from benchmarks.pairs import Case, answering, heading, parser, run_pairs, write

TOKEN = " token"
READERS = 100
SEEKS = 20
"""Places looked for in one run."""
FIRSTS = 30
"""First tokens in one run."""

UNBOUNDED: dict[str, Any] = {"pending_msgs_limit": 0, "pending_bytes_limit": 0}


# ---------------------------------------------------------------- the child: reads


class Reader:
    """Reads what it is told to, on either side, and says when it is done."""

    def __init__(self, nc: NatsClient, mesh: Mesh) -> None:
        self._nc = nc
        self._mesh = mesh
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._nc.subscribe("bench.read", cb=self._on_read)

    async def _on_read(self, message: Msg) -> None:
        order = json.loads(message.data)
        work = self._raw(order) if order["side"] == "raw" else self._ours(order)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._nc.publish(message.reply, b"")

    async def _done(self, order: dict[str, Any], latency: float = 0.0) -> None:
        await self._nc.publish(f"bench.done.{order['id']}", json.dumps({"latency": latency}).encode())
        await self._nc.flush()

    async def _raw(self, order: dict[str, Any]) -> None:
        """Counts `n` messages: from the stream with an ordered consumer, or live, on core NATS."""
        left, first = order["n"], True
        done = asyncio.Event()
        latency = 0.0

        async def take(message: Msg) -> None:
            nonlocal left, first, latency
            if first:
                first = False
                latency = _since(json.loads(message.data)["content"])
            left -= 1
            if not left:
                done.set()

        if order["live"]:
            subscription: Any = await self._nc.subscribe(order["subject"], cb=take, **UNBOUNDED)
        else:
            js = self._nc.jetstream()
            subscription = await js.subscribe(
                order["subject"], stream="RAWTOKENS", ordered_consumer=True, cb=take, **UNBOUNDED
            )
        await self._nc.publish(f"bench.attached.{order['id']}", b"")
        await self._nc.flush()
        await done.wait()
        await subscription.unsubscribe()
        await self._done(order, latency)

    async def _ours(self, order: dict[str, Any]) -> None:
        """Counts `n` chunks of a conversation."""
        left, latency = order["n"], 0.0
        chunks = self._mesh.streams.read(order["conversation"])
        first = asyncio.ensure_future(anext(chunks))
        for _ in range(5):  # until it has looked into the store, and hears what comes
            await self._mesh.streams.state(order["conversation"])
        await self._nc.publish(f"bench.attached.{order['id']}", b"")
        await self._nc.flush()
        latency = _since((await first).content)
        left -= 1
        async with aclosing(chunks):
            while left:
                await anext(chunks)
                left -= 1
        await self._done(order, latency)


def _since(content: str) -> float:
    """Milliseconds since the time in a first token; the monotonic clock is that of the machine."""
    stamp, _, _ = content.partition(" ")
    return (time.monotonic() - float(stamp)) * 1000


async def serve(url: str) -> None:
    nc = await raw.connect(url)
    async with connect(url, own_thread=False) as mesh:
        await Reader(nc, mesh).start()
        await raw.RawPeer(nc).start()
        await mesh.spawn(Bench)
        server = HttpServer(Gateway(GatewayOptions(port=0, access_log=False), mesh.transport, mesh.subjects.tenant))
        await server.start()

        async def where(message: Msg) -> None:
            await nc.publish(message.reply, server.url.encode())

        await nc.subscribe("bench.http", cb=where)
        print("ready", flush=True)
        await asyncio.Event().wait()


# ---------------------------------------------------------------- this process: produces


class Producer:
    """Produces on either side."""

    def __init__(self, nc: NatsClient, mesh: Mesh) -> None:
        self._nc = nc
        self._mesh = mesh
        self._js: JetStreamContext = nc.jetstream(publish_async_max_pending=1000)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self.long_raw = self.long_ours = ""

    async def start(self) -> None:
        await self._js.add_stream(StreamConfig(name="RAWTOKENS", subjects=["rawtokens.>"], allow_direct=True))
        await self._js.add_stream(  # for those who listen to a copy of what is stored, without a consumer
            StreamConfig(
                name="RAWCOPIED",
                subjects=["rawcopied.>"],
                republish=RePublish(src="rawcopied.>", dest="rawlive.>"),
            )
        )
        for what in ("attached", "done"):
            await self._nc.subscribe(f"bench.{what}.*", cb=self._on_news)

    async def _on_news(self, message: Msg) -> None:
        future = self._waiting.pop(message.subject.partition(".")[2], None)
        if future is not None and not future.done():
            future.set_result(message.data)

    async def _reader(self, **order: Any) -> asyncio.Future[bytes]:
        """Has the child read; returns when it hears, a future for when it is done."""
        loop = asyncio.get_running_loop()
        order_id = new_id()
        attached = self._waiting[f"attached.{order_id}"] = loop.create_future()
        done = self._waiting[f"done.{order_id}"] = loop.create_future()
        await self._nc.request("bench.read", json.dumps({"id": order_id, **order}).encode(), timeout=30)
        await attached
        return done

    # -- publish, one reader

    async def publish_raw(self, n: int) -> float:
        """Tokens a second, until all are acknowledged and read."""
        subject = f"rawtokens.{new_id()}"
        done = await self._reader(side="raw", subject=subject, n=n, live=False)
        began = time.perf_counter()
        await self._store_raw(subject, n)
        await done
        return n / (time.perf_counter() - began)

    async def _store_raw(self, subject: str, n: int) -> None:
        acks: list[asyncio.Future[Any]] = []
        for index in range(n):
            content = f"{time.monotonic()}{TOKEN}" if not index else TOKEN
            body = json.dumps({"index": index, "type": "text", "content": content}).encode()
            acks.append(await self._js.publish_async(subject, body))
        await asyncio.gather(*acks)

    async def publish_ours(self, n: int) -> float:
        conversation = new_id()
        done = await self._reader(side="mesh", conversation=conversation, n=n + 1)
        began = time.perf_counter()
        await self._store_ours(conversation, n)
        await done
        return n / (time.perf_counter() - began)

    async def _store_ours(self, conversation: str, n: int) -> None:
        async with self._mesh.streams.run(conversation) as run:
            for index in range(n):
                await run.send(f"{time.monotonic()}{TOKEN}" if not index else TOKEN)
            await run.finish()

    # -- one token, each waited for

    async def single_raw(self, n: int) -> float:
        subject = f"rawtokens.{new_id()}"
        began = time.perf_counter()
        for index in range(n):
            await self._js.publish(subject, json.dumps({"index": index, "type": "text", "content": TOKEN}).encode())
        return n / (time.perf_counter() - began)

    async def single_ours(self, n: int) -> float:
        async with self._mesh.streams.run(new_id()) as run:
            began = time.perf_counter()
            for _ in range(n):
                await run.send(TOKEN)
                await run.flush()
            rate = n / (time.perf_counter() - began)
            await run.finish()
        return rate

    # -- first token

    async def first_raw(self, count: int) -> float:
        """Milliseconds, median: published on core NATS, with a subscriber."""
        found: list[float] = []
        for _ in range(count):
            subject = f"rawcore.{new_id()}"
            done = await self._reader(side="raw", subject=subject, n=1, live=True)
            body = json.dumps({"index": 0, "type": "text", "content": f"{time.monotonic()}{TOKEN}"}).encode()
            await self._nc.publish(subject, body)
            found.append(float(json.loads(await done)["latency"]))
        return float(statistics.median(found))

    async def first_stored(self, count: int) -> float:
        """The same for a token that is stored, heard from a copy of it: what it costs to be replayable."""
        found: list[float] = []
        for _ in range(count):
            token = new_id()
            done = await self._reader(side="raw", subject=f"rawlive.{token}", n=1, live=True)
            body = json.dumps({"index": 0, "type": "text", "content": f"{time.monotonic()}{TOKEN}"}).encode()
            await self._js.publish_async(f"rawcopied.{token}", body)
            found.append(float(json.loads(await done)["latency"]))
        return float(statistics.median(found))

    async def first_ours(self, count: int) -> float:
        found: list[float] = []
        for _ in range(count):
            conversation = new_id()
            done = await self._reader(side="mesh", conversation=conversation, n=1)
            async with self._mesh.streams.run(conversation) as run:
                await run.send(f"{time.monotonic()}{TOKEN}")
                found.append(float(json.loads(await done)["latency"]))
                await run.finish()
        return float(statistics.median(found))

    async def answered_raw(self, count: int) -> float:
        """Milliseconds, median, from a question to its answer."""
        return await _median_of(count, lambda: self._nc.request("raw.ask", json.dumps({"text": TOKEN}).encode()))

    async def answered_ours(self, count: int) -> float:
        """The same to the first part of an answer that streams and is not stored."""

        async def first() -> None:
            async with aclosing(self._mesh.stream("bench", Chunks(n=1))) as chunks:
                await anext(chunks)

        return await _median_of(count, first)

    # -- replay and seek, read by this process

    async def prepare(self, n: int) -> None:
        """A long stream on each side."""
        self.long_raw, self.long_ours = f"rawtokens.{new_id()}", new_id()
        await self._store_raw(self.long_raw, n)
        await self._store_ours(self.long_ours, n)

    async def replay_raw(self, n: int) -> float:
        left = n
        done = asyncio.Event()

        async def take(message: Msg) -> None:
            nonlocal left
            msgspec.json.decode(message.data)
            left -= 1
            if not left:
                done.set()

        began = time.perf_counter()
        subscription = await self._js.subscribe(
            self.long_raw, stream="RAWTOKENS", ordered_consumer=True, cb=take, **UNBOUNDED
        )
        await done.wait()
        rate = n / (time.perf_counter() - began)
        await subscription.unsubscribe()
        return rate

    async def replay_ours(self, n: int, conversation: str = "") -> float:
        began, count = time.perf_counter(), 0
        async with aclosing(self._mesh.streams.read(conversation or self.long_ours, follow=False)) as chunks:
            async for chunk in chunks:
                count += chunk.type == "text"
        assert count == n, f"{count} of {n} chunks"
        return n / (time.perf_counter() - began)

    async def prepare_singly(self, n: int) -> None:
        """The same number of messages on both sides: one chunk in each."""
        self.single_raw_subject, self.single_conversation = f"rawtokens.{new_id()}", new_id()
        await self._store_raw(self.single_raw_subject, n)
        async with self._mesh.streams.run(self.single_conversation) as run:
            for _ in range(n):
                await run.send(TOKEN)
                await run.flush()
            await run.finish()

    async def replay_raw_singly(self, n: int) -> float:
        long, self.long_raw = self.long_raw, self.single_raw_subject
        try:
            return await self.replay_raw(n)
        finally:
            self.long_raw = long

    async def replay_ours_singly(self, n: int) -> float:
        return await self.replay_ours(n, self.single_conversation)

    async def seek_raw(self, n: int) -> float:
        """Milliseconds, median, to a chunk anywhere: its sequence is known, for nothing else is in that stream."""
        first = (await self._js.get_last_msg("RAWTOKENS", self.long_raw)).seq or 0
        first -= n - 1
        found: list[float] = []
        for offset in _places(n):
            began = time.perf_counter()
            config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=first + offset)
            subscription = await self._js.subscribe(
                self.long_raw, stream="RAWTOKENS", ordered_consumer=True, config=config
            )
            message = await subscription.next_msg(timeout=30)
            assert json.loads(message.data)["index"] == offset
            found.append((time.perf_counter() - began) * 1000)
            await subscription.unsubscribe()
        return float(statistics.median(found))

    async def seek_ours(self, n: int) -> float:
        found: list[float] = []
        for offset in _places(n):
            began = time.perf_counter()
            async with aclosing(self._mesh.streams.read(self.long_ours, from_offset=offset)) as chunks:
                chunk = await anext(chunks)
                assert chunk.offset == offset
                found.append((time.perf_counter() - began) * 1000)
        return float(statistics.median(found))

    # -- fan-out

    async def fan_raw(self, n: int, readers: int) -> float:
        """Deliveries a second to `readers` subscriptions of the child's connection, of tokens that are stored."""
        token = new_id()
        done = [await self._reader(side="raw", subject=f"rawlive.{token}", n=n, live=True) for _ in range(readers)]
        began = time.perf_counter()
        await self._store_raw(f"rawcopied.{token}", n)
        await asyncio.gather(*done)
        return n * readers / (time.perf_counter() - began)

    async def fan_ours(self, n: int, readers: int) -> float:
        """Events a second to `readers` HTTP clients of a gateway in the child, each with a connection of its own."""
        url = (await self._nc.request("bench.http", b"", timeout=30)).data.decode()
        conversation = new_id()
        clients = [SseClient(url, conversation) for _ in range(readers)]
        await asyncio.gather(*(client.open() for client in clients))
        began = time.perf_counter()
        counting = [asyncio.create_task(client.count(n)) for client in clients]
        await self._store_ours(conversation, n)
        await asyncio.gather(*counting)
        rate = n * readers / (time.perf_counter() - began)
        for client in clients:
            client.close()
        return rate


class SseClient:
    """Reads `GET /stream/{id}` and counts its text events; as little as possible, for it is not what is measured."""

    def __init__(self, url: str, conversation: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._conversation = conversation
        self._head = b""

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
        path = f"/stream/{self._conversation}?from_offset=0"
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n\r\n".encode())
        self._head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in self._head.split(b"\r\n", 1)[0]:
            raise SystemExit(f"the gateway does not stream: {self._head.decode()}")

    async def count(self, n: int) -> None:
        seen, rest = 0, b""
        mark = b'"type":"text"'
        while seen < n:
            data = rest + await self._reader.read(1 << 20)
            if data == rest:
                raise SystemExit(f"the stream ended after {seen} of {n} events")
            seen += data.count(mark)
            rest = data[-(len(mark) - 1) :] if not data.endswith(mark) else b""
            if mark in rest:
                rest = b""

    def close(self) -> None:
        self._writer.close()


async def _median_of(count: int, operation: Callable[[], Awaitable[Any]]) -> float:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        await operation()
        found.append((time.perf_counter() - began) * 1000)
    return float(statistics.median(found))


def _places(n: int) -> Sequence[int]:
    """The same ones for both sides."""
    return random.Random(n).sample(range(n), min(SEEKS, n))


# ---------------------------------------------------------------- putting it together


def cases(producer: Producer, scale: float) -> list[Case]:
    def n(full: int) -> int:
        return max(20, int(full * scale))

    tokens, stored, single = n(100_000), n(100_000), n(5_000)
    firsts, readers = max(5, int(FIRSTS * scale)), max(5, int(READERS * scale))
    fan = n(2_000)
    p = producer
    return [
        Case("publish, one reader", lambda: p.publish_raw(tokens), lambda: p.publish_ours(tokens), goal=5.0),
        Case("publish, each token waited for", lambda: p.single_raw(single), lambda: p.single_ours(single), goal=0.7),
        Case("first token against core", lambda: p.first_raw(firsts), lambda: p.first_ours(firsts), "ms", 1.5),
        Case("first token against stored", lambda: p.first_stored(firsts), lambda: p.first_ours(firsts), "ms"),
        Case(
            "first part of an answer, not stored",
            lambda: p.answered_raw(10 * firsts),
            lambda: p.answered_ours(10 * firsts),
            "ms",
            1.5,
        ),
        Case("replay", lambda: p.replay_raw(stored), lambda: p.replay_ours(stored), goal=0.6),
        Case(
            "replay, a token in each message",
            lambda: p.replay_raw_singly(n(20_000)),
            lambda: p.replay_ours_singly(n(20_000)),
            goal=0.6,
        ),
        Case(f"seek in {stored:,}", lambda: p.seek_raw(stored), lambda: p.seek_ours(stored), "ms"),
        Case(
            f"fan-out to {readers} (SSE, raw: core)",
            lambda: p.fan_raw(fan, readers),
            lambda: p.fan_ours(fan, readers),
        ),
    ]


async def measure(options: argparse.Namespace) -> None:
    scale = 0.02 if options.quick else 1.0
    async with answering("benchmarks.streams", options.sync) as (url, _):
        nc = await raw.connect(url)
        async with connect(url, own_thread=False) as mesh:
            producer = Producer(nc, mesh)
            await producer.start()
            chosen = cases(producer, scale)
            if any(_wanted(case.name, options.cases) for case in chosen if case.name.startswith(("replay", "seek"))):
                await producer.prepare(max(20, int(100_000 * scale)))
                await producer.prepare_singly(max(20, int(20_000 * scale)))
            outcomes = await run_pairs(chosen, options.cases, 1 if options.quick else options.pairs)
        await nc.close()
    write(options.json, options.sync, outcomes)


def _wanted(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(name.startswith(part) for part in parts)


def main() -> None:
    options = parser(__doc__).parse_args()
    if options.serve:
        die_with_parent()
        asyncio.run(serve(options.serve[0]))
        return
    heading(options.sync)
    asyncio.run(measure(options))


if __name__ == "__main__":
    main()
