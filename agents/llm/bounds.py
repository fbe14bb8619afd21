"""Limits of the gateway, counted over all replicas: requests and tokens per minute, dollars per day, calls at once.

What is used is kept in the same records as other limits (`agentmesh limits ls` shows them), changed by compare-and-set
and read on the broker's clock. Tokens and dollars are reserved before a call, by what it may come to, and put right
afterwards. What a killed replica had reserved is free again after a minute (tokens), or the longest time a call may
take (dollars).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from agentmesh.agents.llm.prices import NANO, nano
from agentmesh.config import LLMSettings, ModelBudgetSettings, ModelSettings
from agentmesh.ids import new_id
from agentmesh.limits import value_token
from agentmesh.tasks.allowance import Holder, Operation, Record
from agentmesh.tasks.layout import subjects_on
from agentmesh.tasks.records import Records, records_of
from agentmesh.transport import Transport

Unit = Literal["requests", "tokens", "usd", "slots"]

MINUTE, DAY = 60.0, 86_400.0

_SOON, _SLOT = 0.05, 0.5
"""Seconds after which to look again when it is not known when there is room."""

ANSWER = 512
"""Tokens that an answer is taken to have at most, when the request does not say."""


@dataclass(frozen=True)
class Bound:
    """One limit, in its place."""

    scope: str
    """`model`, `tenant` or `user`."""
    owner: str
    unit: Unit
    allowed: int
    """Requests, tokens, nano-dollars, or calls of this replica at once."""

    @property
    def path(self) -> str:
        """Where its use is counted."""
        return f"llm.{self.scope}.{self.unit}.{value_token(self.owner)}"

    @property
    def period(self) -> float:
        return {"usd": DAY, "slots": 0.0}.get(self.unit, MINUTE)

    @property
    def whose(self) -> str:
        return f"{self.scope} {self.owner}"

    def __str__(self) -> str:
        amount = {"usd": f"${self.allowed / NANO:g} a day", "slots": f"{self.allowed} at once"}
        return f"{amount.get(self.unit, f'{self.allowed} {self.unit} a minute')} for {self.whose}"


def bounds_of(scope: str, owner: str, budget: ModelBudgetSettings) -> list[Bound]:
    """The limits in a budget."""
    found: list[Bound] = []
    if budget.requests_per_minute is not None:
        found.append(Bound(scope, owner, "requests", budget.requests_per_minute))
    if budget.tokens_per_minute is not None:
        found.append(Bound(scope, owner, "tokens", budget.tokens_per_minute))
    if budget.usd_per_day is not None:
        found.append(Bound(scope, owner, "usd", nano(budget.usd_per_day)))
    return found


@dataclass(frozen=True)
class Need:
    """What a call may come to."""

    tokens: int
    dollars: float

    def amount(self, bound: Bound) -> int:
        """Of what the bound counts. Never more than all of it: then it takes all."""
        wanted = {"tokens": self.tokens, "usd": nano(self.dollars)}.get(bound.unit, 1)
        return min(wanted, bound.allowed)


@dataclass(frozen=True)
class Refusal:
    """No room."""

    bound: Bound
    retry_after: float
    """Seconds until there may be."""


@dataclass
class Taken:
    """What was reserved for a call."""

    mark: str
    tenant: str
    at: dict[Bound, float] = field(default_factory=dict)
    """When it counts from: broker time."""
    amounts: dict[Bound, int] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


class _Count(Operation):
    """Count `amount` within the last period, if that stays within `allowed`."""

    def __init__(self, records: Records, bound: Bound, amount: int) -> None:
        self._clock = records.clock
        self.bound, self.amount = bound, amount
        self.wait, self.counted_at = 0.0, 0.0

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        self.refused = False
        now, latest = self._clock.interval()
        bound = self.bound
        record.allowed, record.period, record.key = bound.allowed, bound.period, bound.owner
        record.starts = [(time, count) for time, count in record.starts if time + bound.period > now]
        used = sum(count for _, count in record.starts)
        if used + self.amount > bound.allowed:
            self.refused, self.wait = True, max(0.0, self._room_at(record, used) - now)
            return False
        self.counted_at = max(latest, record.starts[-1][0] if record.starts else 0.0)
        part = bound.period / 256
        if record.starts and int(record.starts[-1][0] / part) == int(self.counted_at / part):
            record.starts[-1] = (self.counted_at, record.starts[-1][1] + self.amount)
        else:
            record.starts.append((self.counted_at, self.amount))
        return True

    def _room_at(self, record: Record, used: int) -> float:
        for moment, count in record.starts:
            used -= count
            if used + self.amount <= self.bound.allowed:
                return moment + self.bound.period
        return 0.0


class _Correct(Operation):
    """What was counted at `at` was another amount: `more` is added there, or taken away."""

    def __init__(self, at: float, more: int) -> None:
        self.at, self.more = at, more

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        for index, (moment, count) in enumerate(record.starts):
            if moment >= self.at:
                record.starts[index] = (moment, max(0, count + self.more))
                return True
        return False


class _Reserve(Operation):
    """Set nano-dollars aside, if they are within the day's budget.

    The record has one start, (midnight, what was spent since); what is set aside is in the holders.
    """

    def __init__(self, records: Records, bound: Bound, amount: int, mark: str, ttl: float) -> None:
        self._clock = records.clock
        self.bound, self.amount, self.mark, self.ttl = bound, amount, mark, ttl
        self.wait = 0.0

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        self.refused = False
        if self.mark in record.holders:  # stored before, its confirmation got lost
            return False
        now = self._clock.earliest()
        midnight = _midnight(now)
        for mark in gone:
            record.holders.pop(mark, None)
        spent = _spent(record, midnight)
        aside = sum(int(holder.task_id) for holder in record.holders.values())
        if spent + aside + self.amount > self.bound.allowed or spent >= self.bound.allowed:
            self.refused = True
            self.wait = 1.0 if spent + self.amount <= self.bound.allowed and aside else midnight + DAY - now
            return False
        record.allowed, record.period, record.key = self.bound.allowed, DAY, self.bound.owner
        record.starts = [(midnight, spent)]
        record.holders[self.mark] = Holder(str(self.amount), ttl=self.ttl)
        return True


class _Spend(Operation):
    """What was set aside came to `amount` nano-dollars."""

    def __init__(self, records: Records, bound: Bound, amount: int, mark: str, lapsed: bool) -> None:
        self._clock = records.clock
        self.bound, self.amount, self.mark, self.lapsed = bound, amount, mark, lapsed
        self.spent = 0
        """All of the day, with it."""

    def apply(self, record: Record, gone: Collection[str]) -> bool:
        midnight = _midnight(self._clock.earliest())
        if record.holders.pop(self.mark, None) is None and not self.lapsed:
            self.spent = _spent(record, midnight)
            return False  # stored before, its confirmation got lost
        self.spent = _spent(record, midnight) + self.amount
        record.allowed, record.period, record.key = self.bound.allowed, DAY, self.bound.owner
        record.starts = [(midnight, self.spent)]
        return True


class Meter:
    """Counts what calls use.

    Args:
        transport: The connection.
        settings: Of the gateway.
        longest: Seconds a call may take.
    """

    def __init__(self, transport: Transport, settings: LLMSettings, longest: float) -> None:
        self._transport = transport
        self._settings = settings
        self._ttl = longest + 10.0
        self._records: dict[str, Records] = {}
        self._slots: Counter[str] = Counter()

    def of_caller(self, tenant: str, user: str) -> list[Bound]:
        """The limits of a tenant and of its user, the narrowest first."""
        found = bounds_of("user", user, self._settings.user_budget) if user else []
        return found + bounds_of("tenant", tenant, self._settings.tenants.get(tenant, self._settings.budget))

    def of_model(self, name: str, model: ModelSettings) -> list[Bound]:
        """The limits of a model."""
        slots = [] if model.concurrency is None else [Bound("model", name, "slots", model.concurrency)]
        return slots + bounds_of("model", name, model.budget)

    async def take(self, tenant: str, bounds: Sequence[Bound], need: Need) -> Taken | Refusal:
        """Reserve it under all bounds, or under none.

        Raises:
            BrokerError: It cannot be known.
        """
        taken = Taken(new_id(), tenant)
        for bound in sorted(bounds, key=lambda bound: bound.unit != "slots"):  # those that cost no round trip first
            amount = need.amount(bound)
            try:
                at, wait = await self._take(taken, bound, amount)
            except BaseException:  # cancelled, or not known; what is kept at the broker ends by itself
                self._leave_slots(taken)
                raise
            if wait > 0:
                await self.settle(taken, None, 0.0)
                return Refusal(bound, max(0.05, wait))
            taken.at[bound], taken.amounts[bound] = at, amount
        return taken

    def _leave_slots(self, taken: Taken) -> None:
        for bound in taken.amounts:
            if bound.unit == "slots":
                self._slots[bound.path] -= 1

    async def _take(self, taken: Taken, bound: Bound, amount: int) -> tuple[float, float]:
        """Since when it counts, and if there is no room, for how long not."""
        if bound.unit == "slots":
            if self._slots[bound.path] >= bound.allowed:
                return 0.0, _SLOT
            self._slots[bound.path] += 1
            return 0.0, 0.0
        records = self._of(taken.tenant)
        await records.ready()
        if bound.unit == "usd":
            reserved = await records.do(bound.path, _Reserve(records, bound, amount, taken.mark, self._ttl))
            return 0.0, max(_SOON, reserved.wait) if reserved.refused else 0.0
        counted = await records.do(bound.path, _Count(records, bound, amount))
        return counted.counted_at, max(_SOON, counted.wait) if counted.refused else 0.0

    async def settle(self, taken: Taken, tokens: int | None, dollars: float) -> dict[Bound, float]:
        """Put right what was reserved.

        Args:
            taken: The reservation.
            tokens: How many it were; None: the call was not made after all, and nothing of it counts.
            dollars: What it cost.

        Returns:
            What has been spent this day under each bound of money, in US dollars.
        """
        spent: dict[Bound, float] = {}
        lapsed = time.monotonic() - taken.since > self._ttl  # others may have taken the reservation for lost
        amounts, taken.amounts = taken.amounts, {}
        for bound, amount in amounts.items():
            if bound.unit == "slots":
                self._slots[bound.path] -= 1
                continue
            records = self._of(taken.tenant)
            if bound.unit == "usd":
                done = await records.do(bound.path, _Spend(records, bound, nano(dollars), taken.mark, lapsed))
                spent[bound] = done.spent / NANO
                continue
            used = 0 if tokens is None else 1 if bound.unit == "requests" else tokens
            if used != amount:
                await records.do(bound.path, _Correct(taken.at[bound], used - amount))
        return spent

    def _of(self, tenant: str) -> Records:
        records = self._records.get(tenant)
        if records is None:
            records = self._records[tenant] = records_of(self._transport, subjects_on(self._transport, tenant))
        return records


def _midnight(time: float) -> float:
    return datetime.fromtimestamp(time, UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()


def _spent(record: Record, midnight: float) -> int:
    return sum(count for time, count in record.starts if time >= midnight)
