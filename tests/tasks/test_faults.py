"""Accepted work survives what kills, freezes and blocks workers and servers: real processes, real signals."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh.errors import TaskDeadError
from agentmesh.tasks import Job
from agentmesh.tasks.layout import RESULTS
from tests.harness import Process, Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import OpenStage, Stage
from tests.tasks.kinds import Double, Hold
from tests.tasks.workers import AGENT, Blocking, Ledger, Poison, Work

ACK_WAIT = 1.0

StartWorker = Callable[..., Awaitable[Process]]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


@pytest.fixture
def start_worker(spawn_process: SpawnProcess, own: Stage, ledger: Ledger, server: Server) -> StartWorker:
    """`process = await start_worker(slots=4, fault="")`, working for the tenant of `own`."""

    async def start(slots: int = 4, fault: str = "") -> Process:
        process = await spawn_process(
            "tests.tasks.workers", server.url, own.subjects.tenant, ledger.path, str(slots), str(ACK_WAIT), fault
        )
        await process.line_matching("ready")
        return process

    return start


class Pool:
    """A number of worker processes; those that died are replaced."""

    def __init__(self, start_worker: StartWorker, size: int) -> None:
        self._start = start_worker
        self._size = size
        self.processes: list[Process] = []

    async def tend(self) -> None:
        self.processes = [process for process in self.processes if process.returncode is None]
        missing = self._size - len(self.processes)
        self.processes += await asyncio.gather(*(self._start() for _ in range(missing)))

    async def kill_one(self) -> None:
        victim = random.choice(self.processes)
        victim.kill9()
        await victim.wait()


async def submit(stage: Stage, count: int, seconds: float = 0.05) -> list[Job[int]]:
    return [await stage.client.submit(Work(n=number, seconds=seconds), to=AGENT) for number in range(count)]


async def all_results(jobs: list[Job[int]], timeout: float) -> list[int]:
    async with asyncio.timeout(timeout):
        return await asyncio.gather(*(job.result() for job in jobs))


async def first_worker(ledger: Ledger, job: Job[int]) -> int:
    """Wait until the task starts; the process that has it."""
    starts = await eventually(lambda: ledger.starts(job.id))
    return starts[0][0]


async def effects(ledger: Ledger, count: int) -> None:
    """Wait for that many effects."""
    await eventually(lambda: ledger.effects() >= count, 10)


async def has_one_result_each(stage: Stage, jobs: list[Job[int]]) -> bool:
    counts = await stage.transport.subjects_of(RESULTS, stage.subjects.results() + ".*")
    return len(counts) == len(jobs) and set(counts.values()) == {1}


async def test_b1_a_task_whose_worker_is_killed_starts_elsewhere_within_ack_wait(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    for _ in range(2):
        first, second = await start_worker(slots=1), await start_worker(slots=1)
        job = await own.client.submit(Work(n=7, seconds=1.5), to=AGENT)
        pid = await first_worker(ledger, job)
        victim = first if first.pid == pid else second

        victim.kill9()
        killed = time.time()

        assert await job.result(10) == 7
        (_, first_attempt, _), (_, second_attempt, restarted) = ledger.starts(job.id)
        assert restarted - killed < ACK_WAIT + 0.5
        assert (first_attempt, second_attempt) == (1, 2)
        await own.drained()
        for process in (first, second):
            process.kill9()
            await process.wait()


@pytest.mark.slow
async def test_b2_workers_killed_every_second_lose_no_task(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    pool = Pool(start_worker, 3)
    await pool.tend()
    jobs = await submit(own, 60, seconds=0.2)
    waiting = asyncio.create_task(all_results(jobs, 60))

    for _ in range(8):
        await asyncio.wait([waiting], timeout=1.0)
        await pool.kill_one()
        await pool.tend()

    assert await waiting == list(range(60))
    assert await has_one_result_each(own, jobs)
    assert ledger.effects() == 60
    await own.drained(ACK_WAIT + 2)


async def test_b2_killing_workers_in_the_middle_loses_no_task(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    pool = Pool(start_worker, 2)
    await pool.tend()
    jobs = await submit(own, 24, seconds=0.2)
    waiting = asyncio.create_task(all_results(jobs, 30))

    for done in (1, 8):
        await effects(ledger, done)
        await pool.kill_one()
        await pool.tend()

    assert await waiting == list(range(24))
    assert await has_one_result_each(own, jobs)
    assert ledger.effects() == 24
    await own.drained(ACK_WAIT + 2)


async def test_b3_a_worker_frozen_past_ack_wait_adds_no_second_result(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    frozen = await start_worker()
    jobs = await submit(own, 4, seconds=0.8)
    await frozen.line_matching("started", nth=4)

    frozen.pause()
    await start_worker()
    assert await all_results(jobs, 10) == [0, 1, 2, 3]
    frozen.resume()
    await eventually(lambda: ledger.executions() == 8)  # it wakes up and finishes what it had begun

    assert await has_one_result_each(own, jobs)
    assert ledger.effects() == 4
    await own.drained(ACK_WAIT + 2)


async def test_b4_a_worker_that_dies_between_result_and_ack_has_its_task_not_run_again(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    doomed = await start_worker(fault="die before ack")
    (job,) = await submit(own, 1)
    await doomed.wait()

    await start_worker()

    await own.drained(ACK_WAIT + 1)
    assert await job.result(5) == 0
    assert len(ledger.starts(job.id)) == 1


async def test_b5_a_worker_that_dies_between_effect_and_result_has_one_effect_per_key(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    doomed = await start_worker()
    job = await own.client.submit(Work(n=5, die_after_effect=True), to=AGENT)
    await doomed.wait()
    await start_worker()

    assert await job.result(10) == 5
    assert (ledger.executions(), ledger.effects()) == (2, 1)


async def test_b7_a_handler_that_blocks_its_loop_is_warned_about_and_has_one_result(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    blocked = await start_worker(slots=2)
    job = await own.client.submit(Blocking(seconds=3 * ACK_WAIT), to=AGENT)
    await blocked.line_matching("started")
    await start_worker()

    others = await all_results(await submit(own, 5), 5)

    assert others == [0, 1, 2, 3, 4]
    assert await job.result(10) == 0
    await blocked.line_matching("event loop was blocked", timeout=10)
    counts = await own.transport.subjects_of(RESULTS, own.subjects.result(job.id))
    assert list(counts.values()) == [1]


async def test_b8_a_task_that_kills_its_worker_becomes_a_dead_letter_and_the_others_live(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    pool = Pool(start_worker, 2)
    await pool.tend()
    poison = await own.client.submit(Poison(), to=AGENT)
    submitted = time.monotonic()
    dying = asyncio.create_task(poison.outcome())
    while not dying.done():
        await asyncio.wait([dying], timeout=0.2)
        await pool.tend()
    jobs = await submit(own, 6)

    assert time.monotonic() - submitted < (3 + 1) * ACK_WAIT + 5
    with pytest.raises(TaskDeadError, match="the worker died or lost contact"):
        await poison.result(1)
    assert len(ledger.starts(poison.id)) <= 3
    (letter,) = await own.client.dead_ls()
    assert [entry.error_type for entry in letter.history] == ["WorkerLost"] * 3
    assert await all_results(jobs, 20) == list(range(6))
    await own.drained()


async def test_b12_a_worker_told_to_stop_finishes_or_hands_over_what_it_has(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    stopping = await start_worker(slots=2)
    short = await own.client.submit(Work(n=1, seconds=0.5), to=AGENT)
    long = await own.client.submit(Work(n=2, seconds=3.0), to=AGENT)
    await stopping.line_matching("started", nth=2)
    other = await start_worker(slots=2)

    stopping.terminate()
    told = time.monotonic()

    assert await stopping.wait(1.0 + 2.0) == 0
    stopped = time.monotonic()
    assert stopped - told < 1.0 + 2.0  # its grace is a second
    assert await short.result(5) == 1
    await other.line_matching(f"started {long.id}")
    assert time.monotonic() - stopped < 1.0
    assert await long.result(10) == 2
    assert len(ledger.starts(short.id)) == 1
    assert [attempt for _, attempt, _ in ledger.starts(long.id)] == [1, 1]  # handing over is not failing


async def test_b12_stopping_a_worker_gives_back_what_it_only_held(own: Stage, server: Server) -> None:
    worker = await own.work(AGENT, slots=1, prefetch=5)
    held = await own.client.submit(Hold(), to=AGENT)
    await own.handlers.has_started()
    jobs = [await own.client.submit(Double(n=number), to=AGENT) for number in range(5)]

    await worker.stop(grace=0.0)
    own.handlers.release.set()
    await own.work(AGENT)

    async with asyncio.timeout(3):
        assert [await job.result() for job in jobs] == [0, 2, 4, 6, 8]
        assert await held.result() == "released"
    assert [attempt for _, attempt, _ in own.handlers.started] == [1] * 7


async def _survives_kills(
    own: Stage, server: Server, start_worker: StartWorker, ledger: Ledger, *, kills: int, every: float
) -> None:
    pool = Pool(start_worker, 2)
    await pool.tend()
    jobs: list[Job[int]] = []
    done = asyncio.Event()

    async def keep_submitting() -> None:
        while not done.is_set():
            jobs.append(await own.client.submit(Work(n=len(jobs), seconds=0.1), to=AGENT))
            await asyncio.wait([closing], timeout=0.03)

    closing = asyncio.create_task(done.wait())
    submitting = asyncio.create_task(keep_submitting())
    for _ in range(kills):
        await asyncio.wait([submitting], timeout=every)
        server.kill9()
        await asyncio.wait([submitting], timeout=0.3)
        await server.start()
    await asyncio.wait([submitting], timeout=every)
    done.set()
    await submitting
    await closing

    assert await all_results(jobs, 30) == list(range(len(jobs)))
    assert len(jobs) > kills * every * 5
    assert await has_one_result_each(own, jobs)
    assert ledger.effects() == len(jobs)
    await own.drained(ACK_WAIT + 5)


async def test_a1_a_server_killed_under_load_loses_no_accepted_task(
    own: Stage, server: Server, start_worker: StartWorker, ledger: Ledger
) -> None:
    await _survives_kills(own, server, start_worker, ledger, kills=2, every=1.0)


@pytest.mark.slow
async def test_a1_a_server_killed_four_times_in_nine_seconds_loses_no_accepted_task(
    own: Stage, server: Server, start_worker: StartWorker, ledger: Ledger
) -> None:
    await _survives_kills(own, server, start_worker, ledger, kills=4, every=1.8)


async def test_a2_work_goes_on_within_two_seconds_of_an_orderly_restart(
    own: Stage, server: Server, start_worker: StartWorker, ledger: Ledger
) -> None:
    workers = [await start_worker(slots=1) for _ in range(3)]
    jobs = await submit(own, 30, seconds=0.3)
    for worker in workers:
        await worker.line_matching("started")

    await server.terminate()
    await server.start()
    back = time.time()

    waiting = asyncio.create_task(all_results(jobs, 30))
    starts = [job.id for job in jobs]
    await eventually(
        lambda: any(at > back for task_id in starts for _, _, at in ledger.starts(task_id)), 2.0, what="a task starts"
    )
    assert await waiting == list(range(30))
    assert await has_one_result_each(own, jobs)


async def test_a13_a_task_submitted_again_after_the_server_forgot_its_id_is_not_run_again(
    own: Stage, server: Server, start_worker: StartWorker, ledger: Ledger
) -> None:
    await start_worker()
    job = await own.client.submit(Work(n=3), to=AGENT, task_id="again")
    await job.result(5)
    await own.drained()
    await server.restart()

    again = await own.client.submit(Work(n=3), to=AGENT, task_id="again")

    assert await again.result(5) == 3
    await own.drained(3.0)
    assert len(ledger.starts("again")) == 1


async def test_a14_the_result_of_a_killed_submitter_is_read_by_another_process(
    own: Stage, server: Server, spawn_process: SpawnProcess, start_worker: StartWorker, open_stage: OpenStage
) -> None:
    submitter = await spawn_process(
        """
        import asyncio, sys
        from agentmesh.subjects import Subjects
        from agentmesh.tasks import TaskClient
        from agentmesh.transport import Transport, TransportOptions
        from tests.tasks.workers import AGENT, Work

        async def main(url, tenant):
            transport = await Transport.connect(TransportOptions(url=url))
            job = await TaskClient(transport, Subjects(tenant)).submit(Work(n=11, seconds=1.0), to=AGENT)
            print("accepted", job.id, flush=True)
            await job.result()

        asyncio.run(main(*sys.argv[1:]))
        """,
        server.url,
        own.subjects.tenant,
    )
    task_id = (await submitter.line_matching(r"accepted (\S+)"))[1]
    submitter.kill9()
    worker = await start_worker()
    await worker.line_matching(f"started {task_id}")
    another = await open_stage(server.url, own.subjects.tenant)

    assert await another.client.job(task_id, Work).result(1.0 + 2.0) == 11


async def test_a_client_that_was_disconnected_when_its_result_came_finds_it(
    own: Stage, server: Server, start_worker: StartWorker
) -> None:
    await start_worker()
    (job,) = await submit(own, 1, seconds=1.0)
    waiting = asyncio.create_task(job.result(10))
    own.transport.connection.nc.abort()  # the socket is gone; the transport comes back by itself

    assert await waiting == 0
