"""The same work written straight on nats-py: what agentmesh is measured against.

No envelope beyond JSON, no mailbox, no supervision, no retries; for tasks the same commit protocol (queue, slot with
compare-and-set, double acknowledgement), because that is what makes the result durable.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig

SLOT_FREE = {"Nats-Expected-Last-Subject-Sequence": "0"}


async def connect(url: str) -> NatsClient:
    return await nats.connect(url, pending_size=1 << 26)


class RawPeer:
    """The receiving side."""

    def __init__(self, nc: NatsClient) -> None:
        self.nc = nc
        self.count = 0

    async def start(self) -> None:
        await self.nc.subscribe("raw.tell", queue="q", cb=self._tell, pending_msgs_limit=0, pending_bytes_limit=0)
        await self.nc.subscribe("raw.count", cb=self._count)
        await self.nc.subscribe("raw.ask", queue="q", cb=self._ask)
        await self.nc.subscribe("raw.stream", queue="q", cb=self._stream)
        await self._start_tasks()

    async def _tell(self, message: Msg) -> None:
        json.loads(message.data)
        self.count += 1

    async def _count(self, message: Msg) -> None:
        await self.nc.publish(message.reply, str(self.count).encode())

    async def _ask(self, message: Msg) -> None:
        text = json.loads(message.data)["text"]
        await self.nc.publish(message.reply, json.dumps({"text": text}).encode())

    async def _stream(self, message: Msg) -> None:
        for n in range(json.loads(message.data)["n"]):
            await self.nc.publish(message.reply, json.dumps({"index": n, "text": "x" * 16}).encode())
        await self.nc.publish(message.reply, b"")

    async def _start_tasks(self) -> None:
        js = self.nc.jetstream()
        await js.add_stream(
            StreamConfig(
                name="RAWTASKS",
                subjects=["rawtasks.>"],
                retention=RetentionPolicy.WORK_QUEUE,
                discard=DiscardPolicy.NEW,
                max_msgs=1_000_000,
            )
        )
        await js.add_stream(StreamConfig(name="RAWRESULTS", subjects=["rawresults.>"], allow_direct=True))
        await js.add_consumer(
            "RAWTASKS",
            ConsumerConfig(durable_name="w", ack_policy=AckPolicy.EXPLICIT, ack_wait=10, max_ack_pending=1000),
        )
        self._js = js
        self._inbox = self.nc.new_inbox()
        self._open = 0
        self._running: set[asyncio.Task[None]] = set()
        await self.nc.subscribe(self._inbox, cb=self._on_task)
        await self._pull()

    async def _pull(self) -> None:
        self._open = 64
        request = json.dumps({"batch": 64, "expires": 30_000_000_000}).encode()
        await self.nc.publish("$JS.API.CONSUMER.MSG.NEXT.RAWTASKS.w", request, reply=self._inbox)

    async def _on_task(self, message: Msg) -> None:
        if not message.reply:
            await self._pull()
            return
        task = asyncio.create_task(self._work(message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        self._open -= 1
        if self._open <= 0:
            await self._pull()

    async def _work(self, message: Msg) -> None:
        body = json.loads(message.data)
        slot = f"rawresults.{body['id']}"
        taken = await self.nc.request(f"$JS.API.DIRECT.GET.RAWRESULTS.{slot}", b"", timeout=5)
        if (taken.headers or {}).get("Status") == "404":
            result = json.dumps({"text": body["text"]}).encode()
            await self._js.publish(slot, result, headers=dict(SLOT_FREE), timeout=5)
        await self.nc.request(message.reply, b"+ACK", timeout=5)


class RawCaller:
    """The sending side."""

    def __init__(self, nc: NatsClient, text: str) -> None:
        self.nc = nc
        self.body = json.dumps({"text": text}).encode()
        self.text = text
        self.told = 0
        self._js = nc.jetstream()
        self._results: dict[str, asyncio.Future[None]] = {}
        self._ids = 0

    async def start(self) -> None:
        await self.nc.subscribe("rawresults.>", cb=self._on_result)

    async def tell(self, n: int) -> None:
        for _ in range(n):
            await self.nc.publish("raw.tell", self.body)
        self.told += n
        while int((await self.nc.request("raw.count", b"", timeout=10)).data) < self.told:  # noqa: ASYNC110  the event is in another process
            await asyncio.sleep(0)

    async def ask(self) -> None:
        json.loads((await self.nc.request("raw.ask", self.body, timeout=10)).data)

    async def stream(self, n: int) -> None:
        inbox = self.nc.new_inbox()
        subscription = await self.nc.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
        await self.nc.publish("raw.stream", json.dumps({"n": n}).encode(), reply=inbox)
        received = 0
        async for message in subscription.messages:
            if not message.data:
                break
            json.loads(message.data)
            received += 1
        await subscription.unsubscribe()
        assert received == n

    async def task(self) -> None:
        self._ids += 1
        task_id = f"t{self._ids}"
        done = self._results[task_id] = asyncio.get_running_loop().create_future()
        body = json.dumps({"id": task_id, "text": self.text}).encode()
        await self._js.publish("rawtasks.w", body, headers={"Nats-Msg-Id": task_id}, timeout=10)
        await done

    async def _on_result(self, message: Msg) -> None:
        done: Any = self._results.pop(message.subject.split(".")[1], None)
        if done is not None and not done.done():
            done.set_result(None)
