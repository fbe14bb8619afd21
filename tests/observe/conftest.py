"""A real `agentmesh up` that all tests of this folder look at."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ran, environment, run

AGENTS = '''
import asyncio
import logging

from agentmesh import Agent, Event, Request, Task, handler
from agentmesh.tooling import tool

log = logging.getLogger("shop")


class Order(Request[str]):
    item: str


class Pack(Task[str]):
    item: str


class Hold(Event):
    """Keeps the clerk busy until the mesh ends."""


class Shop(Agent):
    """Takes orders."""

    @handler
    async def order(self, request: Order) -> str:
        log.warning("an order of %s", request.item)
        if request.item == "nothing":
            raise ValueError("nothing was ordered")
        return f"sold {request.item}"

    @handler
    async def pack(self, task: Pack) -> str:
        log.warning("packing %s", task.item)
        return task.item


class Clerk(Agent):
    """Is slow."""

    @handler
    async def hold(self, event: Hold) -> None:
        await asyncio.sleep(3600)


@tool
def price(item: str) -> int:
    """What it costs."""
    return len(item)
'''

SETTINGS = """
name = "shop"
[agents.shop]
class = "shop:Shop"
[agents.clerk]
class = "shop:Clerk"
[tools]
targets = ["shop:price"]
[node]
count = 1
grace = 0.2
[llm]
enabled = false
[http]
enabled = true
host = "127.0.0.1"
port = 0
"""


@dataclass
class Running:
    """A mesh, and every line it printed."""

    folder: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    """Of standard output, so far."""
    news: queue.Queue[str] = field(default_factory=queue.Queue)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines, each of which is a JSON document."""
        return [json.loads(line) for line in self.lines]

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first record, also of those before, that is as wanted."""
        for record in self.records:
            if wanted(record):
                return record
        while True:
            line: dict[str, Any] = json.loads(self.news.get(timeout=60))
            if wanted(line):
                return line

    async def cli(self, *arguments: str) -> Ran:
        """Run a command in the folder of the mesh."""
        return await run(*arguments, cwd=self.folder)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`agentmesh up --log-format json` with two agents, a tool, the memory and the HTTP gateway."""
    folder = tmp_path_factory.mktemp("observed")
    (folder / "shop.py").write_text(textwrap.dedent(AGENTS))
    (folder / "mesh.toml").write_text(SETTINGS)
    command = [sys.executable, "-m", "agentmesh.cli", "up", "--log-format", "json", "--port", "0", "--store", "memory"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(AGENTMESH_HTTP_ENABLED="true"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        mesh = Running(folder, process)
        reader = threading.Thread(target=_read, args=(mesh,))
        reader.start()
        try:
            mesh.wait_for(lambda record: record["message"] == "ready")
            yield mesh
        finally:
            process.terminate()
            process.wait(30)
            reader.join(30)


def _read(mesh: Running) -> None:
    assert mesh.process.stdout is not None
    for line in mesh.process.stdout:
        mesh.lines.append(line)
        mesh.news.put(line)
