"""The dialect of `ai.gateway.requests.T`: flat JSON (or msgpack), as queue workers of old exchange it.

    {"request_id": "…", "prompt": "…", "model": "…", "tenant_id": "T", "timestamp": "…", "schema_version": "1.0"}
    {"request_id": "…", "response": "…", "tokens": 30, "cost": 0.0, "schema_version": "1.0", "model": "…", …}

Whatever `LLMRequest` takes may be added. The id of a request is its idempotency key, unless
it names another one, or says `"once": false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentmesh.agents.llm.doors.dialect import Headers, Pieces
from agentmesh.agents.llm.doors.inference import IDEMPOTENCY_KEY, JSON, MSGPACK, unpacked
from agentmesh.agents.llm.doors.inquiry import Inquiry, error_document, invalid, loads, refused, trace_of
from agentmesh.agents.llm.messages import CachePolicy, GenerationParameters, LLMRequest, LLMResponse, Meta
from agentmesh.chat import ChatMessage
from agentmesh.chunked import CONTENT_TYPE, IDLE_TIMEOUT, deadline_of, header, seconds_of, window_of
from agentmesh.codes import ErrorCode
from agentmesh.ids import new_id

SCHEMA_VERSION = "1.0"
MODE = "mode"
"""`job`: have it done as a durable job."""

_FROM_HEADERS = ("request_id", "model", "priority")
_OF_REQUEST = ("model", "prompt", "messages", "params", "tools", "tool_choice", "response_format", "context")
_OF_META = ("trace_id", "client_id", "user_id", "timestamp", "labels")


class RequestBody(BaseModel):
    """What a request may contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: str = Field(default="", max_length=256)
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    model: str = ""
    tenant_id: str = ""
    timestamp: str | None = None
    schema_version: str = SCHEMA_VERSION
    params: GenerationParameters = GenerationParameters()
    priority: Literal["high", "normal", "low"] = "normal"
    idempotency_key: str = ""
    once: bool = True
    """False: the id of the request is no idempotency key."""
    mode: Literal["", "request", "job"] = ""
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    context: dict[str, Any] = {}
    cache: CachePolicy | None = None
    wait: bool = False
    trace_id: str = ""
    client_id: str = ""
    user_id: str = ""
    labels: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, Mapping) else data


