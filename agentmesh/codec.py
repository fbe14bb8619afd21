"""Bytes on the wire: one flat JSON document a message, readable by `nats sub` and by any language.

    {"message_id": "…", "source_agent_id": "cli", "target_agent_id": "greeter", "message_type": "Greet",
     "schema_version": "1.0", "timestamp": "2026-11-21T07:00:00.000000Z", "content": {"name": "Ada"}}

The envelope is a msgspec struct and `content` a raw slice of the document, so a message is encoded and decoded once
(about 2 us a hop): msgspec does the outside, pydantic the inside. Optional fields are left out when they are empty.

A foreign client may send this document, the same with headers `target_agent_id` and `source_agent_id`, or just text:
what is not such a document is taken as a `Prompt` (with a reply subject) or a `Text`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

from agentmesh.budgets import Grants
from agentmesh.errors import AgentMeshError, InvalidMessageError, error_from_wire, error_to_wire
from agentmesh.ids import new_id, now

SCHEMA_VERSION = "1.0"
"""Version of the envelope; a different major number is refused."""

NULL = msgspec.Raw(b"null")
"""Content of what has none."""


class Envelope(msgspec.Struct, omit_defaults=True):
    """An event, a request, a reply, a chunk, or the end of a stream."""

    message_id: str
    message_type: str
    timestamp: datetime | None = None
    source_agent_id: str = ""
    target_agent_id: str = ""
    schema_version: str = ""
    """`SCHEMA_VERSION`; left out by a foreign client, it means this one."""
    content: msgspec.Raw = NULL
    deadline: datetime | None = None
    """When the sender stops waiting; a handler's own requests inherit what is left."""
    trace_id: str = ""
    traceparent: str = ""
    """When somebody traces: W3C trace context, see `trace`."""
    tracestate: str = ""
    baggage: str = ""
    hops: int = 0
    """How many handlers the chain of messages went through; stops endless recursion."""
    task_id: str = ""
    """On requests: the task for which it is asked."""
    budget: Grants = ()
    """What the call tree it belongs to may use."""
    key: str = ""
    """On requests: an idempotency key; the handler runs at most once for it."""
    correlation_id: str = ""
    """On replies: the `message_id` of the request."""
    index: int | None = None
    """On chunks and on the end of a stream: position, from 0. The end carries the number of chunks."""
    confirm: bool = False
    """On events: the sender waits until the mailbox has taken the message (`accepted`) or refused it."""
    window: int = 0
    """On requests: how many chunks may be under way before the receiver confirms some; 0 asks for one reply."""


# Types of message that the runtime itself sends back.
REPLY, CHUNK, END, ERROR, ACCEPTED, CREDIT = "reply", "chunk", "end", "error", "accepted", "credit"

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)
encode = _encoder.encode


def decode(data: bytes) -> Envelope:
    """The envelope in `data`; a deadline without a time zone is read as UTC.

    Raises:
        InvalidMessageError: Not an envelope; says what is wrong.
    """
    try:
        envelope = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidMessageError(f"not a message: {error}") from error
    version = envelope.schema_version
    if version and version != SCHEMA_VERSION and version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise InvalidMessageError(f"schema_version {version!r:.40} is not supported (this is {SCHEMA_VERSION})")
    deadline = envelope.deadline
    if deadline is not None and deadline.tzinfo is None:
        envelope.deadline = deadline.replace(tzinfo=UTC)
    return envelope


def decode_foreign(data: bytes, headers: Mapping[str, str] | None, wants_reply: bool) -> Envelope:
    """Like `decode`, and plain text or plain JSON becomes a `Prompt` (if an answer is wanted) or a `Text`."""
    sender = (headers or {}).get("source_agent_id", "")
    if data[:1] == b"{" and b'"message_type"' in data:
        envelope = _with_id(data)
        envelope.source_agent_id = envelope.source_agent_id or sender
        return envelope
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidMessageError("not a message: neither a JSON document nor UTF-8 text") from error
    return Envelope(
        message_id=new_id(),
        message_type="Prompt" if wants_reply else "Text",
        timestamp=now(),
        source_agent_id=sender,
        schema_version=SCHEMA_VERSION,
        content=msgspec.Raw(_encoder.encode({"text": text})),
    )


class _Foreign(msgspec.Struct):
    message_type: str
    message_id: str | None = None


def _with_id(data: bytes) -> Envelope:
    """An envelope of a foreign client: without an id it gets one, and a timestamp in another form is replaced."""
    try:
        return decode(data)
    except InvalidMessageError as problem:
        try:
            document = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            outline = msgspec.json.decode(data, type=_Foreign)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise problem from None
        document["message_id"] = msgspec.Raw(_encoder.encode(outline.message_id or new_id()))
        document["timestamp"] = msgspec.Raw(_encoder.encode(now()))
        return decode(_encoder.encode(document))


@lru_cache(maxsize=4096)
def adapter(kind: Any) -> TypeAdapter[Any]:
    """The validator and serializer of a type, made once."""
    return TypeAdapter(kind)


def encode_body(value: Any, kind: Any = None) -> bytes:
    """JSON of a message, a reply or a result.

    Args:
        value: What to encode.
        kind: Its declared type; a value that does not fit it is refused. None for messages: their class is their type.

    Raises:
        InvalidMessageError: The value is not of the declared type, or cannot be written as JSON.
    """
    try:
        if kind is None:
            if isinstance(value, BaseModel):
                return value.__pydantic_serializer__.to_json(value)
            kind = type(value)
        validator = adapter(kind)
        return validator.dump_json(validator.validate_python(value))
    except (ValidationError, ValueError, TypeError) as error:
        raise InvalidMessageError(f"{_named(kind or type(value))}: {_first_problem(error)}") from error


def decode_body(kind: Any, data: bytes | msgspec.Raw) -> Any:
    """The value of type `kind` in `data`.

    Raises:
        InvalidMessageError: It does not fit; names the field.
    """
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.__pydantic_validator__.validate_json(bytes(data))
        return adapter(kind).validate_json(bytes(data))
    except Exception as error:  # the edge to foreign code: validators of messages may raise anything
        raise InvalidMessageError(f"{_named(kind)}: {_first_problem(error)}") from error


def encode_error(error: BaseException) -> msgspec.Raw:
    """The `content` of an `error` reply. What is no JSON in it is left out."""
    try:
        return msgspec.Raw(_encoder.encode(error_to_wire(error)))
    except Exception:  # the edge to foreign code: fields that are no JSON, half characters, a __str__ that raises
        try:
            message = str(error).encode(errors="replace").decode()
        except Exception:
            message = "(its text cannot be made)"
        return msgspec.Raw(_encoder.encode({"type": type(error).__name__, "message": message}))


def decode_error(content: msgspec.Raw, source: str) -> AgentMeshError:
    """The error in an `error` reply that came from `source`."""
    try:
        return error_from_wire(msgspec.json.decode(content, type=dict[str, Any]), source)
    except msgspec.MsgspecError:
        return InvalidMessageError(f"{source} sent an error that cannot be read")


def _named(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first, *more = error.errors(include_url=False, include_context=False, include_input=False)
        where = ".".join(str(part) for part in first["loc"])
        rest = f" (and {len(more)} more)" if more else ""
        return f"{where + ': ' if where else ''}{first['msg']}{rest}"
    return str(error) if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: {error}"
