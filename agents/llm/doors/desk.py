"""How an answer is had, whatever door it is asked for at: by its deadline, and once per idempotency key."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

import msgspec

from agentmesh import codec
from agentmesh.agents.llm.doors.inquiry import Inquiry, explained, failure, refused
from agentmesh.agents.llm.messages import LLMPart, LLMRequest, LLMResponse
from agentmesh.client import Client
from agentmesh.codes import ErrorCode
from agentmesh.context import Context, enter, leave
from agentmesh.errors import AgentMeshError, BrokerError, ModelError, PayloadTooLargeError
from agentmesh.ids import new_id, now
from agentmesh.tasks.keys import PAUSES, Entry, Keys, Record, checked, fingerprint
from agentmesh.trace import trace_id_of

log = logging.getLogger("agentmesh.llm.doors")

Generate = Callable[[LLMRequest, str], AsyncIterator[LLMPart]]
"""The gateway's pipeline: never raises, ends with a `finish`; closing it cancels the call."""

START = "start"
"""Type of the part with which `Desk.parts` begins; its `data` has the `generation_id`."""

KEYED_STREAM = 600.0
"""Seconds for which a streamed answer without a deadline holds its idempotency key."""

PIECE = 16_384
"""Characters of a stored answer that are sent as one piece."""

MAY_PASS = frozenset(
    {
        ErrorCode.UNKNOWN,
        ErrorCode.RESOURCE_EXHAUSTED,
        ErrorCode.ABORTED,
        ErrorCode.INTERNAL,
        ErrorCode.UNAVAILABLE,
        ErrorCode.DEADLINE_EXCEEDED,
    }
)
"""What is not remembered under a key: asked again, it may go well."""

_WHAT = "inference"


