"""Asking the LLM gateway from a program.

    llm = LLMClient(mesh)
    answer = await llm.generate("Tell me about NATS", max_tokens=100)
    async for part in llm.stream("Tell me more"):
        print(part.content, end="")
    job = await llm.submit("Write a novel")                 # durable; mesh.job(job.id) finds it again

and, with the messages of `agentmesh.proto`, through the protobuf door:

    response = await llm.infer(inference_request("Tell me about NATS"))
    async for chunk in llm.infer_stream(inference_request("Tell me more")):
        print(chunk.output_text_delta, end="")
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from agentmesh import proto
from agentmesh.agents.llm.doors.inference import FINGERPRINT, JSON, MESSAGE_TYPE, PROTOBUF, REQUEST
from agentmesh.agents.llm.doors.inquiry import invalid
from agentmesh.agents.llm.doors.requests import response_of
from agentmesh.agents.llm.messages import Generate, GenerationParameters, LLMPart, LLMRequest, LLMResponse
from agentmesh.chat import ChatMessage
from agentmesh.chunked import (
    CANCEL_CONTROL,
    CONTENT_TYPE,
    DEFAULT_WINDOW,
    TIMEOUT,
    ChunkReader,
    trace_at_hand,
    trace_headers,
)
from agentmesh.client import Client
from agentmesh.errors import BrokerError, DeadlineExceededError, InvalidMessageError, ModelError, NoRespondersError
from agentmesh.ids import new_id
from agentmesh.registry import nobody_on
from agentmesh.transport import Message

if TYPE_CHECKING:
    from agentmesh.proto import LLMInferenceRequest, LLMInferenceResponse, LLMStreamChunk
    from agentmesh.tasks import Job

GENERATE_TIMEOUT = 60.0
"""Seconds an answer is waited for unless told otherwise."""

ANSWER_GRACE = 1.0
"""Seconds beyond the deadline in which the gateway's own word that it has passed may still come."""


