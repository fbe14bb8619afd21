"""The offline backend: decides what kind of answer is wanted, and streams it as tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from agentmesh.agents.llm.backends.base import ModelCall
from agentmesh.agents.llm.backends.offline.answer import answer, looked_up, summary
from agentmesh.agents.llm.backends.offline.material import Material, plain, sort_out
from agentmesh.agents.llm.backends.offline.rank import pieces_of
from agentmesh.agents.llm.backends.offline.schema import Filler
from agentmesh.agents.llm.backends.offline.tokens import count_messages, count_tokens, tokenize
from agentmesh.agents.llm.backends.offline.tools import as_part, wanted
from agentmesh.agents.llm.messages import LLMPart
from agentmesh.config import ModelSettings
from agentmesh.ids import new_id

LARGE = 10_000
"""Characters from which on a thread does the reading: others are not to wait for it."""

AT_ONCE = 16
"""Tokens after which others get a turn."""


class OfflineBackend:
    """See the package.

    Options: `delay`, seconds before each token, for demonstrations; 0 by default.
    """

    name = "offline"

    def __init__(self, name: str = "default", settings: ModelSettings | None = None) -> None:
        self._delay = float((settings.options if settings else {}).get("delay", 0.0))

    async def generate(self, call: ModelCall) -> AsyncGenerator[LLMPart, None]:
        large = sum(len(message.content) for message in call.messages) > LARGE or bool(call.context)
        prompt, calls, text = await asyncio.to_thread(_made, call) if large else _made(call)
        if calls:
            for one in calls:
                yield LLMPart(type="tool_call", data=one)
            yield _finish("tool_calls", prompt, sum(count_tokens(json.dumps(one["function"])) for one in calls))
            return
        tokens, reason = _limited(text, call.params.stop, call.params.max_tokens)
        for number, token in enumerate(tokens):
            if self._delay or number % AT_ONCE == 0:
                await asyncio.sleep(self._delay)
            yield LLMPart(content=token)
        yield _finish(reason, prompt, len(tokens))

    async def close(self) -> None:
        """There is nothing to close."""


def _made(call: ModelCall) -> tuple[int, list[dict[str, Any]], str]:
    """Tokens of the question, the tools to call, and if there are none the answer."""
    material = sort_out(call)
    calls = [as_part(tool, arguments, f"call_{new_id()}") for tool, arguments in wanted(call, material)]
    return prompt_tokens(call), calls, "" if calls else _text(call, material)


def prompt_tokens(call: ModelCall) -> int:
    """What the call costs before anything is answered."""
    count = count_messages(call.messages)
    for data in (call.context, call.tools, call.response_format):
        if data:
            count += count_tokens(json.dumps(data, default=str, ensure_ascii=False))
    return count


def _text(call: ModelCall, material: Material) -> str:
    kind = (call.response_format or {}).get("type")
    if kind == "json_schema":
        return _json(material, (call.response_format or {}).get("json_schema", {}).get("schema") or {})
    if kind == "json_object":
        return json.dumps({"answer": answer(material)}, ensure_ascii=False)
    return answer(material)


def _json(material: Material, schema: dict[str, Any]) -> str:
    """The schema, filled from what there is: documents first, then what is asked itself."""
    given = "\n".join(piece.text for piece in material.given) or "\n".join(map(plain, material.results))
    source = given or "\n".join([*(piece.text for piece in material.told), material.ask])

    def written(field: str) -> str:
        """Fields whose names say that the model is to write something."""
        if field in ("summary", "abstract", "tldr"):
            return summary(pieces_of(source), 2)
        if field in ("answer", "reply", "response", "result", "explanation", "reason", "reasoning"):
            return looked_up(material.ask, material.given) or answer(material)
        return ""

    filled = Filler(source, schema, answer=written).filled(schema)
    return json.dumps(filled, ensure_ascii=False)


def _limited(text: str, stop: Sequence[str], most: int | None) -> tuple[list[str], str]:
    """The tokens up to the first stop sequence and the limit, and why there are no more."""
    ends = [text.find(one) for one in stop if one and one in text]
    tokens = tokenize(text[: min(ends)] if ends else text)
    if most is not None and len(tokens) > most:
        return tokens[:most], "length"
    return tokens, "stop"


def _finish(reason: str, prompt: int, completion: int) -> LLMPart:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return LLMPart(type="finish", data={"finish_reason": reason, "usage": usage})
