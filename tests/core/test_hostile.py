"""What comes from outside is data: hostile names, headers and documents, and clients that are not agentmesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.aio.client import Client as RawClient
from pydantic import field_validator

from agentmesh import Agent, AgentRef, CellOptions, Context, Event, Mesh, Prompt, Request, Task, Text, connect, handler
from agentmesh.errors import AgentMeshError, InvalidMessageError, InvalidNameError, NoHandlerError
from agentmesh.transport import Message
from tests.core.hostile import TOKENS

Spawn = Callable[..., Awaitable[AgentRef]]

LONG = "x" * 100_000


class Work(Task[int]):
    n: int = 0


class Strict(Request[int]):
    n: int

    @field_validator("n")
    @classmethod
    def _check(cls, n: int) -> int:
        if n == 13:
            raise KeyError("not a ValueError")
        return n


class Note(Event):
    n: int


class Echo(Agent):
    """Says who asked what."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @handler
    async def asked(self, request: Prompt, ctx: Context) -> str:
        return f"{ctx.sender}: {request.text}"

    @handler
    async def strict(self, request: Strict) -> int:
        return request.n

    @handler
    async def told(self, event: Text) -> None:
        self.heard.append(event.text)

    @handler
    async def note(self, event: Note) -> None:
        self.heard.append(str(event.n))


@pytest.fixture
async def raw(mesh: Mesh) -> AsyncIterator[RawClient]:
    """A plain NATS client, as anybody may have one."""
    client = await nats.connect(mesh.url)
    yield client
    await client.close()


