"""What the model of an agent may use: tools that executors serve, and the memory of the conversation."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from agentmesh.agents.llm.agent.words import ToolCall, ToolOutcome
from agentmesh.errors import (
    AgentMeshError,
    AttemptReplacedError,
    BrokerError,
    BudgetExceededError,
    InvalidNameError,
    StoreError,
    ToolArgumentsError,
    ToolBusyError,
    ToolError,
    ToolNotAllowedError,
)
from agentmesh.memory import Memory
from agentmesh.tooling import ToolClient, ToolInfo, permits

log = logging.getLogger("agentmesh.llm.agent")

LONGEST_RESULT = 16_000
"""Characters of a tool's result that the model gets."""

FRESH = 10.0
"""Seconds for which it is remembered what is served."""

REMEMBER, RECALL = "remember", "recall"
_FACTS = 5
_LONGEST_FACT = 2_000


class Toolbox:
    """The tools of one agent.

    Args:
        tools: Calls them. The list of what is allowed goes with each call, and the executor refuses the rest: what is
            done here with names is for the model's sake and protects nothing.
        allowed: Names or patterns.
        approve: Those that a person must allow each time; allowed too.
        memory: Keeps facts; None: the model has no memory.
    """

    def __init__(
        self, tools: ToolClient, allowed: Sequence[str], approve: Sequence[str], memory: Memory | None
    ) -> None:
        self._patterns = [*allowed, *approve]
        self._approve = list(approve)
        self._tools = tools.only(self._patterns)
        self._memory = memory
        self._served: dict[str, ToolInfo] = {}
        self._known_until = 0.0
        self._looking = asyncio.Lock()

    def needs_approval(self, call: ToolCall) -> bool:
        return permits(self._approve, call.name)

    async def offered(self, conversation: str) -> list[dict[str, Any]]:
        """The tools as a model is told of them, in the form of the OpenAI chat API."""
        served = await self._look() if self._patterns else {}
        found = [
            _described(info.name, info.description, info.parameters)
            for info in served.values()
            if permits(self._patterns, info.name) and not self._is_memory(info.name, conversation)
        ]
        return [*found, *_MEMORY_TOOLS] if self._memory is not None and conversation else found

    async def call(
        self, call: ToolCall, conversation: str, *, key: str | None = None, timeout: float | None = None
    ) -> ToolOutcome:
        """Use a tool; what goes wrong is an outcome, too, except what is not about this call.

        Args:
            call: What the model wants.
            conversation: Whose memory it is.
            key: An idempotency key, for tools that have an effect.
            timeout: Seconds; None: as long as the tool may take.

        Raises:
            BudgetExceededError: Of the call tree.
            AttemptReplacedError: Another attempt goes on with this.
            BrokerError: The broker cannot be reached.
        """
        began = time.monotonic()
        try:
            arguments = call.parsed()
        except ValueError as error:
            return ToolOutcome.problem("ToolArgumentsError", f"tool {call.name!r} was not run: {error}")
        try:
            if self._is_memory(call.name, conversation):
                content = await self._use_memory(call.name, arguments, conversation)
            else:
                content = _text(
                    await self._tools.invoke(
                        call.name, arguments, timeout=timeout, key=key and await self._keyed(call.name, key)
                    )
                )
        except (BudgetExceededError, AttemptReplacedError, ToolBusyError, BrokerError):
            raise
        except (ToolError, StoreError, InvalidNameError, AgentMeshError) as error:
            refused = isinstance(error, ToolNotAllowedError)
            return ToolOutcome.problem(
                type(error).__name__, str(error), "refused" if refused else "error", time.monotonic() - began
            )
        return ToolOutcome(content=_cut(content), seconds=time.monotonic() - began)

    async def _keyed(self, name: str, key: str) -> str | None:
        """The key, unless the tool is known to have no effect: then it may as well run again."""
        info = (await self._look()).get(name) if permits(self._patterns, name) else None
        return None if info is not None and not (info.effect or info.once) else key

    async def _look(self) -> dict[str, ToolInfo]:
        """What is served, as of some seconds ago."""
        async with self._looking:
            if time.monotonic() >= self._known_until:
                self._served = {info.name: info for info in await self._tools.list()}
                self._known_until = time.monotonic() + (FRESH if self._served else 0.0)
            return self._served

    # ------------------------------------------------------------ memory

    def _is_memory(self, name: str, conversation: str) -> bool:
        return self._memory is not None and bool(conversation) and name in (REMEMBER, RECALL)

    async def _use_memory(self, name: str, arguments: dict[str, Any], conversation: str) -> str:
        key = "fact" if name == REMEMBER else "query"
        text = arguments.get(key)
        if not isinstance(text, str) or not text.strip() or set(arguments) != {key}:
            raise ToolArgumentsError(name, f"it takes one argument, {key!r}, a text")
        return await (self._remember if name == REMEMBER else self._recall)(text.strip(), conversation)

    async def _remember(self, fact: str, conversation: str) -> str:
        assert self._memory is not None
        digest = hashlib.sha256(fact.encode()).hexdigest()[:16]
        # By content: told twice, or by a step that runs again, it is there once.
        await self._memory.put(
            f"facts/{conversation}/{digest}", fact[:_LONGEST_FACT], kind="semantic", tags=[conversation]
        )
        return "remembered"

    async def _recall(self, query: str, conversation: str) -> str:
        assert self._memory is not None
        records = await self._memory.search(query, limit=_FACTS, kind="semantic", tags=[conversation])
        if not records:
            found = await self._memory.list(f"facts/{conversation}/", limit=_FACTS, tags=[conversation])
            records = found.records
        return json.dumps({"facts": [record.value for record in records]}, ensure_ascii=False)


def _described(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _one_text(name: str, description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": "string", "description": description}},
        "required": [name],
        "additionalProperties": False,
    }


_MEMORY_TOOLS = [
    _described(
        REMEMBER,
        "Keep a fact for later in this conversation.",
        _one_text("fact", "One sentence that stands by itself."),
    ),
    _described(
        RECALL, "Find facts that were remembered in this conversation.", _one_text("query", "What they are about.")
    ),
]


def _text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    if len(text) <= LONGEST_RESULT:
        return text
    return f"{text[:LONGEST_RESULT]}\n… {len(text) - LONGEST_RESULT} more characters were left out"
