"""`agentmesh stream` against a real broker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agentmesh import Mesh
from tests.cli.conftest import Cli, start


async def say(mesh: Mesh, chat: str) -> None:
    async with mesh.streams.run(chat, role="user") as run:
        await run.send("Add 2 and 3.")
        await run.finish()
    async with mesh.streams.run(chat) as run:
        await run.send("It ")
        await run.send(type="tool_call", data={"name": "add"})
        await run.send("is 5.")
        await run.finish()


@pytest.mark.seed("D28")
async def test_streams_are_listed_shown_replayed_and_purged(mesh: Mesh, cli: Cli) -> None:
    assert "there are no streams" in (await cli("stream", "ls")).err
    await say(mesh, "chat-1")

    listed = await cli("stream", "ls")
    assert listed.lines[1].split()[:3] == ["chat-1", "6", "0-5"]
    shown = (await cli("stream", "info", "chat-1", "--json")).json
    assert (shown["chunks"], shown["last_offset"], shown["open_runs"]) == (6, 5, [])
    assert "0-5" in (await cli("stream", "info", "chat-1")).out

    text = await cli("stream", "replay", "chat-1")
    assert text.out == 'user: Add 2 and 3.\nassistant: It \n[tool_call] {"name": "add"}\nis 5.\n'
    raw = await cli("stream", "replay", "chat-1", "--from", "3", "--raw")
    assert [line.split("\t")[0::3] for line in raw.lines] == [
        ["3", '"" {"name": "add"}'],
        ["4", '"is 5."'],
        ["5", '""'],
    ]
    documents = (await cli("stream", "replay", "chat-1", "--from", "4", "--json")).lines
    assert [json.loads(line)["offset"] for line in documents] == [4, 5]

    assert "is empty" in (await cli("stream", "purge", "chat-1")).err
    for command in ("info", "replay", "purge"):
        gone = await cli("stream", command, "chat-1")
        assert (gone.code, "nothing is stored" in gone.err) == (1, True)
    assert (await cli("stream", "info", "no spaces")).code == 2


@pytest.mark.seed("D28", "D30")
async def test_an_open_run_is_cancelled_and_those_who_look_on_see_it(mesh: Mesh, cli: Cli, tmp_path: Path) -> None:
    run = mesh.streams.run("chat-1")
    await run.send("Once upon")
    await run.flush()
    address = ("--nats", mesh.url, "--tenant", mesh.subjects.tenant)
    looking = await start("stream", "tail", "chat-1", *address, cwd=tmp_path)
    assert looking.stdout is not None
    assert await asyncio.wait_for(looking.stdout.readexactly(20), 30) == b"assistant: Once upon"

    cancelled = await cli("stream", "cancel", "chat-1", "--reason", "enough")

    assert (cancelled.code, cancelled.err) == (0, "the run of stream chat-1 is cancelled\n")
    assert await asyncio.wait_for(looking.stdout.readline(), 30) == b"\n"
    assert await asyncio.wait_for(looking.stdout.readline(), 30) == b"[cancelled] enough\n"
    looking.terminate()
    await looking.wait()
    again = await cli("stream", "cancel", "chat-1", "--json")
    assert (again.code, "no open run" in again.err) == (1, True)
