"""The ways in to the gateway as a foreign client sees them: plain nats-py or HTTP, no agentmesh on this side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import msgspec
from google.protobuf import json_format
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from agentmesh.proto import LLMInferenceRequest, LLMInferenceResponse, LLMStreamChunk

LONG = 20.0


@dataclass
class Told:
    """An answer, whichever way it came."""

    text: str = ""
    finish: str = ""
    usage: tuple[int, int, int] = (0, 0, 0)
    code: str = ""
    """Of the error; empty if there was none."""
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    generation_id: str = ""


@dataclass
class Piece:
    """A piece of a streamed one."""

    index: int
    is_final: bool
    told: Told


class Way(Protocol):
    """A way in. `params` are generation parameters; `meta` those of the fields of `Meta` that this way can carry."""

    name: str

    async def ask(
        self,
        prompt: str = "",
        *,
        messages: list[tuple[str, str]] | None = None,
        model: str = "",
        key: str = "",
        timeout: float | None = None,
        params: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Told:
        """One whole answer. `extra`: further fields of the body."""
        ...

    def stream(self, prompt: str, *, key: str = "", timeout: float | None = None) -> Any:
        """`async with way.stream("say a b") as pieces: async for piece in pieces`."""
        ...


# ---------------------------------------------------------------- the messages of ai_integration.v1


@dataclass(frozen=True)
class Form:
    """A format: how a document becomes bytes, and the other way round."""

    name: str
    content_type: str
    write: Callable[[dict[str, Any]], bytes]
    read: Callable[[bytes, bool], dict[str, Any]]
    """The flag: it is a chunk."""


def _write_protobuf(document: dict[str, Any]) -> bytes:
    data: bytes = json_format.ParseDict(document, LLMInferenceRequest()).SerializeToString()
    return data


def _read_protobuf(data: bytes, chunk: bool) -> dict[str, Any]:
    message = (LLMStreamChunk if chunk else LLMInferenceResponse).FromString(data)
    document: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return document


protobufs = Form("protobuf", "application/x-protobuf", _write_protobuf, _read_protobuf)
jsons = Form("json", "application/json", lambda d: json.dumps(d).encode(), lambda data, _: dict(json.loads(data)))
msgpacks = Form(
    "msgpack", "application/msgpack", msgspec.msgpack.encode, lambda data, _: dict(msgspec.msgpack.decode(data))
)


def inference_document(
    prompt: str,
    messages: list[tuple[str, str]] | None,
    model: str,
    params: Mapping[str, Any] | None,
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON form of an `LLMInferenceRequest`."""
    document: dict[str, Any] = {"meta": dict(meta)}
    if model:
        document["model_id"] = model
    if messages is None:
        document["prompt"] = prompt
    else:
        document["chat_messages"] = {"messages": [{"role": r.upper(), "content": c} for r, c in messages]}
    if params:
        document["params"] = dict(params)
    return document


def told_by_inference(document: Mapping[str, Any]) -> Told:
    """What an `LLMInferenceResponse` or an `LLMStreamChunk` says."""
    usage, error = document.get("usage", {}), document.get("error")
    chat = document.get("chat_messages", {}).get("messages", [])
    text = document.get("output_text") or document.get("output_text_delta") or "".join(m["content"] for m in chat)
    return Told(
        text=text,
        finish=document.get("finish_reason", ""),
        usage=(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), usage.get("total_tokens", 0)),
        code="" if error is None else error.get("code", "UNKNOWN"),
        message="" if error is None else error["message"],
        details={} if error is None else error.get("details", {}),
        meta=dict(document.get("meta", {})),
        generation_id=document.get("generation_id", ""),
    )


