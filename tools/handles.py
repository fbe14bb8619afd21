"""The executor's side of the keeper and of each child."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from agentmesh.errors import SupervisionError
from agentmesh.ids import new_id
from agentmesh.tooling import Limits
from agentmesh.tools.frames import HEADER, DoneFrame, Exited, Forked, ForkOrder, KillOrder, Order, Ready, Report
from agentmesh.tools.processes import MARK, kill_marked

START_TIMEOUT = 15.0
"""Seconds the keeper may take to start, and to fork a child."""
END_TIMEOUT = 3.0
"""Seconds within which killed processes are gone, or something is very wrong with the machine."""
FRAME_ALLOWANCE = 1 << 15
"""Bytes a frame may have on top of the result."""
CHUNK = 1 << 16

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ")
"""What tools get to see of the executor's environment: nothing that could be a secret."""

_BOOT = r"import sys; sys.path[:] = sys.argv.pop(1).split('\n'); from agentmesh.tools.keeper import main; main()"


@dataclass(frozen=True)
class Cage:
    """Limits that hold for a child from its start."""

    memory_bytes: int
    file_bytes: int
    open_files: int

    @classmethod
    def of(cls, limits: Limits) -> Cage:
        return cls(limits.memory_bytes, limits.file_bytes, limits.open_files)


@dataclass(frozen=True)
class Died:
    """Outcome of a call: its process ended. Negative: by that signal."""

    code: int


@dataclass(frozen=True)
class Flooded:
    """Outcome of a call: it printed, or returned, more than allowed."""


@dataclass(frozen=True)
class Garbled:
    """Outcome of a call: its process sent bytes that mean nothing."""


