"""`/health`, `/ready` and `/metrics`: for whoever watches."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from agentmesh.gateway.gateway import Gateway
from agentmesh.gateway.readiness import Readiness
from agentmesh.version import __version__


def routes(gateway: Gateway) -> list[BaseRoute]:
    """See the module."""
    readiness = Readiness(gateway)

    async def health(request: Request) -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok", "version": __version__})

    async def ready(request: Request) -> Response:
        """It can do its work: the broker answers, and the agents have been started."""
        problems = await readiness.problems()
        if gateway.shutdown.is_set():
            problems.append("stopping")
        if problems:
            return JSONResponse({"status": "unavailable", "problems": problems}, 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ok", "routes": len(request.scope["router"].routes)})

    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        return PlainTextResponse(gateway.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
