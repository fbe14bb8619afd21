"""The same seed plans the same run."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from agentmesh.chaos.load import planned
from agentmesh.chaos.plan import DEFAULT, KINDS, kinds, plan
from agentmesh.chaos.scenarios import SCENARIOS, chosen
from agentmesh.errors import UsageError


def test_the_same_seed_plans_the_same_faults_and_another_one_others() -> None:
    names = kinds(DEFAULT, cluster=True)

    assert plan(7, 300.0, names) == plan(7, 300.0, names)
    assert plan(7, 300.0, names) != plan(8, 300.0, names)


def test_the_same_seed_plans_the_same_work_and_another_life_other_work() -> None:
    def steps(seed: int, life: int) -> list[object]:
        return list(islice(planned(seed, 1, life, 10.0), 200))

    assert steps(7, 0) == steps(7, 0)
    assert steps(7, 0) != steps(7, 1)


def test_every_fault_ends_within_the_time_and_every_kind_comes() -> None:
    faults = plan(3, 600.0, kinds(DEFAULT, cluster=True))

    assert max(fault.at + fault.seconds for fault in faults) <= 600.0
    assert {fault.name for fault in faults} == {name for name, kind in KINDS.items() if not kind.scenario}


def test_one_broker_fault_at_a_time() -> None:
    broken = [fault for fault in plan(5, 600.0, kinds(DEFAULT, cluster=True)) if KINDS[fault.name].broker]

    assert all(before.at + before.seconds < after.at for before, after in pairwise(broken))


def test_a_single_server_has_no_leader_to_lose() -> None:
    assert not [name for name in kinds(DEFAULT, cluster=False) if name.startswith("leader")]


def test_a_fault_that_needs_servers_made_for_it_comes_in_scenarios_only() -> None:
    with pytest.raises(UsageError, match="comes only in a scenario"):
        kinds(["power-cut"], cluster=True)


def test_scenarios_are_chosen_by_id_letter_or_all() -> None:
    assert list(chosen(("a3", "K3"))) == ["A3", "K3"]
    assert set(chosen(("A",))) == {name for name in SCENARIOS if name.startswith("A")}
    assert chosen(("all",)) == SCENARIOS
    with pytest.raises(UsageError, match="'Z9'"):
        chosen(("Z9",))


def test_a_fault_that_is_none_is_told_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'wroker'.*worker-kill"):
        kinds(["wroker"], cluster=False)
