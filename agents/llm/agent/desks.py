"""The two ways of answering: at once, and as a task whose steps are recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from agentmesh.agents.llm.agent.loop import Answering, told
from agentmesh.agents.llm.agent.mind import Emit, Mind
from agentmesh.agents.llm.agent.spending import Spending
from agentmesh.agents.llm.agent.toolbox import Toolbox
from agentmesh.agents.llm.agent.words import Approval, Ending, Reply, ToolCall, ToolOutcome
from agentmesh.agents.llm.gateway import MAY_PASS
from agentmesh.chat import ChatMessage, ChatPart, Transcript, Turn, transcript
from agentmesh.client import Client
from agentmesh.errors import (
    AgentMeshError,
    BrokerError,
    BudgetExceededError,
    CallDepthError,
    ModelError,
    Reject,
    Retry,
    RunCancelledError,
    SignalTimeoutError,
    StepFailedError,
    ToolBusyError,
)
from agentmesh.streams import Run
from agentmesh.tasks import TaskContext
from agentmesh.tasks.workflow.flow import LONGEST_SLEEP

MODEL_TRIES = 8
"""Calls of the model for one reply, over a minute in all: the gateway may be starting again."""

TOOL_TRIES = 8
"""Calls of a tool that could not be run because the executor is busy or the broker away."""

MOST_HISTORY = 300_000
"""Characters of a conversation that the model gets."""

LAST_WORDS = 5.0
"""Seconds for telling readers that the task was cancelled."""

RESTARTED = "restarted"
"""Kind of a chunk: readers forget what its run has said before."""

APPROVE = "approve-"
"""Signals by which a person allows a call, or does not: this and the call's id."""


class Direct:
    """At once, for an asker who waits."""

    def __init__(self, mind: Mind, toolbox: Toolbox, spending: Spending, conversation: str, emit: Emit) -> None:
        self._mind = mind
        self._toolbox = toolbox
        self._spending = spending
        self._conversation = conversation
        self._emit = emit

    async def emit(self, part: ChatPart) -> None:
        await self._emit(part)

    async def ask(self, step: int, messages: Sequence[ChatMessage], lead: str, taken: frozenset[str]) -> Reply:
        offered = await self._toolbox.offered(self._conversation)
        return await self._mind.reply(step, messages, offered, taken, led(self._emit, lead))

    async def use(self, call: ToolCall) -> ToolOutcome:
        try:
            return await self._toolbox.call(call, self._conversation, timeout=self._spending.seconds_left)
        except ToolBusyError as error:
            return ToolOutcome.problem("ToolBusyError", str(error))

    async def approval(self, call: ToolCall) -> Approval:
        reason = (
            f"{call.name!r} needs the approval of a person, and a single question cannot wait for that: "
            "use a conversation (a Turn, such as POST /chat makes)"
        )
        return Approval(approved=False, reason=reason)


