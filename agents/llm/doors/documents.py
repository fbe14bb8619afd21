"""The messages of `ai_integration.v1` as documents: their JSON form, and the measure for what a request may contain.

Field names are those of the `.proto` files; the camel-case forms of protobuf's JSON mapping are understood, too.
Unknown fields are errors, null is the same as nothing, and what was not set is None: 0 is something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator
from pydantic.alias_generators import to_camel

from agentmesh.chat import ChatMessage

ROLES = ("ROLE_UNSPECIFIED", "SYSTEM", "USER", "ASSISTANT", "TOOL")


def _role(value: Any) -> Any:
    """By number, or by name in any case."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(ROLES):
            raise ValueError(f"there is no role {value}")
        return ROLES[value]
    if isinstance(value, str):
        if value.upper() not in ROLES:
            raise ValueError(f"there is no role {value!r:.40}: {', '.join(ROLES[1:])}")
        return value.upper()
    return value


def _moment(value: Any) -> Any:
    """As text, so that nothing of its precision is lost on the way back."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and value:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("a time needs a zone: 2026-11-28T14:00:00Z")
    return value


UInt32 = Annotated[int, Field(ge=0, lt=2**32)]
Double = Annotated[float, Field(allow_inf_nan=False)]


class Document(BaseModel):
    """What they have in common."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, loc_by_alias=False
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {name: value for name, value in data.items() if value is not None}
        return data

    def plain(self) -> dict[str, Any]:
        """Only what was set."""
        return self.model_dump(exclude_none=True, exclude_unset=True)


class MetaDocument(Document):
    request_id: str = ""
    trace_id: str = ""
    client_id: str = ""
    user_id: str = ""
    tenant_id: str = ""
    timestamp: Annotated[str | None, BeforeValidator(_moment)] = None
    idempotency_key: str = ""
    labels: dict[str, str] = {}


class ChatMessageDocument(Document):
    role: Annotated[str, BeforeValidator(_role)] = ROLES[0]
    content: str = ""
    name: str = ""

    def message(self) -> ChatMessage:
        role = "user" if self.role == ROLES[0] else self.role.lower()
        call = self.name or None if role == "tool" else None
        return ChatMessage.model_validate(
            {"role": role, "content": self.content, "name": self.name or None, "tool_call_id": call}
        )


class ChatMessagesDocument(Document):
    messages: list[ChatMessageDocument] = []


class ParametersDocument(Document):
    temperature: Double | None = None
    top_p: Double | None = None
    max_tokens: UInt32 | None = None
    top_k: UInt32 | None = None
    presence_penalty: Double | None = None
    frequency_penalty: Double | None = None
    stop: list[str] = []
    stream: StrictBool | None = None


class RequestDocument(Document):
    """`LLMInferenceRequest`."""

    meta: MetaDocument = MetaDocument()
    model_id: str = ""
    prompt: str | None = None
    chat_messages: ChatMessagesDocument | None = None
    params: ParametersDocument = ParametersDocument()
    context: dict[str, Any] = {}

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Self:
        if self.prompt is not None and self.chat_messages is not None:
            raise ValueError("give prompt or chat_messages, one of them")
        if self.prompt is None and self.chat_messages is None:
            raise ValueError("there is nothing to answer: give prompt or chat_messages")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt must not be empty")
        if self.chat_messages is not None and not self.chat_messages.messages:
            raise ValueError("chat_messages must not be empty")
        return self


DOCUMENTS = (MetaDocument, ChatMessageDocument, ChatMessagesDocument, ParametersDocument, RequestDocument)
