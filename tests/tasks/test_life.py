"""What a submitted task can rely on, without faults."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import pytest

from agentmesh.context import current
from agentmesh.errors import (
    DeadlineExceededError,
    InvalidMessageError,
    InvalidNameError,
    NoSuchTaskError,
    PayloadTooLargeError,
    TaskCancelledError,
    TaskDeadError,
    TaskExpiredError,
    TaskFailedError,
)
from agentmesh.streams import StreamWriter
from agentmesh.tasks import Chunk, Job, Progress, Restarted, TaskContext
from agentmesh.tasks.layout import TASKS
from tests.harness import eventually
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Big, Double, Fail, Hang, Hold, Nap, Once, Story, Stubborn


async def test_a_task_is_done_and_its_result_is_typed(stage: Stage) -> None:
    await stage.work()

    job = await stage.client.submit(Double(n=21), to="worker")

    assert await job.result(5) == 42
    await stage.drained()


async def test_a_task_for_an_agent_that_is_not_there_yet_waits_for_it(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=1), to="worker")
    assert (await job.status()).state == "waiting"

    await stage.work()

    assert await job.result(5) == 2


async def test_a_result_can_be_read_by_id_after_everybody_else_has_gone(stage: Stage) -> None:
    worker = await stage.work()
    submitted = await stage.client.submit(Double(n=4), to="worker")
    await submitted.result(5)
    await worker.stop()

    later = Stage(stage.transport, stage.subjects.tenant).client.job(submitted.id, Double)

    assert await later.result(5) == 8


async def test_a_job_of_unknown_type_gives_plain_data(stage: Stage) -> None:
    await stage.work()
    submitted = await stage.client.submit(Double(n=4), to="worker")

    assert await stage.client.job(submitted.id).result(5) == 8


async def test_a_result_that_does_not_fit_the_type_asked_for_is_an_error(stage: Stage) -> None:
    await stage.work()
    submitted = await stage.client.submit(Double(n=4), to="worker")

    with pytest.raises(InvalidMessageError):
        await stage.client.job(submitted.id, Once).result(5)


async def test_giving_up_the_wait_changes_nothing_about_the_task(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Hold(), to="worker")

    with pytest.raises(DeadlineExceededError, match=job.id):
        await job.result(0.1)
    stage.handlers.release.set()

    assert await job.result(5) == "released"


async def test_many_may_wait_for_the_same_task(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Hold(), to="worker")
    waiting = [asyncio.create_task(stage.client.job(job.id, Hold).result(5)) for _ in range(10)]
    await stage.handlers.has_started()

    stage.handlers.release.set()

    assert await asyncio.gather(*waiting) == ["released"] * 10


async def test_progress_and_chunks_come_in_order_and_can_be_read_again(stage: Stage) -> None:
    await stage.work()
    words = [f"word{number}" for number in range(300)]
    job = await stage.client.submit(Story(words=words), to="worker")

    live = [event async for event in job]
    again = [event async for event in stage.client.job(job.id, Story)]

    assert [event.data for event in live if isinstance(event, Chunk)] == words
    assert [event.text for event in live if isinstance(event, Progress)] == words
    assert again == live


async def test_a_retried_task_tells_its_reader_to_forget_the_first_attempt(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Story(words=["a", "b"], failures=1), to="worker")

    events = [event for event in [event async for event in job] if not isinstance(event, Progress)]

    assert events == [Chunk("a"), Chunk("b"), Restarted(2), Chunk("a"), Chunk("b")]
    assert await job.result(5) == "a b"


async def test_f6_what_a_replaced_attempt_still_says_is_not_mixed_into_the_new_one(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=1), to="worker")
    old, new = (StreamWriter(stage.transport, stage.subjects, job.id, attempt=attempt) for attempt in (1, 2))
    for writer, text in ((old, "a"), (new, "b"), (old, "zombie"), (new, "c")):
        await writer.append("chunk", text)
        await writer.flush()
    await job.cancel()

    assert [event async for event in job] == [Chunk("a"), Restarted(2), Chunk("b"), Chunk("c")]


async def test_reading_the_events_of_a_cancelled_task_ends(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=1), to="nobody")
    reading = asyncio.create_task(_events(job))

    await job.cancel()

    assert await asyncio.wait_for(reading, 5) == []


async def test_a_failing_task_is_tried_again(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Fail(times=1), to="worker")

    assert (await job.outcome()).status == "completed"
    assert stage.handlers.attempts(job.id) == [1, 2]
    assert [entry.message for entry in await stage.client.history(job.id)] == ["no luck"]


async def test_b9_retries_keep_the_delays_of_the_policy_and_end_in_one_dead_letter(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Fail(), to="worker")

    with pytest.raises(TaskDeadError, match="ValueError: no luck"):
        await job.result(10)

    times = [at for _, _, at in stage.handlers.started]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == pytest.approx([0.2, 0.4], rel=0.2, abs=0.08)
    letter = await stage.client.dead_show(job.id)
    assert [(entry.attempt, entry.error_type) for entry in letter.history] == [(n, "ValueError") for n in (1, 2, 3)]
    assert len(await stage.client.dead_ls()) == 1
    await stage.drained()


async def test_reject_ends_a_task_at_once(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Once(how="reject"), to="worker")

    with pytest.raises(TaskDeadError, match="cannot be done"):
        await job.result(5)

    assert stage.handlers.attempts(job.id) == [1]


async def test_asking_for_a_retry_in_the_last_attempt_is_the_end(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Once(how="retry"), to="worker")

    with pytest.raises(TaskDeadError, match="later"):
        await job.result(5)


async def test_a_result_of_the_wrong_type_fails_the_task_and_says_so(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Once(how="wrong result"), to="worker")

    with pytest.raises(TaskFailedError, match="does not fit its declaration"):
        await job.result(5)


async def test_a_result_that_is_too_large_fails_the_task_and_says_so(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Big(size=600_000), to="worker")

    with pytest.raises(TaskFailedError, match="too large"):
        await job.result(5)
    await stage.drained()


async def test_a_task_that_is_too_large_is_refused_before_it_is_sent(stage: Stage) -> None:
    with pytest.raises(PayloadTooLargeError):
        await stage.client.submit(Fail(message="x" * 600_000), to="worker")


@pytest.mark.parametrize("bad", ["a.b", "*", "", "x\n", "ü"])
async def test_an_id_that_is_no_token_is_refused(stage: Stage, bad: str) -> None:
    with pytest.raises(InvalidNameError):
        await stage.client.submit(Double(n=1), to="worker", task_id=bad)
    with pytest.raises(InvalidNameError):
        stage.client.job(bad)
    with pytest.raises(InvalidNameError):
        await stage.client.cancel(bad)


async def test_b15_a_hung_handler_is_ended_and_its_slot_free_again(stage: Stage) -> None:
    await stage.work(slots=1)
    hung = await stage.client.submit(Hang(), to="worker")
    begun = time.monotonic()

    with pytest.raises(TaskFailedError, match="timeout"):
        await hung.result(5)

    assert time.monotonic() - begun < 0.5 + 1.0
    assert await (await stage.client.submit(Double(n=2), to="worker")).result(5) == 4
    assert stage.handlers.attempts(hung.id) == [1]


@pytest.mark.slow
async def test_a_handler_that_ignores_its_cancellation_does_not_keep_its_task(stage: Stage) -> None:
    await stage.work(slots=2)
    job = await stage.client.submit(Stubborn(), to="worker")

    with pytest.raises(TaskFailedError, match="timeout"):
        await job.result(10)

    await stage.drained()
    stage.handlers.release.set()
    await stage.handlers.is_idle()
    assert (await job.status()).state == "failed"


async def test_a_worker_stops_in_time_though_a_handler_ignores_it(stage: Stage) -> None:
    worker = await stage.work(slots=2)
    job = await stage.client.submit(Stubborn(), to="worker")
    await stage.handlers.has_started()
    begun = time.monotonic()

    await worker.stop(grace=0.0)

    assert time.monotonic() - begun < 2.5
    stage.handlers.release.set()
    await stage.handlers.is_idle()
    await stage.work()
    await job.outcome()


async def test_a_worker_keeps_to_the_ack_wait_that_is_in_effect(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    first = await stage.work(ack_wait=0.5)
    await first.stop()
    await stage.work(ack_wait=30.0)
    job = await stage.client.submit(Nap(seconds=1.2), to="worker")

    assert await job.result(5) == "rested"
    assert stage.handlers.attempts(job.id) == [1]
    assert "ack_wait" in caplog.text


async def test_waiting_for_a_task_on_an_empty_server_is_just_waiting(own: Stage) -> None:
    with pytest.raises(DeadlineExceededError):
        await own.client.job("unknown", Double).result(0.2)
    with pytest.raises(NoSuchTaskError):
        await own.client.get("unknown")
    assert await own.client.ls() == []
    assert await own.client.dead_ls() == []


async def test_a_task_that_waits_for_its_next_attempt_says_why(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Fail(message="try me"), to="worker")

    async def told() -> bool:
        return (await job.status()).reason == "ValueError: try me"

    await eventually(told)


async def test_e8_a_task_whose_deadline_passes_in_the_queue_is_expired_and_not_run(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=1), to="worker", deadline=0.3)

    with pytest.raises(TaskExpiredError):  # decided by the waiting job: no worker is there
        await job.result(5)
    await stage.work()
    await stage.drained()

    assert stage.handlers.started == []


async def test_e8_a_late_task_nobody_waits_for_is_expired_by_its_worker(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=1), to="worker", deadline=0.01)
    await asyncio.to_thread(time.sleep, 0.05)  # it is the deadline that has to pass
    await stage.work()
    await stage.drained()

    assert (await job.status()).state == "expired"
    assert stage.handlers.started == []


async def test_a_handler_is_ended_at_the_deadline(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Hold(), to="worker", deadline=0.4)
    await stage.handlers.has_started()

    with pytest.raises(TaskExpiredError):
        await job.result(5)
    await stage.handlers.is_idle()


async def test_b6_a_task_much_longer_than_ack_wait_is_delivered_once(stage: Stage) -> None:
    await stage.work(ack_wait=0.5)
    job = await stage.client.submit(Hold(seconds=60), to="worker")
    await stage.handlers.has_started()
    asyncio.get_running_loop().call_later(6 * 0.5, stage.handlers.release.set)

    assert await job.result(10) == "released"
    assert stage.handlers.attempts(job.id) == [1]


async def test_b13_slots_are_never_exceeded(stage: Stage) -> None:
    worker = await stage.work(slots=4, prefetch=0)
    jobs = await asyncio.gather(
        *(stage.client.submit(Nap(), to="worker") for _ in range(200)),
    )

    pending = 0
    waiting = asyncio.gather(*(job.result(20) for job in jobs))
    while not waiting.done():
        info = await stage.transport.consumer_info(TASKS, stage.subjects.task_consumer("worker", "normal"))
        assert info is not None
        pending = max(pending, info.ack_pending)
        assert len(worker.running) <= 4

    assert await waiting == ["rested"] * 200
    assert stage.handlers.most_active == 4
    assert pending <= 4


async def test_b13_prefetched_tasks_are_held_and_counted(stage: Stage) -> None:
    await stage.work(slots=1, prefetch=3)
    for _ in range(10):
        await stage.client.submit(Hold(), to="worker")
    await stage.handlers.has_started()

    async def held() -> bool:
        info = await stage.transport.consumer_info(TASKS, stage.subjects.task_consumer("worker", "normal"))
        return info is not None and info.ack_pending == 4

    await eventually(held)
    assert stage.handlers.active == 1


async def test_status_tells_where_a_task_is(stage: Stage) -> None:
    await stage.work(slots=1)
    running = await stage.client.submit(Hold(), to="worker")
    await stage.handlers.has_started()
    waiting = await stage.client.submit(Double(n=3), to="worker", priority="low")

    assert [status.state for status in (await running.status(), await waiting.status())] == ["running", "waiting"]
    assert [status.task_id for status in await stage.client.ls("waiting")] == [waiting.id]
    assert [(status.worker, status.attempt) for status in await stage.client.ls("running")] == [("here", 1)]
    stage.handlers.release.set()
    await waiting.result(5)

    assert (await waiting.status()).result == 6
    assert [status.task_id for status in await stage.client.ls()] == [waiting.id, running.id]
    with pytest.raises(NoSuchTaskError):
        await stage.client.get("unknown")


async def test_a_task_sees_its_id_attempt_and_idempotency_key(stage: Stage) -> None:
    seen: list[TaskContext] = []

    async def run(task: object, ctx: TaskContext) -> int:
        seen.append(ctx)
        here = current()
        assert here is not None
        assert (here.agent, here.sender, here.message_id) == ("worker", "me", "mine")
        return 0

    await stage.work(run=run)
    job = await stage.client.submit(Double(n=1), to="worker", task_id="mine", priority="high", source="me")
    await job.result(5)

    (ctx,) = seen
    assert (ctx.task_id, ctx.attempt, ctx.priority, ctx.sender) == ("mine", 1, "high", "me")
    assert ctx.key("pay") == f"{stage.subjects.tenant}/mine/pay"


async def test_a_plain_json_publish_to_the_queue_of_an_agent_works(stage: Stage) -> None:
    await stage.work()
    body = json.dumps({"task_id": "foreign-1", "task_type": "Double", "parameters": {"n": 5}, "unknown": 1})

    await stage.transport.publish(stage.subjects.tasks("worker", "normal"), body.encode())

    assert await stage.client.job("foreign-1", Double).result(5) == 10


async def test_e5_a_task_cancelled_in_the_queue_never_starts(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=1), to="worker")

    assert await job.cancel()
    await stage.work()
    await stage.drained()

    assert stage.handlers.started == []
    with pytest.raises(TaskCancelledError):
        await job.result(5)


async def test_e6_a_running_task_is_stopped_within_half_a_second_of_its_cancellation(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Hold(), to="worker")
    await stage.handlers.has_started()
    begun = time.monotonic()

    assert await stage.client.cancel(job.id, by="the boss")
    await stage.handlers.is_idle()

    assert time.monotonic() - begun < 0.5
    assert stage.handlers.ended == []
    with pytest.raises(TaskCancelledError, match="the boss"):
        await job.result(5)
    await stage.drained()


async def test_e6_a_cancellation_whose_prompt_got_lost_is_noticed_by_the_heartbeat(stage: Stage) -> None:
    worker = await stage.work(ack_wait=0.5)
    for subscription in worker._subscriptions:
        await subscription.unsubscribe()
    job = await stage.client.submit(Hold(), to="worker")
    await stage.handlers.has_started()

    await job.cancel()

    await stage.handlers.is_idle(timeout=2.0)


async def test_a_forged_prompt_cancels_nothing(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Hold(), to="worker")
    await stage.handlers.has_started()

    await stage.transport.publish(stage.subjects.control("cancel"), job.id.encode())
    stage.handlers.release.set()

    assert await job.result(5) == "released"


async def test_a_cancellation_after_the_result_loses_and_says_so(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Double(n=1), to="worker")
    await job.result(5)

    assert not await job.cancel()
    assert await job.result(5) == 2


async def test_e7_cancelling_and_completing_race_and_both_sides_agree(stage: Stage) -> None:
    await stage.work(slots=16)

    async def one(number: int) -> str:
        job = await stage.client.submit(Double(n=number), to="worker")
        won = await job.cancel()
        body = await job.outcome()
        assert (body.status == "cancelled") == won
        return body.status

    outcomes = await asyncio.gather(*(one(number) for number in range(200)))

    assert set(outcomes) <= {"cancelled", "completed"}
    counts = await stage.transport.subjects_of("RESULTS", stage.subjects.results() + ".*")
    assert len(counts) == 200
    assert set(counts.values()) == {1}


async def test_e3_fifty_submits_of_one_id_run_once(stage: Stage) -> None:
    await stage.work(slots=16)

    jobs = await asyncio.gather(
        *(stage.client.submit(Double(n=7), to="worker", task_id="same") for _ in range(50)),
    )

    assert [await job.result(5) for job in jobs] == [14] * 50
    assert stage.handlers.attempts("same") == [1]


async def test_two_tenants_may_use_the_same_id(stage: Stage) -> None:
    other = Stage(stage.transport)
    await stage.work()
    await other.work()

    mine = await stage.client.submit(Double(n=1), to="worker", task_id="one")
    theirs = await other.client.submit(Double(n=2), to="worker", task_id="one")

    assert (await mine.result(5), await theirs.result(5)) == (2, 4)


async def _events(job: Job[int]) -> list[object]:
    return [event async for event in job]
