"""agentmesh against the same work on raw nats-py, side by side in one run.

    python -m benchmarks.compare [--pairs 7] [--quick] [--json FILE] [--sync always|default] [CASE ...]

Two processes: this one calls, a child answers; both sides of a comparison use the same two processes, the same broker,
the same payloads. Every case is measured in interleaved pairs (raw, agentmesh, raw, agentmesh, …); the ratio of a pair
compares runs that were neighbours in time, and the table shows the median ratio with its range. Wall-clock figures
swing by a quarter on small virtual machines: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiosqlite

from agentmesh import Agent, Event, Mesh, Request, Task, connect, handler
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.lifeline import die_with_parent, spawn_kwargs
from benchmarks import raw

PAYLOAD = "x" * 96
"""Makes a body of about 128 bytes with its JSON."""


class Ping(Request[str]):
    text: str


class Tell(Event):
    text: str


class Counted(Request[int]): ...


class Chunks(Request[str]):
    n: int


class Work(Task[str]):
    text: str


class Bench(Agent):
    """Does next to nothing, so that the runtime is what is measured."""

    concurrency = 64
    mailbox_size = 1_000_000

    def __init__(self) -> None:
        self.count = 0

    @handler
    async def ping(self, request: Ping) -> str:
        return request.text

    @handler
    async def tell(self, event: Tell) -> None:
        self.count += 1

    @handler
    async def counted(self, request: Counted) -> int:
        return self.count

    @handler
    async def chunks(self, request: Chunks) -> AsyncIterator[str]:
        for _ in range(request.n):
            yield "x" * 16

    @handler
    async def work(self, task: Work) -> str:
        return task.text


class MeshCaller:
    """The sending side on agentmesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.ref = mesh.ref("bench")
        self.told = 0

    async def tell(self, n: int) -> None:
        message = Tell(text=PAYLOAD)
        for _ in range(n):
            await self.ref.tell(message)
        self.told += n
        while await self.ref.ask(Counted()) < self.told:  # noqa: ASYNC110  the event is in another process
            await asyncio.sleep(0)

    async def ask(self) -> None:
        await self.ref.ask(Ping(text=PAYLOAD))

    async def stream(self, n: int) -> None:
        received = 0
        async for _ in self.ref.stream(Chunks(n=n)):
            received += 1
        assert received == n

    async def task(self) -> None:
        job = await self.ref.submit(Work(text=PAYLOAD))
        await job.result()


@dataclass
class Outcome:
    """One case: rates (operations per second) of each run, in pairs."""

    case: str
    raw: list[float] = field(default_factory=list)
    mesh: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.mesh, self.raw, strict=True)]

    def row(self) -> str:
        ratios = self.ratios
        return (
            f"| {self.case} | {statistics.median(self.raw):,.0f} | {statistics.median(self.mesh):,.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) |"
        )


async def rate(operation: Callable[[], Awaitable[None]], total: int, in_flight: int) -> float:
    """Operations per second with that many under way."""
    left = total

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await operation()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return total / (time.perf_counter() - began)


async def timed(run: Callable[[int], Awaitable[None]], n: int) -> float:
    began = time.perf_counter()
    await run(n)
    return n / (time.perf_counter() - began)


class NaiveMemory:
    """A record store as it is usually written: aiosqlite behind a NATS responder, one commit for each write."""

    def __init__(self, caller: raw.RawCaller) -> None:
        self._caller = caller

    async def put(self, key: int) -> None:
        body = json.dumps({"key": f"k{key % 500}", "value": PAYLOAD}).encode()
        await self._caller.nc.request("raw.put", body, timeout=10)

    async def get(self, key: int) -> None:
        await self._caller.nc.request("raw.get", json.dumps({"key": f"k{key % 500}"}).encode(), timeout=10)


