"""The application: the routes of all modules, behind the guard."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec

from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

from agentmesh.gateway.gateway import Gateway
from agentmesh.gateway.guard import Guard
from agentmesh.registry import near_misses

log = logging.getLogger("agentmesh.gateway")

MODULES = ("health", "docs", "api", "chat", "sse", "openai", "ui", "infer")
"""Those of this package that have `routes(gateway)`."""


def make_app(gateway: Gateway) -> Guard:
    """The ASGI application of a gateway."""
    router = Router(routes=all_routes(gateway), redirect_slashes=False)
    _warn_of_unknown(gateway, router.routes)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # so that the router raises what it refuses, and the guard answers
        await router(scope, receive, send)

    return Guard(routed, gateway)


def _warn_of_unknown(gateway: Gateway, routes: Iterable[BaseRoute]) -> None:
    """Settings for routes that are not there: somebody meant another one."""
    known = {f"{method} {r.path}" for r in routes if isinstance(r, Route) for method in r.methods or ()}
    for name in gateway.options.routes:
        if name not in known:
            near = " or ".join(repr(one) for one in near_misses(name, known))
            log.warning("http.routes: there is no %r%s", name, f"; did you mean {near}?" if near else "")


def all_routes(gateway: Gateway) -> list[BaseRoute]:
    """What the modules have."""
    names = [f"agentmesh.gateway.{name}" for name in MODULES]
    return [route for name in names if find_spec(name) for route in import_module(name).routes(gateway)]
