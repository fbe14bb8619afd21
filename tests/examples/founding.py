"""Runs the founding examples as one would: a process each, from whatever folder."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh.lifeline import child_preexec
from tests.harness import Process

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
LONG = 45.0
"""Seconds for what takes one: a starved machine imports slowly."""

Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """`process = await start("ai_integration_client.py", url=broker.url)`, run outside the checkout."""
    started: list[Process] = []

    async def begin(name: str, *arguments: str, url: str | None, cwd: Path = tmp_path) -> Process:
        mark = f"AGENTMESH_TEST_FAMILY={os.urandom(8).hex()}"
        strange = {"NATS_URL", "FORCE_COLOR"}
        environment = {key: value for key, value in os.environ.items() if key not in strange}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **dict([mark.split("=")])}
        if url is not None:
            environment["NATS_URL"] = url
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / name),
            *arguments,
            cwd=cwd,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**20,
            start_new_session=True,
            preexec_fn=child_preexec(signal.SIGKILL),
        )
        started.append(Process(process, name, mark.encode()))
        return started[-1]

    yield begin
    for process in started:
        await process.cleanup()


async def finished(process: Process, code: int = 0) -> list[str]:
    """What it printed, once it ended with that code."""
    assert await process.wait(LONG) == code, process.output
    return process.lines
