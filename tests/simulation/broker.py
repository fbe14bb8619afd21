"""The model of the broker: core messages, the JetStream API, acknowledgements, and the faults that were measured.

What it answers is compared with a real server in `test_model_is_right`. It knows what the product uses, no more: an
operation it does not know is an error that stops the simulation.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from agentmesh.transport.wire import Message, ServerStatus
from tests.simulation.consumer import Consumer, Pull
from tests.simulation.link import Interest, Link
from tests.simulation.loop import SimLoop
from tests.simulation.stream import RefusedError, Stored, Stream, matches

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

NO_STREAM = (10059, "stream not found", 404)
NO_CONSUMER = (10014, "consumer not found", 404)


class Faults:
    """What goes wrong, as probabilities. All zero: nothing."""

    lose_replies = 0.0
    """An answer of the broker's is lost: confirmations, replies, direct gets."""
    lose_events = 0.0
    """A core message is lost: prompts, republished results."""
    lose_sent = 0.0
    """A message to the broker is lost; its sender believes it sent."""
    lag = 0.0
    """A read is answered by a replica that has not heard the news of the last `LAG` seconds."""


LAG = 0.3


class Broker:
    """See the module.

    Args:
        loop: The clock.
        seed: Of delays and faults.
        tell: `tell(kind, **details)` for the history.
    """

    def __init__(self, loop: SimLoop, seed: int, tell: Callable[..., None]) -> None:
        self.loop = loop
        self.context = copy_context()
        self.random = random.Random(seed)
        self.tell = tell
        self.faults = Faults()
        self.is_up = True
        self.has_jetstream = True
        """False during an election: core messages flow, JetStream has no leader."""
        self.links: dict[Link, None] = {}
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self._exact: dict[str, list[Interest]] = {}
        self._wild: dict[str, list[Interest]] = {}
        """Patterns that end with `.*` and have no other wildcard: they are looked up by their stem."""
        self._broad: dict[str, list[Interest]] = {}
        """All other patterns."""
        self._owners: dict[str, Stream | None] = {}
        self._latency = self.random.random

    def latency(self) -> float:
        """Seconds one way: mostly under a millisecond, now and then fifty."""
        draw = self._latency()
        return 0.0002 + 0.001 * draw if draw < 0.98 else 0.05 * (draw - 0.9)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    # -- core

    def subscribe(self, interest: Interest) -> None:
        entries = self._table(interest.subject).setdefault(interest.subject, [])
        if interest not in entries:
            entries.append(interest)

    def unsubscribe(self, interest: Interest) -> None:
        table = self._table(interest.subject)
        entries = table.get(interest.subject, [])
        if interest in entries:
            entries.remove(interest)
            if not entries:
                del table[interest.subject]

    def forget(self, link: Link) -> None:
        """Its connection broke."""
        self.links.pop(link, None)
        for table in (self._exact, self._wild, self._broad):
            for subject, entries in list(table.items()):
                entries[:] = [one for one in entries if one.link is not link]
                if not entries:
                    del table[subject]

    def _listeners(self, subject: str) -> list[Interest]:
        found = list(self._exact.get(subject, ()))
        found += self._wild.get(subject.rpartition(".")[0] + ".*", ())
        for pattern, entries in self._broad.items():
            if matches(pattern, subject):
                found += entries
        return found

    def _table(self, subject: str) -> dict[str, list[Interest]]:
        if "*" not in subject and ">" not in subject:
            return self._exact
        return self._wild if subject.endswith(".*") and subject.count("*") == 1 else self._broad

    def publish(self, subject: str, message: Message, losing: float) -> bool:
        """Send to everybody who listens, one of each queue group; False if nobody does."""
        listeners = self._listeners(subject)
        groups: dict[str, list[Interest]] = {}
        for interest in listeners:
            if interest.queue:
                groups.setdefault(interest.queue, []).append(interest)
            elif not self._happens(losing):
                interest.link.deliver(interest, message)
        for members in groups.values():
            if not self._happens(losing):
                chosen = self.random.choice(members)
                chosen.link.deliver(chosen, message)
        return bool(listeners)

    def reply(self, subject: str, data: bytes, headers: dict[str, str] | None = None, *, sure: bool = False) -> None:
        if subject:
            self.publish(subject, Message(subject, data, "", headers), 0.0 if sure else self.faults.lose_replies)

    # -- what comes from a client

    def receive(self, link: Link, subject: str, data: bytes, reply: str, block: bytes) -> None:
        if self._happens(self.faults.lose_sent):
            return
        if subject.startswith("$JS."):
            if self.has_jetstream:
                self._jetstream(link, subject, data, reply)
            elif subject.startswith("$JS.API."):
                self._nobody(reply)
            return
        headers = _headers(block)
        heard = self.publish(subject, Message(subject, data, reply, headers or None), self.faults.lose_events)
        stream = self._owner(subject)
        if stream is None:
            if not heard and reply:
                self._nobody(reply)
        elif self.has_jetstream:
            self._store(stream, subject, data, headers, reply, link)
        else:
            self._nobody(reply)

    def _nobody(self, reply: str) -> None:
        self.reply(reply, b"", ServerStatus({"Status": "503"}))

    def _owner(self, subject: str) -> Stream | None:
        if subject not in self._owners:
            self._owners[subject] = next((s for s in self.streams.values() if s.takes(subject)), None)
        return self._owners[subject]

    def _store(
        self, stream: Stream, subject: str, data: bytes, headers: dict[str, str], reply: str, link: Link
    ) -> None:
        try:
            message, duplicate = stream.store(subject, data, headers, self.loop.time())
        except RefusedError as refused:
            self.tell("refused", stream=stream.name, subject=subject, code=refused.error["err_code"])
            self.reply(reply, _encode({"stream": stream.name, "seq": 0, "error": refused.error}))
            return
        answer: dict[str, Any] = {"stream": stream.name, "seq": message.sequence}
        if duplicate:
            answer["duplicate"] = True
        else:
            self.tell(
                "store", stream=stream.name, subject=subject, seq=message.sequence, data=data, by=link.process.name
            )
            onward = stream.republished(message)
            if onward is not None:
                self.publish(onward[0], Message(onward[0], data, "", onward[1]), self.faults.lose_events)
        self.reply(reply, _encode(answer))
        if not duplicate:
            for consumer in self._consumers_of(stream.name):
                if consumer.wants(subject):
                    consumer.serve()

    def _consumers_of(self, stream: str) -> list[Consumer]:
        return [consumer for (name, _), consumer in self.consumers.items() if name == stream]

    # -- JetStream

    def _jetstream(self, link: Link, subject: str, data: bytes, reply: str) -> None:
        if subject.startswith("$JS.ACK."):
            self._settle(link, subject, data, reply)
        elif subject.startswith("$JS.API.DIRECT.GET."):
            stream, _, key = subject.removeprefix("$JS.API.DIRECT.GET.").partition(".")
            self._direct_get(stream, key, data, reply, link)
        elif subject.startswith("$JS.API.CONSUMER.MSG.NEXT."):
            stream, name = subject.removeprefix("$JS.API.CONSUMER.MSG.NEXT.").split(".", 1)
            consumer = self.consumers.get((stream, name))
            if consumer is None:
                self._nobody(reply)
            else:
                consumer.pull(link, reply, _decode(data))
        else:
            try:
                answer = self._api(subject.removeprefix("$JS.API.").split("."), _decode(data) if data else {})
            except RefusedError as refused:
                answer = {"error": refused.error}
            self.reply(reply, _encode(answer))

    def _api(self, operation: list[str], body: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case ["INFO"]:
                return {}
            case ["STREAM", "CREATE", name]:
                return self._create_stream(name, body)
            case ["STREAM", "INFO", name]:
                return self._stream_info(name, body)
            case ["STREAM", "PURGE", name]:
                doomed = self._stream(name).matching((body["filter"],) if "filter" in body else ())
                for message in doomed:
                    self.tell("removed", stream=name, subject=message.subject)
                    self._remove(name, message.sequence)
                return {"success": True, "purged": len(doomed)}
            case ["STREAM", "MSG", "DELETE", name]:
                self._remove(name, body["seq"])
                return {"success": True}
            case ["CONSUMER", "CREATE", stream, name, *_]:
                return self._create_consumer(stream, name, body["config"])
            case ["CONSUMER", "INFO", stream, name]:
                return self._consumer(stream, name).info()
            case ["CONSUMER", "DELETE", stream, name]:
                self._consumer(stream, name).close("409", "Consumer Deleted")
                del self.consumers[stream, name]
                return {"success": True}
        raise NotImplementedError(f"the model does not know {'.'.join(operation)}")

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise RefusedError(*NO_STREAM)
        return self.streams[name]

    def _consumer(self, stream: str, name: str) -> Consumer:
        self._stream(stream)
        if (stream, name) not in self.consumers:
            raise RefusedError(*NO_CONSUMER)
        return self.consumers[stream, name]

    def _create_stream(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        if name not in self.streams:
            self.streams[name] = Stream(config)
            self._owners.clear()
        return {"config": dict(self.streams[name].config)}

    def _create_consumer(self, stream: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
        if (stream, name) not in self.consumers:
            send = self._send_to_pull
            self.consumers[stream, name] = Consumer(self._stream(stream), config, self.loop, send, self.tell)
        return self.consumers[stream, name].info()

    def _stream_info(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        stream = self._stream(name)
        state = {**stream.state(), "consumer_count": len(self._consumers_of(name))}
        answer: dict[str, Any] = {"config": dict(stream.config), "state": state}
        if "subjects_filter" in body:
            counts = {s: len(m) for s, m in stream.by_subject.items() if matches(body["subjects_filter"], s)}
            state["subjects"] = dict(list(counts.items())[body.get("offset", 0) :])
            answer["total"] = len(counts)
        return answer

    def _remove(self, stream: str, sequence: int) -> None:
        self._stream(stream).remove(sequence)
        for consumer in self._consumers_of(stream):
            consumer.forget(sequence)

    def _settle(self, link: Link, subject: str, data: bytes, reply: str) -> None:
        _, _, stream, name, _, sequence, *_ = subject.split(".")
        verdict, _, options = data.partition(b" ")
        consumer = self.consumers.get((stream, name))
        if consumer is not None:
            delay = 0.0
            if verdict == b"-NAK" and options:
                delay = _decode(options)["delay"] / 1e9
            self.tell("settle", stream=stream, seq=int(sequence), verdict=verdict.decode(), by=link.process.name)
            consumer.settle(int(sequence), verdict, delay)
            self.reply(reply, b"")

    def _send_to_pull(
        self, pull: Pull, subject: str, data: bytes, reply: str, headers: dict[str, str], status: bool
    ) -> None:
        if not pull.link.hears(pull.generation):
            return
        kind = ServerStatus(headers) if status else (headers or None)
        losing = 0.0 if status else self.faults.lose_events
        self.publish(pull.reply, Message(subject, data, reply, kind), losing)

    # -- reading

    def _direct_get(self, name: str, key: str, data: bytes, reply: str, link: Link) -> None:
        stream = self.streams.get(name)
        if stream is None:
            self._nobody(reply)
            return
        now = self.loop.time()
        until = now - LAG if self._happens(self.faults.lag) else now
        if key:
            self._answer(reply, stream, stream.newest(key, until))
            return
        request = _decode(data)
        if "next_by_subj" not in request:
            message = stream.messages.get(request["seq"])
            self._answer(reply, stream, message if message is not None and message.time <= until else None)
            return
        found = [m for m in stream.matching((request["next_by_subj"],)) if m.sequence >= request["seq"]]
        found = [m for m in found if m.time <= until]
        batch, rest = found[: request["batch"]], max(0, len(found) - request["batch"])
        if not batch:
            self._answer(reply, stream, None)
            return
        for number, message in enumerate(batch, start=1):
            left = str(len(batch) - number + rest)
            if self._happens(self.faults.lose_replies):
                return  # nothing is lost in the middle of a connection: the rest is, too
            self.reply(reply, message.data, {**_stamped(stream, message), "Nats-Num-Pending": left}, sure=True)
        end = ServerStatus({"Status": "204", "Description": "EOB", "Nats-Num-Pending": str(rest)})
        self.reply(reply, b"", end)

    def _answer(self, reply: str, stream: Stream, message: Stored | None) -> None:
        if message is None:
            self.reply(reply, b"", ServerStatus({"Status": "404", "Description": "Message Not Found"}))
        else:
            self.reply(reply, message.data, _stamped(stream, message))

    # -- faults

    def stop(self, *, kill: bool) -> None:
        """The server ends; all connections break.

        Args:
            kill: SIGKILL: ids of acknowledged messages, and some deliveries, are forgotten. Else an orderly stop.
        """
        self.is_up = False
        for link in list(self.links):
            link.cut(self.random.uniform(0.0, 0.3), lose_buffered=self._happens(0.5))
        for stream in self.streams.values():
            stream.forget_ids()  # an orderly restart forgets them, too
        for (name, _), consumer in self.consumers.items():
            forgotten = self._forgotten(consumer) if kill else {}
            for sequence, less in forgotten.items():
                self.tell("forgotten", stream=name, seq=sequence, deliveries=less)
            consumer.restart(forgotten)

    def _forgotten(self, consumer: Consumer) -> dict[int, int]:
        """Deliveries of the last 100 ms may not have reached the disk."""
        now, forgotten = self.loop.time(), {}
        for sequence, at in consumer.delivered_at.items():
            if now - at < 0.1 and self._happens(0.7):
                forgotten[sequence] = 1
            elif self._happens(0.05):
                forgotten[sequence] = consumer.counts[sequence]
        return forgotten

    def start(self) -> None:
        self.is_up = True


def _headers(block: bytes) -> dict[str, str]:
    headers = {}
    for line in block.decode().split("\r\n")[1:]:
        if line:
            key, _, value = line.partition(":")
            headers[key] = value.strip()
    return headers


def _stamped(stream: Stream, message: Stored) -> dict[str, str]:
    stamp = (EPOCH + timedelta(seconds=message.time)).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    return {
        **message.headers,
        "Nats-Stream": stream.name,
        "Nats-Subject": message.subject,
        "Nats-Sequence": str(message.sequence),
        "Nats-Time-Stamp": stamp,
    }
