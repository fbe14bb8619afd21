"""The checker sees what it must see: one history for each way to break a promise, and one that keeps them all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from agentmesh.chaos.checker import Checker
from agentmesh.chaos.evidence import Evidence
from agentmesh.chaos.history import Entry
from agentmesh.chaos.raw import Stored

WORKER, OTHER, SUBMITTER, CHAOS = 11, 12, 21, 31


class Story:
    """Writes a history."""

    def __init__(self) -> None:
        self.lines: list[Entry] = []
        self.results: list[Stored] = []
        self.drained: float | None = 1.0

    def line(self, at: float, pid: int, kind: str, **fields: Any) -> None:
        self.lines.append({"kind": kind, "mono": at, "at": at + 1000.0, "pid": pid, "role": f"p{pid}", **fields})

    def submit(self, task: str = "t", at: float = 1.0, **fields: Any) -> None:
        about = {"step": "work", "deadline": None, "delay": None, "copied": False, **fields}
        self.line(at, SUBMITTER, "submitting", task=task, **about)
        self.line(at + 0.01, SUBMITTER, "accepted", task=task, seconds=0.01)

    def start(self, at: float = 2.0, pid: int = WORKER, task: str = "t", attempt: int = 1) -> None:
        self.line(at - 0.01, pid, "delivered", task=task, delivery=attempt)
        self.line(at, pid, "started", task=task, attempt=attempt)

    def effect(self, at: float, pid: int = WORKER, task: str = "t", key: str = "") -> None:
        self.line(at, pid, "effect", task=task, attempt=1, key=key or f"key of {task}")

    def result(self, at: float, status: str = "completed", by: str = "w", task: str = "t") -> None:
        body = json.dumps({"task_id": task, "status": status, "by": by}).encode()
        self.results.append(Stored(len(self.results) + 1, f"ai.agent.results.x.{task}", body, at + 1000.0))

    def decided(self, at: float, status: str = "completed", by: str = "w", task: str = "t") -> None:
        self.line(at, SUBMITTER, "decided", task=task, status=status, by=by)

    def fault(self, at: float, until: float, *, child: int = 0, broker: bool = False) -> None:
        about = {"number": len(self.lines), "fault": "some", "target": "x", "child": child, "broker": broker}
        self.line(at, CHAOS, "fault", **about)
        self.line(until, CHAOS, "mended", **about)

    def evidence(self) -> Evidence:
        history = sorted(self.lines, key=lambda line: float(line["mono"]))
        return Evidence(history=history, results=self.results, drained=self.drained)

    def broken(self) -> set[str]:
        """The promises that were broken."""
        return {violation.promise for violation in Checker(self.evidence()).violations()}


@pytest.fixture
def story() -> Story:
    return Story()


def _plain(story: Story) -> None:
    story.submit()
    story.start(2.0)
    story.effect(2.5)
    story.result(2.6)
    story.decided(2.7)


def _redelivered_after_a_kill(story: Story) -> None:
    story.submit()
    story.start(2.0)
    story.effect(2.5)
    story.fault(2.6, 2.6, child=WORKER)
    story.line(2.61, CHAOS, "exited", member="w", child=WORKER, code=-9, meant=True)
    story.start(4.5, OTHER, attempt=2)
    story.effect(5.0, OTHER)
    story.result(5.1)
    story.decided(5.2)


def _a_frozen_worker_wakes_up(story: Story) -> None:
    story.submit()
    story.start(2.0)
    story.fault(2.1, 9.0, child=WORKER)
    story.start(4.1, OTHER, attempt=2)
    story.line(4.2, SUBMITTER, "cancelled", task="t", won=True)
    story.result(4.2, "cancelled", "c")
    story.effect(9.2)


def _a_delivery_is_held_up_on_its_way(story: Story) -> None:
    story.submit()
    story.start(2.0)
    story.fault(2.1, 6.0, broker=True)
    story.effect(2.5)
    story.result(6.1)
    story.line(6.2, WORKER, "settled", task="t", subject="s")
    story.line(6.8, OTHER, "delivered", task="t", delivery=3)


@pytest.mark.parametrize(
    "kept", [_plain, _a_delivery_is_held_up_on_its_way, _redelivered_after_a_kill, _a_frozen_worker_wakes_up]
)
def test_a_kept_promise_is_no_violation(story: Story, kept: Callable[[Story], None]) -> None:
    kept(story)

    assert story.broken() == set()


def test_an_accepted_task_without_a_result_is_found_with_its_lines(story: Story) -> None:
    story.submit()
    story.start()

    (violation,) = Checker(story.evidence()).violations()

    assert violation.promise == "accepted = decided"
    assert [line["kind"] for line in violation.lines] == ["submitting", "accepted", "delivered", "started"]


def test_a_second_result_is_found(story: Story) -> None:
    _plain(story)
    story.result(3.0, by="other")

    assert story.broken() == {"one result"}


def test_a_result_that_changes_or_goes_is_found(story: Story) -> None:
    _plain(story)
    evidence = story.evidence()
    evidence.seen = {1: evidence.results[0], 2: evidence.results[0]}

    assert {violation.promise for violation in Checker(evidence).violations()} == {"one result"}


def test_a_reader_that_was_told_otherwise_is_found(story: Story) -> None:
    _plain(story)
    story.decided(2.9, by="somebody else")

    assert story.broken() == {"all readers agree"}


def test_a_canceller_that_was_told_otherwise_is_found(story: Story) -> None:
    _plain(story)
    story.line(2.9, SUBMITTER, "cancelled", task="t", won=True)

    assert story.broken() == {"all readers agree"}


def test_a_second_key_is_found(story: Story) -> None:
    _redelivered_after_a_kill(story)
    story.effect(5.05, OTHER, key="another")

    assert story.broken() == {"effects once per key"}


def test_an_effect_after_a_cancellation_is_found(story: Story) -> None:
    story.submit()
    story.start(2.0)
    story.result(3.0, "cancelled", "c")
    story.effect(4.5)

    assert story.broken() == {"no effect after cancel or expiry"}


def test_a_start_after_the_decision_is_found(story: Story) -> None:
    story.submit()
    story.result(2.0, "cancelled", "c")
    story.start(3.5)

    assert story.broken() == {"decided is not run again"}


def test_a_second_start_beside_a_healthy_worker_is_found(story: Story) -> None:
    story.submit()
    story.start(2.0)
    story.start(4.0, OTHER, attempt=2)
    story.effect(4.5)
    story.result(4.6)

    assert story.broken() == {"no second run without a reason"}


def test_a_settled_task_that_comes_again_is_found(story: Story) -> None:
    _plain(story)
    story.line(2.7, WORKER, "settled", task="t", subject="s")
    story.line(4.0, OTHER, "delivered", task="t", delivery=1)

    assert story.broken() == {"settled is settled"}


def test_a_delayed_task_that_starts_early_is_found(story: Story) -> None:
    story.submit(delay=5.0)
    story.start(5.5)
    story.effect(5.6)
    story.result(5.7)

    assert story.broken() == {"delayed tasks wait until they are due"}


@pytest.mark.parametrize("status", ["dead", "expired", "failed"])
def test_a_result_without_a_reason_is_found(story: Story, status: str) -> None:
    story.submit()
    story.result(2.0, status)

    assert story.broken() == {"results have a reason"}


def test_a_submit_that_fails_is_found(story: Story) -> None:
    story.line(1.0, SUBMITTER, "refused", task="t", error="StreamFull", seconds=0.1)
    story.line(9.0, SUBMITTER, "unknown", task="u", error="PublishTimeout", seconds=2.0)

    assert story.broken() == {"submits outlast 30 s without a broker"}


def test_a_request_that_ends_late_or_wrongly_is_found(story: Story) -> None:
    story.line(9.0, SUBMITTER, "asked", n=1, outcome="DeadlineExceededError", seconds=5.0, timeout=3.0)
    story.line(9.0, SUBMITTER, "asked", n=2, outcome="the wrong reply 3", seconds=0.1, timeout=3.0)

    assert len(Checker(story.evidence()).violations()) == 2
    assert story.broken() == {"one outcome per request"}


def test_durable_events_out_of_order_or_lost_are_found(story: Story) -> None:
    for n in (1, 2, 3):
        story.line(float(n), SUBMITTER, "told", sender="s", n=n)
    story.line(4.0, WORKER, "noted", sender="s", n=2)
    story.line(4.1, WORKER, "noted", sender="s", n=1)

    assert story.broken() == {"durable events keep their order", "durable events are handled"}


def test_a_run_that_does_not_come_to_rest_is_found(story: Story) -> None:
    _plain(story)
    story.drained = None

    assert story.broken() == {"everything drains"}


def test_a_process_that_ends_by_itself_is_found(story: Story) -> None:
    story.line(9.0, CHAOS, "exited", member="w", child=WORKER, code=1, meant=False)

    assert story.broken() == {"no process ends by itself"}


def test_a_process_that_grows_is_found(story: Story) -> None:
    for second in range(120):
        story.line(float(second), CHAOS, "memory", child=WORKER, bytes=100_000_000 + second * 1_000_000)
        story.line(float(second), CHAOS, "memory", child=OTHER, bytes=100_000_000)

    (violation,) = Checker(story.evidence()).violations()

    assert violation.promise == "memory is flat"
    assert violation.what.startswith(f"process {WORKER} grew by ")
