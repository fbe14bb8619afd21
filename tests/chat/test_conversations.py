"""Conversations over HTTP: said, answered, read from anywhere, stopped; and every run has an end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil

import httpx
import pytest

from agentmesh import Mesh, connect
from agentmesh.agents.chat import Conversations
from agentmesh.chat import ChatMessage, Turn, history
from agentmesh.gateway import Gateway, GatewayOptions, HttpServer, KeyOptions
from agentmesh.gateway.keys import digest
from tests.chat.agents import Counter, Parrot, Stuck, tokens
from tests.chat.conftest import Door, StartDoor, events, text_of
from tests.harness import Server
from tests.harness.waiting import eventually

CURL = shutil.which("curl")


def key(name: str, tenant: str = "", **more: int) -> KeyOptions:
    """The key whose token is `token-of-<name>`."""
    return KeyOptions(name, digest(f"token-of-{name}"), tenant, **more)


def as_(name: str) -> dict[str, str]:
    """Headers of who has that key."""
    return {"Authorization": f"Bearer token-of-{name}"}


# ---------------------------------------------------------------- saying and reading


@pytest.mark.seed("D13", "D15")
async def test_a_message_is_answered_token_by_token(door: Door) -> None:
    said = await door.say("tokens=20", conversation_id="c1")

    found = await door.read(said["stream"])

    assert said["conversation_id"] == "c1"
    assert text_of([event.chunk for event in found if event.name == "message"]) == "".join(tokens(20))
    assert [event.id.partition("-")[0] for event in found[:-1]] == [str(event.chunk.offset) for event in found[:-1]]
    assert found[-1].name == "end"
    assert found[-2].chunk.type == "finish"


@pytest.mark.seed("D15")
async def test_the_curl_lines_of_the_seed_work(door: Door) -> None:
    said = await door.http.post("/chat?conversation_id=test-123&message=tokens%3D3")

    found = await door.read("/stream/test-123")

    assert said.status_code == 202
    assert said.json()["conversation_id"] == "test-123"
    chunks = [event.chunk for event in found if event.name == "message"]
    assert [chunk.content for chunk in chunks if chunk.type == "text"] == ["tokens=3", "t0 ", "t1 ", "t2 "]
    assert [chunk.role for chunk in chunks][:2] == ["user", "assistant"]


@pytest.mark.seed("D15")
async def test_a_reader_may_come_before_the_first_message(door: Door) -> None:
    reading = asyncio.create_task(door.read("/stream/early"))
    await eventually(lambda: door.streams == 1)

    await door.say("tokens=5", conversation_id="early")

    assert text_of([event.chunk for event in await reading if event.name == "message"]) == "".join(tokens(5))


async def test_without_a_conversation_a_new_one_begins(door: Door) -> None:
    one, other = await door.say("tokens=1"), await door.say("tokens=1")

    assert one["conversation_id"] != other["conversation_id"]
    assert text_of(await door.answer(one)) == "t0 "


async def test_a_second_turn_knows_the_first(mesh: Mesh, door: Door) -> None:
    await door.answer(await door.say("tokens=2", conversation_id="two"))
    await door.answer(await door.say("tokens=3", conversation_id="two"))

    said = await history(mesh.streams, "two")

    assert [(message.role, message.content) for message in said] == [
        ("user", "tokens=2"),
        ("assistant", "t0 t1 "),
        ("user", "tokens=3"),
        ("assistant", "t0 t1 t2 "),
    ]


@pytest.mark.seed("D10")
async def test_the_whole_conversation_is_read_and_not_only_its_first_turn(door: Door) -> None:
    await door.answer(await door.say("tokens=2", conversation_id="all"))
    await door.answer(await door.say("tokens=3", conversation_id="all"))

    chunks = [event.chunk for event in await door.read("/stream/all") if event.name == "message"]

    assert [chunk.type for chunk in chunks].count("finish") == 2
    assert [chunk.offset for chunk in chunks] == list(range(len(chunks)))


async def test_an_agent_that_takes_prompts_can_be_chatted_with(mesh: Mesh, door: Door) -> None:
    await mesh.spawn(Parrot)

    assert text_of(await door.answer(await door.say("hello", agent="parrot"))) == "HELLO"


async def test_events_are_headed_so_that_proxies_pass_them_on_at_once(door: Door) -> None:
    said = await door.say("tokens=1")

    async with door.http.stream("GET", said["stream"]) as response:
        await response.aread()

    assert response.headers["content-type"].startswith("text/event-stream")
    assert "no-store" in response.headers["cache-control"]
    assert response.headers["x-accel-buffering"] == "no"
    assert (await door.http.head(said["stream"])).headers["content-type"] == response.headers["content-type"]


# ---------------------------------------------------------------- going on where one was


@pytest.mark.seed("D1", "D2", "D26")
async def test_f1_a_reader_that_reconnects_at_ten_random_points_has_the_same_text(door: Door) -> None:
    said = await door.say("tokens=60 pace=5")
    cuts = sorted(random.Random(7).sample(range(1, 60), 10))
    seen: list[str] = []
    last = ""

    for cut in [*cuts, 10_000]:
        headers = {"Last-Event-ID": last} if last else {}
        async with door.http.stream("GET", said["stream"], headers=headers) as response:
            async for event in events(response):
                if event.name == "end":
                    break
                last = event.id
                seen.append(event.chunk.content)
                if len(seen) >= cut:
                    break

    assert "".join(seen) == "".join(tokens(60))


@pytest.mark.seed("D1", "D3")
async def test_f2_a_broker_killed_in_the_middle_changes_nothing_for_a_reader_over_http(server: Server) -> None:
    async with connect(server.url, own_thread=False) as mesh:
        gateway = Gateway(GatewayOptions(port=0, access_log=False), mesh.transport, "default")
        http_server = HttpServer(gateway)
        await http_server.start()
        async with httpx.AsyncClient(base_url=http_server.url, timeout=60.0, trust_env=False) as http:
            door = Door(gateway, http_server, http)
            async with mesh.streams.run("c2") as run:
                await run.send("t0 ")
                await run.flush()
                reading = asyncio.create_task(door.read("/stream/c2"))
                for number in range(1, 60):
                    await run.send(f"t{number} ")
                    if number == 30:
                        await run.flush()
                        server.kill9()
                        await server.start()
                await run.finish()
            found = await asyncio.wait_for(reading, 60)
        await http_server.stop(2.0)

    assert found[-1].name == "end"
    assert text_of([event.chunk for event in found if event.name == "message"]) == "".join(tokens(60))


@pytest.mark.seed("D2")
@pytest.mark.skipif(CURL is None, reason="no curl")
async def test_f1_curl_goes_on_behind_any_event(door: Door) -> None:
    said = await door.say("tokens=12")
    found = await door.read(said["stream"])
    whole = [event.chunk.content for event in found if event.name == "message"]

    for at in (0, 5, len(found) - 3):
        assert CURL is not None
        curl = await asyncio.create_subprocess_exec(
            *(CURL, "-sN", "--max-time", "20", "-H", f"Last-Event-ID: {found[at].id}", f"{door.url}{said['stream']}"),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await curl.communicate()
        response = httpx.Response(200, content=out)
        rest = [event.chunk.content async for event in events(response) if event.name == "message"]
        assert rest == whole[at + 1 :]


@pytest.mark.seed("D2")
async def test_a_reader_may_begin_at_every_offset(door: Door) -> None:
    await door.answer(await door.say("tokens=8", conversation_id="offsets"))
    whole = [event.chunk.content for event in await door.read("/stream/offsets") if event.name == "message"]

    for offset in range(len(whole)):
        found = await door.read(f"/stream/offsets?from_offset={offset}")
        assert [event.chunk.content for event in found if event.name == "message"] == whole[offset:]


@pytest.mark.seed("D15")
async def test_who_comes_back_with_the_id_of_the_end_is_told_to_stay_away(door: Door) -> None:
    said = await door.say("tokens=2")
    end = (await door.read(said["stream"]))[-1]

    again = await door.http.get(said["stream"], headers={"Last-Event-ID": end.id})

    assert (again.status_code, again.content) == (204, b"")


async def test_who_was_cut_off_right_before_the_end_gets_the_end(door: Door) -> None:
    said = await door.say("tokens=2")
    finish = (await door.read(said["stream"]))[-2]

    found = await door.read(said["stream"], **{"Last-Event-ID": finish.id})
    whole = await door.read(f"/stream/{said['conversation_id']}?last_event_id={finish.id}")

    assert [event.name for event in found] == ["end"]
    assert [event.name for event in whole] == ["end"]


async def test_a_cursor_from_before_the_store_was_begun_anew_is_refused(door: Door) -> None:
    said = await door.say("tokens=2")
    await door.answer(said)

    answer = await door.http.get(said["stream"], headers={"Last-Event-ID": "3-99999999"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (412, "FAILED_PRECONDITION")


async def test_a_reader_of_a_purged_conversation_gets_what_comes(mesh: Mesh, door: Door) -> None:
    said = await door.say("tokens=2", conversation_id="purged")
    last = (await door.read(said["stream"]))[-2].id
    await mesh.streams.purge("purged")
    reading = asyncio.create_task(door.read("/stream/purged", **{"Last-Event-ID": last}))
    await eventually(lambda: door.streams == 1)

    await door.say("tokens=3", conversation_id="purged")

    assert text_of([event.chunk for event in await reading if event.name == "message"]) == "".join(tokens(3))


async def test_a_reader_that_follows_stays_for_the_next_turn(door: Door) -> None:
    await door.answer(await door.say("tokens=1", conversation_id="stay"))
    seen: list[str] = []

    async with door.http.stream("GET", "/stream/stay?follow=true") as response:
        async for event in events(response):
            seen.append(event.chunk.type)
            if event.chunk.is_final:
                if seen.count("finish") == 2:
                    break
                await door.say("tokens=2", conversation_id="stay")

    assert seen.count("finish") == 2


async def test_fifty_readers_see_the_same_bytes(door: Door) -> None:
    said = await door.say("tokens=40 pace=2")

    async def read() -> bytes:
        return (await door.http.get(said["stream"])).content

    answers = await asyncio.gather(*(read() for _ in range(50)))

    assert len(set(answers)) == 1


# ---------------------------------------------------------------- stopping


@pytest.mark.seed("D30")
async def test_cancelling_stops_the_handler_of_the_agent_and_ends_the_run(mesh: Mesh, door: Door) -> None:
    stopped = asyncio.Event()
    await mesh.spawn(Stuck, stopped)
    said = await door.say("go", agent="stuck")
    reading = asyncio.create_task(door.read(said["stream"]))
    await eventually(lambda: door.streams == 1)

    answer = await door.http.post(f"/stream/{said['conversation_id']}/cancel", json={"reason": "enough"})

    assert answer.json() == {"conversation_id": said["conversation_id"], "run_id": said["run_id"], "cancelled": True}
    last = (await reading)[-2].chunk
    assert (last.type, last.content) == ("cancelled", "enough")
    await asyncio.wait_for(stopped.wait(), 10)
    await eventually(lambda: _state(mesh, said["run_id"], "cancelled"), 10)
    again = await door.http.post(f"/stream/{said['conversation_id']}/cancel")
    assert again.json()["cancelled"] is False


async def _stored(mesh: Mesh, conversation_id: str, chunks: int) -> bool:
    state = await mesh.streams.state(conversation_id)
    return state is not None and state.chunks >= chunks


async def _state(mesh: Mesh, task_id: str, wanted: str) -> bool:
    return (await mesh.tasks.get(task_id)).state == wanted


async def test_a_cancelled_task_cancels_the_run_and_the_agent(mesh: Mesh, door: Door) -> None:
    stopped = asyncio.Event()
    await mesh.spawn(Stuck, stopped)
    said = await door.say("go", agent="stuck")
    await eventually(lambda: _state(mesh, said["run_id"], "running"), 10)

    await mesh.tasks.cancel(said["run_id"])

    assert (await door.answer(said))[-1].type == "cancelled"
    await asyncio.wait_for(stopped.wait(), 10)


async def test_a_turn_cancelled_before_it_began_is_never_answered(mesh: Mesh, door: Door) -> None:
    await mesh.pause("conversations")
    said = await door.say("tokens=3")

    await door.http.post(f"/stream/{said['conversation_id']}/cancel", json={"run_id": said["run_id"]})
    await mesh.resume("conversations")

    chunks = await door.answer(said)
    assert [chunk.type for chunk in chunks] == ["cancelled"]
    assert await eventually(lambda: _state(mesh, said["run_id"], "cancelled"), 10)


# ---------------------------------------------------------------- ends


@pytest.mark.seed("D18")
async def test_a_failing_agent_ends_the_run_with_an_error_that_tells_no_secrets(door: Door) -> None:
    chunks = await door.answer(await door.say("tokens=9 fail=3"))

    assert text_of(chunks) == "t0 t1 t2 "
    assert (chunks[-1].type, chunks[-1].content) == ("error", "agent 'counter' failed with ValueError")


async def test_a_turn_whose_agent_never_comes_ends_with_an_error(
    mesh: Mesh, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.agents.chat.relay.PAUSE", 0.01)
    async with mesh.streams.run("lonely", epoch=0, role="user", own_task=True) as run:
        await run.send("anybody?")
    turn = Turn(conversation_id="lonely", run_id=run.run_id, agent="nobody")
    await mesh.submit(turn, to="conversations", task_id=run.run_id)

    last = (await door.read("/stream/lonely"))[-2].chunk

    assert (last.type, last.content) == ("error", "no agent 'nobody' is running; see: agentmesh ps")


async def test_a_task_decided_elsewhere_ends_the_run_for_whoever_reads(
    mesh: Mesh, start_door: StartDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.gateway.sse.HEARTBEAT", 0.3)
    monkeypatch.setattr("agentmesh.gateway.sse.SILENCE", 0.1)
    door = await start_door()
    async with mesh.streams.run("late", epoch=0, role="user", own_task=True) as run:
        await run.send("quick!")
    turn = Turn(conversation_id="late", run_id=run.run_id, agent="counter")
    await mesh.submit(turn, to="nobody-yet", task_id=run.run_id)
    reading = asyncio.create_task(door.read("/stream/late"))
    await eventually(lambda: door.streams == 1)

    await mesh.tasks.cancel(run.run_id, by="the operator")

    assert (await reading)[-2].chunk.type == "cancelled"


async def test_a_message_whose_task_was_lost_ends_with_an_error(
    mesh: Mesh, start_door: StartDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.gateway.sse.HEARTBEAT", 0.3)
    monkeypatch.setattr("agentmesh.gateway.sse.SILENCE", 0.1)
    door = await start_door()
    async with mesh.streams.run("lost", epoch=0, role="user", own_task=True) as run:
        await run.send("hello?")  # and the gateway dies before it submits

    last = (await door.read("/stream/lost"))[-2].chunk

    assert (last.type, last.content) == ("error", "the message was stored, but lost before it was answered")


async def test_a_relay_that_is_stopped_in_the_middle_gives_the_turn_back(mesh: Mesh, door: Door) -> None:
    said = await door.say("tokens=40 hold=10")
    reading = asyncio.create_task(door.answer(said))
    await eventually(lambda: _stored(mesh, said["conversation_id"], 11), 30)

    await mesh.stop("conversations", grace=0.1)
    await mesh.spawn(Conversations)

    chunks = await reading
    assert text_of(chunks) == "".join(tokens(40))
    assert [chunk.type for chunk in chunks].count("restarted") == 1
    assert chunks[-1].type == "finish"


@pytest.mark.seed("D15")
async def test_a_silent_stream_is_kept_alive(start_door: StartDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh.gateway.sse.HEARTBEAT", 0.1)
    door = await start_door()
    comments: list[str] = []

    async with door.http.stream("GET", "/stream/silent") as response:
        async for line in response.aiter_lines():
            comments += [line] if line.startswith(":") else []
            if len(comments) == 3:
                break

    assert comments == [": still here"] * 3


async def test_open_streams_end_with_the_gateway_and_say_when_to_come_back(door: Door) -> None:
    lines: list[str] = []

    async def read() -> None:
        async with door.http.stream("GET", "/stream/open") as response:
            async for line in response.aiter_lines():
                lines.extend([line] if line else [])

    reading = asyncio.create_task(read())
    await eventually(lambda: bool(lines))

    await asyncio.wait_for(door.server.stop(5.0), 4.0)

    await asyncio.wait_for(reading, 5)
    assert lines == ["retry: 1000", "retry: 2000"]


async def test_a_reader_that_goes_gives_its_place_back(door: Door) -> None:
    async with door.http.stream("GET", "/stream/going") as response:
        assert response.status_code == 200
        assert door.streams == 1

    await eventually(lambda: door.streams == 0, 10)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("address", "parameter"),
    [
        ("/stream/c?from_offset=-1", "from_offset"),
        ("/stream/c?from_offset=x", "from_offset"),
        ("/stream/c?follow=maybe", "follow"),
        ("/stream/a.b", None),
        ("/stream/c?last_event_id=zzz", None),
        ("/stream/c?run=a%20b", None),
    ],
)
async def test_what_a_reader_cannot_mean_is_refused(door: Door, address: str, parameter: str | None) -> None:
    answer = await door.http.get(address)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_ARGUMENT"
    assert answer.json()["error"]["details"].get("parameter") == parameter


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"message": ""}, 400),
        ({"message": 7}, 400),
        ({"message": "hi", "colour": "red"}, 400),
        ({"message": "hi", "conversation_id": "a.b"}, 400),
        ({"message": "hi", "agent": "a b"}, 400),
        ({"message": "hi", "agent": "countre"}, 404),
        ({"message": "hi", "agent": "conversations"}, 400),
    ],
)
async def test_what_cannot_be_said_is_refused_and_leaves_nothing(
    mesh: Mesh, door: Door, body: dict[str, object], status: int
) -> None:
    answer = await door.http.post("/chat", json=body)

    assert answer.status_code == status, answer.text
    assert await mesh.streams.ls() == []


async def test_an_agent_of_nearly_that_name_is_named(door: Door) -> None:
    answer = await door.http.post("/chat", json={"message": "hi", "agent": "countre"})

    assert "did you mean 'counter'" in answer.json()["error"]["message"]


async def test_without_the_relay_nothing_is_taken(mesh: Mesh, start_door: StartDoor) -> None:
    await mesh.spawn(Counter)
    door = await start_door()

    answer = await door.http.post("/chat", json={"message": "hi", "agent": "counter"})

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"


async def test_who_is_not_named_is_the_one_that_is_set(mesh: Mesh, start_door: StartDoor) -> None:
    await mesh.spawn(Conversations)
    await mesh.spawn(Counter)
    await mesh.spawn(Parrot)
    one, other = await start_door(), await start_door(chat_agent="parrot")

    assert text_of(await other.answer(await other.say("hi"))) == "HI"
    answer = await one.http.post("/chat", json={"message": "hi"})
    assert answer.status_code == 400
    assert "counter, parrot" in answer.json()["error"]["message"]


@pytest.mark.seed("D29")
async def test_the_same_message_with_the_same_key_is_said_once(mesh: Mesh, door: Door) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"message": "tokens=4", "conversation_id": "idem"}

    first = await door.http.post("/chat", json=body, headers=headers)
    await door.answer(first.json())
    second = await door.http.post("/chat", json=body, headers=headers)
    other = await door.http.post("/chat", json={**body, "message": "tokens=5"}, headers=headers)

    assert (second.status_code, second.json()) == (202, first.json())
    assert other.status_code == 409
    assert await history(mesh.streams, "idem") == [
        ChatMessage(role="user", content="tokens=4"),
        ChatMessage(role="assistant", content="t0 t1 t2 t3 "),
    ]


async def test_a_message_said_twice_at_once_with_one_key_is_said_once(mesh: Mesh, door: Door) -> None:
    body = {"message": "tokens=4", "conversation_id": "twice"}

    answers = await asyncio.gather(
        *(door.http.post("/chat", json=body, headers={"Idempotency-Key": "k"}) for _ in range(5))
    )

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    await door.answer(answers[0].json())
    assert [message.role for message in await history(mesh.streams, "twice")] == ["user", "assistant"]


@pytest.mark.seed("D15")
async def test_a_conversation_belongs_to_the_tenant_of_the_key(mesh: Mesh, start_door: StartDoor) -> None:
    await mesh.spawn(Conversations)
    await mesh.spawn(Counter)
    door = await start_door(keys=(key("ours"), key("theirs", "another-tenant")))
    said = (await door.http.post("/chat", json={"message": "tokens=3", "agent": "counter"}, headers=as_("ours"))).json()
    assert (await door.http.get(said["stream"])).status_code == 401
    assert "t2" in (await door.http.get(said["stream"], headers=as_("ours"))).text

    stopped = await door.http.post(f"/stream/{said['conversation_id']}/cancel", headers=as_("theirs"))
    heard: list[str] = []
    async with door.http.stream("GET", f"/stream/{said['conversation_id']}", headers=as_("theirs")) as response:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                async for line in response.aiter_lines():
                    heard += [line] if line else []

    assert stopped.json()["cancelled"] is False
    assert heard == ["retry: 1000"]


async def test_more_streams_than_the_key_may_have_are_refused(start_door: StartDoor) -> None:
    door = await start_door(keys=(key("few", streams=2),))

    async with (
        door.http.stream("GET", "/stream/a", headers=as_("few")),
        door.http.stream("GET", "/stream/b", headers=as_("few")),
    ):
        answer = await door.http.get("/stream/c", headers=as_("few"))

    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
