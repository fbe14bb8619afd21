"""Calling tools, wherever they are served."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import msgspec

from agentmesh.context import Attempt, covering, current, time_of_end
from agentmesh.errors import (
    BrokerError,
    DeadlineExceededError,
    InvalidMessageError,
    NoRespondersError,
    NoSuchToolError,
    ToolArgumentsError,
    ToolTimeoutError,
    error_from_wire,
)
from agentmesh.ids import new_id, now
from agentmesh.subjects import Subjects
from agentmesh.tooling.declare import Tool, encode_arguments
from agentmesh.tooling.wire import (
    CALL_TIMEOUT,
    CANCEL,
    LIST,
    QUEUE_TIME,
    REPLY_GRACE,
    SCHEMA_VERSION,
    ToolInfo,
    ToolListing,
    ToolReply,
    ToolRequest,
    permits,
)
from agentmesh.trace import inherit, outside

if TYPE_CHECKING:
    from agentmesh.transport import Transport

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class ToolClient:
    """Calls tools, wherever they are served.

    Args:
        transport: The connection, shared.
        subjects: The tenant's subjects.
        identity: The caller's name, when it is not called from a handler.
        allow: See `only`.
    """

    def __init__(
        self, transport: Transport, subjects: Subjects, identity: str = "", *, allow: Sequence[str] | None = None
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._identity = identity
        self._allow = None if allow is None else list(allow)

    def only(self, tools: Sequence[str]) -> ToolClient:
        """The same, for no other tools than these: the list goes with each call, and the executor refuses the rest.

        For code that calls what somebody else names, such as a model. A list can be narrowed and not widened.

        Args:
            tools: Names, or patterns such as `read_*`.
        """
        narrower = [name for name in tools if self._allow is None or permits(self._allow, name)]
        return ToolClient(self._transport, self._subjects, self._identity, allow=narrower)

    @overload
    async def call(
        self,
        tool: Tool[..., Coroutine[Any, Any, T]],
        /,
        *,
        timeout: float | None = None,
        deadline: datetime | None = None,
        key: str | None = None,
        **arguments: Any,
    ) -> T: ...

    @overload
    async def call(
        self,
        tool: Tool[..., T],
        /,
        *,
        timeout: float | None = None,
        deadline: datetime | None = None,
        key: str | None = None,
        **arguments: Any,
    ) -> T: ...

    @overload
    async def call(
        self,
        tool: str,
        /,
        *,
        timeout: float | None = None,
        deadline: datetime | None = None,
        key: str | None = None,
        **arguments: Any,
    ) -> Any: ...

    async def call(
        self,
        tool: str | Tool[..., Any],
        /,
        *,
        timeout: float | None = None,
        deadline: datetime | None = None,
        key: str | None = None,
        **arguments: Any,
    ) -> Any:
        """Run a tool in an executor and return its result. Like `invoke`, with the arguments written out.

        A tool with an argument that is called like an option here is called with `invoke`.
        """
        if key is not None and isinstance(tool, Tool) and "key" in tool.parameters["properties"]:
            raise ToolArgumentsError(tool.name, "it has an argument 'key', and call() an option: use invoke()")
        return await self.invoke(tool, arguments, timeout=timeout, deadline=deadline, key=key)

    async def invoke(
        self,
        tool: str | Tool[..., Any],
        arguments: Mapping[str, Any],
        *,
        timeout: float | None = None,
        deadline: datetime | None = None,
        key: str | None = None,
    ) -> Any:
        """Run a tool in an executor and return its result: at most once.

        Cancelling the caller ends the tool and every process it started.

        Args:
            tool: Its name, or the `Tool`: then the arguments are checked here and the result has the annotated type.
            arguments: By name; they must have a JSON form.
            timeout: Seconds to wait; None: as long as the tool may run, within the deadline of the message at hand.
            deadline: Stop waiting at that time, if it comes first.
            key: An idempotency key, such as `ctx.key("charge")`: the tool is run at most once for it, by whichever
                executor, and what came of it, a result or an error, is kept for a day and returned to every call with
                this key. A tool that raises `Retry` says that nothing was done: then the next call runs it again.

        Raises:
            NoSuchToolError: No executor serves it; names near misses.
            ToolNotAllowedError: This caller may not use it; nothing was run.
            ToolArgumentsError: The arguments do not fit; nothing was run.
            ToolFailedError: It raised, or its process died.
            ToolTimeoutError: It was ended, or nobody answered in time.
            ToolLimitError: It was ended at a limit of CPU time, memory or output.
            ToolBusyError: The executor takes no more calls right now; nothing was run.
            BudgetExceededError: A budget is used up; nothing was run.
            ToolOutcomeUnknownError: A call with this key was cut off in the middle; it is not run again.
            IdempotencyConflictError: The key was used for another tool or other arguments; nothing was run.
            AttemptReplacedError: The call came from the handler of a task, with a key, and another attempt of that
                task has taken over; nothing was run.
            InvalidNameError: That cannot be the name of a tool; nothing was sent.
        """
        name = tool.name if isinstance(tool, Tool) else tool
        subject = self._subjects.tool(name)
        encode = tool.encode_arguments if isinstance(tool, Tool) else functools.partial(encode_arguments, name)
        if key == "":
            raise ToolArgumentsError(name, "its idempotency key is empty")
        context = current()
        seconds = _seconds(tool, timeout, deadline)
        grants = covering()
        request = ToolRequest(
            tool=name,
            call_id=new_id(),
            arguments=msgspec.Raw(encode(arguments)),
            deadline=now() + timedelta(seconds=seconds),
            source_agent_id=context.agent if context else self._identity,
            schema_version=SCHEMA_VERSION,
            key=key or "",
            allow=self._allow,
        )
        trace = context or outside()
        if trace is not None:
            inherit(request, trace)
        if context is not None and context.attempt is not None:
            await _sign(request, context.attempt, tool)
        if grants:
            from agentmesh.tasks.spending import charge  # child processes need this module, and no connection

            await charge(self._transport, self._subjects, grants)
        if seconds <= 0:
            raise ToolTimeoutError(name, max(seconds, 0.0))
        reply = await self._exchange(subject, request, seconds)
        if reply.error is not None:
            raise error_from_wire(reply.error, name)
        data = bytes(reply.result)
        return tool.decode_result(data) if isinstance(tool, Tool) else msgspec.json.decode(data)

    async def list(self, *, timeout: float = 0.5, stall: float = 0.1) -> list[ToolInfo]:
        """The tools that are served, by name, each once.

        Args:
            timeout: Seconds to wait for executors at most.
            stall: Return when none answered for so many seconds.
        """
        subject = self._subjects.control(LIST)
        replies = await self._transport.request_many(subject, b"{}", timeout=timeout, stall=stall)
        found: dict[str, ToolInfo] = {}
        for reply in replies:
            with contextlib.suppress(msgspec.MsgspecError):  # another version's executor; the others still count
                found.update((info.name, info) for info in msgspec.json.decode(reply.data, type=ToolListing).tools)
        return [found[name] for name in sorted(found)]

    async def near(self, name: str) -> Sequence[str]:
        """Names of served tools that look like `name`, most similar first; within a tenth of a second."""
        try:
            served = [info.name for info in await self.list(timeout=0.08, stall=0.04)]
        except BrokerError:
            return []
        return difflib.get_close_matches(name, served, n=3, cutoff=0.5)

    async def _exchange(self, subject: str, request: ToolRequest, seconds: float) -> ToolReply:
        try:
            message = await self._transport.request(
                subject, msgspec.json.encode(request), timeout=seconds + REPLY_GRACE
            )
        except NoRespondersError:
            raise NoSuchToolError(request.tool, await self.near(request.tool)) from None
        except DeadlineExceededError:
            await self._cancel(request.call_id)
            raise ToolTimeoutError(request.tool, round(seconds, 3)) from None
        except asyncio.CancelledError:
            await self._cancel(request.call_id)
            raise
        try:
            return msgspec.json.decode(message.data, type=ToolReply)
        except msgspec.MsgspecError as error:
            raise InvalidMessageError(f"answer of tool {request.tool!r}: {error}") from None

    async def _cancel(self, call_id: str) -> None:
        body = msgspec.json.encode({"call_id": call_id})
        with contextlib.suppress(BrokerError):  # then its deadline ends the tool
            await self._transport.publish(self._subjects.control(CANCEL), body)


async def _sign(request: ToolRequest, attempt: Attempt, tool: str | Tool[..., Any]) -> None:
    """Say which attempt of which task calls, if the call is one that is remembered, or may be."""
    if not request.key and (isinstance(tool, str) or tool.once):  # of a name alone, only the executor knows
        request.step = attempt.step_key(request.tool, bytes(request.arguments))
    if request.key or (isinstance(tool, Tool) and tool.once):
        request.task_id, request.fence = attempt.task_id, await attempt.fence()


def _seconds(tool: str | Tool[..., Any], timeout: float | None, deadline: datetime | None) -> float:
    """How long a call may take: what the caller said, at most what is left of its own deadline."""
    usual = tool.limits.timeout + QUEUE_TIME if isinstance(tool, Tool) else CALL_TIMEOUT
    bounds = [usual if timeout is None else timeout]
    if deadline is not None:
        bounds.append((deadline - now()).total_seconds())
    end = time_of_end()
    if end is not None:
        bounds.append((end - now()).total_seconds())
    return min(bounds)
