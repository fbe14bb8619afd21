"""The processes of the workload: started, started again when they end, signalled, and ended for good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agentmesh.chaos.history import Recorder
from agentmesh.chaos.processes import alive
from agentmesh.lifeline import child_preexec, spawn_kwargs

INDEPENDENT = ("agentmesh.up",)
"""Modules that do not end by themselves when the process that started them does."""

PAUSE = 0.3
"""Seconds until a process that ended is started again."""


class Member:
    """One place in the workload, and the process that fills it now.

    Args:
        role: Its name in the history.
        module: What it runs.
        told: What it reads from standard input, from the number of times it was started before.
        folder: For its output.
        record: The history of this process.
        once: Its end is the end, and expected.
    """

    def __init__(
        self,
        role: str,
        module: str,
        told: Callable[[int], bytes],
        folder: Path,
        record: Recorder,
        *,
        once: bool = False,
    ) -> None:
        self.role = role
        self.pid = 0
        """Of its process; 0 while there is none."""
        self.lives = 0
        """How often it was started."""
        self._module = module
        self._told = told
        self._output = folder / f"{role}.log"
        self._record = record
        self._meant = False
        self._once = once
        self._over = False
        self._keeping: asyncio.Task[None] | None = None
        self.on_exit: Callable[[int], None] = lambda pid: None
        """Called with the pid of each process of this place that ended."""

    def begin(self) -> None:
        """Start it, and start it again whenever it ends, until `finish` or `end`."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep(), name=self.role)

    def signal(self, number: signal.Signals) -> int:
        """Send its process a signal; the pid, 0 if there is no process. What ends it now is meant to."""
        pid = self.pid
        if pid:
            self._meant |= number in (signal.SIGKILL, signal.SIGTERM)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def finish(self) -> None:
        """Tell it to stop, and do not start it again."""
        self._over = True
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)

    async def ended(self, timeout: float) -> bool:
        """Whether it ended for good within so many seconds."""
        if self._keeping is None:
            return True
        return bool((await asyncio.wait({self._keeping}, timeout=timeout))[0])

    def check(self) -> None:
        """Raise what kept its process from being started."""
        if self._keeping is not None and self._keeping.done():
            self._keeping.result()

    async def end(self) -> None:
        """Kill what is left of it."""
        self._over = True
        self.signal(signal.SIGKILL)
        await self.ended(5.0)
        if self._keeping is not None:
            self._keeping.cancel()

    def _ties(self) -> dict[str, Any]:
        """Its life is tied to ours: by its own doing, or, where it is made to be nobody's child, by the kernel."""
        if self._module in INDEPENDENT:
            return {"start_new_session": True, "preexec_fn": child_preexec(signal.SIGKILL)}
        return dict(spawn_kwargs())

    async def _keep(self) -> None:
        while not self._over:
            self._meant = False
            process = await self._start()
            self.pid, self.lives = process.pid, self.lives + 1
            self._record.write("spawned", member=self.role, child=self.pid)
            if self._over:  # told to stop in between
                self.finish()
            code = await process.wait()
            child, self.pid = self.pid, 0
            self._over |= self._once
            self._record.write("exited", member=self.role, child=child, code=code, meant=self._meant or self._over)
            self.on_exit(child)
            if not self._over:
                await asyncio.sleep(PAUSE)

    async def _start(self) -> asyncio.subprocess.Process:
        with open(self._output, "ab") as output:  # noqa: ASYNC230  (a local file)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                **self._ties(),
            )
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(self._told(self.lives))
            await process.stdin.drain()
        process.stdin.close()
        return process


async def gone(pids: Sequence[int], timeout: float) -> list[int]:
    """Those that are still alive after so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while (left := [pid for pid in pids if alive(pid)]) and loop.time() < end:  # noqa: ASYNC110  (no event tells)
        await asyncio.sleep(0.05)
    return left
