"""The door `ai.gateway.requests.T`: answers, durable jobs, and the compatibility of the responses' subject."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client as NatsClient
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from agentmesh import Mesh
from agentmesh.agents.llm import Generate
from agentmesh.local import LocalServices
from agentmesh.subjects import Subjects, may_overlap
from agentmesh.tasks import layout
from agentmesh.transport import StreamSpec
from tests.doors.conftest import Model, OpenHouse
from tests.doors.ways import InferWay, RequestsWay, protobufs

LONG = 20.0


def _request(request_id: str, prompt: str, tenant: str, **more: Any) -> bytes:
    """As the seed makes it."""
    body = {
        "request_id": request_id,
        "prompt": prompt,
        "model": "default",
        "tenant_id": tenant,
        "timestamp": "2026-11-28T14:00:00+00:00",
        "schema_version": "1.0",
    }
    return json.dumps({**body, **more}).encode()


async def _ask(nc: NatsClient, tenant: str, data: bytes, **headers: str) -> dict[str, Any]:
    reply = await nc.request(f"ai.gateway.requests.{tenant}", data, timeout=LONG, headers=headers or None)
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


@pytest.mark.seed("B22", "B32", "B34")
async def test_a_request_as_the_seed_makes_it_gets_all_fields_of_the_answer(
    mesh: Mesh, model: Model, nc: NatsClient
) -> None:
    tenant = mesh.subjects.tenant
    headers = {"request_id": "r-1", "model": "default", "priority": "normal"}

    answer = await _ask(nc, tenant, _request("r-1", "say one two", tenant), **headers)

    assert {name: answer[name] for name in ("request_id", "response", "tokens", "cost", "schema_version")} == {
        "request_id": "r-1",
        "response": "one two",
        "tokens": 3,
        "cost": 0.0,
        "schema_version": "1.0",
    }
    assert (answer["model"], answer["finish_reason"], answer["error"]) == ("default", "stop", None)
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


@pytest.mark.seed("A19", "B32")
async def test_a_key_is_the_same_at_every_door(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    first = await InferWay(nc, protobufs).ask("say a", key="everywhere")
    again = await RequestsWay(nc, mesh.subjects.tenant).ask("say a", key="everywhere")

    assert (again.text, again.generation_id) == (first.text, first.generation_id)
    assert len(model.calls) == 1


@pytest.mark.seed("B32")
async def test_headers_alone_name_the_request_the_model_and_the_priority(
    mesh: Mesh, model: Model, nc: NatsClient
) -> None:
    headers = {"request_id": "r-2", "model": "default", "priority": "high"}

    answer = await _ask(nc, mesh.subjects.tenant, b'{"prompt": "say a"}', **headers)
    wrong = await _ask(nc, mesh.subjects.tenant, b'{"prompt": "say a"}', priority="urgent")

    assert (answer["request_id"], answer["response"]) == ("r-2", "a")
    assert (wrong["error"]["code"], wrong["error"]["details"]["field"]) == ("INVALID_ARGUMENT", "priority")


@pytest.mark.seed("B34")
async def test_what_contradicts_itself_is_refused(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    tenant = mesh.subjects.tenant
    other_id = await _ask(nc, tenant, _request("r-3", "say a", tenant), request_id="r-4")
    other_tenant = await _ask(nc, tenant, _request("r-3", "say a", "somebody-else"))
    other_version = await _ask(nc, tenant, _request("r-3", "say a", tenant, schema_version="2.0"))
    no_json = await _ask(nc, tenant, b"say a")
    no_object = await _ask(nc, tenant, b'["say a"]')
    other_type = await _ask(nc, tenant, b"<a/>", **{"Content-Type": "application/xml"})

    assert [
        one["error"]["code"] for one in (other_id, other_tenant, other_version, no_json, no_object, other_type)
    ] == [
        "INVALID_ARGUMENT",
        "PERMISSION_DENIED",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
    ]
    assert other_tenant["request_id"] == "r-3"
    assert not model.calls


@pytest.mark.seed("B31", "B22")
async def test_a_job_is_accepted_under_the_id_of_the_request_and_found_by_it(
    mesh: Mesh, model: Model, nc: NatsClient
) -> None:
    tenant = mesh.subjects.tenant

    accepted = await _ask(nc, tenant, _request("job-1", "say done", tenant), mode="job")
    again = await _ask(nc, tenant, _request("job-1", "say done", tenant), mode="job")

    assert (
        accepted
        == again
        == {
            "request_id": "job-1",
            "job_id": "job-1",
            "status": "accepted",
            "schema_version": "1.0",
        }
    )
    result = await mesh.job("job-1", Generate).result(timeout=LONG)
    assert (result.text, result.request_id) == ("done", "job-1")
    assert len(model.calls) == 1


@pytest.mark.seed("B31", "B35")
async def test_a_request_that_nobody_waits_for_becomes_a_job_that_survives_the_gateway(
    mesh: Mesh, house: OpenHouse, nc: NatsClient
) -> None:
    tenant = mesh.subjects.tenant
    first = await house()
    await nc.publish(f"ai.gateway.requests.{tenant}", _request("job-2", "wait for me", tenant))
    await first.until_waiting(1)

    await mesh.kill("llm")
    second = await house()
    second.go.set()

    result = await mesh.job("job-2", Generate).result(timeout=LONG)
    assert result.text == "for me"
    assert len(second.calls) == 1


@pytest.fixture
async def services(mesh: Mesh, tmp_path: Any) -> AsyncIterator[None]:
    """The dispatcher, which finds an agent for tasks of plain clients."""
    local = LocalServices(tmp_path)
    await local.start_services(mesh.transport, mesh.subjects)
    yield
    await local.stop_services()


@pytest.mark.seed("B31")
async def test_a_task_stored_by_any_client_is_the_same_job(
    mesh: Mesh, model: Model, nc: NatsClient, services: None
) -> None:
    task = {"task_id": "job-3", "task_type": "Generate", "parameters": {"prompt": "say stored"}}
    await mesh.tasks.ensure()

    await nc.jetstream().publish(f"ai.agent.tasks.{mesh.subjects.tenant}", json.dumps(task).encode())

    assert (await mesh.job("job-3", Generate).result(timeout=LONG)).text == "stored"


async def test_an_id_that_cannot_be_one_of_a_job_is_refused(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    tenant = mesh.subjects.tenant

    answer = await _ask(nc, tenant, _request("no/good", "say a", tenant), mode="job")

    assert answer["error"]["code"] == "INVALID_ARGUMENT"
    assert "request_id" in answer["error"]["message"]


@pytest.mark.seed("B23", "B31")
async def test_answers_are_copied_to_all_who_listen_only_if_that_is_asked_for(
    mesh: Mesh, house: OpenHouse, nc: NatsClient
) -> None:
    tenant = mesh.subjects.tenant
    responses = await nc.subscribe(f"ai.gateway.responses.{tenant}")
    await house()
    await _ask(nc, tenant, _request("r-5", "say private", tenant))
    await mesh.stop("llm", grace=0.0)

    await house(responses=True)
    await _ask(nc, tenant, _request("r-6", "say public", tenant))
    await nc.publish(f"ai.gateway.requests.{tenant}", _request("r-7", "say later", tenant))

    copies = [await responses.next_msg(timeout=LONG) for _ in range(2)]
    told = {copy.headers["request_id"]: json.loads(copy.data)["response"] for copy in copies if copy.headers}
    assert told == {"r-6": "public", "r-7": "later"}
    assert all(json.loads(copy.data)["request_id"] in told for copy in copies)


@pytest.mark.seed("B31")
async def test_what_the_seed_does_works_when_responses_are_on_and_fails_at_once_when_they_are_not(
    mesh: Mesh, house: OpenHouse, nc: NatsClient
) -> None:
    """Publish the request to one subject, then request the same payload from the other."""
    tenant = mesh.subjects.tenant
    await house()
    with pytest.raises((NoRespondersError, NatsTimeoutError)):
        await nc.request(f"ai.gateway.responses.{tenant}", _request("r-8", "say a", tenant), timeout=5)
    await mesh.stop("llm", grace=0.0)
    await house(responses=True)

    payload = _request("r-9", "say a b", tenant)
    await nc.publish(f"ai.gateway.requests.{tenant}", payload, headers={"request_id": "r-9"})
    reply = await nc.request(f"ai.gateway.responses.{tenant}", payload, timeout=LONG)

    answer = json.loads(reply.data)
    assert (answer["request_id"], answer["response"], answer["tokens"]) == ("r-9", "a b", 3)


@pytest.mark.seed("B22", "B23")
def test_no_stream_captures_the_subject_of_a_door() -> None:
    subjects = Subjects("t")
    doors = [
        subjects.infer(),
        subjects.tenant_infer(),
        subjects.gateway_requests(),
        subjects.gateway_responses(),
        subjects.control("cancel-infer"),
    ]
    captured = [pattern for spec in vars(layout).values() if isinstance(spec, StreamSpec) for pattern in spec.subjects]

    assert len(captured) > 5
    assert not [(door, pattern) for door in doors for pattern in captured if may_overlap(door, pattern)]


async def test_many_requests_of_one_client_do_not_wait_for_each_other(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    tenant = mesh.subjects.tenant
    asking = [asyncio.create_task(_ask(nc, tenant, _request(f"r-{n}", f"wait {n}", tenant))) for n in range(20)]

    await model.until_waiting(20)
    model.go.set()

    assert {(await answer)["response"] for answer in asking} == {str(number) for number in range(20)}
