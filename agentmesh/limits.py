"""Limits: how many tasks may run at once, and how many may start within a period, over all workers on all hosts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentmesh.errors import DefinitionError
from agentmesh.subjects import token

MAX_CONCURRENCY = 10_000
"""Whoever runs stands in the record of a limit, which must fit into a message."""

SHORTEST_PERIOD = 0.1

_READABLE = re.compile(r"[A-Za-z0-9_-]{0,48}")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*){0,4}")


@dataclass(frozen=True)
class Limit:
    """A bound on the tasks of a type, of an agent's queue, or of a tenant: on those that run, or on those that start.

        class Fetch(Task[str], limits=[Limit(concurrency=4), Limit(rate=10, period=60, key="host")]): ...

    Give `concurrency` or `rate`; for both, declare two limits.
    """

    concurrency: int = 0
    """Tasks that may run at the same time."""

    rate: int = 0
    """Tasks that may start within any `period` seconds."""

    period: float = 1.0
    """Seconds; 0.1 or more."""

    key: str = ""
    """A field or property of the task, or a dotted path: each of its values is counted for itself. A task that has no
    such field counts as one with an empty value."""

    name: str = ""
    """Counted together with every limit of the same name, kind and key in the tenant, wherever it is declared."""

    def __post_init__(self) -> None:
        if (self.concurrency > 0) == (self.rate > 0) or self.concurrency < 0 or self.rate < 0:
            raise DefinitionError("Limit", "give concurrency or rate, 1 or more; declare two limits to have both")
        if self.concurrency > MAX_CONCURRENCY:
            raise DefinitionError("Limit", f"concurrency may be {MAX_CONCURRENCY} at most, not {self.concurrency}")
        if not self.period >= SHORTEST_PERIOD or self.period == float("inf"):
            raise DefinitionError("Limit", f"period must be {SHORTEST_PERIOD:g} seconds or more, not {self.period:g}")
        if self.key and _KEY.fullmatch(self.key) is None:
            raise DefinitionError("Limit", f"key must name a field of the task, such as 'url.host', not {self.key!r}")
        if self.name:
            token("limit", self.name)

    @property
    def allowed(self) -> int:
        """The number, of whichever kind."""
        return self.concurrency or self.rate

    def value(self, task: Any) -> str:
        """What the task has in the place of `key`; empty if it has no such thing, or there is no key."""
        if not self.key:
            return ""
        found = task
        for part in self.key.split("."):
            found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
        return "" if found is None or callable(found) else str(found)

    def __str__(self) -> str:
        what = f"{self.concurrency} at once" if self.concurrency else f"{self.rate} in {self.period:g} s"
        return f"{what} per {self.key}" if self.key else what


@dataclass(frozen=True)
class Rule:
    """A limit in its place: where it is counted."""

    limit: Limit
    scope: str
    """`task`, `agent`, `tenant` or `shared`."""
    owner: str
    """The task type, the agent, or the name of the limit; `all` for a tenant."""

    @property
    def what(self) -> str:
        """Kind and key, as one token: two limits of one place that agree in it are one limit declared twice."""
        limit = self.limit
        kind = "slots" if limit.concurrency else f"rate-{format(limit.period, 'g').replace('.', '_').replace('+', '')}"
        return f"{kind}-{limit.key.replace('.', '-')}" if limit.key else kind

    def path(self, task: Any) -> str:
        """Where its use by `task` is counted: four tokens of a subject."""
        return f"{self.scope}.{self.owner}.{self.what}.{value_token(self.limit.value(task))}"


def value_token(value: str) -> str:
    """A key's value as a token: readable if it can be, else a digest."""
    if _READABLE.fullmatch(value):
        return f"k{value}"
    return "h" + hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def rules(scope: str, owner: str, limits: Iterable[Limit]) -> tuple[Rule, ...]:
    """The limits of one place.

    Raises:
        DefinitionError: Two of them would be counted together.
    """
    found: dict[tuple[str, str, str], Rule] = {}
    for limit in limits:
        rule = Rule(limit, "shared", limit.name) if limit.name else Rule(limit, scope, owner)
        place = (rule.scope, rule.owner, token("limit", rule.what))
        if place in found:
            raise DefinitionError(owner, f"two limits of one kind and key: {found[place].limit} and {limit}")
        found[place] = rule
    return tuple(found.values())
