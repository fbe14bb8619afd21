"""What a run has shown: counts, figures, and every broken promise with the lines that show it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from agentmesh.chaos.checker import Violation, later_growth, memory
from agentmesh.chaos.evidence import Evidence
from agentmesh.chaos.history import Entry
from agentmesh.chaos.measures import Series, longest_submit_gap, measure
from agentmesh.chaos.raw import status_of


@dataclass
class Report:
    """See the module."""

    seed: int
    folder: str
    """Histories, logs and stores; gone when every promise was kept, unless they were to stay."""
    counts: dict[str, int]
    results: dict[str, int]
    """How many tasks were decided how."""
    faults: dict[str, int]
    figures: list[Series]
    drained: float | None
    violations: list[Violation] = field(default_factory=list)
    history: list[Entry] = field(default_factory=list, repr=False)

    @property
    def held(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations

    def document(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "held": self.held,
            "seed": self.seed,
            "folder": self.folder,
            "counts": self.counts,
            "results": self.results,
            "faults": self.faults,
            "figures": {
                one.what: {"count": len(one.seconds), "median": one.median, "longest": one.longest}
                for one in self.figures
            },
            "drained": self.drained,
            "violations": [{"promise": one.promise, "what": one.what, "lines": one.lines} for one in self.violations],
        }


def report(evidence: Evidence, violations: list[Violation], seed: int, folder: str) -> Report:
    """Sum a run up."""
    history = evidence.history
    kinds = Counter(line["kind"] for line in history)
    growth = max((later_growth(samples) for samples in memory(history).values()), default=0)
    counts = {
        "tasks accepted": kinds["accepted"],
        "tasks decided": len({stored.subject for stored in evidence.results}),
        "attempts started": kinds["started"],
        "effects": kinds["effect"],
        "effects by key": len({line["key"] for line in history if line["kind"] == "effect"}),
        "cancels": kinds["cancelled"],
        "requests": kinds["asked"],
        "requests answered": sum(line["kind"] == "asked" and line["outcome"] == "a reply" for line in history),
        "durable events told": kinds["told"],
        "processes started": kinds["spawned"],
        "longest submit gap, ms": round(longest_submit_gap(history) * 1000),
        "largest growth of a process, kB": max(0, growth) // 1024,
    }
    return Report(
        seed=seed,
        folder=folder,
        counts=counts,
        results=dict(Counter(status_of(stored) for stored in evidence.results)),
        faults=dict(Counter(line["fault"] for line in history if line["kind"] == "fault")),
        figures=measure(history),
        drained=evidence.drained,
        violations=violations,
        history=history,
    )