class LLMClient:
    """See the module.

    Args:
        mesh: The connection.
        agent: Name of the gateway.
        door: Subject of the protobuf door; unset: that of the tenant, beside the `svc.ai.llm.v1.infer` for everybody.
    """

    def __init__(self, mesh: Client, agent: str = "llm", *, door: str = "") -> None:
        self._mesh = mesh
        self._agent = agent
        self._door = door or mesh.subjects.tenant_infer()

    async def generate(
        self,
        prompt: str | LLMRequest = "",
        *,
        messages: Sequence[ChatMessage | dict[str, Any]] | None = None,
        timeout: float = GENERATE_TIMEOUT,
        idempotency_key: str = "",
        **wanted: Any,
    ) -> LLMResponse:
        """One request, one whole answer.

        Args:
            prompt: The text; or a whole request.
            messages: Instead: a conversation.
            timeout: Seconds; the gateway knows of them, and stops then.
            idempotency_key: Asked again with it, the first answer comes back; giving up does not stop the model, then.
            wanted: Fields of `LLMRequest` and `GenerationParameters`: `model`, `temperature`, `tools`, `context` …

        Raises:
            ModelError: There is no answer, and the gateway says why.
            DeadlineExceededError: The gateway said nothing in time.
            NoRespondersError: There is no gateway.
            InvalidMessageError: The request cannot be one.
        """
        request = _request(prompt, messages, wanted)
        body = _request_body(request, idempotency_key)
        headers = {CONTENT_TYPE: JSON, TIMEOUT: f"{timeout:g}"}
        answer = await self._ask(self._mesh.subjects.gateway_requests(), request.request_id, body, headers, timeout)
        return response_of(msgspec.json.decode(answer.data)).raise_for_error()

    def stream(
        self,
        prompt: str | LLMRequest = "",
        *,
        messages: Sequence[ChatMessage | dict[str, Any]] | None = None,
        timeout: float = GENERATE_TIMEOUT,
        **wanted: Any,
    ) -> AsyncGenerator[LLMPart, None]:
        """The parts of an answer as they are made, the last a `finish`; leaving the loop stops the model.

        Args:
            prompt: See `generate`.
            messages: See `generate`.
            timeout: Seconds without any part after which it is given up.
            wanted: See `generate`.

        Raises:
            ModelError: It failed, now or on the way.
            StreamIdleError: and the other errors of `Client.stream`.
        """
        return self._parts(_request(prompt, messages, wanted), timeout)

    async def _parts(self, request: LLMRequest, timeout: float) -> AsyncGenerator[LLMPart, None]:
        async with aclosing(self._mesh.stream(self._agent, request, timeout=timeout)) as parts:
            async for part in parts:
                if part.is_final:
                    part.response().raise_for_error()
                yield part

    async def submit(
        self,
        prompt: str | LLMRequest = "",
        *,
        messages: Sequence[ChatMessage | dict[str, Any]] | None = None,
        deadline: float | None = None,
        **wanted: Any,
    ) -> Job[LLMResponse]:
        """The same as a durable job: when this returns it is accepted, and survives whatever crashes.

        Args:
            prompt: See `generate`.
            messages: See `generate`.
            deadline: Seconds; not done by then, it expires.
            wanted: See `generate`; `request_id` is the id of the job: submitted again with it, nothing is done twice.

        Raises:
            QueueFullError: and the other errors of `Client.submit`.
        """
        request = _request(prompt, messages, wanted)
        job = Generate(**{name: getattr(request, name) for name in LLMRequest.model_fields})
        return await self._mesh.submit(
            job, to=self._agent, task_id=request.request_id, priority=request.priority, deadline=deadline
        )

    # ------------------------------------------------------------ the protobuf door
    async def infer(self, request: LLMInferenceRequest, *, timeout: float = GENERATE_TIMEOUT) -> LLMInferenceResponse:
        """Send a protobuf request and wait for its response.

        Raises:
            MissingExtraError: `protobuf` is not installed.
            ModelError: The response has an error.
            DeadlineExceededError: There was none in time.
            NoRespondersError: Nobody serves the door.
            InvalidMessageError: What came is no response.
        """
        request_id = _with_id(request)
        headers = {**_PROTOBUF_HEADERS, TIMEOUT: f"{timeout:g}"}
        answer = await self._ask(self._door, request_id, request.SerializeToString(), headers, timeout)
        response: LLMInferenceResponse = _parsed(proto.LLMInferenceResponse, answer)
        if response.HasField("error"):
            raise _model_error(response.error)
        return response

    async def infer_stream(
        self,
        request: LLMInferenceRequest,
        *,
        timeout: float | None = None,
        idle_timeout: float = GENERATE_TIMEOUT,
        window: int = DEFAULT_WINDOW,
    ) -> AsyncGenerator[LLMStreamChunk, None]:
        """Send a protobuf request for a stream and yield its chunks, the final one included.

        Leaving the loop stops the model. A reader that is slow slows the producer down, and loses nothing.

        Args:
            request: `params.stream` is set.
            timeout: Seconds for all of it; None: as long as chunks come.
            idle_timeout: Seconds without any chunk after which it is given up.
            window: Chunks that may be under way.

        Raises:
            ModelError: The final chunk has an error.
            StreamGapError: A chunk is missing.
            StreamIdleError: Nothing came for `idle_timeout` seconds.
            DeadlineExceededError: It took longer than `timeout`.
            NoRespondersError: Nobody serves the door.
        """
        request.params.stream.value = True
        request_id = _with_id(request)
        latest: LLMStreamChunk

        def position(message: Message) -> tuple[int, bool]:
            nonlocal latest
            if (message.headers or {}).get(MESSAGE_TYPE, "").endswith(".LLMInferenceResponse"):
                raise _model_error(_parsed(proto.LLMInferenceResponse, message).error)  # it could not be read at all
            latest = _parsed(proto.LLMStreamChunk, message)
            return latest.index, latest.is_final

        reader = ChunkReader(
            self._mesh.transport,
            self._door,
            position,
            idle_timeout=idle_timeout,
            timeout=timeout,
            window=window,
        )
        try:
            async with aclosing(reader.ask(request.SerializeToString(), _PROTOBUF_HEADERS)) as messages:
                async for _ in messages:
                    if latest.HasField("error"):
                        raise _model_error(latest.error)
                    yield latest
        finally:
            if not (reader.finished or reader.has_begun):
                await self._cancel(request_id)

    # ------------------------------------------------------------ both
    async def _ask(
        self, subject: str, request_id: str, body: bytes, headers: dict[str, str], timeout: float
    ) -> Message:
        try:
            said = {**trace_headers(), **headers}
            return await self._mesh.transport.request(subject, body, timeout=timeout + ANSWER_GRACE, headers=said)
        except (asyncio.CancelledError, DeadlineExceededError) as error:
            await self._cancel(request_id)
            if isinstance(error, DeadlineExceededError):
                raise DeadlineExceededError(subject, timeout) from None
            raise
        except NoRespondersError:
            raise await nobody_on(self._mesh.transport, subject) from None

    async def _cancel(self, request_id: str) -> None:
        """Let the gateway know that nobody waits. If that fails, it hears so from the deadline."""
        if self._mesh.transport.is_connected:
            with contextlib.suppress(BrokerError):
                await self._mesh.transport.publish(self._mesh.subjects.control(CANCEL_CONTROL), request_id.encode())


