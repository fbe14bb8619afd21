"""The protobuf contract of the model door: `.proto` files, and the code made from them.

    from agentmesh.proto import inference_request
    request = inference_request("Tell me about NATS", temperature=0.0, max_tokens=50)
    answer = await nc.request("svc.ai.llm.v1.infer", request.SerializeToString(), timeout=60)

The messages need `protobuf` (`agentmesh-nats[proto]`), and are imported when they are first used: everything else works
without it. `agentmesh proto export DIR` writes the `.proto` files for other languages. Code made from them, by whatever
protoc, can be imported beside this: it registers the same files under the same names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentmesh.errors import MissingExtraError
from agentmesh.proto.files import FILES, FINGERPRINT, export

if TYPE_CHECKING:
    from agentmesh.proto.ai_integration_pb2 import (
        ChatMessage,
        ChatMessages,
        GenerationParameters,
        LLMInferenceRequest,
        LLMInferenceResponse,
        LLMStreamChunk,
    )
    from agentmesh.proto.common_pb2 import Error, Meta, Pagination, TokenUsage
    from agentmesh.proto.making import from_json, inference_request, to_json

_HOMES = {
    **dict.fromkeys(("Error", "Meta", "Pagination", "TokenUsage"), "common_pb2"),
    **dict.fromkeys(("ChatMessage", "ChatMessages", "GenerationParameters"), "ai_integration_pb2"),
    **dict.fromkeys(("LLMInferenceRequest", "LLMInferenceResponse", "LLMStreamChunk"), "ai_integration_pb2"),
    **dict.fromkeys(("from_json", "inference_request", "to_json"), "making"),
}

__all__ = [
    "FILES",
    "FINGERPRINT",
    "ChatMessage",
    "ChatMessages",
    "Error",
    "GenerationParameters",
    "LLMInferenceRequest",
    "LLMInferenceResponse",
    "LLMStreamChunk",
    "Meta",
    "Pagination",
    "TokenUsage",
    "export",
    "from_json",
    "inference_request",
    "to_json",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import google.protobuf  # noqa: F401  # what is missing is this, and not the module that needs it
    except ImportError:
        raise MissingExtraError("protobuf", "proto") from None
    return getattr(import_module(f"{__name__}.{home}"), name)
