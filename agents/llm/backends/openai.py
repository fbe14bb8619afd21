"""Any server that speaks the OpenAI chat API, through the `openai` library (extra `llm`).

Options beside the settings of the model: `stream = false` for servers that cannot, `usage = false` for those that do
not know `stream_options`, `headers`, and `body` for fields that the API does not have.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any

from agentmesh.agents.llm.backends.base import ModelCall
from agentmesh.agents.llm.backends.chat_completions import Assembly, body_of, failure
from agentmesh.agents.llm.messages import LLMPart
from agentmesh.config import ModelSettings
from agentmesh.errors import ConfigError, MissingExtraError

_THEIRS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "json")
"""Modules whose errors are about the server and the way to it."""
_OPTIONS = frozenset({"stream", "usage", "headers", "body"})


class OpenAIBackend:
    """See the module."""

    name = "openai"

    def __init__(self, name: str, settings: ModelSettings) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError("openai", "llm") from error
        unknown = sorted(settings.options.keys() - _OPTIONS)
        if unknown:
            raise ConfigError(
                f"models.{name}.options.{unknown[0]}", f"unknown; there are {', '.join(sorted(_OPTIONS))}"
            )
        for library in ("httpx", "httpx2", "openai"):  # they log addresses, which may have credentials in them
            if logging.getLogger(library).level == logging.NOTSET:
                logging.getLogger(library).setLevel(logging.WARNING)
        self._model = name
        self._options = settings.options
        self._secret = settings.api_key
        self._timeout = openai.Timeout
        self._client = openai.AsyncOpenAI(
            api_key=settings.api_key or "none",  # servers of one's own often want none
            base_url=settings.base_url,
            max_retries=0,
            timeout=None,  # the pipeline watches the time
            default_headers=settings.options.get("headers"),
        )

    async def generate(self, call: ModelCall) -> AsyncGenerator[LLMPart, None]:
        body: dict[str, Any] = body_of(call)
        body["extra_body"] = {**self._options.get("body", {}), **body.get("extra_body", {})} or None
        body["timeout"] = self._timeout(None, connect=call.connect)
        assembly = Assembly()
        try:
            if not self._options.get("stream", True):
                whole = await self._client.chat.completions.create(**body)
                for part in assembly.take(whole):
                    yield part
            else:
                if self._options.get("usage", True):
                    body["stream_options"] = {"include_usage": True}
                async with await self._client.chat.completions.create(**body, stream=True) as chunks:
                    async for chunk in chunks:
                        for part in assembly.take(chunk):
                            yield part
        except Exception as error:  # the edge to foreign code: what breaks a stream is not among the library's errors
            if type(error).__module__.partition(".")[0] not in _THEIRS:
                raise
            raise failure(error, self._model, self._secret) from None
        for part in assembly.end():
            yield part

    async def close(self) -> None:
        await self._client.close()
