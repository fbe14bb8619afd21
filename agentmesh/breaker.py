"""A circuit breaker: after several failures nothing is tried for a while, then a little, then everything.

| state       | what is admitted                | ends when                                                   |
| ----------- | ------------------------------- | ----------------------------------------------------------- |
| `closed`    | everything                      | `failures` failures fell into the last `window` s: open     |
| `open`      | nothing                         | `cooldown` seconds have passed: half-open                   |
| `half-open` | `probes` calls at the same time | `successes` of them succeed: closed; one fails: open again  |

It is plain, synchronous code without a timer: time passes when somebody asks. Whoever was admitted says what came of it
with `succeeded`, `failed`, or `dropped` if nothing can be said, as when the call was cancelled.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from agentmesh.errors import CircuitOpenError, DefinitionError


@dataclass(frozen=True)
class BreakerPolicy:
    """When asks of an agent are not tried for a while; see `Breaker` for the fields.

    Failures are: nobody listens, no reply by the deadline, the agent stopped first. What a handler raises is none.
    """

    failures: int = 5
    window: float = 30.0
    cooldown: float = 5.0
    probes: int = 1
    successes: int = 2


MOST = 1_000
"""Agents that are told apart; the ones asked first are forgotten."""


class Breakers:
    """A breaker for each agent that is asked over a connection."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._breakers: dict[tuple[str, str], Breaker] = {}

    def of(self, tenant: str, agent: str) -> Breaker:
        """The breaker of an agent, made at the first call."""
        key = (tenant, agent)
        found = self._breakers.get(key)
        if found is None:
            if len(self._breakers) >= MOST:
                del self._breakers[next(iter(self._breakers))]
            found = self._breakers[key] = Breaker(agent, **asdict(self._policy))
        return found

    def __iter__(self) -> Iterator[tuple[str, str, Breaker]]:
        """Tenants, agents and their breakers."""
        return ((tenant, agent, breaker) for (tenant, agent), breaker in list(self._breakers.items()))


class Breaker:
    """See the module.

    Args:
        name: What is behind it, for the error.
        failures: How many within `window` open it.
        window: Seconds that failures count.
        cooldown: Seconds it stays open. A probe of which nothing is heard for that long is forgotten.
        probes: Calls that may be under way at once while it is half-open.
        successes: Successful probes that close it.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 5,
        window: float = 60.0,
        cooldown: float = 30.0,
        probes: int = 1,
        successes: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(failures, probes, successes) < 1 or min(window, cooldown) <= 0:
            raise DefinitionError(
                "Breaker", "failures, probes and successes are 1 or more, window and cooldown above 0"
            )
        self.name = name
        self.opened = 0
        """How often it has opened."""
        self._threshold, self._window, self._cooldown = failures, window, cooldown
        self._places, self._needed = probes, successes
        self._clock = clock
        self._failures: deque[float] = deque()
        """When the last failures were, while closed."""
        self._opened_at: float | None = None
        self._probes: deque[float] = deque()
        """When the probes under way were admitted."""
        self._successes = 0

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        if self._opened_at is None:
            return "closed"
        return "open" if self._clock() < self._opened_at + self._cooldown else "half-open"

    @property
    def retry_after(self) -> float:
        """Seconds until something may be admitted, at most; 0 if it is now."""
        if self._opened_at is None:
            return 0.0
        time = self._clock()
        if time < self._opened_at + self._cooldown:
            return self._opened_at + self._cooldown - time
        self._forget_silent_probes(time)
        return 0.0 if len(self._probes) < self._places else self._probes[0] + self._cooldown - time

    def admit(self) -> None:
        """Let a call through, or not.

        Raises:
            CircuitOpenError: Not now; says when.
        """
        if self._opened_at is None:
            return
        wait = self.retry_after
        if wait > 0:
            raise CircuitOpenError(self.name, wait)
        self._probes.append(self._clock())

    def succeeded(self) -> None:
        """A call that was admitted did what it should."""
        if self._opened_at is None or not self._is_probe():
            return
        self._successes += 1
        if self._successes >= self._needed:
            self._opened_at = None
            self._failures.clear()
            self._probes.clear()

    def failed(self) -> None:
        """A call that was admitted failed in a way that says something about what is behind."""
        time = self._clock()
        if self._opened_at is not None:
            if self._is_probe():
                self._open(time)
            return
        while self._failures and self._failures[0] <= time - self._window:
            self._failures.popleft()
        self._failures.append(time)
        if len(self._failures) >= self._threshold:
            self._open(time)

    def dropped(self) -> None:
        """A call that was admitted ended without saying anything about what is behind."""
        if self._opened_at is not None:
            self._is_probe()

    def _open(self, time: float) -> None:
        self.opened += 1
        self._opened_at = time
        self._failures.clear()
        self._probes.clear()
        self._successes = 0

    def _is_probe(self) -> bool:
        """Take one probe back. What was admitted before it opened comes too late to count, if no probe is under way."""
        self._forget_silent_probes(self._clock())
        if not self._probes:
            return False
        self._probes.popleft()
        return True

    def _forget_silent_probes(self, time: float) -> None:
        while self._probes and self._probes[0] <= time - self._cooldown:
            self._probes.popleft()
