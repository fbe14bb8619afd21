"""A process that has imported the command line and forks for each command.

A command still has a process, folder, environment and streams of its own; it only does not import everything again,
which is nine tenths of the time that a command takes.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import IO

Ended = tuple[int, str, str]
"""Exit code, standard output, standard error."""

_MOST = 1 << 20
"""Bytes of a request: the arguments and the environment of one command."""


async def call(arguments: tuple[str, ...], cwd: Path, env: dict[str, str], stdin: str, timeout: float) -> Ended:
    """Run `agentmesh arguments…` to its end; it is killed if that does not come within `timeout` seconds."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": env}).encode()
                socket.send_fds(_forge(), [request], [given.fileno(), out.fileno(), err.fileno(), theirs.fileno()])
            code = await _code(ours, timeout)
        return code, _text(out), _text(err)


async def _code(waiter: socket.socket, timeout: float) -> int:
    waiter.setblocking(False)
    loop = asyncio.get_running_loop()
    pid = int(await loop.sock_recv(waiter, 64))
    try:
        async with asyncio.timeout(timeout):
            return int(await loop.sock_recv(waiter, 64))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@cache
def _forge() -> socket.socket:
    """The end of the socket that takes requests; the process behind it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.warm", str(theirs.fileno())],
            cwd=Path(__file__).parents[2],
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _warm() -> None:
    import agentmesh
    from agentmesh.cli.app import COMMANDS, load

    for name in COMMANDS:
        load(name)
    for name in agentmesh.__all__:
        getattr(agentmesh, name)
    gc.freeze()


def serve(requests: socket.socket) -> None:
    """Fork for each request until the other end is closed; in the forks, be the command."""
    _warm()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the tests is for the commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, fds, _, _ = socket.recv_fds(requests, _MOST, 4)
        if not request:
            return
        if not os.fork():
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _follow(request, fds)
        for fd in fds:
            os.close(fd)


def _follow(request: bytes, fds: list[int]) -> None:
    """Fork the command, and tell its process id and its exit code."""
    *streams, waiter = fds
    pid = os.fork()
    if not pid:
        os.close(waiter)
        _become(request, streams)
    for fd in streams:
        os.close(fd)
    os.write(waiter, b"%d" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(waiter, b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: bytes, streams: list[int]) -> None:
    """Be `python -m agentmesh.cli arguments…`; ends as that does, by raising SystemExit."""
    from agentmesh.cli.app import main

    wanted = json.loads(request)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.path[0] = wanted["cwd"]
    sys.argv[1:] = wanted["arguments"]
    main()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
