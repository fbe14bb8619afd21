"""`/api/v1`: agents and tasks, as they are, in JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from agentmesh import registry
from agentmesh.client import Client
from agentmesh.codes import ErrorCode
from agentmesh.errors import NoSuchAgentError
from agentmesh.gateway.calls import Body, query_number, read_model, while_connected
from agentmesh.gateway.describe import operation
from agentmesh.gateway.errors import refused
from agentmesh.gateway.gateway import Caller, Gateway
from agentmesh.messages import Event, Task, untyped
from agentmesh.registry import AgentInfo
from agentmesh.subjects import token
from agentmesh.tasks.status import TaskStatus

AGENT = "/api/v1/agents/{agent}"
TASK = "/api/v1/tasks/{task}"

STATES = ("scheduled", "waiting", "running", "completed", "failed", "cancelled", "expired", "dead")
MOST_LISTED = 500

_WORDS = re.compile(r"\b(\w+(?:Error|Exception)): .*", re.DOTALL)
"""The kind of an error and what it says, which may hold secrets of the handler that raised it."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


class MessageBody(Body):
    """A message: plain text, or the name of its type and its fields."""

    text: str | None = None
    """Sent as a `Prompt` (ask) or `Text` (tell)."""
    type: str | None = None
    """The name of the message type, such as `Greet`."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Its fields."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds to wait, if that is less than the route allows."""

    def message(self, plain: str) -> tuple[str, dict[str, Any]]:
        """Name and fields of the message; `plain` is the one that carries text.

        Raises:
            HttpError: 400, it is neither text nor a type, or both.
        """
        if (self.text is None) == (self.type is None and not self.data):
            raise refused(ErrorCode.INVALID_ARGUMENT, 'say {"text": "…"}, or {"type": "…", "data": {…}}')
        if self.text is not None:
            return plain, {"text": self.text}
        return token("message type", self.type or plain), self.data


class TellBody(MessageBody):
    """An event."""

    durable: bool = False
    """Keep it until the agent has handled it, for events declared durable."""


class TaskBody(Body):
    """A task for an agent."""

    type: str
    """The name of the task type."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Its fields."""
    task_id: str | None = None
    """An id of yours: submitted again with it, nothing is run again."""
    priority: str | None = Field(default=None, pattern="^(high|normal|low)$")
    deadline: float | None = Field(default=None, gt=0)
    """Seconds from now; a task that is not done by then is decided `expired`."""
    delay: float | None = Field(default=None, gt=0)
    """Seconds until it is due."""


class ExecuteBody(TaskBody):
    """A task whose result is waited for."""

    timeout: float | None = Field(default=None, gt=0)
    """Seconds to wait, if that is less than the route allows."""


class SignalBody(Body):
    """What a workflow waits for."""

    value: Any = None


