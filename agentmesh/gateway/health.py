"""`/health`, `/ready` and `/metrics`: for whoever watches."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from agentmesh.gateway.describe import operation
from agentmesh.gateway.gateway import Gateway
from agentmesh.gateway.readiness import Readiness
from agentmesh.metrics import CONTENT_TYPE, collect
from agentmesh.version import __version__


def routes(gateway: Gateway) -> list[BaseRoute]:
    """See the module."""
    readiness = Readiness(gateway)

    @operation(tags=["about"], public=True, reply={"type": "object"})
    async def health(request: Request) -> Response:
        """The process lives."""
        about = {"version": __version__} if gateway.knows(request) else {}
        return JSONResponse({"status": "ok", **about})

    @operation(tags=["about"], public=True, reply={"type": "object"}, errors=[503])
    async def ready(request: Request) -> Response:
        """It can do its work: the broker answers, and the agents have been started."""
        problems = await readiness.problems()
        if gateway.shutdown.is_set():
            problems.append("stopping")
        if problems:
            problems = problems if gateway.knows(request) else ["see the log, or ask with a key"]
            return JSONResponse({"status": "unavailable", "problems": problems}, 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ok", "routes": len(request.scope["router"].routes)})

    @operation(tags=["about"], media="text/plain")
    async def metrics(request: Request) -> Response:
        """Figures of all processes of the mesh, as Prometheus reads them."""
        subjects = gateway.client(gateway.caller(request).tenant).subjects
        return PlainTextResponse(await collect(gateway.transport, subjects), media_type=CONTENT_TYPE)

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
