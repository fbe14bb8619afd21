"""Chatting with agents: messages of a conversation in, parts of an answer out.

An agent can be chatted with if it takes `Chat` (the whole conversation) or `Prompt` (one text):

    class Echo(Agent):
        @handler
        async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
            for word in chat.messages[-1].content.split():
                yield ChatPart(content=word + " ")

    async for part in talk(mesh, "echo", [ChatMessage(role="user", content="Hello there")]):
        print(part.content, end="")

A `Turn` is the durable form: a task that answers the last message of a stored conversation into that conversation.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentmesh.errors import (
    AgentMeshError,
    IdempotencyConflictError,
    InvalidMessageError,
    NoHandlerError,
    NoSuchAgentError,
    NoSuchTaskError,
    RunEndedError,
)
from agentmesh.ids import new_id
from agentmesh.messages import Prompt, Request, Task
from agentmesh.registry import AgentInfo, discover, near_misses
from agentmesh.subjects import token
from agentmesh.tasks import slot

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.streams import Chunk, Streams

RELAY = "conversations"
"""The agent that answers turns for agents that take no `Turn` themselves: see `agentmesh.agents.chat`."""

IDLE_TIMEOUT = 120.0
"""Seconds without any part after which an answer is given up: a model may think for a while."""

_KNOWN_FOR = 5.0
"""Seconds for which it is remembered what an agent takes."""


_PATIENCE, _STALL = 2.0, 0.15
"""Seconds for the answers of all hosts, and of silence after which they are taken as complete."""


class ChatMessage(BaseModel):
    """One message of a conversation, with the names of the OpenAI chat API."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatPart(BaseModel):
    """A piece of an answer as it is made."""

    model_config = ConfigDict(frozen=True)

    type: str = "text"
    """`text`, `reasoning`, `tool_call`, `tool_result`, `citation`, `progress`, `data`; towards the end `usage` with
    `prompt_tokens`, `completion_tokens` and `total_tokens`, and `finish` with `finish_reason` in `data`."""
    content: str = ""
    data: Any = None


class Chat(Request[ChatPart]):
    """A conversation that wants its next message."""

    messages: list[ChatMessage]
    conversation_id: str = ""
    model: str = ""
    """For agents that offer several; empty for the usual one."""
    params: dict[str, Any] = Field(default_factory=dict)
    """`temperature`, `max_tokens`, `tools`, `response_format` …, named as in the OpenAI chat API."""


class Turn(Task[str], max_attempts=5, time_limit=3600.0):
    """Answer the last user message of a stored conversation, into it. The result is the text of the answer.

    The task's id is the `run_id`, so that whoever sees a run without an end can look up what became of it; the epoch
    of the run is the attempt.
    """

    conversation_id: str
    run_id: str
    agent: str = ""
    """Who is to answer; empty for the agent that gets the task."""
    params: dict[str, Any] = Field(default_factory=dict)


async def talk(
    client: Client,
    agent: str,
    messages: Sequence[ChatMessage],
    *,
    conversation_id: str = "",
    model: str = "",
    params: dict[str, Any] | None = None,
    timeout: float = IDLE_TIMEOUT,
) -> AsyncGenerator[ChatPart, None]:
    """The parts of an agent's answer. Leaving the loop stops the agent.

    An agent that takes no `Chat` but a `Prompt` gets the text of the last user message.

    Args:
        client: A mesh.
        agent: Who is to answer.
        messages: The conversation so far, oldest first; not empty.
        conversation_id: For agents that remember conversations.
        model: For agents that offer several.
        params: See `Chat.params`.
        timeout: Seconds without any part after which the answer is given up.

    Raises:
        InvalidMessageError: Nothing to answer.
        NoSuchAgentError: and the other errors of `Client.stream`.
    """
    if not messages:
        raise InvalidMessageError("a conversation without messages cannot be answered")
    if "Chat" in (taken := await takes(client, agent)) or "Prompt" not in taken:
        chat = Chat(messages=list(messages), conversation_id=conversation_id, model=model, params=params or {})
        async with aclosing(client.stream(agent, chat, timeout=timeout)) as parts:
            async for part in parts:
                yield part
        return
    async with aclosing(client.stream(agent, Prompt(text=_last_said(messages)), timeout=timeout)) as texts:
        async for text in texts:
            yield ChatPart(content=text)


async def takes(client: Client, agent: str) -> frozenset[str]:
    """Names of the messages that an agent takes, as of some seconds ago; none if it is not there."""
    known: dict[str, tuple[float, frozenset[str]]]
    known = client.transport.shared.setdefault(("chat", client.subjects.tenant), {})
    until, taken = known.get(agent, (0.0, frozenset()))
    if until < time.monotonic():
        infos = await discover(client.transport, client.subjects, name=agent, timeout=0.25)
        if not infos:  # those who have no such agent do not answer; here all do, so that its absence is certain soon
            everybody = await discover(client.transport, client.subjects, timeout=_PATIENCE, stall=_STALL)
            infos = [info for info in everybody if info.name == agent]
        taken = frozenset(message.name for info in infos for message in info.messages)
        if taken:  # one that is not there yet is looked for again
            known[agent] = (time.monotonic() + _KNOWN_FOR, taken)
    return taken


