"""What supervisors promise, with children that are plain objects."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest

from agentmesh.errors import ConfigError, RestartIntensityError, SupervisionError
from agentmesh.supervisor import ChildSpec, Exit, RestartPolicy, Supervisor, SupervisorEvent
from agentmesh.supervisor.tree import Strategy

FAST = RestartPolicy(backoff=0.0)


class Part:
    """A child that ends when told to."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log
        self.over: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def stop(self, timeout: float) -> None:
        self.log.append(f"stop {self.name}")
        if not self.over.done():
            self.over.set_result(Exit())

    async def wait(self) -> Exit:
        return await asyncio.shield(self.over)

    def finish(self) -> None:
        self.over.set_result(Exit(detail="done"))

    def crash(self, problem: str = "boom") -> None:
        self.over.set_result(Exit(ValueError(problem)))


class Yard:
    """Starts parts, remembers everything, and lets a test wait for what happens."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.parts: dict[str, Part] = {}
        self.refuse: set[str] = set()
        self._changed = asyncio.Event()

    def spec(self, name: str, restart: str = "permanent", *, significant: bool = False) -> ChildSpec:
        async def start() -> Part:
            self.log.append(f"start {name}")
            self._changed.set()
            if name in self.refuse:
                raise ValueError(f"{name} cannot start")
            part = self.parts[name] = Part(name, self.log)
            return part

        return ChildSpec(name, start, restart=restart, significant=significant)

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    def heard(self, event: SupervisorEvent) -> None:
        self.log.append(f"{event.kind} {event.child}")
        self._changed.set()

    def times(self, entry: str) -> int:
        return self.log.count(entry)


@pytest.fixture
async def yard() -> Yard:
    return Yard()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_children_start_in_order_and_stop_in_reverse(yard: Yard) -> None:
    supervisor = Supervisor("s")
    await supervisor.start([yard.spec("a"), yard.spec("b"), yard.spec("c")])
    await supervisor.stop()

    assert yard.log == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    assert (await supervisor.wait()).error is None


async def test_when_a_child_cannot_start_those_before_it_are_stopped(yard: Yard) -> None:
    yard.refuse.add("b")

    with pytest.raises(ValueError, match="b cannot start"):
        await Supervisor("s").start([yard.spec("a"), yard.spec("b"), yard.spec("c")])

    assert yard.log == ["start a", "start b", "stop a"]


@pytest.mark.parametrize(
    ("restart", "failure", "starts"),
    [
        ("permanent", True, 2),
        ("permanent", False, 2),
        ("transient", True, 2),
        ("transient", False, 1),
        ("temporary", True, 1),
        ("temporary", False, 1),
    ],
)
async def test_the_restart_type_decides_who_comes_back(yard: Yard, restart: str, failure: bool, starts: int) -> None:
    supervisor = Supervisor("s", policy=FAST, on_event=yard.heard)
    await supervisor.start([yard.spec("a", restart)])

    yard.parts["a"].over.set_result(Exit(ValueError("boom") if failure else None))
    await yard.until(lambda: "exited a" in yard.log and yard.times("started a") == starts)
    await settled()

    assert yard.times("start a") == starts
    await supervisor.stop()


@pytest.mark.parametrize(
    ("strategy", "again"),
    [
        ("one_for_one", ["start b"]),
        ("one_for_all", ["stop c", "stop a", "start a", "start b", "start c"]),
        ("rest_for_one", ["stop c", "start b", "start c"]),
    ],
)
async def test_c3_the_strategy_decides_which_siblings_restart(yard: Yard, strategy: Strategy, again: list[str]) -> None:
    supervisor = Supervisor("s", policy=FAST, strategy=strategy)
    await supervisor.start([yard.spec("a"), yard.spec("b"), yard.spec("c")])
    yard.log.clear()

    yard.parts["b"].crash()
    await yard.until(lambda: yard.log == again)

    await settled()
    assert yard.log == again
    assert [child.state for child in supervisor.children()] == ["running"] * 3
    await supervisor.stop()


async def test_c3_a_crash_loop_ends_with_the_intensity_and_stops_the_siblings(yard: Yard) -> None:
    given_up: list[BaseException] = []
    supervisor = Supervisor("s", policy=FAST, on_event=yard.heard, on_escalation=given_up.append)
    await supervisor.start([yard.spec("a"), yard.spec("b")])

    for life in range(1, 5):
        await yard.until(lambda life=life: yard.times("started a") == life)  # type: ignore[misc]
        yard.parts["a"].crash("again")

    exit = await supervisor.wait()
    assert isinstance(exit.error, RestartIntensityError)
    assert "a failed again after 3 restarts in 5 s; last: ValueError: again" in str(exit.error)
    assert yard.times("start a") == 4
    assert yard.times("stop b") == 1
    assert given_up == [exit.error]
    assert supervisor.children() == []


async def test_a_child_that_is_not_started_again_lets_go_of_what_it_holds(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=FAST)
    await supervisor.start([yard.spec("a", "temporary")])
    yard.parts["a"].crash()
    await settled()
    assert yard.log == ["start a", "stop a"]

    looping = Supervisor("s", policy=RestartPolicy(max_restarts=0))
    await looping.start([yard.spec("b")])
    yard.parts["b"].crash()
    await looping.wait()
    assert yard.log[-1] == "stop b"


async def test_c3_a_start_that_fails_counts_as_a_failure(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=FAST)
    await supervisor.start([yard.spec("a")])
    yard.refuse.add("a")

    yard.parts["a"].crash()

    exit = await supervisor.wait()
    assert isinstance(exit.error, RestartIntensityError)
    assert yard.times("start a") == 4


async def test_a_patient_start_is_tried_again_as_the_policy_says(yard: Yard) -> None:
    yard.refuse.add("a")
    supervisor = Supervisor("s", policy=FAST)

    await supervisor.add(yard.spec("a"), patient=True)
    yard.refuse.clear()
    await yard.until(lambda: "a" in yard.parts)

    await settled()
    assert [child.state for child in supervisor.children()] == ["running"]
    await supervisor.stop()


async def test_c3_an_escalation_is_a_failure_of_the_child_above(yard: Yard) -> None:
    inner: list[Supervisor] = []

    async def start_inner() -> Supervisor:
        supervisor = Supervisor("inner", policy=RestartPolicy(max_restarts=0))
        await supervisor.start([yard.spec("a")])
        inner.append(supervisor)
        return supervisor

    outer = Supervisor("outer", policy=FAST, on_event=yard.heard)
    await outer.start([yard.spec("b"), ChildSpec("inner", start_inner, shutdown_timeout=math.inf)])

    yard.parts["a"].crash()
    await yard.until(lambda: yard.times("started inner") == 2)

    assert len(inner) == 2
    assert yard.times("start b") == 1
    await outer.stop()
    assert yard.log[-4:] == ["stop a", "stopped inner", "stop b", "stopped b"]


async def test_restarts_long_ago_do_not_count() -> None:
    yard = Yard()
    supervisor = Supervisor("s", policy=RestartPolicy(max_restarts=1, period=0.05, backoff=0.0), on_event=yard.heard)
    await supervisor.start([yard.spec("a")])
    for life in range(1, 4):
        await yard.until(lambda life=life: yard.times("started a") == life)  # type: ignore[misc]
        await asyncio.sleep(0.06)  # the period is what is tested
        yard.parts["a"].crash()
    await yard.until(lambda: yard.times("started a") == 4)
    await supervisor.stop()


async def test_c4_a_child_that_hangs_in_its_stop_is_left_behind(
    yard: Yard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(Part):
        async def stop(self, timeout: float) -> None:
            await asyncio.Event().wait()

    async def start() -> Part:
        return Stuck("stuck", yard.log)

    monkeypatch.setattr("agentmesh.supervisor.tree.STOP_MARGIN", 0.05)
    supervisor = Supervisor("s")
    await supervisor.start([yard.spec("a"), ChildSpec("stuck", start, shutdown_timeout=0.05)])
    async with asyncio.timeout(2):
        await supervisor.stop()

    assert "stop a" in yard.log
    assert "stuck did not stop within 0.05 s" in caplog.text


async def test_a_child_can_be_restarted_and_removed_by_hand(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=RestartPolicy(max_restarts=0))
    await supervisor.start([yard.spec("a"), yard.spec("b")])
    yard.log.clear()

    await supervisor.restart_child("a")
    assert yard.log == ["stop a", "start a"]
    await supervisor.remove("a")
    assert [child.name for child in supervisor.children()] == ["b"]
    with pytest.raises(SupervisionError, match="no child 'a'"):
        await supervisor.remove("a")
    with pytest.raises(SupervisionError, match="a child 'b' already"):
        await supervisor.add(yard.spec("b"))
    await supervisor.stop()
    with pytest.raises(SupervisionError, match="has ended"):
        await supervisor.add(yard.spec("c"))


async def test_removing_a_child_whose_siblings_wait_for_their_restart_lets_them_come_back(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=RestartPolicy(backoff=60.0), strategy="one_for_all", on_event=yard.heard)
    await supervisor.start([yard.spec("a"), yard.spec("b")])
    yard.parts["a"].crash()
    await yard.until(lambda: "restarting a" in yard.log)

    await supervisor.remove("a")
    await yard.until(lambda: yard.times("started b") == 2)

    assert [child.name for child in supervisor.children()] == ["b"]
    await supervisor.stop()


async def test_a_failure_while_siblings_wait_for_their_restart_brings_all_of_them_back(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=RestartPolicy(backoff=0.1), strategy="rest_for_one", on_event=yard.heard)
    await supervisor.start([yard.spec("a"), yard.spec("b"), yard.spec("c")])
    yard.parts["b"].crash()
    await yard.until(lambda: "restarting b" in yard.log)
    yard.parts["a"].crash()
    await yard.until(lambda: yard.times("started c") == 2)

    assert [yard.times(f"start {name}") for name in "abc"] == [2, 2, 2]
    await supervisor.stop()


async def test_stopping_while_a_restart_is_due_starts_nothing(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=RestartPolicy(backoff=60.0), on_event=yard.heard)
    await supervisor.start([yard.spec("a")])
    yard.parts["a"].crash()
    await yard.until(lambda: "restarting a" in yard.log)

    await supervisor.stop()

    assert yard.times("start a") == 1


async def test_a_released_child_is_left_alone(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=FAST)
    part = Part("a", yard.log)
    supervisor.adopt(yard.spec("a"), part)

    await supervisor.release()
    part.crash()
    await settled()

    assert yard.log == []


async def test_children_that_do_not_need_each_other_stop_at_the_same_time(yard: Yard) -> None:
    meeting = asyncio.Barrier(2)

    class Waits(Part):
        async def stop(self, timeout: float) -> None:
            await meeting.wait()

    def start(name: str) -> Callable[[], Awaitable[Part]]:
        async def begin() -> Part:
            return Waits(name, yard.log)

        return begin

    supervisor = Supervisor("s", parallel=True)
    await supervisor.start([ChildSpec("a", start("a")), ChildSpec("b", start("b"))])
    async with asyncio.timeout(2):
        await supervisor.stop()


def test_the_wait_doubles_up_to_its_limit_and_leaves_some_to_chance() -> None:
    policy = RestartPolicy(backoff=0.2, max_backoff=1.0, jitter=0.25)
    for restart, longest in enumerate([0.2, 0.4, 0.8, 1.0, 1.0], start=1):
        waits = [policy.delay(restart) for _ in range(50)]
        assert longest * 0.75 <= min(waits) < max(waits) <= longest
    assert policy.delay(10_000) <= 1.0


def test_an_unknown_restart_type_is_refused() -> None:
    async def start() -> Part:
        raise AssertionError

    with pytest.raises(ConfigError, match="expected one of permanent"):
        ChildSpec("a", start, restart="always")


async def test_the_end_of_any_significant_child_shuts_the_supervisor_down_in_good_order(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=FAST, auto_shutdown="any_significant", on_event=yard.heard)
    await supervisor.start(
        [yard.spec("a"), yard.spec("b", "transient", significant=True), yard.spec("c", "temporary", significant=True)]
    )

    yard.parts["b"].finish()
    exit = await supervisor.wait()

    assert exit.error is None
    assert "b ended: done" in exit.detail
    assert [entry for entry in yard.log if entry.startswith("stop ")] == ["stop b", "stop c", "stop a"]
    assert supervisor.children() == []


async def test_a_significant_child_that_is_restarted_has_not_ended(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=FAST, auto_shutdown="any_significant", on_event=yard.heard)
    await supervisor.start([yard.spec("a", "transient", significant=True)])

    yard.parts["a"].crash()

    await yard.until(lambda: yard.times("start a") == 2)
    yard.parts["a"].finish()
    assert (await supervisor.wait()).error is None


async def test_all_significant_children_must_have_ended(yard: Yard) -> None:
    supervisor = Supervisor("s", policy=FAST, auto_shutdown="all_significant", on_event=yard.heard)
    await supervisor.start(
        [yard.spec("a"), yard.spec("b", "transient", significant=True), yard.spec("c", "temporary", significant=True)]
    )

    yard.parts["c"].crash()
    await yard.until(lambda: yard.times("exited c") == 1)
    await settled()
    assert [child.name for child in supervisor.children() if child.state == "running"] == ["a", "b"]
    yard.parts["b"].finish()

    assert (await supervisor.wait()).error is None


async def test_a_significant_sibling_that_goes_with_a_failed_child_shuts_nothing_down(yard: Yard) -> None:
    supervisor = Supervisor(
        "s", policy=FAST, strategy="one_for_all", auto_shutdown="any_significant", on_event=yard.heard
    )
    await supervisor.start([yard.spec("a"), yard.spec("b", "temporary", significant=True)])

    yard.parts["a"].crash()

    await yard.until(lambda: yard.times("start a") == 2)
    assert [child.name for child in supervisor.children()] == ["a"]
    await supervisor.stop()


async def test_a_child_stopped_by_hand_shuts_nothing_down(yard: Yard) -> None:
    supervisor = Supervisor("s", auto_shutdown="any_significant")
    await supervisor.start([yard.spec("a"), yard.spec("b", "transient", significant=True)])

    await supervisor.remove("b")

    assert [child.name for child in supervisor.children()] == ["a"]
    await supervisor.stop()


async def test_a_supervisor_that_shut_itself_down_is_not_restarted_where_it_is_transient(yard: Yard) -> None:
    inner: list[Supervisor] = []

    async def start() -> Supervisor:
        one = Supervisor("inner", auto_shutdown="any_significant")
        await one.start([yard.spec("a", "transient", significant=True)])
        inner.append(one)
        return one

    outer = Supervisor("outer", policy=FAST, on_event=yard.heard)
    await outer.start([ChildSpec("inner", start, restart="transient", shutdown_timeout=math.inf)])

    yard.parts["a"].finish()
    await yard.until(lambda: yard.times("exited inner") == 1)
    await settled()

    assert len(inner) == 1
    await outer.stop()


async def test_what_makes_no_sense_as_significant_is_refused(yard: Yard) -> None:
    with pytest.raises(ConfigError, match="permanent"):
        yard.spec("a", "permanent", significant=True)
    with pytest.raises(SupervisionError, match="never shuts itself down"):
        await Supervisor("s").start([yard.spec("a", "transient", significant=True)])
