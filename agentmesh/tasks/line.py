"""Those that wait for one record of a limit at one worker: a few in hand, the others with the broker."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING

from agentmesh.limits import Rule
from agentmesh.tasks.clock import loop_time

if TYPE_CHECKING:
    from agentmesh.tasks.attempt import Attempt

SHORTEST, LONGEST = 0.25, 30.0
"""Seconds until a task that was sent away comes back."""

RETURNS = 100.0
"""Tasks sent away that come back in a second, at least; enough to keep what is limited busy."""

ADVANTAGE = 4.0
"""How many times more come back in a second than could begin of late."""

IN_HAND = 8
"""Tasks in hand for one record: they begin as soon as there is room."""

TRUSTED = 2.0
"""Seconds a look at slots is good for; with very many lines it takes longer until it is the turn of each."""

_PARTS = 8

_FADES = 5.0
"""Seconds in which what was begun loses most of its weight."""


class Line:
    """See the module.

    The broker cannot be told to bring a task earlier than it was sent away for. So the delay follows from how many
    were sent away and how many begin: by the time there is room for a task, one is here or about to come.
    """

    def __init__(self, path: str, rule: Rule, key: str) -> None:
        self.path = path
        self.rule = rule
        self.key = key
        self.parked: deque[Attempt] = deque()
        self.full = True
        """At the last look there was no room."""
        self.looked_at = loop_time()
        self.open_at = 0.0
        """For a rate, when there may be room: in seconds of the event loop."""
        self._away: dict[int, int] = {}
        """When they come back, in parts of a second of the event loop's time: how many."""
        self._begun = 0.0
        self._begun_at = loop_time()

    @property
    def takes(self) -> bool:
        """Whether one more can be kept in hand."""
        return len(self.parked) < min(IN_HAND, 2 * self.rule.limit.allowed)

    @property
    def closed(self) -> bool:
        """Whether it is known that a task cannot begin now."""
        now = loop_time()
        return self.full and (now < self.open_at if self.rule.limit.rate else now - self.looked_at < TRUSTED)

    def waiting(self) -> int:
        """Tasks that this worker made wait and that wait still, as far as it knows."""
        now = loop_time() * _PARTS
        for part in [part for part in self._away if part < now]:
            del self._away[part]
        return len(self.parked) + sum(self._away.values())

    def begun(self) -> None:
        """One has begun."""
        self._begun = self._recently() + 1.0
        self._begun_at = loop_time()

    def send_away(self) -> float:
        """Seconds after which one more task shall come back."""
        now = loop_time()
        away = self.waiting() - len(self.parked) + 1
        limit = self.rule.limit
        delay = away / max(RETURNS, ADVANTAGE * self._recently() / _FADES)
        if limit.rate:
            delay = max(delay, self.open_at - now, 0.5 * away * limit.period / limit.rate)
        delay = min(LONGEST, max(SHORTEST, delay)) * random.uniform(0.75, 1.25)
        part = int((now + delay) * _PARTS)
        self._away[part] = self._away.get(part, 0) + 1
        return delay

    def _recently(self) -> float:
        """About how many have begun within the last few seconds."""
        return float(self._begun * 2.0 ** ((self._begun_at - loop_time()) / _FADES))
