"""When something was broken: what a promise allows to be late, or to happen twice, it allows only then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from agentmesh.chaos.history import Entry

EVERYWHERE = 0
"""In place of a pid."""

Span = tuple[float, float]


class Windows:
    """Spans of monotonic time in which a process, or all of them, were disturbed.

    Args:
        history: Of the run.
        settle: Seconds that connections, leaders and timers need after a fault of the broker or the links.
        without: A fault that does not count.
    """

    def __init__(self, history: Iterable[Entry], settle: float, *, without: str = "") -> None:
        self._spans: dict[int, list[Span]] = defaultdict(list)
        open_faults: dict[int, Entry] = {}
        blocked: dict[int, float] = {}
        nodes: dict[int, list[int]] = defaultdict(list)
        end = 0.0
        for entry in history:
            at, pid = float(entry["mono"]), int(entry["pid"])
            end = at
            match entry["kind"]:
                case "fault" | "mended" if entry["fault"] == without:
                    continue
                case "fault":
                    open_faults[entry["number"]] = entry
                case "mended":
                    began = open_faults.pop(entry["number"])
                    self._add_fault(began, at, settle)
                case "exited":
                    for gone in (entry["child"], *nodes[entry["child"]]):
                        self._spans[gone].append((at - 0.5, float("inf")))
                case "ready" if "parent" in entry:
                    nodes[entry["parent"]].append(pid)
                case "blocked":
                    blocked[pid] = at
                case "unblocked":
                    self._spans[pid].append((blocked.pop(pid, at), at))
                case "stalled":
                    self._spans[pid].append((at - entry["seconds"], at))
                case "jumped":
                    self._spans[EVERYWHERE].append((at, at + settle))
        for pid, at in blocked.items():
            self._spans[pid].append((at, end))
        for entry in open_faults.values():
            self._add_fault(entry, end, settle)

    def _add_fault(self, entry: Entry, end: float, settle: float) -> None:
        whom = EVERYWHERE if entry["broker"] else entry["child"]
        self._spans[whom].append((entry["mono"], end + (settle if entry["broker"] else 0.0)))

    def disturbed(self, begin: float, end: float, *pids: int, margin: float = 0.5) -> bool:
        """Whether any of these processes, or everything, was disturbed between two moments."""
        return any(
            span[0] - margin <= end and begin <= span[1] + margin
            for pid in (EVERYWHERE, *pids)
            for span in self._spans.get(pid, ())
        )

    def seconds(self, begin: float, end: float, *pids: int) -> float:
        """For how long of this time they were."""
        spans = sorted(span for pid in (EVERYWHERE, *pids) for span in self._spans.get(pid, ()))
        total, reached = 0.0, begin
        for first, last in spans:
            first, last = max(first, reached), min(last, end)
            if last > first:
                total += last - first
                reached = last
        return total
