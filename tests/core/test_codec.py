"""The envelope: readable by anybody, strict about what it is, harmless whatever comes."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agentmesh import codec
from agentmesh.errors import InvalidMessageError, MailboxFullError, RemoteError
from agentmesh.ids import new_id, now
from agentmesh.messages import Request


class Point(BaseModel):
    x: int
    y: float = 0.5


class Move(Request[Point]):
    to: Point


def _envelope(**fields: object) -> codec.Envelope:
    return codec.Envelope(message_id="m1", message_type="Move", **fields)  # type: ignore[arg-type]


def test_the_envelope_has_the_published_field_names() -> None:
    envelope = _envelope(
        timestamp=now(),
        source_agent_id="a",
        target_agent_id="b",
        schema_version=codec.SCHEMA_VERSION,
        content=msgspec.Raw(codec.encode_body(Move(to=Point(x=1)))),
    )
    document = json.loads(codec.encode(envelope))
    assert list(document) == [
        "message_id",
        "message_type",
        "timestamp",
        "source_agent_id",
        "target_agent_id",
        "schema_version",
        "content",
    ]
    assert document["content"] == {"to": {"x": 1, "y": 0.5}}
    assert document["timestamp"].endswith("Z")


def test_what_is_encoded_comes_back() -> None:
    sent = _envelope(content=msgspec.Raw(codec.encode_body(Move(to=Point(x=3)))), deadline=now(), hops=2)
    received = codec.decode(codec.encode(sent))
    assert received.deadline == sent.deadline
    assert codec.decode_body(Move, received.content) == Move(to=Point(x=3))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_typed_error_or_a_text(data: bytes) -> None:
    with pytest.raises(InvalidMessageError):
        codec.decode(data)
    try:
        envelope = codec.decode_foreign(data, None, wants_reply=True)
    except InvalidMessageError:
        return
    assert envelope.message_type == "Prompt"


def test_a_very_deep_document_is_refused() -> None:
    with pytest.raises(InvalidMessageError):
        codec.decode(b"[" * 512_000)
    with pytest.raises(InvalidMessageError):
        codec.decode(b'{"message_id":"1","message_type":"M","content":' + b"[" * 500_000)


def test_another_major_version_is_refused_and_another_minor_is_not() -> None:
    assert codec.decode(codec.encode(_envelope(schema_version="1.7"))).schema_version == "1.7"
    with pytest.raises(InvalidMessageError, match=r"'2\.0'"):
        codec.decode(codec.encode(_envelope(schema_version="2.0")))


def test_plain_text_is_a_prompt_when_an_answer_is_wanted_and_a_text_otherwise() -> None:
    asked = codec.decode_foreign(b"hello", {"source_agent_id": "shell"}, wants_reply=True)
    told = codec.decode_foreign(b"hello", None, wants_reply=False)
    assert (asked.message_type, asked.source_agent_id) == ("Prompt", "shell")
    assert told.message_type == "Text"
    assert json.loads(bytes(told.content)) == {"text": "hello"}


def test_a_document_of_a_foreign_client_may_lack_an_id_and_have_a_naive_timestamp() -> None:
    data = b'{"message_type": "Move", "timestamp": "2026-01-01T10:00:00", "content": {"to": {"x": 1}}}'
    envelope = codec.decode_foreign(data, None, wants_reply=True)
    assert envelope.message_id
    assert codec.decode_body(Move, envelope.content) == Move(to=Point(x=1))


def test_a_wrong_field_is_named() -> None:
    with pytest.raises(InvalidMessageError, match=r"Move: to\.x: "):
        codec.decode_body(Move, b'{"to": {"x": "many"}}')


def test_a_reply_of_another_type_than_promised_is_refused() -> None:
    with pytest.raises(InvalidMessageError, match="Point"):
        codec.encode_body("nonsense", Point)


def test_our_errors_come_back_typed_and_others_as_remote_errors() -> None:
    ours = codec.decode_error(codec.encode_error(MailboxFullError("writer", 10)), "writer")
    assert isinstance(ours, MailboxFullError)
    assert ours.capacity == 10
    other = codec.decode_error(codec.encode_error(ValueError("empty name")), "writer")
    assert isinstance(other, RemoteError)
    assert (other.error_type, other.message) == ("ValueError", "empty name")


def test_ids_are_unique_and_ordered_in_time() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert [one[:11] for one in ids] == sorted(one[:11] for one in ids)
