"""What runs inside a child process: one tool call after the other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import importlib
import io
import math
import os
import pickle
import resource
import signal
import sys
import threading
import traceback
from typing import Any

import msgspec

from agentmesh.errors import (
    AgentMeshError,
    ToolFailedError,
    ToolLimitError,
    error_to_wire,
)
from agentmesh.tooling import Tool
from agentmesh.tools.frames import CallFrame, DoneFrame, frame, read_frame, write_all
from agentmesh.tools.loading import load

MAX_MESSAGE = 4000
"""Characters of a tool's own error message that are passed on."""

_waitpid = os.waitpid  # a tool may replace the one in the module

_shipped: dict[bytes, Tool[..., Any]] = {}


def serve(request: int, response: int, output: int, preload: list[str]) -> None:
    """Run calls until the executor closes the pipe.

    Args:
        request: Where calls come from.
        response: Where results go.
        output: Where what tools print goes.
        preload: Modules to import before the first call.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(output)
    for pipe in (request, response):
        os.set_inheritable(pipe, False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in order with standard error, and not lost when the process dies
    for module in preload:
        with contextlib.suppress(Exception):  # the first call of its tools says why
            importlib.import_module(module)
    while body := read_frame(request):
        call = msgspec.json.decode(body, type=CallFrame)
        code = b"" if call.tool else read_frame(request)
        done = _run(call, code)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        done.stale = _something_still_runs()
        write_all(response, frame(msgspec.json.encode(done)))


def _run(call: CallFrame, code: bytes) -> DoneFrame:
    name = call.name
    try:
        tool = _shipped_tool(code) if code else load(call.tool)
        os.chdir(call.folder)
        _limit_cpu(call.cpu_seconds)
        values = {**tool.decode_settings(bytes(call.settings)), **tool.decode_arguments(bytes(call.arguments))}
        result = tool.function(**values)
        if tool.is_async:
            result = asyncio.run(result)
        data = tool.encode_result(result)
    except BaseException as error:  # the edge: whatever a tool raises, SystemExit too, is the call's failure
        return DoneFrame(error=error_to_wire(_translate(name, error, call)))
    finally:
        _limit_cpu(None)
        os.chdir("/")
    if len(data) > call.output_bytes:
        return DoneFrame(error=error_to_wire(ToolLimitError(name, f"{call.output_bytes} bytes of result")))
    return DoneFrame(result=msgspec.Raw(data))


def _translate(name: str, error: BaseException, call: CallFrame) -> AgentMeshError:
    """A tool's exception as ours; the traceback goes to what it printed."""
    if isinstance(error, AgentMeshError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return ToolLimitError(name, f"{call.memory_bytes} bytes of memory")
    if number == errno.EFBIG:
        return ToolLimitError(name, f"{call.file_bytes} bytes in a file")
    if number == errno.EMFILE:
        return ToolLimitError(name, f"{call.open_files} open files")
    with contextlib.suppress(Exception):  # it may have closed standard error
        traceback.print_exception(error)
    return ToolFailedError(name, type(error).__name__, str(error)[:MAX_MESSAGE])


def _shipped_tool(code: bytes) -> Tool[..., Any]:
    """A tool that cannot be imported, pickled by the executor that started this very process."""
    digest = hashlib.sha256(code).digest()
    if digest not in _shipped:
        _shipped[digest] = pickle.loads(code)
    return _shipped[digest]


def _limit_cpu(seconds: float | None) -> None:
    """Allow so many seconds on top of those used so far; SIGXCPU ends the process after that."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if seconds is None:
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        return
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _something_still_runs() -> bool:
    """Whether the call left a process, which has become our child, or a thread."""
    try:
        while _waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return threading.active_count() > 1
    return True
