"""One life of an agent."""

from __future__ import annotations

import asyncio
from typing import Any

from agentmesh.agent.declare import Agent
from agentmesh.agent.letter import Letter
from agentmesh.messages import Message


class Life:
    """An instance, from its start to its end, and what it is working on."""

    __slots__ = ("cause", "concurrency", "free", "guests", "idle", "instance", "over", "workers")

    def __init__(self, instance: Agent, concurrency: int) -> None:
        self.instance = instance
        self.concurrency = concurrency
        self.free = concurrency
        """Slots that nobody has."""
        self.idle = asyncio.Event()
        """All slots are free."""
        self.idle.set()
        self.workers: dict[asyncio.Task[None], Letter | None] = {}
        """Each with the letter in its hands."""
        self.guests: dict[asyncio.Task[Any], bool] = {}
        """Tasks that run a handler in a slot, though they are not ours; and whether we cancelled them."""
        self.over = False
        """Nothing new begins in this life."""
        self.cause: tuple[BaseException, Message | None] | None = None
        """The failure that ended it, and the event whose handler failed."""

    def take(self) -> None:
        """Take a slot; giving it back is `free += 1`."""
        self.free -= 1
        self.idle.clear()

    def rest(self) -> None:
        """Wake those who wait until nothing is being handled, if that is so."""
        if self.free == self.concurrency:
            self.idle.set()
