"""The submitter's ledger: what the broker loses is submitted again, what is decided is not."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agentmesh import connect
from agentmesh.errors import LedgerError, QueueFullError, TaskExpiredError
from agentmesh.ids import now
from agentmesh.messages import Task
from agentmesh.tasks import layout
from agentmesh.tasks.layout import RESULTS, SCHED, TASKS
from agentmesh.tasks.ledger import Ledger
from agentmesh.tasks.reconcile import CERTAIN, Reconciler
from tests.harness import Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import OpenStage, Stage
from tests.tasks.kinds import Double, Hold

PATIENCE = 0.4


class Long(Task[None]):
    text: str


Keep = Callable[..., Awaitable[Reconciler]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def keep(path: Path) -> AsyncIterator[Keep]:
    """`reconciler = await keep(stage)`: it writes down what it submits; `watch=True` looks for it by itself."""
    kept: list[Reconciler] = []

    async def begin(stage: Stage, *, watch: bool = False, clock: Callable[[], float] | None = None) -> Reconciler:
        ledger = Ledger(path, patience=PATIENCE, **({} if clock is None else {"clock": clock}))
        reconciler = Reconciler(stage.client, ledger)
        await reconciler.start(watch=watch)
        kept.append(reconciler)
        return reconciler

    yield begin
    for reconciler in kept:
        if reconciler._tasks.ledger is reconciler.ledger:
            await reconciler.stop()


async def rows(path: Path) -> list[tuple[str, str]]:
    async with Ledger(path) as ledger:
        return [(entry.task_id, entry.state) for entry in await ledger.ls()]


async def empty(path: Path) -> None:
    async def nothing() -> bool:
        return not await rows(path)

    await eventually(nothing, 10, what="the ledger is empty")


async def lose(stage: Stage, stream: str = TASKS) -> None:
    """What an operator, or a damaged disk, may do: everything in the stream is gone."""
    assert await stage.transport.purge(stream, ">") > 0


# ---------------------------------------------------------------- lost tasks


async def test_a15_tasks_purged_behind_our_back_are_all_decided(own: Stage, keep: Keep, path: Path) -> None:
    await keep(own, watch=True)
    jobs = [await own.client.submit(Double(n=n), to="worker") for n in range(20)]
    await lose(own)

    await own.work()

    assert [await job.result(30) for job in jobs] == [2 * n for n in range(20)]
    await empty(path)
    assert len(own.handlers.started) == 20


@pytest.mark.slow
async def test_a15_purged_tasks_are_decided_within_a_minute(own: Stage, path: Path) -> None:
    reconciler = Reconciler(own.client, Ledger(path))
    await reconciler.start()
    jobs = [await own.client.submit(Double(n=n), to="worker") for n in range(20)]
    await own.work()
    await asyncio.gather(*(job.result(10) for job in jobs))
    held = [await own.client.submit(Double(n=n), to="later") for n in range(20)]
    await lose(own)
    await own.work("later")

    async with asyncio.timeout(60):
        assert [await job.result() for job in held] == [2 * n for n in range(20)]

    await empty(path)
    await reconciler.stop()


async def test_what_waits_or_runs_is_found_and_not_submitted_again(own: Stage, keep: Keep) -> None:
    reconciler = await keep(own)
    await own.work(slots=1)
    await own.dispatch({"Hold": ["worker"]})
    through_the_door = [await own.client.submit(Hold()) for _ in range(2)]
    direct = await own.client.submit(Hold(), to="worker")
    delayed = await own.client.submit(Hold(), to="worker", delay=60)
    await own.handlers.has_started(1)

    for _ in range(2):
        done = await reconciler.reconcile(early=True)
        assert sorted(done.waiting) == sorted(job.id for job in [*through_the_door, direct, delayed])
        assert done.resubmitted == []
    own.handlers.release.set()


async def test_a_delayed_task_that_is_lost_is_scheduled_again(own: Stage, keep: Keep, path: Path) -> None:
    await keep(own, watch=True)
    await own.work()
    await own.move()
    soon = await own.client.submit(Double(n=1), to="worker", delay=1.0)
    later = await own.client.submit(Double(n=2), to="worker", delay=3600)
    await lose(own, SCHED)

    assert await soon.result(10) == 2

    async def scheduled() -> bool:
        return [body.task_id for body in await own.client.schedules.delayed()] == [later.id]

    await eventually(scheduled, what="it is scheduled again")
    assert await later.cancel()
    await empty(path)


async def test_a_lost_task_past_its_deadline_is_decided_expired(own: Stage, keep: Keep) -> None:
    reconciler = await keep(own)
    job = await own.client.submit(Double(n=1), to="worker", deadline=0.1)
    await lose(own)
    await asyncio.sleep(0.1)  # an event of the world: its deadline passes

    done = await reconciler.reconcile(early=True)

    assert done.decided == [job.id]
    with pytest.raises(TaskExpiredError):
        await job.result(2)


async def test_a_stream_that_is_deleted_altogether_is_made_again(own: Stage, keep: Keep) -> None:
    reconciler = await keep(own)
    job = await own.client.submit(Double(n=1), to="worker")
    await own.transport.delete_stream(TASKS)

    assert (await reconciler.reconcile(early=True)).resubmitted == [job.id]

    await own.work()
    assert await job.result(5) == 2


async def test_a_lost_task_whose_queue_is_full_is_tried_again_later(
    server: Server, open_stage: OpenStage, keep: Keep
) -> None:
    stage = await open_stage(server.url)
    small = dataclasses.replace(next(s for s in layout.SPECS if s.name == TASKS), max_msgs_per_subject=1)
    await stage.transport.ensure_stream(small)
    reconciler = await keep(stage)
    job = await stage.client.submit(Double(n=1), to="worker")
    await lose(stage)
    stranger = await open_stage(server.url, stage.subjects.tenant)
    await stranger.client.submit(Double(n=5), to="worker")

    assert (await reconciler.reconcile(early=True)).full == [job.id]
    await stage.work()
    await stage.drained()
    assert (await reconciler.reconcile(early=True)).resubmitted == [job.id]
    assert await job.result(5) == 2


# ---------------------------------------------------------------- decided, or not accepted


async def test_what_was_decided_while_nobody_looked_is_not_run_again(own: Stage, keep: Keep, path: Path) -> None:
    reconciler = await keep(own)
    job = await own.client.submit(Double(n=1), to="worker")
    await reconciler.stop()
    await own.work()
    await own.drained()
    assert await rows(path) == [(job.id, "accepted")]

    done = await (await keep(own)).reconcile(early=True)

    assert (done.decided, done.resubmitted) == ([job.id], [])
    await empty(path)
    assert own.handlers.attempts(job.id) == [1]


async def test_if_its_result_is_lost_too_a_task_runs_again(own: Stage, keep: Keep) -> None:
    reconciler = await keep(own)
    job = await own.client.submit(Double(n=1), to="worker")
    await reconciler.stop()
    await own.work()
    await own.drained()
    await own.transport.delete_stream(RESULTS)

    done = await (await keep(own)).reconcile(early=True)

    assert done.resubmitted == [job.id]
    await own.handlers.has_started(2)


async def test_a_task_is_struck_out_when_it_is_decided(stage: Stage, keep: Keep, path: Path) -> None:
    await keep(stage)
    await stage.work()

    jobs = [await stage.client.submit(Double(n=n), to="worker") for n in range(5)]
    await asyncio.gather(*(job.result(5) for job in jobs))

    await empty(path)


async def test_a_refused_task_is_struck_out(server: Server, open_stage: OpenStage, keep: Keep, path: Path) -> None:
    stage = await open_stage(server.url)
    small = dataclasses.replace(next(s for s in layout.SPECS if s.name == TASKS), max_msgs_per_subject=1)
    await stage.transport.ensure_stream(small)
    await keep(stage)
    await stage.client.submit(Double(n=1), to="worker", task_id="first")

    with pytest.raises(QueueFullError):
        await stage.client.submit(Double(n=1), to="worker", task_id="second")

    assert [task_id for task_id, _ in await rows(path)] == ["first"]


async def test_nobody_can_know_about_a_task_that_is_gone_for_longer_than_results_are_kept(
    own: Stage, keep: Keep, path: Path
) -> None:
    ahead = 0.0
    reconciler = await keep(own, clock=lambda: now().timestamp() + ahead)
    job = await own.client.submit(Double(n=1), to="worker")
    await lose(own)
    ahead = CERTAIN + 60

    assert (await reconciler.reconcile()).doubtful == [job.id]
    assert (await reconciler.reconcile(early=True)).resubmitted == []
    assert await rows(path) == [(job.id, "doubtful")]
    assert (await reconciler.reconcile(doubtful=True)).resubmitted == [job.id]


# ---------------------------------------------------------------- processes that die

SUBMITTER = """
import asyncio, os, signal, sys
import agentmesh
from agentmesh.tasks import TaskClient
from tests.tasks.kinds import Double

