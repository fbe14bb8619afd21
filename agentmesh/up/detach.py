"""A mesh in the background: started without a terminal, and stopped from anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agentmesh.errors import AlreadyRunningError, SupervisionError, error_from_wire
from agentmesh.runfile import RunFile
from agentmesh.supervisor.child import MARK
from agentmesh.up.plan import UpPlan, dump
from agentmesh.up.rundir import holder, not_writable, running

LOG = "detached.log"
"""In the folder for logs: the events of the mesh, one JSON document a line."""

PERIOD = 0.03
"""Seconds between looks."""


@dataclass(frozen=True)
class Down:
    """What `down` did."""

    pid: int | None
    """Of the mesh that ran; None: none did."""
    stopped: bool
    """Nothing runs now."""
    killed: bool = False
    """It did not stop in good order within the time it was given."""


def start_detached(plan: UpPlan, *, timeout: float = 60.0) -> RunFile:
    """Start a mesh in the background and wait until it is ready. It outlives this process and the terminal.

    Raises:
        AlreadyRunningError: A mesh runs in this folder.
        ConfigError: The folder cannot be written to.
        AgentMeshError: What `Up.run` raised there.
        SupervisionError: It ended otherwise, or was not ready within `timeout` seconds and was killed.
    """
    found = holder(plan.folder)
    if found is not None:
        raise AlreadyRunningError(str(plan.folder), found)
    log = plan.folder / "logs" / LOG
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise not_writable(plan.folder, error) from error
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentmesh.up"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert process.stdin is not None
    process.stdin.write(dump(plan))
    process.stdin.close()
    give_up = time.monotonic() + timeout
    while (content := running(plan.folder)) is None or content.pid != process.pid:
        if process.poll() is not None:
            raise _failure(log, process.returncode)
        if time.monotonic() > give_up:
            process.kill()
            process.wait()
            raise SupervisionError(f"not ready within {timeout:g} s; see {log}")
        time.sleep(PERIOD)
    process.returncode = 0  # it is not ours any more: nobody here waits for its end, and Popen need not warn of it
    return content


def down(folder: Path, *, timeout: float = 30.0, force: bool = False) -> Down:
    """Stop the mesh of a folder, and wait until nothing of it runs.

    Args:
        folder: The run directory.
        timeout: Seconds for the orderly stop; then everything is killed.
        force: Kill everything at once.
    """
    pid = holder(folder)
    if pid is None:
        return Down(None, stopped=True)
    if not _signal(pid, signal.SIGTERM):
        return Down(pid, stopped=holder(folder) is None)
    if not force and _gone(folder, timeout):
        return Down(pid, stopped=True)
    _signal(pid, signal.SIGINT)  # the second signal kills; another one, since two of the same may become one
    if not _gone(folder, 5.0):
        _signal(pid, signal.SIGKILL)  # they notice it by themselves
    return Down(pid, stopped=_gone(folder, 5.0), killed=True)


def _signal(pid: int, number: signal.Signals) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _gone(folder: Path, timeout: float) -> bool:
    give_up = time.monotonic() + timeout
    while holder(folder) is not None:
        if time.monotonic() > give_up:
            return False
        time.sleep(PERIOD)
    return True


def _failure(log: Path, code: int) -> Exception:
    """Why the process in the background ended, as an error of ours."""
    lines = log.read_text(errors="replace").splitlines()
    for line in reversed(lines):
        if line.startswith(MARK):
            return error_from_wire(msgspec.json.decode(line.removeprefix(MARK))["error"], "up")
    tail = "\n  ".join(lines[-15:])
    return SupervisionError(f"the mesh ended with exit code {code} before it was ready:\n  {tail}")
