"""`agentmesh schedule` and `agentmesh submit --delay` against a real broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from agentmesh import Agent, AgentRef, Mesh, Task, handler
from tests.cli.conftest import Cli

Spawn = Callable[..., Awaitable[AgentRef]]


class Ring(Task[str]):
    bell: str


class Ringer(Agent):
    @handler
    async def ring(self, task: Ring) -> str:
        return task.bell


async def test_a_schedule_is_added_shown_paused_resumed_and_removed(cli: Cli) -> None:
    ring = ("Ring", "--data", '{"bell": "a"}', "--id", "bells", "--to", "x")
    added = await cli("schedule", "add", *ring, "--every", "5m")
    assert (added.code, added.out, added.err) == (0, "bells\n", "")

    shown = (await cli("schedule", "show", "bells", "--json")).json
    assert (shown["when"], shown["data"], shown["agent_id"], shown["created_by"]) == (
        *("@every 300s", {"bell": "a"}, "x", "cli"),
    )
    runs = [datetime.fromisoformat(run) for run in shown["next"]]
    assert len(runs) == 5
    assert all(second - first == timedelta(minutes=5) for first, second in pairwise(runs))
    assert runs[0] > datetime.now(UTC)

    assert (await cli("schedule", "pause", "bells")).err == "schedule bells is paused\n"
    assert "paused" in (await cli("schedule", "ls")).lines[1]
    assert (await cli("schedule", "resume", "bells", "--json")).json == {"id": "bells", "resumed": True}
    assert (await cli("schedule", "rm", "bells")).code == 0
    assert (await cli("schedule", "ls")).err == "nothing is scheduled\n"
    gone = await cli("schedule", "rm", "bells")
    assert (gone.code, "no schedule 'bells'" in gone.err) == (1, True)


async def test_a_schedule_of_a_type_that_nobody_takes_is_made_with_a_warning(cli: Cli, spawn: Spawn) -> None:
    await spawn(Ringer)

    slip = await cli("schedule", "add", "Rong", "--every", "5m", "--id", "slip")
    right = await cli("schedule", "add", "Ring", "--data", '{"bell": "a"}', "--every", "5m", "--id", "right")
    taken = await cli("schedule", "add", "Ring", "--data", '{"bell": "b"}', "--every", "5m", "--id", "right")

    assert (slip.code, slip.out) == (0, "slip\n")
    assert "no agent that runs now takes Rong (did you mean Ring?)" in slip.err
    assert (right.code, right.err) == (0, "")
    assert (taken.code, "--replace" in taken.err) == (1, True)


async def test_a_delayed_task_is_submitted_listed_and_run(cli: Cli, spawn: Spawn, mesh: Mesh) -> None:
    await spawn(Ringer)
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    waiting = (await cli("submit", "Ring", "--data", '{"bell": "b"}', "--at", later)).out.strip()
    assert [status["state"] for status in (await cli("task", "ls", "--state", "scheduled", "--json")).json] == [
        "scheduled"
    ]
    assert (await cli("task", "cancel", waiting)).code == 0

    rung = await cli("submit", "Ring", "--data", '{"bell": "c"}', "--to", "ringer", "--delay", "300ms", "--wait")

    assert (rung.code, rung.out) == (0, "c\n")
    assert await mesh.schedules.ls() == []


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (["schedule", "add", "Ring"], 2, "one of --every, --cron and --at"),
        (["schedule", "add", "Ring", "--cron", "0 0 99 * * *"], 2, "the broker takes no such"),
        (["schedule", "add", "Ring", "--every", "soon"], 2, "--every 'soon'"),
        (["schedule", "add", "Ring", "--at", "2020-01-01T00:00"], 2, "in the past"),
        (["schedule", "add", "Ring", "--at", "2999-01-01T00:00", "--tz", "No/Where"], 2, "no such time zone"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
async def test_what_cannot_be_scheduled_is_refused(cli: Cli, typed: list[str], code: int, said: str) -> None:
    ran = await cli(*typed)

    assert (ran.code, said in ran.err) == (code, True), ran.err
    assert ran.out == ""


async def test_another_schedule_under_the_same_id_needs_replace(cli: Cli, mesh: Mesh) -> None:
    ring = ("schedule", "add", "Ring", "--id", "bells")
    assert (await cli(*ring, "--every", "60")).code == 0
    assert (await cli(*ring, "--every", "60")).code == 0

    refused = await cli(*ring, "--every", "90", "--json")
    replaced = await cli(*ring, "--every", "90", "--replace")

    assert (refused.code, "DuplicateScheduleError" in refused.err) == (1, True)
    assert replaced.code == 0
    assert [str(info.when) for info in await mesh.schedules.ls()] == ["@every 90s"]


async def test_a_schedule_in_the_settings_that_cannot_be_is_an_error_with_its_name(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text('[schedules.nightly]\ntask = "Ring"\ncron = "0 3 * * *"\n')

    ran = await cli("up")

    assert ran.code == 2
    assert "schedules.nightly" in ran.err
    assert "seconds come first" in ran.err
