"""How long things took under faults: figures, where the checker says yes or no."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field

from agentmesh.chaos.history import Entry


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
    accepted = [line["mono"] for line in history if line["kind"] == "accepted"]
    started = [line["mono"] for line in history if line["kind"] == "started"]
    found: dict[str, Series] = {}

    def add(what: str, seconds: float) -> None:
        found.setdefault(what, Series(what)).seconds.append(round(seconds, 3))

    for seconds in _redeliveries(history):
        add("SIGKILL of a worker: its tasks start elsewhere after", seconds)
    for begin, end in _faults(history, "server-kill", "server-restart"):
        for what, moments in (("a task starts", started), ("a submit is accepted", accepted)):
            if (then := _next(moments, end)) is not None:
                add(f"server back on its port: {what} after", then - end)
        add("server away: longest time without an accepted submit", _gap(accepted, begin, end))
    for name in ("leader-kill", "leader-isolate", "leader-split", "link-hole", "server-freeze"):
        for begin, end in _faults(history, name):
            add(f"{name}: longest time without an accepted submit", _gap(accepted, begin, end))
    return [series for series in found.values() if series.seconds]


def longest_submit_gap(history: list[Entry]) -> float:
    """Seconds, while there was load."""
    begin = next((line["mono"] for line in history if line["kind"] == "load begins"), 0.0)
    end = next((line["mono"] for line in history if line["kind"] == "faults end"), 0.0)
    return _gap([line["mono"] for line in history if line["kind"] == "accepted"], begin, end)


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


def _faults(history: list[Entry], *names: str) -> list[tuple[float, float]]:
    """Begin and end of each fault of these names."""
    begins = {line["number"]: line["mono"] for line in history if line["kind"] == "fault" and line["fault"] in names}
    return [
        (begins[line["number"]], line["mono"])
        for line in history
        if line["kind"] == "mended" and line["number"] in begins
    ]


def _next(moments: list[float], after: float) -> float | None:
    position = bisect_right(moments, after)
    return moments[position] if position < len(moments) else None


def _gap(moments: list[float], begin: float, end: float) -> float:
    """The longest silence that touches the time between two moments."""
    inside = moments[max(0, bisect_right(moments, begin) - 1) : bisect_right(moments, end) + 1]
    return max((b - a for a, b in itertools.pairwise(inside)), default=0.0)
