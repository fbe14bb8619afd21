"""The breaker against a model of what it promises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from agentmesh.breaker import Breaker
from agentmesh.errors import CircuitOpenError, DefinitionError, error_from_wire, error_to_wire

FAILURES, WINDOW, COOLDOWN, PROBES, SUCCESSES = 3, 10.0, 5.0, 2, 2


class BreakerMachine(RuleBasedStateMachine):
    """Any order of calls, outcomes and passing time; the model keeps the whole history."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 100.0
        self.breaker = Breaker(
            "backend",
            failures=FAILURES,
            window=WINDOW,
            cooldown=COOLDOWN,
            probes=PROBES,
            successes=SUCCESSES,
            clock=lambda: self.time,
        )
        self.failures: list[float] = []
        self.opened_at: float | None = None
        self.probes: list[float] = []
        self.good = 0
        self.calls = 0

    def expected(self) -> str:
        if self.opened_at is None:
            return "closed"
        return "open" if self.time - self.opened_at < COOLDOWN else "half-open"

    def a_probe_ends(self) -> bool:
        self.probes = [at for at in self.probes if self.time - at < COOLDOWN]
        return self.opened_at is not None and bool(self.probes) and self.probes.pop(0) > 0

    def opens(self) -> None:
        self.opened_at, self.failures, self.probes, self.good = self.time, [], [], 0

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 5.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.time += seconds

    @rule()
    def call(self) -> None:
        self.probes = [at for at in self.probes if self.time - at < COOLDOWN]
        full = len(self.probes) >= PROBES
        if self.expected() == "open" or (self.expected() == "half-open" and full):
            with pytest.raises(CircuitOpenError) as caught:
                self.breaker.admit()
            assert 0 < caught.value.retry_after <= COOLDOWN
            return
        self.breaker.admit()
        self.calls += 1
        if self.expected() == "half-open":
            self.probes.append(self.time)

    @precondition(lambda self: self.calls > 0)
    @rule()
    def succeed(self) -> None:
        self.calls -= 1
        self.breaker.succeeded()
        if self.a_probe_ends():
            self.good += 1
            if self.good == SUCCESSES:
                self.opened_at, self.failures, self.probes = None, [], []

    @precondition(lambda self: self.calls > 0)
    @rule()
    def fail(self) -> None:
        self.calls -= 1
        self.breaker.failed()
        if self.opened_at is None:
            self.failures = [at for at in self.failures if self.time - at < WINDOW] + [self.time]
            if len(self.failures) == FAILURES:
                self.opens()
        elif self.a_probe_ends():
            self.opens()

    @precondition(lambda self: self.calls > 0)
    @rule()
    def drop(self) -> None:
        self.calls -= 1
        self.breaker.dropped()
        self.a_probe_ends()

    @invariant()
    def state_is_the_models(self) -> None:
        assert self.breaker.state == self.expected()

    @invariant()
    def it_is_never_shut_for_longer_than_the_cooldown(self) -> None:
        assert 0 <= self.breaker.retry_after <= COOLDOWN


@pytest.mark.seed("A27")
def test_the_breaker_does_what_its_model_does() -> None:
    run_state_machine_as_test(BreakerMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


@pytest.mark.seed("A27")
def test_it_opens_after_failures_probes_after_the_cooldown_and_closes_after_successes() -> None:
    time = 0.0
    breaker = Breaker("b", failures=2, window=60, cooldown=30, probes=1, successes=2, clock=lambda: time)
    for _ in range(2):
        breaker.admit()
        breaker.failed()
    with pytest.raises(
        CircuitOpenError, match=r"^'b' failed again and again lately and is not tried for 30\.0 s more$"
    ):
        breaker.admit()
    assert (breaker.state, breaker.opened) == ("open", 1)
    time = 30.0
    assert breaker.state == "half-open"
    for _ in range(2):
        breaker.admit()
        with pytest.raises(CircuitOpenError):
            breaker.admit()  # one probe at a time
        breaker.succeeded()
    assert breaker.state == "closed"


def test_failures_older_than_the_window_do_not_count() -> None:
    time = 0.0
    breaker = Breaker("b", failures=2, window=10, clock=lambda: time)
    breaker.failed()
    time = 10.0
    breaker.failed()
    assert breaker.state == "closed"
    breaker.failed()
    assert breaker.state == "open"


def test_a_breaker_that_could_never_work_is_refused() -> None:
    wrongs: list[dict[str, Any]] = [
        {"failures": 0},
        {"window": 0.0},
        {"cooldown": -1.0},
        {"probes": 0},
        {"successes": 0},
    ]
    for wrong in wrongs:
        with pytest.raises(DefinitionError, match="1 or more"):
            Breaker("b", **wrong)


def test_the_error_survives_the_wire() -> None:
    error = error_from_wire(error_to_wire(CircuitOpenError("writer", 2.5)), "somebody")
    assert isinstance(error, CircuitOpenError)
    assert (error.name, error.retry_after) == ("writer", 2.5)