class KeeperHandle:
    """The keeper process of one pool. Made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], orders: socket.socket, mark: str, folder: str) -> None:
        self.folder = folder
        """Where calls work, and the home of tools; removed at the end."""
        self.gone = asyncio.Event()
        self._process = process
        self._orders = orders
        self._mark = mark
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._numbers = itertools.count(1)
        self._forking: dict[int, asyncio.Future[int]] = {}
        self._children: dict[int, ChildHandle] = {}
        self._loop.add_reader(orders, self._on_reports)

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls) -> KeeperHandle:
        """Start the process with an environment and a temporary folder of its own.

        Raises:
            SupervisionError: It did not start.
        """
        mark = new_id()
        folder = tempfile.mkdtemp(prefix="agentmesh-tools-")
        keeper = cls(*_start_process(folder, mark), mark, folder)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await keeper._ready
        except TimeoutError:
            await keeper.close()
            problem = f"the process that keeps tool processes did not start in {START_TIMEOUT:g} s"
            raise SupervisionError(problem) from None
        except asyncio.CancelledError:
            await keeper.close()
            raise
        return keeper

    async def fork(self, cage: Cage, preload: Sequence[str]) -> ChildHandle:
        """A new child.

        Raises:
            SupervisionError: There was none in time.
        """
        number = next(self._numbers)
        request_read, request_write = os.pipe()
        response_read, response_write = os.pipe()
        output_read, output_write = os.pipe()
        theirs = (request_read, response_write, output_write)
        order = ForkOrder(number, cage.memory_bytes, cage.file_bytes, cage.open_files, list(preload))
        child = ChildHandle(self, number, cage, request_write, response_read, output_read)
        self._children[number] = child
        forked = self._forking[number] = self._loop.create_future()
        try:
            self._order(order, theirs)
            async with asyncio.timeout(START_TIMEOUT):
                child.pid = await forked
        except (OSError, TimeoutError) as error:
            self._children.pop(number, None)
            child.exited(-signal.SIGKILL)
            raise SupervisionError(f"no process for a tool: {error or 'no answer from their keeper'}") from None
        except asyncio.CancelledError:
            self.kill(number)
            raise
        finally:
            self._forking.pop(number, None)
            for pipe in theirs:
                os.close(pipe)
        return child

    def kill(self, number: int) -> None:
        """Have a child ended with everything it started; its `gone` is set when they are."""
        with contextlib.suppress(OSError):  # the keeper has gone, and its children with it
            self._order(KillOrder(number), ())

    async def close(self) -> None:
        """End all children and the process itself."""
        children = list(self._children.values())
        if not self.gone.is_set():
            self._orders.shutdown(socket.SHUT_WR)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT):
                    await self.gone.wait()
        if not self.gone.is_set():
            self._process.kill()
            self._lost()
        await asyncio.gather(*(child.gone.wait() for child in children))
        await asyncio.to_thread(self._process.wait)

    def _order(self, order: Order, pipes: Sequence[int]) -> None:
        socket.send_fds(self._orders, [msgspec.json.encode(order)], pipes)

    def _on_reports(self) -> None:
        while True:
            try:
                data = self._orders.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self._on_report(msgspec.json.decode(data, type=Report))

    def _on_report(self, report: Report) -> None:
        match report:
            case Ready():
                if not self._ready.done():  # whoever waited may have been cancelled
                    self._ready.set_result(None)
            case Forked(number, pid):
                forking = self._forking.get(number)
                if forking is not None and not forking.done():
                    forking.set_result(pid)
            case Exited(number, code):
                child = self._children.pop(number, None)
                if child is not None:
                    child.exited(code)

    def _lost(self) -> None:
        """The keeper has ended: closed by us, or killed by a tool. Then its children ended too; what they started may
        not have."""
        if self.gone.is_set():
            return
        self.gone.set()
        self._loop.remove_reader(self._orders)
        self._orders.close()
        self._process.wait()  # at once: its end of the socket closes when it ends
        kill_marked(self._mark)
        shutil.rmtree(self.folder, ignore_errors=True)  # the keeper did, unless it was killed
        problem = SupervisionError("the process that keeps tool processes ended")
        if not self._ready.done():
            self._ready.set_exception(problem)
        for forking in self._forking.values():
            if not forking.done():
                forking.set_exception(problem)
        for child in self._children.values():
            child.exited(-signal.SIGKILL)
        self._children.clear()


def _start_process(home: str, mark: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {MARK: mark, "HOME": home, "TMPDIR": home}
    path = "\n".join(os.path.abspath(entry) for entry in sys.path)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT, path, str(theirs.fileno()), home],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    return process, ours


class ChildHandle:
    """One child: its pipes, and the call it is working on."""

    def __init__(self, keeper: KeeperHandle, number: int, cage: Cage, request: int, response: int, output: int) -> None:
        self.keeper = keeper
        self.cage = cage
        self.pid = 0
        self.calls = 0
        self.alive = True
        self.gone = asyncio.Event()
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._request, self._response, self._output = request, response, output
        self._sending: deque[memoryview] = deque()
        self._received = bytearray()
        self._printed = bytearray()
        self._output_limit = 0
        self._outcome: asyncio.Future[DoneFrame | Died | Flooded | Garbled] | None = None
        for pipe in (request, response, output):
            os.set_blocking(pipe, False)
        self._loop.add_reader(response, self._on_response)
        self._loop.add_reader(output, self._on_output)

    async def call(self, frames: bytes, output_limit: int) -> DoneFrame | Died | Flooded | Garbled:
        """Send a call and wait for what becomes of it; end the child if this does not return a `DoneFrame`."""
        self.calls += 1
        self._printed.clear()
        self._output_limit = output_limit
        self._outcome = self._loop.create_future()
        if not self.alive:
            return Died(-signal.SIGKILL)
        self._sending.append(memoryview(frames))
        self._loop.add_writer(self._request, self._on_writable)
        return await self._outcome

    async def end(self) -> None:
        """Kill it with everything it started, and wait until they are gone."""
        if self.alive:
            self.keeper.kill(self._number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT):
                    await self.gone.wait()

    def printed(self) -> str:
        """What the call wrote to standard output and error, as far as it was allowed."""
        if not self.gone.is_set():
            self._on_output()  # what came right before the result
        return self._printed[: self._output_limit].decode(errors="replace")

    def exited(self, code: int) -> None:
        """The process is no more. A result it sent just before may still be in the pipe."""
        if not self.alive:
            return
        self.alive = False
        self._on_response()
        self._on_output()
        self._decide(Died(code))
        self._loop.remove_writer(self._request)
        for pipe in (self._response, self._output):
            self._loop.remove_reader(pipe)
        for pipe in (self._request, self._response, self._output):
            os.close(pipe)
        self.gone.set()

    def _decide(self, outcome: DoneFrame | Died | Flooded | Garbled) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(outcome)

    def _on_writable(self) -> None:
        try:
            while self._sending:
                sent = os.write(self._request, self._sending[0][:CHUNK])
                self._sending[0] = self._sending[0][sent:]
                if not self._sending[0]:
                    self._sending.popleft()
        except BlockingIOError:
            return
        except OSError:  # it ended; the keeper will say how
            self._sending.clear()
        self._loop.remove_writer(self._request)

    def _on_response(self) -> None:
        while data := self._read(self._response):
            self._received += data
            if len(self._received) < HEADER.size:
                continue
            (size,) = HEADER.unpack_from(self._received)
            if size > self._output_limit + FRAME_ALLOWANCE:
                self._loop.remove_reader(self._response)
                self._decide(Flooded())
                return
            if len(self._received) >= HEADER.size + size:
                body = bytes(self._received[HEADER.size : HEADER.size + size])
                self._received.clear()
                try:
                    self._decide(msgspec.json.decode(body, type=DoneFrame))
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    self._decide(Garbled())

    def _on_output(self) -> None:
        while len(self._printed) <= self._output_limit and (data := self._read(self._output)):
            self._printed += data
        if len(self._printed) > self._output_limit:
            self._loop.remove_reader(self._output)
            self._decide(Flooded())

    def _read(self, pipe: int) -> bytes:
        """What is there now; empty if there is nothing, or if it is closed."""
        try:
            data = os.read(pipe, CHUNK)
        except BlockingIOError:
            return b""
        if not data:
            self._loop.remove_reader(pipe)
        return data
