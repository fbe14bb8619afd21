"""One task per item: bounded, in order, with a policy for failures."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.errors import BatchFailedError, DefinitionError, TaskDeadError
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Double, Hold, Nap, Once, Story


async def test_results_come_in_the_order_of_the_items(stage: Stage) -> None:
    await stage.work(slots=8, prefetch=8)

    assert await stage.client.map(Double, range(500), to="worker") == [2 * n for n in range(500)]
    await stage.drained()


async def test_an_empty_batch_is_an_empty_list(stage: Stage) -> None:
    assert await stage.client.map(Double, [], to="worker") == []


async def test_no_more_than_limit_are_under_way(stage: Stage) -> None:
    batch = stage.client.map(Hold, [Hold() for _ in range(20)], to="worker", limit=5)
    await stage.work(slots=20)
    waiting = asyncio.ensure_future(batch)
    await stage.handlers.has_started(5)

    assert await stage.queued() == 5

    stage.handlers.release.set()
    assert len(await waiting) == 20
    assert stage.handlers.most_active <= 5


async def test_items_are_seen_as_they_finish_with_progress(stage: Stage) -> None:
    await stage.work(slots=4)
    items = [Nap(seconds=seconds) for seconds in (0.3, 0.2, 0.0)]
    batch = stage.client.map(Nap, items, to="worker")

    seen = [(finished.index, batch.done, batch.total) async for finished in batch]

    assert seen == [(2, 1, 3), (1, 2, 3), (0, 3, 3)]


async def test_items_may_be_fields_or_the_value_of_the_only_required_field(stage: Stage) -> None:
    await stage.work()

    assert await stage.client.map(Double, [{"n": 1}, 2, Double(n=3)], to="worker") == [2, 4, 6]
    assert await stage.client.map(Story, [["a", "b"]], to="worker") == ["a b"]
    with pytest.raises(DefinitionError, match="give tasks or dicts of fields"):
        stage.client.map(Nap, ["0.1"], to="worker")


async def test_errors_are_returned_in_the_place_of_results(stage: Stage) -> None:
    await stage.work()
    batch = stage.client.map(Once, ["fine", "reject", "fine"], to="worker", on_error="return")

    first, second, third = await batch

    assert (first, third) == ("fine", "fine")
    assert isinstance(second, TaskDeadError)
    assert (batch.done, batch.failed) == (3, 1)


async def test_the_first_failure_cancels_the_rest_and_keeps_the_results(stage: Stage) -> None:
    await stage.work(slots=8)
    items = [Once(how="fine"), Once(how="reject"), *(Once(how="fine") for _ in range(50))]

    with pytest.raises(BatchFailedError, match=r"1 of 52 tasks failed.*cannot be done") as caught:
        await stage.client.map(Once, items, to="worker", limit=2)

    assert caught.value.results[0] == "fine"
    await stage.drained()
    assert len(stage.handlers.started) < 52


async def test_cancelling_a_batch_cancels_its_tasks(stage: Stage) -> None:
    await stage.work(slots=3)
    batch = stage.client.map(Hold, [Hold() for _ in range(10)], to="worker", limit=5)
    waiting = asyncio.ensure_future(batch)
    await stage.handlers.has_started(3)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await stage.handlers.is_idle()
    await stage.drained()
    assert stage.handlers.ended == []
    assert {status.state for status in await stage.client.ls()} == {"cancelled"}


async def test_leaving_the_iteration_cancels_what_is_under_way(stage: Stage) -> None:
    await stage.work(slots=3)
    items = [Nap(seconds=60), Nap(seconds=60), Nap(seconds=0.01)]

    async for finished in stage.client.map(Nap, items, to="worker"):
        assert finished.index == 2
        break

    await stage.handlers.is_idle()
    await stage.drained()
