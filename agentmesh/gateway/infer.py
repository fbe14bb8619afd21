"""`POST /ai/llm/infer`: language models over HTTP, by way of the door `svc.ai.llm.v1.infer` of the caller's tenant.

    curl localhost:8000/ai/llm/infer -d '{"input": {"prompt": "Hello"}, "params": {"temperature": 0.7}}'

The body is the JSON form of `LLMInferenceRequest`, where the input may be flat or in `input`; so is the answer. What
goes to the broker is JSON, too: nothing here needs protobuf. `params.stream` or `Accept: text/event-stream` asks for
`LLMStreamChunk` documents as server-sent events, the last one with `is_final`: if it goes wrong on the way, the error
is in that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentmesh.chunked import CANCEL_CONTROL, CONTENT_TYPE, TIMEOUT, ChunkReader, trace_at_hand, trace_headers
from agentmesh.client import Client
from agentmesh.codes import ErrorCode
from agentmesh.errors import AgentMeshError, BrokerError, HttpError
from agentmesh.gateway.body import read_object
from agentmesh.gateway.calls import Body, meta_of, while_connected
from agentmesh.gateway.describe import operation
from agentmesh.gateway.errors import explained, refused
from agentmesh.gateway.gateway import Caller, Gateway
from agentmesh.gateway.sse import EventStream, event
from agentmesh.ids import now
from agentmesh.transport import Message

INFER = "/ai/llm/infer"
ROUTE = f"POST {INFER}"
MODELS = "/ai/models"
GATEWAY_AGENT = "llm"

INFER_TIMEOUT = 60.0
"""Seconds for an answer, unless `[http.routes]` says otherwise; for a stream: until its next chunk."""

ANSWER_GRACE = 1.0
"""Seconds in which the gateway's own word that time is up may still come."""

TIMEOUT_HEADER = "x-timeout"

_JSON = "application/json"
_INPUTS = ("prompt", "messages", "chat_messages")


class InferBody(Body):
    """A request to a language model. One of `prompt`, `messages` and `chat_messages`, here or in `input`."""

    model_id: str = ""
    """Empty: the gateway's default."""
    input: dict[str, Any] | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    """`[{"role": "user", "content": "…"}]`"""
    chat_messages: list[dict[str, Any]] | dict[str, Any] | None = None
    """The same, also as `{"messages": […]}`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """`temperature`, `top_p`, `max_tokens`, `top_k`, `presence_penalty`, `frequency_penalty`, `stop`, `stream`."""
    context: dict[str, Any] | None = None
    """For the gateway and its backends."""
    idempotency_key: str = ""
    """Sent again with it, the first answer comes back; also as header `Idempotency-Key`."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Fields of `Meta`; header fields win."""


def routes(gateway: Gateway) -> list[BaseRoute]:
    """See the module."""
    infer = _Infer(gateway)
    return [
        Route(INFER, infer.infer, methods=["POST"]),
        Route(MODELS, infer.models, methods=["GET", "POST"]),
        Route(f"{MODELS}/{{model}}", infer.model, methods=["GET", "POST"]),
    ]


