"""Accepted work survives: the rows of the test matrix that take servers away, each as `agentmesh chaos` runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.chaos import disk
from agentmesh.chaos.report import Report
from agentmesh.chaos.run import run
from agentmesh.chaos.scenarios import SCENARIOS
from tests.chaos.conftest import told

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

needs_disks = pytest.mark.skipif(bool(disk.why_not()), reason=disk.why_not())

SEED = 3


async def played(name: str, folder: Path, *without: str, **changes: float) -> Report:
    scenario = SCENARIOS[name]
    options = replace(scenario.options(SEED), keep=folder, without=without, **changes)  # type: ignore[arg-type]
    return scenario.judged(await run(options))


async def keeps_every_promise(name: str, folder: Path) -> None:
    report = await played(name, folder)

    assert report.held, told(report)
    assert report.counts["tasks accepted"] > 100
    assert report.counts["tasks decided"] >= report.counts["tasks accepted"]


@needs_disks
async def test_a3_a_power_failure_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    await keeps_every_promise("A3", tmp_path)


@needs_disks
async def test_a3_without_sync_a_power_failure_loses_accepted_tasks(tmp_path: Path) -> None:
    report = await played("A3", tmp_path, "sync", patience=5.0)

    assert {"accepted = decided", "one result"} & {violation.promise for violation in report.violations}, told(report)


async def test_a5_a_cluster_that_lost_its_leader_works_on(tmp_path: Path) -> None:
    await keeps_every_promise("A5", tmp_path)


@needs_disks
async def test_a6_a_power_failure_of_a_whole_cluster_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    await keeps_every_promise("A6", tmp_path)


async def test_a7_a_cluster_without_quorum_accepts_nothing_and_works_on_when_it_is_back(tmp_path: Path) -> None:
    await keeps_every_promise("A7", tmp_path)


async def test_a8_servers_restarted_one_after_the_other_lose_nothing(tmp_path: Path) -> None:
    await keeps_every_promise("A8", tmp_path)


async def test_a9_clients_of_a_leader_that_is_lost_silently_go_elsewhere(tmp_path: Path) -> None:
    await keeps_every_promise("A9", tmp_path)


async def test_a10_clients_of_a_leader_split_from_the_others_go_elsewhere(tmp_path: Path) -> None:
    await keeps_every_promise("A10", tmp_path)


@needs_disks
async def test_a11_a_full_disk_accepts_nothing_falsely_and_work_goes_on_with_room(tmp_path: Path) -> None:
    await keeps_every_promise("A11", tmp_path)


async def test_a12_lost_confirmations_make_no_task_run_twice(tmp_path: Path) -> None:
    await keeps_every_promise("A12", tmp_path)