async def chat_agents(client: Client) -> list[AgentInfo]:
    """One replica of each agent that can be chatted with, by name; as of a second ago."""
    place = ("chat agents", client.subjects.tenant)
    until, found = client.transport.shared.get(place, (0.0, []))
    if until < time.monotonic():
        infos = await discover(client.transport, client.subjects, timeout=_PATIENCE, stall=_STALL)
        found = list({info.name: info for info in infos if can_chat(info)}.values())
        client.transport.shared[place] = (time.monotonic() + 1.0, found)
    return list(found)


def can_chat(info: AgentInfo) -> bool:
    """Whether the agent takes `Chat` or `Prompt`."""
    return any(message.name in ("Chat", "Prompt") for message in info.messages)


class Transcript:
    """What a conversation comes to: its messages, and which turns have ended. Built from its chunks, in order.

    A turn is one run: what the user said (epoch 0), and the answer to it. Of an answer that was begun again, only the
    last take counts.
    """

    def __init__(self) -> None:
        self.last: Chunk | None = None
        """The last chunk taken."""
        self._turns: dict[str, _Said] = {}
        self._foreign = 0

    def take(self, chunk: Chunk) -> None:
        """The next chunk."""
        self.last = chunk
        run_id = chunk.run_id or f"/{self._foreign}"  # what other programs wrote has no run: a turn ends with its end
        turn = self._turns.setdefault(run_id, _Said())
        turn.take(chunk)
        if chunk.is_final and not chunk.run_id:
            self._foreign += 1

    def messages(self, until: str = "") -> list[ChatMessage]:
        """The messages, oldest first; up to the question of the run `until`, if there is such a run."""
        found: list[ChatMessage] = []
        for run_id, turn in self._turns.items():
            found += turn.messages(question_only=run_id == until)
            if run_id == until:
                break
        return found

    def epoch(self, run_id: str) -> int:
        """The last take of the run; 0 before the first."""
        return self._turns[run_id].epoch if run_id in self._turns else 0

    def end(self, run_id: str) -> str:
        """Kind of the chunk that ended the run's last take; empty while it is open."""
        return self._turns[run_id].end if run_id in self._turns else ""

    def answer(self, run_id: str) -> str:
        """The text of the answer."""
        return "".join(self._turns[run_id].answer) if run_id in self._turns else ""


class _Said:
    """One turn."""

    __slots__ = ("answer", "asked", "end", "epoch")

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        """Role and text."""
        self.answer: list[str] = []
        self.epoch = 0
        self.end = ""

    def take(self, chunk: Chunk) -> None:
        if chunk.is_final:
            self.end = chunk.type
        elif chunk.role in ("user", "system"):
            self.asked.append((chunk.role, chunk.content))
        elif chunk.epoch >= self.epoch:
            if chunk.epoch > self.epoch or chunk.type == "restarted":
                self.answer, self.epoch, self.end = [], chunk.epoch, ""
            if chunk.type == "text":
                self.answer.append(chunk.content)

    def messages(self, *, question_only: bool) -> Iterable[ChatMessage]:
        for role, text in self.asked:
            yield ChatMessage(role="system" if role == "system" else "user", content=text)
        if self.answer and not question_only:
            yield ChatMessage(role="assistant", content="".join(self.answer))


async def transcript(streams: Streams, conversation_id: str) -> Transcript:
    """What is stored of a conversation now."""
    read = Transcript()
    async with aclosing(streams.read(conversation_id, follow=False)) as chunks:
        async for chunk in chunks:
            read.take(chunk)
    return read


async def history(streams: Streams, conversation_id: str) -> list[ChatMessage]:
    """The messages of a stored conversation, oldest first. An answer that was cut off counts as far as it came."""
    return (await transcript(streams, conversation_id)).messages()


@dataclass(frozen=True)
class Asked:
    """A message that was stored and will be answered."""

    conversation_id: str
    run_id: str
    """Of the answer; also the id of the task."""
    offset: int
    """Of the first chunk of the answer."""