async def main(url, tenant, ledger, when):
    async with agentmesh.connect(url, tenant=tenant, ledger=ledger) as mesh:
        if when == "during":
            async def dies(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGKILL)
            mesh.transport.publish_durable = dies
        await mesh.submit(Double(n=4), to="worker", task_id="orphan")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("when", ["during", "after"])
async def test_a_task_of_a_submitter_that_was_killed_is_run_once(
    own: Stage, server: Server, keep: Keep, path: Path, spawn_process: SpawnProcess, when: str
) -> None:
    await own.client.ensure()
    process = await spawn_process(SUBMITTER, server.url, own.subjects.tenant, str(path), when)
    assert await process.wait(20) == -signal.SIGKILL
    assert [task_id for task_id, _ in await rows(path)] == ["orphan"]
    if when == "after":
        await lose(own)
    await own.work()
    with sqlite3.connect(path) as database:  # as if the 35 s were over that nobody touches it
        database.execute("UPDATE tasks SET look_at = 0")

    await keep(own, watch=True)

    assert await own.client.job("orphan", Double).result(10) == 8
    await empty(path)
    assert own.handlers.attempts("orphan") == [1]


async def test_a_submit_that_was_never_confirmed_is_made_again(
    own: Stage, server: Server, keep: Keep, path: Path
) -> None:
    await keep(own, watch=True)
    await own.client.ensure()
    server.kill9()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await own.client.submit(Double(n=4), to="worker", task_id="unsure")
    assert await rows(path) == [("unsure", "submitting")]

    await server.start()
    await own.work()

    assert await own.client.job("unsure", Double).result(10) == 8
    await empty(path)
    assert own.handlers.attempts("unsure") == [1]


