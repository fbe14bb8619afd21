"""What a backend is: something that turns a conversation into the parts of an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from agentmesh.agents.llm.messages import GenerationParameters, LLMPart
from agentmesh.chat import ChatMessage


@dataclass(frozen=True)
class ModelCall:
    """One call of a model."""

    model: str
    """As the backend calls it."""
    messages: list[ChatMessage] = field(repr=False)
    params: GenerationParameters = field(default_factory=GenerationParameters)
    tools: list[dict[str, Any]] | None = field(default=None, repr=False)
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = field(default=None, repr=False)
    context: Mapping[str, Any] = field(default_factory=dict, repr=False)
    connect: float = 5.0
    """Seconds until the server must be reached. All other time is watched by the pipeline."""
    user: str = ""
    request_id: str = ""


@runtime_checkable
class ModelBackend(Protocol):
    """Talks to one kind of model. One object per configured model and process."""

    name: str
    """Of the kind, such as `openai`."""

    def generate(self, call: ModelCall) -> AsyncIterator[LLMPart]:
        """The parts of the answer, as they come.

        The last one is a `finish` with a dict in `data`: `finish_reason` (`stop`, `length`, `tool_calls` …), `usage`
        (`prompt_tokens`, `completion_tokens`), and if they are known `model`, `id` and `cost` (US dollars).

        Raises:
            ModelError: There is no answer, or no more of it. Its code decides whether it is tried again.
        """
        ...

    async def close(self) -> None:
        """Give back connections. No call is under way."""
        ...
