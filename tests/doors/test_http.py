"""`POST /ai/llm/infer` and `/ai/models`: what HTTP adds."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import pytest

from agentmesh import Mesh
from agentmesh.agents.llm import LLMGateway
from tests.doors.conftest import Model, OpenHouse
from tests.gateway.conftest import StartGateway, bearer, key

INFER = "/ai/llm/infer"


@pytest.mark.seed("A22", "A24")
async def test_the_curl_line_of_the_seed_works_unchanged(mesh: Mesh, start_gateway: StartGateway) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    await mesh.spawn(LLMGateway)
    running = await start_gateway()
    line = [
        *(curl, "-s", "-X", "POST", running.url + INFER, "-H", "Content-Type: application/json", "-d"),
        """{
    "model_id": "gpt-5-pro",
    "input": {"prompt": "Hello"},
    "params": {"temperature": 0.7}
  }""",
    ]

    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, check=True, timeout=60)

    answer = json.loads(done.stdout)
    assert answer["output_text"]
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] > 0
    assert answer["generation_id"]


@pytest.mark.seed("A24")
async def test_every_shape_of_body_asks_the_same(model: Model, start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http
    message = {"role": "user", "content": "say yes"}
    bodies: list[dict[str, object]] = [
        {"input": {"prompt": "say yes"}},
        {"prompt": "say yes"},
        {"input": {"messages": [message]}},
        {"messages": [message]},
        {"chat_messages": [message]},
        {"chat_messages": {"messages": [message]}},
        {"input": {"chat_messages": {"messages": [{**message, "role": "USER"}]}}},
    ]

    for body in bodies:
        answer = (await http.post(INFER, json={"model_id": "default", **body})).json()
        text = answer.get("output_text") or answer["chat_messages"]["messages"][0]["content"]
        assert text == "yes", body
    assert [call.messages[0].content for call in model.calls] == ["say yes"] * len(bodies)


WRONG: list[tuple[dict[str, object], str, str]] = [
    ({"promt": "a"}, "promt", "'prompt'"),
    ({"model": "x", "prompt": "a"}, "model", "model_id"),
    ({"input": {"promp": "a"}}, "input.promp", "'prompt'"),
    ({"prompt": "a", "params": {"max_token": 5}}, "params.max_token", "'max_tokens'"),
    ({"prompt": "a", "params": {"temperature": "hot"}}, "params.temperature", "number"),
    ({"prompt": "a", "params": 5}, "params", "object"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt and messages", "one of them"),
    ({"prompt": "a", "input": {"prompt": "b"}}, "prompt and input.prompt", "one of them"),
    ({"messages": [{"role": "robot", "content": "b"}]}, "chat_messages.messages.0.role", "robot"),
    ({"messages": []}, "messages", "messages"),
    ({"input": {"prompt": ""}}, "input.prompt", "empty"),
    ({"model_id": "default"}, "input", "nothing to answer"),
    ({"prompt": "a", "meta": {"requestid": "x"}}, "meta.requestid", "'request_id'"),
]


@pytest.mark.seed("A23", "A24")
async def test_what_is_wrong_with_a_body_is_named(model: Model, start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http

    for body, field, says in WRONG:
        reply = await http.post(INFER, json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "INVALID_ARGUMENT"), body
        assert error["details"]["field"] == field
        assert says in error["message"]
    assert not model.calls


@pytest.mark.seed("A5")
async def test_header_fields_become_meta(model: Model, start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http
    headers = {
        "X-Request-ID": "r-1",
        "X-Trace-ID": "t-1",
        "X-Client-ID": "c-1",
        "X-User-ID": "u-1",
        "X-Custom-Color": "red",
        "Idempotency-Key": "k-1",
    }

    reply = await http.post(INFER, json={"prompt": "say a", "meta": {"labels": {"a": "b"}}}, headers=headers)

    meta = reply.json()["meta"]
    assert meta.pop("timestamp")
    assert meta.pop("tenant_id")
    assert meta == {
        "request_id": "r-1",
        "trace_id": "t-1",
        "client_id": "c-1",
        "user_id": "u-1",
        "idempotency_key": "k-1",
        "labels": {"a": "b", "color": "red"},
    }


@pytest.mark.seed("A5")
async def test_a_trace_goes_through_to_the_model(model: Model, start_gateway: StartGateway) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}

    reply = await (await start_gateway()).http.post(INFER, json={"prompt": "say a"}, headers=headers)

    assert reply.json()["meta"]["trace_id"] == trace
    assert model.traces == [trace]


async def test_an_idempotency_key_in_header_or_body_is_the_same(model: Model, start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http
    one = await http.post(INFER, json={"prompt": "say a"}, headers={"Idempotency-Key": "k"})
    two = await http.post(INFER, json={"prompt": "say a", "idempotency_key": "k"})
    both = await http.post(
        INFER, json={"prompt": "say a", "idempotency_key": "other"}, headers={"Idempotency-Key": "k"}
    )
    conflict = await http.post(INFER, json={"prompt": "say b", "idempotency_key": "k"})

    assert one.json()["generation_id"] == two.json()["generation_id"]
    assert both.status_code == 400
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "CONFLICT")
    assert len(model.calls) == 1


@pytest.mark.seed("A22")
async def test_without_a_gateway_to_models_it_says_when_to_come_back(start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http

    whole = await http.post(INFER, json={"prompt": "say a"})
    streamed = await http.post(INFER, json={"prompt": "say a"}, headers={"Accept": "text/event-stream"})

    for reply in (whole, streamed):
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "5")
        assert reply.json()["error"]["code"] == "UNAVAILABLE"


@pytest.mark.seed("A11")
async def test_codes_become_statuses(model: Model, start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http
    wanted = {"PERMISSION_DENIED": 403, "FAILED_PRECONDITION": 412, "UNIMPLEMENTED": 501, "UNKNOWN": 500}

    for code, status in wanted.items():
        reply = await http.post(INFER, json={"prompt": f"fail {code}"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    late = await http.post(INFER, json={"prompt": "wait"}, headers={"X-Timeout": "0.2"})
    wrong = await http.post(INFER, json={"prompt": "say a"}, headers={"X-Timeout": "soon"})
    assert (late.status_code, wrong.status_code) == (504, 400)


@pytest.mark.seed("A12")
async def test_accept_asks_for_a_stream_too(model: Model, start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http

    reply = await http.post(INFER, json={"prompt": "say a b"}, headers={"Accept": "text/event-stream"})

    chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert [chunk.get("output_text_delta", "") for chunk in chunks] == ["a", " b", ""]
    assert [chunk["is_final"] for chunk in chunks] == [False, False, True]


async def test_a_stream_whose_gateway_stops_ends_with_an_error_chunk(model: Model, start_gateway: StartGateway) -> None:
    running = await start_gateway()
    body = {"prompt": "say a then wait", "params": {"stream": True}}
    chunks = []

    async with asyncio.timeout(30), running.http.stream("POST", INFER, json=body) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                chunks.append(json.loads(line[6:]))
                running.gateway.shutdown.set()

    assert (chunks[-1]["is_final"], chunks[-1]["index"]) == (True, len(chunks) - 1)
    assert chunks[-1]["error"]["code"] == "UNAVAILABLE"
    async with asyncio.timeout(20):
        await model.cancelled.wait()


async def test_a_caller_that_goes_away_stops_the_model(model: Model, start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http
    asking = asyncio.create_task(http.post(INFER, json={"prompt": "wait for ever"}))
    await model.until_waiting(1)

    asking.cancel()

    async with asyncio.timeout(20):
        await model.cancelled.wait()


async def test_another_tenant_cannot_be_named(mesh: Mesh, house: OpenHouse, start_gateway: StartGateway) -> None:
    model = await house()
    running = await start_gateway(keys=(key(tenant=mesh.subjects.tenant),))
    bodies: list[dict[str, object]] = [{"tenant_id": "other"}, {"meta": {"tenant_id": "other"}}]

    for body in bodies:
        reply = await running.http.post(INFER, json={"prompt": "say a", **body}, headers=bearer())
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "PERMISSION_DENIED")
    assert (await running.http.post(INFER, json={"prompt": "say a"})).status_code == 401
    assert not model.calls


async def test_models_are_listed_by_name(model: Model, start_gateway: StartGateway) -> None:
    http = (await start_gateway()).http

    listed = (await http.post("/ai/models")).json()["models"]
    one = (await http.post("/ai/models/default")).json()
    none = await http.get("/ai/models/defualt")

    assert [entry["name"] for entry in listed] == ["default"]
    assert one == listed[0]
    assert (none.status_code, none.json()["error"]["details"]["did_you_mean"]) == (404, ["default"])
