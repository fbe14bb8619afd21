"""K4: an hour's work leaves nothing behind; by default a minute's. `AGENTMESH_SOAK_MINUTES=60` for the long form."""

from __future__ import annotations

import asyncio
import os
import statistics
from pathlib import Path

import pytest

from agentmesh.tasks.layout import SPECS
from tests.harness import Server
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import Stage
from tests.tasks.workers import AGENT, Tale, Work

MINUTES = float(os.environ.get("AGENTMESH_SOAK_MINUTES", "1"))
WARM_UP = 15.0
PER_SECOND = 20


class Gauge:
    """Memory and open files of one process, over time."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self.memory: list[float] = []
        """Megabytes."""
        self.files: list[int] = []

    def read(self) -> None:
        pages = int((self._folder / "statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        self.files.append(len(list((self._folder / "fd").iterdir())))

    def growth(self) -> float:
        """Megabytes from the first third of the readings to the last."""
        third = len(self.memory) // 3
        return statistics.median(self.memory[-third:]) - statistics.median(self.memory[:third])


@pytest.mark.slow
async def test_k4_work_at_low_load_leaves_nothing_behind(
    own: Stage, server: Server, spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    worker = await spawn_process(
        "tests.tasks.workers", server.url, own.subjects.tenant, str(tmp_path / "ledger.db"), "8", "2.0"
    )
    await worker.line_matching("ready")
    await submit_for(own, WARM_UP)
    gauges = {"worker": Gauge(worker.pid), "client": Gauge(os.getpid())}
    consumers = await count_consumers(own)
    subscriptions = (await server.monitor("varz"))["subscriptions"]

    for _ in range(max(12, int(MINUTES * 60 - WARM_UP))):
        await submit_for(own, 1.0)
        for gauge in gauges.values():
            gauge.read()

    limit = 3.0 + MINUTES / 60  # what an allocator keeps, and a megabyte per hour
    assert {name: gauge.growth() for name, gauge in gauges.items() if gauge.growth() > limit} == {}
    for gauge in gauges.values():
        assert max(gauge.files) - min(gauge.files) <= 2
    assert await count_consumers(own) == consumers
    assert (await server.monitor("varz"))["subscriptions"] == subscriptions
    await own.drained()


async def submit_for(stage: Stage, seconds: float) -> None:
    """Tasks of both kinds, one after the other, and their results."""
    loop = asyncio.get_running_loop()
    end, number = loop.time() + seconds, 0
    while loop.time() < end:
        number += 1
        assert await (await stage.client.submit(Work(n=number, seconds=0.0), to=AGENT)).result(10) == number
        if number % 10 == 0:
            tale = await stage.client.submit(Tale(words=5, pause=0.0), to=AGENT)
            assert len([event async for event in tale]) == 5
        await asyncio.sleep(1 / PER_SECOND)


async def count_consumers(stage: Stage) -> dict[str, int]:
    infos = [await stage.transport.stream_info(spec.name) for spec in SPECS]
    return {info.name: info.consumers for info in infos if info is not None}
