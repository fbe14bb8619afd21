"""Serves tools: calls come in over the broker, run under limits, and are answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from agentmesh.errors import (
    AgentMeshError,
    BrokerError,
    DefinitionError,
    DeliveryError,
    InvalidMessageError,
    InvalidSubjectError,
    NoRespondersError,
    NoSuchToolError,
    PayloadTooLargeError,
    ToolBusyError,
    ToolCancelledError,
    ToolFailedError,
    ToolLimitError,
    ToolNotAllowedError,
    ToolTimeoutError,
    error_to_wire,
)
from agentmesh.ids import new_id, now
from agentmesh.logs import about
from agentmesh.metrics import metrics_of
from agentmesh.subjects import Subjects, token
from agentmesh.tooling import (
    CALL_TIMEOUT,
    CANCEL,
    LIST,
    REPLY_GRACE,
    SCHEMA_VERSION,
    Tool,
    ToolClient,
    ToolListing,
    ToolRequest,
    permits,
)
from agentmesh.tools.remembering import Memory
from agentmesh.tools.runners import Runners
from agentmesh.transport import Message, Subscription, Transport

log = logging.getLogger("agentmesh.tools")

GRACE = 10.0
"""Seconds running calls get to finish when the executor stops."""

Work = Callable[[ToolRequest], Coroutine[Any, Any, None]]

_decode_request = msgspec.json.Decoder(ToolRequest).decode


class _Cancel(msgspec.Struct):
    call_id: str


class ToolExecutor:
    """Serves tools on `ai.agent.tools.T.<tool>`, and on `ai.agent.tools.T` with the name in the body.

    Executors that serve the same tool share its calls. Each tool has a subscription of its own, so executors may serve
    different tools.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        tools: What to serve.
        concurrency: Calls that run at the same time; None: one for each CPU, at least 2.
        max_waiting: Calls that may wait for their turn; one more is refused at once with ToolBusyError.
        allow: Which tools an agent may call, by its name: names of tools, or patterns such as `read_*`. `*` is
            everybody who is not named; without it they may call nothing. None: everybody may call everything.

    Raises:
        DefinitionError: Two tools have the same name.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        tools: Iterable[Tool[..., Any]],
        *,
        concurrency: int | None = None,
        max_waiting: int = 256,
        allow: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._allow = None if allow is None else dict(allow)
        self.id = new_id()
        self.tools: dict[str, Tool[..., Any]] = {}
        for tool in tools:
            if self.tools.setdefault(tool.name, tool) is not tool:
                raise DefinitionError(
                    f"tool {tool.name}", "there are two of this name; give one another: @tool(name=…)"
                )
        self._transport = transport
        self._subjects = subjects
        self._client = ToolClient(transport, subjects)
        self._memory = Memory(transport, subjects, self.id)
        self._concurrency = concurrency or max(2, os.cpu_count() or 1)
        self._capacity = self._concurrency + max_waiting
        self._slots = asyncio.Semaphore(self._concurrency)
        self._runners = Runners(list(self.tools.values()), self._concurrency)
        self._subscriptions: list[Subscription] = []
        self._controls: list[Subscription] = []
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._replies: set[asyncio.Task[None]] = set()

    @property
    def calls(self) -> list[str]:
        """Ids of the calls that run or wait."""
        return list(self._calls)

    async def start(self) -> None:
        """Start the processes, then listen: the first call finds a warm one."""
        await self._runners.start()
        group = self._subjects.tool_group()
        self._controls.append(await self._transport.subscribe(self._subjects.control(CANCEL), self._on_cancel))
        await self._listen(self._subjects.control(LIST), self._on_list)
        for name, tool in self.tools.items():
            await self._listen(self._subjects.tool(name), self._on_call(tool), group)
        await self._listen(self._subjects.tool_door(), self._on_door, group)

    async def stop(self, grace: float = GRACE) -> None:
        """Take no more calls, let those that run finish for up to `grace` seconds, and end the rest.

        Every caller gets an answer: those whose call was ended a ToolCancelledError.
        """
        await asyncio.gather(*(subscription.drain() for subscription in self._subscriptions))
        if self._calls:
            await asyncio.wait(list(self._calls.values()), timeout=grace)
        for call in self._calls.values():
            call.cancel()
        if rest := [*self._calls.values(), *self._replies]:
            await asyncio.wait(rest)
        await asyncio.gather(*(subscription.unsubscribe() for subscription in self._controls))
        await self._runners.close()

    async def __aenter__(self) -> ToolExecutor:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(grace=GRACE if error is None else 0.0)

    async def _listen(self, subject: str, callback: Callable[[Message], None], group: str = "") -> None:
        self._subscriptions.append(await self._transport.subscribe(subject, callback, queue=group))

    # -- what comes in

    def _on_call(self, tool: Tool[..., Any]) -> Callable[[Message], None]:
        def on_call(message: Message) -> None:
            self._accept(message, tool.name, lambda request: self._call(tool, request, message.reply))

        return on_call

    def _on_door(self, message: Message) -> None:
        def choose(request: ToolRequest) -> Coroutine[Any, Any, None]:
            tool = self.tools.get(token("tool", request.tool))
            if tool is None:
                return self._forward(request, message)
            return self._call(tool, request, message.reply)

        self._accept(message, "", choose)

    def _accept(self, message: Message, name: str, work: Work) -> None:
        """Start `work(request)` as a call, or refuse it at once. `name`: the tool whose subject it came on, if any."""
        request = ToolRequest(tool=name)
        try:
            request = _parse(message.data, name)
            self._check(request)
            task = asyncio.create_task(work(request))
        except AgentMeshError as error:
            reply = asyncio.create_task(self._reply(message.reply, _failure(request, error)))
            self._replies.add(reply)
            reply.add_done_callback(self._replies.discard)
            return
        self._calls[request.call_id] = task
        task.add_done_callback(lambda _: self._calls.pop(request.call_id))

    def _check(self, request: ToolRequest) -> None:
        if request.call_id in self._calls:
            raise InvalidMessageError(f"a call with the id {request.call_id!r} is running")
        if len(self._calls) >= self._capacity:
            raise ToolBusyError(request.tool, self._capacity)
        self._check_caller(request)

    def _check_caller(self, request: ToolRequest) -> None:
        """What a caller may use is decided here, by lists that no argument of the call can change."""
        caller = request.source_agent_id
        said_by = ""
        if request.allow is not None and not permits(request.allow, request.tool):
            said_by = "caller"
        elif self._allow is not None and not permits(self._allow.get(caller, self._allow.get("*", ())), request.tool):
            said_by = "executor"
        if said_by:
            error = ToolNotAllowedError(request.tool, caller, said_by)
            log.warning("a call was refused: %s", error)
            raise error

    def _on_cancel(self, message: Message) -> None:
        try:
            call = self._calls.get(msgspec.json.decode(message.data, type=_Cancel).call_id)
        except msgspec.MsgspecError as error:
            log.warning("a cancel message that is none: %s", error)
            return
        if call is not None:
            call.cancel()

    def _on_list(self, message: Message) -> None:
        listing = ToolListing(self.id, [tool.info() for tool in self.tools.values()])
        reply = asyncio.create_task(self._reply(message.reply, msgspec.json.encode(listing)))
        self._replies.add(reply)
        reply.add_done_callback(self._replies.discard)

    # -- the life of a call

    async def _call(self, tool: Tool[..., Any], request: ToolRequest, reply: str) -> None:
        began = time.perf_counter()
        with about(trace_id=request.trace_id, tool=tool.name, call_id=request.call_id, agent=request.source_agent_id):
            body = await self._outcome(tool, request)
        name = "agentmesh_tool_seconds"
        seconds = metrics_of(self._transport).histogram(name, "How long calls took, waiting included.", tool=tool.name)
        seconds.observe(time.perf_counter() - began)
        try:
            await self._reply(reply, body)
        except PayloadTooLargeError as error:
            await self._reply(reply, _failure(request, ToolLimitError(tool.name, f"{error.limit} bytes in a message")))

    async def _outcome(self, tool: Tool[..., Any], request: ToolRequest) -> bytes:
        """Run the call; never raises, and a cancelled call is an outcome like any other."""
        arguments = bytes(request.arguments)
        left = _seconds_left(request)
        try:
            tool.decode_arguments(arguments)  # bad ones are refused now, and not after a long wait
            key = request.key or (request.step if tool.once else "")
            if key:
                result = await self._run_once(tool, request, arguments, key)
            else:
                async with self._slot(left):
                    result = await self._runners.run(tool, arguments, _time_limit(tool, request))
            return _success(request, result)
        except TimeoutError:  # before its turn came
            return self._failed(tool, request, ToolTimeoutError(tool.name, round(max(left or 0.0, 0.0), 3)))
        except asyncio.CancelledError:
            return self._failed(tool, request, ToolCancelledError(tool.name))
        except AgentMeshError as error:
            return self._failed(tool, request, error)
        except Exception as error:  # the edge: a bug of ours must not leave the caller without an answer
            log.exception("call of tool %s", tool.name)
            return self._failed(tool, request, ToolFailedError(tool.name, type(error).__name__, str(error)))

    def _failed(self, tool: Tool[..., Any], request: ToolRequest, error: AgentMeshError) -> bytes:
        name = "agentmesh_tool_failures_total"
        metrics_of(self._transport).counter(name, "Calls of a tool that failed.", tool=tool.name).inc()
        return _failure(request, error)

    async def _run_once(self, tool: Tool[..., Any], request: ToolRequest, arguments: bytes, key: str) -> bytes:
        """Like any other call, unless something is known about its key; waits for that without a slot."""

        async def work(seconds: float) -> bytes:
            return await self._runners.run(tool, arguments, seconds)

        while True:
            async with asyncio.timeout(_seconds_left(request)):
                kept, entry = await self._memory.recall(tool, request, key)
            if kept is not None:
                return kept
            async with self._slot(_seconds_left(request)):
                result = await self._memory.run(tool, request, key, entry, work, _time_limit(tool, request))
            if result is not None:
                return result

    @contextlib.asynccontextmanager
    async def _slot(self, timeout: float | None) -> AsyncIterator[None]:
        async with asyncio.timeout(timeout):
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    async def _forward(self, request: ToolRequest, message: Message) -> None:
        """A call at the door of a tool that other executors may serve."""
        left = _seconds_left(request)
        timeout = CALL_TIMEOUT if left is None else max(left, 0.0)
        try:
            answer = await self._transport.request(
                self._subjects.tool(request.tool), message.data, timeout=timeout + REPLY_GRACE
            )
            body = answer.data
        except NoRespondersError:
            body = _failure(request, NoSuchToolError(request.tool, await self._client.near(request.tool)))
        except asyncio.CancelledError:  # the executor that runs it got the same cancel message
            body = _failure(request, ToolCancelledError(request.tool))
        except (DeliveryError, BrokerError) as error:
            body = _failure(request, error)
        await self._reply(message.reply, body)

    async def _reply(self, subject: str, body: bytes) -> None:
        if not subject:
            return
        try:
            await self._transport.publish(subject, body)
        except PayloadTooLargeError:
            raise
        except InvalidSubjectError:
            log.warning("an answer could not be sent to %r", subject[:80])
        except BrokerError as error:
            log.warning("an answer could not be sent: %s", error)