class JsonResponse(Response):
    """Plain data, times and structs as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encode(content)


def routes(gateway: Gateway) -> list[BaseRoute]:
    """See the module."""
    api = _Api(gateway)
    return [
        Route("/api/v1/agents", api.agents),
        Route(AGENT, api.agent),
        Route(f"{AGENT}/ask", api.ask, methods=["POST"]),
        Route(f"{AGENT}/tell", api.tell, methods=["POST"]),
        Route(f"{AGENT}/tasks", api.submit, methods=["POST"]),
        Route(f"{AGENT}/execute", api.execute, methods=["POST"]),
        Route("/api/v1/tasks", api.tasks),
        Route(TASK, api.task, methods=["GET"]),
        Route(TASK, api.cancel, methods=["DELETE"]),
        Route(f"{TASK}/cancel", api.cancel, methods=["POST"]),
        Route(f"{TASK}/signals/{{signal}}", api.signal, methods=["POST"]),
    ]


class _Api:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def _of(self, request: Request) -> tuple[Caller, Client]:
        caller = self._gateway.caller(request)
        return caller, self._gateway.client(caller.tenant)

    # ------------------------------------------------------------ agents
    @operation(tags=["agents"])
    async def agents(self, request: Request) -> Response:
        """List the agents that run."""
        _, client = self._of(request)
        infos = await registry.discover(client.transport, client.subjects)
        return JsonResponse({"agents": [_summary(replicas) for replicas in _by_name(infos)]})

    @operation(tags=["agents"], errors=[404])
    async def agent(self, request: Request) -> Response:
        """Describe an agent: its messages with their JSON Schemas, and its replicas."""
        _, client = self._of(request)
        name = token("agent", request.path_params["agent"])
        infos = await registry.discover(client.transport, client.subjects, name=name)
        if not infos:
            known = await registry.discover(client.transport, client.subjects, brief=True)
            raise NoSuchAgentError(name, registry.near_misses(name, (info.name for info in known)))
        return JsonResponse({**_summary(infos), "messages": infos[0].messages, "replicas": list(map(_replica, infos))})

    @operation(
        tags=["agents"],
        body=MessageBody,
        text=True,
        headers={"Idempotency-Key": "The handler runs once for it; its reply is kept for a day."},
        errors=[404, 409, 504],
        example={"text": "hi"},
    )
    async def ask(self, request: Request) -> Response:
        """Ask an agent and wait for its reply.

        When the caller goes away, the handler is cancelled. Answered as plain text if that is what `Accept` asks for
        and the reply is a text.
        """
        caller, client = self._of(request)
        body = await read_model(request, MessageBody, caller, text=True)
        kind, content = body.message("Prompt")
        agent = token("agent", request.path_params["agent"])
        timeout = self._gateway.timeout(f"POST {AGENT}/ask", body.timeout)
        key = request.headers.get("idempotency-key")
        reply = await while_connected(
            request, client.ask_raw(agent, kind, content, timeout=timeout, idempotency_key=key)
        )
        if isinstance(reply, str) and request.headers.get("accept", "").startswith("text/plain"):
            return PlainTextResponse(reply)
        return JsonResponse({"agent": agent, "type": kind, "reply": reply})

    @operation(
        tags=["agents"], body=TellBody, text=True, status=202, errors=[404], example={"text": "the door is open"}
    )
    async def tell(self, request: Request) -> Response:
        """Tell an agent something: accepted when its mailbox has taken it, or, if `durable`, when it is stored."""
        caller, client = self._of(request)
        body = await read_model(request, TellBody, caller, text=True)
        kind, content = body.message("Text")
        event: Event = untyped(Event, kind, content, durable=body.durable)
        agent = token("agent", request.path_params["agent"])
        timeout = self._gateway.timeout(f"POST {AGENT}/tell", body.timeout)
        key = request.headers.get("idempotency-key") if body.durable else None
        await client.tell(agent, event, timeout=timeout, message_id=key)
        return JsonResponse({"agent": agent, "accepted": True}, 202)

    # ------------------------------------------------------------ tasks
    @operation(
        tags=["tasks"],
        body=TaskBody,
        status=202,
        headers={"Idempotency-Key": "The first to use it submits; all others get that task."},
        errors=[409],
        example={"type": "CountWords", "data": {"text": "to be or not to be"}},
    )
    async def submit(self, request: Request) -> Response:
        """Submit a task: when this is answered, the task survives anything, and is decided."""
        caller, client = self._of(request)
        body = await read_model(request, TaskBody, caller)
        task_id = await self._submitted(request, client, body)
        return _accepted(task_id)

    @operation(
        tags=["tasks"],
        body=ExecuteBody,
        headers={"Idempotency-Key": "The first to use it submits; all others get that task."},
        errors=[409],
        example={"type": "CountWords", "data": {"text": "to be or not to be"}},
    )
    async def execute(self, request: Request) -> Response:
        """Submit a task and wait for its result; 202 if it takes longer: then look at its address."""
        caller, client = self._of(request)
        body = await read_model(request, ExecuteBody, caller)
        task_id = await self._submitted(request, client, body)
        timeout = self._gateway.timeout(f"POST {AGENT}/execute", body.timeout)
        status = await while_connected(request, _waited(client, task_id, timeout))
        return JsonResponse(self._status(status)) if status.is_decided else _accepted(task_id)

    def _status(self, status: TaskStatus) -> dict[str, Any]:
        return _fields(status, debug=self._gateway.options.debug)

    async def _submitted(self, request: Request, client: Client, body: TaskBody) -> str:
        task: Task[Any] = untyped(Task[Any], body.type, body.data)
        job = await client.submit(
            task,
            to=token("agent", request.path_params["agent"]),
            task_id=body.task_id,
            priority=body.priority,
            deadline=body.deadline,
            delay=body.delay,
            idempotency_key=request.headers.get("idempotency-key"),
        )
        return job.id

    @operation(tags=["tasks"], query={"state": "Only tasks in this state.", "limit": "The most to list: 100."})
    async def tasks(self, request: Request) -> Response:
        """List tasks: those undecided, oldest first, then those decided in the last seven days, newest first."""
        _, client = self._of(request)
        state = request.query_params.get("state", "")
        if state not in ("", *STATES):
            raise refused(ErrorCode.INVALID_ARGUMENT, f"state: expected one of {', '.join(STATES)}")
        limit = int(min(query_number(request, "limit", least=1) or 100, MOST_LISTED))
        return JsonResponse({"tasks": [self._status(one) for one in await client.tasks.ls(state, limit)]})

    @operation(tags=["tasks"], query={"wait": "Seconds to wait for its decision."}, errors=[404])
    async def task(self, request: Request) -> Response:
        """Where a task stands, and its result once it has one."""
        _, client = self._of(request)
        task_id = token("task id", request.path_params["task"])
        wait = self._gateway.timeout(f"GET {TASK}", query_number(request, "wait") or 0.0)
        return JsonResponse(self._status(await while_connected(request, _waited(client, task_id, wait))))

    @operation(tags=["tasks"], errors=[404])
    async def cancel(self, request: Request) -> Response:
        """Cancel a task, waiting or running, and what it has submitted; one that is decided stays as it is."""
        caller, client = self._of(request)
        task_id = token("task id", request.path_params["task"])
        await client.tasks.get(task_id)
        await client.tasks.cancel(task_id, by=f"http: {caller.name}")
        status = await client.tasks.get(task_id)
        return JsonResponse({"cancelled": status.state == "cancelled", **self._status(status)})

    @operation(tags=["tasks"], body=SignalBody, errors=[404], example={"value": True})
    async def signal(self, request: Request) -> Response:
        """Give a workflow the signal it waits for, or will: an approval, for one. Only the first one counts."""
        caller, client = self._of(request)
        task_id, name = token("task id", request.path_params["task"]), request.path_params["signal"]
        body = await read_model(request, SignalBody, caller)
        await client.tasks.get(task_id)
        counts = await client.tasks.signal(task_id, name, body.value)
        return JsonResponse({"task_id": task_id, "signal": name, "counts": counts})


async def _waited(client: Client, task_id: str, seconds: float) -> TaskStatus:
    """Where a task stands, once it is decided or the time has passed."""
    status = await client.tasks.get(task_id)
    if status.is_decided or seconds <= 0:
        return status
    try:
        async with asyncio.timeout(seconds):
            await client.job(task_id).outcome()
    except TimeoutError:
        pass
    return await client.tasks.get(task_id)


def _accepted(task_id: str) -> Response:
    where = f"/api/v1/tasks/{task_id}"
    return JsonResponse({"task_id": task_id, "url": where}, 202, {"Location": where})


def _fields(status: TaskStatus, *, debug: bool) -> dict[str, Any]:
    """What is known; what is not is left out, but for the result of a completed task, which may be null."""
    fields = {name: value for name, value in vars(status).items() if value not in (None, "") or name == "state"}
    if status.state == "completed":
        fields["result"] = status.result
    if status.reason and not debug:
        fields["reason"] = _WORDS.sub(r"\1", status.reason)
    return fields


def _by_name(infos: Iterable[AgentInfo]) -> Iterable[list[AgentInfo]]:
    found: dict[str, list[AgentInfo]] = {}
    for info in infos:
        found.setdefault(info.name, []).append(info)
    return found.values()


def _summary(replicas: list[AgentInfo]) -> dict[str, Any]:
    first = replicas[0]
    return {
        "name": first.name,
        "description": first.description,
        "replicas": len(replicas),
        "ready": sum(info.state == "ready" for info in replicas),
        "messages": [{"name": message.name, "kind": message.kind} for message in first.messages],
        "mailbox": sum(info.mailbox for info in replicas),
        "in_flight": sum(info.in_flight for info in replicas),
    }


def _replica(info: AgentInfo) -> dict[str, Any]:
    """Without what all replicas have in common, and without the words of an error."""
    hidden = ("name", "description", "messages", "problem", "life")
    return {name: value for name, value in msgspec.structs.asdict(info).items() if name not in hidden}
