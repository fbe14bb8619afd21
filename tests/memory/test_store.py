"""What the store promises, on real files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh import lane
from agentmesh.errors import (
    InvalidMessageError,
    InvalidNameError,
    RevisionConflictError,
    StoreBusyError,
    StoreError,
    StoreLimitError,
    StoreLockedError,
    StoreVersionError,
)
from agentmesh.memory import MemoryRequest, to_raw
from agentmesh.memory_store import Store, schema
from agentmesh.memory_store.limits import MAX_REPLY, MAX_VALUE
from agentmesh.memory_store.schema import APPLICATION_ID, SCHEMA_VERSION
from tests.core.hostile import TOKENS
from tests.harness.fixtures import SpawnProcess
from tests.memory.conftest import Clock


def keys(found: Any) -> list[str]:
    return [record.key for record in found.records]


async def test_what_was_put_is_read_back_with_its_revision_and_outline(store: Store, clock: Clock) -> None:
    written = await store.put("a", "n", "k", {"x": [1, "ä"]}, kind="semantic", tags=("one", "two"), importance=0.5)

    record = await store.get("a", "n", "k")

    assert record is not None
    assert record.value == {"x": [1, "ä"]}
    assert record.revision == written.revision
    assert (record.kind, record.tags, record.importance) == ("semantic", ("one", "two"), 0.5)
    assert record.created_at.timestamp() == record.updated_at.timestamp() == clock.now
    assert record.created_at.tzinfo is not None
    assert await store.get("a", "n", "other") is None


async def test_a_put_over_a_record_keeps_when_it_was_made(store: Store, clock: Clock) -> None:
    first = await store.put("a", "n", "k", 1)
    clock.now += 10
    second = await store.put("a", "n", "k", None)

    record = await store.get("a", "n", "k")

    assert record is not None
    assert (record.value, record.revision) == (None, second.revision)
    assert second.revision > first.revision
    assert record.updated_at.timestamp() - record.created_at.timestamp() == 10


@pytest.mark.parametrize("expect", ["none", "revision"])
async def test_exactly_one_of_50_racers_wins_a_compare_and_set(store: Store, expect: str) -> None:
    revision = 0 if expect == "none" else (await store.put("a", "n", "k", "start")).revision

    racers = (store.put("a", "n", "k", number, expect=revision) for number in range(50))
    outcomes = await asyncio.gather(*racers, return_exceptions=True)

    (winner,) = (number for number, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException))
    losers = [outcome for outcome in outcomes if isinstance(outcome, RevisionConflictError)]
    record = await store.get("a", "n", "k")
    assert len(losers) == 49
    assert record is not None
    assert record.value == winner
    assert {loser.actual for loser in losers} == {record.revision}


async def test_a_revision_is_never_used_twice_so_a_record_made_anew_is_told_from_the_old(store: Store) -> None:
    old = await store.put("a", "n", "k", 1)
    await store.delete("a", "n", "k")
    await store.put("a", "n", "k", 1)

    with pytest.raises(RevisionConflictError):
        await store.put("a", "n", "k", 2, expect=old.revision)


async def test_a_delete_says_whether_there_was_a_record_and_heeds_the_expected_revision(store: Store) -> None:
    revision = (await store.put("a", "n", "k", 1)).revision

    with pytest.raises(RevisionConflictError, match="read it again"):
        await store.delete("a", "n", "k", expect=revision + 1)
    assert await store.delete("a", "n", "k", expect=revision)
    assert not await store.delete("a", "n", "k")
    with pytest.raises(RevisionConflictError, match="does not exist"):
        await store.delete("a", "n", "k", expect=revision)


async def test_items_are_appended_in_the_order_of_the_calls(store: Store) -> None:
    written = await asyncio.gather(*(store.append("a", "n", "log", {"n": number}) for number in range(100)))

    record = await store.get("a", "n", "log")

    assert record is not None
    assert record.value == [{"n": number} for number in range(100)]
    assert [one.length for one in written] == list(range(1, 101))
    assert record.revision == written[-1].revision


async def test_an_append_takes_any_list_and_keeps_only_the_last_items_when_told_to(store: Store) -> None:
    await store.run("put", "a", MemoryRequest(namespace="n", key="log", value=to_raw([]), op_id="x"))
    assert (await store.append("a", "n", "log", "]", keep=3)).length == 1
    for number in range(5):
        written = await store.append("a", "n", "log", number, keep=3)

    record = await store.get("a", "n", "log")

    assert record is not None
    assert (record.value, record.length, written.length) == ([2, 3, 4], 3, 3)


async def test_an_append_to_what_is_no_list_is_refused(store: Store) -> None:
    await store.put("a", "n", "k", {"a": 1})

    with pytest.raises(StoreError, match="is not a list"):
        await store.append("a", "n", "k", 1)


async def test_a_list_is_full_when_it_is_as_large_as_a_value_may_be(store: Store) -> None:
    await store.append("a", "n", "log", "x" * (MAX_VALUE // 2))

    with pytest.raises(StoreLimitError, match="the list"):
        await store.append("a", "n", "log", "x" * (MAX_VALUE // 2))

    record = await store.get("a", "n", "log")
    assert record is not None
    assert record.length == 1


async def test_an_expired_record_is_invisible_at_once_and_swept_later(store: Store, clock: Clock) -> None:
    await store.put("a", "n", "k", ["words"], ttl=10.0)
    await store.put("a", "n", "stays", "words")
    clock.now += 9.9
    assert await store.get("a", "n", "k") is not None
    clock.now += 0.2

    assert await store.get("a", "n", "k") is None
    assert keys(await store.list("a", "n")) == ["stays"]
    assert keys(await store.search("a", "n", "words")) == ["stays"]
    assert (await store.namespaces("a"))[0].records == 1
    assert not await store.delete("a", "n", "k")

    await store.sweep()
    assert rows(store, "SELECT key FROM records") == [("stays",)]
    assert len(rows(store, "SELECT rowid FROM words")) == 1


async def test_an_expired_record_counts_as_none_for_those_who_write(store: Store, clock: Clock) -> None:
    for key in ("put", "append"):
        await store.put("a", "n", key, [1], ttl=10.0)
    clock.now += 11

    await store.put("a", "n", "put", "new", expect=0)
    written = await store.append("a", "n", "append", 2)

    record = await store.get("a", "n", "put")
    assert record is not None
    assert record.created_at.timestamp() == clock.now
    assert record.expires_at is None
    assert written.length == 1


async def test_a_sweep_takes_any_number_of_records(store: Store, clock: Clock) -> None:
    await asyncio.gather(*(store.put("a", "n", str(number), number, ttl=1.0) for number in range(1200)))
    clock.now += 2

    await store.sweep()

    assert rows(store, "SELECT COUNT(*) FROM records") == [(0,)]


async def test_a_list_comes_in_pages_by_key(store: Store) -> None:
    names = [f"p/{number:03}" for number in range(25)]
    await asyncio.gather(*(store.put("a", "n", key, key) for key in [*names, "o", "q", "p"]))

    first = await store.list("a", "n", "p/", limit=10)
    second = await store.list("a", "n", "p/", limit=10, cursor=first.cursor)
    third = await store.list("a", "n", "p/", limit=10, cursor=second.cursor)

    assert [*keys(first), *keys(second), *keys(third)] == names
    assert [len(page.records) for page in (first, second, third)] == [10, 10, 5]
    assert third.cursor == ""


@pytest.mark.parametrize("prefix", ["", "a", "ä", "\ud7ff", "x\U0010ffff", "\U0010ffff", "a%", "a_"])
async def test_a_prefix_is_taken_literally(store: Store, prefix: str) -> None:
    names = {"", "1", "\U0010ffff", "ä"}
    others = {"a", "b", "\ue000", "x", "ab", "\U0010fffe", "ä"}
    everything = {key for key in {prefix + name for name in names} | others if key}
    await asyncio.gather(*(store.put("a", "n", key, 0) for key in everything))

    found = keys(await store.list("a", "n", prefix))

    assert found == sorted((key for key in everything if key.startswith(prefix)), key=str.encode)


async def test_lists_and_searches_are_filtered_by_kind_tags_and_importance(store: Store) -> None:
    await store.put("a", "n", "1", "fox", kind="episodic", tags=("red", "big"), importance=0.9)
    await store.put("a", "n", "2", "fox", kind="semantic", tags=("red",), importance=0.1)
    await store.put("a", "n", "3", "fox", tags=("reddish",))

    for filters, expected in (
        ({"kind": "semantic"}, ["2"]),
        ({"tags": ("red",)}, ["1", "2"]),
        ({"tags": ("red", "big")}, ["1"]),
        ({"importance": 0.5}, ["1"]),
    ):
        assert keys(await store.list("a", "n", **filters)) == expected
        assert sorted(keys(await store.search("a", "n", "fox", **filters))) == expected


async def test_an_answer_is_bounded_and_the_rest_is_in_the_next_page(store: Store) -> None:
    large = "x" * (MAX_REPLY // 3)
    await asyncio.gather(*(store.put("a", "n", str(number), large) for number in range(5)))

    first = await store.list("a", "n")
    second = await store.list("a", "n", cursor=first.cursor)

    assert keys(first) + keys(second) + keys(await store.list("a", "n", cursor=second.cursor)) == list("01234")
    assert len(first.records) == 2
    assert keys(await store.list("a", "n", values=False)) == list("01234")


async def test_forgetting_a_namespace_removes_it_and_no_other(store: Store) -> None:
    await asyncio.gather(*(store.put("a", "n", str(number), "fox") for number in range(20)))
    await store.put("a", "other", "k", "fox")

    assert await store.forget("a", "n") == 20

    assert (await store.list("a", "n")).records == (await store.search("a", "n", "fox")).records == []
    assert keys(await store.search("a", "other", "fox")) == ["k"]


async def test_concurrent_writes_share_transactions(store: Store) -> None:
    await asyncio.gather(*(store.put("a", "n", str(number), number) for number in range(1000)))

    assert store.commits <= 5
    assert rows(store, "SELECT COUNT(*) FROM records") == [(1000,)]


async def test_j5_a_hundred_concurrent_writers_are_never_told_that_the_database_is_locked(
    store: Store, tmp_path: Path
) -> None:
    async def write(writer: int) -> None:
        for number in range(20):
            await store.put("a", f"n{writer % 7}", f"{writer}-{number}", number)
            await store.append("a", "log", str(writer), number)
            await store.search("a", f"n{writer % 7}", "1")

    await asyncio.gather(*(write(writer) for writer in range(100)))

    assert rows(store, "SELECT COUNT(*) FROM records") == [(2100,)]
    assert await store.integrity_check() == ()


async def test_a_refused_write_does_not_harm_its_neighbours_in_the_transaction(store: Store) -> None:
    writes = [store.put("a", "n", str(number), number, expect=number % 2) for number in range(10)]

    outcomes = await asyncio.gather(*writes, return_exceptions=True)

    assert [isinstance(outcome, RevisionConflictError) for outcome in outcomes] == [False, True] * 5
    assert keys(await store.list("a", "n")) == list("02468")
    assert store.commits == 1


async def test_a_write_that_the_database_refuses_fails_alone(tmp_path: Path) -> None:
    async with Store(tmp_path / "memory.db"):
        pass
    database = sqlite3.connect(tmp_path / "memory.db")
    database.execute(
        "CREATE TRIGGER bad BEFORE INSERT ON records WHEN new.key = '3' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    database.close()

    async with Store(tmp_path / "memory.db") as store:
        writes = (store.put("a", "n", str(number), number) for number in range(10))
        outcomes = await asyncio.gather(*writes, return_exceptions=True)

        assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, StoreError)] == [3]
        assert keys(await store.list("a", "n")) == list("012456789")
        assert len({(await store.put("a", "n", "9", 0)).revision, *(r.revision for r in outcomes[4:])}) == 7  # type: ignore[union-attr]


async def test_a_program_that_locks_the_file_makes_writes_fail_together_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY_TIMEOUT", 0.05)
    async with Store(tmp_path / "memory.db") as store:
        await store.put("a", "n", "k", 1)
        shell = sqlite3.connect(store.path, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(2):
            writes = (store.put("a", "n", str(number), 1) for number in range(100))
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert await store.get("a", "n", "k") is not None
        shell.close()

        assert {str(outcome) for outcome in outcomes} == {
            "another program keeps the file of the memory store locked for writing; nothing was done, try again later"
        }
        assert (await store.put("a", "n", "k", 2)).revision == 2


async def test_an_older_file_is_brought_up_to_date_with_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / "memory.db") as store:
        await store.put("a", "n", "k", 1)
    later = [*schema.MIGRATIONS, lambda database: database.execute("ALTER TABLE records ADD COLUMN mood TEXT")]
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", len(later))

    async with Store(tmp_path / "memory.db") as store:
        assert await store.get("a", "n", "k") is not None

    assert rows(store, "SELECT key, mood FROM records") == [("k", None)]
    assert rows(store, "PRAGMA user_version") == [(len(later),)]


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(database: sqlite3.Connection) -> None:
        database.execute("ALTER TABLE records ADD COLUMN mood TEXT")
        database.execute("no SQL")

    async with Store(tmp_path / "memory.db") as store:
        await store.put("a", "n", "k", 1)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, fail])
        patch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        with pytest.raises(StoreError, match="cannot be opened"):
            await Store(tmp_path / "memory.db").open()

    async with Store(tmp_path / "memory.db") as store:
        assert await store.get("a", "n", "k") is not None
    assert rows(store, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


async def test_a_write_repeated_with_its_id_is_done_once_and_answered_alike(store: Store) -> None:
    for _ in range(2):
        first = await store.append("a", "n", "log", "x", op_id="op-1")
    again = await store.append("b", "n", "log", "x", op_id="op-1")

    record = await store.get("a", "n", "log")

    assert record is not None
    assert record.value == ["x"]
    assert (first.revision, first.length) == (record.revision, 1)
    assert again.length == 1


async def test_a_write_repeated_in_the_same_transaction_is_done_once(store: Store) -> None:
    written = await asyncio.gather(*(store.append("a", "n", "log", "x", op_id="op-1") for _ in range(10)))

    assert {(one.revision, one.length) for one in written} == {(1, 1)}


async def test_ids_of_writes_are_forgotten_after_a_while(store: Store, clock: Clock) -> None:
    await asyncio.gather(*(store.put("a", "n", "k", 1, op_id=f"op-{number}") for number in range(600)))
    clock.now += 1000
    await store.put("a", "n", "k", 1, op_id="young")

    await store.sweep()

    assert rows(store, "SELECT op_id FROM outcomes") == [("young",)]


async def test_records_revisions_and_ids_survive_a_restart(tmp_path: Path) -> None:
    async with Store(tmp_path / "new" / "memory.db") as store:
        await store.put("a", "n", "k", "fox", op_id="op-1")
        last = (await store.put("a", "n", "gone", 1)).revision
        await store.delete("a", "n", "gone")

    async with Store(tmp_path / "new" / "memory.db") as store:
        assert keys(await store.search("a", "n", "fox")) == ["k"]
        assert (await store.put("a", "n", "k", "other", op_id="op-1")).revision == 1
        assert (await store.put("a", "n", "k", "other")).revision == last + 1


async def test_closing_does_what_waits_and_refuses_what_comes(tmp_path: Path) -> None:
    store = await Store(tmp_path / "memory.db").open()
    writes = [asyncio.ensure_future(store.put("a", "n", str(number), number)) for number in range(2000)]
    await asyncio.sleep(0)  # they are submitted now

    await store.close()
    await store.close()

    assert all(write.done() and write.exception() is None for write in writes)
    with pytest.raises(StoreError, match="closed"):
        await store.get("a", "n", "1")
    assert {entry.name for entry in os.scandir(tmp_path)} == {"memory.db", "memory.db.lock"}


async def test_more_than_can_wait_is_refused_at_once_and_the_rest_is_done(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "CAPACITY", 100)
    outcomes = await asyncio.gather(
        *(store.put("a", "n", str(number), number) for number in range(150)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, StoreBusyError)]

    assert len(refused) == 50
    assert len((await store.list("a", "n", limit=1000)).records) == 100


async def test_large_values_that_wait_are_bounded_in_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "CAPACITY_BYTES", 10_000)

    outcomes = await asyncio.gather(
        *(store.put("a", "n", str(number), "x" * 1000) for number in range(20)), return_exceptions=True
    )

    assert sum(isinstance(outcome, StoreBusyError) for outcome in outcomes) == 11
    await store.put("a", "n", "k", "x" * 9000)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"key": "k" * 513}, "the key"),
        ({"key": "ä" * 257}, "the key"),
        ({"value": to_raw("x" * MAX_VALUE)}, "the value"),
        ({"value": msgspec.Raw(b"[" * 101 + b"]" * 101)}, "nesting"),
        ({"tags": tuple(map(str, range(17)))}, "tags"),
        ({"tags": ("x" * 65,)}, "tag"),
        ({"query": "x" * 4097}, "the query"),
        ({"prefix": "x" * 513}, "the prefix"),
    ],
)
async def test_what_is_too_large_is_refused_with_its_limit(store: Store, fields: dict[str, Any], problem: str) -> None:
    request = MemoryRequest(**{"namespace": "n", "key": "k", "value": to_raw(1), **fields})

    with pytest.raises(StoreLimitError, match=problem):
        await store.run("put", "a", request)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"key": ""}, "needs a key"),
        ({"key": "a\nb"}, "control character"),
        ({"key": "\ud800"}, "control character"),
        ({"value": msgspec.Raw(b"")}, "a value is missing"),
        ({"value": msgspec.Raw(b"[1,")}, "not JSON"),
        ({"value": msgspec.Raw(b"1e999")}, "not JSON"),
        ({"value": msgspec.Raw(b"[" * 9999)}, "not JSON"),
        ({"ttl": 0.0}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"expect": -1}, "expect"),
        ({"expect": 2**63}, "expect"),
        ({"importance": 1.5}, "importance"),
        ({"importance": float("nan")}, "importance"),
        ({"tags": ("",)}, "tag"),
        ({"tags": ("a\nb",)}, "control character"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"keep": 0}, "keep"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_reason(
    store: Store, fields: dict[str, Any], problem: str
) -> None:
    request = MemoryRequest(**{"namespace": "n", "key": "k", "value": to_raw(1), **fields})

    with pytest.raises(InvalidMessageError, match=problem):
        await store.run("put", "a", request)


@pytest.mark.parametrize("name", TOKENS)
async def test_g1_hostile_tenants_and_namespaces_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidNameError):
        await store.put(name, "n", "k", 1)
    with pytest.raises(InvalidNameError):
        await store.put("a", name, "k", 1)
    assert store.commits == 0


async def test_values_of_100_levels_are_stored_and_brackets_in_texts_do_not_count(store: Store) -> None:
    deep: Any = []
    for _ in range(99):
        deep = [deep]

    await store.put("a", "n", "deep", deep)
    await store.put("a", "n", "text", "[" * 5000)

    record = await store.get("a", "n", "deep")
    assert record is not None
    assert record.value == deep


async def test_an_unknown_operation_is_refused_by_name(store: Store) -> None:
    with pytest.raises(InvalidMessageError, match=r"'drop'; there are append, delete, forget"):
        await store.run("drop", "a", MemoryRequest(namespace="n"))


async def test_a_file_has_one_store_at_a_time(store: Store, spawn_process: SpawnProcess) -> None:
    with pytest.raises(StoreLockedError, match="pid"):
        await Store(store.path).open()

    other = await spawn_process(OPEN_A_STORE, str(store.path))
    await other.line_matching(r"StoreLockedError.*in use by another memory service \(pid \d+\)")


async def test_a_store_that_nobody_closes_does_not_keep_its_process_alive(
    tmp_path: Path, spawn_process: SpawnProcess
) -> None:
    process = await spawn_process(OPEN_A_STORE, str(tmp_path / "memory.db"))

    await process.line_matching("open")
    assert await process.wait() == 0
    async with Store(tmp_path / "memory.db") as store:
        assert await store.get("a", "n", "k") is not None


OPEN_A_STORE = """
    import asyncio, sys
    from agentmesh.memory_store import Store

    async def main():
        global store
        store = await Store(sys.argv[1]).open()
        await store.put("a", "n", "k", 1)
        print("open")

    try:
        asyncio.run(main())
    except Exception as error:
        print(type(error).__name__, error)
