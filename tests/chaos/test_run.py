"""Mixed faults under load break no promise; without a protection, one is found broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmesh.chaos import failpoints
from agentmesh.chaos.plan import DEFAULT
from agentmesh.chaos.workload import Shape
from tests.chaos.conftest import RunChaos, told
from tests.harness import alive, eventually
from tests.harness.fixtures import SpawnProcess

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


async def test_k3_mixed_faults_of_everything_break_no_promise(run_chaos: RunChaos) -> None:
    report = await run_chaos(",".join(DEFAULT), seconds=40.0, seed=20, gap=1.5)

    assert report.held, told(report)
    assert report.counts["tasks accepted"] > 300
    assert sum(report.faults.values()) >= 10


PROMISES = {
    "cas": "one result",
    "heartbeat": "no second run without a reason",
    "double-ack": "settled is settled",
    "late-ack": "accepted = decided",
    "look": "decided is not run again",
    "retry": "submits outlast 30 s without a broker",
    "key": "effects once per key",
}


@pytest.mark.parametrize(("protection", "promise"), PROMISES.items())
async def test_without_a_protection_the_run_is_found_in_violation(
    run_chaos: RunChaos, protection: str, promise: str
) -> None:
    chosen = failpoints.PROTECTIONS[protection]

    report = await run_chaos(
        ",".join(chosen.faults),
        seconds=10.0,
        seed=3,
        gap=0.8,
        shape=Shape(rate=chosen.rate),
        without=(protection,),
        patience=8.0,
    )

    assert promise in {violation.promise for violation in report.violations}, told(report)


def test_each_protection_that_a_process_can_lack_has_a_test() -> None:
    assert set(PROMISES) == {name for name, one in failpoints.PROTECTIONS.items() if one.patch is not None}


async def test_the_command_ends_with_0_and_a_document_when_every_promise_was_kept(spawn_process: SpawnProcess) -> None:
    command = await spawn_process(
        "agentmesh", "chaos", "--minutes", "0.1", "--seed", "4", "--faults", "worker-kill", "--json"
    )

    assert await command.wait(60.0) == 0
    document = json.loads(command.lines[-1])
    assert document["held"] is True
    assert set(document["faults"]) == {"worker-kill"}


async def test_ctrl_c_takes_all_its_processes_and_nothing_else(spawn_process: SpawnProcess, tmp_path: Path) -> None:
    bystander = await spawn_process("import time; print('here', flush=True); time.sleep(60)")
    await bystander.line_matching("here")
    command = await spawn_process("agentmesh", "chaos", "--minutes", "5", "--seed", "4", "--keep", str(tmp_path))
    await command.line_matching("worker|server|submitter|supervisor|link", nth=3, timeout=40.0)
    family = command.family()
    assert len(family) > 5

    command.interrupt()

    assert await command.wait(20.0) == 130
    await eventually(lambda: not [pid for pid in family if alive(pid)], 10.0)
    assert alive(bystander.pid)
