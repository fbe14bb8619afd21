"""The agent `llm`: takes requests for language models from every door, and answers them by one pipeline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

from pydantic import ValidationError

from agentmesh.agent import Agent, handler
from agentmesh.agents.llm.backends import ModelBackend
from agentmesh.agents.llm.doors import Doors
from agentmesh.agents.llm.messages import (
    Generate,
    GenerationParameters,
    ListModels,
    LLMPart,
    LLMRequest,
    LLMResponse,
    ModelStatus,
)
from agentmesh.agents.llm.pipeline import Pipeline
from agentmesh.agents.llm.routing import Table
from agentmesh.chat import Chat, ChatPart
from agentmesh.config import LLMSettings, ModelSettings
from agentmesh.errors import InvalidMessageError, Retry
from agentmesh.messages import Prompt

MAY_PASS = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNKNOWN"})
"""Codes after which a job is tried again."""

_REQUEST_PARAMS = ("tools", "tool_choice", "response_format", "priority", "wait", "context", "cache")


class LLMGateway(Agent):
    """Gateway to language models: routes, retries, fallbacks, caches, limits, and a log of every call."""

    name = "llm"
    concurrency: ClassVar[int] = 1536
    """More than may wait at limits (`[llm] queue`), so that those who wait do not hold up the others."""
    mailbox_size: ClassVar[int] = 2048

    def __init__(
        self,
        models: Mapping[str, ModelSettings | ModelBackend | Mapping[str, Any]] | None = None,
        llm: LLMSettings | Mapping[str, Any] | None = None,
    ) -> None:
        """Without arguments there is one model, `default`, which works offline.

        Args:
            models: Their settings by name, as in `[models.NAME]`, or backends.
            llm: As in `[llm]`.

        Raises:
            ConfigError: The settings contradict each other.
        """
        settings = llm if isinstance(llm, LLMSettings) else LLMSettings.model_validate(llm or {})
        self._table = Table(models or {}, settings)
        self._settings = settings
        self._pipeline: Pipeline
        self._doors: Doors | None = None

    async def on_start(self) -> None:
        self._pipeline = Pipeline(self.mesh.transport, self.mesh.subjects, self._table, self._settings)
        await self._pipeline.start()
        if self._settings.doors.enabled:
            self._doors = Doors(self.mesh, self.generate, self._settings.doors)
            await self._doors.open()

    async def on_stop(self) -> None:
        if self._doors is not None:
            await self._doors.close()
        await self._pipeline.stop()

    def remark(self) -> str:
        left_alone = [model.name for model in self._pipeline.models() if model.state != "closed"]
        return f"left alone after failures: {', '.join(left_alone)}" if left_alone else ""

    async def generate(self, request: LLMRequest, tenant: str = "") -> AsyncGenerator[LLMPart, None]:
        """The one way to an answer: its parts, the last a `finish` with the fields of `LLMResponse`.

        Never raises for what goes wrong: that is in the last part. Closing the iterator cancels the call, unless
        others wait for the same answer.

        Args:
            request: What to answer.
            tenant: On whose account; empty for this mesh's.
        """
        async with aclosing(self._pipeline.run(request, tenant or self.mesh.subjects.tenant)) as parts:
            async for part in parts:
                yield part

    async def respond(self, request: LLMRequest, tenant: str = "") -> LLMResponse:
        """The whole answer, when it is there; what went wrong is in its `error`."""
        last: LLMPart | None = None
        async with aclosing(self.generate(request, tenant)) as parts:
            async for part in parts:
                last = part
        assert last is not None, "a pipeline ends with a finish"
        return last.response()

    @handler
    async def on_request(self, request: LLMRequest) -> AsyncIterator[LLMPart]:
        async with aclosing(self._pipeline.run(request, self.mesh.subjects.tenant)) as parts:
            async for part in parts:
                yield part

    @handler
    async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
        request = chat_request(chat)
        async with aclosing(self._pipeline.run(request, self.mesh.subjects.tenant)) as parts:
            async for part in parts:
                if not part.is_final:
                    yield ChatPart(type=part.type, content=part.content, data=part.data)
                    continue
                response = part.response().raise_for_error()
                yield ChatPart(type="usage", data=response.usage.model_dump())
                yield ChatPart(type="finish", data={"finish_reason": response.finish_reason, "model": response.model})

    @handler
    async def on_prompt(self, prompt: Prompt) -> AsyncIterator[str]:
        try:
            request = LLMRequest(prompt=prompt.text)
        except ValidationError:
            raise InvalidMessageError("there is nothing to answer: the text is empty") from None
        async with aclosing(self._pipeline.run(request, self.mesh.subjects.tenant)) as parts:
            async for part in parts:
                if part.is_final:
                    part.response().raise_for_error()
                elif part.type == "text":
                    yield part.content

    @handler
    async def on_job(self, job: Generate) -> LLMResponse:
        response = await self.respond(job.request())
        if response.error is not None and response.error.code.value in MAY_PASS:
            raise Retry(response.error.retry_after or None, str(response.error.raised()))
        return response

    @handler
    async def on_models(self, question: ListModels) -> list[ModelStatus]:
        return self._pipeline.models()


def chat_request(chat: Chat) -> LLMRequest:
    """A chat as a request; its `params` by their OpenAI names, of which those that concern nobody are left out.

    Raises:
        InvalidMessageError: It cannot be one.
    """
    known = {name: chat.params[name] for name in GenerationParameters.model_fields if chat.params.get(name) is not None}
    if chat.params.get("max_completion_tokens") is not None:
        known.setdefault("max_tokens", chat.params["max_completion_tokens"])
    if isinstance(known.get("stop"), str):
        known["stop"] = [known["stop"]]
    rest = {name: chat.params[name] for name in _REQUEST_PARAMS if chat.params.get(name) is not None}
    try:
        return LLMRequest(
            model=chat.model, messages=chat.messages, params=GenerationParameters.model_validate(known), **rest
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "chat"
        raise InvalidMessageError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
