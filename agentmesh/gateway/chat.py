"""`POST /chat` and `POST /stream/{id}/cancel`: say something in a conversation, and stop the answer.

What the user said is stored, and the turn that answers it is accepted, before the request is answered: from then on
neither a crash of this process nor of the agent loses it. The answer is read with `GET /stream/{conversation_id}`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from agentmesh.chat import RELAY, Asked, chat_agents, say, settle, stop
from agentmesh.codes import ErrorCode
from agentmesh.errors import (
    AgentMeshError,
    HttpError,
    NoSuchAgentError,
)
from agentmesh.gateway.body import read_object
from agentmesh.gateway.calls import Body
from agentmesh.gateway.describe import operation
from agentmesh.gateway.errors import refused

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.gateway.gateway import Gateway

DEFAULT_AGENT = "llm"
"""Who answers if nobody is named, and more than one could."""

MAX_MESSAGE = 256 * 1024
"""Characters of a message."""

M = TypeVar("M", bound=BaseModel)

log = logging.getLogger("agentmesh.gateway.chat")


class Said(Body):
    """Something said in a conversation. The fields may stand in the query, too."""

    message: str = Field(min_length=1, max_length=MAX_MESSAGE)
    conversation_id: str = ""
    """Empty: a new one."""
    agent: str = ""
    """Who is to answer; empty: `http.chat_agent`, or the only one that can, or `llm`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """`temperature`, `max_tokens` …, as in the OpenAI API."""


class StopWish(Body):
    """Which answer is to stop; no body at all means the latest."""

    run_id: str = ""
    """Empty: the latest that is open."""
    reason: str = Field("", max_length=500)


class Accepted(BaseModel):
    """It is stored, and will be answered."""

    conversation_id: str
    run_id: str
    """Of the answer; also the id of the task."""
    offset: int
    """Of the first chunk of the answer."""
    stream: str
    """Where to read it."""


class Stopped(BaseModel):
    """What became of a wish to stop."""

    conversation_id: str
    run_id: str
    cancelled: bool
    """False: there was no such answer under way."""


class Door:
    """The two routes, for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._watching: set[asyncio.Task[None]] = set()

    @operation(
        tags=["chats"],
        body=Said,
        status=202,
        headers={"Idempotency-Key": "Said again with it, it is said once."},
        errors=[404, 409],
        example={"message": "hi"},
    )
    async def chat(self, request: Request) -> Response:
        """Say something in a conversation; the answer comes into its stream.

        `Location` is that stream from this message on. The answer goes on whether anybody reads it or not.
        """
        caller = self._gateway.caller(request)
        said = await _said(request)
        caller.check_tenant(said.tenant_id)
        client = self._gateway.client(caller.tenant)
        agent = said.agent or await self._default_agent(client)
        given = request.headers.get("idempotency-key", "")
        key = f"{caller.name}/{given}" if given else ""  # what others use as a key is their business
        try:
            place = await say(
                *(client, agent, said.message),
                conversation_id=said.conversation_id,
                params=said.params,
                key=key,
            )
        except NoSuchAgentError as error:
            raise _no_relay() if error.agent == RELAY else error from None
        self._watch(client, place)
        where = f"/stream/{place.conversation_id}?from_offset={place.offset}&run={place.run_id}"
        document = {"conversation_id": place.conversation_id, "run_id": place.run_id, "offset": place.offset}
        return JSONResponse({**document, "stream": where}, 202, headers={"Location": where})

    @operation(tags=["chats"], body=StopWish, example={"reason": "enough"})
    async def cancel(self, request: Request) -> Response:
        """Stop an answer: what there is of it stays."""
        client = self._gateway.client(self._gateway.caller(request).tenant)
        wish = _checked(StopWish, await read_object(request, empty={}))
        conversation = request.path_params["id"]
        run_id = wish.run_id or request.query_params.get("run", "")
        if not run_id:
            state = await client.streams.state(conversation)
            run_id = state.open_runs[-1] if state is not None and state.open_runs else ""
        stopped = bool(run_id) and await stop(client, conversation, run_id, wish.reason)
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

    def _watch(self, client: Client, place: Asked) -> None:
        """See to it that the run has an end when its task has one, whoever decides it."""
        task = asyncio.get_running_loop().create_task(self._await_end(client, place), name=f"turn {place.run_id}")
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _await_end(self, client: Client, place: Asked) -> None:
        try:
            outcome = await client.job(place.run_id).outcome()
            if outcome.status != "completed":
                await settle(client, place.conversation_id, place.run_id)
        except AgentMeshError as error:  # readers find out by themselves, a little later
            log.debug("end of turn %s: %s", place.run_id, error)


def _no_relay() -> HttpError:
    text = f"nobody relays turns: start the agent {RELAY!r} (agentmesh.agents.chat:Conversations)"
    return refused(ErrorCode.UNAVAILABLE, text, retry_after=5.0)


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
