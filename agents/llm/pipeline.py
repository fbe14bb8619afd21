"""The life of a request to a language model: `Pipeline.run`, top to bottom."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import perf_counter
from typing import Any

from agentmesh.agents.llm.backends import ModelBackend, ModelCall, make_backend
from agentmesh.agents.llm.messages import (
    LLMError,
    LLMPart,
    LLMRequest,
    LLMResponse,
    ModelStatus,
    TokenUsage,
    error_part,
)
from agentmesh.agents.llm.routing import Table
from agentmesh.chat import ChatMessage
from agentmesh.config import LLMSettings
from agentmesh.errors import ModelError
from agentmesh.ids import new_id
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport


class Pipeline:
    """See the module."""

    def __init__(self, transport: Transport, subjects: Subjects, table: Table, settings: LLMSettings) -> None:
        self._transport = transport
        self._subjects = subjects
        self._table = table
        self._settings = settings
        self._backends: dict[str, ModelBackend] = dict(table.backends)

    async def start(self) -> None:
        """Make the backends."""
        for name, model in self._table.models.items():
            if name not in self._backends:
                self._backends[name] = make_backend(name, model)

    async def stop(self) -> None:
        """Close the backends."""
        for backend in self._backends.values():
            await backend.close()

    async def run(self, request: LLMRequest, tenant: str) -> AsyncGenerator[LLMPart, None]:
        """The parts of the answer; the last is a `finish` with the fields of `LLMResponse`."""
        began = perf_counter()
        try:
            route = self._table.resolve(request.model)
        except ModelError as problem:
            yield error_part(request, problem)
            return
        name = route.models[0]
        call = ModelCall(
            model=self._table.models[name].model or name,
            messages=request.conversation(),
            params=request.params,
            tools=request.tools,
            tool_choice=request.tool_choice,
            response_format=request.response_format,
            context=request.context,
        )
        text: list[str] = []
        calls: list[dict[str, Any]] = []
        end: dict[str, Any] = {}
        error: ModelError | None = None
        try:
            async with aclosing(self._backends[name].generate(call)) as parts:  # type: ignore[type-var]
                async for part in parts:
                    if part.is_final:
                        end = part.data
                        break
                    if part.type == "text":
                        text.append(part.content)
                    elif part.type == "tool_call":
                        calls.append(part.data)
                    yield part
        except ModelError as problem:
            error = problem
        usage = end.get("usage") or {}
        whole = "".join(text)
        response = LLMResponse(
            request_id=request.request_id,
            generation_id=end.get("id") or new_id(),
            model=end.get("model") or call.model,
            backend=name,
            text=whole,
            messages=[ChatMessage(role="assistant", content=whole, tool_calls=calls or None)],
            finish_reason="error" if error else end.get("finish_reason", "stop"),
            usage=TokenUsage.of(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)),
            latency_ms=(perf_counter() - began) * 1000,
            error=None if error is None else LLMError.of(error),
        )
        yield LLMPart(type="finish", data=response.model_dump(mode="json"))

    def models(self) -> list[ModelStatus]:
        return [
            ModelStatus(
                name=name,
                backend=model.backend,
                model=model.model or name,
                routes=self._table.routes_to(name),
                fallbacks=model.fallbacks,
            )
            for name, model in self._table.models.items()
        ]
