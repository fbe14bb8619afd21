"""The OpenAI chat API: `/v1/models` and `/v1/chat/completions`, where a model is an agent.

Any OpenAI client works with `base_url="http://127.0.0.1:8000/v1"`. `model="writer"` is the agent `writer`, and
`model="llm/small"` is the agent `llm` asked for its model `small`. No conversation is stored here: the caller sends
all of it each time.

Events have no `id:` line on this door. The client of OpenAI takes an event that has nothing but an id for one with
data, and fails, so a comment that keeps the connection alive would end the stream. Resuming is what `/stream` is for.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from agentmesh.chat import ChatMessage, ChatPart, chat_agents, talk
from agentmesh.codes import ErrorCode
from agentmesh.errors import AgentMeshError, DeadlineExceededError, HttpError, NoSuchAgentError
from agentmesh.gateway.body import decode_json
from agentmesh.gateway.chat import invalid
from agentmesh.gateway.describe import operation
from agentmesh.gateway.errors import explained, openai_document, refused
from agentmesh.gateway.sse import EventStream, wait_until_gone
from agentmesh.ids import new_id

if TYPE_CHECKING:
    from agentmesh.gateway.gateway import Caller, Gateway
    from agentmesh.registry import AgentInfo

COMPLETIONS = "/v1/chat/completions"

DONE = b"data: [DONE]\n\n"

ANSWER_TIMEOUT = 600.0
"""Seconds for a whole answer that is not streamed, unless `[http.routes]` says otherwise."""

_ROLES = {"developer": "system", "function": "tool"}

_OURS = {"model", "messages", "stream", "stream_options", "n"}
"""Fields that the agent is not told."""


class Completion(BaseModel, extra="allow"):
    """The body of a request, as far as this door looks at it. The rest goes to the agent."""

    model: str = Field(min_length=1)
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: int | None = Field(None, ge=1, le=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None

    def params(self) -> dict[str, Any]:
        """What the agent is told beside the messages."""
        return {name: value for name, value in self.model_dump(exclude_none=True).items() if name not in _OURS}

    def includes_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class Answer:
    """An answer in the making: what the parts come to.

    Args:
        wanted: What was asked for.
        messages: The same, as the agent gets it.
    """

    def __init__(self, wanted: Completion, messages: list[ChatMessage]) -> None:
        self.id = f"chatcmpl-{new_id()}"
        self.created = int(time.time())
        self.finish_reason = "stop"
        self._wanted = wanted
        self._messages = messages
        self._offered = {tool.get("function", {}).get("name") for tool in wanted.tools or ()}
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] | None = None

    def take(self, part: ChatPart) -> dict[str, Any] | None:
        """Note a part; returns what it adds to the message, None if nothing."""
        data = part.data if isinstance(part.data, dict) else {}
        if part.type == "text":
            self._text.append(part.content)
            return {"content": part.content} if part.content else None
        if part.type == "reasoning":
            self._reasoning.append(part.content)
            return {"reasoning_content": part.content}
        if part.type == "tool_call":
            return self._take_call(data)
        if part.type == "usage":
            self._usage = data
        elif part.type == "finish":
            self.finish_reason = str(data.get("finish_reason") or self.finish_reason)
            self._usage = self._usage or data.get("usage")
        return None

    def _take_call(self, data: Mapping[str, Any]) -> dict[str, Any] | None:
        """A call of a tool that the caller offered; those of the agent's own are its own business."""
        function = data.get("function") or {key: data[key] for key in ("name", "arguments") if key in data}
        index = data.get("index", len(self._calls))
        known = self._calls.get(index)
        if known is None and function.get("name") not in self._offered:
            return None
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        if known is not None:  # a piece of one that has begun
            known["function"]["arguments"] += arguments
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
        call = {
            "id": str(data.get("id") or data.get("call_id") or f"call_{new_id()}"),
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
        }
        self._calls[index] = call
        self.finish_reason = "tool_calls"
        return {"tool_calls": [{"index": index, **copy.deepcopy(call)}]}

    def usage(self) -> dict[str, Any]:
        """Tokens as the agent counted them; words and signs, if it counts none."""
        if self._usage is not None:
            known = {key: int(self._usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")}
            return {**known, "total_tokens": int(self._usage.get("total_tokens") or sum(known.values()))}
        prompt = count(message.content for message in self._messages)
        completion = count([*self._reasoning, *self._text])
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def whole(self) -> dict[str, Any]:
        """The document of an answer that is not streamed."""
        text = "".join(self._text)
        content = text or (None if self._calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage()}

    def piece(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """An event of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event({"choices": [choice], **({"usage": None} if self._wanted.includes_usage() else {})})

    def end(self) -> bytes:
        """The last events."""
        last = self.piece({}, self.finish_reason)
        if self._wanted.includes_usage():
            last += self._event({"choices": [], "usage": self.usage()})
        return last + DONE

    def _event(self, fields: dict[str, Any]) -> bytes:
        return b"data: " + msgspec.json.encode({**self._head("chat.completion.chunk"), **fields}) + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self._wanted.model}


def routes(gateway: Gateway) -> list[BaseRoute]:
    """The OpenAI API of this gateway."""

    @operation(tags=["openai"])
    @operation(tags=["openai"])
    async def models(request: Request) -> Response:
        """The agents that can be chatted with, as models of the OpenAI API."""
        """List the agents that can chat, as models."""
        client = gateway.client(gateway.caller(request).tenant)
        return JSONResponse({"object": "list", "data": [_model(info) for info in await chat_agents(client)]})

    @operation(tags=["openai"], errors=[404])
    @operation(tags=["openai"], errors=(404,))
    async def model(request: Request) -> Response:
        """One of them."""
        """One model."""
        client = gateway.client(gateway.caller(request).tenant)
        name = request.path_params["model"]
        for info in await chat_agents(client):
            if info.name == name.partition("/")[0]:
                return JSONResponse({**_model(info), "id": name})
        raise _no_such_model(name)

    @operation(
        tags=["openai"],
        body=Completion,
        errors=[404, 504],
        example={"model": "llm", "messages": [{"role": "user", "content": "hi"}]},
    )
    @operation(
        tags=["openai"],
        body=Completion,
        errors=(400, 404, 429, 503, 504),
        example={"model": "llm", "messages": [{"role": "user", "content": "Hello"}]},
    )
    async def complete(request: Request) -> Response:
        """The next message of a chat, as the OpenAI API has it; with `stream`, as server-sent events."""
        """Have an agent answer, in the shape of the OpenAI API; its name is the model.

        With `"stream": true` as server-sent events.
        """
        caller = gateway.caller(request)
        wanted = _read(await request.body())
        messages = [_message(number, message) for number, message in enumerate(wanted.messages)]
        agent, _, own = wanted.model.partition("/")
        answer = Answer(wanted, messages)
        parts = talk(gateway.client(caller.tenant), agent, messages, model=own, params=wanted.params())
        try:
            if wanted.stream:
                return await _stream(gateway, caller, answer, parts)
            seconds = gateway.options.routes.get(f"POST {COMPLETIONS}", ANSWER_TIMEOUT)
            return await _whole(request, answer, parts, seconds)
        except NoSuchAgentError as error:
            raise _no_such_model(wanted.model) if error.agent == agent else error from None

    return [
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", model),
        Route(COMPLETIONS, complete, methods=["POST"]),
    ]


async def _stream(gateway: Gateway, caller: Caller, answer: Answer, parts: AsyncGenerator[ChatPart, None]) -> Response:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(gateway.stream_slot(caller))
        await stack.enter_async_context(aclosing(parts))
        first = await anext(parts, None)  # what goes wrong before it still has a status of its own
        return EventStream(gateway, _events(answer, first, parts), stack.pop_all())


async def _whole(request: Request, answer: Answer, parts: AsyncGenerator[ChatPart, None], seconds: float) -> Response:
    """The whole answer; a client that goes away stops the agent."""

    async def collect() -> None:
        async with aclosing(parts):
            async for part in parts:
                answer.take(part)

    collecting = asyncio.get_running_loop().create_task(collect(), name="openai: answer")
    gone = asyncio.get_running_loop().create_task(wait_until_gone(request.receive), name="openai: client")
    try:
        done, _ = await asyncio.wait({collecting, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise DeadlineExceededError("the answer", seconds)
        if collecting not in done:
            raise ClientDisconnect
        collecting.result()
    finally:
        collecting.cancel()
        gone.cancel()
        await asyncio.gather(collecting, gone, return_exceptions=True)
    return JSONResponse(answer.whole())


async def _events(
    answer: Answer, first: ChatPart | None, parts: AsyncGenerator[ChatPart, None]
) -> AsyncGenerator[bytes, None]:
    yield answer.piece({"role": "assistant", "content": ""})
    try:
        if first is not None and (delta := answer.take(first)) is not None:
            yield answer.piece(delta)
        async for part in parts:
            if (delta := answer.take(part)) is not None:
                yield answer.piece(delta)
    except AgentMeshError as error:  # the status is sent: its client takes an event with `error` for one
        yield b"data: " + msgspec.json.encode(openai_document(explained(error))) + b"\n\n"
        return
    yield answer.end()


def _read(body: bytes) -> Completion:
    value = decode_json(body)
    if not isinstance(value, dict):
        raise refused(ErrorCode.INVALID_ARGUMENT, "the body is not a JSON object")
    try:
        return Completion.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from None


def _message(number: int, given: dict[str, Any]) -> ChatMessage:
    where = f"messages.{number}"
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(_text_of(part, where) for part in content)
    role = given.get("role")
    fields = {name: given[name] for name in ("name", "tool_calls", "tool_call_id") if given.get(name) is not None}
    try:
        return ChatMessage(role=_ROLES.get(str(role), role), content=content or "", **fields)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = invalid(error)
        parameter = f"{where}.{problem.details.get('parameter', '')}"
        raise refused(ErrorCode.INVALID_ARGUMENT, f"{where}.{problem.message}", parameter=parameter) from None


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise refused(ErrorCode.INVALID_ARGUMENT, f"{where}.content: parts of kind {kind!r} are not taken", parameter=where)


def _model(info: AgentInfo) -> dict[str, Any]:
    created = int(info.started_at.timestamp()) if info.started_at is not None else 0
    about = {"description": info.description} if info.description else {}
    return {"id": info.name, "object": "model", "created": created, "owned_by": "agentmesh", **about}


def _no_such_model(name: str) -> HttpError:
    text = f"the model {name!r} does not exist: no agent of that name is running"
    return HttpError(404, ErrorCode.NOT_FOUND, text, {"parameter": "model", "openai_code": "model_not_found"})


_WORD = re.compile(r"\w+|[^\w\s]")


def count(texts: Iterable[str]) -> int:
    """About as many tokens as a model would count."""
    return sum(len(_WORD.findall(text)) for text in texts)
