"""Faults in a fixed order with limits of their own: rows of the test matrix, by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from agentmesh.chaos import disk
from agentmesh.chaos.checker import Violation
from agentmesh.chaos.measures import ACCEPTING, SILENCE, WORKING, accepted_between, spans
from agentmesh.chaos.plan import DEFAULT, Fault, kinds, plan
from agentmesh.chaos.report import Report
from agentmesh.chaos.run import Options
from agentmesh.errors import UsageError

Limit = Callable[[Report], Iterator[Violation]]


@dataclass(frozen=True)
class Scenario:
    """One of them."""

    means: str
    seconds: float
    faults: Callable[[int], list[Fault]]
    """From the seed."""
    limits: tuple[Limit, ...] = ()
    servers: int = 1
    disk_mb: int = 0
    settled_may_stay: bool = False

    def why_not(self) -> str:
        """Why it cannot be run here; empty when it can."""
        return disk.why_not() if self.disk_mb else ""

    def options(self, seed: int) -> Options:
        """The run."""
        return Options(
            seed=seed,
            seconds=self.seconds,
            faults=self.faults(seed),
            servers=self.servers,
            disk_mb=self.disk_mb,
            settled_may_stay=self.settled_may_stay,
            patience=40.0,
        )

    def judged(self, report: Report) -> Report:
        """The report, with the limits that were passed among its violations."""
        beyond = [violation for limit in self.limits for violation in limit(report)]
        return replace(report, violations=[*report.violations, *beyond])


def chosen(words: tuple[str, ...]) -> dict[str, Scenario]:
    """The scenarios that ids (`A3`), letters (`A`) and `all` stand for.

    Raises:
        UsageError: A word stands for none.
    """
    found: dict[str, Scenario] = {}
    for word in words:
        name = word.upper()
        matching = [key for key in SCENARIOS if name in ("ALL", key, key[0])]
        if not matching:
            raise UsageError(f"there is no scenario {word!r}; there are {', '.join(SCENARIOS)}")
        found |= {key: SCENARIOS[key] for key in matching}
    return found


# ---------------------------------------------------------------- faults


def _at(*strikes: tuple[float, str, float, int]) -> Callable[[int], list[Fault]]:
    """Faults at fixed times: when, which, for how long, and where."""
    return lambda seed: [Fault(name, at, seconds, target, seed) for at, name, seconds, target in strikes]


def _mixed(seconds: float) -> Callable[[int], list[Fault]]:
    return lambda seed: plan(seed, seconds, kinds(DEFAULT, cluster=False))


# ---------------------------------------------------------------- limits


def _within(seconds: float, figure: str, report: Report) -> Iterator[Violation]:
    """No more seconds than these, whichever fault it was."""
    suffix = figure.partition("}")[2]
    for series in report.figures:
        if series.what.endswith(suffix) and series.longest > seconds:
            yield Violation(f"within {seconds:g} s", f"{series.what} {series.longest:.1f} s")


def _accepts_nothing(report: Report) -> Iterator[Violation]:
    """While there is no quorum; what was on its way when it was lost may still come through."""
    for _, begin, end in spans(report.history):
        if accepted := accepted_between(report.history, begin + 0.5, end):
            yield Violation("nothing is accepted without a quorum", f"{accepted} submits were")


SCENARIOS = {
    "A1": Scenario(
        "a server killed four times in nine seconds",
        12.0,
        _at(*((2.0 + 2.2 * n, "server-kill", 0.3, 0) for n in range(4))),
    ),
    "A2": Scenario(
        "a server restarted in order", 8.0, _at((3.0, "server-restart", 0.1, 0)), (partial(_within, 2.0, WORKING),)
    ),
    "A3": Scenario("power failure of a single server", 10.0, _at((6.0, "power-cut", 0.0, 0)), disk_mb=192),
    "A5": Scenario(
        "three servers, the leader killed and left dead",
        14.0,
        _at((3.0, "leader-kill", 10.5, 0)),
        (partial(_within, 10.0, SILENCE),),
        servers=3,
    ),
    "A6": Scenario(
        "power failure of all three servers",
        14.0,
        _at((6.0, "power-cut", 0.0, 0)),
        (partial(_within, 30.0, ACCEPTING),),
        servers=3,
        disk_mb=128,
    ),
    "A7": Scenario(
        "two of three servers killed, later back",
        17.0,
        _at((3.0, "quorum-kill", 5.0, 0)),
        (_accepts_nothing, partial(_within, 10.0, ACCEPTING)),
        servers=3,
    ),
    "A8": Scenario(
        "three servers restarted one after the other",
        19.0,
        _at(*((3.0 + 5.0 * n, "server-restart", 0.3, n) for n in range(3))),
        (partial(_within, 10.0, SILENCE),),
        servers=3,
    ),
    "A9": Scenario(
        "the leader is lost silently, with clients on it",
        21.0,
        _at((3.0, "leader-isolate", 16.0, 0)),
        (partial(_within, 15.0, SILENCE),),
        servers=3,
    ),
    "A10": Scenario(
        "the leader is split from the others, with clients on it",
        37.0,
        _at((3.0, "leader-split", 32.0, 0)),
        (partial(_within, 30.0, SILENCE),),
        servers=3,
    ),
    "A11": Scenario(
        "the disk is full for a while", 17.0, _at((3.0, "disk-fill", 8.0, 0)), disk_mb=48, settled_may_stay=True
    ),
    "A12": Scenario("three of ten replies of the server are lost", 14.0, _at((2.0, "link-drop", 11.0, 0))),
    "K3": Scenario("every kind of fault at random", 60.0, _mixed(60.0)),
}
"""By the ids of the test matrix."""
