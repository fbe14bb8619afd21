"""The guides' codec."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from agentmesh.errors import DefinitionError, InvalidMessageError
from agentmesh.facade import CodecSerializer

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.seed("B52")
@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_what_is_encoded_is_decoded_with_a_version(document: dict[str, Any]) -> None:
    codec = CodecSerializer()
    document.pop("schema_version", None)
    for key in ("message_type", "task_type"):
        document.pop(key, None)
    assert codec.decode(codec.encode(document)) == {**document, "schema_version": "1.0"}


def test_an_envelope_says_what_it_is() -> None:
    codec = CodecSerializer()
    envelope = codec.create_envelope("note", {"at": datetime(2026, 1, 2, tzinfo=UTC)})
    assert codec.decode(codec.encode(envelope)) == {
        "schema_version": "1.0",
        "message_type": "note",
        "data": {"at": "2026-01-02T00:00:00Z"},
    }


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"\xff", b'"text"', b'{"a": NaN}'])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessageError, match="not a document"):
        CodecSerializer().decode(data)


def test_what_cannot_be_json_is_refused() -> None:
    with pytest.raises(InvalidMessageError, match="cannot be written"):
        CodecSerializer().encode({"thing": object()})
    with pytest.raises(InvalidMessageError, match="takes a dict"):
        CodecSerializer().encode([1])  # type: ignore[arg-type]


def test_another_major_version_is_refused_and_a_newer_minor_one_is_not() -> None:
    codec = CodecSerializer()
    assert codec.decode(b'{"schema_version": "1.7", "a": 1}')["a"] == 1
    with pytest.raises(InvalidMessageError, match=r"schema_version '2\.0' is not supported"):
        codec.decode(b'{"schema_version": "2.0"}')


def test_old_documents_are_migrated_step_by_step() -> None:
    codec = CodecSerializer("3.0")

    @codec.migration("1.0", "2.0", message_type="text")
    def add_language(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "language": "en"}

    @codec.migration("2.0", "3.0")
    def rename(document: dict[str, Any]) -> dict[str, Any]:
        document["body"] = document.pop("content")
        return document

    old = b'{"schema_version": "1.0", "message_type": "text", "content": "hi"}'
    assert codec.decode(old) == {"schema_version": "3.0", "message_type": "text", "language": "en", "body": "hi"}
    with pytest.raises(InvalidMessageError):
        codec.decode(b'{"schema_version": "1.0", "message_type": "picture"}')
    with pytest.raises(DefinitionError):
        codec.migration("1.0", "1.0")


class Note(BaseModel):
    text: str


def test_a_registered_type_is_checked_when_written_and_when_read() -> None:
    codec = CodecSerializer()
    codec.register("note", Note)
    assert codec.decode(codec.encode(codec.create_envelope("note", {"text": "hi"})))["data"] == {"text": "hi"}
    with pytest.raises(InvalidMessageError, match="text"):
        codec.encode(codec.create_envelope("note", {"txt": "hi"}))
    with pytest.raises(InvalidMessageError, match="text"):
        codec.decode(b'{"message_type": "note", "text": 7}')
