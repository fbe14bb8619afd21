"""The service over a real broker: what clients of any language get."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.errors import (
    InvalidMessageError,
    InvalidNameError,
    RevisionConflictError,
    StoreBusyError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)
from agentmesh.memory import Memory, MemoryRequest
from agentmesh.memory_store import MemoryService, Store, service
from agentmesh.messages import Message
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport, TransportOptions
from tests.core.hostile import TOKENS
from tests.harness import Server, TcpProxy
from tests.harness.fixtures import SpawnProcess


@pytest.fixture
async def transport(server: Server) -> AsyncIterator[Transport]:
    async with await Transport.connect(TransportOptions(url=server.url)) as connected:
        yield connected


@pytest.fixture
async def memory_service(transport: Transport, tmp_path: Path) -> AsyncIterator[MemoryService]:
    """For every tenant of the account, in this process."""
    running = MemoryService(transport, tmp_path / "memory.db")
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def memory(transport: Transport, memory_service: MemoryService) -> Memory:
    return Memory(transport, Subjects("a"), "n")


async def call(transport: Transport, subject: str, body: bytes) -> Any:
    """What a client without our library sends and gets."""
    return msgspec.json.decode((await transport.request(subject, body, timeout=2.0)).data)


class Finding(Message):
    path: str
    line: int


async def test_an_agent_puts_gets_lists_and_deletes(memory: Memory) -> None:
    revision = await memory.put("runs/1", {"found": 3}, ttl=3600.0, kind="episodic", tags=["nightly"], importance=0.5)
    await memory.put("runs/2", None)

    record = await memory.get("runs/1")
    assert record is not None
    assert (record.value, record.revision, record.tags, record.kind) == (
        {"found": 3},
        revision,
        ("nightly",),
        "episodic",
    )
    assert record.expires_at is not None
    assert (record.expires_at - record.updated_at).total_seconds() == pytest.approx(3600)
    assert [one.key for one in (await memory.list("runs/")).records] == ["runs/1", "runs/2"]
    assert [one.value for one in (await memory.list("runs/", values=False)).records] == [None, None]
    assert await memory.delete("runs/1")
    assert not await memory.delete("runs/1")
    assert await memory.get("runs/1") is None


async def test_models_are_stored_and_read_back_as_such(memory: Memory) -> None:
    await memory.put("one", Finding(path="a.py", line=3))
    await memory.append("all", Finding(path="b.py", line=4))

    record, everything = await memory.get("one"), await memory.get("all")

    assert record is not None
    assert everything is not None
    assert record.read_as(Finding) == Finding(path="a.py", line=3)
    assert everything.read_as(list[Finding]) == [Finding(path="b.py", line=4)]
    with pytest.raises(InvalidMessageError):
        everything.read_as(Finding)


async def test_a_list_grows_by_append_and_is_found_by_its_words(memory: Memory) -> None:
    assert (await memory.append("log", "reviewed a.py")).length == 1
    assert (await memory.append("log", "reviewed b.py")).length == 2

    (found,) = await memory.search("review")

    assert found.value == ["reviewed a.py", "reviewed b.py"]


async def test_all_records_of_a_prefix_are_scanned_over_many_pages(memory: Memory) -> None:
    await asyncio.gather(*(memory.put(f"p/{number:03}", number) for number in range(250)))

    assert [record.value async for record in memory.scan("p/")] == list(range(250))


async def test_namespaces_are_apart_and_can_be_listed_and_forgotten(memory: Memory) -> None:
    other = memory.namespace("other")
    await memory.put("k", 1)
    await other.put("k", 2)

    assert [(one.namespace, one.records) for one in await memory.namespaces()] == [("n", 1), ("other", 1)]
    assert await other.forget() == 1
    assert await memory.get("k") is not None
    assert [one.namespace for one in await memory.namespaces()] == ["n"]


async def test_refusals_arrive_as_the_errors_they_are(memory: Memory) -> None:
    revision = await memory.put("k", 1)

    with pytest.raises(RevisionConflictError) as conflict:
        await memory.put("k", 2, expect=0)
    with pytest.raises(StoreLimitError):
        await memory.put("k" * 1000, 1)
    with pytest.raises(StoreLimitError):
        await memory.put("k", "x" * 300_000)
    with pytest.raises(StoreError, match="is not a list"):
        await memory.append("k", 1)
    with pytest.raises(InvalidMessageError, match="ttl"):
        await memory.put("k", 1, ttl=-1.0)
    with pytest.raises(InvalidMessageError, match="cannot be stored as JSON"):
        await memory.put("k", object())

    assert (conflict.value.key, conflict.value.actual) == ("k", revision)


async def test_exactly_one_of_50_clients_wins_a_compare_and_set(memory: Memory) -> None:
    outcomes = await asyncio.gather(*(memory.put("k", n, expect=0) for n in range(50)), return_exceptions=True)

    assert sum(isinstance(outcome, RevisionConflictError) for outcome in outcomes) == 49


@pytest.mark.parametrize("name", TOKENS)
async def test_g1_a_hostile_namespace_is_refused_before_anything_is_sent(memory: Memory, name: str) -> None:
    with pytest.raises(InvalidNameError):
        memory.namespace(name)


async def test_g8_the_tenant_comes_from_the_subject_and_never_from_the_body(
    memory: Memory, transport: Transport
) -> None:
    await memory.put("secret", "treasure")

    answer = await call(transport, "ai.agent.memory.b.get", b'{"namespace": "n", "key": "secret", "tenant": "a"}')
    assert answer["error"]["type"] == "InvalidMessageError"
    assert await call(transport, "ai.agent.memory.b.get", b'{"namespace": "n", "key": "secret"}') == {"ok": None}
    other = Memory(transport, Subjects("b"), "n")
    assert await other.search("treasure' OR 1=1") == []
    assert (await other.list()).records == []
    assert await other.namespaces() == []
    assert not await other.delete("secret")
    assert await other.forget() == 0
    assert await memory.get("secret") is not None


async def test_a_service_of_some_tenants_answers_no_others(transport: Transport, tmp_path: Path) -> None:
    running = MemoryService(transport, tmp_path / "memory.db", tenants=["a", "b"])
    await running.start()
    try:
        await Memory(transport, Subjects("a"), "n").put("k", 1)
        await Memory(transport, Subjects("b"), "n").put("k", 1)
        with pytest.raises(StoreUnavailableError):
            await Memory(transport, Subjects("c"), "n", timeout=0.2).put("k", 1)
    finally:
        await running.stop()


async def test_any_client_may_use_the_bare_subject_with_the_operation_in_the_body(
    memory: Memory, transport: Transport
) -> None:
    body = b'{"operation": "put", "namespace": "n", "key": "k", "value": {"x": 1}, "tags": ["t"]}'

    assert await call(transport, "ai.agent.memory.a", body) == {"ok": {"revision": 1}}

    answer = await call(transport, "ai.agent.memory.a", b'{"operation": "get", "namespace": "n", "key": "k"}')
    assert answer["ok"]["value"] == {"x": 1}
    assert answer["ok"]["updated_at"].endswith("Z")


@pytest.mark.parametrize(
    ("operation", "body", "problem"),
    [
        (".put", b"not json", "not a memory request"),
        (".put", b"[1]", "not a memory request"),
        (".put", b"\xff\xfe", "not a memory request"),
        (".put", b"[" * 100_000, "not a memory request"),
        (".put", b'{"namespace": "n", "key": "k", "vlaue": 1}', "vlaue"),
        (".put", b'{"namespace": "n", "key": "k"}', "value is missing"),
        (".put", b'{"namespace": "n", "key": "k", "value": 1e999}', "not JSON"),
        (".put", b'{"namespace": "n", "key": 5, "value": 1}', "key"),
        (".put", b'{"namespace": "n", "key": "k", "value": 1, "kind": "odd"}', "kind"),
        (".put", b'{"namespace": "n.m", "key": "k", "value": 1}', "namespace"),
        (".put", b'{"operation": "forget", "namespace": "n"}', "subject of 'put'"),
        (".get", b"", "namespace"),
        (".drop", b"{}", "no memory operation 'drop'"),
        ("", b"{}", "no memory operation ''"),
        ("", b'{"operation": "drop"}', "there are append, delete"),
    ],
)
async def test_a_request_that_makes_no_sense_is_answered_with_the_reason(
    memory: Memory, transport: Transport, operation: str, body: bytes, problem: str
) -> None:
    answer = await call(transport, f"ai.agent.memory.a{operation}", body)

    assert problem in answer["error"]["message"]
    assert await memory.put("k", 1) == 1


async def test_a_publish_without_a_reply_subject_is_written_too(memory: Memory, transport: Transport) -> None:
    await transport.publish("ai.agent.memory.a.put", b'{"namespace": "n", "key": "k", "value": "quiet"}')
    await transport.publish("ai.agent.memory.a.put", b"nonsense")

    await memory.put("after", 1)

    record = await memory.get("k")
    assert record is not None
    assert record.value == "quiet"


async def test_a_write_repeated_with_its_id_is_done_once(memory: Memory, transport: Transport) -> None:
    body = b'{"namespace": "n", "key": "log", "value": "x", "op_id": "mine"}'

    answers = [await call(transport, "ai.agent.memory.a.append", body) for _ in range(3)]

    assert answers == [{"ok": {"revision": 1, "length": 1}}] * 3


async def test_a_write_whose_answer_was_lost_is_repeated_and_done_once(
    memory_service: MemoryService, proxy: TcpProxy
) -> None:
    lost = iter([True])
    async with await Transport.connect(TransportOptions(url=f"nats://127.0.0.1:{proxy.port}")) as through:
        proxy.drop = lambda frame: b'"ok"' in frame and next(lost, False)
        written = await Memory(through, Subjects("a"), "n").append("log", "x")

    assert proxy.dropped == 1
    assert written.length == 1


async def test_overload_is_told_at_once_and_waited_out_by_the_client(
    memory: Memory, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_UNANSWERED", 20)
    body = b'{"namespace": "n", "key": "k", "value": 1}'

    answers = await asyncio.gather(*(call(transport, "ai.agent.memory.a.put", body) for _ in range(200)))

    refused = [answer["error"]["type"] for answer in answers if "error" in answer]
    assert set(refused) == {"StoreBusyError"}
    assert len(refused) < 200
    assert sorted(await asyncio.gather(*(memory.put(str(number), 1) for number in range(100))))[-1] >= 100


async def test_a_client_that_cannot_wait_longer_learns_that_the_service_is_overloaded(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_UNANSWERED", 0)
    memory.timeout = 0.2

    with pytest.raises(StoreBusyError, match="try again"):
        await memory.put("k", 1)


async def test_without_a_service_the_error_says_what_starts_one(transport: Transport) -> None:
    with pytest.raises(StoreUnavailableError, match="agentmesh up"):
        await Memory(transport, Subjects("a"), "n", timeout=0.1).get("k")


async def test_a_large_page_fits_into_one_message(memory: Memory) -> None:
    await asyncio.gather(*(memory.put(str(number), '"' * 100_000) for number in range(6)))

    assert [record.key async for record in memory.scan()] == list("012345")


async def test_the_service_is_listed_with_its_counters(memory: Memory, transport: Transport) -> None:
    await memory.put("k", 1)
    with pytest.raises(RevisionConflictError):
        await memory.put("k", 1, expect=0)

    (stats,) = await transport.request_many("$SRV.STATS.memory", b"", timeout=2.0, stall=0.2)

    endpoints = {one["name"]: one for one in msgspec.json.decode(stats.data)["endpoints"]}
    assert endpoints["put"]["subject"] == "ai.agent.memory.*.put"
    assert (endpoints["put"]["num_requests"], endpoints["put"]["num_errors"]) == (2, 1)
    assert "revision 1" in endpoints["put"]["last_error"]


async def test_records_survive_a_restart_of_the_service_and_of_the_broker(
    transport: Transport, server: Server, tmp_path: Path
) -> None:
    memory = Memory(transport, Subjects("a"), "n")
    first = MemoryService(transport, tmp_path / "memory.db")
    await first.start()
    revision = await memory.put("k", "kept")
    await first.stop()
    await first.stop()

    second = MemoryService(transport, tmp_path / "memory.db")
    await second.start()
    await server.restart()
    record = await memory.get("k")
    await second.stop()

    assert record is not None
    assert (record.value, record.revision) == ("kept", revision)


async def test_a_call_in_a_restart_waits_for_the_service(transport: Transport, tmp_path: Path) -> None:
    memory = Memory(transport, Subjects("a"), "n")
    first = MemoryService(transport, tmp_path / "memory.db")
    await first.start()
    await memory.put("k", 1)
    await first.stop()
    waiting = asyncio.ensure_future(memory.put("k", 2))
    await asyncio.sleep(0)

    second = MemoryService(transport, tmp_path / "memory.db")
    await second.start()

    assert await waiting == 2
    await second.stop()


async def test_stopping_answers_what_came_in(transport: Transport, server: Server, tmp_path: Path) -> None:
    async with await Transport.connect(TransportOptions(url=server.url)) as own:
        running = MemoryService(own, tmp_path / "memory.db")
        await running.start()
        memory = Memory(transport, Subjects("a"), "n")
        await memory.put("k", 0)
        writes = [asyncio.ensure_future(memory.put(str(number), number)) for number in range(500)]
        await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)

        await running.stop()
        again = MemoryService(own, tmp_path / "memory.db")
        await again.start()

        assert len(set(await asyncio.gather(*writes))) == 500
        await again.stop()


async def test_stopping_without_a_broker_does_not_hang_and_keeps_what_came_in(
    transport: Transport, server: Server, tmp_path: Path
) -> None:
    running = MemoryService(transport, tmp_path / "memory.db")
    await running.start()
    memory = Memory(transport, Subjects("a"), "n", timeout=1.0)
    writes = [asyncio.ensure_future(memory.put(str(number), number)) for number in range(500)]
    await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)

    server.kill9()
    async with asyncio.timeout(3):
        await running.stop()

    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    async with Store(tmp_path / "memory.db") as store:
        for key, outcome in enumerate(outcomes):
            if isinstance(outcome, int):
                record = await store.get("a", "n", str(key))
                assert record is not None
                assert record.revision == outcome
            else:
                assert isinstance(outcome, StoreUnavailableError)


# ---------------------------------------------------------------- as a process


async def start_process(spawn_process: SpawnProcess, server: Server, path: Path) -> Any:
    process = await spawn_process("agentmesh.memory_store", "--nats", server.url, "--path", str(path))
    await process.line_matching("memory ready")
    return process


async def test_j4_every_write_acknowledged_before_a_kill_is_there(
    server: Server, transport: Transport, tmp_path: Path, spawn_process: SpawnProcess
) -> None:
    path = tmp_path / "memory.db"
    process = await start_process(spawn_process, server, path)
    acknowledged: dict[str, int] = {}

    async def write(writer: int) -> None:
        memory = Memory(transport, Subjects("a"), f"n{writer}", timeout=0.5)
        for number in range(50):
            acknowledged[f"{writer}/{number}"] = await memory.put(str(number), "x" * 500)
            if len(acknowledged) == 400:
                process.kill9()

    outcomes = await asyncio.gather(*(write(writer) for writer in range(20)), return_exceptions=True)
    await process.wait()

    assert 400 <= len(acknowledged) < 1000
    assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes if outcome is not None)
    async with Store(path) as store:
        assert await store.integrity_check() == ()
        for name, revision in acknowledged.items():
            writer, _, number = name.partition("/")
            record = await store.get("a", f"n{writer}", number)
            assert record is not None, f"{name} was acknowledged and is gone"
            assert record.revision == revision


async def test_writes_go_on_when_a_killed_service_is_started_again(
    server: Server, transport: Transport, tmp_path: Path, spawn_process: SpawnProcess
) -> None:
    process = await start_process(spawn_process, server, tmp_path / "memory.db")
    memory = Memory(transport, Subjects("a"), "n")
    await memory.append("log", -1)

    async def write() -> None:
        for number in range(300):
            await memory.append("log", number)

    writing = asyncio.ensure_future(write())
    await memory.put("k", 1)
    process.kill9()
    await process.wait()
    await start_process(spawn_process, server, tmp_path / "memory.db")
    await writing

    record = await memory.get("log")
    assert record is not None
    assert record.value == list(range(-1, 300))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_in_order(
    server: Server, transport: Transport, tmp_path: Path, spawn_process: SpawnProcess, number: signal.Signals
) -> None:
    process = await start_process(spawn_process, server, tmp_path / "memory.db")
    await Memory(transport, Subjects("a"), "n").put("k", 1)

    process.signal(number)

    assert await process.wait() == 0
    assert len(process.lines) == 1
    assert not (tmp_path / "memory.db-wal").exists()


async def test_a_second_process_on_the_same_file_says_who_has_it(
    server: Server, tmp_path: Path, spawn_process: SpawnProcess
) -> None:
    first = await start_process(spawn_process, server, tmp_path / "memory.db")

    second = await spawn_process("agentmesh.memory_store", "--nats", server.url, "--path", str(tmp_path / "memory.db"))

    assert await second.wait() == 1
    assert f"in use by another memory service (pid {first.pid})" in second.output


async def test_a_process_without_a_broker_says_so(tmp_path: Path, spawn_process: SpawnProcess) -> None:
    process = await spawn_process(
        "agentmesh.memory_store", "--nats", "nats://127.0.0.1:1", "--path", str(tmp_path / "memory.db")
    )

    assert await process.wait(30) == 1
    assert "cannot reach the broker" in process.output


def test_a_request_leaves_out_what_it_does_not_say() -> None:
    assert msgspec.json.encode(MemoryRequest(namespace="n", key="k")) == b'{"namespace":"n","key":"k"}'