def _parse(data: bytes, name: str) -> ToolRequest:
    try:
        request = _decode_request(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessageError(f"not a tool call: {error}") from None
    version = request.schema_version
    if version and version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise InvalidMessageError(f"schema_version {version!r} is not supported (this is {SCHEMA_VERSION})")
    if request.deadline is not None and request.deadline.tzinfo is None:
        raise InvalidMessageError("deadline: give a time zone, such as 'Z'")
    if name and request.tool not in ("", name):
        raise InvalidMessageError(f"a call of tool {request.tool!r} came on the subject of {name!r}")
    request.tool = name or request.tool
    request.call_id = request.call_id or new_id()
    return request


def _time_limit(tool: Tool[..., Any], request: ToolRequest) -> float:
    """Seconds a call may run now that its turn has come."""
    left = _seconds_left(request)
    if left is not None and left <= 0:
        raise TimeoutError
    return tool.limits.timeout if left is None else min(tool.limits.timeout, left)


def _seconds_left(request: ToolRequest) -> float | None:
    return None if request.deadline is None else (request.deadline - now()).total_seconds()


def _success(request: ToolRequest, result: bytes) -> bytes:
    return msgspec.json.encode(
        {"call_id": request.call_id, "result": msgspec.Raw(result), "schema_version": SCHEMA_VERSION}
    )


def _failure(request: ToolRequest, error: BaseException) -> bytes:
    return msgspec.json.encode(
        {"call_id": request.call_id, "error": error_to_wire(error), "schema_version": SCHEMA_VERSION}
    )
