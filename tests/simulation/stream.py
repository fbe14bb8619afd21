"""The model of a stream: subjects, limits, duplicates, expectations, republishing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Stored:
    """One message of a stream."""

    sequence: int
    subject: str
    data: bytes
    headers: dict[str, str]
    time: float


class RefusedError(Exception):
    """A refusal in JetStream's words."""

    def __init__(self, err_code: int, description: str, code: int = 400) -> None:
        super().__init__(description)
        self.error = {"code": code, "err_code": err_code, "description": description}


def matches(pattern: str, subject: str) -> bool:
    """NATS wildcards."""
    wanted, got = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(got) >= len(wanted) and all(w in ("*", g) for w, g in zip(wanted[:-1], got, strict=False))
    return len(wanted) == len(got) and all(w in ("*", g) for w, g in zip(wanted, got, strict=True))


@dataclass
class Stream:
    """See the module. `config` is what the client sent."""

    config: Mapping[str, Any]
    messages: dict[int, Stored] = field(default_factory=dict)
    by_subject: dict[str, dict[int, Stored]] = field(default_factory=dict)
    ids: dict[str, tuple[int, float]] = field(default_factory=dict)
    last: int = 0
    full: bool = False
    """A fault: there is no room."""

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def is_work_queue(self) -> bool:
        return bool(self.config.get("retention") == "workqueue")

    def takes(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.config["subjects"])

    def store(self, subject: str, data: bytes, headers: dict[str, str], now: float) -> tuple[Stored, bool]:
        """Store, or find the duplicate: (message, whether it is one).

        The expectation is checked before the duplicate, as measured: a repetition of one's own stored write is a
        conflict.
        """
        same = self.by_subject.get(subject, {})
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        if expected is not None:
            newest = next(reversed(same), 0)
            if newest != int(expected):
                raise RefusedError(10071, f"wrong last sequence: {newest}")
        identity = headers.get("Nats-Msg-Id", "")
        if identity and identity in self.ids:
            sequence, at = self.ids[identity]
            if now - at <= self.config.get("duplicate_window", 120e9) / 1e9:
                return Stored(sequence, subject, b"", {}, at), True
        self._check_room(same, data)
        self.last += 1
        message = Stored(self.last, subject, data, headers, now)
        self.messages[self.last] = message
        self.by_subject.setdefault(subject, {})[self.last] = message
        if identity:
            self.ids[identity] = (self.last, now)
        return message, False

    def _check_room(self, same: dict[int, Stored], data: bytes) -> None:
        config = self.config
        if 0 < config.get("max_msg_size", -1) < len(data):
            raise RefusedError(10054, "message size exceeds maximum allowed")
        if self.full:
            raise RefusedError(10077, "maximum bytes exceeded", 503)
        if config.get("discard_new_per_subject") and 0 < config["max_msgs_per_subject"] <= len(same):
            raise RefusedError(10077, "maximum messages per subject exceeded", 503)

    def remove(self, sequence: int) -> None:
        message = self.messages.pop(sequence, None)
        if message is not None:
            same = self.by_subject[message.subject]
            del same[sequence]
            if not same:
                del self.by_subject[message.subject]

    def matching(self, patterns: tuple[str, ...]) -> list[Stored]:
        """Messages on these subjects, oldest first."""
        if not patterns:
            return list(self.messages.values())
        if len(patterns) == 1 and not any(wild in patterns[0] for wild in "*>"):
            return list(self.by_subject.get(patterns[0], {}).values())
        return [m for m in self.messages.values() if any(matches(pattern, m.subject) for pattern in patterns)]

    def newest(self, subject: str, until: float) -> Stored | None:
        """The last message on `subject` that was stored by `until`."""
        for message in reversed(self.by_subject.get(subject, {}).values()):
            if message.time <= until:
                return message
        return None

    def forget_ids(self) -> int:
        """What a restart does: only the ids of messages that are still there are known afterwards."""
        before = len(self.ids)
        self.ids = {
            message.headers["Nats-Msg-Id"]: (message.sequence, message.time)
            for message in self.messages.values()
            if "Nats-Msg-Id" in message.headers
        }
        return before - len(self.ids)

    def state(self) -> dict[str, Any]:
        return {
            "messages": len(self.messages),
            "bytes": sum(len(message.data) for message in self.messages.values()),
            "first_seq": next(iter(self.messages), self.last + 1),
            "last_seq": self.last,
            "num_subjects": len(self.by_subject),
        }

    def republished(self, message: Stored) -> tuple[str, dict[str, str]] | None:
        """Where a stored message is republished, and with which headers."""
        rule = self.config.get("republish")
        if rule is None or not matches(rule["src"], message.subject):
            return None
        tokens = message.subject.split(".")
        stars = [t for p, t in zip(rule["src"].split("."), tokens, strict=True) if p == "*"]
        target = rule["dest"]
        for number, value in enumerate(stars, start=1):
            target = target.replace(f"{{{{wildcard({number})}}}}", value)
        before = [s for s in self.by_subject[message.subject] if s < message.sequence]
        headers = {
            **message.headers,
            "Nats-Stream": self.name,
            "Nats-Subject": message.subject,
            "Nats-Sequence": str(message.sequence),
            "Nats-Last-Sequence": str(before[-1] if before else 0),
        }
        return target, headers
