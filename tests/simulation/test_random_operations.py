"""K2: whatever is done to tasks, in whatever order, agrees with a model that fits on a page."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from agentmesh.errors import NoSuchTaskError
from agentmesh.tasks.layout import DEAD, RESULTS, TASKS
from tests.harness import eventually
from tests.simulation.ground import Ground, RealGround, SimulatedGround, stored
from tests.simulation.mutants import planted
from tests.simulation.world import AGENT, Work

IDS = st.sampled_from(["a", "b", "c", "d"])
SCRIPTS = st.sampled_from([("ok",), ("raise", "ok"), ("raise",)])
MAX_WORKERS = 3


class Operations(RuleBasedStateMachine):
    """The model: ids that were accepted, ids that were cancelled, and what was seen in each slot."""

    ground_type: type[Ground] = SimulatedGround
    longest_wait = 6.0

    def __init__(self) -> None:
        super().__init__()
        self.ground = self.ground_type()
        self.client = self.ground.client
        self.accepted: set[str] = set()
        self.cancelled: set[str] = set()
        self.expiring: set[str] = set()
        self.slots: dict[str, bytes] = {}
        self.ground.run(self.client.ensure())

    # -- what clients do

    @rule(task_id=IDS, script=SCRIPTS, seconds=st.sampled_from([0.0, 0.1, 1.0]), late=st.booleans())
    def submit(self, task_id: str, script: tuple[str, ...], seconds: float, late: bool) -> None:
        task = Work(script=script, seconds=seconds)
        if late:
            self.expiring.add(task_id)
        self.ground.run(self.client.submit(task, to=AGENT, task_id=task_id, deadline=0.3 if late else None))
        self.accepted.add(task_id)

    @rule(task_id=IDS)
    def cancel(self, task_id: str) -> None:
        self.cancelled.add(task_id)

        won = self.ground.run(self.client.cancel(task_id))

        assert won == (self.status_of(task_id) == "cancelled")

    @rule(task_id=IDS)
    def ask(self, task_id: str) -> None:
        known = task_id in self.accepted | self.cancelled
        try:
            state = self.ground.run(self.client.get(task_id)).state
        except NoSuchTaskError:
            assert not known
        else:
            assert known
            assert state in ("waiting", "running", self.status_of(task_id))

    @rule(seconds=st.sampled_from([0.05, 0.5, 6.0]))
    def wait(self, seconds: float) -> None:
        self.ground.run(asyncio.sleep(min(seconds, self.longest_wait)))

    # -- what happens to workers and broker

    @precondition(lambda self: len(self.ground.workers()) < MAX_WORKERS)
    @rule()
    def start(self) -> None:
        self.ground.start_worker()

    @precondition(lambda self: self.ground.workers())
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.ground.crash(data.draw(st.sampled_from(self.ground.workers())))

    @precondition(lambda self: self.ground.workers())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.ground.leave(data.draw(st.sampled_from(self.ground.workers())))

    @rule()
    def restart(self) -> None:
        self.ground.restart()

    # -- what must hold

    @invariant()
    def slots_never_change(self) -> None:
        for task_id, results in self.results().items():
            assert len(results) == 1, f"{task_id} was decided {len(results)} times"
            assert self.slots.setdefault(task_id, results[0]) == results[0]
            assert task_id in self.accepted | self.cancelled
        for task_id in self.slots:
            status = self.status_of(task_id)
            assert status != "cancelled" or task_id in self.cancelled
            assert status != "expired" or task_id in self.expiring

    def teardown(self) -> None:
        try:
            self.comes_to_rest()
        finally:
            self.ground.close()

    def comes_to_rest(self) -> None:
        if not self.ground.workers():
            self.ground.start_worker()
        self.ground.run(self.all_decided())
        self.slots_never_change()
        letters = self.ground.run(stored(self.client, DEAD, self.client.subjects.all_dead()))
        assert set(letters) == {task_id for task_id in self.slots if self.status_of(task_id) == "dead"}

    async def all_decided(self) -> None:
        async with asyncio.timeout(60):
            for task_id in self.accepted:
                await self.client.job(task_id).outcome()
            await self.drained()

    async def drained(self) -> None:
        async def is_empty() -> bool:
            patterns = self.client.subjects.all_tasks()
            return not any([await self.client.transport.subjects_of(TASKS, pattern) for pattern in patterns])

        await eventually(is_empty, 60, what="the queue is empty", period=0.1)

    def results(self) -> dict[str, list[bytes]]:
        return self.ground.run(stored(self.client, RESULTS, self.client.subjects.all_results()))

    def status_of(self, task_id: str) -> str:
        results = self.results().get(task_id)
        document: dict[str, Any] = json.loads(results[0]) if results else {}
        return str(document.get("status", ""))


class RealOperations(Operations):
    ground_type = RealGround
    longest_wait = 0.5


def play(machine: type[Operations], cases: int, steps: int, mutant: str = "") -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    chosen = settings(
        max_examples=cases,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
        phases=[Phase.generate] if mutant else list(Phase),
    )
    with planted(mutant):
        run_state_machine_as_test(machine, settings=chosen)


def test_k2_random_operations_agree_with_the_model() -> None:
    play(Operations, 40, 20)


@pytest.mark.parametrize("mutant", ["no-cas", "ack-first"])
def test_k2_planted_bugs_are_found(mutant: str) -> None:
    with pytest.raises((AssertionError, TimeoutError)):
        play(Operations, 200, 20, mutant)


@pytest.mark.slow
def test_k2_five_hundred_cases_of_random_operations_agree_with_the_model() -> None:
    play(Operations, 500, 30)


@pytest.mark.slow
def test_k2_random_operations_on_a_real_server_agree_with_the_model() -> None:
    play(RealOperations, 6, 10)
