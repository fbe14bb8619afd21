"""Streams and consumers: what we want, making it, and noticing when something else is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentmesh.errors import ConfigError, JetStreamError
from agentmesh.transport.api import JetStreamApi
from agentmesh.transport.reading import parse_time

log = logging.getLogger("agentmesh.transport")

_NANO = 1_000_000_000
_IN_USE = (10058, 10148, 10105)  # a stream or consumer of that name appeared meanwhile


@dataclass(frozen=True)
class StreamSpec:
    """A stream as we want it. Seconds and bytes; 0 means unlimited, except for `duplicate_window`."""

    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"] = "limits"
    storage: Literal["file", "memory"] = "file"
    compression: Literal["none", "s2"] = "none"
    """Of what is on disk; the broker compresses what it has finished writing to."""
    max_age: float = 0.0
    max_bytes: int = 0
    max_msgs: int = 0
    max_msgs_per_subject: int = 0
    max_msg_size: int = 0
    discard: Literal["old", "new"] = "old"
    """`new` refuses what does not fit (StreamFullError); `old` drops the oldest, acknowledged or not."""
    discard_new_per_subject: bool = False
    duplicate_window: float = 120.0
    allow_msg_ttl: bool = False
    allow_direct: bool = True
    allow_atomic: bool = False
    allow_msg_schedules: bool = False
    """Takes messages with `Nats-Schedule`; excludes `discard="new"`."""
    allow_msg_counter: bool = False
    """Messages carry `Nats-Incr`, and the broker adds them up per subject; see `PubAck.total`."""
    republish: tuple[str, str] | None = None
    """(pattern of stored subjects, subject to republish them on)."""
    deny_delete: bool = False
    deny_purge: bool = False
    max_consumers: int = 0
    settable: tuple[str, ...] = ()
    """Bounds that users choose: one that differs is no mistake."""
    description: str = ""

    def config(self, replicas: int) -> dict[str, Any]:
        """The broker's form of it."""
        config: dict[str, Any] = {
            "name": self.name,
            "subjects": list(self.subjects),
            "retention": self.retention,
            "storage": self.storage,
            "compression": self.compression,
            "max_age": int(self.max_age * _NANO),
            "max_bytes": self.max_bytes or -1,
            "max_msgs": self.max_msgs or -1,
            "max_msgs_per_subject": self.max_msgs_per_subject or -1,
            "max_msg_size": self.max_msg_size or -1,
            "discard": "new" if self.discard_new_per_subject else self.discard,
            "discard_new_per_subject": self.discard_new_per_subject,
            "duplicate_window": int(self._window() * _NANO),
            "allow_msg_ttl": self.allow_msg_ttl,
            "allow_direct": self.allow_direct,
            "allow_atomic": self.allow_atomic,
            "allow_msg_schedules": self.allow_msg_schedules,
            "allow_msg_counter": self.allow_msg_counter,
            "deny_delete": self.deny_delete,
            "deny_purge": self.deny_purge,
            "max_consumers": self.max_consumers or -1,
            "num_replicas": replicas,
        }
        if self.republish is not None:
            config["republish"] = {"src": self.republish[0], "dest": self.republish[1]}
        if self.description:
            config["description"] = self.description
        return config

    def _window(self) -> float:
        return min(self.duplicate_window, self.max_age) if self.max_age else self.duplicate_window


@dataclass(frozen=True)
class ConsumerSpec:
    """A durable pull consumer with explicit acks, as we want it. Seconds; 0 means unlimited."""

    stream: str
    name: str
    filter_subjects: tuple[str, ...] = ()
    ack_wait: float = 30.0
    max_deliver: int = 0
    max_ack_pending: int = 1000
    max_waiting: int = 512
    inactive_threshold: float = 0.0
    """Seconds without any pull after which the broker deletes it; 0 keeps it."""
    deliver: Literal["all", "new"] = "all"
    description: str = ""

    def config(self) -> dict[str, Any]:
        """The broker's form of it."""
        config: dict[str, Any] = {
            "name": self.name,
            "durable_name": self.name,
            "ack_policy": "explicit",
            "deliver_policy": self.deliver,
            "ack_wait": int(self.ack_wait * _NANO),
            "max_deliver": self.max_deliver or -1,
            "max_ack_pending": self.max_ack_pending or -1,
            "max_waiting": self.max_waiting,
        }
        if len(self.filter_subjects) == 1:
            config["filter_subject"] = self.filter_subjects[0]
        elif self.filter_subjects:
            config["filter_subjects"] = list(self.filter_subjects)
        if self.inactive_threshold:
            config["inactive_threshold"] = int(self.inactive_threshold * _NANO)
        if self.description:
            config["description"] = self.description
        return config


