"""Whether the gateway can do its work now."""

from __future__ import annotations

import asyncio

from agentmesh import registry
from agentmesh.errors import AgentMeshError
from agentmesh.gateway.gateway import Gateway

LOOK_TIMEOUT = 1.0
"""Seconds in which the hosts of agents answer, or the broker is taken as gone."""


class Readiness:
    """Looks at the broker each time it is asked, and at the agents until all of them have been started once."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._started: set[str] = set()
        self._looking = asyncio.Lock()

    async def problems(self) -> list[str]:
        """What is missing; nothing when it is ready."""
        transport = self._gateway.transport
        if not transport.is_connected:
            return ["no connection to the broker"]
        try:
            async with asyncio.timeout(LOOK_TIMEOUT), self._looking:
                return await self._look()
        except (TimeoutError, AgentMeshError):
            return ["the broker does not answer"]

    async def _look(self) -> list[str]:
        gateway = self._gateway
        if not await gateway.transport.round_trip(LOOK_TIMEOUT):
            return ["the broker does not answer"]
        if not gateway.agents <= self._started:
            subjects = gateway.client(gateway.tenant).subjects
            found = await registry.discover(gateway.transport, subjects, brief=True)
            self._started |= {info.name for info in found if info.state != "starting"}
        missing = sorted(gateway.agents - self._started)
        return [f"agents not started yet: {', '.join(missing)}"] if missing else []
