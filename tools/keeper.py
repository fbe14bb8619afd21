"""The process between an executor and the children that run tools: `python -I -c … keeper.main()`.

It forks children that are warm at once, because it has imported what they need and nothing else. It is their parent,
so a tool that kills its parent does not hit the executor. It adopts what they leave behind, and ends it. When the
executor is gone, however it ended, the keeper ends all of them and itself.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import sys

import msgspec

from agentmesh.tools import child
from agentmesh.tools.frames import Exited, Forked, ForkOrder, KillOrder, Order, Ready, Report
from agentmesh.tools.processes import adopt_orphans, children_of, die_with, kill_tree

MESSAGE_BYTES = 1 << 16
PIPES = 3


class Keeper:
    """Takes orders from the executor over a socket; one thread, no event loop: it must be safe to fork."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._numbers: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._wake_read, self._wake_write = os.pipe()

    def run(self) -> None:
        """Until the executor is gone."""
        os.set_blocking(self._wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        adopt_orphans()
        self._report(Ready())
        while True:
            readable, _, _ = select.select([self._orders.fileno(), self._wake_read], [], [])
            if self._wake_read in readable:
                os.read(self._wake_read, 4096)
                self._reap()
            if self._orders.fileno() in readable and not self._obey():
                break
        for pid in self._numbers:
            kill_tree(pid)
        self._kill_strangers()

    def _obey(self) -> bool:
        data, pipes, _, _ = socket.recv_fds(self._orders, MESSAGE_BYTES, PIPES)
        if not data:
            return False
        order = msgspec.json.decode(data, type=Order)
        if isinstance(order, KillOrder):
            self._kill(order.number)
        else:
            self._fork(order, pipes)
        return True

    def _fork(self, order: ForkOrder, pipes: list[int]) -> None:
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(order, pipes, keeper)
        for pipe in pipes:
            os.close(pipe)
        self._numbers[pid] = order.number
        self._pids[order.number] = pid
        self._report(Forked(order.number, pid))

    def _become_child(self, order: ForkOrder, pipes: list[int], keeper: int) -> None:
        """Never returns."""
        code = 1
        try:
            os.setsid()
            die_with(keeper)
            adopt_orphans()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._orders.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            request, response, output = pipes
            _limit(resource.RLIMIT_CORE, 0)
            _limit(resource.RLIMIT_AS, order.memory_bytes)
            _limit(resource.RLIMIT_FSIZE, order.file_bytes)
            _limit(resource.RLIMIT_NOFILE, order.open_files)
            child.serve(request, response, output, order.preload)
            code = 0
        finally:
            os._exit(code)  # not the keeper's way out

    def _kill(self, number: int) -> None:
        pid = self._pids.get(number)
        if pid is not None:
            kill_tree(pid)

    def _reap(self) -> None:
        """Collect what has ended, and end what it left behind."""
        ended = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._numbers:
                ended.append((pid, os.waitstatus_to_exitcode(status)))
        for pid, _ in ended:
            self._pids.pop(self._numbers[pid])
        numbers = [(self._numbers.pop(pid), code) for pid, code in ended]
        self._kill_strangers()
        for number, code in numbers:
            self._report(Exited(number, code))

    def _kill_strangers(self) -> None:
        """Children that we did not fork are orphans of a child that is gone."""
        while strangers := [pid for pid in children_of(os.getpid()) if pid not in self._numbers]:
            for pid in strangers:
                kill_tree(pid)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _report(self, report: Report) -> None:
        with contextlib.suppress(BrokenPipeError):  # the executor has gone: the next order is the end
            self._orders.send(msgspec.json.encode(report))


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def main() -> None:
    """Arguments: the number of the inherited socket, and the folder of the pool, which is removed at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal: the executor decides
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        orders.set_inheritable(False)
        Keeper(orders).run()
        shutil.rmtree(sys.argv[2], ignore_errors=True)  # an executor that was killed could not
        os._exit(0)  # the executor waits: nothing here needs an orderly end
