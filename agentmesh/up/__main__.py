"""A mesh in the background: `python -m agentmesh.up` reads its plan from standard input and prints its events."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import fields
from typing import Any

import msgspec

from agentmesh.errors import AgentMeshError, error_to_wire
from agentmesh.supervisor.child import announce
from agentmesh.up.events import LogLine, UpEvent
from agentmesh.up.plan import load
from agentmesh.up.root import Up


def as_json(event: UpEvent) -> dict[str, Any]:
    """An event as plain data."""
    return {"event": event.kind, **{field.name: getattr(event, field.name) for field in fields(event)}}


def show(event: UpEvent) -> None:
    """Print an event; what processes print is in their own files."""
    if not isinstance(event, LogLine):
        print(msgspec.json.encode(as_json(event)).decode(), flush=True)


async def run(data: bytes) -> None:
    """Run the plan in `data`."""
    await Up(load(data), show).run()


def main() -> int:
    """Exit code 0 after a stop, 1 when the mesh cannot run."""
    try:
        asyncio.run(run(sys.stdin.buffer.read()))
    except AgentMeshError as error:
        announce(event="failed", error=error_to_wire(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
