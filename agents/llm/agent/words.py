"""What the parts of an LLM agent tell each other: calls, replies, outcomes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from agentmesh.agents.llm.messages import LLMResponse, TokenUsage
from agentmesh.chat import ChatMessage

MAX_CALLS = 16
"""Tool calls of one reply that are looked at; more are refused."""

OUT_OF_TIME = "out_of_time"
"""Reason for which a reply ended that took all the time that was left."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Word(BaseModel):
    model_config = ConfigDict(frozen=True)


class ToolCall(_Word):
    """A tool that the model wants to use."""

    id: str
    """Unique within the answer; the signal of an approval is called after it."""
    name: str
    arguments: str = "{}"
    """JSON, as the model wrote it: nothing about it is certain."""

    def parsed(self) -> dict[str, Any]:
        """The arguments.

        Raises:
            ValueError: They are no JSON object.
        """
        values = json.loads(self.arguments or "{}")
        if not isinstance(values, dict):
            raise ValueError(f"arguments must be a JSON object, not {type(values).__name__}")
        return values

    def shown(self) -> Any:
        """The arguments for people: as data if they can be read."""
        try:
            return self.parsed()
        except ValueError:
            return self.arguments

    def wire(self) -> dict[str, Any]:
        """As in the OpenAI chat API."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolOutcome(_Word):
    """What came of a tool call: the model gets `content`, an error too."""

    content: str
    status: Literal["ok", "error", "refused", "denied"] = "ok"
    seconds: float = 0.0

    def message(self, call: ToolCall) -> ChatMessage:
        """As the model gets it: data in a message of its own, never part of the instructions."""
        return ChatMessage(role="tool", content=self.content, name=call.name, tool_call_id=call.id)

    @classmethod
    def problem(
        cls, kind: str, message: str, status: Literal["error", "refused", "denied"] = "error", seconds: float = 0.0
    ) -> ToolOutcome:
        """What went wrong, so that the model can do otherwise."""
        content = json.dumps({"error": {"type": kind, "message": message}}, ensure_ascii=False)
        return cls(content=content, status=status, seconds=seconds)


class Reply(_Word):
    """What a call of the model came to."""

    text: str = ""
    calls: list[ToolCall] = []
    usage: TokenUsage = TokenUsage()
    cost: float = 0.0
    finish_reason: str = "stop"
    model: str = ""
    seconds: float = 0.0

    def message(self) -> ChatMessage:
        """As part of the conversation with the model."""
        calls = [call.wire() for call in self.calls] or None
        return ChatMessage(role="assistant", content=self.text, tool_calls=calls)


class Approval(_Word):
    """What a person said about a call; also what `job.signal` may be given."""

    approved: bool
    reason: str = ""

    @classmethod
    def read(cls, value: Any) -> Approval:
        """Anything but a clear yes is a no."""
        if isinstance(value, bool):
            return cls(approved=value)
        if isinstance(value, str):
            return cls(approved=value.strip().lower() in ("approve", "approved", "yes", "true"))
        if isinstance(value, dict):
            yes = value.get("approved", value.get("approve", False))
            return cls(approved=yes is True, reason=str(value.get("reason", "")))
        return cls(approved=False)


class Ending(_Word):
    """How an answer ended."""

    text: str
    finish_reason: str
    """`stop`, `length` (also when a budget is used up), `content_filter`."""
    usage: TokenUsage
    cost: float = 0.0
    steps: int = 0
    budget: str = ""
    """Which budget is used up: `steps`, `tokens`, `cost` or `seconds`; empty if none is."""
    reason: str = ""
    """In words, when a budget ended it."""


def reply_of(response: LLMResponse, step: int, taken: Iterable[str], seconds: float) -> Reply:
    """A model's response, with ids for its calls that nothing else has."""
    known = set(taken)
    calls = []
    for message in response.messages:
        for number, raw in enumerate(message.tool_calls or (), 1):
            call = _call(raw, f"call_{step}_{number}", known)
            known.add(call.id)
            calls.append(call)
    return Reply(
        text=response.text,
        calls=calls,
        usage=response.usage,
        cost=response.cost,
        finish_reason=response.finish_reason or "stop",
        model=response.model,
        seconds=seconds,
    )


def _call(raw: Any, otherwise: str, known: set[str]) -> ToolCall:
    function = raw.get("function") if isinstance(raw, dict) else None
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments", "{}")
    given = raw.get("id") if isinstance(raw, dict) else None
    usable = isinstance(given, str) and _ID.fullmatch(given) is not None and given not in known
    return ToolCall(
        id=str(given) if usable else otherwise,
        name=str(function.get("name", "")),
        arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
    )
