"""`agentmesh chat`: from pipes, and at a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh import Mesh
from agentmesh.agents.chat import Conversations
from agentmesh.chat import history
from tests.chat.agents import Counter, Parrot, Stuck
from tests.cli.conftest import Cli, environment
from tests.harness.waiting import eventually


@pytest.fixture
async def agents(mesh: Mesh) -> Mesh:
    """The relay, and agents to chat with."""
    for agent in (Conversations, Counter, Parrot, Stuck):
        await mesh.spawn(agent)
    return mesh


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, fd: int, process: asyncio.subprocess.Process) -> None:
        self.fd = fd
        self.process = process
        self.text = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.fd, text.encode())

    async def shows(self, text: str, count: int = 1) -> None:
        """Wait until it has shown that so many times."""
        await eventually(lambda: self._read().count(text) >= count, 60, what=text)

    def _read(self) -> str:
        try:
            while data := os.read(self.fd, 65536):
                self.text += data.decode(errors="replace")
        except (BlockingIOError, OSError):
            pass
        return self.text


@pytest.fixture
async def terminal(agents: Mesh, tmp_path: Path) -> AsyncIterator[Terminal]:
    """`agentmesh chat stuck` at a terminal."""
    ours, theirs = pty.openpty()
    address = ("--nats", agents.url, "--tenant", agents.subjects.tenant, "--conversation", "typed")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentmesh.cli", "chat", "stuck", *address),
        cwd=tmp_path,
        env=environment(TERM="xterm", NO_COLOR="1"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    yield Terminal(ours, process)
    if process.returncode is None:
        process.kill()
        await process.wait()
    os.close(ours)


async def test_each_line_of_a_pipe_is_answered(agents: Mesh, cli: Cli) -> None:
    ran = await cli("chat", "parrot", "--conversation", "piped", stdin="hello\n\nthere\n")

    assert (ran.code, ran.lines, ran.err) == (0, ["HELLO", "THERE"], "")
    assert [message.content for message in await history(agents.streams, "piped")] == [
        "hello",
        "HELLO",
        "there",
        "THERE",
    ]


async def test_with_json_each_chunk_is_a_line(agents: Mesh, cli: Cli) -> None:
    ran = await cli("chat", "counter", "--json", stdin="tokens=2\n")

    chunks = [json.loads(line) for line in ran.lines]
    assert [chunk["type"] for chunk in chunks] == ["text", "text", "usage", "finish"]
    assert "".join(chunk["content"] for chunk in chunks) == "t0 t1 "


async def test_history_is_there_when_a_conversation_is_gone_on_with(agents: Mesh, cli: Cli) -> None:
    await cli("chat", "parrot", "--conversation", "later", stdin="hello\n")

    ran = await cli("chat", "parrot", "--conversation", "later", stdin="/history\n/quit\nnot said\n")

    assert ran.lines == ["you: hello", "parrot: HELLO"]


async def test_a_failed_answer_ends_a_pipe_with_1(agents: Mesh, cli: Cli) -> None:
    ran = await cli("chat", "counter", stdin="tokens=3 fail=1\n")

    assert (ran.code, ran.lines) == (1, ["t0 "])
    assert "counter' failed with ValueError" in ran.err


async def test_an_agent_that_is_not_there_is_said_at_once(agents: Mesh, cli: Cli) -> None:
    ran = await cli("chat", "parot")

    assert ran.code == 4
    assert "did you mean 'parrot'" in ran.err


@pytest.mark.seed("D30")
async def test_ctrl_c_stops_the_answer_and_not_the_chat(agents: Mesh, terminal: Terminal) -> None:
    await terminal.shows("›")
    terminal.type("go\n")
    await terminal.shows("well")

    terminal.process.send_signal(signal.SIGINT)
    await terminal.shows("(stopped)")
    terminal.type("/history\n")
    await terminal.shows("you: go")
    terminal.type("/quit\n")

    assert await asyncio.wait_for(terminal.process.wait(), 30) == 0
    assert [message.role for message in await history(agents.streams, "typed")] == ["user", "assistant"]
