"""Figures about what a process does, for Prometheus and for people.

    calls = metrics_of(transport).counter("shop_orders_total", "Orders taken.", shop="berlin")
    calls.inc()
    text = await collect(transport, subjects)          # of all processes of the mesh

Each connection has one `Metrics`. What is counted anyway (by agents, workers, the connection) is read when somebody
asks, not counted a second time. `serve` answers for a process on `ai.agent.control.T.metrics`; `collect` asks all.
"""

from agentmesh.metrics.family import Family, Sample
from agentmesh.metrics.mesh import METRICS, Report, collect, collect_families, gather, metrics_of, serve
from agentmesh.metrics.registry import SECONDS, Histogram, Metrics, Value
from agentmesh.metrics.text import CONTENT_TYPE, render

__all__ = [
    "CONTENT_TYPE",
    "METRICS",
    "SECONDS",
    "Family",
    "Histogram",
    "Metrics",
    "Report",
    "Sample",
    "Value",
    "collect",
    "collect_families",
    "gather",
    "metrics_of",
    "render",
    "serve",
]
