"""What is told of calls: the log of operations, alerts of cost, and events of limits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from agentmesh.agents.llm.bounds import Bound, Refusal
from agentmesh.agents.llm.prices import NANO
from agentmesh.errors import AgentMeshError, SequenceConflictError
from agentmesh.ids import now
from agentmesh.limits import value_token
from agentmesh.llmops import CostAlert, LLMOps, Operation, RateLimited, encode
from agentmesh.tasks.layout import ALERTS, ensure, subjects_on
from agentmesh.transport import Transport

log = logging.getLogger("agentmesh.llm")

PATIENCE = 2.0
"""Seconds an answer waits for its operation to be kept; after that it is kept as soon as that is possible."""

MOST = 10_000
"""Operations that may wait to be kept."""

_TIMEOUT = 30.0
_EVERY = 1.0
"""Seconds between events of one kind about one limit: a flood of refusals must not become a flood of events."""
_GRACE = 3.0
"""Seconds to keep what is under way when the gateway stops."""


class Recorder:
    """See the module."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._chores: set[asyncio.Task[None]] = set()
        self._told: set[tuple[str, str]] = set()
        """Alerts that are known to be stored: tenant and id."""
        self._events: dict[tuple[str, bool], float] = {}

    async def close(self) -> None:
        """Finish what is under way, for a moment."""
        if self._chores:
            _, left = await asyncio.wait(self._chores, timeout=_GRACE)
            for chore in left:
                chore.cancel()
            if left:
                log.warning("%d records of model calls were not kept in time", len(left))

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Do it beside everything else. Too much of it is dropped, and said."""
        if len(self._chores) >= MOST:
            work.close()
            log.warning("records of model calls are dropped: %d wait already", MOST)
            return None
        chore = asyncio.get_running_loop().create_task(work)
        self._chores.add(chore)
        chore.add_done_callback(self._done)
        return chore

    def operation(self, operation: Operation) -> asyncio.Task[None] | None:
        """Keep it, and do not wait."""
        return self.later(self._keep(operation))

    async def spent(self, tenant: str, spent: dict[Bound, float], thresholds: Sequence[float]) -> None:
        """Tell of the thresholds that are reached. Each is told once a day, whoever notices."""
        for bound, dollars in spent.items():
            limit = bound.allowed / NANO
            for threshold in thresholds:
                if dollars >= threshold * limit:
                    await self._alert(tenant, bound, threshold, dollars)

    def refused(self, tenant: str, request_id: str, refusal: Refusal, waits: bool) -> None:
        """Tell that a limit was reached."""
        bound, time_now = refusal.bound, time.monotonic()
        place = (f"{tenant} {bound.path}", waits)
        if time_now - self._events.get(place, float("-inf")) < _EVERY:
            return
        if len(self._events) > 1000:
            self._events.clear()
        self._events[place] = time_now
        event = RateLimited(
            limit=bound.allowed / NANO if bound.unit == "usd" else bound.allowed,
            window=bound.period,
            retry_after=round(refusal.retry_after, 3),
            unit=bound.unit,
            scope=bound.whose,
            waits=waits,
            request_id=request_id,
            tenant_id=tenant,
        )
        self.later(self._transport.publish(subjects_on(self._transport, tenant).rate_limits(), encode(event)))

    async def _keep(self, operation: Operation) -> None:
        subjects = subjects_on(self._transport, operation.tenant_id)
        await LLMOps(self._transport, subjects).log(operation, timeout=_TIMEOUT)

    async def _alert(self, tenant: str, bound: Bound, threshold: float, dollars: float) -> None:
        day = f"{now():%Y-%m-%d}"
        alert_id = f"{day}-{round(threshold * 1000)}-{bound.scope}-{_short(bound.owner)}"
        if (tenant, alert_id) in self._told:
            return
        alert = CostAlert(
            alert_id=alert_id,
            budget=bound.whose,
            day=day,
            threshold=threshold,
            limit=bound.allowed / NANO,
            spent=dollars,
            tenant_id=tenant,
        )
        subject = subjects_on(self._transport, tenant).cost_alert(alert_id)
        await ensure(self._transport, ALERTS)
        with contextlib.suppress(SequenceConflictError):  # somebody has told it
            await self._transport.publish_durable(subject, encode(alert), expect_last=0)
            part = f"{threshold:.0%}"
            log.warning("%s of the budget of %s are spent: $%.4f of $%g", part, bound.whose, dollars, alert.limit)
        self._told.add((tenant, alert_id))

    def _done(self, chore: asyncio.Task[None]) -> None:
        self._chores.discard(chore)
        if not chore.cancelled() and (error := chore.exception()) is not None:
            level = logging.WARNING if isinstance(error, AgentMeshError) else logging.ERROR
            log.log(level, "a record of a model call was not kept: %s", error)


def _short(owner: str) -> str:
    """A name as a short token."""
    readable = value_token(owner)
    return readable if len(readable) <= 32 else hashlib.blake2b(owner.encode(), digest_size=12).hexdigest()
