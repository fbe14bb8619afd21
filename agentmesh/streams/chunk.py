"""Chunks: the documents a conversation consists of, and their bytes.

A stored message is the document of one chunk, or a JSON array of several. What other programs write is understood as
far as it goes: a document without `offset` counts as the next chunk, unknown kinds and fields are kept or passed over.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import msgspec

from agentmesh.errors import InvalidMessageError
from agentmesh.ids import new_id, now

MAX_CHUNK = 500 * 1024
"""Bytes of one chunk."""

FINISH, ERROR, CANCELLED, RESTARTED = "finish", "error", "cancelled", "restarted"

TERMINAL = frozenset({FINISH, ERROR, CANCELLED})
"""Kinds that end a run."""

KINDS = (
    *("text", FINISH, ERROR, CANCELLED, RESTARTED, "role", "reasoning", "tool_call", "tool_result", "citation"),
    *("progress", "usage", "data"),
)
"""The kinds that agentmesh gives a meaning to; any other is carried as well."""

_HISTORY = ("attempt", "returned", "waits", "began", "step")
"""What a task's stream also holds: the task's own history, which is nobody's text."""


def _text() -> str:
    return "text"


def _unknown() -> int:
    return -1


class Chunk(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A piece of a conversation: `Chunk(conversation_id="chat-1", content="Hi", type="text")`.

    The fields down to `data` are yours; those below are set when it is stored.
    """

    # Default factories, because plain defaults would be left out of the document.
    id: str = msgspec.field(default_factory=new_id)
    conversation_id: str = msgspec.field(default_factory=str)
    type: str = msgspec.field(default_factory=_text)
    """One of `KINDS`, or a kind of your own. `finish`, `error` and `cancelled` end the run."""
    content: str = msgspec.field(default_factory=str)
    timestamp: datetime = msgspec.field(default_factory=now)
    """Aware, UTC."""
    role: str = ""
    """`assistant`, `user` … ; empty: as the run says."""
    data: Any = None
    """Structured content: a tool call, usage, progress …"""
    run_id: str = ""
    """The producer's turn it belongs to; empty for what other programs wrote."""
    epoch: int = 1
    """Which take of the run: 2 after it was restarted once."""
    index: int = 0
    """Its number within that take, from 0."""
    offset: int = msgspec.field(default_factory=_unknown)
    """Its number within the conversation, from 0 and without gaps; -1 before it is stored."""
    owner: str = ""
    """The task that decides how the run ends, `*` if somebody else does; empty: the producer itself."""
    sequence: int = 0
    """Set by the reader: number of the stored message. Not part of the document."""

    @property
    def is_final(self) -> bool:
        """Whether it ends its run."""
        return self.type in TERMINAL

    @property
    def cursor(self) -> str:
        """Where to go on behind it: an opaque text for `read(cursor=…)`, or an SSE `id:`."""
        return f"{self.offset}-{self.sequence}"

    def to_json(self) -> bytes:
        """The document, as it is stored."""
        if not self.sequence:
            return _encode(self)
        plain = copy.copy(self)
        plain.sequence = 0
        return _encode(plain)

    @classmethod
    def from_json(cls, data: bytes | str) -> Chunk:
        """The chunk of a document; fields it lacks get their defaults, those unknown are passed over.

        Raises:
            InvalidMessageError: It is no JSON object.
        """
        try:
            document = msgspec.json.decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidMessageError(f"chunk: {error}") from error
        if not isinstance(document, dict):
            raise InvalidMessageError("chunk: not a JSON object")
        return _lenient(document)


_encode = msgspec.json.Encoder().encode
_decode_one = msgspec.json.Decoder(Chunk).decode
_decode_many = msgspec.json.Decoder(list[Chunk]).decode


def encode_data(data: Any) -> Any:
    """`data` as it goes into a document, so that what is no JSON is refused now.

    Raises:
        InvalidMessageError: It cannot be written as JSON.
    """
    if data is None:
        return None
    try:
        return msgspec.Raw(_encode(data))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessageError(f"data of a chunk: {error}") from error


def encode_chunks(chunks: list[Chunk]) -> bytes:
    """The body of a message that holds them."""
    return _encode(chunks[0] if len(chunks) == 1 else chunks)


def decode_chunks(data: bytes, sequence: int, offset: int) -> list[Chunk]:
    """The chunks in a stored message; none in one that holds something else.

    Args:
        data: The body.
        sequence: Of the message.
        offset: What the first of them gets if its writer did not number it.
    """
    try:
        chunks = _decode_many(data) if data[:1] == b"[" else [_decode_one(data)]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return _foreign(data, offset)
    if not (chunks and chunks[0].run_id and chunks[0].offset >= 0):
        return _foreign(data, offset)
    for chunk in chunks:
        chunk.sequence = sequence
    return chunks


def parse_cursor(cursor: str) -> tuple[int, int]:
    """Offset and sequence in a cursor.

    Raises:
        InvalidMessageError: It is none of ours.
    """
    offset, _, sequence = cursor.partition("-")
    if not (offset.isdecimal() and sequence.isdecimal() and len(cursor) < 40):
        raise InvalidMessageError(f"not a cursor of a stream: {cursor[:40]!r}")
    return int(offset), int(sequence)


def _foreign(data: bytes, offset: int) -> list[Chunk]:
    """Chunks of another writer. They keep `sequence` 0: a place among them is found by counting only."""
    try:
        documents = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return []
    chunks: list[Chunk] = []
    for document in documents if isinstance(documents, list) else [documents]:
        if not isinstance(document, dict) or document.get("type") in _HISTORY:
            continue
        chunk = _lenient(document)
        chunk.run_id, chunk.offset = "", offset + len(chunks)
        chunks.append(chunk)
    return chunks


def _lenient(document: dict[str, Any]) -> Chunk:
    """A chunk from whatever the fields hold. A task's events are told as what they are for a reader of its text."""
    content, kind, data = document.get("content", ""), document.get("type", "text"), document.get("data")
    if kind == "chunk":
        kind = "text" if isinstance(content, str) else "data"
    if not isinstance(content, str):
        data = content if data is None else data
        content = str(content["text"]) if isinstance(content, dict) and "text" in content else ""
    chunk = Chunk(
        id=str(document.get("id") or ""),
        conversation_id=str(document.get("conversation_id") or ""),
        type=kind if isinstance(kind, str) and kind else "text",
        content=content,
        timestamp=_time(document.get("timestamp")),
        role=str(document.get("role") or ""),
        data=data,
        run_id=str(document.get("run_id") or ""),
        epoch=_number(document.get("epoch", document.get("attempt")), 1),
        index=_number(document.get("index"), 0),
        offset=_number(document.get("offset"), -1),
        owner=str(document.get("owner") or ""),
    )
    if not chunk.id:
        chunk.id = new_id()
    return chunk


def _number(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _time(value: Any) -> datetime:
    """The seeds' programs write a time of day without a zone, and mean UTC."""
    try:
        time: datetime = msgspec.convert(value, datetime)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):  # the latter at the ends of the calendar
        return now()
