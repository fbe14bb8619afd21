"""How often, and how soon, a failed child is started again."""

from __future__ import annotations

import random
from collections import deque

from pydantic import BaseModel, ConfigDict, Field


class RestartPolicy(BaseModel):
    """How often a child may be restarted before its supervisor gives up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_restarts: int = Field(default=3, ge=0)
    """Restarts allowed within `period`; 0 never restarts."""

    period: float = Field(default=5.0, gt=0)
    """Seconds the count looks back."""

    backoff: float = Field(default=0.2, ge=0)
    """Seconds before the first restart; doubled for each further one within `period`."""

    max_backoff: float = Field(default=10.0, ge=0)
    """Longest wait before a restart, in seconds."""

    jitter: float = Field(default=0.2, ge=0, le=1)
    """Fraction of the wait that is left to chance, so that children which failed together do not return together."""

    def delay(self, restart: int) -> float:
        """Seconds to wait before the `restart`-th restart (from 1) within the period."""
        wait = min(self.max_backoff, self.backoff * 2.0 ** min(restart - 1, 32))
        return wait * (1.0 - self.jitter * random.random())


class Intensity:
    """Counts restarts against a policy."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._times: deque[float] = deque()

    def count(self, time: float) -> int:
        """Count one restart at `time` (monotonic seconds).

        Returns:
            Which one it is within the period, from 1; 0 if the policy does not allow it.
        """
        while self._times and self._times[0] <= time - self._policy.period:
            self._times.popleft()
        if len(self._times) >= self._policy.max_restarts:
            return 0
        self._times.append(time)
        return len(self._times)
