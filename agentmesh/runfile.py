"""`.agentmesh/up.json`: where a running `agentmesh up` says how to reach it.

Whoever starts in the same folder or below it finds the mesh without being told an address.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec

from agentmesh.config.environment import broker_url

RUN_DIR = ".agentmesh"
NAME = "up.json"


class RunFile(msgspec.Struct):
    """What a running mesh says about itself."""

    url: str
    """Of the broker, without credentials."""
    tenant: str
    name: str
    pid: int
    started_at: datetime
    monitor: str | None = None
    """Address of the broker's monitoring page, if it is ours."""
    http: str | None = None
    """Address of the HTTP gateway."""

    def alive(self) -> bool:
        """Whether the process that wrote it still exists."""
        if self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return True


def read(run_dir: Path) -> RunFile | None:
    """The run file in `run_dir`, also of a mesh that has died; None if there is none or it cannot be read."""
    try:
        return msgspec.json.decode((run_dir / NAME).read_bytes(), type=RunFile)
    except (OSError, msgspec.MsgspecError):
        return None


def write(run_dir: Path, content: RunFile) -> None:
    """Write it in one step, readable by the owner only."""
    run_dir.mkdir(parents=True, exist_ok=True)
    draft = run_dir / f"{NAME}.{os.getpid()}"
    draft.touch(mode=0o600)
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    draft.replace(run_dir / NAME)


def remove(run_dir: Path) -> None:
    """Remove it if it is there."""
    (run_dir / NAME).unlink(missing_ok=True)


def broker_address() -> str:
    """Where a broker should be: `$NATS_URL`, else that of the mesh of this folder, else port 4222 of this machine."""
    url = broker_url()
    if url is None and (running := find()) is not None:
        url = running.url
    return url or "nats://127.0.0.1:4222"


def find(start: Path | None = None) -> RunFile | None:
    """The nearest live mesh of this folder or of one above it."""
    folder = (start or Path.cwd()).absolute()
    for candidate in (folder, *folder.parents):
        found = read(candidate / RUN_DIR)
        if found is not None and found.alive():
            return found
    return None