class InferWay:
    """`svc.ai.llm.v1.infer` in one of its formats."""

    def __init__(self, nc: NatsClient, form: Form) -> None:
        self.nc = nc
        self.form = form
        self.name = form.name

    async def ask(
        self,
        prompt: str = "",
        *,
        messages: list[tuple[str, str]] | None = None,
        model: str = "",
        key: str = "",
        timeout: float | None = None,
        params: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Told:
        facts = {**(meta or {}), **({"idempotency_key": key} if key else {})}
        document = {**inference_document(prompt, messages, model, params, facts), **(extra or {})}
        reply = await self.nc.request(
            "svc.ai.llm.v1.infer", self.form.write(document), timeout=LONG, headers=self._headers(timeout)
        )
        assert reply.headers is not None
        assert reply.headers["Content-Type"] == self.form.content_type
        return told_by_inference(self.form.read(reply.data, False))

    @asynccontextmanager
    async def stream(
        self, prompt: str, *, key: str = "", timeout: float | None = None
    ) -> AsyncIterator[AsyncIterator[Piece]]:
        meta = {"idempotency_key": key} if key else {}
        document = inference_document(prompt, None, "", {"stream": True}, meta)
        inbox = self.nc.new_inbox()
        subscription = await self.nc.subscribe(inbox)
        await self.nc.publish(
            "svc.ai.llm.v1.infer", self.form.write(document), reply=inbox, headers=self._headers(timeout)
        )
        try:
            yield _pieces(subscription, self._piece)
        finally:
            await subscription.unsubscribe()

    def _piece(self, message: Msg) -> Piece:
        document = self.form.read(message.data, True)
        return Piece(document.get("index", 0), document.get("is_final", False), told_by_inference(document))

    def _headers(self, timeout: float | None) -> dict[str, str]:
        said = {} if timeout is None else {"Timeout": str(timeout)}
        return {"Content-Type": self.form.content_type, **said}


# ---------------------------------------------------------------- ai.gateway.requests.T


class RequestsWay:
    """The JSON door of queue workers."""

    name = "requests"

    def __init__(self, nc: NatsClient, tenant: str) -> None:
        self.nc = nc
        self.subject = f"ai.gateway.requests.{tenant}"

    async def ask(
        self,
        prompt: str = "",
        *,
        messages: list[tuple[str, str]] | None = None,
        model: str = "",
        key: str = "",
        timeout: float | None = None,
        params: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Told:
        document = {**self._document(prompt, messages, model, key, params), **(meta or {}), **(extra or {})}
        reply = await self.nc.request(
            self.subject, json.dumps(document).encode(), timeout=LONG, headers=self._headers(timeout)
        )
        return _told_by_requests(json.loads(reply.data))

    @asynccontextmanager
    async def stream(
        self, prompt: str, *, key: str = "", timeout: float | None = None
    ) -> AsyncIterator[AsyncIterator[Piece]]:
        document = self._document(prompt, None, "", key, {"stream": True})
        inbox = self.nc.new_inbox()
        subscription = await self.nc.subscribe(inbox)
        await self.nc.publish(self.subject, json.dumps(document).encode(), reply=inbox, headers=self._headers(timeout))
        try:
            yield _pieces(subscription, self._piece)
        finally:
            await subscription.unsubscribe()

    def _piece(self, message: Msg) -> Piece:
        document = json.loads(message.data)
        return Piece(document["index"], document["is_final"], _told_by_requests(document))

    def _document(
        self,
        prompt: str,
        messages: list[tuple[str, str]] | None,
        model: str,
        key: str,
        params: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        document: dict[str, Any] = {"schema_version": "1.0", "model": model}
        if messages is None:
            document["prompt"] = prompt
        else:
            document["messages"] = [{"role": role, "content": content} for role, content in messages]
        return {
            **document,
            **({"request_id": key} if key else {}),
            **({"params": dict(params)} if params else {}),
        }

    def _headers(self, timeout: float | None) -> dict[str, str] | None:
        return None if timeout is None else {"Timeout": str(timeout)}


def _told_by_requests(document: Mapping[str, Any]) -> Told:
    usage, error = document.get("usage") or {}, document.get("error")
    assert document["schema_version"] == "1.0"
    assert document.get("tokens", 0) == usage.get("total_tokens", 0)
    return Told(
        text=document["response"],
        finish=document.get("finish_reason", ""),
        usage=(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), usage.get("total_tokens", 0)),
        code="" if error is None else error["code"],
        message="" if error is None else error["message"],
        details={} if error is None else error["details"],
        meta={"request_id": document["request_id"]},
        generation_id=document.get("generation_id", ""),
    )


async def _pieces(subscription: Any, read: Callable[[Msg], Piece]) -> AsyncIterator[Piece]:
    while True:
        piece = read(await subscription.next_msg(timeout=LONG))
        yield piece
        if piece.is_final:
            return


# ---------------------------------------------------------------- HTTP


class HttpWay:
    """`POST /ai/llm/infer`."""

    name = "http"

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def ask(
        self,
        prompt: str = "",
        *,
        messages: list[tuple[str, str]] | None = None,
        model: str = "",
        key: str = "",
        timeout: float | None = None,
        params: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Told:
        asked: dict[str, Any] = {"prompt": prompt}
        if messages is not None:
            asked = {"messages": [{"role": role, "content": content} for role, content in messages]}
        body: dict[str, Any] = {
            "model_id": model,
            "input": asked,
            "params": dict(params or {}),
            "meta": dict(meta or {}),
        }
        headers = {} if timeout is None else {"X-Timeout": str(timeout)}
        reply = await self.http.post(
            "/ai/llm/infer", json={**body, "idempotency_key": key, **(extra or {})}, headers=headers
        )
        document = reply.json()
        if reply.status_code != 200:
            error = document["error"]
            said = {"code": error["code"], "message": error["message"], "details": error["details"]}
            return told_by_inference(
                {"error": said, "meta": {"request_id": error["request_id"]}, "finish_reason": "error"}
            )
        return told_by_inference(document)

    @asynccontextmanager
    async def stream(
        self, prompt: str, *, key: str = "", timeout: float | None = None
    ) -> AsyncIterator[AsyncIterator[Piece]]:
        body = {"input": {"prompt": prompt}, "params": {"stream": True}, "idempotency_key": key}
        headers = {} if timeout is None else {"X-Timeout": str(timeout)}
        async with self.http.stream("POST", "/ai/llm/infer", json=body, headers=headers) as reply:
            if reply.status_code != 200:
                error = json.loads(await reply.aread())["error"]
                document = {"is_final": True, "error": error, "finish_reason": "error"}
                yield _one(Piece(0, True, told_by_inference(document)))
                return
            assert reply.headers["content-type"].startswith("text/event-stream")
            yield self._events(reply)

    async def _events(self, reply: httpx.Response) -> AsyncIterator[Piece]:
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                document = json.loads(line[6:])
                yield Piece(document["index"], document["is_final"], told_by_inference(document))


async def _one(piece: Piece) -> AsyncIterator[Piece]:
    yield piece


async def all_pieces(way: Way, prompt: str, **more: Any) -> list[Piece]:
    """Those of a streamed answer."""
    async with asyncio.timeout(60), way.stream(prompt, **more) as pieces:
        return [piece async for piece in pieces]
