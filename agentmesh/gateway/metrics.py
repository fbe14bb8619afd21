"""What the gateway counts about itself."""

from __future__ import annotations

from agentmesh.metrics import Metrics


class GatewayMetrics:
    """The figures of a gateway, among those of its process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open = metrics.gauge("agentmesh_http_open_streams", "Streams open now.")

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._metrics.counter("agentmesh_http_requests_total", "Requests.", route=route, status=status).inc()
        spread = self._metrics.histogram(
            "agentmesh_http_request_seconds", "From the head of a request to the end of its answer.", route=route
        )
        spread.observe(seconds)

    def rejected(self, code: str) -> None:
        """A request was refused before its route saw it."""
        help_text = "Requests refused before their route saw them."
        self._metrics.counter("agentmesh_http_rejected_total", help_text, code=code).inc()

    def stream(self, change: int) -> None:
        """Streams were opened (1) or ended (-1)."""
        self._open.inc(change)
