"""The application: the routes of all modules, behind the guard."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from starlette.routing import BaseRoute, Router
from starlette.types import Receive, Scope, Send

from agentmesh.gateway.gateway import Gateway
from agentmesh.gateway.guard import Guard

MODULES = ("health", "docs", "api", "chat", "sse", "openai", "ui", "infer")
"""Those of this package that have `routes(gateway)`."""


def make_app(gateway: Gateway) -> Guard:
    """The ASGI application of a gateway."""
    router = Router(routes=all_routes(gateway), redirect_slashes=False)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # so that the router raises what it refuses, and the guard answers
        await router(scope, receive, send)

    return Guard(routed, gateway)


def all_routes(gateway: Gateway) -> list[BaseRoute]:
    """What the modules have."""
    names = [f"agentmesh.gateway.{name}" for name in MODULES]
    return [route for name in names if find_spec(name) for route in import_module(name).routes(gateway)]