async def say(
    client: Client,
    agent: str,
    message: str,
    *,
    conversation_id: str = "",
    params: dict[str, Any] | None = None,
    key: str = "",
) -> Asked:
    """Say something in a stored conversation. What this returns is stored, and sure to be answered or to get an error.

    Args:
        client: A mesh.
        agent: Who is to answer; `agent/model` for one that offers several.
        message: What is said.
        conversation_id: Where; empty for a new one.
        params: See `Chat.params`.
        key: Said again with it, it is said once. Its own conversation is a part of it, and so is its tenant.

    Raises:
        NoSuchAgentError: The agent does not run, or the one that relays for it.
        NoHandlerError: It cannot be chatted with.
        IdempotencyConflictError: The key was used for another message.
        QueueFullError: Not accepted.
    """
    to = await answerer(client, agent)
    run_id = None
    if key:  # the same key makes the same ids, so that everything may be repeated
        digest = hashlib.sha256("\0".join((client.subjects.tenant, conversation_id, key)).encode()).hexdigest()
        conversation_id, run_id = conversation_id or f"c{digest[32:56]}", f"r{digest[:24]}"
    conversation_id = conversation_id or f"c{new_id()}"
    run = client.streams.run(conversation_id, run_id=run_id, epoch=0, role="user", own_task=True)
    try:
        async with run:
            await run.send(message)
            await run.flush()
        assert run.last is not None
        stored = run.last
    except RunEndedError:  # the same key once more: it is there, and perhaps answered already
        stored = await _question(client, conversation_id, run.run_id)
        if stored.content != message:
            raise IdempotencyConflictError(key, "a message", "a message") from None
    turn = Turn(conversation_id=conversation_id, run_id=run.run_id, agent=agent, params=params or {})
    try:
        await client.submit(turn, to=to, task_id=run.run_id)
    except AgentMeshError as error:
        await client.streams.end(conversation_id, run.run_id, "error", str(error))
        raise
    return Asked(conversation_id, run.run_id, stored.offset + 1)


async def answerer(client: Client, agent: str) -> str:
    """The agent that gets the turns for an agent: itself if it takes them, else the relay.

    Raises:
        NoSuchAgentError: The one that is to answer does not run, or the relay does not.
        NoHandlerError: It cannot be chatted with.
    """
    name = token("agent", agent.partition("/")[0])
    taken = await takes(client, name)
    if not taken:
        raise NoSuchAgentError(name, near_misses(name, (info.name for info in await chat_agents(client))))
    if "Turn" in taken and name != RELAY:
        return name
    if not taken & {"Chat", "Prompt"}:
        raise NoHandlerError(name, "Chat", sorted(taken))
    if "Turn" not in await takes(client, RELAY):
        raise NoSuchAgentError(RELAY)
    return RELAY


async def stop(client: Client, conversation_id: str, run_id: str, reason: str = "") -> bool:
    """Stop an answer: its agent, its task, and all who read it are told.

    Returns:
        False: there is no such run, or it has ended.
    """
    if not await client.streams.cancel(conversation_id, run_id=run_id, reason=reason):
        return False
    with contextlib.suppress(AgentMeshError):  # the run has its end; its task is over when it finds that out
        await client.tasks.cancel(run_id, by="the reader of the conversation")
    return True


async def _question(client: Client, conversation_id: str, run_id: str) -> Chunk:
    async with aclosing(client.streams.read(conversation_id, run_id=run_id, follow=False)) as chunks:
        async for chunk in chunks:
            if chunk.epoch == 0:
                return chunk
    raise InvalidMessageError("the conversation was deleted meanwhile")


async def settle(client: Client, conversation_id: str, run_id: str, *, lost: bool = False) -> bool:
    """Give a run its end, if its task was decided without writing one: cancelled, expired, dead …

    Anybody may call it, at any time and more than once.

    Args:
        client: A mesh.
        conversation_id: Where.
        run_id: Which run; its task has the same id.
        lost: Look also whether there is such a task at all, which takes longer: whoever stored the question may have
            died before it submitted the task.

    Returns:
        Whether the task is decided, so that the run has an end now.
    """
    outcome = await slot.read(client.transport, client.subjects, run_id, latest=True)
    if outcome is None:
        return lost and await _settle_lost(client, conversation_id, run_id)
    if outcome.status == "cancelled":
        await client.streams.cancel(conversation_id, run_id=run_id, reason=outcome.reason)
    elif outcome.status == "completed":
        await client.streams.end(conversation_id, run_id, "finish")
    else:
        reason = outcome.reason or f"the task that was to answer is {outcome.status}"
        await client.streams.end(conversation_id, run_id, "error", reason)
    return True


async def _settle_lost(client: Client, conversation_id: str, run_id: str) -> bool:
    try:
        await client.tasks.get(run_id)
    except NoSuchTaskError:
        await client.streams.end(
            conversation_id, run_id, "error", "the message was stored, but lost before it was answered"
        )
        return True
    return False


def _last_said(messages: Iterable[ChatMessage]) -> str:
    said = [message.content for message in messages if message.role == "user"]
    if not said:
        raise InvalidMessageError("the conversation has no user message that could be answered")
    return said[-1]
