"""`ask`, `tell` and `publish` against real agents."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

from agentmesh import Agent, AgentRef, Event, Mesh, Prompt, Request, Text, handler
from agentmesh.tasks.layout import MAILBOX
from agentmesh.testing import Probe
from tests.cli.conftest import Cli, ended, start

Spawn = Callable[..., Awaitable[AgentRef]]
MakeProbe = Callable[[str], Awaitable[Probe]]


class Add(Request[int]):
    a: int
    b: int


class Wait(Request[str]):
    pass


class Entry(Event):
    who: str


class Greeter(Agent):
    """Greets."""

    @handler
    async def talk(self, message: Prompt) -> AsyncIterator[str]:
        for word in f"Hello, {message.text}!".split(" "):
            yield f"{word} "

    @handler
    async def add(self, message: Add) -> int:
        return message.a + message.b

    @handler
    async def wait(self, message: Wait) -> str:
        await self.mesh.publish("waiting.begun", Text(text="begun"))
        try:
            await asyncio.Event().wait()
        finally:
            await self.mesh.publish("waiting.ended", Text(text="ended"))
        return "never"

    @handler
    async def fail(self, message: Text) -> None:
        raise ValueError(message.text)


async def test_ask_prints_the_answer_and_nothing_else(cli: Cli, spawn: Spawn) -> None:
    await spawn(Greeter)

    ran = await cli("ask", "greeter", "Ada")

    assert (ran.code, ran.out, ran.err) == (0, "Hello, Ada! \n", "")


async def test_ask_with_json_prints_each_part_as_a_line(cli: Cli, spawn: Spawn) -> None:
    await spawn(Greeter)

    ran = await cli("ask", "greeter", "Ada", "--json")

    assert [json.loads(line) for line in ran.lines] == ["Hello, ", "Ada! "]


async def test_ask_with_an_idempotency_key_gets_the_first_answer_again(cli: Cli, spawn: Spawn, mesh: Mesh) -> None:
    await spawn(Greeter)
    first = await cli("ask", "greeter", "Ada", "--idempotency-key", "k")
    await mesh.stop("greeter")

    again = await cli("ask", "greeter", "Ada", "--idempotency-key", "k", "--json")
    other = await cli("ask", "greeter", "Bob", "--idempotency-key", "k")

    assert (first.code, first.out) == (0, "Hello, Ada! \n")
    assert json.loads(again.out) == "Hello, Ada! "
    assert (other.code, other.out) == (2, "")
    assert "used for Prompt of greeter" in other.err


async def test_ask_sends_any_request_by_its_type(cli: Cli, spawn: Spawn) -> None:
    await spawn(Greeter)

    ran = await cli("ask", "greeter", "--type", "Add", "--data", '{"a": 2, "b": 3}')

    assert (ran.code, ran.out) == (0, "5\n")


async def test_the_text_can_come_from_a_file_or_standard_input(cli: Cli, spawn: Spawn, tmp_path: Path) -> None:
    await spawn(Greeter)
    (tmp_path / "name.txt").write_text("file")

    assert "Hello, file!" in (await cli("ask", "greeter", "@name.txt")).out
    assert "Hello, pipe!" in (await cli("ask", "greeter", "-", stdin="pipe")).out
    assert "Hello, @name.txt!" in (await cli("ask", "greeter", "@@name.txt")).out


async def test_a_wrong_agent_name_ends_with_4_and_near_misses(cli: Cli, spawn: Spawn) -> None:
    await spawn(Greeter)

    ran = await cli("ask", "greter", "hi")

    assert (ran.code, ran.out) == (4, "")
    assert "did you mean 'greeter'?" in ran.err


async def test_a_message_the_agent_does_not_take_ends_with_2_and_says_what_it_takes(cli: Cli, spawn: Spawn) -> None:
    await spawn(Greeter)

    ran = await cli("ask", "greeter", "--type", "Subtract", "--data", "{}")

    assert ran.code == 2
    assert "Prompt, Add, Wait, Text" in ran.err


async def test_a_wrong_field_ends_with_2_and_names_it(cli: Cli, spawn: Spawn) -> None:
    await spawn(Greeter)

    ran = await cli("ask", "greeter", "--type", "Add", "--data", '{"a": 2, "b": "x"}')

    assert ran.code == 2
    assert "Add: b:" in ran.err


async def test_an_answer_that_does_not_come_in_time_ends_with_5(cli: Cli, spawn: Spawn) -> None:
    await spawn(Greeter)

    ran = await cli("ask", "greeter", "--type", "Wait", "--timeout", "300ms")

    assert ran.code == 5
    assert "0.3 s" in ran.err


async def test_ctrl_c_ends_with_130_and_stops_the_handler(mesh: Mesh, spawn: Spawn, tmp_path: Path) -> None:
    await spawn(Greeter)
    async with aclosing(mesh.listen("waiting.*")) as heard:
        first = asyncio.ensure_future(anext(heard))
        address = ("--nats", mesh.url, "--tenant", mesh.subjects.tenant)
        process = await start("ask", "greeter", "--type", "Wait", "--data", "{}", *address, cwd=tmp_path)
        assert (await first)[0] == "waiting.begun"

        process.send_signal(signal.SIGINT)

        assert (await anext(heard))[0] == "waiting.ended"
        ran = await ended(process)
    assert (ran.code, ran.out, ran.err) == (130, "", "")


async def test_an_error_with_json_is_a_document_on_standard_error(cli: Cli, spawn: Spawn) -> None:
    ran = await cli("ask", "nobody", "hi", "--json")

    assert ran.code == 4
    assert json.loads(ran.err)["error"]["type"] == "NoSuchAgentError"


async def test_tell_delivers_an_event_of_any_type(cli: Cli, spawn: Spawn, probe: MakeProbe) -> None:
    class Clerk(Agent):
        """Passes entries on."""

        @handler
        async def note(self, message: Entry) -> None:
            await self.mesh.tell("watcher", message)

    watcher = await probe("watcher")
    await spawn(Clerk)

    ran = await cli("tell", "clerk", "--type", "Entry", "--data", '{"who": "Ada"}')

    assert (ran.code, ran.out) == (0, "")
    assert (await watcher.expect(Entry)).who == "Ada"


async def test_a_durable_event_told_twice_with_an_id_is_stored_once(cli: Cli, mesh: Mesh) -> None:
    for _ in range(2):
        ran = await cli("tell", "away", "hi", "--durable", "--id", "h-1")
        assert ran.code == 0, ran.err
    refused = await cli("tell", "away", "hi", "--id", "h-1")

    stored = await mesh.transport.subjects_of(MAILBOX, mesh.subjects.durable_mailbox("away"))
    assert list(stored.values()) == [1]
    assert (refused.code, "--durable" in refused.err) == (2, True)


async def test_tell_nobody_ends_with_4(cli: Cli) -> None:
    assert (await cli("tell", "nobody", "hi")).code == 4


async def test_publish_reaches_who_listens(cli: Cli, spawn: Spawn, probe: MakeProbe) -> None:
    class Reader(Agent):
        """Passes news on."""

        @handler(topic="news.*")
        async def read(self, message: Text) -> None:
            await self.mesh.tell("watcher", message)

    watcher = await probe("watcher")
    await spawn(Reader)

    ran = await cli("publish", "news.today", "rain")

    assert ran.code == 0
    assert (await watcher.expect(Text)).text == "rain"
