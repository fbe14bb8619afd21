"""What is asked of a language model, and what comes back: the same through every door.

    async for part in mesh.stream("llm", LLMRequest(prompt="Tell me about NATS")):
        print(part.content, end="")

The last part is a `finish`, and its `data` are the fields of `LLMResponse`: also when there was an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentmesh.chat import ChatMessage
from agentmesh.codes import ErrorCode
from agentmesh.errors import ModelError
from agentmesh.ids import new_id
from agentmesh.messages import Request, Task

Priority = Literal["high", "normal", "low"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerationParameters(_Part):
    """How to generate. None: not said, which is something else than 0."""

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, ge=0)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: list[str] = Field(default_factory=list)
    stream: bool | None = None
    """Whether whoever asks wants the answer in pieces; a matter of the door, no model sees it."""
    seed: int | None = None

    def given(self) -> dict[str, Any]:
        """What was said that concerns a model, by its name in the OpenAI API."""
        said = self.model_dump(exclude_none=True, exclude={"stream"})
        if not self.stop:
            del said["stop"]
        return said


class Meta(_Part):
    """About the request itself."""

    request_id: str = ""
    trace_id: str = ""
    client_id: str = ""
    user_id: str = ""
    tenant_id: str = ""
    timestamp: datetime | None = None
    idempotency_key: str = ""
    labels: dict[str, str] = Field(default_factory=dict)


class CachePolicy(_Part):
    """That the answer may be one that was given before, and may be given again."""

    ttl: float | None = Field(default=None, gt=0)
    """Seconds for which the answer may be given again; None: as configured."""
    key: str = Field(default="", max_length=256)
    """First part of the entry's key, for invalidating by key or prefix; empty: the model's name."""
    tags: list[str] = Field(default_factory=list, max_length=32)
    """For invalidating by tag."""
    read: bool = True
    """False: the model is asked, whatever was stored."""
    write: bool = True
    """False: this answer is not stored."""


class TokenUsage(_Part):
    """Tokens of one call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    @classmethod
    def of(cls, prompt: int, completion: int) -> Self:
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class LLMError(_Part):
    """Why there is no answer, or no whole one."""

    code: ErrorCode
    message: str
    details: dict[str, str] = Field(default_factory=dict)
    retry_after: float = 0.0
    """Seconds; 0: not known."""

    @classmethod
    def of(cls, error: ModelError) -> Self:
        code = ErrorCode(error.code) if error.code in ErrorCode.__members__ else ErrorCode.UNKNOWN
        details = {**error.details, **({"backend": error.backend} if error.backend else {})}
        return cls(code=code, message=error.message, details=details, retry_after=error.retry_after)

    def raised(self) -> ModelError:
        """The same as an exception."""
        details = {name: value for name, value in self.details.items() if name != "backend"}
        return ModelError(self.code.value, self.message, self.details.get("backend", ""), self.retry_after, details)


class LLMPart(BaseModel):
    """A piece of an answer as it is made."""

    model_config = ConfigDict(frozen=True)

    type: str = "text"
    """`text`, `reasoning`, `tool_call` (`data`: id, type, function with name and arguments), and at last `finish`."""
    content: str = ""
    data: Any = None

    @property
    def is_final(self) -> bool:
        return self.type == "finish"

    def response(self) -> LLMResponse:
        """Of the last part: the whole answer."""
        return LLMResponse.model_validate(self.data)


class LLMResponse(_Part):
    """A whole answer, or why there is none."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    request_id: str = ""
    generation_id: str = ""
    model: str = ""
    """As the backend calls it."""
    backend: str = ""
    """Which of the configured models it was."""
    text: str = ""
    messages: list[ChatMessage] = Field(default_factory=list)
    """The assistant's message, if messages were sent or tools are called."""
    finish_reason: str = ""
    """`stop`, `length`, `tool_calls`, `content_filter`, or `error`."""
    usage: TokenUsage = TokenUsage()
    cost: float = 0.0
    """US dollars."""
    latency_ms: float = 0.0
    cached: bool = False
    cache_key: str = ""
    """By which the stored answer can be invalidated; empty if it is not stored."""
    error: LLMError | None = None

    def raise_for_error(self) -> Self:
        """Itself, if there was no error.

        Raises:
            ModelError: There was.
        """
        if self.error is not None:
            raise self.error.raised()
        return self


class _Generation(BaseModel):
    """What `LLMRequest` and `Generate` share."""

    request_id: str = Field(default_factory=new_id)
    meta: Meta = Field(default_factory=Meta)
    model: str = ""
    """A route or a configured model; empty for the usual one."""
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    params: GenerationParameters = Field(default_factory=GenerationParameters)
    tools: list[dict[str, Any]] | None = None
    """As in the OpenAI chat API."""
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    context: dict[str, Any] = Field(default_factory=dict)
    """Data for the model beside the conversation, such as documents."""
    priority: Priority = "normal"
    cache: CachePolicy | None = None
    wait: bool = False
    """When a limit is reached: wait for a turn instead of being refused."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of them")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt must not be empty")
        if self.messages is not None and not self.messages:
            raise ValueError("messages must not be empty")
        return self

    def conversation(self) -> list[ChatMessage]:
        """The messages, or the prompt as the only one of them."""
        if self.messages is not None:
            return self.messages
        return [ChatMessage(role="user", content=self.prompt or "")]


class LLMRequest(_Generation, Request[LLMPart], redact=("prompt", "messages", "context")):
    """Generate something; streamed."""


class Generate(_Generation, Task[LLMResponse], redact=("prompt", "messages", "context"), time_limit=600.0):
    """The same as a durable job: accepted is answered, whatever crashes. An error is in the result only if it is
    final; what may pass is tried again."""

    def request(self) -> LLMRequest:
        return LLMRequest(**{name: getattr(self, name) for name in _Generation.model_fields})


class ModelStatus(_Part):
    """One configured model, as one replica of the gateway sees it."""

    name: str
    backend: str
    """`offline`, `openai`, `litellm` or a class."""
    model: str = ""
    """As the backend calls it."""
    state: str = "closed"
    """Of its circuit breaker: `closed` is good, `open`, `half-open`."""
    retry_after: float = 0.0
    calls: int = 0
    failed: int = 0
    under_way: int = 0
    waiting: int = 0
    routes: list[str] = Field(default_factory=list)
    """Names under which requests come to it."""
    fallbacks: list[str] = Field(default_factory=list)
    problem: str = ""
    """Why the last call failed; empty when it did not."""


class ListModels(Request[list[ModelStatus]]):
    """Which models there are, and how they are."""


def error_part(request: Mapping[str, Any] | LLMRequest, error: ModelError) -> LLMPart:
    """The only part of an answer that could not begin."""
    request_id = request.request_id if isinstance(request, LLMRequest) else str(request.get("request_id", ""))
    response = LLMResponse(request_id=request_id, finish_reason="error", error=LLMError.of(error))
    return LLMPart(type="finish", data=response.model_dump(mode="json"))
