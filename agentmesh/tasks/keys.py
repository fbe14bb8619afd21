"""Idempotency keys: what was done under a key is remembered, and not done again.

A key has one record, `ai.agent.once.T.<digest>`, written by compare-and-set: whoever stores the first one has claimed
the key, does the work, and then stores what came of it. Everybody else, now or later, in any process, gets that.

| state     | what is known                                                                         |
| --------- | ------------------------------------------------------------------------------------- |
| `claimed` | somebody began before `until`; if that has passed, it was cut off in the middle       |
| `decided` | the outcome, a result or an error                                                     |
| `free`    | it was tried and given back: whoever tried knows that nothing was done                |

Records are kept for a day, results and errors with them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from agentmesh.errors import IdempotencyConflictError, InvalidMessageError, SequenceConflictError
from agentmesh.ids import new_id, now
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import ONCE, ONCE_SPEC, ensure
from agentmesh.transport import Transport

GRACE = 1.0
"""Seconds beyond `until` in which the owner of a claim may still decide: a handler takes a moment to be cancelled."""

PAUSES = (0.02, 0.05, 0.1, 0.2)
"""Seconds between looks at a key that somebody else has claimed; the last one is repeated."""

LONGEST_KEY = 256

Kind = Literal["ask", "task", "tool", "infer"]
"""Each has keys of its own."""

NOTHING = msgspec.Raw(b"null")


class Record(msgspec.Struct, omit_defaults=True):
    """What is known about a key."""

    key: str
    what: str
    """What is done under it, for people."""
    fingerprint: str
    """Of what is done: the same key for something else is a mistake."""
    state: Literal["claimed", "decided", "free"] = "claimed"
    by: str = ""
    """Who claimed it, unique per claim."""
    until: datetime | None = None
    """When the owner of the claim gives up."""
    task_id: str = ""
    fence: int = 0
    """Of the attempt of that task."""
    result: msgspec.Raw = NOTHING
    error: dict[str, Any] | None = None
    timestamp: datetime | None = None

    def is_abandoned(self) -> bool:
        """Whether its owner was cut off: it neither decided nor can it do so in time any more."""
        return self.state == "claimed" and self.until is not None and self.until + timedelta(seconds=GRACE) < now()


@dataclass(frozen=True)
class Entry:
    """A record as it is stored."""

    record: Record
    sequence: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


class Keys:
    """The keys of one kind, of a tenant.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        kind: What they are for.
    """

    def __init__(self, transport: Transport, subjects: Subjects, kind: Kind) -> None:
        self._transport = transport
        self._subjects = subjects
        self._kind = kind

    async def find(self, key: str, fingerprint: str, what: str) -> Entry | None:
        """What is known about a key; None if nothing is.

        Raises:
            IdempotencyConflictError: The key was used for something else.
        """
        await ensure(self._transport, ONCE_SPEC)
        stored = await self._transport.last_message(ONCE, self._subject(key))
        if stored is None:
            return None
        record = _read(stored.data, key)
        if record.fingerprint != fingerprint:
            raise IdempotencyConflictError(key, record.what, what)
        return Entry(record, stored.sequence)

    async def claim(self, record: Record, entry: Entry | None = None) -> Entry | None:
        """Claim a key that is free, or whose claim was abandoned, as `entry` says; None if somebody else was faster."""
        record.by = new_id()
        return await self._write(record, 0 if entry is None else entry.sequence)

    async def decide(self, claimed: Entry, **outcome: Any) -> Entry | None:
        """Store the outcome of what was claimed; None if somebody else has taken over."""
        record = msgspec.structs.replace(claimed.record, state="decided", until=None, **outcome)
        return await self._write(record, claimed.sequence)

    async def release(self, claimed: Entry) -> None:
        """Let the next one try: nothing was done."""
        await self._write(msgspec.structs.replace(claimed.record, state="free", until=None), claimed.sequence)

    async def _write(self, record: Record, expect: int) -> Entry | None:
        await ensure(self._transport, ONCE_SPEC)
        record.timestamp = now()
        subject = self._subject(record.key)
        msg_id = f"{subject}:{record.by}:{record.state}"
        try:
            stored = await self._transport.publish_durable(subject, _encode(record), msg_id=msg_id, expect_last=expect)
        except SequenceConflictError:
            return None
        return Entry(record, stored.sequence)

    def _subject(self, key: str) -> str:
        return self._subjects.once(digest(self._kind, key))


def checked(key: str) -> str:
    """`key` if it can be one.

    Raises:
        InvalidMessageError: It is empty, or longer than 256 characters.
    """
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY:
        raise InvalidMessageError(f"an idempotency key has 1 to {LONGEST_KEY} characters: {key!r:.40}")
    return key


def digest(*parts: str) -> str:
    """A name for these texts that is safe in a subject: 64 hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()


def fingerprint(what: str, content: bytes) -> str:
    """Of a document: the same for the same fields in another order."""
    canonical = msgspec.json.encode(msgspec.json.decode(content), order="sorted")
    return digest(what, hashlib.sha256(canonical).hexdigest())


def _read(data: bytes, key: str) -> Record:
    try:
        return _decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidMessageError(f"the record of idempotency key {key!r} cannot be read: {error}") from error
