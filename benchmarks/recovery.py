"""How long the mesh needs to recover: the figures of docs/guarantees.md.

    python -m benchmarks.recovery [--times 10] [--json FILE] [CASE ...]

Real servers, real worker processes, real signals, every write synced. Each case is repeated; the table shows median and
longest, and the promise they are held against. `CLOCK_MONOTONIC` is the same in all processes of a machine, so moments
written by a worker and read here can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from agentmesh import Task, TaskContext
from agentmesh.chaos import Rig, Server
from agentmesh.errors import AgentMeshError
from agentmesh.ids import new_id
from agentmesh.lease import Lease
from agentmesh.lifeline import spawn_kwargs
from agentmesh.subjects import Subjects
from agentmesh.tasks import Job, TaskClient, TaskWorker
from agentmesh.transport import Transport, TransportOptions

AGENT = "worker"
ACK_WAIT = 2.0
LEASE_TTL = 2.0


class Hold(Task[int], max_attempts=10):
    """Tells when it begins and when it is cancelled."""

    seconds: float = 60.0


# ------------------------------------------------------------ the worker process


async def work(url: str, tenant: str, told: str) -> None:
    """Work until killed; what happens goes to the file `told`, one `kind task pid moment` a line."""
    out = open(told, "a", buffering=1)  # noqa: ASYNC230, SIM115  (a local file, open as long as the process lives)

    def tell(kind: str, name: str) -> None:
        out.write(f"{kind} {name} {os.getpid()} {time.monotonic()}\n")

    async def run(task: Task[int], ctx: TaskContext) -> int:
        assert isinstance(task, Hold)
        tell("started", ctx.task_id)
        try:
            await asyncio.sleep(task.seconds)
        except asyncio.CancelledError:
            tell("cancelled", ctx.task_id)
            raise
        return 1

    async with await Transport.connect(TransportOptions(url=url.split(","))) as transport:
        subjects = Subjects(tenant)
        options = {"types": {"Hold": Hold}, "slots": 8, "ack_wait": ACK_WAIT}
        worker = TaskWorker(transport, subjects, AGENT, run=run, **options)  # type: ignore[arg-type]
        lease = Lease(transport, subjects, "chores", ttl=LEASE_TTL, on_gained=lambda: tell("gained", "lease"))
        await worker.start()
        await lease.start()
        tell("ready", "-")
        await asyncio.Event().wait()


class Stage:
    """A tenant, its worker processes, and what they told."""

    def __init__(self, urls: list[str], folder: Path) -> None:
        self.subjects = Subjects(f"b-{new_id()}")
        self._urls = urls
        self._told = folder / "told"
        self._told.touch()
        self.workers: list[asyncio.subprocess.Process] = []

    async def hire(self) -> asyncio.subprocess.Process:
        arguments = ("-m", "benchmarks.recovery", "work", ",".join(self._urls), self.subjects.tenant, str(self._told))
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, **spawn_kwargs())
        self.workers.append(process)
        await self.moment("ready", "-", pid=process.pid)
        return process

    async def moment(self, kind: str, name: str, *, pid: int = 0, nth: int = 1, timeout: float = 60.0) -> float:
        """When it happened the `nth` time, waiting for it."""
        return (await self.entry(kind, name, pid=pid, nth=nth, timeout=timeout))[1]

    async def entry(
        self, kind: str, name: str, *, pid: int = 0, nth: int = 1, timeout: float = 60.0
    ) -> tuple[int, float]:
        """Process and moment."""
        async with asyncio.timeout(timeout):
            while True:
                lines = [line.split() for line in self._told.read_text().splitlines()]
                found = [line for line in lines if line[:2] == [kind, name] and (not pid or int(line[2]) == pid)]
                if len(found) >= nth:
                    return int(found[nth - 1][2]), float(found[nth - 1][3])
                await asyncio.sleep(0.002)

    async def end(self) -> None:
        for process in self.workers:
            if process.returncode is None:
                process.kill()
            await process.wait()


@asynccontextmanager
async def stage(urls: list[str], workers: int, **options: int) -> AsyncIterator[tuple[Stage, TaskClient]]:
    with tempfile.TemporaryDirectory() as folder:
        here = Stage(urls, Path(folder))
        async with await Transport.connect(TransportOptions(url=urls, **options)) as transport:
            try:
                for _ in range(workers):
                    await here.hire()
                yield here, TaskClient(transport, here.subjects)
            finally:
                await here.end()


# ------------------------------------------------------------ the cases


async def cancel_running(times: int) -> list[float]:
    """From `job.cancel()` to the moment its handler, in another process, is cancelled."""
    found = []
    async with Server() as server, stage([server.url], 1) as (here, client):
        for _ in range(times * 5):
            job = await client.submit(Hold(), to=AGENT)
            await here.moment("started", job.id)
            began = time.monotonic()
            await job.cancel()
            found.append(await here.moment("cancelled", job.id) - began)
    return found


async def redelivery(times: int) -> list[float]:
    """From SIGKILL of the worker to the next start of its task."""
    found = []
    async with Server() as server, stage([server.url], 2) as (here, client):
        for _ in range(times):
            job = await client.submit(Hold(), to=AGENT)
            pid, _ = await here.entry("started", job.id)
            await asyncio.sleep(0.1 + 0.9 * ACK_WAIT * (len(found) / times))  # also in between two signs of life
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            found.append(await here.moment("started", job.id, nth=2) - killed)
            await job.cancel()
            await here.hire()
    return found


async def restart(times: int) -> list[float]:
    """From the moment the server takes connections again to the start of a task submitted while it was away."""
    found = []
    async with Server() as server, stage([server.url], 2) as (here, client):
        for number in range(times):
            server.kill9() if number % 2 else await server.terminate()
            submitting = asyncio.ensure_future(client.submit(Hold(seconds=0.0), to=AGENT))
            await asyncio.sleep(1.0)
            await server.start()
            back = time.monotonic()
            job: Job[int] = await submitting
            found.append(await here.moment("started", job.id) - back)
            await job.result(timeout=30)
    return found


async def take_over(times: int) -> list[float]:
    """From SIGKILL of the process that has the lease of 2 s to the moment another one has it."""
    found = []
    async with Server() as server, stage([server.url], 2) as (here, _):
        for number in range(times):
            pid, _ = await here.entry("gained", "lease", nth=number + 1)
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            found.append(await here.moment("gained", "lease", nth=number + 2) - killed)
            await here.hire()
    return found


async def leader_kill(times: int) -> list[float]:
    """The longest time without an accepted submit when the leader of the tasks is killed and stays dead for a while."""
    return [await _gap("kill") for _ in range(max(3, times // 3))]


async def leader_isolation(times: int) -> list[float]:
    """The same, when clients and servers lose the leader silently."""
    return [await _gap("isolate") for _ in range(max(3, times // 3))]


async def _gap(fault: str) -> float:
    async with Rig(3) as rig, stage(rig.urls, 1, replicas=3) as (_, client):
        accepted = [time.monotonic()]
        stop = asyncio.Event()

        async def submitting() -> None:
            while not stop.is_set():
                try:
                    await client.submit(Hold(seconds=0.0), to=AGENT)
                    accepted.append(time.monotonic())
                except AgentMeshError as error:
                    print("   not accepted:", error, file=sys.stderr)
                await asyncio.sleep(0.02)

        load = asyncio.ensure_future(submitting())
        await asyncio.sleep(2.0)
        leader = rig.named(await _leader(client.transport))
        struck = time.monotonic()
        rig.servers[leader].kill9() if fault == "kill" else rig.isolate(leader)
        await asyncio.sleep(25.0)
        if fault == "isolate":
            rig.heal(leader)
        stop.set()
        await load
        return max(b - a for a, b in itertools.pairwise(accepted) if b > struck)


async def _leader(transport: Transport) -> str:
    reply = await transport.request("$JS.API.STREAM.INFO.TASKS", b"", timeout=5.0)
    return str(json.loads(reply.data)["cluster"]["leader"])


CASES: dict[str, tuple[str, str, Callable[[int], Awaitable[list[float]]]]] = {
    "cancel": ("cancel of running work", "median <= 0.1 s", cancel_running),
    "redelivery": (f"redelivery after SIGKILL of a worker, ack_wait {ACK_WAIT:g} s", "<= 2.5 s", redelivery),
    "restart": ("work after a restart of the server", "<= 2 s", restart),
    "take-over": (f"take-over of a lease of {LEASE_TTL:g} s after SIGKILL", "<= 2.5 s", take_over),
    "leader-kill": ("submit gap, leader killed", "<= 10 s", leader_kill),
    "leader-isolation": ("submit gap, leader isolated silently", "<= 15 s", leader_isolation),
}


async def measure(cases: list[str], times: int) -> dict[str, list[float]]:
    print("| what | times | median | longest | promised |\n| --- | --- | --- | --- | --- |", flush=True)
    found = {}
    for case in cases:
        what, promised, run = CASES[case]
        seconds = found[case] = await run(times)
        figures = f"{len(seconds)} | {statistics.median(seconds):.3f} s | {max(seconds):.3f} s"
        print(f"| {what} | {figures} | {promised} |", flush=True)
    return found


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        asyncio.run(work(*sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all without")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--json", help="also write every figure there")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    found = asyncio.run(measure(arguments.cases or list(CASES), arguments.times))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
