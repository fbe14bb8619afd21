"""A mesh that is asked for ten times what it can do: nobody grows, who comes too much is told, others are served."""

from __future__ import annotations

import asyncio
import json
import statistics
import textwrap
import time
from pathlib import Path

import pytest

from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import RESULTS
from agentmesh.transport import Transport, TransportOptions
from tests.harness import children, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import OpenStage
from tests.tasks.kinds import Double

SECONDS = 20.0

NAPPER = """
import asyncio
from agentmesh import Agent, Limit, Task, handler

class Nap(Task[str], limits=[Limit(concurrency=2, key="who")]):
    who: str

class Napper(Agent):
    concurrency = 8

    @handler
    async def nap(self, task: Nap) -> str:
        await asyncio.sleep(0.05)
        return "rested"
"""

SETTINGS = """
tenant = "loud"

[broker]
port = 0

[node]
count = 1

[memory]
enabled = false

[tasks]
queue_limit = 500

[agents.napper]
class = "napper:Napper"
"""

FLOOD = """
import asyncio, json, sys, time
from agentmesh.errors import QueueFullError
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskClient
from agentmesh.transport import Transport, TransportOptions
sys.path.insert(0, sys.argv[2])
from napper import Nap

async def main(url, folder, seconds):
    accepted, refused, slowest = 0, 0, []
    end = time.monotonic() + float(seconds)

    async def submitter(number):
        nonlocal accepted, refused
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                await client.submit(Nap(who=f"w{number % 2}"), to="napper")
                accepted += 1
            except QueueFullError as refusal:
                assert 0.1 <= refusal.retry_after <= 60
                refused += 1
                slowest.append(time.monotonic() - begun)
                del slowest[:-1000]
                await asyncio.sleep(0.015)  # as nobody should

    async with await Transport.connect(TransportOptions(url=url)) as transport:
        client = TaskClient(transport, Subjects("loud"))
        await client.ensure()
        print("ready", flush=True)
        await asyncio.gather(*(submitter(number) for number in range(16)))
    print("flood", json.dumps({"accepted": accepted, "refused": refused, "latencies": slowest}), flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def resident(pid: int) -> float:
    """Megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.slow
async def test_e2_at_ten_times_what_it_can_do_a_mesh_stays_flat_refuses_at_once_and_serves_other_tenants(
    tmp_path: Path, spawn_process: SpawnProcess, open_stage: OpenStage
) -> None:
    (tmp_path / "napper.py").write_text(NAPPER)
    (tmp_path / "mesh.toml").write_text(SETTINGS)
    mesh = await spawn_process("agentmesh", "up", "--config", str(tmp_path / "mesh.toml"))
    runfile = tmp_path / ".agentmesh" / "up.json"
    await eventually(runfile.exists, 30)
    url = json.loads(runfile.read_text())["url"]
    quiet = await open_stage(url, "quiet")
    await quiet.work()
    flood = await spawn_process(textwrap.dedent(FLOOD), url, str(tmp_path), str(SECONDS))
    await flood.line_matching("^ready$")

    sizes: dict[int, list[float]] = {pid: [] for pid in (mesh.pid, flood.pid, *nodes(mesh.pid))}
    served: list[float] = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        begun = time.monotonic()
        await (await quiet.client.submit(Double(n=1), to="worker")).result(10)
        served.append(time.monotonic() - begun)
        for pid, found in sizes.items():
            found.append(resident(pid))
        await asyncio.sleep(0.25)
    report = json.loads((await flood.line_matching("^flood (.*)$", timeout=30))[1])

    assert report["refused"] > 8 * report["accepted"]
    assert statistics.median(report["latencies"]) < 0.1
    assert statistics.median(served) < 1.0
    assert max(served) < 5.0  # the machine may be busy with other things
    for pid, found in sizes.items():
        settled = found[len(found) // 4 :]  # caches and connections are warm
        half = len(settled) // 2
        growth = statistics.median(settled[half:]) - statistics.median(settled[:half])
        assert growth < 5.0, f"process {pid} grew by {growth:.1f} MB: {found}"
    async with await Transport.connect(TransportOptions(url=url)) as transport:

        async def all_decided() -> bool:
            results = await transport.subjects_of(RESULTS, Subjects("loud").all_results())
            return len(results) == int(report["accepted"])

        await eventually(all_decided, 60, period=0.5)
    mesh.terminate()
    assert await mesh.wait(20) == 0


def nodes(pid: int) -> list[int]:
    """The Python processes under `agentmesh up`."""
    return [child for child in children(pid) if "python" in Path(f"/proc/{child}/exe").resolve().name]