async def _ask(raw: RawClient, mesh: Mesh, data: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = await raw.request(mesh.subjects.mailbox("echo"), data, timeout=2, headers=headers)
    document: dict[str, Any] = json.loads(answer.data)
    return document


@pytest.mark.parametrize("name", TOKENS)
async def test_g1_a_hostile_name_is_refused_by_every_verb_and_nothing_is_on_the_wire(mesh: Mesh, name: str) -> None:
    seen: list[str] = []

    def note(message: Message) -> None:
        seen.append(message.subject)

    watching = await mesh.transport.subscribe("ai.>", note)

    async def stream() -> None:
        async for _ in mesh.stream(name, Prompt(text="x")):
            pass

    async def listen() -> None:
        await anext(mesh.listen(name))

    refused: list[Callable[[], Awaitable[object]]] = [
        lambda: mesh.tell(name, Note(n=1)),
        lambda: mesh.tell(name, Note(n=1), timeout=1),
        lambda: mesh.ask(name, Prompt(text="x")),
        lambda: mesh.ask_raw(name, "Prompt", {"text": "x"}),
        stream,
        lambda: mesh.spawn(Echo, name=name),
        lambda: mesh.tools.call(name),
    ]
    if name not in ("a.b",):
        refused.append(lambda: mesh.publish(name, Note(n=1)))
    if name not in ("a.b", "*", ">", "a.*", "a.>"):
        refused.append(listen)
    if name:  # empty: the supervisor finds one, or an id is made
        refused.append(lambda: mesh.submit(Work(), to=name))
        refused.append(lambda: mesh.submit(Work(), to="echo", task_id=name))
    for attempt in refused:
        with pytest.raises(InvalidNameError):
            await attempt()
    for refuse in (mesh.ref, mesh.memory):
        with pytest.raises(InvalidNameError):
            refuse(name)
    if name:
        with pytest.raises(InvalidNameError):
            await connect(mesh.url, name=name)
        with pytest.raises(InvalidNameError):
            await connect(mesh.url, tenant=name)
    assert await mesh.transport.connection.nc.round_trip(2.0)  # whatever was sent has come back by now
    assert seen == []
    await watching.unsubscribe()


@pytest.mark.parametrize(
    "headers",
    [
        {"source_agent_id": LONG},
        {"Status": "503"},
        {"Status": "408", "Description": "Request Timeout"},
        {"Nats-Msg-Id": "x", "Nats-Expected-Stream": "TASKS", "Nats-Rollup": "all"},
        {"Nats-Pending-Messages": "5", "Nats-Last-Sequence": "7", "Nats-Schedule": "@every 1s"},
        {"target_agent_id": "somebody-else", "reply": "_INBOX.x"},
        {"source_agent_id": "a\x00b\x1b[31m"},
        {"traceparent": "garbage"},
    ],
)
async def test_g2_hostile_headers_of_a_request_are_data(
    mesh: Mesh, spawn: Spawn, raw: RawClient, headers: dict[str, str]
) -> None:
    await spawn(Echo)
    answer = await _ask(raw, mesh, b"hello", headers)
    assert answer["message_type"] == "reply"
    assert answer["content"] == f"{headers.get('source_agent_id', '')}: hello"
    assert await mesh.ask("echo", Prompt(text="still here")) == f"{mesh.identity}: still here"


async def test_g2_a_line_break_in_a_header_cannot_be_sent_and_a_forged_one_starts_no_new_command(
    mesh: Mesh, spawn: Spawn
) -> None:
    await spawn(Echo)
    subject = mesh.subjects.mailbox("echo")
    with pytest.raises(InvalidMessageError, match="line break"):
        await mesh.transport.request(subject, b"x", timeout=1, headers={"source_agent_id": "a\r\nStatus: 503"})

    reader, writer = await asyncio.open_connection("127.0.0.1", int(mesh.url.rpartition(":")[2]))
    await reader.readline()
    block = b"NATS/1.0\r\nsource_agent_id: a\rb\nPUB x 1\r\nStatus: 503\r\n\r\n"
    told = b'{"message_type": "Note", "content": {"n": 4}}'
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    writer.write(b"HPUB %s %d %d\r\n" % (subject.encode(), len(block), len(block) + len(told)) + block + told + b"\r\n")
    writer.write(b"PING\r\n")
    await writer.drain()
    assert await reader.readline() == b"PONG\r\n"
    writer.close()
    await writer.wait_closed()
    assert await mesh.ask("echo", Strict(n=1)) == 1
    (info,) = await mesh.agents("echo")
    assert info.handled == 2  # the note, whatever its headers said, and our request


async def test_g2_a_reply_subject_of_the_broker_itself_is_not_written_to(
    mesh: Mesh, spawn: Spawn, raw: RawClient
) -> None:
    await spawn(Echo)
    await mesh.tasks.ensure()
    for data in (b"hello", b'{"message_type": "Nothing"}', b'{"message_type": "Strict", "content": {}}'):
        await raw.publish(mesh.subjects.mailbox("echo"), data, reply="$JS.API.STREAM.DELETE.TASKS")
    await raw.flush()
    assert await mesh.ask("echo", Strict(n=1)) == 1
    assert await mesh.transport.stream_info("TASKS") is not None


async def test_a_document_of_another_client_may_have_naive_times(mesh: Mesh, spawn: Spawn, raw: RawClient) -> None:
    await spawn(Echo)
    for fields in (
        {"timestamp": "2026-01-01T10:00:00"},
        {"timestamp": "yesterday"},
        {"timestamp": "2026-01-01T10:00:00", "message_id": "m1"},
        {"message_id": "m2", "deadline": "2999-01-01T10:00:00"},
        {"source_agent_id": LONG, "unknown": {"field": [1, 2]}},
        {"message_id": "a\r\nb" + LONG, "hops": -5, "window": -1},
    ):
        document = {"message_type": "Prompt", "content": {"text": "hi"}, **fields}
        answer = await _ask(raw, mesh, json.dumps(document).encode())
        assert answer["content"].endswith(": hi")
    late = {"message_type": "Prompt", "message_id": "m3", "deadline": "2020-01-01T10:00:00", "content": {"text": "x"}}
    with pytest.raises(nats.errors.TimeoutError):
        await raw.request(mesh.subjects.mailbox("echo"), json.dumps(late).encode(), timeout=0.1)
    assert await mesh.ask("echo", Strict(n=1)) == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"message_type": "Strict", "content": {"n": "many"}}', "Strict: n: "),
        (b'{"message_type": "Strict", "content": {"n": 1, "m": 2}}', "Strict: m: Extra inputs"),
        (b'{"message_type": "Strict", "content": null}', "Strict: "),
        (b'{"message_type": "Strict", "content": {"n": 13}}', "KeyError"),
        (b'{"message_type": 5, "content": {}}', "not a message"),
        (b'{"message_type": "Strict", "message_id": 7, "content": {"n": 1}}', "not a message"),
        (b'{"message_type": "Strict", "schema_version": "9.0", "content": {"n": 1}}', "'9.0' is not supported"),
        (b'{"message_type": "Strict", "content": ' + b"[" * 100_000, "not a message"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"message_type": "Work", "content": {}}', "no handler for Work"),
        (b'{"message_type": "reply", "content": {}}', "no handler for reply"),
    ],
)
async def test_what_is_no_message_for_the_agent_is_refused_with_the_reason(
    mesh: Mesh, spawn: Spawn, raw: RawClient, data: bytes, problem: str
) -> None:
    await spawn(Echo)
    answer = await _ask(raw, mesh, data)
    assert answer["message_type"] == "error"
    assert problem in answer["content"]["message"]
    assert await mesh.ask("echo", Strict(n=1)) == 1
    (info,) = await mesh.agents("echo")
    assert (info.failed, info.restarts) == (0, 0)


