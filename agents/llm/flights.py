"""Equal requests at the same time are one call: a flight, and everybody on it reads all of its parts.

The flight ends when its last passenger leaves: one who goes takes nothing from the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from agentmesh.agents.llm.messages import LLMPart

Source = Callable[[], AsyncGenerator[LLMPart, None]]


class Flight:
    """One call and its passengers. Made by `Flights`."""

    def __init__(self, key: str, tags: tuple[str, ...]) -> None:
        self.key = key
        self.tags = tags
        self.parts: list[LLMPart] = []
        self.passengers = 0
        self.pilot: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._error: BaseException | None = None
        self._over = False

    async def fly(self, source: Source) -> None:
        """Collect the parts; what is raised, everybody gets."""
        try:
            async with aclosing(source()) as parts:
                async for part in parts:
                    self.parts.append(part)
                    self._tell()
        except BaseException as error:
            self._error = error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._over = True
            self._tell()

    async def watch(self) -> AsyncGenerator[LLMPart, None]:
        """All parts, from the first."""
        seen = 0
        while True:
            more = self._more
            while seen < len(self.parts):
                seen += 1
                yield self.parts[seen - 1]
            if self._over:
                if self._error is not None:
                    raise self._error
                return
            if seen == len(self.parts):
                await more.wait()

    def _tell(self) -> None:
        self._more.set()
        self._more = asyncio.Event()


class Flights:
    """Those in the air, by digest of the request."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}
        self._pilots: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, digest: str) -> Flight | None:
        """The flight of an equal request."""
        return self._flights.get(digest)

    def begin(self, digest: str, key: str, tags: tuple[str, ...], source: Source) -> Flight:
        """A new flight; others may come on board from now on."""
        flight = self._flights[digest] = Flight(key, tags)
        flight.pilot = asyncio.get_running_loop().create_task(flight.fly(source), name="model call")
        self._pilots.add(flight.pilot)
        flight.pilot.add_done_callback(lambda pilot: self._landed(digest, flight, pilot))
        return flight

    async def ride(self, flight: Flight) -> AsyncGenerator[LLMPart, None]:
        """The parts of a flight; the last one who leaves before its end cancels it."""
        flight.passengers += 1
        try:
            async with aclosing(flight.watch()) as parts:
                async for part in parts:
                    yield part
        finally:
            flight.passengers -= 1
            if not flight.passengers and flight.pilot is not None and not flight.pilot.done():
                self.forget(flight)
                flight.pilot.cancel()

    def forget(self, *flights: Flight) -> None:
        """Nobody comes on board any more; those who are there stay."""
        for digest in [digest for digest, flight in self._flights.items() if flight in flights]:
            del self._flights[digest]

    def under_way(self) -> list[Flight]:
        return list(self._flights.values())

    async def close(self) -> None:
        """Cancel all of them."""
        for pilot in self._pilots:
            pilot.cancel()
        await asyncio.gather(*self._pilots, return_exceptions=True)

    def _landed(self, digest: str, flight: Flight, pilot: asyncio.Task[None]) -> None:
        self._pilots.discard(pilot)
        if self._flights.get(digest) is flight:
            del self._flights[digest]
        if not pilot.cancelled():
            pilot.exception()
