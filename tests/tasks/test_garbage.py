"""B10: what is no task becomes a dead letter with its reason, and harms nobody."""

from __future__ import annotations

import asyncio
import json

import pytest

from agentmesh.errors import InvalidMessageError, NoSuchTaskError, TaskDeadError
from agentmesh.tasks import DeadBody
from tests.harness import eventually
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Double, Fail


def task(**fields: object) -> bytes:
    return json.dumps({"task_id": "t1", "task_type": "Double", "parameters": {"n": 1}, **fields}).encode()


GARBAGE = {
    "no JSON": (b"\x00\xff\xfe", "not a task"),
    "half a document": (b'{"task_id": "t1", ', "not a task"),
    "a list": (b"[1, 2]", "not a task"),
    "nothing": (b"", "not a task"),
    "512 kB of brackets": (b"[" * 510_000, "not a task"),
    "brackets as parameters": (b'{"task_id":"t1","task_type":"Double","parameters":' + b"[" * 400_000, "not a task"),
    "deep parameters": (
        b'{"task_id":"t1","task_type":"Double","parameters":{"n":' + b"[" * 200_000 + b"]" * 200_000 + b"}}",
        "",
    ),
    "no id": (json.dumps({"task_type": "Double", "parameters": {"n": 1}}).encode(), "task_id is missing"),
    "an id that is no token": (task(task_id="a.b"), "task id"),
    "no type": (json.dumps({"task_id": "t1"}).encode(), "task_type is missing"),
    "an unknown type": (task(task_type="Treble"), "takes no 'Treble'; it takes Double"),
    "a schema of the future": (task(schema_version="2.0"), "schema_version '2.0'"),
    "wrong parameters": (task(parameters={"n": "many"}), "n: "),
    "parameters that are no object": (task(parameters=[1]), "Double"),
    "no parameters": (task(parameters=None), "n: "),
    "a parent that is no token": (task(parent_id="a.>"), "task id"),
    "a budget that is none": (task(budget=[{"steps": "many"}]), "budget"),
    "a deadline that is no time": (task(deadline="tomorrow"), "deadline"),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_b10_garbage_is_a_dead_letter_within_two_seconds(stage: Stage, what: str) -> None:
    body, reason = GARBAGE[what]
    await stage.work()

    await stage.transport.publish_durable(stage.subjects.tasks("worker", "normal"), body)

    async def letters() -> list[DeadBody]:
        return await stage.client.dead_ls()

    (letter,) = await eventually(letters, timeout=2.0)
    assert reason in letter.reason
    assert letter.original() == body
    await stage.drained()
    assert await (await stage.client.submit(Double(n=4), to="worker")).result(5) == 8


async def test_b10_whoever_waits_for_an_unreadable_task_is_told(stage: Stage) -> None:
    await stage.work()
    await stage.transport.publish_durable(stage.subjects.tasks("worker", "normal"), task(schema_version="9.0"))

    with pytest.raises(TaskDeadError, match=r"9\.0"):
        await stage.client.job("t1").result(5)


async def test_b10_garbage_at_the_door_is_a_dead_letter(stage: Stage) -> None:
    await stage.dispatch({})

    await stage.transport.publish_durable(stage.subjects.task_door(), b"[" * 510_000)

    async def letters() -> list[DeadBody]:
        return await stage.client.dead_ls()

    assert await eventually(letters, timeout=2.0)
    await stage.drained()


async def test_a_dead_letter_can_be_tried_again_under_a_new_id(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Fail(times=3), to="worker")
    with pytest.raises(TaskDeadError):
        await job.result(5)
    stage.handlers.started.clear()

    fresh = await stage.client.dead_retry(job.id)

    with pytest.raises(TaskDeadError):
        await stage.client.job(fresh).result(5)
    assert [entry.task_id for entry in await stage.client.dead_ls()] == [fresh]


async def test_a_dead_letter_can_be_dropped(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Double(n=1), to="worker")
    await stage.transport.publish_durable(stage.subjects.tasks("worker", "normal"), task(task_type="Treble"))
    with pytest.raises(TaskDeadError):
        await stage.client.job("t1").result(5)
    await job.result(5)

    await stage.client.dead_drop("t1")

    assert await stage.client.dead_ls() == []
    for gone in ("t1", job.id, "not a token"):
        with pytest.raises(NoSuchTaskError):
            await stage.client.dead_show(gone)


async def test_what_nobody_can_read_cannot_be_tried_again(stage: Stage) -> None:
    await stage.work()
    await stage.transport.publish_durable(stage.subjects.tasks("worker", "normal"), b"\x00")
    (letter,) = await eventually(lambda: asyncio.ensure_future(stage.client.dead_ls()), timeout=2.0)

    with pytest.raises(InvalidMessageError, match="cannot be tried again"):
        await stage.client.dead_retry(letter.task_id)
