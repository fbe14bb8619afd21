"""The life of a message at its agent, once its turn has come: `Handling.process`, top to bottom."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter, time
from typing import Any

from agentmesh import codec, keyed
from agentmesh.agent.answers import Answers
from agentmesh.agent.declare import Agent
from agentmesh.agent.letter import Counters, Letter
from agentmesh.context import Context, enter, leave
from agentmesh.errors import AgentMeshError, AskerGoneError, Finish, InvalidMessageError
from agentmesh.messages import Message
from agentmesh.metrics import SECONDS
from agentmesh.streaming import StreamWriter
from agentmesh.tasks import TaskClient
from agentmesh.tasks.keys import Keys
from agentmesh.trace import inherit
from agentmesh.transport import Transport

log = logging.getLogger("agentmesh.agent")

SHORTEST = SECONDS[0]

CANCEL_TIMEOUT = 2.0
"""Seconds to cancel the tasks of a request whose asker has gone."""


class Handling:
    """Runs the handlers of one agent, and tells whoever should know what came of it.

    Args:
        transport: The connection, for streams.
        tasks: Cancels what a request submitted when its asker has gone.
        name: The agent.
        answers: The way back to the askers.
        counters: Where it is counted.
    """

    def __init__(
        self, transport: Transport, tasks: TaskClient, name: str, answers: Answers, counters: Counters
    ) -> None:
        self._transport = transport
        self._tasks = tasks
        self._keys = Keys(transport, tasks.subjects, "ask")
        self._name = name
        self._answers = answers
        self._counters = counters

    async def process(
        self, letter: Letter, agent: Agent, worker: asyncio.Task[None]
    ) -> tuple[BaseException, Message] | None:
        """Decode the body, run the handler in the `worker` that calls this, answer, count.

        Returns:
            What an event handler raised, with the event: nobody waits for its answer, so the agent has failed, or
            finished.
        """
        envelope, entry = letter.envelope, letter.handler
        try:
            message: Message = codec.decode_body(entry.message_type, envelope.content)
        except InvalidMessageError as problem:
            log.warning("%s: %s was not handled: %s", self._name, envelope.message_type, problem)
            self._counters.refused += 1
            self._answers.refuse(letter.reply, envelope.message_id, problem)
            return None
        context = context_of(self._name, envelope, answers=entry.kind != "event")
        outer = enter(context)
        letter.handling = True
        counters, sent = self._counters, envelope.timestamp
        if sent is not None:
            waited = time() - sent.timestamp()
            context.queued = waited = waited if waited > 0.0 else 0.0
            # As `Histogram.observe` does it, without the call: this is done for every message.
            counters.queued.counts[0 if waited <= SHORTEST else bisect_left(SECONDS, waited)] += 1
            counters.queued.sum += waited
        tracer = self._transport.tracer
        span = None if tracer is None else tracer.received(context)
        began = letter.began = perf_counter()
        error: BaseException | None = None
        try:
            await self._handle(letter, agent, message, context)
        except asyncio.CancelledError as cancelled:
            # Cancelled by us; with the worker, because the loop ends; or something inside the handler was cancelled,
            # and that is its failure and not our end.
            if letter.why_cancelled is None and worker.cancelling():
                raise
            error = letter.why_cancelled or cancelled
        except (Exception, SystemExit) as raised:  # user code: the sender or the supervisor is told
            error = letter.why_cancelled or raised
        finally:
            letter.handling = False
            if letter.why_cancelled is not None:
                worker.uncancel()
            seconds = perf_counter() - began
            counters.durations.counts[0 if seconds <= SHORTEST else bisect_left(SECONDS, seconds)] += 1
            counters.durations.sum += seconds
            leave(outer)
        if span is not None:
            span.ended(envelope.message_type, error)
        if context.submitted and isinstance(letter.why_cancelled, AskerGoneError):
            await self._cancel_tasks(context.submitted)
        if error is not None:
            outer = enter(context)  # what is logged of it says what it is about
            try:
                return await self._conclude(letter, message, error)
            finally:
                leave(outer)
        self._counters.handled += 1
        return None

    async def _cancel_tasks(self, task_ids: Sequence[str]) -> None:
        """What a request started is of no use any more. What cannot be reached ends at the deadline it inherited."""
        by = f"the end of the request to {self._name} that submitted it"
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT):
                await asyncio.gather(*(self._tasks.cancel(task_id, by) for task_id in task_ids))
        except (TimeoutError, AgentMeshError) as error:
            log.warning("%s: not all of %d tasks could be cancelled: %s", self._name, len(task_ids), error)

    async def _handle(self, letter: Letter, agent: Agent, message: Message, context: Context) -> None:
        entry = letter.handler
        if letter.envelope.key and entry.kind != "event":
            await self._handle_once(letter, agent, message, context)
        elif entry.kind == "stream":
            await self._stream(letter, entry.call(agent, message, context))
        else:
            result = await entry.call(agent, message, context)
            if entry.kind == "request" and letter.reply:
                await self._answers.reply(letter, codec.encode_body(result, entry.reply_type))

    async def _handle_once(self, letter: Letter, agent: Agent, message: Message, context: Context) -> None:
        """A request with an idempotency key: its reply may be known already. It is always one reply."""
        entry = letter.handler

        async def work() -> bytes:
            if entry.kind == "stream":
                return await _joined(letter, entry.call(agent, message, context))
            return codec.encode_body(await entry.call(agent, message, context), entry.reply_type)

        if letter.envelope.window > 0:
            raise InvalidMessageError("a request with an idempotency key gets one reply, and not a stream")
        reply = await keyed.handle(self._keys, self._name, letter.envelope, work)
        if letter.reply:
            await self._answers.reply(letter, reply)

    async def _stream(self, letter: Letter, chunks: Any) -> None:
        if letter.envelope.window > 0 and letter.reply:
            try:
                await self._send_chunks(letter, chunks)
            finally:
                await chunks.aclose()
            return
        whole = await _joined(letter, chunks)  # one reply is wanted
        if letter.reply:
            await self._answers.reply(letter, whole)

    async def _send_chunks(self, letter: Letter, chunks: Any) -> None:
        envelope = letter.envelope
        writer = StreamWriter(
            self._transport, letter.reply, envelope.message_id, self._name, letter.handler.reply_type, envelope.window
        )
        try:
            async for chunk in chunks:
                await writer.send(chunk)
            await writer.end()
        finally:
            writer.close()

    async def _conclude(
        self, letter: Letter, message: Message, error: BaseException
    ) -> tuple[BaseException, Message] | None:
        """A handler did not return: say so to whoever should know."""
        if isinstance(error, AskerGoneError):
            return None
        if isinstance(error, Finish) and letter.handler.kind == "event":
            self._counters.handled += 1
            return error, message
        self._counters.failed += 1
        kind = letter.envelope.message_type
        if letter.handler.kind != "event":
            if not isinstance(error, AgentMeshError):
                log.error("%s: handler of %s failed", self._name, kind, exc_info=error)
            if letter.reply:
                await self._answers.error(letter, error)
            return None
        if error is letter.why_cancelled:
            log.warning("%s: the handler of %s was interrupted by the end of the agent", self._name, kind)
            return None
        log.error("%s: handler of %s failed", self._name, kind, exc_info=error)
        return error, message


async def _joined(letter: Letter, chunks: Any) -> bytes:
    """All chunks of a stream together, as one reply."""
    try:
        whole = [chunk async for chunk in chunks]
    finally:
        await chunks.aclose()
    return codec.encode_body("".join(whole) if letter.handler.reply_type is str else whole)


def context_of(agent: str, envelope: codec.Envelope, *, answers: bool = False) -> Context:
    """What a handler learns about its message. Who `answers` has a deadline, and belongs to whoever asked."""
    context = Context(
        agent,
        envelope.source_agent_id,
        envelope.message_id,
        envelope.trace_id or envelope.message_id,
        envelope.deadline if answers else None,
        envelope.hops,
        envelope.task_id if answers else "",
        envelope.budget,
        [] if answers else None,
    )
    if envelope.traceparent or envelope.baggage:
        inherit(context, envelope)
    return context
