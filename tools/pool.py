"""Warm child processes that run tool calls under limits, one call at a time each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from agentmesh.errors import AgentMeshError, ToolFailedError, ToolLimitError, ToolTimeoutError, error_from_wire
from agentmesh.tooling import Tool
from agentmesh.tools.frames import CallFrame, DoneFrame, frame
from agentmesh.tools.handles import Cage, ChildHandle, Died, Flooded, Garbled, KeeperHandle

log = logging.getLogger("agentmesh.tools")

LOGGED = 2000
"""Characters of what a tool printed that are logged."""

Outcome = DoneFrame | Died | Flooded | Garbled


class ProcessPool:
    """The children of one executor.

    Args:
        size: How many there are at most; further calls wait.
        preload: Modules a child imports before its first call.
        recycle_after: Calls after which a child is replaced, so that what tools leak does not pile up.
    """

    def __init__(self, size: int, *, preload: Sequence[str] = (), recycle_after: int = 1000) -> None:
        self._slots = asyncio.Semaphore(size)
        self._size = size
        self._busy = 0
        self._preload = list(preload)
        self._recycle_after = recycle_after
        self._keeper: KeeperHandle | None = None
        self._starting = asyncio.Lock()
        self._idle: list[ChildHandle] = []
        self._folders = itertools.count()

    async def start(self, cages: Sequence[Cage] = ()) -> None:
        """Fork a child for each of `cages`, so that the first calls find one."""
        for cage in cages[: self._size]:
            self._idle.append(await self._fork(cage))

    async def close(self) -> None:
        """End all children with everything they started; calls that still run fail."""
        self._idle.clear()
        if self._keeper is not None:
            await self._keeper.close()
            self._keeper = None

    @property
    def idle(self) -> list[int]:
        """Pids of the children that wait for a call."""
        return [child.pid for child in self._idle if child.alive]

    @property
    def keeper(self) -> KeeperHandle | None:
        """The process that is the parent of the children; None before the first call."""
        return self._keeper

    async def run(self, tool: Tool[..., Any], arguments: bytes, timeout: float) -> bytes:
        """Run a tool and return its result as JSON.

        Cancelling this ends the call with every process it started, before CancelledError goes on.

        Args:
            tool: What to run.
            arguments: Checked, as JSON.
            timeout: Seconds, from when a child is free.

        Raises:
            ToolTimeoutError, ToolLimitError, ToolFailedError: The call was ended, or the tool raised.
            AgentMeshError: What the tool raised, if it is one of ours.
            SupervisionError: No process could be had.
        """
        async with self._slots:
            self._busy += 1
            try:
                return await self._run(tool, arguments, timeout)
            finally:
                self._busy -= 1

    async def _run(self, tool: Tool[..., Any], arguments: bytes, timeout: float) -> bytes:
        child = await self._take(Cage.of(tool.limits))
        folder = os.path.join(child.keeper.folder, str(next(self._folders)))
        outcome: Outcome | None = None
        try:
            if child.alive:  # with its parent: a tool may have removed its home
                os.makedirs(folder, exist_ok=True)
            async with asyncio.timeout(timeout):
                outcome = await child.call(_frames(tool, arguments, folder), tool.limits.output_bytes)
        except TimeoutError:
            raise ToolTimeoutError(tool.name, round(timeout, 3)) from None
        finally:
            _log_printed(tool, child, outcome)
            await self._give_back(child, clean=isinstance(outcome, DoneFrame) and not outcome.stale)
            await _remove(folder)
        match outcome:
            case Flooded():
                raise ToolLimitError(tool.name, f"{tool.limits.output_bytes} bytes of output")
            case Died(code):
                raise _death(tool, code)
            case Garbled():
                raise ToolFailedError(tool.name, "ProtocolError", "its process sent something that is no result")
            case DoneFrame(error=None, result=result):
                return bytes(result)
        raise error_from_wire(outcome.error or {}, tool.name)

    async def _take(self, cage: Cage) -> ChildHandle:
        self._idle = [child for child in self._idle if child.alive]
        for child in reversed(self._idle):  # the one used last is the warmest
            if child.cage == cage:
                self._idle.remove(child)
                return child
        if self._idle and len(self._idle) + self._busy > self._size:
            await self._idle.pop(0).end()
        return await self._fork(cage)

    async def _give_back(self, child: ChildHandle, *, clean: bool) -> None:
        if clean and child.alive and child.calls < self._recycle_after:
            self._idle.append(child)
        else:
            await child.end()

    async def _fork(self, cage: Cage) -> ChildHandle:
        async with self._starting:
            if self._keeper is None or self._keeper.gone.is_set():
                self._keeper = await KeeperHandle.start()
        return await self._keeper.fork(cage, self._preload)


def import_target(tool: Tool[..., Any]) -> str:
    """`module:name` under which another process finds the tool; empty if it cannot be imported."""
    module, path = tool.function.__module__, tool.function.__qualname__
    if module in ("__main__", "__mp_main__") or "<" in path:
        return ""
    found: object = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return f"{module}:{path}" if isinstance(found, Tool) and found.function is tool.function else ""


def _frames(tool: Tool[..., Any], arguments: bytes, folder: str) -> bytes:
    target, limits = import_target(tool), tool.limits
    call = CallFrame(
        tool=target,
        name=tool.name,
        settings=msgspec.Raw(tool.settings_json()),
        arguments=msgspec.Raw(arguments),
        folder=folder,
        cpu_seconds=limits.cpu_seconds,
        output_bytes=limits.output_bytes,
        memory_bytes=limits.memory_bytes,
        file_bytes=limits.file_bytes,
        open_files=limits.open_files,
    )
    call_frame = frame(msgspec.json.encode(call))
    if target:
        return call_frame
    import cloudpickle  # type: ignore[import-untyped]  # only for tools of notebooks and scripts

    # Code of this process, for a child of this process, over a private pipe; results come back as JSON.
    return call_frame + frame(cloudpickle.dumps(tool))


def _death(tool: Tool[..., Any], code: int) -> AgentMeshError:
    if code == -signal.SIGXCPU:
        return ToolLimitError(tool.name, f"{tool.limits.cpu_seconds:g} seconds of CPU time")
    if code < 0:
        with contextlib.suppress(ValueError):
            return ToolFailedError(tool.name, signal.Signals(-code).name, "its process was ended by that signal")
    return ToolFailedError(tool.name, "SystemExit", f"its process ended with exit code {code}")


def _log_printed(tool: Tool[..., Any], child: ChildHandle, outcome: Outcome | None) -> None:
    text = child.printed().rstrip()
    if text:
        fine = isinstance(outcome, DoneFrame) and outcome.error is None
        log.log(logging.INFO if fine else logging.WARNING, "tool %s printed: %s", tool.name, text[:LOGGED])


async def _remove(folder: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        try:
            os.rmdir(folder)
        except OSError:  # the tool left files there, perhaps many
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