class Durable:
    """As steps of a task: what has an outcome is not done again, in whichever process the answer goes on.

    What readers get goes into the run of the turn. A later take of it begins with what was recorded.

    Args:
        mesh: The mesh as the agent sees it.
        ctx: Of the task.
        turn: What is to be answered.
        mind: Asks the model.
        toolbox: The tools.
        spending: What may be used.
        patience: Seconds to wait for an approval; None: as long as a signal can be waited for.
    """

    def __init__(
        self,
        mesh: Client,
        ctx: TaskContext,
        turn: Turn,
        mind: Mind,
        toolbox: Toolbox,
        spending: Spending,
        patience: float | None,
    ) -> None:
        self._mesh = mesh
        self._ctx = ctx
        self._turn = turn
        self._mind = mind
        self._toolbox = toolbox
        self._spending = spending
        self._patience = LONGEST_SLEEP if patience is None else min(patience, LONGEST_SLEEP)
        self._run: Run | None = None
        """Of this process, from the beginning of `answer` on."""
        self._settled: list[ChatPart] = []
        """What readers were told that will not change any more."""

    async def answer(self, answering: Answering, system_prompt: str, max_history: int) -> str:
        """The text of the answer, which is in the conversation by then.

        Raises:
            StepFailedError: The model cannot be asked.
            RunReplacedError: Another process goes on with this turn.
        """
        turn, streams = self._turn, self._mesh.streams
        read = await transcript(streams, turn.conversation_id)
        if read.end(turn.run_id) in ("finish", "cancelled"):  # a process before this one died between end and result
            return read.answer(turn.run_id)
        run = streams.run(
            turn.conversation_id,
            run_id=turn.run_id,
            # A task that was given back by a node that stops counts as no attempt, but its take counts.
            epoch=max(self._ctx.attempt, read.epoch(turn.run_id) + 1),
            owner=self._ctx.task_id,
            since=read.last.cursor if read.last is not None else "",
        )
        try:
            async with run as self._run:
                return await self._answer(answering, system_prompt, read, max_history)
        except RunCancelledError:
            await self._cancel_task()
            return ""
        except asyncio.CancelledError:
            await self._cancel_run()
            raise

    async def _answer(self, answering: Answering, system_prompt: str, read: Transcript, most: int) -> str:
        assert self._run is not None

        async def history() -> list[ChatMessage]:
            if not any(message.role == "user" for message in read.messages(until=self._turn.run_id)):
                raise Reject("the conversation has no user message that could be answered")
            return _last(read.messages(until=self._turn.run_id), most)

        try:
            said = await self._ctx.step("history", history)
            ending = await answering.run(instructed(system_prompt, said))
        except (StepFailedError, BudgetExceededError, CallDepthError) as error:
            await self._run.fail(error.message if isinstance(error, StepFailedError) else error)
            raise
        usage, finish = ended(ending)
        await self.emit(usage)
        await self._run.finish(data=finish.data)
        return ending.text

    async def _cancel_task(self) -> None:
        """A reader cancelled the run: so is the task."""
        with contextlib.suppress(BrokerError):
            await self._mesh.tasks.cancel(self._ctx.task_id, by="a reader of the conversation")

    async def _cancel_run(self) -> None:
        """If it is the task that was cancelled, so is the run; if this node stops, another one goes on with both."""
        with contextlib.suppress(AgentMeshError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                if (await self._mesh.tasks.get(self._ctx.task_id)).state == "cancelled":
                    await self._mesh.streams.cancel(self._turn.conversation_id, run_id=self._turn.run_id)

    # ------------------------------------------------------------ steps

    async def ask(self, step: int, messages: Sequence[ChatMessage], lead: str, taken: frozenset[str]) -> Reply:
        tries = 0

        async def ask_model() -> Reply:
            nonlocal tries
            tries += 1
            if tries > 1:
                await self._begin_again()
            offered = await self._toolbox.offered(self._turn.conversation_id)
            try:
                return await self._mind.reply(step, messages, offered, taken, led(self._send, lead))
            except ModelError as error:
                if error.code in MAY_PASS:
                    raise Retry(error.retry_after or None, str(error)) from error
                raise Reject(str(error)) from error

        reply = await self._ctx.step(f"model {step}", ask_model, max_attempts=MODEL_TRIES, backoff=0.5)
        if reply.text:
            said = ChatPart(content=lead + reply.text)
            self._settled.append(said)
            if not tries:  # an earlier take got this reply
                await self._send(said)
        return reply

    async def use(self, call: ToolCall) -> ToolOutcome:
        name = f"tool {call.id}"
        key = self._ctx.key(name)

        async def use_tool() -> ToolOutcome:
            return await self._toolbox.call(
                call, self._turn.conversation_id, key=key, timeout=self._spending.seconds_left
            )

        try:
            return await self._ctx.step(name, use_tool, max_attempts=TOOL_TRIES, backoff=0.5)
        except StepFailedError as error:  # it is decided, and the model may know what to do about it
            return ToolOutcome.problem(error.error_type, error.message)

    async def approval(self, call: ToolCall) -> Approval:
        """The slot is given up meanwhile; nothing of this is lost when the process dies."""
        signal = APPROVE + call.id
        await self.emit(told(call, "approval", task_id=self._ctx.task_id, signal=signal))
        assert self._run is not None
        await self._run.flush()
        try:
            value = await self._ctx.signal(signal, timeout=self._patience)
        except SignalTimeoutError:
            return Approval(approved=False, reason=f"nobody allowed it within {self._patience:g} s")
        return Approval.read(value)

    # ------------------------------------------------------------ what readers get

    async def emit(self, part: ChatPart) -> None:
        self._settled.append(part)
        await self._send(part)

    async def _send(self, part: ChatPart) -> None:
        assert self._run is not None
        await self._run.send(part.content, type=part.type, data=part.data)

    async def _begin_again(self) -> None:
        """The model failed in the middle of a reply: readers forget what there was of it."""
        assert self._run is not None
        await self._run.send(type=RESTARTED)
        for part in self._settled:
            await self._send(part)


def _last(messages: Sequence[ChatMessage], most: int) -> list[ChatMessage]:
    """The last ones, as far as they fit into the outcome of a step; not beginning in the middle of something."""
    kept: list[ChatMessage] = []
    size = 0
    for message in reversed(messages[-most:]):
        size += len(message.model_dump_json())
        if kept and size > MOST_HISTORY:
            break
        kept.append(message)
    kept.reverse()
    while len(kept) > 1 and kept[0].role == "tool":
        kept.pop(0)
    return kept


def instructed(system_prompt: str, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The conversation behind the agent's own instructions."""
    if not system_prompt:
        return list(messages)
    return [ChatMessage(role="system", content=system_prompt), *messages]


def ended(ending: Ending) -> list[ChatPart]:
    """The last parts of an answer."""
    data: dict[str, Any] = {"finish_reason": ending.finish_reason, "steps": ending.steps, "cost": ending.cost}
    if ending.budget:
        data |= {"budget": ending.budget, "reason": ending.reason}
    return [ChatPart(type="usage", data=ending.usage.model_dump()), ChatPart(type="finish", data=data)]


def led(emit: Emit, lead: str) -> Emit:
    """Puts something before the first text."""
    if not lead:
        return emit
    waiting = [lead]

    async def lead_then_emit(part: ChatPart) -> None:
        if waiting and part.type == "text":
            part = part.model_copy(update={"content": waiting.pop() + part.content})
        await emit(part)

    return lead_then_emit
