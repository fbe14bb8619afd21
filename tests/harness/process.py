"""Child processes whose output can be awaited and that never outlive the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from agentmesh.chaos.processes import alive, kill_pid, pause_pid
from agentmesh.lifeline import child_preexec
from tests.harness.waiting import eventually

REPOSITORY = Path(__file__).parents[2]


class Process:
    """A running child. `lines` has everything it printed so far, standard output and error in one."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, mark: bytes) -> None:
        self.name = name
        self._mark = mark
        self.lines: list[str] = []
        self._process = process
        self._more = asyncio.Condition()
        self._finished = False
        self._reader = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def line_matching(self, pattern: str, *, nth: int = 1, timeout: float = 10.0) -> re.Match[str]:
        """The `nth` line since its start in which `pattern` is found, waiting for it if need be.

        Raises:
            AssertionError: It ended, or `timeout` seconds passed, without such a line; shows what it printed.
        """

        def found() -> list[re.Match[str]]:
            return [match for match in (re.search(pattern, line) for line in self.lines) if match]

        try:
            async with asyncio.timeout(timeout), self._more:
                await self._more.wait_for(lambda: self._finished or len(found()) >= nth)
        except TimeoutError:
            pass
        matches = found()
        if len(matches) < nth:
            if self._finished:  # its output ended, so it did or is about to
                with contextlib.suppress(AssertionError):
                    await self.wait(1.0)
            state = f"ended with {self.returncode}" if self._finished else f"still running after {timeout:g} s"
            raise AssertionError(f"{self.name} printed no line {nth} matching {pattern!r} ({state}):\n{self.output}")
        return matches[nth - 1]

    async def wait(self, timeout: float = 10.0) -> int:
        """Its exit code, once it ended and what it printed was read.

        Raises:
            AssertionError: It still runs after `timeout` seconds; shows what it printed.
        """
        # asyncio's own `wait` also waits for the pipes, which orphans of this process may keep open.
        try:
            await eventually(lambda: self.returncode is not None, timeout)
        except AssertionError:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s:\n{self.output}") from None
        await asyncio.wait([self._reader], timeout=0.5)
        assert self.returncode is not None
        return self.returncode

    def family(self) -> list[int]:
        """Pids of all that are alive of this process, its children, theirs and so on, also when it is gone itself.

        They are known by an environment variable, so one that was started with a cleared environment is missed.
        """
        pids = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
        return [pid for pid in pids if self._mark in _environment(pid) and alive(pid)]

    async def write_line(self, text: str) -> None:
        """Send one line to its standard input."""
        assert self._process.stdin
        self._process.stdin.write(text.encode() + b"\n")
        await self._process.stdin.drain()

    def signal(self, number: signal.Signals) -> None:
        """Does nothing when it has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def interrupt(self) -> None:
        self.signal(signal.SIGINT)

    def kill9(self) -> None:
        self.signal(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP; returns when all its threads stand still."""
        pause_pid(self.pid)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    async def cleanup(self) -> None:
        """Kill its whole family, orphans too."""
        while family := self.family():  # again, because they may have started more
            for pid in family:
                kill_pid(pid)
        await self._process.wait()
        self._reader.cancel()
        await asyncio.wait([self._reader])
        if self._process.stdin:
            self._process.stdin.close()
        # asyncio has no public way to give back the pipe of a process whose descendants still hold it.
        self._process._transport.close()  # type: ignore[attr-defined]

    async def _read(self) -> None:
        assert self._process.stdout
        try:
            async for line in self._process.stdout:
                async with self._more:
                    self.lines.append(line.decode(errors="replace").rstrip("\r\n"))
                    self._more.notify_all()
        finally:
            await self._finish()

    async def _finish(self) -> None:
        async with self._more:
            self._finished = True
            self._more.notify_all()


async def spawn_python(module_or_code: str, *args: str, env: Mapping[str, str] | None = None) -> Process:
    """Run `python -m module args…`, or `python -c code args…`, with this checkout importable.

    It runs in a session of its own, and dies with the test process. Whoever calls this calls `cleanup`; the fixture
    `spawn_process` does both.
    """
    is_module = re.fullmatch(r"[\w.]+", module_or_code)
    target = ["-m", module_or_code] if is_module else ["-c", textwrap.dedent(module_or_code)]
    mark = f"AGENTMESH_TEST_FAMILY={os.urandom(8).hex()}"
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *target,
        *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=2**20,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **dict([mark.split("=")]), **(env or {})},
        start_new_session=True,
        preexec_fn=child_preexec(signal.SIGKILL),
    )
    return Process(process, module_or_code if is_module else "the spawned code", mark.encode())


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return b""
