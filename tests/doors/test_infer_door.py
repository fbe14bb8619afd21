"""The door `svc.ai.llm.v1.infer`, by a plain NATS client."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client as NatsClient
from nats.errors import NoRespondersError

from agentmesh import AgentRef, Mesh, connect, proto
from agentmesh.agents.llm import LLMGateway
from agentmesh.agents.llm.client import LLMClient
from agentmesh.agents.llm.doors import Doors
from agentmesh.broker import EmbeddedBroker
from agentmesh.chaos import Server
from agentmesh.errors import NoRespondersError as NobodyError
from agentmesh.ids import new_id
from agentmesh.metrics import metrics_of
from agentmesh.subjects import Subjects
from agentmesh.transport import TransportOptions
from tests.doors.conftest import Model, OpenHouse
from tests.doors.ways import InferWay, Told, all_pieces, jsons, msgpacks, protobufs

SUBJECT = "svc.ai.llm.v1.infer"


async def _answer(nc: NatsClient, data: bytes, **headers: str) -> tuple[dict[str, str], dict[str, Any]]:
    reply = await nc.request(SUBJECT, data, timeout=20, headers=headers or None)
    said = dict(reply.headers or {})
    return said, protobufs.read(reply.data, False) if "protobuf" in said["Content-Type"] else json.loads(reply.data)


@pytest.mark.seed("A4", "A5", "A7", "A10", "A21")
async def test_a_request_as_the_seed_makes_it_is_answered_in_protobuf(model: Model, nc: NatsClient) -> None:
    from google.protobuf.wrappers_pb2 import DoubleValue, UInt32Value

    request = proto.LLMInferenceRequest(model_id="default", prompt="say hello there")
    request.meta.request_id = "req-1"
    request.meta.labels["team"] = "blue"
    request.params.temperature.CopyFrom(DoubleValue(value=0.0))
    request.params.max_tokens.CopyFrom(UInt32Value(value=100))

    reply = await nc.request(SUBJECT, request.SerializeToString(), timeout=20)

    response = proto.LLMInferenceResponse.FromString(reply.data)
    assert response.output_text == "hello there"
    assert response.finish_reason == "stop"
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens == 3
    assert response.generation_id.startswith("gen-")
    assert response.meta == request.meta
    assert not response.HasField("error")
    assert dict(reply.headers or {}) == {
        "Content-Type": "application/x-protobuf",
        "message-type": "ai_integration.v1.LLMInferenceResponse",
        "Schema-Fingerprint": proto.FINGERPRINT,
    }


@pytest.mark.seed("A10")
async def test_msgpack_is_spoken_too(model: Model, nc: NatsClient) -> None:
    way = InferWay(nc, msgpacks)

    told = await way.ask("say a b", params={"temperature": 0.0})
    pieces = await all_pieces(way, "say a b")
    refused = await nc.request(SUBJECT, b"\xc1", timeout=20, headers={"Content-Type": "application/msgpack"})

    assert told.text == "".join(piece.told.text for piece in pieces) == "a b"
    assert model.calls[0].params.temperature == 0.0
    assert msgspec.msgpack.decode(refused.data)["error"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.seed("A10")
async def test_plain_json_without_any_header_is_understood(model: Model, nc: NatsClient) -> None:
    headers, answer = await _answer(nc, b'{"prompt": "say hi"}')

    assert headers["Content-Type"] == "application/json"
    assert answer["output_text"] == "hi"


@pytest.mark.seed("A10", "A11")
async def test_a_type_that_is_not_spoken_is_refused_in_json(model: Model, nc: NatsClient) -> None:
    headers, answer = await _answer(nc, b"<prompt/>", **{"content-type": "application/xml; charset=utf-8"})

    assert answer["error"]["code"] == "INVALID_ARGUMENT"
    assert "application/xml" in answer["error"]["message"]
    assert "application/x-protobuf" in answer["error"]["message"]
    assert headers["Nats-Service-Error-Code"] == "400"


@pytest.mark.seed("A11", "A36")
async def test_bytes_that_cannot_be_read_are_refused_by_what_is_wrong(model: Model, nc: NatsClient) -> None:
    _, garbage = await _answer(nc, b"\xff\xff\xff\xff")
    _, foreign = await _answer(nc, b"\xff\xff\xff\xff", **{"Schema-Fingerprint": "0123456789abcdef"})
    _, wrong_type = await _answer(nc, b"", **{"message-type": "ai_integration.v1.Nonesuch"})
    _, empty = await _answer(nc, b"")

    assert {answer["error"]["code"] for answer in (garbage, foreign, wrong_type, empty)} == {"INVALID_ARGUMENT"}
    assert "LLMInferenceRequest" in garbage["error"]["message"]
    assert "0123456789abcdef" in foreign["error"]["message"]
    assert proto.FINGERPRINT in foreign["error"]["message"]
    assert "agentmesh proto export" in foreign["error"]["message"]
    assert "Nonesuch" in wrong_type["error"]["message"]
    assert "nothing to answer" in empty["error"]["message"]
    assert garbage["meta"]["request_id"]


@pytest.mark.seed("A36")
async def test_fields_of_a_newer_contract_are_named_if_it_is_known_to_be_one(model: Model, nc: NatsClient) -> None:
    newer = proto.LLMInferenceRequest(prompt="say a").SerializeToString() + b"\xa2\x06\x03new"  # field 100

    _, told = await _answer(nc, newer, **{"Schema-Fingerprint": "fedcba9876543210"})
    _, ignored = await _answer(nc, newer)

    assert told["error"]["code"] == "INVALID_ARGUMENT"
    assert "100" in told["error"]["message"]
    assert ignored["output_text"] == "a"  # as protobuf has it, when nobody says that it matters


@pytest.mark.seed("A11")
async def test_whatever_comes_there_is_one_answer_and_the_door_stays_open(model: Model, nc: NatsClient) -> None:
    chance = random.Random(20261128)
    good = proto.inference_request("say a", temperature=0.5, meta={"labels": {"a": "b"}}).SerializeToString()
    bodies = [bytes(chance.randrange(256) for _ in range(chance.randrange(60))) for _ in range(40)]
    bodies += [good[:at] for at in range(0, len(good), 3)]
    bodies += [good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :] for at in range(0, len(good), 2)]
    bodies += [b"{" * 5000, b"[" * 100_000, b'{"prompt": ' + b"[" * 5000, b'{"prompt": "a", "context": {"x": 1e999}}']
    kinds = ("application/x-protobuf", "application/json", "application/msgpack")
    inbox = nc.new_inbox()
    answers: list[bytes] = []

    async def note(message: Any) -> None:
        answers.append(message.data)

    await nc.subscribe(f"{inbox}.*", cb=note)
    sent = [(kind, body) for body in bodies for kind in kinds]
    for number, (kind, body) in enumerate(sent):
        await nc.publish(SUBJECT, body, reply=f"{inbox}.{number}", headers={"Content-Type": kind})
    last = await nc.request(SUBJECT, good, timeout=20)

    async with asyncio.timeout(20):
        while len(answers) < len(sent):
            await nc.flush()
            await asyncio.sleep(0.01)
    assert proto.LLMInferenceResponse.FromString(last.data).output_text == "a"
    assert len(answers) == len(sent)
    assert all(answers)


@pytest.mark.seed("A8", "A9", "A20")
async def test_replicas_share_the_requests_and_each_is_answered_once(house: OpenHouse, nc: NatsClient) -> None:
    models = [await house(f"llm-{number}") for number in range(3)]
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(f"{inbox}.*")

    for number in range(60):
        body = proto.inference_request(f"say {number}").SerializeToString()
        await nc.publish(SUBJECT, body, reply=f"{inbox}.{number}")
    answers = [await subscription.next_msg(timeout=20) for _ in range(60)]
    await nc.request("$SRV.PING", b"", timeout=5)  # whatever was answered twice would be here by now
    await nc.flush()

    assert {message.subject for message in answers} == {f"{inbox}.{number}" for number in range(60)}
    assert subscription.pending_msgs == 0
    assert sum(len(model.calls) for model in models) == 60
    assert sum(1 for model in models if model.calls) >= 2


@pytest.mark.seed("A8")
async def test_replicas_ask_the_model_once_for_a_key(house: OpenHouse, nc: NatsClient) -> None:
    model = Model()
    for number in range(3):
        await house(f"llm-{number}", model=model)
    way = InferWay(nc, protobufs)
    asking = [asyncio.create_task(way.ask("wait here", key="one")) for _ in range(12)]
    await model.until_waiting(1)
    model.go.set()

    answers = await asyncio.gather(*asking)

    assert {(told.text, told.code) for told in answers} == {("here", "")}
    assert len({told.generation_id for told in answers}) == 1
    assert len(model.calls) == 1


@pytest.mark.seed("A9")
async def test_a_replica_that_is_full_passes_requests_on(house: OpenHouse, nc: NatsClient) -> None:
    slow, quick = await house("llm-1", capacity=1), await house("llm-2", capacity=64)
    way = InferWay(nc, protobufs)
    waiting: list[asyncio.Task[Told]] = []
    while not slow.waiting:  # until one of them lands on the small one
        waiting.append(asyncio.create_task(way.ask(f"wait {len(waiting)}")))
        await asyncio.sleep(0.02)
        quick.go.set()

    answers = [await way.ask(f"say {number}") for number in range(20)]
    slow.go.set()
    await asyncio.gather(*waiting)

    assert len(slow.calls) == 1
    assert sum(1 for told in answers if told.code == "") >= 15
    assert {told.code for told in answers} <= {"", "RESOURCE_EXHAUSTED"}


@pytest.mark.seed("A11")
async def test_a_stopping_gateway_answers_whoever_waits(
    house: OpenHouse, mesh: Mesh, nc: NatsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.agents.llm.doors.doors.GRACE", 0.1)
    model = await house()
    way = InferWay(nc, protobufs)
    asking = asyncio.create_task(way.ask("wait here"))
    await model.until_waiting(1)

    await mesh.stop("llm", grace=0.1)

    assert (await asking).code == "UNAVAILABLE"
    with pytest.raises(NoRespondersError):
        await nc.request(SUBJECT, b"", timeout=5)


@pytest.mark.seed("A7")
async def test_a_client_says_when_it_stops_waiting_in_three_ways(model: Model, nc: NatsClient) -> None:
    body = b'{"prompt": "wait here"}'
    _, late = await _answer(nc, body, Deadline="2026-01-01T00:00:00Z")
    _, soon = await _answer(nc, body, timeout="0.05")
    _, wrong = await _answer(nc, body, Timeout="soon")
    _, idle = await _answer(nc, b'{"prompt": "wait here", "params": {"stream": true}}', **{"Idle-Timeout": "0.05"})

    assert (late["error"]["code"], soon["error"]["code"]) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert (wrong["error"]["code"], "Timeout" in wrong["error"]["message"]) == ("INVALID_ARGUMENT", True)
    assert (idle["error"]["code"], idle["error"]["details"]["limit"]) == ("DEADLINE_EXCEEDED", "idle")


async def test_the_doors_are_found_by_discovery_and_count(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    await InferWay(nc, jsons).ask("say a")
    await InferWay(nc, jsons).ask("fail INTERNAL")

    stats = json.loads((await nc.request("$SRV.STATS.llm-doors", b"", timeout=5)).data)
    info = json.loads((await nc.request("$SRV.INFO.llm-doors", b"", timeout=5)).data)

    by_name = {endpoint["name"]: endpoint for endpoint in stats["endpoints"]}
    assert (by_name["infer"]["num_requests"], by_name["infer"]["num_errors"]) == (2, 1)
    assert {(entry["subject"], entry["queue_group"]) for entry in info["endpoints"]} == {
        ("svc.ai.llm.v1.infer", "q.ai.llm.infer"),
        (f"svc.ai.llm.v1.infer.{mesh.subjects.tenant}", "q.ai.llm.infer"),
        (f"ai.gateway.requests.{mesh.subjects.tenant}", "gateway.workers"),
    }


@dataclass(frozen=True)
class Ours(Subjects):
    """Other names for the doors."""

    def infer(self) -> str:
        return "svc.ours.infer"

    def infer_group(self) -> str:
        return "q.ours"

    def gateway_group(self) -> str:
        return "ours.workers"


@pytest.mark.seed("A19", "A20")
async def test_names_of_doors_and_groups_can_be_replaced(nats_server: EmbeddedBroker, nc: NatsClient) -> None:
    subjects = Ours(f"test-{new_id()}")
    async with connect(nats_server.url, subjects=subjects, own_thread=False) as ours:
        await ours.spawn(LLMGateway, {"default": Model()}, {"doors": {"shared": True}})

        reply = await nc.request("svc.ours.infer", b'{"prompt": "say ours"}', timeout=20)
        info = json.loads((await nc.request("$SRV.INFO.llm-doors", b"", timeout=5)).data)

    assert json.loads(reply.data)["output_text"] == "ours"
    assert {entry["queue_group"] for entry in info["endpoints"]} == {"q.ours", "ours.workers"}


Spawn = Callable[..., Awaitable[AgentRef]]


@pytest.mark.seed("A19")
async def test_the_door_without_a_tenant_is_served_by_the_default_tenant_alone(mesh: Mesh) -> None:
    async def generate(request: Any, tenant: str) -> Any:
        yield None

    def subjects_of(tenant: str, **options: Any) -> list[str]:
        from agentmesh.client import Client
        from agentmesh.config import DoorSettings

        doors = Doors(Client(mesh.transport, Subjects(tenant), "llm"), generate, DoorSettings(**options))
        return [door.endpoint.subject for door in doors._doors]

    assert SUBJECT in subjects_of("default")
    assert SUBJECT not in subjects_of("acme")
    assert SUBJECT in subjects_of("acme", shared=True)
    assert "svc.ai.llm.v1.infer.acme" in subjects_of("acme")


@pytest.mark.seed("A11")
async def test_a_paused_gateway_refuses_requests_and_keeps_jobs(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    await mesh.pause("llm", reason="maintenance")
    told = await InferWay(nc, jsons).ask("say a")
    job = {"request_id": "later", "prompt": "say a", "mode": "job"}
    accepted = await nc.request(f"ai.gateway.requests.{mesh.subjects.tenant}", json.dumps(job).encode(), timeout=20)
    assert not model.calls

    await mesh.resume("llm")

    assert (told.code, "maintenance" in told.message) == ("UNAVAILABLE", True)
    assert json.loads(accepted.data)["status"] == "accepted"
    assert (await mesh.job("later").result(timeout=20))["text"] == "a"
    assert (await InferWay(nc, jsons).ask("say b")).text == "b"


FORBIDDING = """
authorization { users: [
  { user: agent, password: a, permissions: { subscribe: { allow: ">", deny: ["svc.>", "svc.> q.ai.llm.infer"] } } }
] }
"""


async def test_a_door_that_the_broker_forbids_stays_closed_and_the_others_open() -> None:
    async with Server(extra_config=FORBIDDING) as server:
        options = TransportOptions(user="agent", password="a")
        async with connect(server.url, transport=options, own_thread=False) as mesh:
            await mesh.spawn(LLMGateway, {"default": Model()})

            answer = await LLMClient(mesh).generate("say a")
            with pytest.raises(NobodyError):
                await LLMClient(mesh).infer(proto.inference_request("say a"))

    assert answer.text == "a"


@pytest.mark.seed("A2", "A10")
async def test_a_gateway_without_protobuf_says_which_extra_it_lacks_and_speaks_json(
    model: Model, nc: NatsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf", None)

    headers, refused = await _answer(nc, b"\x1a\x05say a")  # the prompt as protobuf has it
    _, answered = await _answer(nc, b'{"prompt": "say a"}')

    assert headers["Content-Type"] == "application/json"
    assert refused["error"]["code"] == "UNIMPLEMENTED"
    assert "agentmesh-nats[proto]" in refused["error"]["message"]
    assert answered["output_text"] == "a"


async def test_meta_that_would_come_back_a_thousand_times_is_bounded(model: Model, nc: NatsClient) -> None:
    large = {"request_id": "r" * 1000, "labels": {"a": "b" * 20_000}}

    _, told = await _answer(nc, json.dumps({"prompt": "say a", "meta": large}).encode())

    assert (told["error"]["code"], told["error"]["details"]["field"]) == ("OUT_OF_RANGE", "meta")
    assert told["meta"] == {"request_id": "r" * 256}


@pytest.mark.seed("A15")
async def test_the_wait_for_the_first_piece_is_measured(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    await all_pieces(InferWay(nc, protobufs), "say a b")

    (family,) = [one for one in metrics_of(mesh.transport).families() if "first_piece" in one.name]
    counts = [sample for sample in family.samples if sample.suffix == "_count" and sample.value]
    assert [(sample.labels["door"], sample.value) for sample in counts] == [("infer", 1.0)]