@dataclass(frozen=True)
class StreamInfo:
    """A stream as it is."""

    name: str
    messages: int
    bytes: int
    first_sequence: int
    last_sequence: int
    subjects: int
    """Distinct subjects with messages."""
    consumers: int
    config: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ConsumerInfo:
    """A consumer as it is."""

    stream: str
    name: str
    pending: int
    """Messages not delivered yet."""
    ack_pending: int
    """Messages delivered and not settled."""
    redelivered: int
    waiting: int
    """Open pulls."""
    floor: int
    """Stream sequence up to which nothing is delivered any more: it was settled, or given up."""
    settled: int
    """Deliveries that were answered, well or not."""
    config: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Copy:
    """A copy of a stream at a server of a cluster that is not the stream's leader."""

    server: str
    online: bool
    current: bool
    """It has everything that the leader has."""
    lag: int
    """How many operations it is behind."""


# What a difference means: the first changes what a stream promises, the rest is a bound that can be edited.
_STREAM_MEANING = (
    "subjects",
    "retention",
    "storage",
    "discard",
    "discard_new_per_subject",
    "allow_direct",
    "allow_msg_schedules",
    "allow_msg_counter",
    "republish",
)
_STREAM_BOUNDS = (
    "max_age", "max_bytes", "max_msgs", "max_msgs_per_subject", "max_msg_size", "duplicate_window", "allow_msg_ttl",
    "allow_atomic", "deny_delete", "deny_purge", "max_consumers", "num_replicas", "compression",
)  # fmt: skip
_CONSUMER_MEANING = ("ack_policy", "deliver_policy", "filters")
_CONSUMER_BOUNDS = ("ack_wait", "max_deliver", "max_ack_pending", "max_waiting", "inactive_threshold")