class Requests:
    """See `Dialect`.

    Args:
        tenant: Whose door it is; a request may repeat it, and not contradict.
    """

    content_type = JSON

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant

    def document(self, data: bytes, headers: Headers) -> dict[str, Any]:
        document = self.loads(data)
        said = {name: value for name in _FROM_HEADERS if (value := header(headers, name))}
        for name, value in said.items():
            if document.setdefault(name, value) != value:
                problem = f"{name} is {value!r:.80} in the header, and another in the body"
                raise refused(ErrorCode.INVALID_ARGUMENT, problem, field=name)
        return document

    def meta(self, document: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
        request_id = document.get("request_id")
        return {"request_id": request_id if isinstance(request_id, str) and request_id else new_id()}

    def inquiry(self, document: Mapping[str, Any], meta: Mapping[str, Any], headers: Headers) -> Inquiry:
        try:
            body = RequestBody.model_validate(document)
        except ValidationError as error:
            raise invalid(error, (RequestBody, GenerationParameters)) from None
        if body.schema_version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            raise refused(
                ErrorCode.INVALID_ARGUMENT,
                f"schema_version {body.schema_version!r:.40} is not supported (this is {SCHEMA_VERSION})",
                field="schema_version",
            )
        if body.tenant_id and body.tenant_id != self._tenant:
            raise refused(
                ErrorCode.PERMISSION_DENIED,
                f"tenant_id {body.tenant_id!r:.64} is not the tenant of this subject",
                field="tenant_id",
            )
        about = {name: getattr(body, name) for name in _OF_META}
        fields = {name: getattr(body, name) for name in (*_OF_REQUEST, "cache", "wait", "priority")}
        try:
            facts = {"request_id": meta["request_id"], "tenant_id": self._tenant, **about}
            facts["idempotency_key"] = body.idempotency_key
            request = LLMRequest(request_id=meta["request_id"], meta=Meta.model_validate(facts), **fields)
        except ValidationError as error:
            raise invalid(error, (RequestBody,)) from None
        return Inquiry(
            request=request,
            meta=meta,
            stream=bool(body.params.stream),
            chat=body.messages is not None,
            job=(body.mode or header(headers, MODE).lower()) == "job",
            key=body.idempotency_key or header(headers, IDEMPOTENCY_KEY) or (body.request_id if body.once else ""),
            deadline=deadline_of(headers),
            idle_timeout=seconds_of(headers, IDLE_TIMEOUT),
            window=window_of(headers),
            trace=trace_of(body.trace_id, headers),
        )

    def whole(self, meta: Mapping[str, Any], response: LLMResponse, inquiry: Inquiry | None) -> bytes:
        return self.dumps(answer(str(meta.get("request_id", "")), response))

    def accepted(self, meta: Mapping[str, Any], job_id: str) -> bytes:
        return self.dumps({**meta, "job_id": job_id, "status": "accepted", "schema_version": SCHEMA_VERSION})

    def pieces(self, meta: Mapping[str, Any], generation_id: str) -> Pieces:
        return RequestPieces(self, str(meta["request_id"]))

    def loads(self, data: bytes) -> dict[str, Any]:
        return loads(data)

    def dumps(self, document: Any) -> bytes:
        return msgspec.json.encode(document)


class PackedRequests(Requests):
    """The same as msgpack."""

    content_type = MSGPACK

    def loads(self, data: bytes) -> dict[str, Any]:
        return unpacked(data)

    def dumps(self, document: Any) -> bytes:
        return msgspec.msgpack.encode(document)


class RequestPieces:
    """The pieces of one streamed answer; the last one has all the fields of a whole answer, and no text."""

    def __init__(self, dialect: Requests, request_id: str) -> None:
        self._dialect = dialect
        self._request_id = request_id

    def text(self, index: int, text: str) -> bytes:
        piece = {"request_id": self._request_id, "index": index, "is_final": False, "response": text}
        return self._dialect.dumps({**piece, "schema_version": SCHEMA_VERSION})

    def last(self, index: int, response: LLMResponse) -> bytes:
        end = {**answer(self._request_id, response), "response": "", "index": index, "is_final": True}
        return self._dialect.dumps(end)


def answer(request_id: str, response: LLMResponse) -> dict[str, Any]:
    """The fields of an answer: those of old, and what they lacked."""
    document: dict[str, Any] = {
        "request_id": request_id,
        "response": response.text,
        "tokens": response.usage.total_tokens,
        "cost": response.cost,
        "schema_version": SCHEMA_VERSION,
        "model": response.model,
        "finish_reason": response.finish_reason,
        "usage": response.usage.model_dump(),
        "generation_id": response.generation_id,
        "backend": response.backend,
        "latency_ms": response.latency_ms,
        "cached": response.cached,
        "cache_key": response.cache_key,
        "messages": [one.model_dump(exclude_none=True) for one in response.messages],
        "error": None if response.error is None else error_document(response.error),
    }
    return document


def response_of(document: Mapping[str, Any]) -> LLMResponse:
    """The answer in such a document."""
    fields = {name: value for name, value in document.items() if name in LLMResponse.model_fields}
    return LLMResponse.model_validate({**fields, "text": document.get("response", "")})


def dialect_of(tenant: str, headers: Headers) -> Requests:
    """The format a request is in.

    Raises:
        ModelError: One that is not spoken here.
    """
    said = header(headers, CONTENT_TYPE).partition(";")[0].strip().lower()
    if said in ("", JSON, "text/json", "text/plain"):
        return Requests(tenant)
    if said in (MSGPACK, "application/x-msgpack", "application/vnd.msgpack"):
        return PackedRequests(tenant)
    problem = f"{CONTENT_TYPE} {said!r:.60} is not understood: {JSON}, {MSGPACK}"
    raise refused(ErrorCode.INVALID_ARGUMENT, problem, field=CONTENT_TYPE)
