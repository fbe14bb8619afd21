"""A child that is a process: started with a lifeline, read line by line, and ended together with its descendants.

The child has a process group and session of its own. It is ready when it has printed its ready line; whatever it
prints goes to a callback. When it ends, for whatever reason, what is left of its group is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from agentmesh.errors import SupervisionError
from agentmesh.lifeline import spawn_kwargs
from agentmesh.supervisor.child import MARK
from agentmesh.supervisor.tree import Exit

MAX_LINE = 65_536
"""Bytes of one line of output; the rest of a longer line follows as further lines."""

KILL_WAIT = 5.0
"""Seconds to wait for the end of a process that was killed: only a process stuck in the kernel needs them."""

Fields = dict[str, object]
"""What a process says to its supervisor."""


@dataclass(frozen=True)
class Launch:
    """How to start a process."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of this process."""
    cwd: str | None = None
    stdin: bytes = b""
    """What it reads from standard input, which then ends."""
    ready_text: str = ""
    """It is up when it prints a marked line with the event `ready`, or a line that begins with this."""
    ready_timeout: float = 30.0
    """Seconds until it must be up."""
    on_line: Callable[[str], None] = lambda line: None
    """Called with each line it prints that is not marked."""
    on_fields: Callable[[Fields], None] = lambda fields: None
    """Called with each marked line."""


class ProcessChild:
    """A process; up once `start` or `begin` has returned."""

    def __init__(self, launch: Launch) -> None:
        self.name = launch.name
        self.said: Fields = {}
        """Its ready line."""
        self.forced = False
        """It did not end within the time that `stop` gave it, and was killed."""
        self._launch = launch
        self._is_ready = False
        self._up = asyncio.Event()  # it is ready, or it ended
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tail: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._output: asyncio.ReadTransport | None = None
        self._drained = asyncio.Event()

    @classmethod
    async def start(cls, launch: Launch) -> ProcessChild:
        """Make one and `begin`."""
        child = cls(launch)
        await child.begin()
        return child

    async def begin(self) -> None:
        """Start it and wait until it is up. When this is cancelled or fails, the process is gone.

        Raises:
            SupervisionError: It cannot be run, ended before it was up, or was not up in time; with its last lines.
        """
        timeout = self._launch.ready_timeout
        try:
            await self._open()
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            await self.kill()
            raise SupervisionError(self._why(f"was not ready within {timeout:g} s")) from None
        except BaseException:
            await asyncio.shield(self.kill())
            raise
        if not self._is_ready:
            await self._drain()
            raise SupervisionError(self._why(f"ended with {_how(self._ended.result())} before it was ready"))

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and not self._ended.done()

    async def wait(self) -> Exit:
        """Wait for its end. Exit code 0 is good order; a signal or any other code is a failure."""
        code = await asyncio.shield(self._ended)
        await self._drain()
        return Exit(SupervisionError(self._why(_how(code))) if code else None, _how(code))

    async def stop(self, timeout: float) -> None:
        """SIGTERM to the process, and `timeout` seconds later SIGKILL to its whole group."""
        if self.alive and timeout > 0:
            self.signal(signal.SIGTERM)
            await asyncio.wait([self._ended], timeout=timeout)
        self.forced = self.alive
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to it and its group; returns when it is gone."""
        if self._process is None:
            return
        if self.alive:
            self.kill_now()
            await asyncio.wait([self._ended], timeout=KILL_WAIT)
        await self._drain()

    def kill_now(self) -> None:
        """SIGKILL to it and its group, without waiting."""
        if self.alive:
            kill_group(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; nothing happens when it has ended."""
        if self.alive and self._process is not None:
            self._process.send_signal(number)

    # ------------------------------------------------------------ inside
    async def _open(self) -> None:
        process = self._process = self._fork()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._reap, args=(process, loop), name=f"reap {self.name}", daemon=True).start()
        self._output, _ = await loop.connect_read_pipe(lambda: _Lines(self._on_line, self._drained), process.stdout)
        await asyncio.to_thread(self._feed, process, self._launch.stdin)

    def _fork(self) -> subprocess.Popen[bytes]:
        """In the thread of the event loop, the main one: the parent-death signal follows the thread that forks."""
        launch = self._launch
        try:
            return subprocess.Popen(
                launch.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=launch.cwd,
                **spawn_kwargs({"PYTHONUNBUFFERED": "1", **launch.env}),
            )
        except OSError as error:
            raise SupervisionError(f"{self.name}: cannot run {launch.command[0]}: {error}") from error

    @staticmethod
    def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it ended without reading: that shows elsewhere
            process.stdin.write(data)
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _reap(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        """A thread for each process: it works on every platform and in every event loop."""
        code = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(self._reaped, code)

    def _reaped(self, code: int) -> None:
        kill_group(self.pid)  # what it started and did not end itself
        if not self._ended.done():
            self._ended.set_result(code)
        self._up.set()

    async def _drain(self) -> None:
        """Read what it printed last. A descendant that left the group may hold the pipe: not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._drained.wait()
        if self._output is not None:
            self._output.close()

    def _on_line(self, line: str) -> None:
        before, mark, text = line.partition(MARK)
        fields = _fields(text) if mark else None
        if fields is None:
            before = line
        if before or fields is None:
            self._tail = [*self._tail[-19:], before]
            self._launch.on_line(before)
        if fields is not None:
            if fields.get("event") == "ready":
                self.said = fields
            self._launch.on_fields(fields)
        if self.said or (self._launch.ready_text and line.startswith(self._launch.ready_text)):
            self._is_ready = True
            self._up.set()

    def _why(self, what: str) -> str:
        last = "\n  ".join(self._tail)
        return f"{self.name} {what}" + (f":\n  {last}" if last else "")


class _Lines(asyncio.Protocol):
    """Cuts a stream of bytes into lines of bounded length."""

    def __init__(self, on_line: Callable[[str], None], ended: asyncio.Event) -> None:
        self._on_line = on_line
        self._ended = ended
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            while len(line) > MAX_LINE:
                line = self._give(line)
            self._on_line(line.decode(errors="replace").rstrip("\r"))
        while len(self._rest) > MAX_LINE:
            self._rest = self._give(self._rest)

    def _give(self, long: bytes) -> bytes:
        """Pass on the first part of a line that is too long; returns the rest."""
        self._on_line(long[:MAX_LINE].decode(errors="replace"))
        return long[MAX_LINE:]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))
            self._rest = b""
        self._ended.set()


def kill_group(pid: int) -> None:
    """SIGKILL to everything in the process group that `pid` leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _fields(text: str) -> Fields | None:
    try:
        return msgspec.json.decode(text, type=Fields)
    except msgspec.MsgspecError:
        return None


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
