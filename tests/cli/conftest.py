"""Run the real command line, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli import warm

if TYPE_CHECKING:
    from agentmesh import Mesh

REPOSITORY = Path(__file__).parents[2]
AT_START = ("PYTHON", "LC_", "LANG")
"""What the interpreter reads when it starts, so that it needs one of its own."""


@dataclass(frozen=True)
class Ran:
    """What a finished command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Cli = Callable[..., Awaitable[Ran]]


def environment(**more: str) -> dict[str, str]:
    """The environment without what would change how a command behaves, and with this checkout importable.

    Only the agents of the project run: those that come with agentmesh have their own tests. So has the HTTP gateway,
    which would take port 8000, or warn that somebody else has it.
    """
    strange = ("NATS_URL", "HOST", "PORT", "CI", "NO_COLOR", "FORCE_COLOR", "PYTHONPATH")
    plain = {key: value for key, value in os.environ.items() if key not in strange and not key.startswith("AGENTMESH_")}
    without = {"AGENTMESH_LLM_ENABLED": "false", "AGENTMESH_HTTP_ENABLED": "false"}
    return {**plain, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", **without, **more}


async def start(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    """Start `agentmesh arguments…`."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "agentmesh.cli", *arguments),
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process, stdin: str = "") -> Ran:
    """Wait for the end of a command; it is killed if it does not come."""
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def run(*arguments: str, cwd: Path, stdin: str = "", env: dict[str, str] | None = None) -> Ran:
    """Run `agentmesh arguments…` to its end; killed after a minute."""
    if any(key.startswith(AT_START) for key in env or {}):
        return await ended(await start(*arguments, cwd=cwd, env=env), stdin)
    return Ran(*await warm.call(arguments, cwd, environment(**(env or {})), stdin, 60))


@pytest.fixture
def alone(tmp_path: Path) -> Cli:
    """`await alone("version")`: a command in an empty folder, with no mesh around."""

    async def call(*arguments: str, **options: Any) -> Ran:
        return await run(*arguments, **{"cwd": tmp_path, **options})

    return call


@pytest.fixture
def cli(mesh: Mesh, tmp_path: Path) -> Cli:
    """`await cli("ask", "greeter", "hi")`: a command against the mesh of the test."""

    async def call(*arguments: str, **options: Any) -> Ran:
        address = ("--nats", mesh.url, "--tenant", mesh.subjects.tenant)
        return await run(*arguments, *address, **{"cwd": tmp_path, **options})

    return call
