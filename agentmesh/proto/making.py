"""Making protobuf messages from plain values, and their JSON form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from agentmesh.errors import InvalidMessageError
from agentmesh.ids import new_id, now
from agentmesh.proto.ai_integration_pb2 import (
    ChatMessage,
    ChatMessages,
    GenerationParameters,
    LLMInferenceRequest,
)
from agentmesh.proto.common_pb2 import Meta

M = TypeVar("M")

_WRAPPED = ("temperature", "top_p", "max_tokens", "top_k", "presence_penalty", "frequency_penalty", "stream")


def inference_request(
    prompt: str = "",
    *,
    messages: Iterable[tuple[str, str] | ChatMessage] = (),
    model: str = "",
    stop: Iterable[str] = (),
    context: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    **params: float | bool | None,
) -> LLMInferenceRequest:
    """A request for a prompt, or for messages such as `("user", "Hi")`.

    Args:
        prompt: The text; this or `messages`.
        messages: Pairs of role and content.
        model: Empty: the gateway's default.
        stop: The text ends before any of these.
        context: Plain data for the gateway and its backends.
        meta: Fields of `Meta`; `request_id` and `timestamp` are made unless given.
        params: `temperature`, `top_p`, `max_tokens`, `top_k`, `presence_penalty`, `frequency_penalty`, `stream`. None
            leaves one unset, which is not the same as 0.

    Raises:
        InvalidMessageError: There is no such parameter, or a value does not fit.
    """
    request = LLMInferenceRequest(meta=_meta(dict(meta or {})), model_id=model, params=_params(params, stop))
    chat = [one if isinstance(one, ChatMessage) else _chat_message(*one) for one in messages]
    if chat:
        request.chat_messages.CopyFrom(ChatMessages(messages=chat))
    if prompt:
        request.prompt = prompt
    if context is not None:
        request.context.update(dict(context))
    return request


def to_json(message: Message) -> str:
    """Its JSON form, with the names of the `.proto` files."""
    return str(json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None))


def from_json(kind: type[M], data: str | bytes) -> M:
    """The message in a JSON document; fields that are not in the `.proto` files are errors.

    Raises:
        InvalidMessageError: It is not one; says what is wrong.
    """
    message = kind()
    try:
        json_format.Parse(data, message)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessageError(f"{kind.__name__}: {error}") from error
    return message


def _meta(fields: dict[str, Any]) -> Meta:
    made = fields.pop("timestamp", None) or now()
    try:
        meta = Meta(**{"request_id": new_id(), **fields})
    except (ValueError, TypeError) as error:
        raise InvalidMessageError(f"meta: {error}") from error
    if isinstance(made, datetime):
        meta.timestamp.FromDatetime(made)
    else:
        meta.timestamp.CopyFrom(made)
    return meta


def _params(params: Mapping[str, float | bool | None], stop: Iterable[str]) -> GenerationParameters:
    made = GenerationParameters(stop=stop)
    for name, value in params.items():
        if name not in _WRAPPED:
            raise InvalidMessageError(f"there is no parameter {name!r}: {', '.join(_WRAPPED)}, stop")
        if value is not None:
            getattr(made, name).SetInParent()  # 0 is a value, too
            try:
                getattr(made, name).value = value
            except (ValueError, TypeError) as error:
                raise InvalidMessageError(f"{name}: {error}") from error
    return made


def _chat_message(role: str, content: str) -> ChatMessage:
    try:
        return ChatMessage(role=role.upper(), content=content)
    except ValueError as error:
        raise InvalidMessageError(f"role {role!r}: {error}") from error
