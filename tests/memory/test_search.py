"""Full text: any words may be asked for, and a search sees every write before it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmesh.memory_store import Store
from agentmesh.memory_store.index import STEP
from tests.harness import eventually
from tests.memory.test_store import keys, rows

HOSTILE = [
    "",
    " ",
    '"',
    '""',
    'a"b',
    '"unclosed',
    "a*",
    "*",
    "^",
    "^a",
    "-",
    "-a",
    "+",
    "a + b",
    "{",
    "{a}",
    "(",
    ")",
    "a) OR (b",
    "()",
    "NEAR(",
    "NEAR(a b, 5)",
    "a AND",
    "AND",
    "OR OR",
    "NOT a",
    "a NOT",
    "col:x",
    "scope:x",
    "scope : fox",
    "text : a",
    "- scope : x",
    "' OR 1=1 --",
    "tenant' OR 1=1",
    "x'; DROP TABLE records; --",
    "%",
    "_",
    "\\",
    "\x00",
    "a\x00b",
    "\n",
    "\ud800",
    "²",
    "½",
    "́",
    "_ _",
    "日本語",
    "🦊",
    "a" * 4096,
    "a " * 2048,
    "; SELECT 1",
    "?",
    "?1",
    ":a",
    "@a",
    "$a",
    "words",
    "bm25(words)",
    "rank",
]


@pytest.mark.parametrize("query", HOSTILE)
async def test_j1_no_query_is_an_error(store: Store, query: str) -> None:
    await store.put("a", "n", "fox", "a quick fox")
    await store.put("b", "n", "secret", query if query != "\ud800" else "")

    found = await store.search("a", "n", query)

    assert set(keys(found)) <= {"fox"}
    assert keys(await store.search("a", "n", "quick")) == ["fox"]


async def test_j1_no_generated_query_is_an_error(tmp_path: Path) -> None:
    async with Store(tmp_path / "memory.db") as store:
        await store.put("a", "n", "k", "some text")
        loop_queries: list[str] = []

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.text(max_size=60) | st.text(alphabet="\"'()*^:+-{}ANDORNOTEAR ab", max_size=60))
        def collect(query: str) -> None:
            loop_queries.append(query)

        collect()
        await asyncio.gather(*(store.search("a", "n", query) for query in loop_queries))


async def test_g8_a_search_never_leaves_its_tenant_and_namespace(store: Store) -> None:
    await store.put("a", "n", "mine", "treasure of a")
    await store.put("a", "m", "beside", "treasure beside")
    await store.put("b", "n", "theirs", "treasure of b")

    for query in ("treasure", "treasure' OR 1=1", "treasure OR tenant:b", "b", "theirs", "n/b"):
        assert set(keys(await store.search("a", "n", query))) <= {"mine"}
    assert keys(await store.search("a", "n", "treasure")) == ["mine"]


async def test_g8_equal_names_in_two_tenants_are_two_records(store: Store) -> None:
    for tenant in ("a", "b", "A"):
        await store.put(tenant, "n", "k", tenant)
    await store.append("a", "n", "log", "a")

    assert [(await store.get(tenant, "n", "k")).value for tenant in ("a", "b", "A")] == ["a", "b", "A"]  # type: ignore[union-attr]
    assert await store.delete("b", "n", "k")
    assert await store.forget("A", "n") == 1
    assert await store.get("a", "n", "k") is not None
    assert await store.get("b", "n", "log") is None
    assert keys(await store.list("b", "n")) == []
    assert await store.namespaces("b") == []
    assert (await store.put("b", "n", "k", 1)).revision == 2  # others' writes do not show in it


async def test_a_search_finds_keys_tags_and_texts_at_any_depth_by_word_and_english_ending(store: Store) -> None:
    await store.put("a", "n", "runs/nightly", {"deep": [{"er": "Flaky tests were reported"}]}, tags=("Zürich",))

    for query in ("nightly", "runs", "flaky", "TEST", "reporting", "zurich", "nothing but flaky"):
        assert keys(await store.search("a", "n", query)) == ["runs/nightly"], query
    for query in ("deep", "er", "flak", "night"):
        assert keys(await store.search("a", "n", query)) == [], query


async def test_the_best_match_comes_first(store: Store) -> None:
    await store.put("a", "n", "1", "a fox among many other animals of the forest and the fields around it")
    await store.put("a", "n", "2", "fox fox")
    await store.put("a", "n", "3", "the quick fox")
    await store.put("a", "n", "4", "a dog")

    assert keys(await store.search("a", "n", "quick fox"))[0] == "3"
    assert keys(await store.search("a", "n", "fox", limit=1)) == ["2"]


async def test_a_search_sees_every_write_before_it(store: Store) -> None:
    await store.put("a", "n", "k", "old")
    assert keys(await store.search("a", "n", "old")) == ["k"]

    await store.put("a", "n", "k", "new")
    assert keys(await store.search("a", "n", "old")) == []
    assert keys(await store.search("a", "n", "new")) == ["k"]
    await store.append("a", "n", "log", "added")
    assert keys(await store.search("a", "n", "added")) == ["log"]
    await store.delete("a", "n", "k")
    await store.put("a", "n", "other", "unrelated")
    assert keys(await store.search("a", "n", "new")) == []


async def test_a_search_after_many_writes_sees_them_all(store: Store) -> None:
    count = 2 * STEP + 100
    await asyncio.gather(*(store.put("a", "n", str(number), "fox") for number in range(count)))

    found = await store.search("a", "n", "fox", limit=1000)

    assert len(found.records) > 500  # as many as fit in an answer
    assert rows(store, "SELECT COUNT(*) FROM words") == [(count,)]


async def test_words_that_were_not_taken_up_before_the_end_are_found_after_a_restart(tmp_path: Path) -> None:
    async with Store(tmp_path / "memory.db") as store:
        await store.put("a", "n", "k", "fox")
    assert rows(store, "SELECT indexed FROM records") == [(0,)]

    async with Store(tmp_path / "memory.db") as store:
        assert keys(await store.search("a", "n", "fox")) == ["k"]


async def test_words_are_taken_up_without_a_search_too(store: Store) -> None:
    await store.put("a", "n", "k", "fox")

    await eventually(lambda: rows(store, "SELECT indexed FROM records") == [(1,)])
