"""One door: takes requests from the broker, each in a task of its own, and answers every one of them.

    message -> document -> inquiry -> parts of an answer -> one reply, or pieces with a last one

Whatever happens on the way, there is exactly one terminal answer; none only if nobody listens any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from agentmesh import proto
from agentmesh.agents.llm.doors.desk import START, Desk
from agentmesh.agents.llm.doors.dialect import Dialect, Headers
from agentmesh.agents.llm.doors.inference import FINGERPRINT, JSON_FORM, PROTOBUF
from agentmesh.agents.llm.doors.inquiry import Inquiry, explained, failure, refused
from agentmesh.agents.llm.messages import LLMError, LLMResponse
from agentmesh.chunked import CONTENT_TYPE, ChunkSender, header
from agentmesh.codes import ErrorCode
from agentmesh.errors import AgentMeshError, BrokerError, ModelError, PayloadTooLargeError, StreamIdleError
from agentmesh.ids import new_id
from agentmesh.metrics import metrics_of
from agentmesh.transport import Endpoint, Message, Subscription, Transport

log = logging.getLogger("agentmesh.llm.doors")

HANDED_ON = "Handed-On"
"""How many replicas that were full have passed a request on."""
MOST_HANDS = 8

SERVICE_ERROR, SERVICE_ERROR_CODE = "Nats-Service-Error", "Nats-Service-Error-Code"
"""What clients of NATS micro services look at."""

STATUS = {
    ErrorCode.UNKNOWN: 500,
    ErrorCode.INVALID_ARGUMENT: 400,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.PERMISSION_DENIED: 403,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.CONFLICT: 409,
    ErrorCode.RESOURCE_EXHAUSTED: 429,
    ErrorCode.FAILED_PRECONDITION: 412,
    ErrorCode.ABORTED: 409,
    ErrorCode.OUT_OF_RANGE: 400,
    ErrorCode.UNIMPLEMENTED: 501,
    ErrorCode.INTERNAL: 500,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}

LONGEST_PIECE = 65_536
"""Characters of a piece; a longer part becomes several."""

CANCELLED, GONE, STOPPING = "the client cancelled it", "the client is gone", "the gateway is stopping"

Choose = Callable[[bytes, Headers], Dialect]
"""Finds the dialect of a message; raises ModelError."""
Accept = Callable[[Inquiry, Callable[[LLMResponse], bytes]], Any]
"""Makes a job of an inquiry; a coroutine that returns its id. The second argument writes its answer."""


@dataclass(eq=False)
class Visit:
    """One request under way."""

    message: Message
    began: float = field(default_factory=perf_counter)
    task: asyncio.Task[None] | None = None
    request_id: str = ""
    keyed: bool = False
    """Others may wait for the same answer."""
    why_ended: str = ""
    """Set before its task is cancelled by us."""
    meta: dict[str, Any] = field(default_factory=dict)
    dialect: Dialect = JSON_FORM
    inquiry: Inquiry | None = None
    in_pieces: bool = False
    """Its client expects pieces, whatever else is wrong with it."""
    error: str = ""

    def end(self, why: str) -> None:
        """Stop it; only the first reason counts."""
        if not self.why_ended and self.task is not None and not self.task.done():
            self.why_ended = why
            self.task.cancel()


class Door:
    """See the module.

    Args:
        transport: The connection.
        desk: Where answers are had.
        endpoint: Subject, queue group and counters.
        choose: Finds the dialect of a request.
        accept: Makes jobs; None: there are none at this door.
        capacity: Requests under way; one more is passed on to another replica, and after eight of those refused.
    """

    def __init__(
        self,
        transport: Transport,
        desk: Desk,
        endpoint: Endpoint,
        choose: Choose,
        accept: Accept | None = None,
        *,
        capacity: int,
    ) -> None:
        self._transport = transport
        self._desk = desk
        self.endpoint = endpoint
        self._choose = choose
        self._accept = accept
        self._capacity = capacity
        self._visits: set[Visit] = set()
        self._first_piece = metrics_of(transport).histogram(
            "agentmesh_door_first_piece_seconds",
            "From the arrival of a request for a stream to its first piece of text.",
            door=endpoint.name,
        )
        self._subscription: Subscription | None = None
        self.held: Callable[[], AgentMeshError | None] = lambda: None
        """Why requests are refused at present; jobs wait instead."""
        self.on_answer: Callable[[Inquiry, LLMResponse], None] = lambda inquiry, response: None
        """Told of every whole answer to a request that was understood; must not block."""

    @property
    def under_way(self) -> int:
        return len(self._visits)

    async def open(self) -> None:
        """Take requests."""
        endpoint = self.endpoint
        self._subscription = await self._transport.subscribe(
            endpoint.subject, self._on_message, queue=endpoint.queue_group
        )

    async def close(self, grace: float) -> None:
        """Take no more, finish what is under way within `grace` seconds, and tell the rest that we stop."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.drain()
        tasks = [visit.task for visit in self._visits if visit.task is not None]
        if tasks and grace > 0:
            await asyncio.wait(tasks, timeout=grace)
        for visit in list(self._visits):
            visit.end(STOPPING)
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def cancel(self, request_id: str) -> None:
        """The client of a request has gone. With an idempotency key others may wait for the same answer."""
        for visit in list(self._visits):
            if request_id and visit.request_id == request_id and (visit.in_pieces or not visit.keyed):
                visit.end(CANCELLED)

    # ------------------------------------------------------------ arrival
    def _on_message(self, message: Message) -> None:
        if message.reply[:1] == "$":  # the broker's own subjects: nobody there waits, and we must not act on them
            message.reply = ""
        visit = Visit(message)
        full = len(self._visits) >= self._capacity
        work = self._turn_away(visit) if full else self._serve(visit)
        visit.task = asyncio.get_running_loop().create_task(work, name=f"request on {self.endpoint.subject}")
        if not full:
            self._visits.add(visit)
            visit.task.add_done_callback(lambda task: self._visits.discard(visit))

    async def _turn_away(self, visit: Visit) -> None:
        """Pass it on to whichever replica the broker picks next; say so if they are all full."""
        message = visit.message
        hands = header(message.headers, HANDED_ON, "0")
        count = int(hands) if hands.isdigit() and len(hands) < 3 else MOST_HANDS
        try:
            if count < MOST_HANDS:
                headers = {**(message.headers or {}), HANDED_ON: str(count + 1)}
                await self._transport.publish(self.endpoint.subject, message.data, message.reply, headers)
                return
            problem = f"{self._capacity} requests are under way at this gateway already; try again later"
            self._understand(visit, meta_only=True)
            await self._fail(visit, refused(ErrorCode.RESOURCE_EXHAUSTED, problem, 1.0))
        except AgentMeshError as error:
            log.warning("a request could not be turned away: %s", error)

    async def _serve(self, visit: Visit) -> None:
        try:
            self._understand(visit)
            await self._answer(visit)
        except asyncio.CancelledError:
            if not visit.why_ended:
                raise
            await self._say_why(visit)
        except StreamIdleError as error:  # the client has a window and does not confirm any more
            visit.error = str(error)
        except Exception as error:  # the edge: nobody may wait for an answer that does not come
            if not isinstance(error, AgentMeshError):
                log.exception("a request on %s failed", self.endpoint.subject)
            await self._fail(visit, explained(error))
        finally:
            self.endpoint.count(perf_counter() - visit.began, visit.error)

    def _understand(self, visit: Visit, *, meta_only: bool = False) -> None:
        message, headers = visit.message, visit.message.headers
        visit.meta = {"request_id": new_id()}  # an answer to what cannot be read needs one, too
        try:
            visit.dialect = self._choose(message.data, headers)
            document = visit.dialect.document(message.data, headers)
            visit.meta = visit.dialect.meta(document, headers)
            visit.in_pieces = _wants_pieces(document)
            if not meta_only:
                inquiry = visit.inquiry = visit.dialect.inquiry(document, visit.meta, headers)
                visit.request_id, visit.keyed = inquiry.request.request_id, bool(inquiry.key)
        except ModelError:
            if not meta_only:
                raise

    async def _answer(self, visit: Visit) -> None:
        inquiry, message = visit.inquiry, visit.message
        assert inquiry is not None
        if self._accept is not None and (inquiry.job or not message.reply):
            job_id = await self._accept(inquiry, lambda response: visit.dialect.whole(visit.meta, response, inquiry))
            if message.reply:
                await self._reply(visit, visit.dialect.accepted(visit.meta, job_id))
        elif (why := self.held()) is not None:
            raise why
        elif not message.reply:
            log.warning("a request on %s has no reply subject: nobody would get the answer", self.endpoint.subject)
        elif inquiry.stream:
            await self._stream(visit, inquiry)
        else:
            response = await self._desk.answer(inquiry)
            await self._whole(visit, response)
            self.on_answer(inquiry, response)

    async def _stream(self, visit: Visit, inquiry: Inquiry) -> None:
        def ended(asked: bool) -> None:
            visit.end(CANCELLED if asked else GONE)

        sender = ChunkSender(self._transport, visit.message.reply, inquiry.window, ended)
        headers = self._headers(visit.dialect, "LLMStreamChunk")
        pieces = visit.dialect.pieces(visit.meta, "")
        response: LLMResponse | None = None
        try:
            async with aclosing(self._desk.parts(inquiry)) as parts:
                async for part in parts:
                    if part.type == START:
                        pieces = visit.dialect.pieces(visit.meta, part.data["generation_id"])
                    elif part.is_final:
                        response = part.response()
                    elif part.type == "text":
                        if not sender.sent:
                            self._first_piece.observe(perf_counter() - visit.began)
                        for text in _cut(part.content):
                            await sender.send(pieces.text(sender.sent, text), headers)
        except asyncio.CancelledError:
            if not visit.why_ended:
                raise
            response = failure(_why(visit), visit.request_id)
        except StreamIdleError:
            sender.close()
            raise
        except Exception as error:  # the edge: the last piece says so
            if not isinstance(error, AgentMeshError):
                log.exception("a streamed answer on %s failed", self.endpoint.subject)
            response = failure(explained(error), visit.request_id)
        try:
            assert response is not None
            if visit.why_ended != GONE:
                visit.error = response.error.message if response.error else ""
                end = {**headers, **_service_error(response.error)}
                await sender.send_last(pieces.last(sender.sent, response), end)
        finally:
            sender.close()

    # ------------------------------------------------------------ answers
    async def _whole(self, visit: Visit, response: LLMResponse) -> None:
        visit.error = response.error.message if response.error else ""
        try:
            data = visit.dialect.whole(visit.meta, response, visit.inquiry)
            await self._reply(visit, data, _service_error(response.error))
        except PayloadTooLargeError as error:
            problem = f"the answer of {error.size} bytes is over the limit of a message; ask for a stream"
            short = failure(refused(ErrorCode.OUT_OF_RANGE, problem), visit.request_id)
            await self._reply(visit, visit.dialect.whole(visit.meta, short, visit.inquiry), _service_error(short.error))

    async def _fail(self, visit: Visit, error: ModelError) -> None:
        """Answer that there is no answer: to who wanted pieces, with the last one."""
        visit.error = error.message
        response = failure(error, str(visit.meta.get("request_id", "")))
        if not visit.message.reply:
            log.warning("a request on %s was not taken: %s", self.endpoint.subject, error)
            return
        try:
            if visit.in_pieces:
                data, kind = visit.dialect.pieces(visit.meta, "").last(0, response), "LLMStreamChunk"
            else:
                data, kind = visit.dialect.whole(visit.meta, response, visit.inquiry), "LLMInferenceResponse"
        except AgentMeshError:  # the dialect cannot be spoken here
            visit.dialect = JSON_FORM
            data, kind = JSON_FORM.whole(visit.meta, response, None), "LLMInferenceResponse"
        try:
            await self._reply(visit, data, _service_error(response.error), kind)
        except BrokerError as problem:
            log.warning("an answer could not be sent: %s", problem)

    async def _say_why(self, visit: Visit) -> None:
        if visit.why_ended != GONE:
            await self._fail(visit, _why(visit))

    async def _reply(
        self, visit: Visit, data: bytes, extra: dict[str, str] | None = None, kind: str = "LLMInferenceResponse"
    ) -> None:
        headers = {**self._headers(visit.dialect, kind), **(extra or {})}
        await self._transport.publish(visit.message.reply, data, headers=headers)

    def _headers(self, dialect: Dialect, kind: str) -> dict[str, str]:
        headers = {CONTENT_TYPE: dialect.content_type}
        if dialect.content_type == PROTOBUF:
            headers |= {"message-type": f"ai_integration.v1.{kind}", FINGERPRINT: proto.FINGERPRINT}
        return headers


def _wants_pieces(document: Mapping[str, Any]) -> bool:
    """Whether a request asks for a stream; also of one that is wrong otherwise."""
    params = document.get("params")
    return isinstance(params, Mapping) and params.get("stream") is True


def _why(visit: Visit) -> ModelError:
    if visit.why_ended == STOPPING:
        return refused(ErrorCode.UNAVAILABLE, STOPPING, 1.0)
    return refused(ErrorCode.ABORTED, visit.why_ended)


def _service_error(error: LLMError | None) -> dict[str, str]:
    if error is None:
        return {}
    line = " ".join(error.message.split())[:500]
    return {SERVICE_ERROR_CODE: str(STATUS[error.code]), SERVICE_ERROR: f"{error.code.value}: {line}"}


def _cut(text: str) -> list[str]:
    if 0 < len(text) <= LONGEST_PIECE:
        return [text]
    return [text[at : at + LONGEST_PIECE] for at in range(0, len(text), LONGEST_PIECE)]
