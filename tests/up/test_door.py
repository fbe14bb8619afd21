"""The door for messages of clients that know no subjects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentmesh import codec
from agentmesh.agent import Agent, handler
from agentmesh.errors import InvalidMessageError, InvalidNameError, NoSuchAgentError
from agentmesh.mesh import Mesh, connect
from agentmesh.messages import Event, Prompt
from agentmesh.up.door import MessageDoor
from tests.harness import Server

DOOR = "ai.agent.message.default"


class Note(Event):
    text: str


class Echo(Agent):
    """Repeats."""

    heard: list[str]

    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    @handler
    async def prompt(self, message: Prompt) -> str:
        return f"echo {message.text}"

    @handler
    async def note(self, message: Note) -> None:
        self.heard.append(message.text)


@pytest.fixture
async def mesh(server: Server) -> AsyncIterator[Mesh]:
    async with connect(server.url, own_thread=False) as connected:
        doors = [MessageDoor(connected.transport, connected.subjects) for _ in range(2)]
        for door in doors:
            await door.start()
        yield connected
        for door in doors:
            await door.stop()


async def ask(mesh: Mesh, data: bytes, headers: dict[str, str] | None = None) -> codec.Envelope:
    reply = await mesh.transport.request(DOOR, data, timeout=5, headers=headers)
    return codec.decode(reply.data)


async def test_text_with_a_header_reaches_the_agent_and_its_answer_comes_back(mesh: Mesh) -> None:
    await mesh.spawn(Echo, [])

    reply = await ask(mesh, b"hi", {"target_agent_id": "echo", "source_agent_id": "curl"})

    assert (reply.message_type, bytes(reply.content)) == (codec.REPLY, b'"echo hi"')


async def test_the_target_may_stand_in_the_document(mesh: Mesh) -> None:
    await mesh.spawn(Echo, [])

    reply = await ask(mesh, b'{"target_agent_id":"echo","message_type":"Prompt","content":{"text":"hi"}}')

    assert bytes(reply.content) == b'"echo hi"'


async def test_an_event_through_the_door_arrives_once(mesh: Mesh) -> None:
    heard: list[str] = []
    await mesh.spawn(Echo, heard)

    body = b'{"target_agent_id":"echo","message_type":"Note","content":{"text":"hi"}}'
    await mesh.transport.publish(DOOR, body)
    await ask(mesh, b"and now", {"target_agent_id": "echo"})

    assert heard == ["hi"]


async def test_an_agent_that_is_not_there_is_an_error_that_names_near_misses(mesh: Mesh) -> None:
    await mesh.spawn(Echo, [])

    reply = await ask(mesh, b"hi", {"target_agent_id": "ecko"})

    error = codec.decode_error(reply.content, "door")
    assert isinstance(error, NoSuchAgentError)
    assert "echo" in str(error)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"just text", InvalidMessageError),
        (b"{", InvalidMessageError),
        (b"[" * 100_000, InvalidMessageError),
        (b'{"target_agent_id": 7}', InvalidMessageError),
        (b'{"target_agent_id": "a.>"}', InvalidNameError),
        (b"", InvalidMessageError),
    ],
)
async def test_a_message_without_a_sensible_target_gets_an_error(
    mesh: Mesh, data: bytes, kind: type[Exception]
) -> None:
    reply = await ask(mesh, data)

    assert isinstance(codec.decode_error(reply.content, "door"), kind)


async def test_many_conversations_at_once_are_kept_apart_and_leave_nothing_behind(mesh: Mesh) -> None:
    await mesh.spawn(Echo, [])
    mux = mesh.transport.connection.inbox

    replies = await asyncio.gather(*(ask(mesh, f"n{n}".encode(), {"target_agent_id": "echo"}) for n in range(100)))

    assert [bytes(reply.content) for reply in replies] == [f'"echo n{n}"'.encode() for n in range(100)]
    assert not mux._inboxes
