"""What the submitters do: planned from a seed, before anything runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Step = Literal["work", "doomed", "ask", "note"]


@dataclass(frozen=True)
class Planned:
    """One thing a submitter does."""

    step: Step
    n: int
    pause: float
    """Seconds to wait before it."""
    seconds: float = 0.0
    """How long the work takes."""
    failures: int = 0
    addressed: bool = True
    """Sent to the agent; else to the door, where a dispatcher finds it."""
    priority: str = "normal"
    deadline: float | None = None
    delay: float | None = None
    """Seconds that the broker keeps it before it is due."""
    cancel_after: float | None = None
    """Seconds after its acceptance at which it is cancelled, running, waiting or done."""


def planned(seed: int, submitter: int, life: int, rate: float) -> Iterator[Planned]:
    """What a submitter does in one of its lives, without end; the same for the same arguments.

    Args:
        seed: Of the run.
        submitter: Which one.
        life: How often it was started before.
        rate: Things done in a second, on average.
    """
    rng = random.Random(f"{seed}/{submitter}/{life}")
    n = 0
    while True:
        n += 1
        pause = rng.expovariate(rate)
        kind = rng.random()
        if kind < 0.84:
            yield _work(rng, n, pause)
        elif kind < 0.85:
            yield Planned("doomed", n, pause)
        elif kind < 0.93:
            yield Planned("ask", n, pause, seconds=rng.choice((0.0, 0.0, 0.3)))
        else:
            yield Planned("note", n, pause)


def _work(rng: random.Random, n: int, pause: float) -> Planned:
    length = rng.random()
    if length < 0.80:
        seconds = rng.uniform(0.0, 0.3)
    elif length < 0.96:
        seconds = rng.uniform(0.5, 2.0)
    else:
        seconds = rng.uniform(3.0, 5.0)  # longer than `ack_wait`
    late, cancelled, delayed = rng.random() < 0.03, rng.random() < 0.12, rng.random() < 0.06
    return Planned(
        "work",
        n,
        pause,
        seconds=seconds,
        failures=1 if rng.random() < 0.05 else 0,
        addressed=rng.random() < 0.85,
        priority=rng.choice(("high", "normal", "normal", "low")),
        deadline=rng.uniform(0.5, 4.0) if late else None,
        delay=rng.uniform(0.5, 3.0) if delayed else None,
        cancel_after=rng.uniform(0.0, 1.5 * seconds + 0.5) if cancelled else None,
    )
