"""Finds connections that nats-py believes to be fine, and are not.

A read loop that ended, a server that takes our bytes and never answers, a server cut off from its cluster, a
reconnection that died: each would leave a connected-looking client that hears nothing, some for minutes, some for ever.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from agentmesh.errors import BrokerError, DeadlineExceededError, NoRespondersError, PermissionDeniedError

if TYPE_CHECKING:
    from agentmesh.transport.connection import Connection

log = logging.getLogger("agentmesh.transport")

LOOK_EVERY = 1.0
"""Seconds between looks at the client's state: no traffic."""
PROBE_EVERY = 3
"""Looks between questions to the server."""
PROBE_TIMEOUT = 2.0
STRIKES = 2
"""Unanswered questions in a row before the connection is given up."""
MAX_REST = 60.0


class Watchdog:
    """Watches one connection; see the module."""

    def __init__(self, connection: Connection, *, jetstream: bool) -> None:
        self.kicks = 0
        """How often a connection had to be given up."""
        self._connection = connection
        self._jetstream = jetstream
        self._heard = 0
        self._strikes = 0
        self._rest = 1.0
        self._rest_until = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        looks = 0
        while True:
            await asyncio.sleep(LOOK_EVERY)
            looks += 1
            try:
                await self._look(probe=looks % PROBE_EVERY == 0)
            except BrokerError as error:  # the connection ended under the probe: the next look sees what became of it
                log.debug("probing the broker: %s", error)

    async def _look(self, *, probe: bool) -> None:
        connection = self._connection
        nc = connection.nc
        if nc.is_closed or nc.is_stuck:
            connection.rebuild("the client gave up")
        elif nc.is_deaf:
            await self._kick("its reading task ended")
        elif connection.state != "connected":
            self._strikes = 0
        elif probe:
            problem = await (self._ask_jetstream() if self._jetstream else self._ping())
            if problem is None:
                self._strikes, self._rest = 0, 1.0
                return
            self._strikes += 1
            if self._strikes >= STRIKES:
                await self._kick(problem)

    async def _ping(self) -> str | None:
        """What is wrong with the connection, if it is silent; anything that came since the last look is an answer."""
        nc = self._connection.nc
        heard, self._heard = self._heard, nc.stats["in_msgs"]
        if heard != self._heard or await nc.round_trip(PROBE_TIMEOUT):
            return None
        return "the server does not answer"

    async def _ask_jetstream(self) -> str | None:
        """What is wrong, if the server or its JetStream does not answer."""
        try:
            reply = await self._connection.inbox.request("$JS.API.INFO", b"", timeout=PROBE_TIMEOUT)
        except PermissionDeniedError:
            self._jetstream = False  # this user may not ask: look at the server alone
            return None
        except NoRespondersError:
            return self._elsewhere("JetStream is not there")
        except DeadlineExceededError:
            return "the server does not answer"
        unavailable = json.loads(reply.data).get("error", {}).get("code") == 503
        return self._elsewhere("JetStream is unavailable") if unavailable else None

    def _elsewhere(self, problem: str) -> str | None:
        """`problem`, if another server may be better off. Reconnecting to the same one would only disturb."""
        now = asyncio.get_running_loop().time()
        return problem if len(self._connection.nc.server_pool) > 1 and now >= self._rest_until else None

    async def _kick(self, problem: str) -> None:
        connection = self._connection
        log.warning("broker connection %s to %s: %s; reconnecting", connection.name, connection.url, problem)
        self.kicks += 1
        self._strikes = 0
        self._rest_until = asyncio.get_running_loop().time() + self._rest
        self._rest = min(MAX_REST, self._rest * 2)
        connection.nc.abort()
        await connection.nc.force_reconnect()
