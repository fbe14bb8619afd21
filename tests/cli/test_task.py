"""`submit`, `map`, `task` and `dead` against real workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from agentmesh import Agent, AgentRef, Mesh, Reject, Task, TaskContext, handler
from agentmesh.cli import exits
from tests.cli.conftest import Cli
from tests.harness import eventually

Spawn = Callable[..., Awaitable[AgentRef]]


class Square(Task[int]):
    number: int


class Refuse(Task[int]):
    reason: str


class Stay(Task[str]):
    pass


class Deliver(Task[str]):
    pass


class Worker(Agent):
    """Does sums."""

    concurrency = 8

    @handler
    async def square(self, task: Square, ctx: TaskContext) -> int:
        await ctx.progress(0.5, "half of it")
        return task.number**2

    @handler
    async def refuse(self, task: Refuse) -> int:
        raise Reject(task.reason)

    @handler
    async def deliver(self, task: Deliver, ctx: TaskContext) -> str:
        number = await ctx.step("take number", lambda: 7)
        squared = await ctx.run(Square(number=number))
        who = await ctx.signal("who signs", str)
        return f"{squared} for {who}"

    @handler
    async def stay(self, task: Stay) -> str:
        await asyncio.Event().wait()
        return "never"


async def test_submit_prints_the_id_and_wait_the_result(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)

    submitted = await cli("submit", "Square", "--data", '{"number": 7}')
    waited = await cli("task", "wait", submitted.out.strip())

    assert (submitted.code, submitted.err) == (0, "")
    assert (waited.code, waited.out) == (0, "49\n")


async def test_submit_with_wait_prints_the_result_and_progress_when_asked(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)

    ran = await cli("submit", "Square", "--data", '{"number": 3}', "--wait", "-v")

    assert (ran.code, ran.out) == (0, "9\n")
    assert "working: 50% half of it" in ran.err


async def test_a_task_with_an_id_of_ones_own_is_run_once(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)

    for _ in range(2):
        ran = await cli("submit", "Square", "--data", '{"number": 2}', "--id", "mine", "--wait", "--json")
        assert ran.json == 4

    listed = await cli("task", "ls", "--json")
    assert [entry["task_id"] for entry in listed.json] == ["mine"]


async def test_a_key_finds_the_task_that_was_submitted_with_it(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)
    keyed = ("--idempotency-key", "nightly")

    first = await cli("submit", "Square", "--data", '{"number": 7}', *keyed)
    again = await cli("submit", "Square", "--data", '{"number": 7}', *keyed, "--wait")
    other = await cli("submit", "Square", "--data", '{"number": 8}', *keyed)
    both = await cli("submit", "Square", "--data", '{"number": 7}', *keyed, "--id", "mine")

    assert first.out.strip() in again.err
    assert (again.code, again.out) == (0, "49\n")
    assert (other.code, both.code) == (2, 2)
    assert "used for task Square with other content" in other.err


async def test_a_task_waits_until_somebody_can_do_it(cli: Cli) -> None:
    await cli("submit", "Square", "--data", '{"number": 2}', "--to", "worker", "--id", "early")

    got = await cli("task", "get", "early", "--json")
    listed = await cli("task", "ls", "--state", "waiting")

    assert got.json["state"] == "waiting"
    assert "early" in listed.out


async def test_a_task_nobody_takes_is_pointed_out(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)

    ran = await cli("submit", "Sqare", "--data", '{"number": 3}')

    assert ran.code == 0
    assert "no agent that runs now takes Sqare (did you mean Square?)" in ran.err


async def test_who_stops_waiting_hears_how_to_go_on(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)

    ran = await cli("submit", "Stay", "--id", "long", "--wait", "--timeout", "300ms")

    assert ran.code == 5
    assert "agentmesh task wait long" in ran.err


async def test_cancel_ends_a_running_task_and_says_when_it_is_too_late(cli: Cli, spawn: Spawn, mesh: Mesh) -> None:
    worker = await spawn(Worker)
    job = await worker.submit(Stay(), task_id="stay")

    assert (await cli("task", "cancel", "stay")).code == 0
    assert (await job.outcome()).status == "cancelled"
    done = await worker.submit(Square(number=1), task_id="done")
    await done.result()
    late = await cli("task", "cancel", "done")
    assert late.code == 1
    assert "was decided before" in late.err


async def test_waiting_for_a_task_that_is_not_done_in_time_ends_with_5(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)

    ran = await cli("submit", "Stay", "--wait", "--timeout", "300ms")

    assert ran.code == 5
    assert "0.3 s" in ran.err


async def test_a_task_that_does_not_exist_ends_with_1(cli: Cli) -> None:
    ran = await cli("task", "wait", "nothing")

    assert ran.code == 1
    assert "no task 'nothing'; see: agentmesh task ls" in ran.err


async def test_cancelling_an_unknown_task_says_what_it_does(cli: Cli) -> None:
    ran = await cli("task", "cancel", "nothing")

    assert ran.code == 0
    assert "no task had that id" in ran.err


async def test_a_signal_that_nobody_waits_for_yet_is_told_from_a_slip(cli: Cli, spawn: Spawn, mesh: Mesh) -> None:
    worker = await spawn(Worker)
    job = await worker.submit(Deliver(), task_id="deliver")

    async def waits() -> bool:
        return any(step.kind == "signal" for step in await job.steps())

    await eventually(waits)

    slip = await cli("task", "signal", "deliver", "who sings", "--data", '"Eve"')
    right = await cli("task", "signal", "deliver", "who signs", "--data", '"Ada"')

    assert slip.code == right.code == 0
    assert "now the task waits for 'who signs'" in slip.err
    assert "warning" not in right.err
    assert await job.result() == "49 for Ada"


async def test_a_dead_letter_is_listed_shown_retried_and_dropped(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)

    refused = await cli("submit", "Refuse", "--data", '{"reason": "too big"}', "--id", "bad", "--wait")
    assert refused.code == 1
    assert "agentmesh dead show bad" in refused.err

    assert "too big" in (await cli("dead", "ls")).out
    shown = await cli("dead", "show", "bad")
    assert '"reason":"too big"' in shown.out.replace(": ", ":")
    assert (await cli("dead", "show", "bad", "--json")).json["body"]["parameters"] == {"reason": "too big"}
    again = (await cli("dead", "retry", "bad")).out.strip()
    assert (await cli("task", "wait", again)).code == 1
    assert (await cli("dead", "drop", again)).code == 0
    assert (await cli("dead", "ls", "--json")).json == []
    assert (await cli("dead", "show", again)).code == 1


async def test_map_prints_a_line_per_item_in_their_order(cli: Cli, spawn: Spawn, tmp_path: Path) -> None:
    await spawn(Worker)
    items = [{"number": number} for number in range(20)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))

    from_file = await cli("map", "Square", "--items", "@items.jsonl", "--limit", "4")
    from_pipe = await cli("map", "Square", "--items", "-", stdin='{"number": 3}\n\n{"number": 4}\n')

    assert from_file.code == 0
    assert [json.loads(line) for line in from_file.lines] == [
        {"item": item, "result": item["number"] ** 2} for item in items
    ]
    assert [json.loads(line)["result"] for line in from_pipe.lines] == [9, 16]


async def test_map_keeps_going_when_told_and_ends_with_1_if_any_failed(cli: Cli, spawn: Spawn) -> None:
    await spawn(Worker)
    items = ("--data", '{"reason": "a"}', "--data", '{"reason": "b"}')

    stopped = await cli("map", "Refuse", *items, "--limit", "1")
    went_on = await cli("map", "Refuse", *items, "--limit", "1", "--keep-going")

    assert (stopped.code, went_on.code) == (1, 1)
    assert [json.loads(line)["error"]["type"] for line in went_on.lines] == ["TaskDeadError", "TaskDeadError"]
    assert "2 of 2 failed" in went_on.err


async def test_items_that_are_no_objects_are_refused_before_anything_is_submitted(cli: Cli) -> None:
    ran = await cli("map", "Square", "--items", "-", stdin='{"number": 1}\n[2]\n')

    assert ran.code == 2
    assert "line 2" in ran.err


async def test_show_lists_the_steps_of_a_workflow_and_signal_lets_it_go_on(cli: Cli, mesh: Mesh, spawn: Spawn) -> None:
    await spawn(Worker)
    job = await mesh.submit(Deliver(), to="worker", task_id="parcel")

    async def waits() -> bool:
        return any(step.name == "who signs" for step in await job.steps())

    await eventually(waits)
    shown = await cli("task", "show", "parcel")
    given = await cli("task", "signal", "parcel", "who signs", "--data", '"Ada"')
    late = await cli("task", "signal", "parcel", "who signs", "--data", '"Bob"', "--json")

    assert await job.result(10) == "49 for Ada"
    rows = [line.split() for line in shown.lines[-4:]]
    assert rows[0] == ["STEP", "WHAT", "STATE", "AGE", "ERROR"]
    assert rows[1][:4] == ["take", "number", "step", "completed"]
    assert rows[2][:4] == ["Square", "run", "Square", "completed"]
    assert rows[3][:4] == ["who", "signs", "signal", "running"]
    assert "agentmesh task signal parcel 'who signs' --data VALUE" in shown.err
    assert (given.code, late.code, late.json["counts"]) == (0, 1, False)
    document = (await cli("task", "show", "parcel", "--json")).json
    assert document["state"] == "completed"
    assert [step["name"] for step in document["steps"]] == ["take number", "Square", "who signs"]


async def test_show_of_a_task_that_is_no_workflow_has_no_steps_and_signals_need_a_task(
    cli: Cli, mesh: Mesh, spawn: Spawn
) -> None:
    await spawn(Worker)
    await (await mesh.submit(Square(number=2), to="worker", task_id="plain")).result(10)

    shown = await cli("task", "show", "plain")
    unknown = await cli("task", "signal", "nobody", "go")
    broken = await cli("task", "signal", "plain", "go", "--data", "{")

    assert "STEP" not in shown.out
    assert shown.err == ""
    assert (unknown.code, broken.code) == (exits.FAILED, exits.USAGE)
