"""What the gateway counts about itself, as Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds."""


class GatewayMetrics:
    """Counters of one process."""

    def __init__(self) -> None:
        self.streams = 0
        """Open now."""
        self._requests: Counter[tuple[str, int]] = Counter()
        self._rejected: Counter[str] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests[route, status] += 1
        buckets = self._buckets.setdefault(route, [0] * (len(BUCKETS) + 1))
        buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]  # a Counter of floats

    def rejected(self, code: str) -> None:
        """A request was refused before its route saw it."""
        self._rejected[code] += 1

    def render(self) -> str:
        """All of it in the text format."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield from _head("agentmesh_http_requests_total", "counter", "Requests that were answered.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'agentmesh_http_requests_total{{route="{_quoted(route)}",status="{status}"}} {count}'
        yield from _head("agentmesh_http_rejected_total", "counter", "Requests refused before their route saw them.")
        for code, count in sorted(self._rejected.items()):
            yield f'agentmesh_http_rejected_total{{code="{code}"}} {count}'
        yield from _head("agentmesh_http_open_streams", "gauge", "Streams open now.")
        yield f"agentmesh_http_open_streams {self.streams}"
        yield from _head("agentmesh_http_request_seconds", "histogram", "From the head of a request to its answer.")
        for route, buckets in sorted(self._buckets.items()):
            yield from self._histogram(route, buckets)

    def _histogram(self, route: str, buckets: list[int]) -> Iterator[str]:
        name, label, total = "agentmesh_http_request_seconds", f'route="{_quoted(route)}"', 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), buckets, strict=True):
            total += count
            yield f'{name}_bucket{{{label},le="{bound}"}} {total}'
        yield f"{name}_sum{{{label}}} {self._seconds[route]:.6f}"
        yield f"{name}_count{{{label}}} {total}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
