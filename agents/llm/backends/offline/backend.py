"""The offline backend: decides what kind of answer is wanted, and streams it as tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

from agentmesh.agents.llm.backends.base import ModelCall
from agentmesh.agents.llm.backends.offline.tokens import count_messages, count_tokens, tokenize
from agentmesh.agents.llm.messages import LLMPart
from agentmesh.config import ModelSettings


class OfflineBackend:
    """See the package."""

    name = "offline"

    def __init__(self, name: str = "default", settings: ModelSettings | None = None) -> None:
        self._model = name

    async def generate(self, call: ModelCall) -> AsyncGenerator[LLMPart, None]:
        said = call.messages[-1].content
        answer = f"There is nothing here that I could answer this from: {said}"
        prompt = count_messages(call.messages) + (count_tokens(json.dumps(dict(call.context))) if call.context else 0)
        limit = call.params.max_tokens
        tokens = tokenize(answer)
        for token in tokens[:limit]:
            yield LLMPart(content=token)
            await asyncio.sleep(0)
        yield LLMPart(
            type="finish",
            data={
                "finish_reason": "stop" if limit is None or len(tokens) <= limit else "length",
                "usage": {"prompt_tokens": prompt, "completion_tokens": len(tokens[:limit])},
            },
        )

    async def close(self) -> None:
        """There is nothing to close."""