async def test_an_event_that_does_not_fit_is_reported_to_its_sender(mesh: Mesh, spawn: Spawn) -> None:
    class Other(Event, name="Note"):
        m: str

    await spawn(Echo)
    told: asyncio.Future[AgentMeshError] = asyncio.get_running_loop().create_future()
    mesh.on_undelivered = lambda letter: told.set_result(letter.error)  # type: ignore[arg-type]
    await mesh.tell("echo", Other(m="x"))
    async with asyncio.timeout(2):
        assert isinstance(await told, InvalidMessageError)
    assert await mesh.ask("echo", Strict(n=1)) == 1


async def test_garbage_on_a_topic_and_on_control_subjects_harms_nobody(
    mesh: Mesh, spawn: Spawn, raw: RawClient
) -> None:
    class Listener(Agent):
        @handler(topic="a.>")
        async def note(self, event: Note) -> None: ...

    ref = await spawn(Listener)
    await spawn(Echo)
    heard = mesh.listen("a.>")
    first = asyncio.ensure_future(anext(heard))
    await mesh.agents()
    control = [mesh.subjects.control(what) for what in ("who", "presence", "cancel-request", "cancel", "where")]
    for garbage in (b"", b"\xff\xfe", b"{", b"null", b'{"name": 5}', LONG.encode()):
        for subject in [*control, mesh.subjects.topic("a.b"), mesh.subjects.mailbox("echo")]:
            await raw.publish(subject, garbage)
    await raw.publish(mesh.subjects.topic("a.b"), b'{"message_type": "Note", "content": {"n": "x"}}')
    await raw.flush()
    assert await mesh.ask("echo", Strict(n=1)) == 1
    with pytest.raises(NoHandlerError):
        await ref.ask(Strict(n=1))
    (await first)[1]
    assert len(await mesh.agents()) == 2
    await heard.aclose()


async def test_d7_a_message_of_900_kb_goes_both_ways(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(Echo)
    text = "ä" * 450_000
    assert await mesh.ask("echo", Prompt(text=text)) == f"{mesh.identity}: {text}"
    assert [chunk async for chunk in mesh.stream("echo", Prompt(text=text))] == [f"{mesh.identity}: {text}"]
    await mesh.tell("echo", Text(text=text), timeout=2)


async def test_a_flood_of_cancels_for_requests_that_are_not_there_is_forgotten(
    mesh: Mesh, spawn: Spawn, raw: RawClient
) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    class Waits(Agent):
        @handler
        async def strict(self, request: Strict) -> int:
            entered.set()
            await gate.wait()
            return request.n

    ref = await spawn(Waits, options=CellOptions(mailbox_size=10))
    asking = [asyncio.create_task(ref.ask(Strict(n=n))) for n in range(3)]
    await entered.wait()
    for n in range(25_000):
        await raw.publish(mesh.subjects.control("cancel-request"), b"made-up-%d" % n)
    await raw.flush()
    await mesh.agents()
    assert mesh._host is not None
    cell = mesh._host._replicas("waits")[0].cell
    assert len(cell._gone) <= 10_000
    gate.set()
    assert await asyncio.gather(*asking) == [0, 1, 2]
    assert len(cell._gone) == 0
