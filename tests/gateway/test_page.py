"""The curl lines of the page work."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh import Agent, AgentRef, Prompt, Request, Task, handler
from tests.gateway.conftest import Running

PAGE = Path(__file__).resolve().parents[2] / "docs" / "http.md"


class Greet(Request[str]):
    name: str


class CountWords(Task[int]):
    text: str


class Greeter(Agent):
    @handler
    async def greet(self, message: Greet) -> str:
        return f"Hello, {message.name}!"

    @handler
    async def prompt(self, message: Prompt) -> str:
        return f"You said: {message.text}"


class Counter(Agent):
    @handler
    async def count(self, task: CountWords) -> int:
        return len(task.text.split())


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_the_curl_lines_of_the_page_work(gateway: Running, spawn: Callable[..., Awaitable[AgentRef]]) -> None:
    await spawn(Greeter)
    await spawn(Counter)
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) if "curl " in block]
    lines = block.replace("\\\n", " ").replace("127.0.0.1:8000", f"127.0.0.1:{gateway.port}").strip().splitlines()
    printed = {}

    for line in lines:
        process = await asyncio.create_subprocess_shell(
            line.replace("curl ", "curl -sS --fail-with-body --noproxy '*' ", 1),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, f"{line}\n{out.decode()}"
        printed[line] = out.decode()

    said = "\n".join(printed.values())
    assert '"reply":"Hello, Ada!"' in said
    assert "\nYou said: hi\n" in said
    assert '"state":"completed"' in said
    assert len(lines) > 8