class Admin:
    """Makes and inspects streams and consumers."""

    def __init__(self, api: JetStreamApi) -> None:
        self._api = api

    async def ensure_stream(self, spec: StreamSpec, replicas: int, *, first_sequence: int = 0) -> None:
        """Make it, or check the one that is there. `first_sequence`: of the first message, if it is made."""
        wanted = spec.config(replicas)
        found = await self._api.find(f"STREAM.INFO.{spec.name}")
        if found is None:
            try:
                await self._api.call(f"STREAM.CREATE.{spec.name}", {**wanted, "first_seq": first_sequence})
                return
            except JetStreamError as error:
                if error.code not in _IN_USE:
                    raise
                found = await self._api.call(f"STREAM.INFO.{spec.name}")
        _compare(
            f"stream {spec.name}",
            _stream_view(wanted),
            _stream_view(found["config"]),
            _STREAM_MEANING,
            tuple(bound for bound in _STREAM_BOUNDS if bound not in spec.settable),
        )

    async def edit_stream(self, name: str, changes: Mapping[str, int | str]) -> None:
        found = await self._api.call(f"STREAM.INFO.{name}")
        if any(found["config"].get(key) != value for key, value in changes.items()):
            await self._api.call(f"STREAM.UPDATE.{name}", {**found["config"], **changes})

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        wanted = spec.config()
        found = await self._api.find(f"CONSUMER.INFO.{spec.stream}.{spec.name}")
        if found is None:
            subject = f"CONSUMER.CREATE.{spec.stream}.{spec.name}"
            one = wanted.get("filter_subject", "")
            if one and not {"*", ">"} & set(one.split(".")):  # lets an account's permissions see what is filtered
                subject += f".{one}"
            try:
                await self._api.call(subject, {"stream_name": spec.stream, "config": wanted, "action": "create"})
                return
            except JetStreamError as error:
                if error.code not in _IN_USE:
                    raise
                found = await self._api.call(f"CONSUMER.INFO.{spec.stream}.{spec.name}")
        _compare(
            f"consumer {spec.name} of stream {spec.stream}",
            _consumer_view(wanted),
            _consumer_view(found["config"]),
            _CONSUMER_MEANING,
            _CONSUMER_BOUNDS,
        )

    async def stream_info(self, name: str) -> StreamInfo | None:
        found = await self._api.find(f"STREAM.INFO.{name}")
        if found is None:
            return None
        return _stream_info(found)

    async def streams(self) -> list[StreamInfo]:
        found: list[StreamInfo] = []
        while True:
            page = await self._api.call("STREAM.LIST", {"offset": len(found)})
            entries = page.get("streams") or []
            found += [_stream_info(entry) for entry in entries]
            if not entries or len(found) >= page.get("total", 0):
                return found

    async def clock_offset(self, stream: str) -> float | None:
        began = time.time()
        found = await self._api.find(f"STREAM.INFO.{stream}")
        if found is None or "ts" not in found:
            return None
        return parse_time(found["ts"]).timestamp() - (began + time.time()) / 2

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        found = await self._api.find(f"CONSUMER.INFO.{stream}.{name}")
        if found is None:
            return None
        return ConsumerInfo(
            stream=stream,
            name=name,
            pending=found["num_pending"],
            ack_pending=found["num_ack_pending"],
            redelivered=found["num_redelivered"],
            waiting=found["num_waiting"],
            floor=found["ack_floor" if found["num_ack_pending"] else "delivered"]["stream_seq"],
            settled=found["delivered"]["consumer_seq"] - found["num_ack_pending"],
            config=found["config"],
        )

    async def copies(self, stream: str) -> list[Copy]:
        info = await self._api.call(f"STREAM.INFO.{stream}")
        replicas = (info.get("cluster") or {}).get("replicas") or ()
        return [
            Copy(one["name"], not one.get("offline", False), one.get("current", False), one.get("lag", 0))
            for one in replicas
        ]

    async def leaders(self, stream: str) -> dict[str, str]:
        found: dict[str, str] = {}
        while True:
            page = await self._api.call(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
            entries = page.get("consumers") or []
            found.update({one["name"]: (one.get("cluster") or {}).get("leader", "") for one in entries})
            if not entries or len(found) >= page.get("total", 0):
                return found

    async def step_down(self, stream: str, consumer: str) -> None:
        await self._api.call(f"CONSUMER.LEADER.STEPDOWN.{stream}.{consumer}")

    async def delete_consumer(self, stream: str, name: str) -> None:
        await self._api.find(f"CONSUMER.DELETE.{stream}.{name}")

    async def delete_stream(self, name: str) -> None:
        await self._api.find(f"STREAM.DELETE.{name}")

    async def subjects_of(self, stream: str, pattern: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        while True:
            info = await self._api.call(f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(counts)})
            page = info["state"].get("subjects") or {}
            counts.update(page)
            if not page or len(counts) >= info.get("total", 0):
                return counts


def _stream_info(found: Mapping[str, Any]) -> StreamInfo:
    state = found["state"]
    return StreamInfo(
        name=found["config"]["name"],
        messages=state["messages"],
        bytes=state["bytes"],
        first_sequence=state["first_seq"],
        last_sequence=state["last_seq"],
        subjects=state.get("num_subjects", 0),
        consumers=state.get("consumer_count", 0),
        config=found["config"],
    )


def _stream_view(config: Mapping[str, Any]) -> dict[str, Any]:
    view = {key: config.get(key, False) for key in (*_STREAM_MEANING, *_STREAM_BOUNDS)}
    view["subjects"] = sorted(config["subjects"])
    republish = config.get("republish")
    view["republish"] = (republish["src"], republish["dest"]) if republish else None
    return view


def _consumer_view(config: Mapping[str, Any]) -> dict[str, Any]:
    view = {key: config.get(key) or 0 for key in _CONSUMER_BOUNDS}
    view["ack_policy"], view["deliver_policy"] = config["ack_policy"], config["deliver_policy"]
    single = config.get("filter_subject")
    view["filters"] = sorted(config.get("filter_subjects") or ([single] if single else []))
    return view


def _compare(
    what: str, wanted: Mapping[str, Any], found: Mapping[str, Any], meaning: tuple[str, ...], bounds: tuple[str, ...]
) -> None:
    """Raise ConfigError where what exists would behave differently, warn where only a bound differs."""
    for key in meaning:
        if wanted[key] != found[key]:
            raise ConfigError(
                f"{what}, {key}",
                f"exists with {found[key]!r}, wanted {wanted[key]!r}; change or delete it with the nats command, "
                "or use another account",
            )
    for key in bounds:
        if wanted[key] != found[key]:
            log.warning("%s exists with %s = %r, not %r; it is used as it is", what, key, found[key], wanted[key])
