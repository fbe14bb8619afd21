"""`POST /chat` and `POST /stream/{id}/cancel`: say something in a conversation, and stop the answer.

What the user said is stored, and the turn that answers it is accepted, before the request is answered: from then on
neither a crash of this process nor of the agent loses it. The answer is read with `GET /stream/{conversation_id}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from agentmesh.chat import RELAY, Turn, chat_agents, settle, takes
from agentmesh.errors import (
    AgentMeshError,
    HttpError,
    IdempotencyConflictError,
    NoSuchAgentError,
    RunEndedError,
)
from agentmesh.gateway.body import read_object
from agentmesh.gateway.errors import ErrorCode, refused
from agentmesh.ids import new_id
from agentmesh.registry import near_misses
from agentmesh.streams import Chunk
from agentmesh.subjects import token

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.gateway.gateway import Caller, Gateway

DEFAULT_AGENT = "llm"
"""Who answers if nobody is named, and more than one could."""

MAX_MESSAGE = 256 * 1024
"""Characters of a message."""

M = TypeVar("M", bound=BaseModel)

log = logging.getLogger("agentmesh.gateway.chat")


class Said(BaseModel):
    """The body of `POST /chat`, or its query."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(min_length=1, max_length=MAX_MESSAGE)
    conversation_id: str = ""
    """Empty: a new one."""
    agent: str = ""
    """Who is to answer; empty: `http.chat_agent`, or the only one that can, or `llm`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """`temperature`, `max_tokens` …, as in the OpenAI API."""


class StopWish(BaseModel):
    """The body of `POST /stream/{id}/cancel`."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = ""
    """Empty: the latest that is open."""
    reason: str = Field("", max_length=500)


@dataclass(frozen=True)
class Place:
    """Where a message was stored."""

    conversation_id: str
    run_id: str
    offset: int
    """Of the first chunk of the answer."""


