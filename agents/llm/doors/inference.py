"""The dialect of `svc.ai.llm.v1.infer`: the messages of `ai_integration.v1` as protobuf, JSON or msgpack.

The answer is in the format of the request. A request without `Content-Type` is protobuf, unless it begins with a brace:
no `LLMInferenceRequest` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import ValidationError

from agentmesh import proto
from agentmesh.agents.llm.doors.dialect import Headers, Pieces
from agentmesh.agents.llm.doors.documents import DOCUMENTS, MetaDocument, RequestDocument
from agentmesh.agents.llm.doors.inquiry import Inquiry, as_object, error_document, invalid, loads, refused, trace_of
from agentmesh.agents.llm.messages import GenerationParameters, LLMRequest, LLMResponse, Meta
from agentmesh.chunked import CONTENT_TYPE, IDLE_TIMEOUT, deadline_of, header, seconds_of, window_of
from agentmesh.codes import ErrorCode
from agentmesh.errors import InvalidMessageError
from agentmesh.ids import new_id
from agentmesh.tasks.keys import LONGEST_KEY

PROTOBUF, JSON, MSGPACK = "application/x-protobuf", "application/json", "application/msgpack"

REQUEST, RESPONSE = "LLMInferenceRequest", "LLMInferenceResponse"

MESSAGE_TYPE = "message-type"
"""Full name of the protobuf message."""
FINGERPRINT = "Schema-Fingerprint"
"""Of the `.proto` files that the sender was made from."""
IDEMPOTENCY_KEY = "Idempotency-Key"
PRIORITY = "priority"

LARGEST_META = 16_384
"""Bytes of its JSON form: it comes back with every chunk."""

ROLES = {"system": "SYSTEM", "user": "USER", "assistant": "ASSISTANT", "tool": "TOOL"}

_ANOTHER_NAME = {
    "application/protobuf": PROTOBUF,
    "application/vnd.google.protobuf": PROTOBUF,
    "application/x-msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
    "text/json": JSON,
}


def dialect_of(data: bytes, headers: Headers) -> Inference:
    """The format a request is in.

    Raises:
        ModelError: One that is not spoken here.
    """
    said = header(headers, CONTENT_TYPE).partition(";")[0].strip().lower()
    if not said:
        return JSON_FORM if data[:1] == b"{" else PROTOBUF_FORM
    name = _ANOTHER_NAME.get(said, said)
    if name not in _FORMS:
        raise refused(
            ErrorCode.INVALID_ARGUMENT,
            f"{CONTENT_TYPE} {said!r:.60} is not understood: {', '.join(_FORMS)}",
            field=CONTENT_TYPE,
        )
    return _FORMS[name]


class Inference:
    """See `Dialect`; subclasses are the formats."""

    content_type = ""

    def document(self, data: bytes, headers: Headers) -> dict[str, Any]:
        raise AssertionError("a format reads its bytes")

    def encode(self, kind: str, document: Mapping[str, Any]) -> bytes:
        """A message of that kind as bytes."""
        raise AssertionError("a format writes its bytes")

    def pieces(self, meta: Mapping[str, Any], generation_id: str) -> Pieces:
        return PlainPieces(self, meta, generation_id)

    def meta(self, document: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
        said = document.get("meta")
        try:
            meta = MetaDocument.model_validate(said or {}).plain()
        except ValidationError:  # `inquiry` says what is wrong with it
            known = said.get("request_id") if isinstance(said, Mapping) else None
            meta = {"request_id": known} if isinstance(known, str) else {}
        if len(msgspec.json.encode(meta)) > LARGEST_META:  # so does `inquiry`; an answer must not repeat it
            meta = {"request_id": meta.get("request_id", "")[:LONGEST_KEY]}
        meta["request_id"] = meta.get("request_id") or new_id()
        if not meta.get("trace_id") and (trace_id := trace_of("", headers).trace_id):
            meta["trace_id"] = trace_id
        return meta

    def inquiry(self, document: Mapping[str, Any], meta: Mapping[str, Any], headers: Headers) -> Inquiry:
        expected = f"ai_integration.v1.{REQUEST}"
        if (kind := header(headers, MESSAGE_TYPE)) and kind != expected:
            raise refused(ErrorCode.INVALID_ARGUMENT, f"{MESSAGE_TYPE} {kind!r:.80}: expected {expected}")
        try:
            said = RequestDocument.model_validate(document)
        except ValidationError as error:
            raise invalid(error, DOCUMENTS) from None
        if len(msgspec.json.encode(said.meta.plain())) > LARGEST_META:
            raise refused(ErrorCode.OUT_OF_RANGE, f"meta is over {LARGEST_META} bytes", field="meta")
        chat = said.chat_messages is not None
        fields: dict[str, Any] = {
            "request_id": meta["request_id"],
            "meta": Meta.model_validate({**said.meta.plain(), **meta}),
            "model": said.model_id,
            "params": _parameters(said),
            "context": said.context,
        }
        if said.chat_messages is not None:
            fields["messages"] = [one.message() for one in said.chat_messages.messages]
        else:
            fields["prompt"] = said.prompt
        if priority := header(headers, PRIORITY):
            fields["priority"] = priority
        try:
            request = LLMRequest.model_validate(fields)
        except ValidationError as error:
            raise invalid(error, DOCUMENTS) from None
        return Inquiry(
            request=request,
            meta=meta,
            stream=bool(said.params.stream),
            chat=chat,
            key=said.meta.idempotency_key or header(headers, IDEMPOTENCY_KEY) or header(headers, "Nats-Msg-Id"),
            deadline=deadline_of(headers),
            idle_timeout=seconds_of(headers, IDLE_TIMEOUT),
            window=window_of(headers),
            trace=trace_of(str(meta.get("trace_id", "")), headers),
        )

    def whole(self, meta: Mapping[str, Any], response: LLMResponse, inquiry: Inquiry | None) -> bytes:
        document: dict[str, Any] = {"meta": dict(meta), "generation_id": response.generation_id}
        if response.error is not None:
            document["error"] = error_document(response.error)
        if response.error is None or response.text:
            if inquiry is not None and inquiry.chat:
                document["chat_messages"] = {"messages": _answers(response)}
            else:
                document["output_text"] = response.text
        document["finish_reason"] = response.finish_reason
        document["usage"] = response.usage.model_dump()
        return self.encode(RESPONSE, document)

    def accepted(self, meta: Mapping[str, Any], job_id: str) -> bytes:
        raise AssertionError("this dialect has no jobs")


class PlainPieces:
    """The chunks of one stream in a format of plain data."""

    def __init__(self, form: Inference, meta: Mapping[str, Any], generation_id: str) -> None:
        self._form = form
        self._shared = {"meta": dict(meta), "generation_id": generation_id}

    def text(self, index: int, text: str) -> bytes:
        document = {**self._shared, "index": index, "is_final": False, "output_text_delta": text}
        return self._form.encode("LLMStreamChunk", document)

    def last(self, index: int, response: LLMResponse) -> bytes:
        return self._form.encode("LLMStreamChunk", {**self._shared, **_end(index, response)})


class ProtobufPieces:
    """The same in protobuf."""

    def __init__(self, meta: Mapping[str, Any], generation_id: str) -> None:
        from agentmesh.proto.plain import ChunkBytes

        self._bytes = ChunkBytes(meta, generation_id)
        self.text = self._bytes.text

    def last(self, index: int, response: LLMResponse) -> bytes:
        return self._bytes.last(_end(index, response))


class ProtobufForm(Inference):
    content_type = PROTOBUF

    def document(self, data: bytes, headers: Headers) -> dict[str, Any]:
        _needs_protobuf()
        from agentmesh.proto import plain

        theirs = header(headers, FINGERPRINT)
        strange = plain.unknown_fields(REQUEST, data) if theirs and theirs != proto.FINGERPRINT else []
        try:
            document = plain.decode(REQUEST, data)
            if strange:
                raise InvalidMessageError(f"fields {', '.join(map(str, strange))} are not in the contract")
        except InvalidMessageError as error:
            raise refused(ErrorCode.INVALID_ARGUMENT, f"{error}{_mismatch(theirs)}") from None
        return document

    def encode(self, kind: str, document: Mapping[str, Any]) -> bytes:
        _needs_protobuf()
        from agentmesh.proto import plain

        return plain.encode(kind, document)

    def pieces(self, meta: Mapping[str, Any], generation_id: str) -> Pieces:
        return ProtobufPieces(meta, generation_id)


class JsonForm(Inference):
    content_type = JSON

    def document(self, data: bytes, headers: Headers) -> dict[str, Any]:
        return loads(data)

    def encode(self, kind: str, document: Mapping[str, Any]) -> bytes:
        return msgspec.json.encode(document)


class MsgpackForm(Inference):
    content_type = MSGPACK

    def document(self, data: bytes, headers: Headers) -> dict[str, Any]:
        return unpacked(data)

    def encode(self, kind: str, document: Mapping[str, Any]) -> bytes:
        return msgspec.msgpack.encode(document)


PROTOBUF_FORM, JSON_FORM, MSGPACK_FORM = ProtobufForm(), JsonForm(), MsgpackForm()
_FORMS: dict[str, Inference] = {form.content_type: form for form in (PROTOBUF_FORM, JSON_FORM, MSGPACK_FORM)}


def unpacked(data: bytes) -> dict[str, Any]:
    """A msgpack object.

    Raises:
        ModelError: It is none.
    """
    try:
        document = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise refused(ErrorCode.INVALID_ARGUMENT, f"not msgpack: {error}") from None
    fields = as_object(document)
    if not all(isinstance(name, str) for name in fields):
        raise refused(ErrorCode.INVALID_ARGUMENT, "names of fields are text")
    return fields


def _needs_protobuf() -> None:
    _ = proto.LLMInferenceRequest  # raises MissingExtraError


def _mismatch(theirs: str) -> str:
    if not theirs or theirs == proto.FINGERPRINT:
        return "; is it an LLMInferenceRequest? (agentmesh proto export writes the .proto files)"
    return (
        f"; it was made from other .proto files (fingerprint {theirs:.32}, here it is {proto.FINGERPRINT}): "
        "make the code anew from what agentmesh proto export writes"
    )


def _parameters(said: RequestDocument) -> GenerationParameters:
    try:
        return GenerationParameters.model_validate(said.params.plain())
    except ValidationError as error:
        raise invalid(error, DOCUMENTS, "params") from None


def _answers(response: LLMResponse) -> list[dict[str, Any]]:
    spoken = [one for one in response.messages if one.content]
    if not spoken:
        return [{"role": "ASSISTANT", "content": response.text}]
    return [{"role": ROLES[one.role], "content": one.content} for one in spoken]


def _end(index: int, response: LLMResponse) -> dict[str, Any]:
    document: dict[str, Any] = {"index": index, "is_final": True, "finish_reason": response.finish_reason}
    document["usage"] = response.usage.model_dump()
    if response.error is not None:
        document["error"] = error_document(response.error)
    return document
