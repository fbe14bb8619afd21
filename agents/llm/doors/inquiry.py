"""A request as a door understood it, and how requests that cannot be understood are refused."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from agentmesh.agents.llm.messages import LLMError, LLMRequest, LLMResponse
from agentmesh.codes import ErrorCode
from agentmesh.errors import (
    AgentMeshError,
    AgentPausedError,
    IdempotencyConflictError,
    InvalidMessageError,
    InvalidNameError,
    MissingExtraError,
    ModelError,
    PayloadTooLargeError,
    QueueFullError,
    TaskError,
)
from agentmesh.trace import Trace, adopt


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """What is asked, and how it is to be answered."""

    request: LLMRequest
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What comes back with every answer."""
    stream: bool = False
    """In pieces."""
    chat: bool = False
    """It came with messages, so a message is the answer."""
    job: bool = False
    """Durable: the answer is the id under which the result will be found."""
    key: str = ""
    """Idempotency key."""
    deadline: datetime | None = None
    """When the client stops waiting, if it said so."""
    idle_timeout: float | None = None
    window: int = 0
    """Pieces that may be under way; 0: the client does not confirm."""
    trace: Trace = field(default_factory=Trace)
    """The trace of the client."""


def trace_of(trace_id: str, headers: Mapping[str, str] | None) -> Trace:
    """The trace a request belongs to: that of its `traceparent`, else the one it names, which may be any text."""
    trace = Trace(trace_id)
    adopt(trace, headers)
    return trace


def refused(code: ErrorCode, problem: str, retry_after: float = 0.0, **details: str) -> ModelError:
    """An error about a request."""
    return ModelError(code.value, problem, retry_after=retry_after, details=details)


def invalid(error: ValidationError, known: Iterable[type[BaseModel]], where: str = "") -> ModelError:
    """What is wrong with a document, in one sentence that names the field.

    Args:
        error: What the validator found.
        known: Documents whose field names may have been meant.
        where: Path of the validated part.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join([*([where] if where else []), *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        wrong = str(first["loc"][-1])
        near = difflib.get_close_matches(wrong, {name for kind in known for name in kind.model_fields}, n=2, cutoff=0.6)
        hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        details = {"field": path, **({"did_you_mean": near[0]} if near else {})}
        return ModelError(ErrorCode.INVALID_ARGUMENT.value, f"there is no field {path!r}{hint}", details=details)
    problem = first["msg"].removeprefix("Value error, ")
    if not path:
        return refused(ErrorCode.INVALID_ARGUMENT, problem)
    return refused(ErrorCode.INVALID_ARGUMENT, f"{path}: {problem}", field=path)


_CODES: tuple[tuple[type[AgentMeshError], ErrorCode], ...] = (
    (InvalidMessageError, ErrorCode.INVALID_ARGUMENT),
    (InvalidNameError, ErrorCode.INVALID_ARGUMENT),
    (PayloadTooLargeError, ErrorCode.OUT_OF_RANGE),
    (IdempotencyConflictError, ErrorCode.CONFLICT),
    (QueueFullError, ErrorCode.RESOURCE_EXHAUSTED),
    (TaskError, ErrorCode.ABORTED),
    (AgentPausedError, ErrorCode.UNAVAILABLE),
    (MissingExtraError, ErrorCode.UNIMPLEMENTED),
)


def explained(error: Exception) -> ModelError:
    """An error as clients are told: nothing about our insides, unless it is about what they asked."""
    if isinstance(error, ModelError):
        return error
    for kind, code in _CODES:
        if isinstance(error, kind):
            return refused(code, str(error), getattr(error, "retry_after", 0.0))
    if isinstance(error, AgentMeshError):
        return refused(ErrorCode.UNAVAILABLE, f"{type(error).__name__}: try again later", 1.0)
    return refused(ErrorCode.INTERNAL, "something went wrong at the gateway; its log says what")


def failure(error: ModelError, request_id: str) -> LLMResponse:
    """The answer that says so."""
    return LLMResponse(request_id=request_id, finish_reason="error", error=LLMError.of(error))


def error_document(error: LLMError) -> dict[str, Any]:
    """An `Error` as plain data; seconds to wait are a detail, since the contract has no field for them."""
    details = dict(error.details)
    if error.retry_after:
        details.setdefault("retry_after", f"{error.retry_after:g}")
    return {"code": error.code.value, "message": error.message, "details": details}


def loads(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: It is none.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refused(ErrorCode.INVALID_ARGUMENT, f"not JSON: {error}") from None
    return as_object(document)


def as_object(document: Any) -> dict[str, Any]:
    """`document` if it is an object."""
    if not isinstance(document, dict):
        raise refused(ErrorCode.INVALID_ARGUMENT, f"expected an object, got {type(document).__name__}")
    return document
