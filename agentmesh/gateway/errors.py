"""What every error is over HTTP: its status, and one of the codes of `common.v1.Error`.

{"error": {"code": "NOT_FOUND", "message": "no agent 'greter' is running; …", "details": {}, "request_id": "…"}}
"""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException

from agentmesh import errors
from agentmesh.codes import ErrorCode
from agentmesh.errors import AgentMeshError, HttpError, ModelError, NoSuchAgentError, RemoteError

STATUS: dict[ErrorCode, int] = {
    ErrorCode.UNKNOWN: 500,
    ErrorCode.INVALID_ARGUMENT: 400,
    ErrorCode.OUT_OF_RANGE: 400,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.PERMISSION_DENIED: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.CONFLICT: 409,
    ErrorCode.ABORTED: 409,
    ErrorCode.FAILED_PRECONDITION: 412,
    ErrorCode.RESOURCE_EXHAUSTED: 429,
    ErrorCode.INTERNAL: 500,
    ErrorCode.UNIMPLEMENTED: 501,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}

_Code = ErrorCode

TABLE: dict[type[AgentMeshError], tuple[ErrorCode, float | None]] = {
    errors.InvalidNameError: (_Code.INVALID_ARGUMENT, None),
    errors.InvalidMessageError: (_Code.INVALID_ARGUMENT, None),
    errors.InvalidScheduleError: (_Code.INVALID_ARGUMENT, None),
    errors.DefinitionError: (_Code.INVALID_ARGUMENT, None),
    errors.NoHandlerError: (_Code.INVALID_ARGUMENT, None),
    errors.ToolArgumentsError: (_Code.INVALID_ARGUMENT, None),
    errors.PayloadTooLargeError: (_Code.INVALID_ARGUMENT, None),
    errors.StoreLimitError: (_Code.OUT_OF_RANGE, None),
    errors.PermissionDeniedError: (_Code.PERMISSION_DENIED, None),
    errors.ToolNotAllowedError: (_Code.PERMISSION_DENIED, None),
    errors.NoSuchAgentError: (_Code.NOT_FOUND, None),
    errors.NoSuchTaskError: (_Code.NOT_FOUND, None),
    errors.NoSuchToolError: (_Code.NOT_FOUND, None),
    errors.NoSuchScheduleError: (_Code.NOT_FOUND, None),
    errors.IdempotencyConflictError: (_Code.CONFLICT, None),
    errors.RevisionConflictError: (_Code.CONFLICT, None),
    errors.SequenceConflictError: (_Code.CONFLICT, None),
    errors.DuplicateScheduleError: (_Code.CONFLICT, None),
    errors.KeyInUseError: (_Code.ABORTED, 1.0),
    errors.TaskCancelledError: (_Code.ABORTED, None),
    errors.RunCancelledError: (_Code.ABORTED, None),
    errors.RunReplacedError: (_Code.CONFLICT, None),
    errors.RunEndedError: (_Code.CONFLICT, None),
    errors.QuarantinedError: (_Code.FAILED_PRECONDITION, None),
    errors.MailboxFullError: (_Code.RESOURCE_EXHAUSTED, 1.0),
    errors.QueueFullError: (_Code.RESOURCE_EXHAUSTED, 1.0),
    errors.StreamFullError: (_Code.RESOURCE_EXHAUSTED, 1.0),
    errors.ToolBusyError: (_Code.RESOURCE_EXHAUSTED, 1.0),
    errors.StoreBusyError: (_Code.RESOURCE_EXHAUSTED, 1.0),
    errors.BudgetExceededError: (_Code.RESOURCE_EXHAUSTED, None),
    errors.CallDepthError: (_Code.RESOURCE_EXHAUSTED, None),
    errors.MissingExtraError: (_Code.UNIMPLEMENTED, None),
    errors.NoRespondersError: (_Code.UNAVAILABLE, 5.0),
    errors.AgentStoppedError: (_Code.UNAVAILABLE, 5.0),
    errors.AgentPausedError: (_Code.UNAVAILABLE, 5.0),
    errors.BrokerUnavailableError: (_Code.UNAVAILABLE, 5.0),
    errors.ConnectionLostError: (_Code.UNAVAILABLE, 5.0),
    errors.JetStreamUnavailableError: (_Code.UNAVAILABLE, 5.0),
    errors.PublishTimeoutError: (_Code.UNAVAILABLE, 5.0),
    errors.StoreUnavailableError: (_Code.UNAVAILABLE, 5.0),
    errors.DeadlineExceededError: (_Code.DEADLINE_EXCEEDED, None),
    errors.StreamIdleError: (_Code.DEADLINE_EXCEEDED, None),
    errors.TaskExpiredError: (_Code.DEADLINE_EXCEEDED, None),
    errors.ToolTimeoutError: (_Code.DEADLINE_EXCEEDED, None),
}
"""Code and `Retry-After` in seconds; an error that has a `retry_after` of its own says it itself."""

