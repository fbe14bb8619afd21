"""Protobuf bytes from plain documents and back: the JSON form with the names of the `.proto` files, as dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from agentmesh.errors import InvalidMessageError
from agentmesh.proto import ai_integration_pb2
from agentmesh.proto.ai_integration_pb2 import LLMStreamChunk

M = TypeVar("M")


def decode(kind: str, data: bytes) -> dict[str, Any]:
    """The document in a message of that kind; fields that are not in the contract are left out.

    Raises:
        InvalidMessageError: It is not one, or has values that have no JSON form.
    """
    try:
        message = _kind(kind).FromString(data)
        document: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    except (DecodeError, json_format.Error, ValueError, OverflowError, RecursionError) as error:
        raise InvalidMessageError(f"not a {_kind(kind).DESCRIPTOR.full_name}: {error}") from error
    return document


def parse(kind: type[M], data: bytes) -> M:
    """The message in these bytes.

    Raises:
        InvalidMessageError: They are none.
    """
    try:
        message: M = cast("Any", kind).FromString(data)
    except DecodeError as error:
        raise InvalidMessageError(f"not a {kind.__name__}: {error}") from error
    return message


def unknown_fields(kind: str, data: bytes) -> list[int]:
    """Numbers of the fields that are not in the contract; empty also for what is no message."""
    try:
        message = _kind(kind).FromString(data)
    except DecodeError:
        return []
    return sorted({field.field_number for field in UnknownFieldSet(message)})


def encode(kind: str, document: Mapping[str, Any]) -> bytes:
    """A message of that kind.

    Raises:
        InvalidMessageError: The document does not fit.
    """
    try:
        data: bytes = json_format.ParseDict(dict(document), _kind(kind)()).SerializeToString()
    except (json_format.ParseError, ValueError) as error:
        raise InvalidMessageError(f"{kind}: {error}") from error
    return data


class ChunkBytes:
    """Makes the chunks of one stream: what they share is serialized once, since messages may be concatenated."""

    def __init__(self, meta: Mapping[str, Any], generation_id: str) -> None:
        self._shared = encode("LLMStreamChunk", {"meta": dict(meta), "generation_id": generation_id})

    def text(self, index: int, text: str) -> bytes:
        own: bytes = LLMStreamChunk(index=index, output_text_delta=text).SerializeToString()
        return self._shared + own

    def last(self, document: Mapping[str, Any]) -> bytes:
        return self._shared + encode("LLMStreamChunk", document)


def _kind(name: str) -> type[Message]:
    kind: type[Message] = getattr(ai_integration_pb2, name)
    return kind
