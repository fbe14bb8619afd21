"""The log of calls: what it holds, that nothing is in it twice, and how it is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta

import msgspec
import pytest

from agentmesh import Mesh
from agentmesh.agents.llm import LLMRequest, Meta
from agentmesh.ids import new_id
from agentmesh.llmops import Operation, Tokens
from agentmesh.subjects import Subjects, may_overlap
from agentmesh.tasks.layout import ALERTS, CACHE_LOG, OPERATIONS, SPECS
from tests.llm.conftest import Ask, operations

Start = Callable[..., Awaitable[None]]

PRICE = {"price": {"prompt": 1000.0, "completion": 2000.0}}


@pytest.mark.seed("B40")
async def test_every_call_is_logged_with_what_it_used(gateway: Start, mesh: Mesh) -> None:
    await gateway({"small": PRICE})
    request = LLMRequest(prompt="Say one two three", meta=Meta(user_id="ann"))

    parts = [part async for part in mesh.stream("llm", request)]

    response = parts[-1].response()
    (kept,) = [one async for one in mesh.llmops.operations()]
    document = msgspec.to_builtins(kept)
    assert {name: document[name] for name in ("operation_type", "model", "tokens", "cost", "status", "tenant_id")} == {
        "operation_type": "generate",
        "model": "small",
        "tokens": {"prompt": 7, "completion": 3, "total": 10},
        "cost": pytest.approx(0.013),
        "status": "ok",
        "tenant_id": mesh.subjects.tenant,
    }
    assert (kept.operation_id, kept.request_id, kept.user_id) == (response.generation_id, request.request_id, "ann")
    assert (kept.backend, kept.cached, kept.schema_version, kept.latency_ms > 0) == ("offline", False, "1.0", True)
    assert abs(kept.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
    assert response.cost == pytest.approx(0.013)


@pytest.mark.seed("B40")
async def test_an_operation_is_kept_once(mesh: Mesh) -> None:
    operation = Operation(operation_id=new_id(), model="small", tokens=Tokens(1, 2, 3))

    for _ in range(3):
        await mesh.llmops.log(operation)

    assert [one async for one in mesh.llmops.operations()] == [operation]


@pytest.mark.seed("B40", "B10")
async def test_operations_are_asked_for_by_tenant_model_user_and_day(mesh: Mesh) -> None:
    today = datetime(2026, 3, 2, 12, tzinfo=UTC)
    for number, (model, user, when, cost) in enumerate(
        [
            ("small", "ann", today - timedelta(days=1), 0.5),
            ("small", "ann", today, 0.25),
            ("large", "bob", today, 2.0),
            ("small", "bob", today + timedelta(seconds=1), 0.125),
        ]
    ):
        operation = Operation(
            operation_id=f"op{number}", model=model, user_id=user, timestamp=when, cost=cost, tokens=Tokens(3, 4, 7)
        )
        await mesh.llmops.log(operation)

    async def found(**wanted: object) -> list[str]:
        return [one.operation_id async for one in mesh.llmops.operations(**wanted)]  # type: ignore[arg-type]

    assert await found() == ["op0", "op1", "op2", "op3"]
    assert await found(model="small") == ["op0", "op1", "op3"]
    assert await found(user_id="bob") == ["op2", "op3"]
    costs = [(cost.day, cost.model, cost.calls, cost.prompt_tokens, cost.cost) for cost in await mesh.llmops.cost()]
    assert costs == [
        (date(2026, 3, 1), "small", 1, 3, 0.5),
        (date(2026, 3, 2), "large", 1, 3, 2.0),
        (date(2026, 3, 2), "small", 2, 6, 0.375),
    ]


async def test_a_day_is_found_without_reading_what_was_before(mesh: Mesh) -> None:
    day = datetime.now(UTC).date()
    for number in range(3):
        await mesh.llmops.log(Operation(operation_id=f"now{number}"))

    assert len([one async for one in mesh.llmops.operations(day=day)]) == 3
    assert [one async for one in mesh.llmops.operations(day=day + timedelta(days=2))] == []
    assert [one async for one in mesh.llmops.operations(day=day - timedelta(days=2))] == []


async def test_other_tenants_do_not_see_it(mesh: Mesh) -> None:
    await mesh.llmops.log(Operation(operation_id=new_id()))
    other = type(mesh.llmops)(mesh.transport, Subjects(f"other-{new_id()}"))

    assert [one async for one in other.operations()] == []


@pytest.mark.seed("B40")
async def test_what_a_foreign_service_logs_by_the_seeds_form_is_read_and_garbage_is_left_out(mesh: Mesh) -> None:
    await mesh.llmops.log(Operation(operation_id="ours"))
    subject = f"ai.llmops.operations.{mesh.subjects.tenant}"
    await mesh.transport.publish_durable(subject, b"\x00 no JSON")
    await mesh.transport.publish_durable(
        subject,
        b'{"operation_id": "theirs", "operation_type": "generate", "model": "gpt", "tokens": {"prompt": 1, '
        b'"completion": 2, "total": 3}, "cost": 0.1, "latency_ms": 12, "status": "success", "tenant_id": "t", '
        b'"timestamp": "2026-01-01T00:00:00", "schema_version": "1.0"}',
    )

    assert [one.operation_id async for one in mesh.llmops.operations()] == ["ours", "theirs"]
    assert [one.model for one in await mesh.llmops.cost(model="gpt")] == ["gpt"]


async def test_answers_and_errors_are_both_logged(gateway: Start, ask: Ask, mesh: Mesh) -> None:
    await gateway({"small": {**PRICE, "budget": {"requests_per_minute": 1}}})

    answers = [await ask("Say yes"), await ask("Say no")]

    assert [one.error is None for one in answers] == [True, False]
    (kept,) = await operations(mesh, 1)  # a refused request is no call of a model
    assert kept.status == "ok"


def test_no_stream_captures_a_subject_that_is_asked() -> None:
    subjects = Subjects("t")
    asked = [
        subjects.infer(),
        subjects.tenant_infer(),
        subjects.gateway_requests(),
        subjects.gateway_responses(),
        subjects.rate_limits(),
        subjects.cost_alerts(),
        subjects.mailbox("llm"),
    ]
    captured = [subject for spec in (*SPECS, OPERATIONS, ALERTS, CACHE_LOG) for subject in spec.subjects]

    assert [(one, other) for one in asked for other in captured if may_overlap(one, other)] == []
    names = [subjects.operations(), subjects.cost_alert("x"), subjects.cache_invalidations()]
    for spec, subject in zip((OPERATIONS, ALERTS, CACHE_LOG), names, strict=True):
        assert any(may_overlap(subject, other) for other in spec.subjects)


def test_a_scheme_of_ones_own_names_them_too() -> None:
    class Ours(Subjects):
        def name(self, component: str, operation: str, tenant: str) -> str:
            return f"custom.{component}.{operation}.{tenant}"

    ours = Ours("t")
    for spec, subject in ((OPERATIONS, ours.operations()), (CACHE_LOG, ours.cache_invalidations())):
        (captured,) = map(ours.renamed, spec.subjects)
        assert may_overlap(subject, captured)