_STATUS_OF_TYPE: dict[type[AgentMeshError], int] = {errors.PayloadTooLargeError: 413}
_CODE_OF_STATUS = {404: _Code.NOT_FOUND, 405: _Code.UNIMPLEMENTED}


def refused(
    code: ErrorCode, message: str, *, status: int | None = None, retry_after: float | None = None, **details: Any
) -> HttpError:
    """An `HttpError` with the status that belongs to its code, unless another one says it better."""
    headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
    return HttpError(status or STATUS[code], code, message, details, headers)


def explained(error: BaseException, *, debug: bool = False) -> HttpError:
    """What a caller is told about an error: never a trace, and of a handler's own failure only its type.

    Args:
        error: What happened.
        debug: Tell what the failing handler said, too.
    """
    if isinstance(error, HttpError):
        return error
    if isinstance(error, HTTPException):
        code = _CODE_OF_STATUS.get(error.status_code, _Code.INVALID_ARGUMENT)
        return HttpError(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, RemoteError):
        return _remote(error, debug)
    if isinstance(error, ModelError) and error.code in ErrorCode.__members__:
        return _model(error)
    if not isinstance(error, AgentMeshError):
        return refused(_Code.INTERNAL, "something went wrong here; the log has it under this request id")
    for kind in type(error).__mro__:
        if kind in TABLE:
            code, pause = TABLE[kind]
            pause = getattr(error, "retry_after", pause)
            return refused(code, str(error), status=_STATUS_OF_TYPE.get(kind), retry_after=pause, **_details(error))
    pause = getattr(error, "retry_after", None)
    if pause is not None:
        return refused(_Code.UNAVAILABLE, str(error), retry_after=pause, **_details(error))
    name = type(error).__name__  # its words may be those of a handler, a tool or a step that failed
    said = str(error) if debug else f"it failed with {name}; the log of its node says why"
    return refused(_Code.INTERNAL, said, **_details(error))


_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def openai_document(error: HttpError) -> dict[str, Any]:
    """An error as clients of the OpenAI API know it, for paths below `/v1/`."""
    return {
        "error": {
            "message": error.message,
            "type": _OPENAI_TYPES.get(error.status, "server_error"),
            "param": error.details.get("parameter"),
            "code": error.details.get("openai_code") or str(error.code),
        }
    }


def _model(error: ModelError) -> HttpError:
    pause = error.retry_after if error.retry_after > 0 else None
    refusal = refused(ErrorCode(error.code), error.message, retry_after=pause, **_details(error))
    refusal.details |= error.details
    return refusal


def _remote(error: RemoteError, debug: bool) -> HttpError:
    details: dict[str, Any] = {"agent": error.agent, "error_type": error.error_type}
    if error.error_type == "Reject":  # said on purpose, to whoever asks
        return refused(_Code.FAILED_PRECONDITION, error.message, **details)
    if error.error_type == "Retry":
        return refused(_Code.UNAVAILABLE, str(error), retry_after=1.0, **details)
    said = f": {error.message}" if debug else "; the log of its node says why"
    return refused(_Code.INTERNAL, f"agent {error.agent!r} failed with {error.error_type}{said}", **details)


def _details(error: AgentMeshError) -> dict[str, Any]:
    details: dict[str, Any] = {"error_type": type(error).__name__}
    if isinstance(error, NoSuchAgentError) and error.near:
        details["did_you_mean"] = error.near
    return details
