"""What a connection does with streams, in figures."""

from __future__ import annotations

from agentmesh.streams.follow import Follower
from agentmesh.transport import Transport


class Figures:
    """Of one connection; see `agentmesh.metrics`."""

    def __init__(self) -> None:
        self.stored = 0
        """Chunks that its producers have stored."""
        self.read = 0
        """Chunks that its readers have got."""
        self.producers = 0
        """Runs that are in their block."""
        self.refused = 0
        """Runs that ended because they were cancelled, taken over or ended by somebody else."""
        self.followers: set[Follower] = set()

    @property
    def backlog(self) -> int:
        """Messages that were heard and not read yet, of all readers: a slow one has up to 1000, then reads again."""
        return sum(follower.backlog for follower in self.followers)


def figures_of(transport: Transport) -> Figures:
    """Those of a connection."""
    key = ("stream-figures", "")
    found: Figures | None = transport.shared.get(key)
    if found is None:
        found = transport.shared[key] = Figures()
    return found