class _Infer:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @operation(
        tags=["models"],
        body=InferBody,
        headers={
            "Accept": "`text/event-stream`: chunks as they come.",
            "Idempotency-Key": "Sent again with it, the first answer comes back.",
            "X-Timeout": "Seconds for the whole answer, if that is less than the route allows.",
            "X-Trace-ID": "and X-Client-ID, X-User-ID, X-Custom-*: they come back in `meta`.",
        },
        errors=[409, 429, 503, 504],
        example={"model_id": "", "input": {"prompt": "Hello"}, "params": {"temperature": 0.7}},
    )
    async def infer(self, request: Request) -> Response:
        """Have a language model answer."""
        caller = self._gateway.caller(request)
        document = inference(await read_object(request), request, caller)
        client = self._gateway.client(caller.tenant)
        seconds = _seconds(request, self._gateway.options.routes.get(ROUTE, INFER_TIMEOUT))
        if document["params"].get("stream") is True:
            whole = seconds if TIMEOUT_HEADER in request.headers else None
            return await self._stream(caller, client, document, seconds, whole)
        return await while_connected(request, _whole(client, document, seconds))

    async def _stream(
        self, caller: Caller, client: Client, document: dict[str, Any], seconds: float, whole: float | None
    ) -> Response:
        """Chunks as events; what goes wrong before the first one still has a status of its own."""
        chunks = _Chunks(client, document, seconds, whole)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._gateway.stream_slot(caller))
            await stack.enter_async_context(aclosing(chunks.parts))
            await chunks.begin()
            return _ChunkStream(self._gateway, chunks, stack.pop_all())

    @operation(tags=["models"], errors=[404])
    async def models(self, request: Request) -> Response:
        """List the language models, and how they are."""
        return _json({"models": await self._listed(request)})

    @operation(tags=["models"], errors=[404])
    async def model(self, request: Request) -> Response:
        """One language model."""
        wanted = request.path_params["model"]
        listed = await self._listed(request)
        for model in listed:
            if model["name"] == wanted:
                return _json(model)
        near = difflib.get_close_matches(wanted, [model["name"] for model in listed], n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise refused(ErrorCode.NOT_FOUND, f"there is no model {wanted[:80]!r}{hint}", did_you_mean=near)

    async def _listed(self, request: Request) -> list[dict[str, Any]]:
        client = self._gateway.client(self._gateway.caller(request).tenant)
        found: list[dict[str, Any]] = await client.ask_raw(GATEWAY_AGENT, "ListModels", {})
        return found


# ---------------------------------------------------------------- the request


def inference(body: dict[str, Any], request: Request, caller: Caller) -> dict[str, Any]:
    """The JSON form of `LLMInferenceRequest` for a body in any of its shapes.

    Raises:
        HttpError: 400, a field is unknown or of the wrong kind, or there is nothing to answer; 403, another tenant.
    """
    _check_names(body, tuple(InferBody.model_fields), "")
    caller.check_tenant(_text(body, "tenant_id"))
    document: dict[str, Any] = {"model_id": _text(body, "model_id"), "params": dict(_object(body, "params"))}
    document |= _input(body)
    if body.get("context") is not None:
        document["context"] = _object(body, "context")
    if "text/event-stream" in request.headers.get("accept", ""):
        document["params"]["stream"] = True
    document["meta"] = _meta(body, request, caller)
    return document


def _input(body: dict[str, Any]) -> dict[str, Any]:
    """The prompt or the messages, wherever they are; never neither and never two."""
    inner = _object(body, "input")
    _check_names(inner, _INPUTS, "input.")
    given = [
        (f"{where}{name}", source[name])
        for source, where in ((body, ""), (inner, "input."))
        for name in _INPUTS
        if source.get(name) is not None
    ]
    if len(given) != 1:
        said = " and ".join(name for name, _ in given)
        nothing = "there is nothing to answer: give input.prompt or input.messages"
        problem = f"{said}: give one of them" if said else nothing
        raise refused(ErrorCode.INVALID_ARGUMENT, problem, field=said or "input")
    name, value = given[0]
    if name.endswith("prompt"):
        if not isinstance(value, str) or not value.strip():
            raise refused(ErrorCode.INVALID_ARGUMENT, f"{name}: expected a text that is not empty", field=name)
        return {"prompt": value}
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise refused(ErrorCode.INVALID_ARGUMENT, f"{name}: expected messages with role and content", field=name)
    return {"chat_messages": {"messages": messages}}


def _seconds(request: Request, most: float) -> float:
    """How long the caller waits, never more than the route allows."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return most
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise refused(ErrorCode.INVALID_ARGUMENT, f"X-Timeout {given[:40]!r}: expected a number of seconds above 0")
    return min(seconds, most)


def _meta(body: dict[str, Any], request: Request, caller: Caller) -> dict[str, Any]:
    said = dict(_object(body, "meta"))
    caller.check_tenant(_text(said, "tenant_id"))
    given = meta_of(request, caller)
    facts = {"trace_id": given.trace_id, "client_id": given.client_id, "user_id": given.user_id}
    meta = {**said, **{name: value for name, value in facts.items() if value}}
    if not meta.get("trace_id") and (trace_id := trace_at_hand()):
        meta["trace_id"] = trace_id
    asked_for = any(name in request.headers for name in ("x-request-id", "x-correlation-id"))
    if asked_for or not said.get("request_id"):
        meta["request_id"] = given.request_id
    if given.labels:
        meta["labels"] = {**_object(said, "labels"), **given.labels}
    keys = {given.idempotency_key, _text(body, "idempotency_key"), _text(said, "idempotency_key")} - {""}
    if len(keys) > 1:
        problem = "idempotency_key: header and body say different ones"
        raise refused(ErrorCode.INVALID_ARGUMENT, problem, field="idempotency_key")
    if keys:
        meta["idempotency_key"] = keys.pop()
    return {"timestamp": now().isoformat(), **meta, "tenant_id": caller.tenant}


def _check_names(document: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in document:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; there are: {', '.join(known)}"
            problem = f"there is no field {where + name[:80]!r}{hint}"
            raise refused(ErrorCode.INVALID_ARGUMENT, problem, field=where + name, did_you_mean=near)


def _object(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise refused(ErrorCode.INVALID_ARGUMENT, f"{name}: expected an object", field=name)
    return value


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise refused(ErrorCode.INVALID_ARGUMENT, f"{name}: expected a text", field=name)
    return value


# ---------------------------------------------------------------- the answer


async def _whole(client: Client, document: dict[str, Any], seconds: float) -> Response:
    """One answer. Cancelled, it cancels the model call."""
    headers = {**trace_headers(), CONTENT_TYPE: _JSON, TIMEOUT: f"{seconds:g}"}
    subject = client.subjects.tenant_infer()
    answered = False
    try:
        answer = await client.transport.request(
            subject, msgspec.json.encode(document), timeout=seconds + ANSWER_GRACE, headers=headers
        )
        answered = True
    finally:
        if not answered:
            await _cancel(client, document)
    response = msgspec.json.decode(answer.data)
    if response.get("error"):
        raise http_error(response["error"])
    return _json(response)


async def _cancel(client: Client, document: dict[str, Any]) -> None:
    if client.transport.is_connected:
        with contextlib.suppress(BrokerError):  # then it hears of it from its deadline
            request_id = str(document["meta"]["request_id"])
            await client.transport.publish(client.subjects.control(CANCEL_CONTROL), request_id.encode())


class _Chunks:
    """The chunks of one answer as events; when the gateway stops, or something breaks, the last one says so."""

    def __init__(self, client: Client, document: dict[str, Any], idle: float, whole: float | None) -> None:
        self._client = client
        self._document = document
        self._latest: dict[str, Any] = {}
        self._sent = 0
        self._first: Message | None = None
        self.stopping = asyncio.Event()
        self._reader = ChunkReader(
            client.transport,
            client.subjects.tenant_infer(),
            self._position,
            idle_timeout=idle,
            timeout=None if whole is None else whole + ANSWER_GRACE,
        )
        limit = {} if whole is None else {TIMEOUT: f"{whole:g}"}
        self.parts = self._reader.ask(msgspec.json.encode(document), {CONTENT_TYPE: _JSON, **limit})

    def _position(self, message: Message) -> tuple[int, bool]:
        self._latest = msgspec.json.decode(message.data)
        if "index" not in self._latest:  # an answer to a request that was not understood
            return 0, True
        return self._latest["index"], bool(self._latest.get("is_final"))

    async def begin(self) -> None:
        """Wait for the first chunk.

        Raises:
            HttpError: There will be none.
        """
        try:
            self._first = await anext(self.parts)
        except BaseException:
            if not self._reader.has_begun:
                await _cancel(self._client, self._document)
            raise
        if self._latest.get("error"):
            raise http_error(self._latest["error"])

    async def events(self) -> AsyncGenerator[bytes, None]:
        """From the first to the final one."""
        assert self._first is not None
        try:
            message: Message | None = self._first
            while message is not None:
                self._sent += 1
                yield event(message.data)
                message = await self._next()
        except AgentMeshError as error:
            yield event(self._broken(explained(error)))

    async def _next(self) -> Message | None:
        """The next chunk, None at the end.

        Raises:
            HttpError: The gateway stops.
        """
        if self._reader.finished:
            return None
        coming = asyncio.ensure_future(anext(self.parts, None))
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({coming, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise refused(ErrorCode.UNAVAILABLE, "the gateway is stopping; ask again", retry_after=1.0)
            return coming.result()
        finally:
            for task in (coming, stop):
                task.cancel()
            await asyncio.gather(coming, stop, return_exceptions=True)

    def _broken(self, error: HttpError) -> bytes:
        """A final chunk of our own."""
        chunk: dict[str, Any] = {"index": self._sent, "is_final": True, "finish_reason": "error"}
        chunk |= {name: self._latest[name] for name in ("meta", "generation_id") if name in self._latest}
        details = {str(name): str(value) for name, value in error.details.items()}
        chunk["error"] = {"code": str(error.code), "message": error.message, "details": details}
        return msgspec.json.encode(chunk)


class _ChunkStream(EventStream):
    """When the gateway stops, its source still says so."""

    def __init__(self, gateway: Gateway, chunks: _Chunks, stack: AsyncExitStack) -> None:
        super().__init__(gateway, chunks.events(), stack)
        self._chunks = chunks

    def stop(self) -> None:
        self._chunks.stopping.set()


def http_error(error: Mapping[str, Any]) -> HttpError:
    """The HTTP form of an `Error`; a code that nobody knows is no success either."""
    name = str(error.get("code", "UNKNOWN"))
    code = ErrorCode(name) if name in ErrorCode.__members__ else ErrorCode.UNKNOWN
    details = dict(error.get("details") or {})
    said = details.pop("retry_after", None)
    pause = float(said) if said else 5.0 if code is ErrorCode.UNAVAILABLE else None
    return refused(code, str(error.get("message", "")), retry_after=pause, **details)


def _json(document: Any) -> Response:
    return Response(msgspec.json.encode(document), media_type=_JSON)
