"""`agentmesh chaos`: what can be typed, and what is said about it. The runs themselves are in tests/chaos."""

from __future__ import annotations

import os

import pytest

from agentmesh.chaos import disk
from agentmesh.chaos.scenarios import SCENARIOS
from tests.cli.conftest import Cli
from tests.harness.fixtures import SpawnProcess


async def test_faults_protections_and_scenarios_are_listed(alone: Cli) -> None:
    listed = (await alone("chaos", "--list", "--json")).json

    assert {"worker-kill", "leader-split"} < set(listed["faults"])
    assert {"cas", "sync"} < set(listed["protections"])
    assert set(listed["scenarios"]) == set(SCENARIOS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--faults", "worker,sever"), "there is no fault 'sever'"),
        (("--without", "hope"), "there is no protection 'hope'; there are cas, heartbeat"),
        (("--without", "sync"), "--scenario A3 --without sync"),
        (("--scenario", "A99"), "there is no scenario 'A99'"),
    ],
)
async def test_what_cannot_be_done_is_said_and_nothing_is_started(
    alone: Cli, arguments: tuple[str, ...], said: str
) -> None:
    ran = await alone("chaos", *arguments)

    assert ran.code == 2
    assert said in ran.err


def test_without_root_a_disk_that_fails_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert disk.why_not() == "needs root, for loop devices"
    assert SCENARIOS["A3"].why_not() == disk.why_not()
    assert SCENARIOS["A5"].why_not() == ""


async def test_a_scenario_that_cannot_be_run_is_skipped_with_the_reason(spawn_process: SpawnProcess) -> None:
    process = await spawn_process(
        """
        import os
        os.geteuid = lambda: 1000
        from agentmesh.cli.app import main
        main(["chaos", "--scenario", "A3"])
        """
    )

    assert await process.wait(20.0) == 0
    assert "skipped" in process.output
    assert "needs root, for loop devices" in process.output
