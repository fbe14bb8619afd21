"""Releases work together on one broker, so that a mesh can be upgraded process by process.

The other release is an earlier commit of this repository, unpacked beside it and run with its own code.
"""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Protocol

import pytest

from agentmesh import Agent, Request, handler
from agentmesh.client import Client
from agentmesh.host import Host
from agentmesh.tasks import Job
from tests.harness import Process, Server
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import Stage
from tests.tasks.workers import AGENT, Ledger, Work

RELEASE = "438cf51"
"""0.1.0."""

ROOT = Path(__file__).resolve().parents[2]

TASKS = 30

pytestmark = pytest.mark.slow


class StartWorker(Protocol):
    """`process = await start_worker(env)`: a worker of the tenant of `own`; with `earlier`, one of that release."""

    async def __call__(self, env: dict[str, str] | None = None) -> Process: ...


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which Python imports the earlier release."""
    found = subprocess.run(["git", "archive", RELEASE], cwd=ROOT, capture_output=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"this checkout does not have the commit {RELEASE}: {found.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="tar")
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


@pytest.fixture
def start_worker(spawn_process: SpawnProcess, own: Stage, server: Server, tmp_path: Path) -> StartWorker:
    async def start(env: dict[str, str] | None = None) -> Process:
        process = await spawn_process(
            "tests.tasks.workers", server.url, own.subjects.tenant, str(tmp_path / "ledger.db"), "2", "1.0", env=env
        )
        await process.line_matching("ready", timeout=20)
        return process

    return start


async def results(jobs: list[Job[int]]) -> list[int]:
    async with asyncio.timeout(60):
        return await asyncio.gather(*(job.result() for job in jobs))


async def test_k5_the_processes_run_the_code_they_are_meant_to(
    earlier: dict[str, str], spawn_process: SpawnProcess
) -> None:
    process = await spawn_process("import agentmesh; print('from', agentmesh.__file__)", env=earlier)

    match = await process.line_matching(r"from (\S+)")

    assert match[1].startswith(earlier["PYTHONPATH"])


async def test_k5_a_rolling_upgrade_of_workers_under_load_loses_and_doubles_nothing(
    earlier: dict[str, str], start_worker: StartWorker, own: Stage, tmp_path: Path
) -> None:
    """First old workers with a new supervisor, then both, then new ones only."""
    old = [await start_worker(earlier), await start_worker(earlier)]
    await own.dispatch({"Work": [AGENT]})
    jobs = [await own.client.submit(Work(n=number, seconds=0.1)) for number in range(TASKS)]

    for number, leaving in enumerate(old):
        await start_worker()
        leaving.terminate() if number else leaving.kill9()
        await leaving.wait()
        more = range(len(jobs), len(jobs) + TASKS)
        jobs += [await own.client.submit(Work(n=number, seconds=0.1)) for number in more]

    assert await results(jobs) == list(range(3 * TASKS))
    await own.drained()
    assert Ledger(tmp_path / "ledger.db").effects() == 3 * TASKS


SUPERVISOR = """
import asyncio, sys
from agentmesh.subjects import Subjects
from agentmesh.tasks import Dispatcher, TaskClient
from agentmesh.transport import Transport, TransportOptions
from tests.tasks.workers import AGENT, Work

async def main(url, tenant):
    async with await Transport.connect(TransportOptions(url=url)) as transport:
        subjects = Subjects(tenant)
        async def locate(task_type):
            return [AGENT]
        dispatcher = Dispatcher(transport, subjects, locate)
        await dispatcher.start()
        client = TaskClient(transport, subjects)
        jobs = [await client.submit(Work(n=number, seconds=0.02)) for number in range(30)]
        print("results", sum([await job.result() for job in jobs]), flush=True)
        late = await client.submit(Work(n=1, seconds=60))
        print("running", late.id, flush=True)
        await asyncio.sleep(0.5)
        print("cancelled", await late.cancel(), flush=True)
        await dispatcher.stop()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_k5_new_workers_serve_a_supervisor_and_submitters_of_before(
    earlier: dict[str, str], start_worker: StartWorker, own: Stage, server: Server, spawn_process: SpawnProcess
) -> None:
    supervisor = await spawn_process(SUPERVISOR, server.url, own.subjects.tenant, env=earlier)
    await start_worker()

    assert (await supervisor.line_matching(r"results (\d+)", timeout=30))[1] == str(sum(range(30)))
    assert (await supervisor.line_matching(r"cancelled (\w+)"))[1] == "True"
    assert await supervisor.wait() == 0
    await own.drained()


GREETER = """
import asyncio, sys
from agentmesh import Agent, Request, handler
from agentmesh.client import Client
from agentmesh.host import Host
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport, TransportOptions

class Hi(Request[str]):
    name: str

class Early(Agent):
    @handler
    async def hi(self, message: Hi) -> str:
        return f"early {message.name}"

async def main(url, tenant):
    async with await Transport.connect(TransportOptions(url=url)) as transport:
        host = Host(Client(transport, Subjects(tenant), "early"), "early")
        await host.start()
        await host.spawn(Early)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        answer = await Client(transport, Subjects(tenant), "early").ask("late", Hi(name="Bob"), timeout=10)
        print("answer", answer, flush=True)
        await host.drain(1.0)

asyncio.run(main(*sys.argv[1:]))
"""


class Hi(Request[str]):
    name: str


class Late(Agent):
    @handler
    async def hi(self, message: Hi) -> str:
        return f"late {message.name}"


async def test_k5_agents_of_both_releases_answer_each_other(
    earlier: dict[str, str], own: Stage, server: Server, spawn_process: SpawnProcess
) -> None:
    process = await spawn_process(GREETER, server.url, own.subjects.tenant, env=earlier)
    await process.line_matching("ready")
    client = Client(own.transport, own.subjects, "late")
    host = Host(client, "late")
    await host.start()
    await host.spawn(Late)

    assert await client.ask("early", Hi(name="Ada"), timeout=10) == "early Ada"
    assert {info.name for info in await client.agents()} == {"early", "late"}
    await process.write_line("go")
    assert (await process.line_matching(r"answer (.*)"))[1] == "late Bob"
    assert await process.wait() == 0
    await host.drain(1.0)
