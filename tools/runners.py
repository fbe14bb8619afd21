"""Runs one call of a tool, in the way the tool asks for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from agentmesh.errors import AgentMeshError, ToolFailedError, ToolLimitError, ToolTimeoutError
from agentmesh.tooling import Tool
from agentmesh.tools.handles import Cage
from agentmesh.tools.pool import ProcessPool, import_target

log = logging.getLogger("agentmesh.tools")

CANCEL_GRACE = 1.0
"""Seconds an `async` tool may take to end when it is cancelled; then its caller gets an answer anyway."""


class Runners:
    """On the event loop, in a thread, or in a process.

    Args:
        tools: What will be run, so that processes are warm for it.
        concurrency: Threads, and processes, at most.
    """

    def __init__(self, tools: Sequence[Tool[..., Any]], concurrency: int) -> None:
        self._tools = [tool for tool in tools if tool.isolation == "subprocess"]
        targets = {import_target(tool).partition(":")[0] for tool in self._tools}
        self._pool = ProcessPool(concurrency, preload=sorted(targets - {""}))
        self._threads = asyncio.Semaphore(concurrency)
        self._stubborn: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Have a process ready for each set of limits that tools ask for."""
        await self._pool.start(list(dict.fromkeys(Cage.of(tool.limits) for tool in self._tools)))

    async def close(self) -> None:
        """End all processes. Threads cannot be ended; they do not keep the program from ending."""
        await self._pool.close()

    async def run(self, tool: Tool[..., Any], arguments: bytes, timeout: float) -> bytes:
        """Run a tool and return its result as JSON.

        Cancelling this ends the tool, with every process it started if it runs in one; a thread runs on.

        Args:
            tool: What to run.
            arguments: As JSON.
            timeout: Seconds.

        Raises:
            ToolArgumentsError: They do not fit; nothing was run.
            ToolTimeoutError, ToolLimitError, ToolFailedError: It was ended, or it raised.
            AgentMeshError: What the tool raised, if it is one of ours.
        """
        values = {**tool.settings, **tool.decode_arguments(arguments)}
        if tool.isolation == "subprocess":
            return await self._pool.run(tool, arguments, timeout)
        if tool.isolation == "thread":
            result = await self._in_thread(tool, lambda: tool.function(**values), timeout)
        else:
            result = await self._on_the_loop(tool, values, timeout)
        data = tool.encode_result(result)
        if len(data) > tool.limits.output_bytes:
            raise ToolLimitError(tool.name, f"{tool.limits.output_bytes} bytes of result")
        return data

    async def _on_the_loop(self, tool: Tool[..., Any], values: dict[str, Any], timeout: float) -> Any:
        # A task of its own: a tool that raises CancelledError must not look like our caller's cancellation.
        task: asyncio.Task[Any] = asyncio.create_task(tool.function(**values))
        try:
            await asyncio.wait({task}, timeout=timeout)
        except asyncio.CancelledError:
            await self._cancel(tool, task)
            raise
        if not task.done():
            await self._cancel(tool, task)
            raise ToolTimeoutError(tool.name, round(timeout, 3))
        if task.cancelled():
            raise ToolFailedError(tool.name, "CancelledError", "it cancelled itself")
        return _outcome(tool, task)

    async def _cancel(self, tool: Tool[..., Any], task: asyncio.Task[Any]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_GRACE)
        if not task.done():
            log.warning("tool %s goes on although it was cancelled", tool.name)
            self._stubborn.add(task)
            task.add_done_callback(self._stubborn.discard)

    async def _in_thread(self, tool: Tool[..., Any], work: Callable[[], Any], timeout: float) -> Any:
        try:
            async with asyncio.timeout(timeout):
                await self._threads.acquire()
                future = _thread(tool.name, work)
                future.add_done_callback(lambda _: self._threads.release())  # not before the thread has ended
                await asyncio.wait({future})
        except TimeoutError:
            raise ToolTimeoutError(tool.name, round(timeout, 3)) from None
        return _outcome(tool, future)


def _outcome(tool: Tool[..., Any], future: asyncio.Future[Any]) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, AgentMeshError):
        raise error
    log.warning("tool %s failed", tool.name, exc_info=error)
    raise ToolFailedError(tool.name, type(error).__name__, str(error)) from None


def _thread(name: str, work: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run `work` in a daemon thread: one that hangs does not keep the program from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def body() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        except BaseException as raised:  # SystemExit and the like must not reach the event loop as they are
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, name=f"tool-{name}", daemon=True).start()
    return future
