"""Asking the model, through the gateway to language models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from agentmesh.agents.llm.agent.spending import Spending
from agentmesh.agents.llm.agent.words import OUT_OF_TIME, Reply, reply_of
from agentmesh.agents.llm.messages import GenerationParameters, LLMPart, LLMRequest, LLMResponse, Meta
from agentmesh.chat import IDLE_TIMEOUT, ChatMessage, ChatPart
from agentmesh.client import Client
from agentmesh.errors import InvalidMessageError, ModelError

Emit = Callable[[ChatPart], Awaitable[None]]

_SHOWN = ("text", "reasoning", "citation")
"""Kinds of parts that readers get as they come."""


@dataclass(frozen=True)
class Wishes:
    """How the model is asked."""

    gateway: str = "llm"
    """The agent that is the gateway."""
    model: str = ""
    params: GenerationParameters = field(default_factory=GenerationParameters)
    response_format: dict[str, Any] | None = None

    def over(self, given: Mapping[str, Any], model: str = "") -> Wishes:
        """These, unless the caller wants something else. What is no parameter of a model is left alone.

        Raises:
            InvalidMessageError: A parameter has no such value.
        """
        known = {name: given[name] for name in GenerationParameters.model_fields if given.get(name) is not None}
        if given.get("max_completion_tokens") is not None:
            known.setdefault("max_tokens", given["max_completion_tokens"])
        if isinstance(known.get("stop"), str):
            known["stop"] = [known["stop"]]
        try:
            params = GenerationParameters(**{**self.params.given(), **known})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise InvalidMessageError(f"params.{problem['loc'][0]}: {problem['msg']}") from None
        wanted = given.get("response_format") or self.response_format
        return Wishes(self.gateway, model or self.model, params, wanted)


class Mind:
    """Asks the model.

    Args:
        mesh: The way to the gateway.
        wishes: How.
        spending: What is left.
    """

    def __init__(self, mesh: Client, wishes: Wishes, spending: Spending) -> None:
        self._mesh = mesh
        self._wishes = wishes
        self._spending = spending

    async def reply(
        self,
        step: int,
        messages: Sequence[ChatMessage],
        tools: Sequence[dict[str, Any]],
        taken: frozenset[str],
        emit: Emit,
    ) -> Reply:
        """One reply; what readers may see of it is emitted as it comes.

        Raises:
            ModelError: There is none.
        """
        began, seconds_left = time.monotonic(), self._spending.seconds_left
        text: list[str] = []
        try:
            async with asyncio.timeout(seconds_left):
                response = await self._response(self._request(messages, tools), text, emit)
        except TimeoutError:
            # What was said is kept; there is no time for more.
            return Reply(text="".join(text), finish_reason=OUT_OF_TIME, seconds=seconds_left or 0.0)
        return reply_of(response.raise_for_error(), step, taken, time.monotonic() - began)

    def _request(self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]) -> LLMRequest:
        wishes, left = self._wishes, self._spending.tokens_left
        params = wishes.params
        if left is not None:
            most = left if params.max_tokens is None else min(left, params.max_tokens)
            params = params.model_copy(update={"max_tokens": most})
        return LLMRequest(
            model=wishes.model,
            messages=list(messages),
            params=params,
            tools=list(tools) or None,
            response_format=wishes.response_format,
            meta=Meta(labels={"agent": self._mesh.identity}),
        )

    async def _response(self, request: LLMRequest, text: list[str], emit: Emit) -> LLMResponse:
        parts = self._mesh.stream(self._wishes.gateway, request, timeout=IDLE_TIMEOUT)
        async with aclosing(parts):
            async for part in parts:
                if part.is_final:
                    return part.response()
                if part.type in _SHOWN:
                    await self._shown(part, text, emit)
        raise ModelError("ABORTED", "the answer ended without saying how")

    async def _shown(self, part: LLMPart, text: list[str], emit: Emit) -> None:
        if part.type == "text":
            text.append(part.content)
        await emit(ChatPart(type=part.type, content=part.content, data=part.data))
