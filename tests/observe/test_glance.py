"""What `agentmesh top` makes of two samples."""

from __future__ import annotations

import pytest

from agentmesh.cli.glance import Glance, Sample
from agentmesh.metrics import Family, Metrics


def sample(at: float, handled: float, *, state: float = 0) -> Sample:
    """Of a process with two replicas of one agent, and a breaker."""
    families = Metrics()
    for seconds in (0.001, 0.004, 0.2, 0.2):
        families.histogram("agentmesh_handling_seconds", "h", agent="a", replica=1).observe(seconds)
    states = Family("agentmesh_agent_state", "gauge", "s")
    counts = Family("agentmesh_handled_total", "counter", "h")
    breaker, opened = (
        Family("agentmesh_breaker_state", "gauge", "b"),
        Family("agentmesh_breaker_opened_total", "counter", "o"),
    )
    for replica, how in ((1, "ready"), (2, "paused")):
        states.add(1, process="p", agent="a", replica=replica, state=how)
        counts.add(handled, process="p", agent="a", replica=replica)
    breaker.add(state, process="p", target="b", tenant="t")
    opened.add(1 if state else 0, process="p", target="b", tenant="t")
    return Sample(at, [*families.families(), states, counts, breaker, opened])


@pytest.mark.seed("B52")
def test_rates_are_those_of_the_interval_and_replicas_are_taken_together() -> None:
    (agent,) = Glance(sample(10.0, 100), sample(12.0, 150)).agents()
    assert (agent["state"], agent["handled"], agent["rate"], agent["p95"]) == ("1 paused, 1 ready", 300, 50.0, "250 ms")


def test_a_process_that_was_started_again_has_no_negative_rate() -> None:
    assert Glance(sample(10.0, 100), sample(11.0, 3)).agents()[0]["rate"] == 0.0


@pytest.mark.seed("A27", "B52")
def test_breakers_are_shown_when_they_have_something_to_say() -> None:
    assert Glance(sample(1, 0), sample(2, 0)).breakers() == []
    assert Glance(sample(1, 0), sample(2, 0, state=2)).breakers() == [
        {"breaker": "b", "state": "open", "opened": 1, "process": "p"}
    ]


def test_nothing_at_all_can_be_shown() -> None:
    glance = Glance(Sample(0.0), Sample(1.0))
    assert glance.headline().startswith("0 processes, 0 replicas")
    assert all(rows == [] for _, rows in glance.tables())