"""


async def test_a_file_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()

    with pytest.raises(StoreVersionError, match="upgrade agentmesh-nats"):
        await Store(path).open()

    assert path.read_bytes() == before


async def test_a_file_of_something_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, this is no database, " * 100)
    database = sqlite3.connect(tmp_path / "foreign")
    database.execute("CREATE TABLE mine (x)")
    database.close()
    before = (tmp_path / "foreign").read_bytes()

    with pytest.raises(StoreError, match="cannot be opened as a memory file"):
        await Store(tmp_path / "text").open()
    with pytest.raises(StoreError, match="something else"):
        await Store(tmp_path / "foreign").open()

    assert (tmp_path / "foreign").read_bytes() == before


async def test_a_path_that_cannot_be_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StoreError, match="cannot open"):
        await Store(tmp_path / "file" / "memory.db").open()
    with pytest.raises(StoreError, match=r"cannot be opened|cannot open"):
        await Store(tmp_path).open()


async def test_a_cancelled_caller_does_not_disturb_the_others(store: Store) -> None:
    impatient = asyncio.ensure_future(store.put("a", "n", "1", 1))
    patient = asyncio.ensure_future(store.put("a", "n", "2", 2))
    await asyncio.sleep(0)

    impatient.cancel()

    assert (await patient).revision > 0


def rows(store: Store, sql: str) -> list[Any]:
    """What the file has, seen by another program."""
    database = sqlite3.connect(f"file:{store.path}?mode=ro", uri=True)
    try:
        return database.execute(sql).fetchall()
    finally:
        database.close()