class Door:
    """The two routes, for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._watching: set[asyncio.Task[None]] = set()

    async def chat(self, request: Request) -> Response:
        """`POST /chat`."""
        caller = self._gateway.caller(request)
        said = await _said(request)
        client = self._gateway.client(caller.tenant)
        agent = said.agent or await self._default_agent(client)
        to = await answerer(client, agent)
        place = await self._store(client, caller, said, agent, to, request.headers.get("idempotency-key", ""))
        self._watch(client, place)
        where = f"/stream/{place.conversation_id}?from_offset={place.offset}&run={place.run_id}"
        document = {"conversation_id": place.conversation_id, "run_id": place.run_id, "offset": place.offset}
        return JSONResponse({**document, "stream": where}, 202, headers={"Location": where})

    async def cancel(self, request: Request) -> Response:
        """`POST /stream/{id}/cancel`."""
        client = self._gateway.client(self._gateway.caller(request).tenant)
        wish = _checked(StopWish, await read_object(request, empty={}))
        conversation = request.path_params["id"]
        run_id = wish.run_id or request.query_params.get("run", "")
        if not run_id:
            state = await client.streams.state(conversation)
            run_id = state.open_runs[-1] if state is not None and state.open_runs else ""
        stopped = bool(run_id) and await client.streams.cancel(conversation, run_id=run_id, reason=wish.reason)
        if stopped:
            with contextlib.suppress(AgentMeshError):  # the run has its end; its task is over when it finds that out
                await client.tasks.cancel(run_id, by="the reader of the conversation")
        return JSONResponse({"conversation_id": conversation, "run_id": run_id, "cancelled": stopped})

    async def _default_agent(self, client: Client) -> str:
        if self._gateway.options.chat_agent:
            return self._gateway.options.chat_agent
        names = [info.name for info in await chat_agents(client)]
        if len(names) == 1:
            return names[0]
        if DEFAULT_AGENT in names or not names:
            return DEFAULT_AGENT
        text = f"say which agent is to answer: {', '.join(names)}"
        raise refused(ErrorCode.INVALID_ARGUMENT, text, parameter="agent")

    async def _store(self, client: Client, caller: Caller, said: Said, agent: str, to: str, key: str) -> Place:
        conversation, run_id = said.conversation_id, None
        if key:  # the same key makes the same ids, so that everything may be repeated
            seed = "\0".join((caller.tenant, caller.name, conversation, key))
            digest = hashlib.sha256(seed.encode()).hexdigest()
            conversation, run_id = conversation or f"c{digest[32:56]}", f"r{digest[:24]}"
        conversation = conversation or f"c{new_id()}"
        run = client.streams.run(conversation, run_id=run_id, epoch=0, role="user", own_task=True)
        try:
            async with run:
                await run.send(said.message)
                await run.flush()
        except RunEndedError:  # the same key once more: it is there, and perhaps answered already
            stored = await _question(client, conversation, run.run_id)
            if stored.content != said.message:
                raise IdempotencyConflictError(key, "a message", "a message") from None
        else:
            assert run.last is not None
            stored = run.last
        turn = Turn(conversation_id=conversation, run_id=run.run_id, agent=agent, params=said.params)
        try:
            await client.submit(turn, to=to, task_id=run.run_id)
        except AgentMeshError as error:
            await client.streams.end(conversation, run.run_id, "error", str(error))
            raise
        return Place(conversation, run.run_id, stored.offset + 1)

    def _watch(self, client: Client, place: Place) -> None:
        """See to it that the run has an end when its task has one, whoever decides it."""
        task = asyncio.get_running_loop().create_task(self._await_end(client, place), name=f"turn {place.run_id}")
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _await_end(self, client: Client, place: Place) -> None:
        try:
            outcome = await client.job(place.run_id).outcome()
            if outcome.status != "completed":
                await settle(client, place.conversation_id, place.run_id)
        except AgentMeshError as error:  # readers find out by themselves, a little later
            log.debug("end of turn %s: %s", place.run_id, error)


async def answerer(client: Client, agent: str) -> str:
    """Which agent gets the turn.

    Raises:
        NoSuchAgentError: The one that is to answer does not run.
        HttpError: It cannot be chatted with, or the one that relays for it does not run.
    """
    name = token("agent", agent.partition("/")[0])
    taken = await takes(client, name)
    if not taken:
        raise NoSuchAgentError(name, near_misses(name, (info.name for info in await chat_agents(client))))
    if "Turn" in taken and name != RELAY:
        return name
    if not taken & {"Chat", "Prompt"}:
        raise refused(ErrorCode.INVALID_ARGUMENT, f"agent {name!r} cannot be chatted with: it takes no Chat or Prompt")
    if "Turn" not in await takes(client, RELAY):
        text = f"nobody relays turns: start the agent {RELAY!r} (agentmesh.agents.chat:Conversations)"
        raise refused(ErrorCode.UNAVAILABLE, text, retry_after=5.0)
    return RELAY


def routes(gateway: Gateway) -> list[BaseRoute]:
    """`POST /chat` and `POST /stream/{id}/cancel`."""
    door = Door(gateway)
    return [
        Route("/chat", door.chat, methods=["POST"]),
        Route("/stream/{id}/cancel", door.cancel, methods=["POST"]),
    ]


async def _said(request: Request) -> Said:
    """From the body; what the query says stands for what it lacks."""
    query = {name: value for name, value in request.query_params.items() if name in Said.model_fields}
    query.pop("params", None)
    return _checked(Said, {**query, **await read_object(request, empty={})})


def _checked(model: type[M], value: dict[str, Any]) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> HttpError:
    """What is wrong with a body, by its first field."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return refused(ErrorCode.INVALID_ARGUMENT, f"{where or 'body'}: {first['msg']}", parameter=where)


async def _question(client: Client, conversation_id: str, run_id: str) -> Chunk:
    async for chunk in client.streams.read(conversation_id, run_id=run_id, follow=False):
        if chunk.epoch == 0:
            return chunk
    raise refused(ErrorCode.ABORTED, "the conversation was deleted meanwhile")
