"""A copy of a queue that does not catch up holds up nothing: its consumers are led elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.chaos import Cluster
from agentmesh.subjects import Subjects
from agentmesh.tasks.lagging import LOOKS, Behind, LaggingCopies
from agentmesh.tasks.layout import TASKS, ensure_streams, task_consumer
from agentmesh.transport import Copy, Transport, TransportOptions
from tests.harness import Server, eventually

LATE = Copy("n3", online=True, current=False, lag=7)


def looks(*copies: Copy) -> list[dict[str, int]]:
    behind = Behind()
    return [behind.look([copy]) for copy in copies]


def test_a_copy_that_stays_behind_is_found_after_some_looks() -> None:
    assert looks(*[LATE] * (LOOKS + 1)) == [*[{}] * (LOOKS - 1), {"n3": 7}, {"n3": 7}]


@pytest.mark.parametrize(
    "between",
    [
        Copy("n3", online=True, current=True, lag=0),
        Copy("n3", online=False, current=False, lag=9),  # nothing is led there
        Copy("n3", online=True, current=False, lag=1),  # it catches up
    ],
)
def test_a_copy_that_catches_up_is_left_alone(between: Copy) -> None:
    assert not any(looks(LATE, LATE, between, LATE))


@pytest.mark.slow
async def test_the_consumers_of_a_copy_that_stays_behind_are_led_elsewhere_and_deliver() -> None:
    """The broker moves them; that the copy is behind is said by us: no fault brings it about for sure."""
    subjects = Subjects("lagging")
    moved: list[tuple[str, str, int]] = []
    async with Cluster() as cluster:
        options = TransportOptions(url=cluster.urls, replicas=3)
        async with await Transport.connect(options) as transport:
            await ensure_streams(transport)
            for priority in ("high", "normal", "low"):
                await transport.ensure_consumer(task_consumer(subjects, "worker", priority))
            leaders = await eventually(lambda: _complete(transport), 20)
            server = next(iter(leaders.values()))
            led = [name for name, leader in leaders.items() if leader == server]
            chore = LaggingCopies(transport, on_moved=lambda *what: moved.append(what))
            late = Copy(server, online=True, current=False, lag=7)

            await chore.move_away(TASKS, late.server, late.lag)

            assert moved == [(TASKS, server, len(led))]

            async def elsewhere() -> bool:
                now = await transport.leaders(TASKS)
                return all(now[name] not in ("", server) for name in led)

            await eventually(elsewhere, 20)
            await transport.publish_durable(subjects.tasks("worker", "low"), b"{}")
            pull = transport.pull(TASKS, subjects.task_consumer("worker", "low"))
            await pull.start()
            async with asyncio.timeout(10):
                while not await pull.take(1):
                    pass
            await pull.stop()


async def _complete(transport: Transport) -> dict[str, str]:
    leaders = await transport.leaders(TASKS)
    return leaders if all(leaders.values()) else {}


async def test_a_single_server_has_no_other_copies(server: Server) -> None:
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        await ensure_streams(transport)

        assert not transport.clustered
        assert await transport.copies(TASKS) == []
