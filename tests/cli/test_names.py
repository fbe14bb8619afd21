"""Names that would be unsafe in a subject, through every command that takes one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.cli.conftest import Cli

HOSTILE = ("a.b", "*", ">", "a b", "a\n", "", "$SYS", "é", "a" * 65, "..", "a\r\nPUB x 1", "_x")
COMMANDS = (
    ("ask", "{}", "hi"),
    ("tell", "{}", "hi"),
    ("publish", "x.{}.", "hi"),
    ("ps", "--tenant", "{}"),
    ("submit", "Work", "--to", "{}"),
    ("submit", "Work", "--id", "{}"),
    ("submit", "{}"),
    ("map", "Work", "--data", "{{}}", "--to", "{}"),
    ("task", "get", "{}"),
    ("task", "wait", "{}"),
    ("task", "cancel", "{}"),
    ("dead", "show", "{}"),
    ("dead", "retry", "{}"),
    ("dead", "drop", "{}"),
    ("memory", "ls", "{}"),
    ("memory", "get", "{}", "key"),
    ("memory", "search", "{}", "words"),
    ("scale", "{}=1"),
)


class Line:
    """A port that counts who connects."""

    def __init__(self) -> None:
        self.connections = 0
        self.url = ""

    async def listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    watched = Line()
    async with await watched.listen():
        yield watched


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_g1_a_hostile_name_is_refused_and_nothing_is_sent(
    alone: Cli, line: Line, command: tuple[str, ...]
) -> None:
    hostile = HOSTILE[COMMANDS.index(command) % len(HOSTILE)]

    ran = await alone(*(part.format(hostile) for part in command), "--nats", line.url)

    assert (ran.code, ran.out, line.connections) == (2, "", 0), ran.err


@pytest.mark.parametrize("hostile", HOSTILE, ids=repr)
async def test_g1_every_kind_of_hostile_name_is_refused_as_an_agent(alone: Cli, line: Line, hostile: str) -> None:
    ran = await alone("ask", hostile, "hi", "--nats", line.url)

    assert (ran.code, ran.out, line.connections) == (2, "", 0)
    assert "not allowed" in ran.err