def cases(
    caller: raw.RawCaller, mesh: MeshCaller, scale: float
) -> dict[str, tuple[Callable[[], Awaitable[float]], Callable[[], Awaitable[float]]]]:
    """Name of each case -> (run on raw nats-py, run on agentmesh), each giving operations per second."""
    naive, memory = NaiveMemory(caller), mesh.mesh.memory("bench")
    key = 0

    def n(full: int) -> int:
        return max(20, int(full * scale))

    def counter(operation: Callable[[int], Awaitable[Any]]) -> Callable[[], Awaitable[None]]:
        async def next_one() -> None:
            nonlocal key
            key += 1
            await operation(key)

        return next_one

    async def put(number: int) -> None:
        await memory.put(f"k{number % 500}", PAYLOAD)

    async def get(number: int) -> None:
        await memory.get(f"k{number % 500}")

    return {
        "tell": (lambda: timed(caller.tell, n(40_000)), lambda: timed(mesh.tell, n(40_000))),
        "ask, 1 in flight": (lambda: rate(caller.ask, n(2_000), 1), lambda: rate(mesh.ask, n(2_000), 1)),
        "ask, 16 in flight": (lambda: rate(caller.ask, n(15_000), 16), lambda: rate(mesh.ask, n(15_000), 16)),
        "ask, 128 in flight": (lambda: rate(caller.ask, n(20_000), 128), lambda: rate(mesh.ask, n(20_000), 128)),
        "stream, chunks": (lambda: timed(caller.stream, n(20_000)), lambda: timed(mesh.stream, n(20_000))),
        "task, 1 in flight": (lambda: rate(caller.task, n(300), 1), lambda: rate(mesh.task, n(300), 1)),
        "task, 128 in flight": (lambda: rate(caller.task, n(3_000), 128), lambda: rate(mesh.task, n(3_000), 128)),
        "memory put, 64 writers": (
            lambda: rate(counter(naive.put), n(2_000), 64),
            lambda: rate(counter(put), n(2_000), 64),
        ),
        "memory get, 1 in flight": (
            lambda: rate(counter(naive.get), n(1_000), 1),
            lambda: rate(counter(get), n(1_000), 1),
        ),
    }


async def serve(url: str, folder: Path) -> None:
    """The child: answers both sides until it is ended."""
    nc = await raw.connect(url)
    await raw.RawPeer(nc).start()
    database = await aiosqlite.connect(folder / "naive.db")
    await database.execute("PRAGMA journal_mode=WAL")
    await database.execute("PRAGMA synchronous=FULL")
    await database.execute("CREATE TABLE record (key TEXT PRIMARY KEY, value TEXT)")

    async def put(message: Any) -> None:
        body = json.loads(message.data)
        await database.execute("INSERT OR REPLACE INTO record VALUES (?, ?)", (body["key"], body["value"]))
        await database.commit()
        await nc.publish(message.reply, b"{}")

    async def get(message: Any) -> None:
        cursor = await database.execute("SELECT value FROM record WHERE key = ?", (json.loads(message.data)["key"],))
        row = await cursor.fetchone()
        await nc.publish(message.reply, json.dumps({"value": row and row[0]}).encode())

    await nc.subscribe("raw.put", cb=put)
    await nc.subscribe("raw.get", cb=get)
    async with connect(url, own_thread=False) as mesh:
        from agentmesh.memory_store import MemoryService

        service = MemoryService(mesh.transport, folder / "memory.db")
        await service.start()
        await mesh.spawn(Bench)
        print("ready", flush=True)
        await asyncio.Event().wait()


async def measure(options: argparse.Namespace) -> list[Outcome]:
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="agentmesh-bench-") as folder:
        broker = EmbeddedBroker(BrokerOptions(store=Path(folder) / "broker", sync_always=options.sync == "always"))
        async with broker:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.compare", "--serve", broker.url, folder,
                stdout=asyncio.subprocess.PIPE, **spawn_kwargs(),
            )  # fmt: skip
            assert child.stdout is not None
            if b"ready" not in await child.stdout.readline():
                raise SystemExit("the answering process did not start")
            nc = await raw.connect(broker.url)
            caller = raw.RawCaller(nc, PAYLOAD)
            await caller.start()
            async with connect(broker.url, own_thread=False) as mesh:
                chosen = cases(caller, MeshCaller(mesh), 0.1 if options.quick else 1.0)
                for name, (theirs, ours) in chosen.items():
                    if options.cases and not any(name.startswith(part) for part in options.cases):
                        continue
                    await theirs()
                    await ours()  # both are warm now
                    outcome = Outcome(name)
                    for _ in range(options.pairs):
                        outcome.raw.append(await theirs())
                        outcome.mesh.append(await ours())
                    outcomes.append(outcome)
                    print(outcome.row(), flush=True)
            await nc.close()
            child.terminate()
            await child.wait()
    return outcomes


def machine() -> dict[str, str]:
    """What the figures belong to."""
    from agentmesh.broker import find_server, server_version

    return {
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "nats-server": server_version(find_server()),
        **{name: importlib.metadata.version(name) for name in ("nats-py", "msgspec", "pydantic", "aiosqlite")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="only cases whose name starts with one of these")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to see that it runs")
    parser.add_argument("--sync", choices=["default", "always"], default="default", help="the broker's sync_interval")
    parser.add_argument("--json", type=Path, help="also write every figure there")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        die_with_parent()
        asyncio.run(serve(options.serve[0], Path(options.serve[1])))
        return
    print("  ".join(f"{key} {value}" for key, value in machine().items()), f" sync {options.sync}")
    print("| case | raw/s | agentmesh/s | agentmesh / raw |\n| --- | --- | --- | --- |")
    outcomes = asyncio.run(measure(options))
    if options.json:
        document = {"machine": machine(), "sync": options.sync, "cases": [asdict(outcome) for outcome in outcomes]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