_PROTOBUF_HEADERS = {
    CONTENT_TYPE: PROTOBUF,
    MESSAGE_TYPE: f"ai_integration.v1.{REQUEST}",
    FINGERPRINT: proto.FINGERPRINT,
}

_PARAMETERS = frozenset(GenerationParameters.model_fields)


def _request(
    prompt: str | LLMRequest, messages: Iterable[ChatMessage | dict[str, Any]] | None, wanted: dict[str, Any]
) -> LLMRequest:
    """The request for what was written out."""
    if isinstance(prompt, LLMRequest):
        if messages is not None or wanted:
            raise InvalidMessageError("give a whole LLMRequest, or its fields, not both")
        return prompt
    params = {name: wanted.pop(name) for name in list(wanted) if name in _PARAMETERS}
    fields = {**wanted, **({"params": params} if params else {})}
    fields |= {"prompt": prompt} if messages is None else {"messages": list(messages)}
    if messages is not None and prompt:
        raise InvalidMessageError("give prompt or messages, one of them")
    try:
        return LLMRequest.model_validate(fields)
    except ValidationError as error:
        raise InvalidMessageError(invalid(error, (LLMRequest, GenerationParameters)).message) from None


_BESIDE_META = ("trace_id", "client_id", "user_id", "timestamp", "labels")


def _request_body(request: LLMRequest, idempotency_key: str) -> bytes:
    """As the door `ai.gateway.requests.T` takes it."""
    body = request.model_dump(mode="json", exclude={"meta"}, exclude_none=True)
    meta = request.meta.model_dump(mode="json", include=set(_BESIDE_META), exclude_defaults=True)
    if "trace_id" not in meta and (trace_id := trace_at_hand()):
        meta["trace_id"] = trace_id
    key = idempotency_key or request.meta.idempotency_key
    return msgspec.json.encode({**body, **meta, **({"idempotency_key": key} if key else {"once": False})})


def _with_id(request: LLMInferenceRequest) -> str:
    """The id of a request, which it gets if it has none, as it does the trace at hand."""
    _ = proto.LLMInferenceRequest  # raises MissingExtraError
    if not request.meta.request_id:
        request.meta.request_id = new_id()
    if not request.meta.trace_id:
        request.meta.trace_id = trace_at_hand()
    return request.meta.request_id


def _parsed(kind: Any, message: Message) -> Any:
    """The protobuf message in an answer; an answer in another format is an error in plain JSON."""
    from agentmesh.proto.plain import parse

    said = (message.headers or {}).get(CONTENT_TYPE, PROTOBUF)
    if said == JSON:
        return proto.from_json(kind, message.data)
    return parse(kind, message.data)


def _model_error(error: Any) -> ModelError:
    details = dict(error.details)
    pause = details.pop("retry_after", "")
    code = proto.Error.Code.Name(error.code) if error.code in proto.Error.Code.values() else "UNKNOWN"
    return ModelError(code, error.message, details.pop("backend", ""), float(pause or 0), details)
