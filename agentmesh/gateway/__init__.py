"""The HTTP gateway: every agent, task and stream of a mesh for browsers, curl and whatever else speaks HTTP.

`agentmesh up` starts it as a process of its own. Each module with routes has `routes(gateway)`; `app.py` collects them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentmesh.codes import ErrorCode
    from agentmesh.errors import HttpError
    from agentmesh.gateway.app import make_app
    from agentmesh.gateway.gateway import Caller, Gateway
    from agentmesh.gateway.options import GatewayOptions, KeyOptions
    from agentmesh.gateway.server import HttpServer

__all__ = ["Caller", "ErrorCode", "Gateway", "GatewayOptions", "HttpError", "HttpServer", "KeyOptions", "make_app"]

_HOMES = {
    "Caller": "agentmesh.gateway.gateway",
    "ErrorCode": "agentmesh.codes",
    "Gateway": "agentmesh.gateway.gateway",
    "GatewayOptions": "agentmesh.gateway.options",
    "HttpError": "agentmesh.errors",
    "HttpServer": "agentmesh.gateway.server",
    "KeyOptions": "agentmesh.gateway.options",
    "make_app": "agentmesh.gateway.app",
}


def __getattr__(name: str) -> Any:
    # Starlette and uvicorn take 100 ms, which those who only need the options do not wait for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
