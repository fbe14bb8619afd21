"""The doors of one replica of the gateway, opened and closed together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh.agents.llm.doors import inference, requests
from agentmesh.agents.llm.doors.desk import Desk
from agentmesh.agents.llm.doors.desk import Generate as Source
from agentmesh.agents.llm.doors.door import Door
from agentmesh.agents.llm.doors.inquiry import Inquiry, explained, failure
from agentmesh.agents.llm.messages import Generate, LLMRequest, LLMResponse
from agentmesh.chunked import CANCEL_CONTROL, CONTENT_TYPE
from agentmesh.config import DoorSettings
from agentmesh.errors import AgentMeshError, BrokerError, PermissionDeniedError, TaskError
from agentmesh.ids import now
from agentmesh.subjects import Subjects, token
from agentmesh.transport import Endpoint, Message, Service, Subscription
from agentmesh.version import __version__

if TYPE_CHECKING:
    from agentmesh.client import Client

log = logging.getLogger("agentmesh.llm.doors")

STANDARD_TENANT = "default"

GRACE = 3.0
"""Seconds that requests under way get when the gateway stops."""


class Doors:
    """Opens the doors of a gateway.

    Args:
        client: The agent's connection; its name is the agent's.
        generate: The gateway.
        options: As in `[llm.doors]`.
    """

    def __init__(self, client: Client, generate: Source, options: DoorSettings | None = None) -> None:
        chosen = options or DoorSettings()
        self._client = client
        self._options = chosen
        desk = Desk(client, generate, timeout=chosen.timeout, idle_timeout=chosen.idle_timeout)
        subjects = client.subjects
        self._doors = [self._infer(desk, subject) for subject in self._infer_subjects(subjects)]
        self._doors.append(self._requests(desk, subjects))
        for door in self._doors:
            door.held = client.held
        self._subscriptions: list[Subscription] = []
        self._service: Service | None = None
        self._chores: set[asyncio.Task[None]] = set()

    def _infer_subjects(self, subjects: Subjects) -> list[str]:
        shared = self._options.shared
        everybody = subjects.tenant == STANDARD_TENANT if shared is None else shared
        return [subjects.tenant_infer(), *([subjects.infer()] if everybody else [])]

    def _infer(self, desk: Desk, subject: str) -> Door:
        name = "infer" if subject == self._client.subjects.infer() else "infer-tenant"
        metadata = {"content_types": ", ".join((inference.PROTOBUF, inference.JSON, inference.MSGPACK))}
        endpoint = Endpoint(name, subject, self._client.subjects.infer_group(), metadata)
        return Door(self._client.transport, desk, endpoint, inference.dialect_of, capacity=self._options.capacity)

    def _requests(self, desk: Desk, subjects: Subjects) -> Door:
        metadata = {"content_types": ", ".join((inference.JSON, inference.MSGPACK))}
        endpoint = Endpoint("requests", subjects.gateway_requests(), subjects.gateway_group(), metadata)

        def choose(data: bytes, headers: Any) -> requests.Requests:
            return requests.dialect_of(subjects.tenant, headers)

        door = Door(self._client.transport, desk, endpoint, choose, self._submit, capacity=self._options.capacity)
        if self._options.responses:
            door.on_answer = self._copy
        return door

    async def open(self) -> None:
        """Take requests; discovery (`$SRV.PING`) shows the doors from now on."""
        transport, subjects = self._client.transport, self._client.subjects
        self._subscriptions.append(await transport.subscribe(subjects.control(CANCEL_CONTROL), self._on_cancel))
        if self._options.responses:
            self._subscriptions.append(
                await transport.subscribe(
                    subjects.gateway_responses(), self._on_response_asked, queue=subjects.gateway_group()
                )
            )
        for door in list(self._doors):
            try:
                await door.open()
            except PermissionDeniedError as error:  # this user is not for those clients
                log.warning("%s: %s; that door stays closed", self._client.identity, error)
                self._doors.remove(door)
        self._service = transport.services.add(
            Service(
                name=f"{self._client.identity}-doors",
                version=__version__,
                description="Language models, by protobuf, JSON or msgpack.",
                metadata={"agentmesh.tenant": subjects.tenant},
                endpoints=[door.endpoint for door in self._doors],
            )
        )

    async def close(self) -> None:
        """Take no more, finish what is under way within `GRACE` seconds, and answer everybody else that we stop."""
        if self._service is not None:
            self._client.transport.services.remove(self._service)
        await asyncio.gather(*(door.close(GRACE) for door in self._doors))
        for chore in self._chores:
            chore.cancel()
        for subscription in self._subscriptions:
            await subscription.unsubscribe()

    def _on_cancel(self, message: Message) -> None:
        request_id = message.data.decode("utf-8", "replace")
        for door in self._doors:
            door.cancel(request_id)

    # ------------------------------------------------------------ jobs
    async def _submit(self, inquiry: Inquiry, write: Callable[[LLMResponse], bytes]) -> str:
        """Accept a request as a durable job; its id is that of the request.

        Raises:
            InvalidNameError: That id cannot be one.
            QueueFullError: Not accepted.
            PublishTimeoutError: Unknown.
        """
        request = inquiry.request
        token("request_id", request.request_id)
        job = Generate(**{name: getattr(request, name) for name in LLMRequest.model_fields})
        left = None if inquiry.deadline is None else max(0.001, (inquiry.deadline - now()).total_seconds())
        accepted = await self._client.submit(
            job, to=self._client.identity, task_id=request.request_id, priority=request.priority, deadline=left
        )
        if self._options.responses:
            self._later(self._copy_result(accepted.id, write))
        return accepted.id

    # ------------------------------------------------------------ copies of answers
    def _copy(self, inquiry: Inquiry, response: LLMResponse) -> None:
        data = msgspec.json.encode(requests.answer(inquiry.request.request_id, response))
        self._later(self._publish_copy(inquiry.request.request_id, data))

    async def _copy_result(self, job_id: str, write: Callable[[LLMResponse], bytes]) -> None:
        await self._publish_copy(job_id, write(await self._result(job_id, None)))

    async def _publish_copy(self, request_id: str, data: bytes) -> None:
        with contextlib.suppress(BrokerError):  # a copy is a courtesy
            subject = self._client.subjects.gateway_responses()
            headers = {"request_id": request_id, CONTENT_TYPE: inference.JSON}
            await self._client.transport.publish(subject, data, headers=headers)

    def _on_response_asked(self, message: Message) -> None:
        """Whoever sends its request to the subject of responses, too, and waits there: gets the job's result."""
        if message.reply and message.reply[:1] != "$":
            self._later(self._respond(message))

    async def _respond(self, message: Message) -> None:
        dialect = requests.Requests(self._client.subjects.tenant)
        try:
            document = dialect.document(message.data, message.headers)
            job_id = token("request_id", str(document.get("request_id", "")))
            response = await self._result(job_id, self._options.timeout)
        except AgentMeshError as error:
            job_id, response = "", failure(explained(error), "")
        await self._client.transport.publish(message.reply, dialect.dumps(requests.answer(job_id, response)))

    async def _result(self, job_id: str, timeout: float | None) -> LLMResponse:
        try:
            return await self._client.job(job_id, Generate).result(timeout)
        except TaskError as error:
            return failure(explained(error), job_id)

    def _later(self, work: Any) -> None:
        chore = asyncio.get_running_loop().create_task(work)
        self._chores.add(chore)
        chore.add_done_callback(self._done)

    def _done(self, chore: asyncio.Task[None]) -> None:
        self._chores.discard(chore)
        if not chore.cancelled() and chore.exception() is not None:
            log.warning("a copy of an answer could not be made: %s", chore.exception())
