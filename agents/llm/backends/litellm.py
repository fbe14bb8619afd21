"""Whatever `litellm` can talk to (extra `litellm`). The model is named as litellm names it: `anthropic/claude-…`.

Options of the model are passed on to `litellm.acompletion`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any

from agentmesh.agents.llm.backends.base import ModelCall
from agentmesh.agents.llm.backends.chat_completions import Assembly, body_of, failure
from agentmesh.agents.llm.messages import LLMPart
from agentmesh.config import ModelSettings
from agentmesh.errors import MissingExtraError


class LiteLLMBackend:
    """See the module."""

    name = "litellm"

    def __init__(self, name: str, settings: ModelSettings) -> None:
        try:
            import litellm
        except ImportError as error:
            raise MissingExtraError("litellm", "litellm") from error
        litellm.telemetry = False
        litellm.suppress_debug_info = True
        for library in ("LiteLLM", "httpx"):  # they log addresses and requests
            if logging.getLogger(library).level == logging.NOTSET:
                logging.getLogger(library).setLevel(logging.WARNING)
        self._litellm: Any = litellm
        self._model = name
        self._settings = settings

    async def generate(self, call: ModelCall) -> AsyncGenerator[LLMPart, None]:
        body = {**self._settings.options, **body_of(call)}
        body |= body.pop("extra_body", None) or {}
        assembly = Assembly()
        try:
            chunks = await self._litellm.acompletion(
                **body,
                stream=True,
                stream_options={"include_usage": True},
                api_key=self._settings.api_key,
                api_base=self._settings.base_url,
                num_retries=0,
                drop_params=True,
            )
            async for chunk in chunks:
                for part in assembly.take(chunk):
                    yield part
        except Exception as error:  # the edge to foreign code: each provider raises what it likes
            raise failure(error, self._model, self._settings.api_key) from None
        for part in assembly.end():
            yield self._priced(part, call) if part.is_final else part

    async def close(self) -> None:
        """Its clients are shared and stay open."""

    def _priced(self, part: LLMPart, call: ModelCall) -> LLMPart:
        """With the cost that litellm knows, unless the settings say what a token costs."""
        price, usage = self._settings.price, part.data.get("usage")
        if price.prompt or price.completion or not usage:
            return part
        try:
            prompt, completion = self._litellm.cost_per_token(model=call.model, **usage)
        except Exception:  # the edge to foreign code: it does not know the model
            return part
        return part.model_copy(update={"data": {**part.data, "cost": prompt + completion}})
