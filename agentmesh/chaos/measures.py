"""How long things took under faults: figures, where the checker says yes or no."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from agentmesh.chaos.history import Entry

REDELIVERY = "worker killed: its tasks start elsewhere after"
SILENCE = "{fault}: longest wait of a submitter for an acceptance"
WORKING = "{fault}: from its end until a task starts"
ACCEPTING = "{fault}: from its end until a submit is accepted"


@dataclass
class Series:
    """Measured seconds of one kind."""

    what: str
    seconds: list[float] = field(default_factory=list)

    @property
    def longest(self) -> float:
        return max(self.seconds)

    @property
    def median(self) -> float:
        return sorted(self.seconds)[len(self.seconds) // 2]


def measure(history: list[Entry]) -> list[Series]:
    """What can be measured in a run."""
    accepted = _accepted(history)
    anywhere = sorted(moment for moments in accepted.values() for moment in moments)
    started = [line["mono"] for line in history if line["kind"] == "started"]
    found: dict[str, Series] = {}

    def add(what: str, seconds: float) -> None:
        found.setdefault(what, Series(what)).seconds.append(round(seconds, 3))

    for seconds in _redeliveries(history):
        add(REDELIVERY, seconds)
    for name, begin, end in spans(history):
        add(SILENCE.format(fault=name), max((_gap(moments, begin, end) for moments in accepted.values()), default=0.0))
        for what, moments in ((WORKING, started), (ACCEPTING, anywhere)):
            if (then := _next(moments, end)) is not None:
                add(what.format(fault=name), then - end)
    return [found[what] for what in sorted(found)]


def longest_submit_gap(history: list[Entry]) -> float:
    """Seconds in which no submitter had anything accepted, while there was load."""
    begin, end = (next((line["mono"] for line in history if line["kind"] == kind), 0.0) for kind in LOAD)
    return _gap(sorted(moment for moments in _accepted(history).values() for moment in moments), begin, end)


LOAD = ("load begins", "faults end")


def accepted_between(history: list[Entry], begin: float, end: float) -> int:
    """Submits accepted in that time."""
    return sum(begin < moment < end for moments in _accepted(history).values() for moment in moments)


def spans(history: list[Entry]) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of each fault of the broker or the way to it."""
    begins = {line["number"]: line for line in history if line["kind"] == "fault" and line["broker"]}
    for line in history:
        if line["kind"] == "mended" and line["number"] in begins:
            yield line["fault"], begins[line["number"]]["mono"], line["mono"]


def _accepted(history: list[Entry]) -> dict[int, list[float]]:
    """When submits were accepted, by process."""
    moments: dict[int, list[float]] = defaultdict(list)
    for line in history:
        if line["kind"] == "accepted":
            moments[line["pid"]].append(line["mono"])
    return moments


def _redeliveries(history: list[Entry]) -> list[float]:
    """From the death of a worker to the next start of each task it was at."""
    at_work: dict[int, dict[str, Entry]] = defaultdict(dict)
    orphaned: dict[str, float] = {}
    found = []
    for line in history:
        match line["kind"]:
            case "started":
                if line["task"] in orphaned:
                    found.append(line["mono"] - orphaned.pop(line["task"]))
                at_work[line["pid"]][line["task"]] = line
            case "done" | "raised" | "interrupted":
                at_work[line["pid"]].pop(line["task"], None)
            case "fault" if line["fault"] == "worker-kill":
                killed = float(line["mono"])
                orphaned.update(dict.fromkeys(at_work.pop(line["child"], {}), killed))
    return found


def _next(moments: list[float], after: float) -> float | None:
    position = bisect_right(moments, after)
    return moments[position] if position < len(moments) else None


def _gap(moments: list[float], begin: float, end: float) -> float:
    """The longest silence that touches the time between two moments."""
    inside = moments[max(0, bisect_right(moments, begin) - 1) : bisect_right(moments, end) + 1]
    return max((b - a for a, b in pairwise(inside)), default=0.0)
