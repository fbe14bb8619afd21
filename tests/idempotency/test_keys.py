"""Idempotency keys of requests and tasks: done once, whoever asks, however often, in whatever process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from agentmesh import AgentRef, Mesh, Prompt, codec, connect, keyed
from agentmesh.errors import (
    DefinitionError,
    IdempotencyConflictError,
    InvalidMessageError,
    KeyInUseError,
    RemoteError,
)
from agentmesh.ids import new_id, now
from agentmesh.tasks.keys import Keys
from tests.harness import Process, Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.idempotency.node import Pay, Teller, Transfer, begun

Spawn = Callable[..., Awaitable[AgentRef]]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "book"


@pytest.fixture
async def two_nodes(mesh: Mesh, spawn_process: SpawnProcess, book: Path) -> list[Process]:
    nodes = [await spawn_process("tests.idempotency.node", mesh.url, mesh.subjects.tenant, str(book)) for _ in range(2)]
    for node in nodes:
        await node.line_matching("ready")
    return nodes


@pytest.fixture
async def other(mesh: Mesh) -> AsyncIterator[Mesh]:
    """Somebody else, on a connection of their own."""
    async with connect(mesh.url, tenant=mesh.subjects.tenant) as connected:
        yield connected


@pytest.mark.usefixtures("two_nodes")
async def test_t7_twenty_asks_with_one_key_over_two_processes_are_one_run(mesh: Mesh, other: Mesh, book: Path) -> None:
    asking = [client.ask("teller", Pay(amount=5), idempotency_key="order-7") for client in (mesh, other) * 10]

    answers = await asyncio.gather(*asking)

    assert len(set(answers)) == 1
    assert begun(book) == 1
    assert await other.ask("teller", Pay(amount=5), idempotency_key="order-7") == answers[0]
    assert await mesh.ask("teller", Pay(amount=5), idempotency_key="order-8") != ""
    assert begun(book) == 2


async def test_a_kept_answer_needs_no_agent(mesh: Mesh, spawn: Spawn, book: Path) -> None:
    await spawn(Teller, str(book), 0.0)
    answer = await mesh.ask("teller", Pay(amount=5), idempotency_key="k")

    await mesh.stop("teller")

    assert await mesh.ask("teller", Pay(amount=5), idempotency_key="k") == answer
    assert await mesh.ask_raw("teller", "Pay", {"how": "", "amount": 5}, idempotency_key="k") == answer


async def test_a_key_for_another_request_is_refused(mesh: Mesh, spawn: Spawn, book: Path) -> None:
    await spawn(Teller, str(book), 0.0)
    await mesh.ask("teller", Pay(amount=5), idempotency_key="k")

    with pytest.raises(IdempotencyConflictError, match="used for Pay of teller with other content"):
        await mesh.ask("teller", Pay(amount=6), idempotency_key="k")
    with pytest.raises(IdempotencyConflictError, match="used for Pay of teller; use another one for Prompt of teller"):
        await mesh.ask("teller", Prompt(text="x"), idempotency_key="k")
    assert begun(book) == 1


async def test_an_error_is_an_outcome_and_retry_gives_the_key_back(mesh: Mesh, spawn: Spawn, book: Path) -> None:
    await spawn(Teller, str(book), 0.0)

    for _ in range(2):
        with pytest.raises(RemoteError, match="no money"):
            await mesh.ask("teller", Pay(amount=5, how="fail"), idempotency_key="bad")
    assert begun(book) == 1

    await spawn(Teller, str(book), 0.0)  # a new one, which has tried nothing
    with pytest.raises(RemoteError, match="nothing was done"):
        await mesh.ask("teller", Pay(amount=5, how="later"), idempotency_key="later")
    assert "try 2" in await mesh.ask("teller", Pay(amount=5, how="later"), idempotency_key="later")


async def test_who_gives_up_does_not_take_the_answer_from_the_others(mesh: Mesh, spawn: Spawn, book: Path) -> None:
    await spawn(Teller, str(book), 0.5)
    first = asyncio.create_task(mesh.ask("teller", Pay(amount=5), idempotency_key="k"))
    await eventually(lambda: begun(book) == 1, what="the handler runs")
    second = asyncio.create_task(mesh.ask("teller", Pay(amount=5), idempotency_key="k"))

    first.cancel()

    assert "try 1" in await second
    assert begun(book) == 1


@pytest.mark.slow
async def test_a_claim_whose_owner_was_killed_is_taken_over_after_its_deadline(
    mesh: Mesh, spawn: Spawn, spawn_process: SpawnProcess, book: Path
) -> None:
    node = await spawn_process("tests.idempotency.node", mesh.url, mesh.subjects.tenant, str(book), "30")
    await node.line_matching("ready")
    asking = asyncio.create_task(mesh.ask("teller", Pay(amount=5), idempotency_key="k", timeout=1.5))
    await eventually(lambda: begun(book) == 1, what="the handler runs")
    deadline = time.monotonic() + 1.5
    node.kill9()
    await node.wait()
    await spawn(Teller, str(book), 0.0)

    answer = await mesh.ask("teller", Pay(amount=5), idempotency_key="k", timeout=20)

    assert "paid 5" in answer
    assert time.monotonic() > deadline
    assert begun(book) == 2
    with pytest.raises(Exception, match="no answer"):
        await asking


@pytest.mark.usefixtures("two_nodes")
async def test_t8_twenty_submits_with_one_key_are_one_task(mesh: Mesh, other: Mesh, book: Path) -> None:
    submitting = [client.submit(Transfer(amount=5), to="teller", idempotency_key="t") for client in (mesh, other) * 10]

    jobs = await asyncio.gather(*submitting)

    assert len({job.id for job in jobs}) == 1
    assert {await job.result(timeout=10) for job in jobs} == {"sent 5"}
    late = await other.submit(Transfer(amount=5), idempotency_key="t")
    assert await late.result(timeout=10) == "sent 5"
    assert begun(book) == 1


async def test_a_key_for_another_task_is_refused(mesh: Mesh) -> None:
    await mesh.submit(Transfer(amount=5), to="nobody", idempotency_key="t")

    with pytest.raises(IdempotencyConflictError, match="used for task Transfer with other content"):
        await mesh.submit(Transfer(amount=6), to="nobody", idempotency_key="t")


async def test_a_submit_that_died_half_way_is_completed_by_the_next_one(
    mesh: Mesh, other: Mesh, spawn: Spawn, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object) -> None:
        raise RuntimeError("killed here")

    await spawn(Teller, str(book), 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(mesh.tasks, "_accept", dies)
        with pytest.raises(RuntimeError):
            await mesh.submit(Transfer(amount=5), to="teller", idempotency_key="t")
    assert begun(book) == 0

    job = await other.submit(Transfer(amount=5), to="teller", idempotency_key="t")

    assert await job.result(timeout=10) == "sent 5"


async def test_keys_outlive_the_ids_that_the_broker_remembers(server: Server, book: Path) -> None:
    tenant = f"t-{new_id()}"
    async with connect(server.url, tenant=tenant) as mesh:
        await mesh.spawn(Teller, str(book), 0.0)
        first = await mesh.submit(Transfer(amount=5), to="teller", idempotency_key="t")
        answer = await mesh.ask("teller", Pay(amount=5), idempotency_key="k")
        assert await first.result(timeout=10) == "sent 5"

        server.kill9()
        await server.start()

        again = await mesh.submit(Transfer(amount=5), to="teller", idempotency_key="t")
        assert again.id == first.id
        assert await again.result(timeout=20) == "sent 5"
        assert await mesh.ask("teller", Pay(amount=5), idempotency_key="k") == answer
        assert begun(book) == 2


@pytest.mark.parametrize("key", ["", "x" * 257])
async def test_a_key_that_cannot_be_one_is_refused(mesh: Mesh, key: str) -> None:
    with pytest.raises(InvalidMessageError, match="1 to 256 characters"):
        await mesh.ask("teller", Pay(amount=5), idempotency_key=key)
    with pytest.raises(InvalidMessageError, match="1 to 256 characters"):
        await mesh.submit(Transfer(amount=5), idempotency_key=key)


async def test_a_task_has_an_id_or_a_key(mesh: Mesh) -> None:
    with pytest.raises(DefinitionError, match="not both"):
        await mesh.submit(Transfer(amount=5), task_id="a", idempotency_key="b")


async def test_an_owner_that_was_frozen_past_its_time_does_not_replace_the_outcome(mesh: Mesh) -> None:
    keys = Keys(mesh.transport, mesh.subjects, "ask")
    frozen, thawed = asyncio.Event(), asyncio.Event()

    async def freezes() -> bytes:
        frozen.set()
        await thawed.wait()
        return b'"late"'

    async def works() -> bytes:
        return b'"in time"'

    def request() -> codec.Envelope:
        content = msgspec.Raw(b"{}")
        return codec.Envelope(new_id(), "Pay", content=content, key="k", deadline=now() + timedelta(seconds=0.1))

    owner = asyncio.create_task(keyed.handle(keys, "teller", request(), freezes))
    await frozen.wait()

    async def take_over() -> bytes:
        with contextlib.suppress(KeyInUseError):
            return await keyed.handle(keys, "teller", request(), works)
        return b""

    assert await eventually(take_over, 5.0, what="the claim is taken over") == b'"in time"'
    thawed.set()
    with pytest.raises(KeyInUseError):
        await owner
    assert await keyed.handle(keys, "teller", request(), freezes) == b'"in time"'
