"""Who is next when a limit is reached: turns by priority, and fairly among callers.

Requests that wait for one limit are a line. Of ten turns in a line `high` gets six, `normal` three and `low` one, as
far as there are such requests, so nobody starves; within a priority the callers take turns, whatever number of requests
each of them has, and the requests of one caller keep their order. A line has one runner, who tries the first in turn
when there should be room. Newcomers stand behind those who wait.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from agentmesh.agents.llm.bounds import Refusal, Taken
from agentmesh.errors import AgentMeshError, ModelError

WEIGHTS = {"high": 6, "normal": 3, "low": 1}

_LONGEST_NAP = 0.5
"""Seconds between looks: what others used less than they reserved makes room early."""

Try = Callable[[], Awaitable[Taken | Refusal]]
Caller = Hashable


@dataclass(eq=False)
class Turn:
    """One request that waits."""

    caller: Caller
    priority: str
    attempt: Try
    given: asyncio.Future[Taken]
    path: str = ""
    """Of the limit it waits for."""


@dataclass
class Line:
    """Those that wait for one limit."""

    lanes: dict[str, OrderedDict[Caller, deque[Turn]]] = field(
        default_factory=lambda: {priority: OrderedDict() for priority in WEIGHTS}
    )
    credit: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0))
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    runner: asyncio.Task[None] | None = None
    nap: float = 0.0

    def __len__(self) -> int:
        return sum(len(turns) for lane in self.lanes.values() for turns in lane.values())

    def append(self, turn: Turn) -> None:
        self.lanes[turn.priority].setdefault(turn.caller, deque()).append(turn)

    def remove(self, turn: Turn) -> None:
        turns = self.lanes[turn.priority].get(turn.caller)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self.lanes[turn.priority][turn.caller]

    def pop(self) -> Turn:
        """The next in turn."""
        there = [priority for priority in WEIGHTS if self.lanes[priority]]
        for priority in there:  # smooth weighted round robin
            self.credit[priority] += WEIGHTS[priority]
        chosen = max(there, key=lambda priority: self.credit[priority])
        self.credit[chosen] -= sum(WEIGHTS[priority] for priority in there)
        lane = self.lanes[chosen]
        caller, turns = next(iter(lane.items()))
        turn = turns.popleft()
        del lane[caller]
        if turns:
            lane[caller] = turns  # behind the other callers
        return turn

    def give_back(self, turn: Turn) -> None:
        """It was its turn, and there was no room: it is the next again."""
        lane = self.lanes[turn.priority]
        turns = lane.get(turn.caller) or deque()
        turns.appendleft(turn)
        lane[turn.caller] = turns
        lane.move_to_end(turn.caller, last=False)
        there = [priority for priority in WEIGHTS if self.lanes[priority]]
        self.credit[turn.priority] += sum(WEIGHTS[priority] for priority in there)
        for priority in there:
            self.credit[priority] -= WEIGHTS[priority]


class Turns:
    """All lines of one replica.

    Args:
        most: Requests that may wait.
        most_each: Of one caller.
        release: Gives back what was reserved for a request that has gone meanwhile.
    """

    def __init__(self, most: int, most_each: int, release: Callable[[Taken], Awaitable[None]]) -> None:
        self._most = most
        self._most_each = most_each
        self._release = release
        self._lines: dict[str, Line] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def waiting(self, path: str) -> int:
        """How many wait for that limit."""
        return len(self._lines[path]) if path in self._lines else 0

    async def take(
        self,
        paths: list[str],
        attempt: Try,
        *,
        caller: Caller,
        priority: str,
        wait: float,
        on_refused: Callable[[Refusal, bool], None],
    ) -> Taken | Refusal:
        """Reserve, at once or when it is this request's turn.

        Args:
            paths: Of the limits it is under.
            attempt: Reserves under all of them, or says which has no room.
            caller: Who takes turns with others.
            priority: `high`, `normal` or `low`.
            wait: Seconds it may wait; 0: not at all.
            on_refused: Called with a refusal, and whether the request waits; must not block.

        Returns:
            The refusal, if it does not wait, or would wait in vain.

        Raises:
            ModelError: `RESOURCE_EXHAUSTED`: too many wait already, or it has waited long enough.
        """
        blocked = next((path for path in paths if path in self._lines), "")
        refusal: Refusal | None = None
        if not blocked or wait <= 0:
            outcome = await attempt()
            if isinstance(outcome, Taken):
                return outcome
            refusal, blocked = outcome, outcome.bound.path
            in_vain = refusal.retry_after > wait and refusal.bound.unit != "slots"  # when a call ends is not known
            if wait <= 0 or in_vain:
                on_refused(refusal, False)
                return refusal
            on_refused(refusal, True)
        return await self._wait(blocked, Turn(caller, priority, attempt, _future()), wait, refusal)

    def prompt(self, paths: list[str]) -> None:
        """There may be room now."""
        for path in paths:
            if path in self._lines:
                self._lines[path].wake.set()

    async def close(self) -> None:
        runners = [line.runner for line in self._lines.values() if line.runner is not None]
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    async def _wait(self, path: str, turn: Turn, wait: float, refusal: Refusal | None) -> Taken:
        mine = sum(len(lane.get(turn.caller, ())) for line in self._lines.values() for lane in line.lanes.values())
        if len(self) >= self._most or mine >= self._most_each:
            again = refusal.retry_after if refusal else 1.0
            raise ModelError("RESOURCE_EXHAUSTED", f"{max(len(self), mine)} requests wait already", retry_after=again)
        self._join(path, turn, refusal.retry_after if refusal else 0.0)
        taken: Taken | None = None
        try:
            async with asyncio.timeout(wait):
                taken = await turn.given
        except TimeoutError:
            raise ModelError("RESOURCE_EXHAUSTED", f"no room within {wait:g} s", retry_after=1.0) from None
        finally:
            if taken is None:
                await self._leave(turn)
        return taken

    async def _leave(self, turn: Turn) -> None:
        """Stand in no line any more, and give back what was given in the last moment."""
        if turn.path in self._lines:
            self._lines[turn.path].remove(turn)
        if not turn.given.done():
            turn.given.cancel()
        elif not turn.given.cancelled() and turn.given.exception() is None:
            await self._release(turn.given.result())

    def _join(self, path: str, turn: Turn, nap: float) -> None:
        line = self._lines.get(path)
        if line is None:
            line = self._lines[path] = Line(nap=nap)
            line.runner = asyncio.get_running_loop().create_task(self._run(path, line), name=f"turns at {path}")
        turn.path = path
        line.append(turn)

    async def _run(self, path: str, line: Line) -> None:
        """Give turns until nobody waits."""
        try:
            while len(line):
                await _nap(line)
                while len(line) and await self._try(path, line):
                    pass
        finally:
            if self._lines.get(path) is line:
                del self._lines[path]
            while len(line):  # nobody gives turns any more
                left = line.pop()
                if not left.given.done():
                    left.given.set_exception(ModelError("UNAVAILABLE", "the gateway stops"))

    async def _try(self, path: str, line: Line) -> bool:
        """Give the next one its turn; whether another one should be tried at once."""
        turn = line.pop()
        try:
            outcome = await turn.attempt()
        except AgentMeshError as error:
            if not turn.given.done():
                turn.given.set_exception(error)
            return True
        except asyncio.CancelledError:
            turn.given.cancel()
            raise
        if isinstance(outcome, Taken):
            if turn.given.done():
                await self._release(outcome)
            else:
                turn.given.set_result(outcome)
            return True
        if turn.given.done():
            return True
        if outcome.bound.path != path:
            self._join(outcome.bound.path, turn, outcome.retry_after)
            return True
        line.give_back(turn)
        line.nap = outcome.retry_after
        return False


async def _nap(line: Line) -> None:
    line.wake.clear()
    try:
        async with asyncio.timeout(max(0.001, min(line.nap, _LONGEST_NAP))):
            await line.wake.wait()
    except TimeoutError:
        return


def _future() -> asyncio.Future[Taken]:
    return asyncio.get_running_loop().create_future()
