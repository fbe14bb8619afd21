"""What is known of calls to language models: every call, what they cost, alerts, and cached answers that are void.

    async for operation in mesh.llmops.operations(model="small", day=date.today()):
        print(operation.tokens.total, operation.cost)

    await mesh.llmops.invalidate(tags=["prices"])

Operations are kept for 90 days (512 MB, the oldest go first), without what was asked or answered. Anybody may publish
one on `ai.llmops.operations.T` in this form.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import msgspec

from agentmesh.errors import DefinitionError
from agentmesh.ids import new_id, now
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import ALERTS, CACHE_LOG, OPERATIONS, ensure
from agentmesh.transport import StoredMessage, Transport

SCHEMA_VERSION = "1.0"

_PAGE = 500


class Tokens(msgspec.Struct):
    """Tokens of a call."""

    prompt: int = 0
    completion: int = 0
    total: int = 0


class Operation(msgspec.Struct, kw_only=True):
    """One call of a language model, or one answer that needed none."""

    operation_id: str
    operation_type: str = "generate"
    model: str = ""
    """The configured model."""
    tokens: Tokens = msgspec.field(default_factory=Tokens)
    cost: float = 0.0
    """US dollars."""
    latency_ms: float = 0.0
    status: str = "ok"
    """`ok`, `error` or `cancelled`."""
    tenant_id: str = ""
    timestamp: datetime = msgspec.field(default_factory=now)
    schema_version: str = SCHEMA_VERSION
    backend: str = ""
    """Kind of backend, or the library."""
    cached: bool = False
    """No model was called: the answer was stored, or somebody else was waiting for the same one."""
    error: str = ""
    """Code of the error."""
    request_id: str = ""
    user_id: str = ""
    route: str = ""
    attempts: int = 1


class CostAlert(msgspec.Struct, kw_only=True):
    """A threshold of a budget was reached; told once per day."""

    alert_id: str
    budget: str
    """Whose: `tenant acme`, `model small`, `user 7`."""
    day: str
    """Of the budget, UTC."""
    threshold: float
    """Fraction of the budget."""
    limit: float
    """US dollars."""
    spent: float
    """US dollars when it was noticed."""
    tenant_id: str = ""
    timestamp: datetime = msgspec.field(default_factory=now)
    schema_version: str = SCHEMA_VERSION


class RateLimited(msgspec.Struct, kw_only=True):
    """A limit was reached: somebody is refused, or waits."""

    limit: float
    """What is allowed within `window`: requests, tokens, US dollars, or calls at once."""
    window: float
    """Seconds; 0 for calls at once."""
    retry_after: float
    """Seconds until there may be room."""
    unit: str = ""
    """`requests`, `tokens`, `usd` or `slots`."""
    scope: str = ""
    """Whose limit it is: `tenant acme`, `model small`, `user 7`."""
    waits: bool = False
    """Whether the request waits for its turn; else it was refused."""
    request_id: str = ""
    tenant_id: str = ""
    timestamp: datetime = msgspec.field(default_factory=now)
    schema_version: str = SCHEMA_VERSION


class Invalidation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Cached answers that must not be given again: those that fit any of it."""

    invalidation_id: str = ""
    keys: list[str] = []
    prefixes: list[str] = []
    tags: list[str] = []
    everything: bool = False
    key: str = ""
    prefix: str = ""
    tag: str = ""
    """The singular forms, for whoever writes one by hand."""
    timestamp: datetime | None = None
    schema_version: str = SCHEMA_VERSION

    def fits(self, key: str, tags: Sequence[str]) -> bool:
        """Whether an entry of this key, with these tags, is void."""
        return (
            self.everything
            or key in (*self.keys, self.key or None)
            or any(key.startswith(prefix) for prefix in (*self.prefixes, self.prefix) if prefix)
            or any(tag in tags for tag in (*self.tags, self.tag) if tag)
        )

    @property
    def says_something(self) -> bool:
        return bool(self.everything or self.keys or self.prefixes or self.tags or self.key or self.prefix or self.tag)


@dataclass(frozen=True)
class Cost:
    """What the calls of one day and model came to."""

    day: date
    model: str
    calls: int
    """Answers, cached ones included."""
    cached: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    """US dollars."""


encode = msgspec.json.Encoder().encode
_operation = msgspec.json.Decoder(Operation).decode
_alert = msgspec.json.Decoder(CostAlert).decode
read_invalidation = msgspec.json.Decoder(Invalidation).decode


