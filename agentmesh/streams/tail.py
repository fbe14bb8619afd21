"""Appending to a conversation: one message at a time, behind the last one that is there, or not at all.

The broker compares: a message says behind which one it was meant to be stored (`Nats-Expected-Last-Subject-Sequence`).
So offsets are dense whoever writes, and a producer that was replaced cannot add anything, however late it wakes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agentmesh.errors import JetStreamUnavailableError, SequenceConflictError
from agentmesh.streams.chunk import Chunk, decode_chunks, encode_chunks
from agentmesh.streams.follow import REPLAY, STREAM
from agentmesh.subjects import Subjects
from agentmesh.transport import StoredMessage, Transport

_CROWDED = 3
"""Conflicts in a row after which the others are asked to make way for a moment."""

_BEHIND = 0.05
"""Seconds until a copy of the stream that lags is read again."""

_PATIENCE = 10.0
"""Seconds for which it is read again."""


class Tail:
    """The end of a conversation, as far as we know it.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        conversation_id: Which conversation.
        ttl: Seconds until what is appended goes by itself; None keeps it as long as the stream does.
        bulk: There will be much of it: use the second connection.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        conversation_id: str,
        *,
        ttl: float | None = None,
        bulk: bool = False,
    ) -> None:
        self.sequence = 0
        """The last message that is known; 0: none."""
        self.offset = 0
        """What the next chunk gets."""
        self._transport = transport
        self._busy = asyncio.Lock()
        self._subject = subjects.stream(conversation_id)
        self._bulk = bulk
        self._headers = {"Nats-TTL": f"{max(1, round(ttl))}s"} if ttl is not None else None
        self.seen: Callable[[Chunk], None] | None = None
        """Called with each chunk of others that was appended before ours; what it raises ends the append."""
        self.crowded: Callable[[], Awaitable[None]] | None = None
        """Asks others to make way."""

    async def append(self, chunks: list[Chunk], msg_id: str, *, jump: bool = False) -> None:
        """Number the chunks and store them as one message.

        Args:
            chunks: What to store.
            msg_id: Repeated with the same, they are stored once.
            jump: Nothing that is there can concern us: look only where the conversation ends.

        Raises:
            BrokerError: They are not stored; after PublishTimeoutError they may be.
        """
        async with self._busy:
            await self._append(chunks, msg_id, jump)

    async def _append(self, chunks: list[Chunk], msg_id: str, jump: bool) -> None:
        conflicts = 0
        while True:
            for number, chunk in enumerate(chunks, self.offset):
                chunk.offset = number
            try:
                ack = await self._transport.publish_durable(
                    self._subject,
                    encode_chunks(chunks),
                    msg_id=msg_id,
                    headers=self._headers,
                    expect_last=self.sequence,
                    bulk=self._bulk,
                )
            except SequenceConflictError:
                known = self.sequence
                mine = await self._catch_up(msg_id, jump=jump and self.sequence == 0)
                if mine is not None:
                    _renumber(chunks, mine)
                    return  # it was stored, only its confirmation got lost
                conflicts += 1
                if self.sequence <= known and conflicts > 1:
                    await asyncio.sleep(_BEHIND)  # what we are shown is older than what the broker compares with
                elif conflicts >= _CROWDED and self.crowded is not None:
                    await self.crowded()
                continue
            if ack.duplicate:
                stored = await self._transport.get_message(STREAM, ack.sequence)
                if stored is not None:
                    _renumber(chunks, self._note(stored, told=False))
                    return
            self.sequence, self.offset = ack.sequence, self.offset + len(chunks)
            return

    async def catch_up(self) -> None:
        """Take in what others have appended behind the end that is known; not while something of ours is in doubt."""
        async with self._busy:
            await self._catch_up()

    async def _catch_up(self, msg_id: str = "", *, jump: bool = False) -> list[Chunk] | None:
        """Read what was appended.

        Args:
            msg_id: Of a message of ours that may be among it.
            jump: Read the last message only.

        Returns:
            The chunks of our message, if it was.
        """
        last = await self._transport.last_message(STREAM, self._subject, latest=True)
        if last is None or last.sequence <= self.sequence:  # purged, or its oldest messages are gone
            self.sequence = last.sequence if last is not None else 0
            return None
        if jump and _is_numbered(last) and last.headers.get("Nats-Msg-Id") != msg_id:
            self._note(last)
            return None
        mine: list[Chunk] | None = None
        loop = asyncio.get_running_loop()
        end = loop.time() + _PATIENCE
        while self.sequence < last.sequence:
            batch = await self._transport.messages(STREAM, self._subject, start=self.sequence + 1, limit=REPLAY)
            for stored in batch:
                if msg_id and stored.headers.get("Nats-Msg-Id") == msg_id:
                    mine = self._note(stored, told=False)
                else:
                    self._note(stored)
            if not batch:  # an answer of a copy that lags
                if loop.time() >= end:
                    raise JetStreamUnavailableError(f"reading {self._subject}", "its copies lag behind")
                await asyncio.sleep(_BEHIND)
        return mine

    def _note(self, stored: StoredMessage, *, told: bool = True) -> list[Chunk]:
        chunks = decode_chunks(stored.data, stored.sequence, self.offset)
        self.sequence = stored.sequence
        for chunk in chunks:
            self.offset = chunk.offset + 1
        if told and self.seen is not None:
            for chunk in chunks:
                self.seen(chunk)
        return chunks


def _is_numbered(stored: StoredMessage) -> bool:
    """Whether a message says where it is."""
    chunks = decode_chunks(stored.data, stored.sequence, 0)
    return bool(chunks) and chunks[-1].sequence > 0


def _renumber(chunks: list[Chunk], stored: list[Chunk]) -> None:
    for chunk, as_stored in zip(chunks, stored, strict=False):
        chunk.offset = as_stored.offset
