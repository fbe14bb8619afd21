"""Which fault strikes when, planned from a seed before anything runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agentmesh.errors import UsageError

FIRST = 2.0
"""Seconds of quiet before the first fault."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    means: str
    seconds: tuple[float, float] = (0.0, 0.0)
    """How long it lasts: shortest and longest."""
    broker: bool = False
    """It takes away a broker or the way to it: one such fault at a time."""
    cluster: bool = False
    """Only where there is more than one server."""
    scenario: bool = False
    """Only in a scenario: it needs servers made for it, or leaves nothing for other faults to break."""


KINDS = {
    "worker-kill": Kind("SIGKILL of a worker"),
    "worker-term": Kind("SIGTERM of a worker: it drains"),
    "worker-freeze": Kind("SIGSTOP of a worker beyond ack_wait, then SIGCONT", (3.0, 6.0)),
    "worker-block": Kind("a handler that blocks a worker's event loop beyond ack_wait"),
    "worker-clock": Kind("the time of day of a worker jumps by an hour, and back", (3.0, 6.0)),
    "supervisor-kill": Kind("SIGKILL of an `agentmesh up`: nothing of it may stay"),
    "supervisor-term": Kind("SIGTERM of an `agentmesh up`"),
    "supervisor-freeze": Kind("SIGSTOP of an `agentmesh up`, then SIGCONT", (3.0, 6.0)),
    "submitter-kill": Kind("SIGKILL of a process that submits"),
    "server-kill": Kind("SIGKILL of a server, started again on its store", (0.1, 1.5), broker=True),
    "server-restart": Kind("SIGTERM of a server, started again on its store", (0.1, 0.5), broker=True),
    "server-freeze": Kind("SIGSTOP of a server, then SIGCONT", (1.0, 4.0), broker=True),
    "link-cut": Kind("every connection to a server is reset"),
    "link-delay": Kind("every chunk to and from a server is late by up to 0.2 s", (2.0, 5.0), broker=True),
    "link-drop": Kind("three of ten replies of a server are lost", (2.0, 5.0), broker=True),
    "link-acks": Kind("three of ten acknowledgements are lost on their way to a server", (2.0, 5.0), broker=True),
    "link-hole": Kind("a server is silent, and its connections stay", (2.0, 6.0), broker=True),
    "leader-kill": Kind("SIGKILL of the leader of the tasks, started again later", (8.0, 12.0), True, True),
    "leader-isolate": Kind("clients and servers lose the leader silently", (15.0, 20.0), True, True),
    "leader-split": Kind("the other servers lose the leader silently, clients do not", (20.0, 25.0), True, True),
    "quorum-kill": Kind("SIGKILL of two of three servers, started again later", (6.0, 6.0), True, True, scenario=True),
    "power-cut": Kind("all servers lose power at once; what was not on disk is gone", broker=True, scenario=True),
    "disk-fill": Kind(
        "the disk of a server is full; later there is room, and it is restarted", (8.0, 8.0), True, scenario=True
    ),
}
"""Every kind, by name; the part before the dash is its group."""

DEFAULT = ("worker", "supervisor", "submitter", "server", "link", "leader")


@dataclass(frozen=True)
class Fault:
    """One fault to come."""

    name: str
    at: float
    """Seconds from the start of the load."""
    seconds: float
    """How long it lasts."""
    target: int
    """Which of its group it strikes, modulo their number."""
    salt: int
    """For what is left to chance while it lasts."""

    def __str__(self) -> str:
        return f"{self.at:7.1f} s  {self.name}" + (f" for {self.seconds:.1f} s" if self.seconds else "")


def kinds(wanted: Sequence[str], *, cluster: bool) -> list[str]:
    """The kinds that names and groups stand for, as far as there are servers for them.

    Raises:
        UsageError: One is neither a kind nor a group.
    """
    found: list[str] = []
    for word in wanted:
        matching = [name for name in KINDS if word in (name, name.partition("-")[0])]
        if not matching:
            groups = list(dict.fromkeys(name.partition("-")[0] for name in KINDS))
            raise UsageError(f"there is no fault {word!r}; there are {', '.join(groups)}, and {', '.join(KINDS)}")
        if all(KINDS[name].scenario for name in matching):
            raise UsageError(f"{word} comes only in a scenario; see agentmesh chaos --list")
        found += [name for name in matching if (cluster or not KINDS[name].cluster) and not KINDS[name].scenario]
    return list(dict.fromkeys(found))


def plan(seed: int, seconds: float, names: Sequence[str], gap: float = 2.0) -> list[Fault]:
    """Faults for `seconds` of load; the same for the same arguments. All end within them.

    Every kind comes once before any comes twice; each begins `gap` seconds after the one before, on average, whether
    that is over or not.
    """
    rng = random.Random(f"faults/{seed}")
    faults: list[Fault] = []
    deck: list[str] = []
    at, broker_free = FIRST, 0.0
    while names:
        if not deck:
            deck = rng.sample(list(names), len(names))
        name = deck.pop()
        kind = KINDS[name]
        begin = max(at, broker_free) if kind.broker else at
        lasts = rng.uniform(*kind.seconds)
        at = begin + rng.uniform(0.2, 1.8) * gap
        if begin + lasts > seconds:
            break
        faults.append(Fault(name, round(begin, 2), round(lasts, 2), rng.randrange(60), rng.randrange(2**32)))
        if kind.broker:
            broker_free = begin + lasts + gap
    return sorted(faults, key=lambda fault: fault.at)
