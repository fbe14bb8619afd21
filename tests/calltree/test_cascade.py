"""The end of a task is the end of everything it started, on every host: real processes, real signals."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh.client import Client
from agentmesh.ids import new_id
from agentmesh.subjects import Subjects
from agentmesh.tasks import Job, ResultBody
from agentmesh.tasks.slot import decide
from agentmesh.transport import Transport, TransportOptions
from tests.calltree.node import ACK_WAIT, AGENT, BEAT, Grow, Ledger
from tests.harness import Process, Server, eventually
from tests.harness.fixtures import SpawnProcess

StartNode = Callable[[], Awaitable[Process]]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        yield Client(transport, Subjects(f"t-{new_id()}"), "tester")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def start_node(spawn_process: SpawnProcess, server: Server, client: Client, ledger: Ledger) -> StartNode:
    async def start() -> Process:
        process = await spawn_process("tests.calltree.node", server.url, client.subjects.tenant, str(ledger.path))
        await process.line_matching("ready")
        return process

    return start


async def grown(client: Client, ledger: Ledger, task: Grow, deadline: float | None = None) -> Job[int]:
    """Submit a tree, and wait until its leaves have effects."""
    job = await client.submit(task, to=AGENT, deadline=deadline)
    leaves = task.fan**task.level
    await eventually(lambda: len(ledger.tasks("effect")) == leaves, 10.0, what="all leaves have effects")
    return job


async def outcomes(client: Client, ledger: Ledger, level: int) -> list[ResultBody]:
    return [await client.job(task_id).outcome() for task_id in sorted(ledger.tasks(f"level{level}"))]


async def assert_still(ledger: Ledger) -> None:
    """No effect happens any more. Many beats long, because there is no event for something that does not happen."""
    before = len(ledger.lines("effect"))
    await asyncio.sleep(10 * BEAT)
    assert len(ledger.lines("effect")) == before


async def quiet_since(ledger: Ledger, timeout: float) -> float:
    """Wait until no effects happen any more; the time of day of the last one."""

    def silent() -> bool:
        return time.time() - ledger.path.stat().st_mtime > 10 * BEAT

    await eventually(silent, timeout, what="no more effects")
    return ledger.path.stat().st_mtime


async def test_t1_cancelling_a_task_ends_three_levels_on_two_nodes_within_a_second(
    client: Client, ledger: Ledger, start_node: StartNode
) -> None:
    nodes = [await start_node(), await start_node()]
    root = await grown(client, ledger, Grow(level=2, fan=2))
    assert {pid for _, pid in ledger.lines("effect")} == {node.pid for node in nodes}
    began = time.time()

    assert await root.cancel()

    async with asyncio.timeout(5):
        middle, leaves = await outcomes(client, ledger, 1), await outcomes(client, ledger, 0)
    assert await quiet_since(ledger, 5.0) - began < 1.0
    assert {body.status for body in (*middle, *leaves)} == {"cancelled"}
    assert {body.reason for body in middle} == {f"its parent, task {root.id}"}
    assert {body.reason for body in leaves} == {f"its parent, task {body.task_id}" for body in middle}
    await assert_still(ledger)


async def test_t2_the_deadline_of_a_task_is_that_of_everything_below_it(
    client: Client, ledger: Ledger, start_node: StartNode
) -> None:
    await asyncio.gather(start_node(), start_node())
    deadline = time.time() + 3.5
    root = await grown(client, ledger, Grow(level=2, fan=2), deadline=3.5)

    async with asyncio.timeout(10):
        middle, leaves = await outcomes(client, ledger, 1), await outcomes(client, ledger, 0)
        assert (await root.outcome()).status == "expired"
    assert {body.status for body in (*middle, *leaves)} == {"expired"}
    assert all(root.id in body.reason for body in middle)
    assert await quiet_since(ledger, 3.0) - deadline < 1.0
    await assert_still(ledger)


async def test_t3_a_cascade_goes_on_though_a_worker_is_killed_in_the_middle_of_it(
    client: Client, ledger: Ledger, start_node: StartNode
) -> None:
    nodes = await asyncio.gather(start_node(), start_node())
    root = await grown(client, ledger, Grow(level=2, fan=2))
    owner = dict(ledger.lines("level1"))
    dead = next(node for node in nodes if node.pid in owner.values())
    dead.kill9()
    await dead.wait()
    began = time.time()

    assert await root.cancel()

    async with asyncio.timeout(10):
        middle, leaves = await outcomes(client, ledger, 1), await outcomes(client, ledger, 0)
    assert {body.status for body in (*middle, *leaves)} == {"cancelled"}
    assert await quiet_since(ledger, 5.0) - began < 2 * ACK_WAIT + 1.0
    await assert_still(ledger)


async def test_t4_a_lost_prompt_is_made_up_for_by_the_third_heartbeat(
    client: Client, ledger: Ledger, start_node: StartNode
) -> None:
    await start_node()
    root = await grown(client, ledger, Grow(level=1, fan=2))
    began = time.time()

    # As `cancel` does, but nobody is told.
    await decide(client.transport, client.subjects, ResultBody(root.id, "cancelled", by=f"test:{new_id()}"))

    async with asyncio.timeout(10):
        leaves = await outcomes(client, ledger, 0)
    assert {body.status for body in leaves} == {"cancelled"}
    assert await quiet_since(ledger, 5.0) - began < 2 * ACK_WAIT + 0.5


async def test_detached_tasks_go_on_when_what_submitted_them_is_cancelled(
    client: Client, ledger: Ledger, start_node: StartNode
) -> None:
    await start_node()
    root = await grown(client, ledger, Grow(level=1, fan=2, detached=True))

    assert await root.cancel()
    before = len(ledger.lines("effect"))

    await eventually(lambda: len(ledger.lines("effect")) > before + 20, what="the leaves go on")
    for task_id in ledger.tasks("level0"):
        assert (await client.tasks.get(task_id)).state == "running"


@pytest.mark.slow
async def test_t3_trees_end_while_their_workers_are_killed_again_and_again(
    client: Client, ledger: Ledger, start_node: StartNode
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rnd = random.Random(seed)
    nodes = list(await asyncio.gather(*(start_node() for _ in range(3))))
    roots = [await client.submit(Grow(level=2, fan=2), to=AGENT, deadline=rnd.choice((None, 8.0))) for _ in range(2)]

    for _ in range(6):
        await asyncio.sleep(rnd.uniform(0.2, 0.8))  # the kills come at any time
        victim = nodes.pop(rnd.randrange(len(nodes)))
        victim.kill9()
        await victim.wait()
        nodes.append(await start_node())
    ended = [await root.cancel() for root in roots]

    async with asyncio.timeout(30):
        statuses = {(await root.outcome()).status for root in roots}
        below = [body.status for level in (0, 1) for body in await outcomes(client, ledger, level)]
    assert all(ended) or "expired" in statuses
    assert statuses <= {"cancelled", "expired"}
    assert set(below) <= {"cancelled", "expired"}
    await quiet_since(ledger, 10.0)
    await assert_still(ledger)
    waiting = await client.tasks.ls()
    assert [one.task_id for one in waiting if one.state in ("waiting", "running")] == []
