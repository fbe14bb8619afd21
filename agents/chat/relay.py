"""`Conversations`: answers turns of stored conversations, for agents that only know how to answer.

A turn is a task, so it is answered whatever dies meanwhile. The answer streams from the agent into the conversation as
one run: its id is the task's, and each attempt is a take (epoch) of its own. When a worker is killed, the next attempt
takes the run over: the broker refuses what the old one may still write, and readers drop what it wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import aclosing

from agentmesh import Agent, Reject, Retry, TaskContext, handler
from agentmesh.chat import RELAY, ChatMessage, ChatPart, Transcript, Turn, talk, transcript
from agentmesh.deathwatch import Watch, watch_tower
from agentmesh.errors import (
    AgentMeshError,
    AgentPausedError,
    AgentStoppedError,
    BrokerError,
    MailboxFullError,
    NoSuchAgentError,
    RemoteError,
    RunCancelledError,
    RunEndedError,
    RunReplacedError,
    StreamGapError,
    StreamIdleError,
)
from agentmesh.streams import Run

PASSING = (
    *(AgentPausedError, AgentStoppedError, BrokerError, MailboxFullError),
    *(NoSuchAgentError, StreamGapError, StreamIdleError),
)
"""Failures that may be gone at the next attempt."""

DOUBT = 5.0
"""Seconds of silence after which an answer is given up, when a replica of the agent has ended: it was probably ours."""

PAUSE = 0.5
"""Seconds until the agent is asked again; twice as long each time, since it may have to be started first."""

log = logging.getLogger("agentmesh.agents.chat")


class Conversations(Agent):
    """Answers stored conversations: takes a turn, asks the agent it is for, and streams the answer into it."""

    name = RELAY
    concurrency = 256  # a turn only waits and passes on

    @handler
    async def on_turn(self, turn: Turn, context: TaskContext) -> str:
        """The text of the answer."""
        said = await transcript(self.mesh.streams, turn.conversation_id)
        end = said.end(turn.run_id)
        if end == "cancelled":
            return await self._ended(context)
        if end == "finish":  # an attempt before this one died between the end of the run and the task's
            return said.answer(turn.run_id)
        try:
            return await self._answer(turn, context, said)
        except RunReplacedError as error:
            raise Retry(1.0, str(error)) from error
        except RunCancelledError:
            return await self._ended(context)
        except asyncio.CancelledError:
            await self._cancelled(turn, context)
            raise

    async def _answer(self, turn: Turn, context: TaskContext, said: Transcript) -> str:
        # A task that was given back by a node that stops counts as no attempt, so the take may be further on.
        epoch = max(context.attempt, said.epoch(turn.run_id) + 1)
        run = self.mesh.streams.run(
            turn.conversation_id,
            run_id=turn.run_id,
            epoch=epoch,
            owner=context.task_id,
            since=said.last.cursor if said.last is not None else "",
        )
        async with run:
            try:
                return await self._pass_on(turn, said.messages(until=turn.run_id), run)
            except RunEndedError:
                raise
            except Exception as error:  # the edge to the agent: whatever it raises is the end of this take
                log.warning("turn %s: %s failed", turn.run_id, turn.agent, exc_info=error)
                last = context.attempt >= Turn.policy().max_attempts
                if isinstance(error, PASSING) and not last:
                    raise Retry(PAUSE * 2.0 ** (context.attempt - 1), f"{turn.agent}: {error}") from error
                await run.fail(_public(error))
                raise Reject(f"{turn.agent}: {error}") from error

    async def _pass_on(self, turn: Turn, messages: list[ChatMessage], run: Run) -> str:
        """Ask the agent, and send on what it says. If it dies in the middle, that is noticed before its silence is.

        Raises:
            AgentStoppedError: It died.
        """
        agent, _, model = turn.agent.partition("/")
        text: list[str] = []
        end: ChatPart | None = None
        watch = Watch(watch_tower(self.mesh.transport, self.mesh.subjects), agent)
        guard: asyncio.Task[None] | None = None
        parts = talk(self.mesh, agent, messages, conversation_id=turn.conversation_id, model=model, params=turn.params)
        try:
            async with asyncio.timeout(None) as patience, aclosing(parts):
                async for part in parts:
                    if guard is None:
                        guard = asyncio.get_running_loop().create_task(_guard(watch, patience), name="guard of a turn")
                    elif patience.when() is not None:  # it was another replica that ended
                        patience.reschedule(None)
                    if part.type == "finish":
                        end = part
                        continue
                    if part.type == "text":
                        text.append(part.content)
                    await run.send(part.content, type=part.type, data=part.data)
        except TimeoutError:
            raise AgentStoppedError(agent) from None
        finally:
            if guard is not None:
                guard.cancel()
                await asyncio.gather(guard, return_exceptions=True)
            await watch.close()
        await run.finish(data=end.data if end is not None else None)
        return "".join(text)

    async def _ended(self, context: TaskContext) -> str:
        """The run was cancelled: so is the task, and what this returns is dropped."""
        with contextlib.suppress(BrokerError):
            await self.mesh.tasks.cancel(context.task_id, by="the reader of the conversation")
        return ""

    async def _cancelled(self, turn: Turn, context: TaskContext) -> None:
        """If it is the task that was cancelled, so is the run; if this node stops, another one goes on with both."""
        with contextlib.suppress(AgentMeshError, TimeoutError):
            async with asyncio.timeout(5.0):
                if (await self.mesh.tasks.get(context.task_id)).state == "cancelled":
                    await self.mesh.streams.cancel(turn.conversation_id, run_id=turn.run_id)


async def _guard(watch: Watch, patience: asyncio.Timeout) -> None:
    """Run out of patience when replicas of the agent end."""
    time = asyncio.get_running_loop().time
    async for gone in watch:
        patience.reschedule(time() + (DOUBT if gone.left else 0.0))


def _public(error: Exception) -> str:
    """What readers are told: of a handler's own failure only the kind, since its words may hold what is not theirs."""
    if isinstance(error, RemoteError) and error.error_type != "Reject":
        return f"agent {error.agent!r} failed with {error.error_type}"
    return str(error) if isinstance(error, AgentMeshError) else "the answer could not be completed"