class Desk:
    """See the module.

    Args:
        client: The connection.
        generate: The gateway.
        timeout: Seconds an answer may take if the client does not say.
        idle_timeout: Seconds until the next part of a stream, if the client does not say.
    """

    def __init__(self, client: Client, generate: Generate, *, timeout: float, idle_timeout: float) -> None:
        self._generate = generate
        self._timeout = timeout
        self._idle_timeout = idle_timeout
        self._agent = client.identity
        self._tenant = client.subjects.tenant
        self._keys = Keys(client.transport, client.subjects, "infer")

    async def answer(self, inquiry: Inquiry) -> LLMResponse:
        """The whole answer; an error is in it."""
        last: LLMPart | None = None
        async with aclosing(self.parts(inquiry)) as parts:
            async for part in parts:
                last = part
        assert last is not None, "parts end with a finish"
        return last.response()

    async def parts(self, inquiry: Inquiry) -> AsyncGenerator[LLMPart, None]:
        """A `start`, the parts as they come, and a `finish`; never raises for what goes wrong on the way.

        Closing it cancels the model call, and gives an idempotency key back.
        """
        deadline = inquiry.deadline
        if deadline is None and not inquiry.stream:
            deadline = now() + timedelta(seconds=self._timeout)
        try:
            source = self._once(inquiry, deadline) if inquiry.key else self._made(inquiry, deadline)
            async with aclosing(source) as parts:
                async for part in parts:
                    yield part
        except Exception as error:  # the edge: whatever went wrong, there is an answer
            if not isinstance(error, AgentMeshError):
                log.exception("request %s failed at the door", inquiry.request.request_id)
            yield _failed(inquiry, explained(error))

    # ------------------------------------------------------------ made now
    async def _made(self, inquiry: Inquiry, deadline: datetime | None) -> AsyncGenerator[LLMPart, None]:
        """The parts of a new answer, until the deadline."""
        request, generation = inquiry.request, f"gen-{new_id()}"
        yield LLMPart(type=START, data={"generation_id": generation})
        made: Any = self._generate(request, self._tenant)
        trace = inquiry.trace
        context = Context(
            self._agent,
            request.meta.client_id,
            request.request_id,
            trace_id_of(trace.trace_id or request.request_id),
            deadline,
            traceparent=trace.traceparent,
            tracestate=trace.tracestate,
            baggage=trace.baggage,
        )
        idle = inquiry.idle_timeout or self._idle_timeout
        async with aclosing(made):
            while True:
                left = None if deadline is None else (deadline - now()).total_seconds()
                patience = min(idle if inquiry.stream else left or idle, idle if left is None else left)
                outer = enter(context)  # for each step: a generator does not keep it while others run
                try:
                    async with asyncio.timeout(max(0.0, patience)):
                        part: LLMPart = await anext(made)
                except TimeoutError:
                    yield _failed(inquiry, _late(patience, left), generation)
                    return
                finally:
                    leave(outer)
                if part.is_final:
                    response = part.response().model_copy(update={"generation_id": generation})
                    yield LLMPart(type="finish", data=response.model_dump(mode="json"))
                    return
                yield part

    # ------------------------------------------------------------ once per key
    async def _once(self, inquiry: Inquiry, deadline: datetime | None) -> AsyncGenerator[LLMPart, None]:
        """The parts of the answer that was given under the key, or of a new one, which is then given to all."""
        until = deadline or now() + timedelta(seconds=KEYED_STREAM)
        got = await self._claimed(inquiry, until)
        if isinstance(got, LLMResponse):
            for part in _told_again(inquiry, got):
                yield part
            return
        settled = False
        try:
            async with aclosing(self._made(inquiry, until)) as parts:
                async for part in parts:
                    if part.is_final:
                        await self._settle(got, part.response())
                        settled = True
                    yield part
        finally:
            if not settled:
                with contextlib.suppress(BrokerError):  # then the key is free when its time has passed
                    await self._keys.release(got)

    async def _claimed(self, inquiry: Inquiry, until: datetime) -> Entry | LLMResponse:
        """Our claim to the key, or what was answered under it; waits for whoever is at it.

        Raises:
            IdempotencyConflictError: The key was used for another request.
            ModelError: Still under way elsewhere when time was up.
        """
        key, mark = checked(inquiry.key), _mark(inquiry.request)
        entry: Entry | None = None
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            # The first look is the attempt itself: most keys are new.
            if entry is None or entry.record.state == "free" or entry.record.is_abandoned():
                claimed = await self._keys.claim(Record(key, _WHAT, mark, until=until), entry)
                if claimed is not None:
                    return claimed
            entry = await self._keys.find(key, mark, _WHAT)
            if entry is not None and entry.record.state == "decided":
                return LLMResponse.model_validate_json(bytes(entry.record.result))
            left = (until - now()).total_seconds()
            if left <= 0:
                break
            if entry is not None and entry.record.state == "claimed":
                await asyncio.sleep(min(pause, left))
        raise refused(
            ErrorCode.DEADLINE_EXCEEDED, "the same request, with the same idempotency key, is still under way elsewhere"
        )

    async def _settle(self, claimed: Entry, response: LLMResponse) -> None:
        """Keep the answer for whoever asks again; what may pass is not kept."""
        if response.error is not None and response.error.code in MAY_PASS:
            await self._keys.release(claimed)
            return
        kept = response.model_dump_json(exclude={"cached"}).encode()
        try:
            await self._keys.decide(claimed, result=msgspec.Raw(kept))
        except PayloadTooLargeError:
            log.warning("an answer of %d bytes is too large to be kept under its idempotency key", len(kept))
            await self._keys.release(claimed)


def _mark(request: LLMRequest) -> str:
    """Of what is asked; who asks, when and how urgently does not matter, nor whether it is streamed."""
    asked = request.model_dump(mode="json", exclude={"request_id", "meta", "priority", "wait", "cache"})
    asked["params"].pop("stream", None)
    return fingerprint(_WHAT, codec.encode_body(asked))


def _told_again(inquiry: Inquiry, response: LLMResponse) -> list[LLMPart]:
    """A stored answer as parts."""
    texts = [response.text[at : at + PIECE] for at in range(0, len(response.text), PIECE)]
    finish = response.model_copy(update={"request_id": inquiry.request.request_id, "cached": True})
    return [
        LLMPart(type=START, data={"generation_id": response.generation_id}),
        *(LLMPart(content=text) for text in texts),
        LLMPart(type="finish", data=finish.model_dump(mode="json")),
    ]


def _failed(inquiry: Inquiry, error: ModelError, generation: str = "") -> LLMPart:
    response = failure(error, inquiry.request.request_id).model_copy(update={"generation_id": generation})
    return LLMPart(type="finish", data=response.model_dump(mode="json"))


def _late(patience: float, left: float | None) -> ModelError:
    if left is not None and left <= patience:
        return refused(ErrorCode.DEADLINE_EXCEEDED, "there was no whole answer by the deadline", limit="deadline")
    return refused(ErrorCode.DEADLINE_EXCEEDED, f"the model said nothing for {patience:g} s", limit="idle")
