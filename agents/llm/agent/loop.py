"""The life of an answer: ask the model, use the tools it names, ask again, until it has nothing more to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from agentmesh.agents.llm.agent.spending import Spending
from agentmesh.agents.llm.agent.toolbox import Toolbox
from agentmesh.agents.llm.agent.words import MAX_CALLS, OUT_OF_TIME, Approval, Ending, Reply, ToolCall, ToolOutcome
from agentmesh.chat import ChatMessage, ChatPart
from agentmesh.errors import BudgetExceededError

_GAP = "\n\n"
"""Between what the model said before and after it used tools."""


class Desk(Protocol):
    """How things are done: at once, or as steps of a task. See `desks`."""

    async def ask(self, step: int, messages: Sequence[ChatMessage], lead: str, taken: frozenset[str]) -> Reply:
        """Ask the model; its text is emitted while it comes.

        Args:
            step: Which call of the model this is, from 1.
            messages: The conversation.
            lead: Goes before the text, if there is any.
            taken: Ids of earlier tool calls.
        """
        ...

    async def use(self, call: ToolCall) -> ToolOutcome: ...

    async def approval(self, call: ToolCall) -> Approval:
        """Wait until a person has said whether it may be."""
        ...

    async def emit(self, part: ChatPart) -> None: ...


class Answering:
    """One answer.

    Args:
        desk: Does it.
        toolbox: Knows which calls need approval.
        spending: What may be used; what is left over is known afterwards.
    """

    def __init__(self, desk: Desk, toolbox: Toolbox, spending: Spending) -> None:
        self._desk = desk
        self._toolbox = toolbox
        self._spending = spending
        self._ids: set[str] = set()
        self._text: list[str] = []

    async def run(self, messages: Sequence[ChatMessage]) -> Ending:
        """Answer the conversation, which begins with the instructions.

        Raises:
            ModelError: The model gave no answer.
            BudgetExceededError: A budget of the call tree, not of this agent, is used up.
        """
        said = list(messages)
        try:
            while True:
                self._spending.check()
                lead = _GAP if self._text else ""
                reply = await self._desk.ask(self._spending.steps + 1, said, lead, frozenset(self._ids))
                self._spending.replied(reply)
                if reply.text:
                    self._text.append(lead + reply.text)
                if reply.finish_reason == OUT_OF_TIME:
                    self._spending.check()
                if not reply.calls:
                    return self._ending(reply.finish_reason)
                said.append(reply.message())
                for number, call in enumerate(reply.calls):
                    self._ids.add(call.id)
                    said.append((await self._used(call, number)).message(call))
        except BudgetExceededError as error:
            if error.tree_id:  # not ours
                raise
            return self._ending("length", error)

    async def _used(self, call: ToolCall, number: int) -> ToolOutcome:
        if number >= MAX_CALLS:
            return ToolOutcome.problem(
                "ToolBusyError", f"more than {MAX_CALLS} calls at once; none was run beyond that"
            )
        self._spending.check()
        if self._toolbox.needs_approval(call):
            verdict = await self._desk.approval(call)
            if not verdict.approved:
                outcome = _denied(verdict)
                await self._tell_result(call, outcome)
                return outcome
        else:
            await self._desk.emit(told(call, "running"))
        outcome = await self._desk.use(call)
        self._spending.used(outcome)
        await self._tell_result(call, outcome)
        return outcome

    async def _tell_result(self, call: ToolCall, outcome: ToolOutcome) -> None:
        data = {"id": call.id, "name": call.name, "status": outcome.status, "is_error": outcome.status != "ok"}
        await self._desk.emit(ChatPart(type="tool_result", content=outcome.content, data=data))

    def _ending(self, finish_reason: str, error: BudgetExceededError | None = None) -> Ending:
        spent = self._spending
        return Ending(
            text="".join(self._text),
            finish_reason=finish_reason,
            usage=spent.usage,
            cost=spent.cost,
            steps=spent.steps,
            budget=error.limit if error else "",
            reason=str(error) if error else "",
        )


def told(call: ToolCall, status: str, **more: Any) -> ChatPart:
    """What readers are told of a call. Not in the form of the OpenAI chat API: nobody else is to run it."""
    data = {"id": call.id, "name": call.name, "arguments": call.shown(), "status": status, **more}
    return ChatPart(type="tool_call", data=data)


def _denied(verdict: Approval) -> ToolOutcome:
    message = verdict.reason or "a person did not allow this call; do without it, and say so"
    return ToolOutcome.problem("ApprovalDenied", message, "denied")
