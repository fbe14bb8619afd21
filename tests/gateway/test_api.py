"""`/api/v1`: agents are asked and told, tasks submitted and watched."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentmesh import AgentRef, Mesh
from tests.gateway.agents import SECRET, Adder, Greeter
from tests.gateway.conftest import Running, StartGateway

Spawn = Callable[..., Awaitable[AgentRef]]
ASK = "/api/v1/agents/greeter/ask"


@pytest.fixture
async def greeter(spawn: Spawn) -> Greeter:
    made: list[Greeter] = []

    await spawn(Greeter, made)
    return made[0]


@pytest.mark.usefixtures("greeter")
async def test_an_agent_is_asked_with_text_with_a_type_and_in_plain_words(gateway: Running) -> None:
    http = gateway.http

    text = await http.post(ASK, json={"text": "hi"})
    typed = await http.post(ASK, json={"type": "Greet", "data": {"name": "Ada"}})
    plain = await http.post(ASK, content="hi", headers={"Content-Type": "text/plain", "Accept": "text/plain"})
    like_curl = await http.post(
        ASK, content='{"text": "hi"}', headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    parts = await http.post(ASK, json={"type": "Tokens", "data": {"count": 3}})

    assert text.json() == {"agent": "greeter", "type": "Prompt", "reply": "You said: hi"}
    assert typed.json()["reply"] == {"text": "Hello Dr. Ada"}
    assert (plain.text, plain.headers["content-type"]) == ("You said: hi", "text/plain; charset=utf-8")
    assert like_curl.json()["reply"] == "You said: hi"
    assert parts.json()["reply"] == "0 1 2 "


@pytest.mark.usefixtures("greeter")
async def test_a_body_that_does_not_fit_is_refused_with_what_is_wrong(gateway: Running) -> None:
    wrong: list[tuple[Any, str]] = [
        ({"txt": "hi"}, "txt"),
        ({}, "text"),
        ({"text": "hi", "type": "Greet"}, "text"),
        ({"type": "Greet", "data": {}}, "name"),
        ({"type": "Nothing", "data": {}}, "Nothing"),
        ({"type": "a b", "data": {}}, "message type"),
        ({"text": "hi", "timeout": -1}, "timeout"),
        ([1], "an array"),
        ("hi", "a string"),
    ]
    for body, says in wrong:
        answer = await gateway.http.post(ASK, json=body)

        error = answer.json()["error"]
        told = (answer.status_code, error["code"], error["request_id"])
        assert told == (400, "INVALID_ARGUMENT", answer.headers["x-request-id"]), body
        assert says in error["message"], body


@pytest.mark.usefixtures("greeter")
async def test_an_agent_that_is_not_there_is_404_and_names_who_was_meant(gateway: Running) -> None:
    answer = await gateway.http.post("/api/v1/agents/greter/ask", json={"text": "hi"})
    described = await gateway.http.get("/api/v1/agents/greter")

    for one in (answer, described):
        assert one.status_code == 404
        assert one.json()["error"]["code"] == "NOT_FOUND"
        assert one.json()["error"]["details"]["did_you_mean"] == ["greeter"]


@pytest.mark.usefixtures("greeter")
async def test_i9_an_agent_that_fails_is_500_without_trace_and_secrets(
    gateway: Running, start_gateway: StartGateway
) -> None:
    failed = await gateway.http.post(ASK, json={"type": "Fail"})
    refused = await gateway.http.post(ASK, json={"type": "Refuse"})
    debugging = await (await start_gateway(debug=True)).http.post(ASK, json={"type": "Fail"})

    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "INTERNAL")
    assert failed.json()["error"]["details"] == {"agent": "greeter", "error_type": "ValueError"}
    assert SECRET not in failed.text
    assert "Traceback" not in failed.text
    assert (refused.status_code, refused.json()["error"]["message"]) == (412, "not on Sundays")
    assert SECRET in debugging.text


async def test_an_agent_that_does_not_answer_is_504_and_one_whose_caller_leaves_is_interrupted(
    gateway: Running, greeter: Greeter
) -> None:
    late = await gateway.http.post(ASK, json={"type": "Hang", "timeout": 0.2})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    async with asyncio.timeout(10):
        await greeter.cancelled.wait()

    greeter.hung.clear()
    greeter.cancelled.clear()
    leaving = asyncio.create_task(gateway.http.post(ASK, json={"type": "Hang"}))
    async with asyncio.timeout(10):
        await greeter.hung.wait()
        leaving.cancel()
        await greeter.cancelled.wait()


async def test_events_are_told_and_accepted(gateway: Running, greeter: Greeter) -> None:
    told = await gateway.http.post("/api/v1/agents/greeter/tell", json={"text": "one"})
    async with asyncio.timeout(10):
        await greeter.told.wait()
    greeter.told.clear()
    body = {"type": "Note", "data": {"text": "two"}, "durable": True}
    stored = await gateway.http.post("/api/v1/agents/greeter/tell", json=body)
    async with asyncio.timeout(10):
        await greeter.told.wait()
    nobody = await gateway.http.post("/api/v1/agents/nobody/tell", json={"text": "one"})

    assert (told.status_code, told.json()) == (202, {"agent": "greeter", "accepted": True})
    assert stored.status_code == 202
    assert greeter.heard == ["one", "two"]
    assert nobody.status_code == 404


@pytest.mark.usefixtures("greeter")
async def test_agents_are_listed_and_described_with_their_schemas(gateway: Running) -> None:
    listed = (await gateway.http.get("/api/v1/agents")).json()["agents"]
    described = (await gateway.http.get("/api/v1/agents/greeter")).json()

    (greeter,) = [agent for agent in listed if agent["name"] == "greeter"]
    assert (greeter["replicas"], greeter["ready"], greeter["description"]) == (1, 1, "Says hello.")
    assert {"name": "Tokens", "kind": "stream"} in greeter["messages"]
    (greet,) = [message for message in described["messages"] if message["name"] == "Greet"]
    assert greet["schema"]["required"] == ["name"]
    assert described["replicas"][0]["state"] == "ready"


async def test_a_task_is_submitted_waited_for_and_found_again(gateway: Running, spawn: Spawn) -> None:
    await spawn(Adder)
    http = gateway.http

    accepted = await http.post("/api/v1/agents/adder/tasks", json={"type": "Add", "data": {"a": 1, "b": 2}})
    where = accepted.headers["location"]
    done = (await http.get(where, params={"wait": 20})).json()
    executed = await http.post("/api/v1/agents/adder/execute", json={"type": "Add", "data": {"a": 3, "b": 4}})
    listed = (await http.get("/api/v1/tasks", params={"state": "completed"})).json()["tasks"]

    assert (accepted.status_code, accepted.json()["url"]) == (202, where)
    assert (done["state"], done["result"], done["task_id"]) == ("completed", 3, accepted.json()["task_id"])
    assert (executed.status_code, executed.json()["result"]) == (200, 7)
    assert {one["task_id"] for one in listed} == {done["task_id"], executed.json()["task_id"]}


async def test_i9_of_a_task_that_failed_the_kind_of_error_is_told_and_not_its_words(
    gateway: Running, start_gateway: StartGateway, spawn: Spawn
) -> None:
    await spawn(Adder)

    failed = await gateway.http.post("/api/v1/agents/adder/execute", json={"type": "Break"})
    debugging = (await start_gateway(debug=True)).http

    assert failed.json()["state"] == "dead"
    assert failed.json()["reason"].endswith("ValueError")
    assert SECRET not in failed.text
    assert SECRET in (await debugging.get(f"/api/v1/tasks/{failed.json()['task_id']}")).text


async def test_a_task_is_cancelled_and_an_unknown_one_is_404(gateway: Running, spawn: Spawn) -> None:
    await spawn(Adder)
    http = gateway.http
    one, two = [
        (await http.post("/api/v1/agents/adder/tasks", json={"type": "Wait"})).headers["location"] for _ in range(2)
    ]

    slow = await http.post("/api/v1/agents/adder/execute", json={"type": "Wait", "timeout": 0.1})
    assert (slow.status_code, slow.headers["location"]) == (202, slow.json()["url"])
    assert (await http.delete(one)).json()["cancelled"]
    assert (await http.post(f"{two}/cancel")).json()["state"] == "cancelled"
    assert (await http.get(one)).json()["state"] == "cancelled"
    assert (await http.get("/api/v1/tasks/nothing")).status_code == 404
    assert (await http.delete("/api/v1/tasks/nothing")).status_code == 404


async def test_i10_one_idempotency_key_twenty_times_is_one_task_and_one_run(gateway: Running, spawn: Spawn) -> None:
    await spawn(Adder)
    await spawn(Greeter)
    http, key = gateway.http, {"Idempotency-Key": "order-7"}
    Adder.runs = Greeter.runs = 0

    submits = [
        http.post("/api/v1/agents/adder/tasks", json={"type": "Add", "data": {"a": 1, "b": 2}}, headers=key)
        for _ in range(20)
    ]
    asks = [http.post(ASK, json={"text": "hi"}, headers=key) for _ in range(20)]
    submitted, asked = await asyncio.gather(asyncio.gather(*submits), asyncio.gather(*asks))

    assert {one.status_code for one in submitted} == {202}
    assert len({one.json()["task_id"] for one in submitted}) == 1
    assert (await http.get(submitted[0].headers["location"], params={"wait": 20})).json()["result"] == 3
    assert {(one.status_code, one.json()["reply"]) for one in asked} == {(200, "You said: hi")}
    assert (Adder.runs, Greeter.runs) == (1, 1)
    other = await http.post(ASK, json={"text": "something else"}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "CONFLICT")


async def test_tenants_see_only_their_own_agents(mesh: Mesh, spawn: Spawn, start_gateway: StartGateway) -> None:
    await spawn(Greeter)
    elsewhere = await start_gateway(tenant="elsewhere")

    assert (await elsewhere.http.get("/api/v1/agents")).json() == {"agents": []}
    assert (await elsewhere.http.post(ASK, json={"text": "hi"})).status_code == 404
