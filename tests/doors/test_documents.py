"""Requests as documents: nothing of them is lost between protobuf, JSON and our own types, and no bytes are a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmesh.agents.llm import LLMRequest
from agentmesh.agents.llm.doors import inference, requests
from agentmesh.agents.llm.doors.documents import RequestDocument
from agentmesh.agents.llm.doors.inquiry import Inquiry, explained
from agentmesh.errors import AgentMeshError, ModelError
from agentmesh.proto import LLMInferenceRequest
from agentmesh.proto.plain import decode, encode

NUMBERS = ("temperature", "top_p", "max_tokens", "top_k", "presence_penalty", "frequency_penalty")

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
doubles = st.floats(allow_nan=False, allow_infinity=False, width=64)
uints = st.integers(0, 2**32 - 1)
moments = st.datetimes().map(lambda moment: f"{moment.isoformat()}Z")
metas = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("request_id", "trace_id", "client_id", "user_id", "tenant_id", "idempotency_key"), texts),
        "timestamp": moments,
        "labels": st.dictionaries(texts, texts, max_size=3),
    },
)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "temperature": doubles,
        "top_p": doubles,
        "max_tokens": uints,
        "top_k": uints,
        "presence_penalty": doubles,
        "frequency_penalty": doubles,
        "stop": st.lists(texts, max_size=3),
        "stream": st.booleans(),
    },
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["SYSTEM", "USER", "ASSISTANT", "TOOL"])}, optional={"content": texts, "name": texts}
    ),
    min_size=1,
    max_size=3,
)
plain = st.recursive(
    st.none() | st.booleans() | doubles | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
wishes = st.fixed_dictionaries(
    {},
    optional={
        "meta": metas,
        "model_id": texts,
        "params": parameters,
        "context": st.dictionaries(texts, plain, max_size=3),
    },
)
inputs = st.one_of(
    texts.filter(lambda text: bool(text.strip())).map(lambda text: {"prompt": text}),
    messages.map(lambda chat: {"chat_messages": {"messages": chat}}),
)


@pytest.mark.seed("A6")
@QUICK
@given(wishes, inputs)
def test_every_optional_field_survives_protobuf_and_json(wish: dict[str, Any], asked: dict[str, Any]) -> None:
    document = {**wish, **asked}

    message = json_format.ParseDict(document, LLMInferenceRequest())
    again = LLMInferenceRequest.FromString(message.SerializeToString())
    ours = RequestDocument.model_validate(decode("LLMInferenceRequest", again.SerializeToString()))
    back = LLMInferenceRequest.FromString(encode("LLMInferenceRequest", ours.plain()))
    through_json = LLMInferenceRequest.FromString(
        encode("LLMInferenceRequest", RequestDocument.model_validate(json.loads(json.dumps(document))).plain())
    )

    assert back == message
    assert through_json == message
    for name in (*NUMBERS, "stream"):
        said = document.get("params", {}).get(name)
        assert getattr(ours.params, name) == said
        assert again.params.HasField(name) == (said is not None)


@pytest.mark.seed("A6")
def test_zero_is_something_else_than_nothing_at_every_parameter() -> None:
    unsaid = _understood(inference.PROTOBUF_FORM, LLMInferenceRequest(prompt="a").SerializeToString())

    for name in NUMBERS:
        zero = LLMInferenceRequest(prompt="a")
        getattr(zero.params, name).value = 0
        said = _understood(inference.PROTOBUF_FORM, zero.SerializeToString())

        assert getattr(said.request.params, name) == 0
        assert getattr(unsaid.request.params, name) is None


@pytest.mark.seed("A5")
def test_all_eight_fields_of_meta_are_in_the_request_and_come_back() -> None:
    request = LLMInferenceRequest(prompt="a")
    fields = {"request_id": "r", "trace_id": "t", "client_id": "c", "user_id": "u", "tenant_id": "x"}
    rest = {"timestamp": "2026-11-28T14:00:00.123456789Z", "idempotency_key": "k", "labels": {"a": "b"}}
    json_format.ParseDict({**fields, **rest}, request.meta)

    inquiry = _understood(inference.PROTOBUF_FORM, request.SerializeToString())

    meta = inquiry.request.meta
    assert meta.model_dump(exclude={"timestamp"}) == {**fields, "idempotency_key": "k", "labels": {"a": "b"}}
    assert meta.timestamp is not None
    assert meta.timestamp.isoformat() == "2026-11-28T14:00:00.123456+00:00"
    assert inquiry.key == "k"
    echoed = json_format.ParseDict(dict(inquiry.meta), type(request.meta)())
    assert echoed == request.meta  # to the nanosecond


@pytest.mark.seed("A5")
def test_the_trace_of_the_caller_is_the_trace_of_the_request() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}

    joined = _understood(inference.JSON_FORM, b'{"prompt": "a"}', headers)
    own = _understood(inference.JSON_FORM, b'{"prompt": "a", "meta": {"trace_id": "mine"}}', headers)

    assert joined.request.meta.trace_id == trace
    assert own.request.meta.trace_id == "mine"


@pytest.mark.seed("A23")
def test_the_names_of_the_json_mapping_are_understood_and_null_is_nothing() -> None:
    chat = b'"chatMessages": {"messages": [{"role": 2, "content": "Hi"}]}'
    body = b'{"modelId": "m", ' + chat + b', "params": {"maxTokens": "5", "topP": null}}'

    inquiry = _understood(inference.JSON_FORM, body)

    assert inquiry.request.model == "m"
    assert [(one.role, one.content) for one in inquiry.request.messages or []] == [("user", "Hi")]
    assert (inquiry.request.params.max_tokens, inquiry.request.params.top_p) == (5, None)


@pytest.mark.seed("A10", "A11")
@QUICK
@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_an_error(data: bytes) -> None:
    for form in (inference.PROTOBUF_FORM, inference.JSON_FORM, inference.MSGPACK_FORM):
        _understood_or_refused(form, data)
    for dialect in (requests.Requests("t"), requests.PackedRequests("t")):
        _understood_or_refused(dialect, data)


@pytest.mark.seed("A11")
@QUICK
@given(st.data())
def test_no_damage_to_a_good_request_is_more_than_an_error(data: st.DataObject) -> None:
    document = {**data.draw(wishes), **data.draw(inputs)}
    good = json_format.ParseDict(document, LLMInferenceRequest()).SerializeToString()
    at = data.draw(st.integers(0, max(0, len(good) - 1)))
    damaged = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 4)) :]

    _understood_or_refused(inference.PROTOBUF_FORM, damaged)


@pytest.mark.seed("A11", "B34")
@QUICK
@given(st.dictionaries(st.sampled_from(sorted(requests.RequestBody.model_fields)) | texts, plain, max_size=5))
def test_no_json_is_more_than_an_error(document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()

    _understood_or_refused(requests.Requests("t"), body)
    _understood_or_refused(inference.JSON_FORM, body)


def _understood(dialect: Any, data: bytes, headers: dict[str, str] | None = None) -> Inquiry:
    document = dialect.document(data, headers)
    inquiry: Inquiry = dialect.inquiry(document, dialect.meta(document, headers), headers)
    return inquiry


def _understood_or_refused(dialect: Any, data: bytes) -> None:
    """Either a request that asks for something, or an error that can be told."""
    problem: AgentMeshError | None = None
    try:
        inquiry = _understood(dialect, data)
    except AgentMeshError as error:
        problem = explained(error)
    if problem is None:
        assert isinstance(inquiry.request, LLMRequest)
        assert inquiry.request.prompt or inquiry.request.messages
    else:
        assert isinstance(problem, ModelError)
        assert problem.code in ("INVALID_ARGUMENT", "PERMISSION_DENIED", "OUT_OF_RANGE")
        assert problem.message
