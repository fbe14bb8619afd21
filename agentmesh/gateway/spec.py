"""What the process of a gateway is told by whoever starts it."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.gateway.options import GatewayOptions
from agentmesh.supervisor.child import LogFormat


class GatewaySpec(msgspec.Struct):
    """Everything the process needs to know."""

    transport: dict[str, Any]
    """Fields of `TransportOptions`."""
    options: GatewayOptions = GatewayOptions()
    tenant: str = "default"
    agents: tuple[str, ...] = ()
    """Those that are to run; it is ready when they do."""
    grace: float = 10.0
    """Seconds for what is under way when it stops."""
    log_format: LogFormat = "text"
    log_level: str = "INFO"


def encoded(spec: GatewaySpec) -> list[str]:
    """Arguments for `main`. They hold credentials: pass them where nobody else on the machine sees them."""
    return ["--spec", msgspec.json.encode(spec).decode()]


def decoded(text: str) -> GatewaySpec:
    """The other way round."""
    return msgspec.json.decode(text, type=GatewaySpec)
