"""How an LLM agent is declared, and the messages it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from agentmesh.agent import Agent, handler
from agentmesh.agents.llm.agent.desks import Direct, Durable, ended, instructed
from agentmesh.agents.llm.agent.loop import Answering
from agentmesh.agents.llm.agent.mind import Mind, Wishes
from agentmesh.agents.llm.agent.spending import Limits, Spending
from agentmesh.agents.llm.agent.toolbox import Toolbox
from agentmesh.agents.llm.agent.words import Ending
from agentmesh.chat import Chat, ChatMessage, ChatPart, Turn
from agentmesh.errors import BudgetExceededError, DefinitionError, InvalidMessageError, Reject, Retry, RunReplacedError
from agentmesh.messages import Prompt
from agentmesh.tasks import TaskContext
from agentmesh.tooling import Tool

_AHEAD = 64
"""Parts of an answer that may wait for their reader."""


class LLMAgent(Agent):
    """Answers with a language model, and uses tools for it.

    Everything can be said in a subclass, and in `mesh.toml` as `args = {…}` of the constructor, which wins.

    It takes `Prompt` and `Chat`, which are answered at once, and `Turn`, a task: each call of the model and of a tool
    is a step of it, so an answer goes on where it was when its process dies, and can wait for a person.
    """

    concurrency: ClassVar[int] = 64

    system_prompt: str = ""
    """What the model is told about its work. Nothing else is ever put into it: what tools return is data."""

    tools: Any = ()
    """Names of the tools it may use, or patterns such as `read_*`. The executors refuse it everything else. (In a
    running agent `self.tools` is the client that calls them.)"""

    approve: Sequence[Any] = ()
    """Tools it may use when a person has allowed the very call. Only a `Turn` can wait for that."""

    memory: Any = False
    """Whether the model has tools to remember and recall facts of a conversation. (In a running agent `self.memory` are
    its records.)"""

    model: str = ""
    """A route or model of the gateway; empty for the usual one."""

    params: Mapping[str, Any] = {}
    """`temperature`, `max_tokens` of one reply …, named as in the OpenAI chat API."""

    gateway: str = "llm"
    """The agent that is the gateway to language models."""

    max_steps: int = 8
    """Calls of the model for one answer."""

    max_tokens: int | None = None
    """Tokens for one answer, questions and replies of all its steps together."""

    max_cost: float | None = None
    """US dollars for one answer."""

    max_seconds: float | None = None
    """Seconds of models and tools at work for one answer; a wait for a person does not count."""

    approval_timeout: float | None = 86_400.0
    """Seconds after which silence is a no; None: 6 days."""

    max_history: int = 60
    """Messages of a stored conversation that the model gets, the last ones."""

    def __init__(
        self,
        *,
        system_prompt: str | None = None,
        tools: Sequence[Any] | None = None,
        approve: Sequence[Any] | None = None,
        memory: bool | None = None,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        gateway: str | None = None,
        max_steps: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        max_seconds: float | None = None,
        approval_timeout: float | None = None,
        max_history: int | None = None,
    ) -> None:
        """What is None is as the class says."""
        cls = type(self)
        for name, value in (
            ("system_prompt", system_prompt),
            ("model", model),
            ("params", params),
            ("gateway", gateway),
            ("max_steps", max_steps),
            ("max_tokens", max_tokens),
            ("max_cost", max_cost),
            ("max_seconds", max_seconds),
            ("approval_timeout", approval_timeout),
            ("max_history", max_history),
        ):
            if value is not None:
                setattr(self, name, value)
        where = cls.__name__
        # Of the class, and not of `self`: the instance's `tools` and `memory` are the clients of the running agent.
        self._allowed = _names(where, "tools", cls.tools if tools is None else tools)
        self._approve = _names(where, "approve", cls.approve if approve is None else approve)
        self._remembers = bool(cls.memory if memory is None else memory)
        self._limits = Limits(self.max_steps, self.max_tokens, self.max_cost, self.max_seconds).check(where)
        self._wishes = Wishes(self.gateway).over(self.params, self.model)
        self._toolbox: Toolbox | None = None

    # ------------------------------------------------------------ messages

    @handler
    async def on_prompt(self, prompt: Prompt) -> AsyncIterator[str]:
        """One question, without a conversation.

        Raises:
            BudgetExceededError: The answer would take more than it may.
        """
        messages = [ChatMessage(role="user", content=prompt.text)]
        async with aclosing(self._parts(messages, self._wishes, "")) as parts:
            async for part in parts:
                if part.type == "text":
                    yield part.content
                elif part.type == "finish" and part.data.get("budget"):
                    raise BudgetExceededError(part.data["budget"], self._limit(part.data["budget"]), self.name)

    @handler
    async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
        """A conversation that the caller keeps."""
        wishes = self._wishes.over(chat.params, chat.model)
        async with aclosing(self._parts(chat.messages, wishes, chat.conversation_id)) as parts:
            async for part in parts:
                yield part

    @handler
    async def on_turn(self, turn: Turn, ctx: TaskContext) -> str:
        """A conversation that is stored: the answer is written into it, and survives what happens to this process."""
        try:
            wishes = self._wishes.over(turn.params, turn.agent.partition("/")[2])
        except InvalidMessageError as error:
            raise Reject(str(error)) from error
        spending = Spending(self._limits, self.name)
        mind = Mind(self.mesh, wishes, spending)
        desk = Durable(self.mesh, ctx, turn, mind, self._box(), spending, self.approval_timeout)
        try:
            return await desk.answer(Answering(desk, self._box(), spending), self.system_prompt, self.max_history)
        except RunReplacedError as error:
            raise Retry(1.0, str(error)) from error

    # ------------------------------------------------------------ parts

    async def _parts(
        self, messages: Sequence[ChatMessage], wishes: Wishes, conversation: str
    ) -> AsyncGenerator[ChatPart, None]:
        """An answer, part by part. It ends with whoever reads it."""
        if not any(message.role == "user" for message in messages):
            raise InvalidMessageError("the conversation has no user message that could be answered")
        parts: asyncio.Queue[ChatPart | None] = asyncio.Queue(_AHEAD)
        spending = Spending(self._limits, self.name)
        desk = Direct(Mind(self.mesh, wishes, spending), self._box(), spending, conversation, parts.put)

        async def answer() -> Ending:
            try:
                return await Answering(desk, self._box(), spending).run(instructed(self.system_prompt, messages))
            finally:
                await parts.put(None)

        answering = asyncio.create_task(answer(), name=f"answer of {self.name}")
        try:
            while (part := await parts.get()) is not None:
                yield part
            for part in ended(await answering):
                yield part
        finally:
            answering.cancel()
            await asyncio.wait([answering])

    def _box(self) -> Toolbox:
        if self._toolbox is None:
            memory = self.mesh.memory(self.name) if self._remembers else None
            self._toolbox = Toolbox(self.mesh.tools, self._allowed, self._approve, memory)
        return self._toolbox

    def _limit(self, name: str) -> float:
        return float(getattr(self._limits, name) or 0.0)


def _names(where: str, setting: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise DefinitionError(where, f"{setting} must be a list of names, not {given!r:.60}")
    names = tuple(one.name if isinstance(one, Tool) else one for one in given)
    for name in names:
        if not isinstance(name, str) or not name:
            raise DefinitionError(where, f"{setting} has {name!r:.60}, which is no name of a tool")
    return names