class LLMOps:
    """Calls to language models of one tenant: `mesh.llmops`."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects

    async def log(self, operation: Operation, *, timeout: float = 30.0) -> None:
        """Keep an operation; the same `operation_id` within ten minutes only once.

        Raises:
            PublishTimeoutError: Unknown whether it is kept; do it again.
        """
        await ensure(self._transport, OPERATIONS)
        tenant = self._subjects.tenant
        await self._transport.publish_durable(
            self._subjects.operations(), encode(operation), msg_id=f"{tenant}.{operation.operation_id}", timeout=timeout
        )

    async def operations(
        self,
        *,
        model: str = "",
        day: date | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        user_id: str = "",
    ) -> AsyncGenerator[Operation, None]:
        """Those that were kept, oldest first.

        Args:
            model: Only of this configured model.
            day: Only of this day, UTC; instead of `since` and `until`.
            since: Not before; with a time zone.
            until: Before this.
            user_id: Only on behalf of this user.
        """
        if day is not None:
            since = datetime.combine(day, time(), UTC)
            until = since + timedelta(days=1)
        await ensure(self._transport, OPERATIONS)
        start = 1 if since is None else await self._first_since(since)
        while True:
            batch = await self._transport.messages(
                OPERATIONS.name, self._subjects.operations(), start=start, limit=_PAGE
            )
            for stored in batch:
                start = stored.sequence + 1
                if until is not None and stored.time >= until + _LATE:
                    return
                operation = _read(stored, _operation)
                if operation is not None and _chosen(operation, model, user_id, since, until):
                    yield operation
            if len(batch) < _PAGE:
                return

    async def cost(self, *, model: str = "", day: date | None = None, since: datetime | None = None) -> list[Cost]:
        """Sums per day and model, by day, then the dearest first."""
        sums: dict[tuple[date, str], list[float]] = {}
        async for one in self.operations(model=model, day=day, since=since):
            line = sums.setdefault((one.timestamp.astimezone(UTC).date(), one.model), [0, 0, 0, 0, 0, 0.0])
            used = (0, 0) if one.cached else (one.tokens.prompt, one.tokens.completion)
            for place, amount in enumerate((1, one.cached, one.status == "error", *used, one.cost)):
                line[place] += amount
        costs = [
            Cost(day, model, int(calls), int(cached), int(errors), int(prompt), int(completion), dollars)
            for (day, model), (calls, cached, errors, prompt, completion, dollars) in sums.items()
        ]
        return sorted(costs, key=lambda cost: (cost.day, -cost.cost, -cost.calls, cost.model))

    async def alerts(self, limit: int = 500) -> list[CostAlert]:
        """Alerts of the last 90 days, oldest first."""
        await ensure(self._transport, ALERTS)
        stored = await self._transport.messages(ALERTS.name, self._subjects.all_cost_alerts(), limit=limit)
        return [alert for one in stored if (alert := _read(one, _alert)) is not None]

    async def invalidate(
        self,
        *,
        keys: Sequence[str] = (),
        prefixes: Sequence[str] = (),
        tags: Sequence[str] = (),
        everything: bool = False,
    ) -> str:
        """Have no replica of the gateway give these answers again.

        When this returns it is kept, and every replica that is connected has been told. One that was not hears of it
        before it gives an answer from its cache.

        Args:
            keys: `cache_key` of answers.
            prefixes: What their keys begin with: a policy's `key`, or a model's name.
            tags: As given in the policies of requests.
            everything: All of the tenant.

        Returns:
            The id of the invalidation.

        Raises:
            DefinitionError: It says nothing, or an empty prefix.
        """
        order = Invalidation(
            invalidation_id=new_id(),
            keys=list(keys),
            prefixes=list(prefixes),
            tags=list(tags),
            everything=everything,
            timestamp=now(),
        )
        if not order.says_something or not all([*keys, *prefixes, *tags]):
            raise DefinitionError("invalidate", "give keys, prefixes or tags that are not empty, or everything=True")
        await ensure(self._transport, CACHE_LOG)
        await self._transport.publish_durable(
            self._subjects.cache_invalidations(),
            encode(order),
            msg_id=f"{self._subjects.tenant}.{order.invalidation_id}",
        )
        return order.invalidation_id

    async def _first_since(self, since: datetime) -> int:
        """A sequence before which nothing was stored at or after `since`, found by halving."""
        info = await self._transport.stream_info(OPERATIONS.name)
        if info is None:
            return 1
        low, high = info.first_sequence, info.last_sequence + 1
        since -= _LATE
        while low < high:
            middle = (low + high) // 2
            stored = await self._transport.get_message(OPERATIONS.name, middle)
            if stored is None or stored.time < since:
                low = middle + 1
            else:
                high = middle
        return low


_LATE = timedelta(minutes=5)
"""An operation may be stored that much later than it happened, or the clocks differ."""


def _chosen(operation: Operation, model: str, user_id: str, since: datetime | None, until: datetime | None) -> bool:
    return (
        model in ("", operation.model)
        and user_id in ("", operation.user_id)
        and (since is None or operation.timestamp >= since)
        and (until is None or operation.timestamp < until)
    )


def _read(stored: StoredMessage, decode: Any) -> Any:
    """What was stored; None if it is not of that form, since anybody may publish there."""
    try:
        found = decode(stored.data)
    except msgspec.MsgspecError:
        return None
    if found.timestamp.tzinfo is None:
        found.timestamp = found.timestamp.replace(tzinfo=UTC)
    return found