# ---------------------------------------------------------------- the file


RECONCILE = """
import asyncio, sys
from agentmesh import connect
from agentmesh.tasks.ledger import Ledger
from agentmesh.tasks.reconcile import Reconciler

async def main(url, tenant, path):
    async with connect(url, tenant=tenant) as mesh:
        reconciler = Reconciler(mesh.tasks, Ledger(path))
        await reconciler.start(watch=False)
        print("ready", flush=True)
        sys.stdin.readline()
        done = await reconciler.reconcile(early=True)
        print("done", *done.resubmitted, flush=True)
        await reconciler.stop()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_several_processes_share_a_ledger_and_submit_each_lost_task_once(
    own: Stage, server: Server, keep: Keep, path: Path, spawn_process: SpawnProcess
) -> None:
    await keep(own)
    for _ in range(60):
        await own.client.submit(Double(n=1), to="worker")
    await lose(own)
    processes = [await spawn_process(RECONCILE, server.url, own.subjects.tenant, str(path)) for _ in range(2)]
    for process in processes:
        await process.line_matching("ready")

    for process in processes:
        await process.write_line("go")
    done = [(await process.line_matching("done(.*)")).group(1).split() for process in processes]

    assert len(done[0]) + len(done[1]) == 60
    assert len({*done[0], *done[1]}) == 60
    assert await own.queued() == 60


async def test_submits_at_the_same_time_share_disk_syncs(stage: Stage, keep: Keep) -> None:
    reconciler = await keep(stage)
    await stage.client.submit(Double(n=0), to="worker")
    before = reconciler.ledger.commits

    await asyncio.gather(*(stage.client.submit(Double(n=n), to="worker") for n in range(64)))

    assert reconciler.ledger.commits - before < 32


async def test_what_cannot_be_written_down_is_not_submitted(stage: Stage, keep: Keep, path: Path) -> None:
    reconciler = await keep(stage)

    async def room(pages: int) -> None:
        await reconciler.ledger._call(lambda database: database.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    await room(1)  # no more than there are
    with pytest.raises(LedgerError, match="full"):
        await stage.client.submit(Long(text="x" * 100_000), to="worker", task_id="too-much")
    await room(100_000)
    await stage.client.submit(Long(text="x" * 100_000), to="worker", task_id="fits")

    assert [task_id for task_id, _ in await rows(path)] == ["fits"]
    assert await stage.queued() == 1


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database, and long enough to be taken for one " * 200)


def _somebody_else_s(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE x (y)")
    database.close()


def _from_the_future(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA application_id = {0x616D6C65}")
        database.execute("PRAGMA user_version = 99")
    database.close()


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [_garbage, _somebody_else_s, _from_the_future, _folder])
async def test_a_file_that_is_no_ledger_is_refused(stage: Stage, path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(path)

    with pytest.raises(LedgerError, match=r"ledger\.db"):
        await Reconciler(stage.client, Ledger(path)).start()

    assert stage.client.ledger is None


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000:12000] = bytes(7000)
    path.write_bytes(content)


async def test_a_damaged_ledger_is_refused(stage: Stage, keep: Keep, path: Path) -> None:
    reconciler = await keep(stage)
    for n in range(40):
        await stage.client.submit(Double(n=n), to="worker")
    await reconciler.stop()
    _damage(path)

    with pytest.raises(LedgerError, match="damaged"):
        await Ledger(path).open()


async def test_connect_keeps_a_ledger(nats_server: Any, path: Path) -> None:
    async with connect(nats_server.url, tenant="ledgers", ledger=path) as mesh:
        job = await mesh.submit(Double(n=1), to="nobody", at=datetime.now().astimezone().replace(year=2030))
    assert await rows(path) == [(job.id, "accepted")]

    with pytest.raises(LedgerError):
        async with connect(nats_server.url, ledger=path.parent):
            pass
