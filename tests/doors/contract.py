"""The protobuf contract written down a second time, so that a change of the files is noticed."""

from __future__ import annotations

CODES = [
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CONFLICT",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
]
ROLES = ["ROLE_UNSPECIFIED", "SYSTEM", "USER", "ASSISTANT", "TOOL"]

_DOUBLE, _UINT, _BOOL = "google.protobuf.DoubleValue", "google.protobuf.UInt32Value", "google.protobuf.BoolValue"
_META, _ERROR, _USAGE = "common.v1.Meta", "common.v1.Error", "common.v1.TokenUsage"
_CHAT, _MESSAGE = "ai_integration.v1.ChatMessages", "ai_integration.v1.ChatMessage"

FIELDS = {
    "common.v1.Meta": [
        (1, "request_id", "string", ""),
        (2, "trace_id", "string", ""),
        (3, "client_id", "string", ""),
        (4, "user_id", "string", ""),
        (5, "tenant_id", "string", ""),
        (6, "timestamp", "google.protobuf.Timestamp", ""),
        (7, "idempotency_key", "string", ""),
        (8, "labels", "map<string, string>", ""),
    ],
    "common.v1.Error": [
        (1, "code", "common.v1.Error.Code", ""),
        (2, "message", "string", ""),
        (3, "details", "map<string, string>", ""),
    ],
    "common.v1.TokenUsage": [
        (1, "prompt_tokens", "uint32", ""),
        (2, "completion_tokens", "uint32", ""),
        (3, "total_tokens", "uint32", ""),
    ],
    "common.v1.Pagination": [(1, "page_size", "uint32", ""), (2, "page_token", "string", "")],
    "ai_integration.v1.ChatMessage": [
        (1, "role", "ai_integration.v1.ChatMessage.Role", ""),
        (2, "content", "string", ""),
        (3, "name", "string", ""),
    ],
    "ai_integration.v1.ChatMessages": [(1, "messages", f"repeated {_MESSAGE}", "")],
    "ai_integration.v1.GenerationParameters": [
        (1, "temperature", _DOUBLE, ""),
        (2, "top_p", _DOUBLE, ""),
        (3, "max_tokens", _UINT, ""),
        (4, "top_k", _UINT, ""),
        (5, "presence_penalty", _DOUBLE, ""),
        (6, "frequency_penalty", _DOUBLE, ""),
        (7, "stop", "repeated string", ""),
        (8, "stream", _BOOL, ""),
    ],
    "ai_integration.v1.LLMInferenceRequest": [
        (1, "meta", _META, ""),
        (2, "model_id", "string", ""),
        (3, "prompt", "string", "input"),
        (4, "chat_messages", _CHAT, "input"),
        (5, "params", "ai_integration.v1.GenerationParameters", ""),
        (6, "context", "google.protobuf.Struct", ""),
    ],
    "ai_integration.v1.LLMInferenceResponse": [
        (1, "meta", _META, ""),
        (2, "generation_id", "string", ""),
        (3, "output_text", "string", "output"),
        (4, "chat_messages", _CHAT, "output"),
        (5, "finish_reason", "string", ""),
        (6, "usage", _USAGE, ""),
        (7, "error", _ERROR, ""),
    ],
    "ai_integration.v1.LLMStreamChunk": [
        (1, "meta", _META, ""),
        (2, "generation_id", "string", ""),
        (3, "index", "uint32", ""),
        (4, "is_final", "bool", ""),
        (5, "output_text_delta", "string", "delta"),
        (6, "message_delta", _MESSAGE, "delta"),
        (7, "finish_reason", "string", ""),
        (8, "usage", _USAGE, ""),
        (9, "error", _ERROR, ""),
    ],
}
