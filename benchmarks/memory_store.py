"""Memory store against naive aiosqlite: the same records, the same durability, side by side in one run.

    python benchmarks/memory_store.py [--pairs 7] [--json FILE]

64 writers put records of about 512 bytes into a WAL file with `synchronous=FULL`, each waiting until its record is on
disk. The naive programs use one aiosqlite connection and one commit a record: `plain` into a table of four columns,
`revisions` into one that counts revisions, as a compare-and-set needs. `Store` does what users get: limits checked,
revisions, expiry, words marked for the full-text index, which follows while the writers run. Pairs are interleaved;
medians are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite

from agentmesh.memory_store import Store

WRITERS = 64
NAIVE_COUNT = 3_000
STORE_COUNT = 20_000
READS = 2_000
VALUE = {"text": " ".join(f"word{number % 97}" for number in range(72))}

PLAIN = (
    "CREATE TABLE m (id TEXT PRIMARY KEY, ns TEXT, body TEXT, ts REAL)",
    "INSERT OR REPLACE INTO m VALUES (?, ?, ?, ?)",
)
REVISIONS = (
    "CREATE TABLE m (key TEXT, ns TEXT, body TEXT, ts REAL, revision INTEGER, PRIMARY KEY (ns, key))",
    "INSERT INTO m VALUES (?, ?, ?, ?, 1) ON CONFLICT (ns, key) DO UPDATE"
    " SET body = excluded.body, ts = excluded.ts, revision = revision + 1 RETURNING revision",
)


async def in_parallel(count: int, one: Callable[[int], Awaitable[object]]) -> float:
    """Calls a second, when `WRITERS` callers each wait for theirs."""
    left = iter(range(count))

    async def caller() -> None:
        for number in left:
            await one(number)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(WRITERS)))
    return count / (time.perf_counter() - began)


async def naive(path: Path, table: str, insert: str) -> dict[str, float]:
    """One aiosqlite connection in autocommit; point reads with `execute` and `fetchone`."""
    async with aiosqlite.connect(path, isolation_level=None) as database:
        await database.execute("PRAGMA journal_mode = WAL")
        await database.execute("PRAGMA synchronous = FULL")
        await database.execute(table)

        async def put(number: int) -> None:
            # Fetched to the end: a RETURNING that is not keeps the transaction open, and nothing is on disk.
            await database.execute_fetchall(insert, (f"k{number}", "n", json.dumps(VALUE), time.time()))

        writes = await in_parallel(NAIVE_COUNT, put)
        name = table.split("(")[1].split()[0]
        latencies = []
        for number in range(READS):
            began = time.perf_counter()
            async with database.execute(f"SELECT body FROM m WHERE {name} = ? AND ns = 'n'", (f"k{number}",)) as cursor:
                assert await cursor.fetchone()
            latencies.append(time.perf_counter() - began)
    return {"writes_per_s": writes, "read_p50_us": statistics.median(latencies) * 1e6}


async def store(path: Path) -> dict[str, float]:
    """The store as the service uses it."""
    async with Store(path) as opened:

        async def put(number: int) -> None:
            await opened.put("t", "n", f"k{number}", VALUE)

        commits = opened.commits
        writes = await in_parallel(STORE_COUNT, put)
        commits = opened.commits - commits
        latencies = []
        for number in range(READS):
            began = time.perf_counter()
            assert await opened.get("t", "n", f"k{number}")
            latencies.append(time.perf_counter() - began)
        began = time.perf_counter()
        await opened.search("t", "n", "word1", limit=1)
        catch_up = time.perf_counter() - began
    return {
        "writes_per_s": writes,
        "writes_per_commit": STORE_COUNT / commits,
        "read_p50_us": statistics.median(latencies) * 1e6,
        "first_search_s": catch_up,
    }


def measure(pairs: int = 7) -> dict[str, Any]:
    """Medians over interleaved rounds, and the ratios to the naive programs."""
    rounds: dict[str, list[dict[str, float]]] = {"plain": [], "revisions": [], "store": []}
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            rounds["plain"].append(asyncio.run(naive(Path(folder, "plain.db"), *PLAIN)))
            rounds["revisions"].append(asyncio.run(naive(Path(folder, "revisions.db"), *REVISIONS)))
            rounds["store"].append(asyncio.run(store(Path(folder, "store.db"))))
    medians: dict[str, Any] = {
        who: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for who, measured in rounds.items()
    }
    for other in ("plain", "revisions"):
        medians[f"ratio_writes_{other}"] = statistics.median(
            ours["writes_per_s"] / theirs["writes_per_s"]
            for ours, theirs in zip(rounds["store"], rounds[other], strict=True)
        )
    medians["ratio_read_p50"] = medians["store"]["read_p50_us"] / medians["plain"]["read_p50_us"]
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    measured = measure(given.pairs)
    for who in ("plain", "revisions", "store"):
        print(f"{who:10}", "  ".join(f"{key} {value:,.2f}" for key, value in measured[who].items()))
    print(f"writes: {measured['ratio_writes_plain']:.1f} x plain, {measured['ratio_writes_revisions']:.1f} x revisions")
    print(f"point read p50: {measured['ratio_read_p50']:.2f} x naive")
    if given.json:
        given.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
