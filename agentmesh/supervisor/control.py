"""Control requests between processes: `{"op": "restart", "name": "greeter"}`, answered with JSON or a typed error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from agentmesh.errors import AgentMeshError, InvalidMessageError, error_from_wire, error_to_wire
from agentmesh.transport import Message, Subscription, Transport

log = logging.getLogger("agentmesh.control")

Arguments = dict[str, Any]
Operation = Callable[[Arguments], Awaitable[Arguments]]


class ControlService:
    """Answers control requests on a subject.

    Args:
        transport: The connection.
        subject: Where it listens.
        operations: What it can do, by name; what one raises is the answer.
        concerns: Whether a request is meant for this process; others are left to others, without an answer.
    """

    def __init__(
        self,
        transport: Transport,
        subject: str,
        operations: Mapping[str, Operation],
        concerns: Callable[[Arguments], bool] = lambda arguments: True,
    ) -> None:
        self._transport = transport
        self._subject = subject
        self._operations = operations
        self._concerns = concerns
        self._subscription: Subscription | None = None
        self._working: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._subscription = await self._transport.subscribe(self._subject, self._on_message)

    async def stop(self) -> None:
        """Listen no more; what is under way is cancelled, unless it is what stops us."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        others = self._working - {asyncio.current_task()}
        for work in others:
            work.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _on_message(self, message: Message) -> None:
        work = asyncio.get_running_loop().create_task(self._answer(message), name=f"control {self._subject}")
        self._working.add(work)
        work.add_done_callback(self._working.discard)

    async def _answer(self, message: Message) -> None:
        try:
            arguments = _read(message.data)
            if not self._concerns(arguments):
                return
            answer = await self._operate(arguments)
        except AgentMeshError as error:
            answer = {"error": error_to_wire(error)}
        except Exception as error:  # a request must never end the process, whatever it asked for
            log.exception("control request failed")
            answer = {"error": error_to_wire(error)}
        if message.reply and self._transport.is_connected:
            await self._transport.publish(message.reply, msgspec.json.encode(answer))

    async def _operate(self, arguments: Arguments) -> Arguments:
        name = str(arguments.pop("op", ""))
        operation = self._operations.get(name)
        if operation is None:
            raise InvalidMessageError(f"unknown operation {name!r}; known: {', '.join(self._operations)}")
        return await operation(arguments)


async def call(transport: Transport, subject: str, op: str, *, timeout: float = 10.0, **arguments: Any) -> Arguments:
    """Send one control request and return its answer.

    Raises:
        NoRespondersError: Nobody listens there.
        DeadlineExceededError: No answer within `timeout` seconds.
        AgentMeshError: What the operation raised.
    """
    request = msgspec.json.encode({"op": op, **arguments})
    reply = await transport.request(subject, request, timeout=timeout)
    answer = _read(reply.data)
    if "error" in answer:
        raise error_from_wire(answer["error"], subject)
    return answer


def argument(arguments: Arguments, name: str, kind: Any) -> Any:
    """The argument `name`, checked to be of type `kind`.

    Raises:
        InvalidMessageError: It is missing, or something else.
    """
    try:
        return msgspec.convert(arguments.get(name), kind)
    except msgspec.ValidationError as error:
        raise InvalidMessageError(f"{name}: {error}") from None


def _read(data: bytes) -> Arguments:
    try:
        return msgspec.json.decode(data or b"{}", type=Arguments)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidMessageError(f"not a control message: {error}") from None
